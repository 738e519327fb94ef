"""The benchmarks at tiny sizes: they run, compare before they time, and write what they say."""

import argparse
import json
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__, accuracy, goals, gpu, memory, overhead, plots, speed, tpu
from benchmarks.lib import command, competitors, gpu_peers, programs, report, timing, workloads
from benchmarks.lib.command import Options
from benchmarks.lib.peers import jxent_peer, optax_peer
from benchmarks.lib.timing import Program

TINY = Options(tiny=True, rounds=1)
JAX_ONLY = (competitors.of_jxent, competitors.of_optax)


@pytest.fixture(autouse=True)
def defaults_of_jax():
    """As a user has them: other libraries' code does not keep to the strict modes."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


# Workloads.


def test_workloads_are_told_apart_and_have_reasons():
    names = [(w.platform, w.name) for w in workloads.WORKLOADS]
    assert len(set(names)) == len(names)
    for w in workloads.WORKLOADS:
        assert w.reason.endswith(".")
        assert (w.features is None) == (w.loss != "projection")


@pytest.mark.parametrize("workload", workloads.WORKLOADS, ids=lambda w: w.name)
def test_shrunk_workloads_are_tiny(workload):
    tiny = workloads.shrunk(workload)
    assert tiny.examples * tiny.classes * (tiny.features or 1) <= 2**17
    assert replace(
        tiny, examples=workload.examples, classes=workload.classes, features=workload.features
    ) == workload  # fmt: skip


def test_confident_rows_are_confident():
    tiny = workloads.workloads("cpu", "softmax ids", tiny=True)[1]
    ids, logits = workloads.labels_and_logits(tiny, "confident")
    own = np.take_along_axis(logits, ids[:, None], 1)[:, 0]
    np.put_along_axis(logits, ids[:, None], -np.inf, 1)
    lead = own - logits.max(1)
    assert 0.5 < np.mean(lead >= 9.99) < 1


def test_data_of_the_wrong_kind_is_refused():
    with_logits = workloads.WORKLOADS[0]
    projection = workloads.workloads("cpu", "projection")[0]
    with pytest.raises(ValueError, match="workload must have logits"):
        workloads.labels_and_logits(projection)
    with pytest.raises(ValueError, match="workload must be a projection"):
        workloads.projection_operands(with_logits)


# Timing and reports.


def test_times_are_paired_by_round():
    programs = {"a": Program(lambda: 1), "b": Program(lambda: 2)}
    times = timing.side_by_side(programs, rounds=3)
    assert {k: v.shape for k, v in times.items()} == {"a": (3,), "b": (3,)}
    ratio = timing.ratio({"a": np.array([2.0, 4, 6]), "b": np.array([1.0, 1, 2])}, "a", "b")
    assert ratio.median == 3
    assert ratio.low <= ratio.median <= ratio.high


def test_rounds_end_at_the_deadline_after_one():
    times = timing.side_by_side({"a": Program(lambda: 1)}, 9, deadline=time.monotonic() - 1)
    assert times["a"].shape == (1,)


@pytest.mark.parametrize(("rounds", "names"), [(0, ["a"]), (1, [])])
def test_nothing_to_time_is_refused(rounds, names):
    with pytest.raises(ValueError, match="rounds must be" if not rounds else "programs must"):
        timing.side_by_side({name: Program(lambda: 1) for name in names}, rounds)


def test_results_are_written(tmp_path, capsys):
    tables = [report.Table("A title", [{"x": 1.0, "y": "z"}], "A note.")]
    options = Options(results=tmp_path / "results", json=tmp_path / "json")
    command.run({"name": lambda _: tables}, options)
    printed = capsys.readouterr().out
    text = (tmp_path / "results/name.md").read_text(encoding="utf-8")
    assert "## A title" in text
    assert "## A title" in printed
    for folder in ("results", "json"):
        found = json.loads((tmp_path / folder / "name.json").read_text(encoding="utf-8"))
        assert found["tables"][0]["rows"] == [{"x": 1.0, "y": "z"}]
        assert "jxent" in found["header"]["versions"]
        assert set(found["header"]) == {"date", "versions", "Python", "backend", "machine"}


def test_command_line():
    parse = command.parser("A description.", only=tuple(__main__.MODULES)).parse_args
    options = command.options_of(parse(["--tiny", "--rounds", "2"]), ("float32",))
    assert options == Options(tiny=True, rounds=2)
    assert parse(["--only", "tpu", "gpu"]).only == ["tpu", "gpu"]
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        command._at_least_one("0")


# The modules.


@pytest.mark.long
def test_accuracy(tmp_path):
    largest, by_sample = accuracy.tables(
        replace(TINY, plots=tmp_path), (jxent_peer, optax_peer)
    )  # fmt: skip
    assert {"jxent", "optax"} <= set(largest.rows[0])
    assert {"max ulp", "median ulp", "returned as 0"} <= set(by_sample.rows[0])
    check_picture(tmp_path, "error_over_logit")


def check_picture(folder, name):
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.long
def test_speed(tmp_path):
    tables = speed.tables(replace(TINY, plots=tmp_path), JAX_ONLY)
    with_logits, more, small, projected, swept, goal = tables
    # A sigmoid, soft labels, two shapes of ids with two kinds of data; loss, two steps, gradient;
    # two libraries, and ours as single losses.
    assert len(with_logits.rows) == 6 * 4 * 3
    both = len(workloads.MORE) - 1, len(workloads.MORE)  # optax has no such statistics
    assert len(more.rows) == sum(both) * 2
    assert len(small.rows) == len(workloads.SMALL) * 2 * 2
    assert {"optax", "jxent", "jxent, per example", goals.BARE} <= {
        row["program"] for row in projected.rows
    }
    assert {row["classes"] for row in swept.rows} == {10, 100, 1000}
    assert {row["against"] for row in goal.rows} == {"optax", goals.BARE}
    assert {row["quantity"] for row in goal.rows} == {goals.LOSS, goals.STEP, goals.GRADIENTS}
    check_picture(tmp_path, "speed")


def test_goals_compare_with_the_right_row():
    def row(program, ratio, quantity=goals.LOSS):
        return {
            "loss": "sigmoid", "workload": "sigmoid 4096 x 4096 float32", "data": "random",
            "quantity": quantity, "program": program, "ratio": ratio,
        }  # fmt: skip

    rows = goals.goals_table([
        row("jxent", 1.0), row("optax", 7.0), row("PyTorch", 0.5),
        row("jxent", 1.0, goals.STEP), row("optax", 3.0, goals.STEP),
    ]).rows  # fmt: skip
    found = {(r["against"], r["quantity"]): (r["measured"], r["met"]) for r in rows}
    assert found == {
        ("optax", goals.LOSS): (7.0, "yes"),
        ("optax", goals.STEP): (3.0, "no"),
        ("PyTorch", goals.LOSS): (0.5, "no"),
    }


@pytest.mark.parametrize(
    "workload",
    [
        pytest.param(w, id=w.name, marks=[pytest.mark.long] * (i > 0))
        for i, w in enumerate(
            workloads.workloads("cpu", "sigmoid", "softmax ids", "softmax", tiny=True)
        )
    ],
)
def test_steps_descend_in_place(workload):
    labels, logits = workloads.labels_and_logits(workload)
    one = competitors.of_jxent(workload, labels, logits)
    before = one.loss()
    one.step(competitors.losses_in_mean(workload))
    assert one.loss() < before
    one.put(logits)
    np.testing.assert_array_equal(one.logits(), logits)


def present(makers, workload):
    labels, logits = workloads.labels_and_logits(workload)
    made = (make(workload, labels, logits) for make in makers)
    return [one for one in made if one is not None]


@pytest.mark.parametrize(
    "kind",
    ["softmax ids", *(pytest.param(k, marks=pytest.mark.long) for k in ("sigmoid", "softmax"))],
)
@pytest.mark.parametrize("wrong", ["loss", "gradient"])
@pytest.mark.one_in(2)
def test_a_wrong_competitor_is_caught(kind, wrong):
    """One whose loss is off by a thousandth, or whose gradient is wrong in the label's class."""
    tiny = workloads.workloads("cpu", kind, tiny=True)[0]
    _, logits = workloads.labels_and_logits(tiny)
    right = present(JAX_ONLY, tiny)
    competitors.check_against_each_other(right, tiny, logits)
    nonfinite = replace(right[1], name="broken")
    if wrong == "loss":
        nonfinite = replace(nonfinite, loss=lambda: 1.001 * right[1].loss())
    else:
        nonfinite = replace(nonfinite, step=lambda rate: right[1].step(1.01 * rate))
    with pytest.raises(AssertionError, match=f"broken against jxent: {wrong}"):
        competitors.check_against_each_other([right[0], nonfinite], tiny, logits)


