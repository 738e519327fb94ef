"""The example that learns which names a function uses: its data, and a tiny run."""

import textwrap

import jax
import numpy as np
import pytest

pytest.importorskip("optax", reason="in the `examples` extra")
pytest.importorskip("matplotlib", reason="in the `examples` extra")

from examples import extreme_multilabel as example

SOURCE = textwrap.dedent('''
    import os

    def readLines(path, *more, limit=None):
        """Opens the file, os.fspath first."""
        text = open(os.fspath(path))  # UTF8 only
        def inner(other):
            return helper(other, limit)
        return text.splitlines(inner, readLines)

    class HTTPServer:
        class Inner:
            async def close(self, flags=DEFAULT):
                # not "# a comment" within a string
                note = "# a string"
                await self.sock.close_all()

        if True:
            def nothing(self):
                return len(self)

    def pattern(x): return x is "\\d"
''')


def test_examples_of_a_source_text():
    first, second = example.examples_in(SOURCE, "some.py")  # the others use no name
    assert (first.file, first.name) == ("some.py", "readLines")
    # no builtin, parameter, own name, nor `os` and `fspath`, which the docstring gives away
    assert set(first.labels) == {"text", "inner", "helper", "splitlines"}
    assert first.words == (
        *("read", "lines", "opens", "the", "file", "os", "fspath", "first"),
        *("utf", "8", "only"),
    )
    assert second.name == "HTTPServer.Inner.close"
    assert set(second.labels) == {"DEFAULT", "note", "sock", "close_all"}
    assert second.words == (
        *("http", "server", "inner", "close", "not", "a", "comment", "within", "string"),
    )


def test_words_split_at_case_and_underscore():
    assert example.words_of("_makeHTTPRequest2 make_it") == ["make", "http", "request", "2", "it"]


def test_lines_end_where_the_parser_says():
    source = 'x = "\u2028\x0c"\ndef f():\n    # here\n    return g\n'
    assert example.examples_in(source, "f.py")[0].words == ("f", "here")


def test_files_that_do_not_parse_and_tests_are_skipped(tmp_path):
    for name, text in {
        "b.py": "def f(): g",
        "a/a.py": "def f(): h",
        "a/copy.py": "def f(): h",
        "bad.py": "def f(:",
        "bytes.py": "# \udcff",
        "test/t.py": "def f(): i",
        "a/site-packages/s.py": "def f(): j",
        "c.txt": "def f(): k",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    found = example.read_examples(tmp_path)
    assert sorted((e.file, e.labels) for e in found) == [("a/a.py", ("h",)), ("b.py", ("g",))]


def data_of(count):
    return example.encode(
        [
            example.Example(f"{i % 5}.py", f"f{i}", ("word", f"word{i}"), ("common", f"own{i}"))
            for i in range(count)
        ]
    )


def test_arrays_are_padded_and_cut():
    np.testing.assert_array_equal(
        example.padded([[3, 1], [], [4, 5, 6, 7]], 3), [[3, 1, -1], [-1, -1, -1], [4, 5, 6]]
    )
    data = data_of(3)
    assert data.words.shape == (3, example.MAX_WORDS)
    assert data.labels.shape == (3, example.MAX_LABELS)
    assert data.words[0, 0] == example.bucket("word") == 29969
    assert [data.names[i] for i in data.labels[1, :2]] == ["common", "own1"]
    np.testing.assert_array_equal(example.label_counts(data, np.arange(2)), [2, 1, 1, 0])


@pytest.mark.parametrize("split", ["random_split", "file_split"])
def test_splits_share_no_example(split):
    data = data_of(50)
    parts = getattr(example, split)(data, np.random.default_rng(0))
    assert sorted(np.concatenate(parts)) == list(range(50))
    assert all(len(part) for part in parts)
    if split == "file_split":
        files = [{data.examples[i].file for i in part} for part in parts]
        assert not files[0] & files[1]


def test_the_bag_is_blind_to_padding():
    embeddings = jax.random.normal(jax.random.key(0), (10, 4))
    words = np.array([[2, 5, -1, -1], [-1, -1, -1, -1]], np.int32)
    bags = example.bag(embeddings, words)
    np.testing.assert_allclose(bags[0], (embeddings[2] + embeddings[5]) / 2**0.5, rtol=1e-6)
    np.testing.assert_array_equal(bags[1], 0)


def test_training_starts_at_the_prior():
    counts = np.array([30, 2, 0])
    params = example.init(jax.random.key(0), 4, counts, 99)
    prior = jax.nn.sigmoid(params["bias"])
    np.testing.assert_allclose(prior, [0.305, 0.025, 0.005], rtol=1e-4)
    assert not params["kernel"].any()


def test_precision_counts_the_first_predictions():
    data = data_of(2)  # names: common, own0, own1
    predicted = np.array([[0, 2, 1, 2, 2], [1, 2, 0, 1, 1]])
    np.testing.assert_allclose(
        example.precisions(data, np.arange(2), predicted), [1 / 2, 4 / 6, 4 / 10]
    )


@pytest.mark.long
def test_a_quick_run(tmp_path, capsys):
    with jax.numpy_dtype_promotion("standard"):  # for optax
        found = example.main(["--quick", "--steps", "5", "--output", str(tmp_path)])
    assert (tmp_path / "extreme_multilabel.png").stat().st_size > 10_000
    assert len(found) == 12
    assert all(0 <= value <= 1 for value in found.values())
    printed = capsys.readouterr().out
    assert "precision@5" in printed
    assert "65,536" in printed


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--steps", "0"], "must be at least 1"),
        (["--steps", "many"], "invalid"),
        (["--seed", "-1"], "must be in"),
        (["--output", __file__], "cannot write"),
        (["--epochs", "3"], "unrecognized"),
    ],
)
def test_bad_arguments(given, complaint, capsys):
    with pytest.raises(SystemExit):
        example.arguments(given)
    assert complaint in capsys.readouterr().err
