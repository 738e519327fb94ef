"""The language model example: that it runs, and ends the same however often it was interrupted."""

import functools
import math
from functools import partial

import jax
import numpy as np
import pytest

pytest.importorskip("flax", reason="in the `examples` extra")

from examples import language_model

QUICK = ["--quick", "--steps", "4", "--save-every", "2", "--vocabulary", "300", "--output"]


class Killed(Exception):  # noqa: N818
    pass


@pytest.fixture
def runs(monkeypatch):
    """Keeps the end of every training run; fewer vocabularies to compile for, and fewer files."""
    ends = []
    whole, settings_of = language_model.train, language_model.settings_of

    def train(*args):
        ends.append(whole(*args))
        return ends[-1]

    def smaller(options):
        return language_model.replace(settings_of(options), layers=1, files=20)

    monkeypatch.setattr(language_model, "train", train)
    monkeypatch.setattr(language_model, "settings_of", smaller)
    monkeypatch.setattr(language_model, "QUICK_VOCABULARIES", (512,))
    for name in ("compiled_step", "compare_memory"):  # once for all runs
        monkeypatch.setattr(language_model, name, functools.cache(getattr(language_model, name)))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield ends


def without_speed(numbers):
    return {name: value for name, value in numbers.items() if "second" not in name}


@pytest.mark.long
def test_interrupted_and_resumed_equals_uninterrupted(runs, tmp_path, monkeypatch, capsys):
    once = language_model.main([*QUICK, str(tmp_path / "once")])
    assert all(math.isfinite(value) for value in once.values())
    assert 0 < once["bits per byte, held out"] < 10
    assert (tmp_path / "once" / "language_model.png").stat().st_size > 0

    batch_of, seen = language_model.batch_of, []

    def until(step, *args):
        seen.append(step)
        if step == 3:
            raise Killed
        return batch_of(step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(language_model, "batch_of", until)
        with pytest.raises(Killed):
            language_model.main([*QUICK, str(tmp_path / "twice")])
    assert seen == [0, 1, 2, 3]

    def noted(step, *rest):
        seen.append(step)
        return batch_of(step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(language_model, "batch_of", noted)
        twice = language_model.main([*QUICK, str(tmp_path / "twice")])
    assert seen[4:] == [2, 3]  # step 2 was done, but not saved

    assert without_speed(twice) == without_speed(once)
    (state, log), (resumed, resumed_log) = runs
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    np.testing.assert_array_equal(resumed_log.losses, log.losses)
    np.testing.assert_array_equal(resumed_log.bits_per_byte, log.bits_per_byte)

    with pytest.raises(SystemExit, match=r"another run \(seed 0 there, 1 here.*--fresh"):
        language_model.main([*QUICK, str(tmp_path / "twice"), "--seed", "1"])


@pytest.mark.parametrize(
    "argv",
    [
        ["--steps", "0"],
        ["--seed", "-1"],
        ["--vocabulary", "256"],
        ["--save-every", "0"],
        ["--vocabulary", "many"],
        ["--output", __file__],
    ],
)
def test_invalid_arguments_end_the_program(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        language_model.main(argv)
    assert ended.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_both_losses_are_the_same_numbers():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 30, (3, 8))  # language_model.PADDING among them
    features = rng.normal(size=(3, 8, 16)).astype(np.float32)
    kernel = rng.normal(size=(16, 30)).astype(np.float32)
    ours = language_model.fused(labels, features, kernel)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = language_model.with_logits(labels, features, kernel)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), ours, theirs)


def test_every_epoch_takes_every_piece_once():
    pieces = np.arange(12)[:, None]
    settings = language_model.Settings(steps=6, seed=0, vocabulary=300, batch=4)
    order = np.concatenate([language_model.batch_of(i, pieces, settings)[:, 0] for i in range(6)])
    assert sorted(order[:12]) == sorted(order[12:]) == list(range(12))
    assert list(order[:12]) != list(order[12:])