def test_a_wrong_projection_is_caught():
    right = (np.float32(1), np.ones((2, 3), np.float32), np.ones((3, 2), np.float32))
    wrong = (right[0], right[1], 1.01 * right[2])
    speed.check_projections({"a": lambda: right, "b": lambda: right})
    with pytest.raises(AssertionError, match="b against a: d/d kernel"):
        speed.check_projections({"a": lambda: right, "b": lambda: wrong})


@pytest.mark.long
def test_all_agree():
    """PyTorch too, where it is installed, and formulas as users write them."""
    makers = (*JAX_ONLY, competitors.of_plain, competitors.of_torch)
    main = workloads.workloads("cpu", "sigmoid", "softmax ids", "softmax", tiny=True)
    for tiny in (*main, *map(workloads.shrunk, workloads.MORE)):
        _, logits = workloads.labels_and_logits(tiny)
        competitors.check_against_each_other(present(makers, tiny), tiny, logits)


def test_bare_products_are_the_same_in_blocks():
    rng = np.random.default_rng(0)
    inputs, kernel = jnp.asarray(rng.random((6, 3))), jnp.asarray(rng.random((3, 5)))
    whole = programs.chained_products(inputs, kernel)
    blocked = programs.blocked_products(2, inputs, kernel)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), whole, blocked)
    with pytest.raises(ValueError, match="block_size must divide the 6 examples"):
        programs.blocked_products(4, inputs, kernel)


