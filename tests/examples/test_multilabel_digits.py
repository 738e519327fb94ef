"""The scenes of the digits example, and its command line."""

import numpy as np
import pytest

from examples import multilabel_digits


def test_scenes_show_what_their_labels_say():
    """Digits of one grey level each, so that the picture tells which ones it shows."""
    names = np.arange(10)
    digits = np.broadcast_to((names + 1)[:, None, None] / 10, (10, 8, 8)).astype(np.float32)
    scenes = multilabel_digits.compose(digits, names, 200, np.random.default_rng(0))
    for picture, label in zip(scenes.pictures, scenes.labels, strict=True):
        levels, pixels = np.unique(np.round(picture * 10).astype(int), return_counts=True)
        printed = levels > 0
        np.testing.assert_array_equal(levels[printed] - 1, np.flatnonzero(label))
        assert np.all(pixels[printed] % 64 == 0)  # whole digits: none covers another
        assert 1 <= pixels[printed].sum() // 64 <= 3


def test_held_out_digits_are_different_ones():
    training, held_out = multilabel_digits.make_scenes(50, 50, seed=1)
    assert training.pictures.shape == held_out.pictures.shape
    assert not np.array_equal(training.pictures, held_out.pictures)
    again, _ = multilabel_digits.make_scenes(50, 50, seed=1)
    np.testing.assert_array_equal(training.pictures, again.pictures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "must be at least 1, got 0"),
        (["--steps", "many"], "invalid positive value"),
        (["--seed", "-1"], "must be in"),
        (["--unknown"], "unrecognized arguments"),
    ],
)
def test_bad_arguments(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit):
        multilabel_digits.arguments([*arguments, "--output", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_an_output_that_is_no_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        multilabel_digits.arguments(["--output", str(tmp_path / "file" / "folder")])
    assert "cannot write to" in capsys.readouterr().err