@pytest.mark.long
def test_memory(tmp_path):
    swept, projected, listed = memory.tables(replace(TINY, plots=tmp_path))
    assert {row["loss"] for row in swept.rows} == {"sigmoid", "softmax ids", "projection"}
    assert all({"jxent", "optax", "floor"} <= set(row) for row in swept.rows)
    assert len(projected.rows) == 4 * 3
    assert len(listed.rows) == 4 * 2
    check_picture(tmp_path, "temporaries_over_classes")


PEERS = {name: gpu_peers.PEERS[name] for name in ("jxent", gpu_peers.BARE, "optax")}


def tiny_projection(peers, budget=None):
    workload = workloads.workloads("gpu", "projection", tiny=True)[0]
    rows = gpu.projection(workload, 1, budget or gpu.Budget(7), {**PEERS, **peers})
    return {row["program"]: row for row in rows}


@pytest.mark.long
def test_gpu_at_a_tiny_size_says_so(capsys):
    with_logits, projected = gpu.tables(TINY, PEERS)
    if not gpu.has_gpu():
        assert gpu.NO_GPU in capsys.readouterr().out
        assert with_logits.note.startswith(gpu.NO_GPU)
    assert {row["program"] for row in with_logits.rows} >= {"copy", "jxent", "optax"}
    assert len(projected.rows) == 3 * len(PEERS)
    assert all(row["ms"] > 0 for row in projected.rows)


@pytest.mark.long
def test_gpu_peers_that_fail_are_entries():
    def full(operands):
        raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")

    def nonfinite(operands):
        raise TypeError("no such argument\nmore")

    def wrong(operands):
        peer = gpu_peers.of_optax(operands)
        value, by_inputs, by_kernel = peer.outputs(peer.program.run())
        return replace(peer, outputs=lambda _: (value, by_inputs, 1.1 * by_kernel))

    def missing(operands):
        return None

    peers = {"full": full, "broken": nonfinite, "wrong": wrong, "missing": missing}
    rows = tiny_projection(peers)
    assert rows["full"]["remark"] == gpu.OUT_OF_MEMORY
    assert rows["broken"]["remark"] == "TypeError: no such argument"
    assert rows["wrong"]["remark"] == "wrong: gradients differ by 10%"
    assert "ms" not in rows["wrong"]
    assert "missing" not in rows
    assert rows["optax"]["ms"] > 0


def test_gpu_approximations_are_shown_and_nan_is_not_let_pass():
    expected = (1.0, np.ones(3))
    assert gpu.difference((1.0, np.full(3, 1.2)), expected, approximates=True) == ""
    assert "wrong" in gpu.difference((1.0, np.full(3, np.nan)), expected)
    assert "wrong" in gpu.difference((1.1, np.ones(3)), expected)
    assert "wrong" in gpu.difference((np.nan, np.ones(3)), expected)


@pytest.mark.long
def test_gpu_skips_what_is_over_time():
    rows = tiny_projection({}, gpu.Budget(-1))
    assert all(row["remark"].startswith("skipped") for row in rows.values())


@pytest.mark.long
def test_overhead_is_measured_of_each_loss():
    (table,) = overhead.tables(TINY)
    kinds = ("sigmoid", "softmax", "softmax ids", "projection")
    what = ("trace and lower", "compile", "eager call", "small step")
    measured = [(row["what"], row["loss"]) for row in table.rows]
    assert measured == [("import", ""), *((w, k) for w in what for k in kinds)]
    assert all(row[f"{name} ms"] > 0 for row in table.rows for name in ("jxent", "optax"))


def test_pictures_know_every_program():
    names = [*gpu_peers.PEERS, "PyTorch, compiled", "TensorFlow, XLA"]
    assert all(plots._color(name).startswith("#") for name in names)


@pytest.mark.long
def test_pictures_are_redrawn_from_what_is_kept(tmp_path):
    names = ["error_over_logit", "temporaries_over_classes", "speed"]
    kept = Path(plots.__file__).parent / "results"
    for name in names:
        shutil.copy(kept / f"{name}.json", tmp_path)
    plots.main([str(tmp_path)])
    for name in names:
        check_picture(tmp_path, name)
        assert (tmp_path / f"{name}.json").read_bytes() == (kept / f"{name}.json").read_bytes()


def test_modules_run_from_one_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tpu, "is_available", lambda: False)
    __main__.main(["--tiny", "--only", "tpu", "--json", str(tmp_path)])
    assert "# tpu" in capsys.readouterr().out
    assert (tmp_path / "tpu.json").exists()
    assert list(__main__.MODULES) == [
        "accuracy", "speed", "memory", "overhead", "tpu", "gpu", "gpu_compile",
    ]  # fmt: skip
