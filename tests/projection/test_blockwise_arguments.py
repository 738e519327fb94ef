"""What is wrong with the arguments of `losses.blockwise` is said."""

import numpy as np
import pytest

from tests.projection.blockwise import BLOCKS, C, D, normed

ROWS = {"x": np.ones((6, D), np.float32), "y": np.zeros(6, int)}
GOOD = {
    "loss_fn": normed, "params": np.ones((D, C), np.float32), "rows": ROWS, "block_size": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"loss_fn": 3}, TypeError, "loss_fn must be a function"),
        ({"loss_fn": lambda p, r: r["x"]}, ValueError, r"loss_fn must give one loss .*\(3,\), got"),
        ({"loss_fn": lambda p, r: r["y"]}, TypeError, "loss_fn must give floating losses, got int"),
        ({"loss_fn": lambda p, r: r["x"].sum()}, ValueError, "loss_fn must give one loss for each"),
        ({"loss_fn": lambda p, r: (r["x"], 1)}, TypeError, "loss_fn must give an array of losses"),
        ({"has_aux": True}, TypeError, "loss_fn must with has_aux give a tuple"),
        (
            {"has_aux": True, "loss_fn": lambda p, r: (r["x"][:, 0], r["x"].sum())},
            ValueError,
            "loss_fn must with has_aux give arrays with an entry for each row",
        ),
        (
            {"has_aux": True, "loss_fn": lambda p, r: (r["x"][:, 0], r["x"].astype(complex))},
            TypeError,
            "loss_fn must with has_aux give real arrays, got complex64",
        ),
        (
            {"has_aux": True, "loss_fn": lambda p, r: (r["x"][:, 0], None), "reduction": "none"},
            ValueError,
            "has_aux must be False for Reduction.NONE",
        ),
        (
            {"has_aux": True, "loss_fn": lambda p, r: (r["x"][:, 0], "right")},
            TypeError,
            "loss_fn must with has_aux give a tree of arrays, got a leaf str",
        ),
        ({"params": np.ones((D, C), complex)}, TypeError, "params must be real, got a leaf of com"),
        ({"rows": np.ones((D, C), complex)}, TypeError, "rows must be real, got a leaf of complex"),
        ({"params": {"name": "head"}}, TypeError, "params must be a pytree of arrays, got a leaf"),
        ({"rows": {}}, ValueError, "rows must have an array at least"),
        ({"rows": 1.0}, ValueError, "rows must be arrays that share their first axis"),
        ({"rows": {**ROWS, "y": np.zeros(5, int)}}, ValueError, r"rows must be arrays that share"),
        ({"rows": {"x": "text"}}, TypeError, "rows must be a pytree of arrays"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1"),
        ({"block_size": None}, TypeError, "block_size must be a Python integer, got None"),
        ({"block_size": 2.0}, TypeError, "block_size must be a Python integer"),
        ({"weights": np.ones(5)}, ValueError, "weights must be a number, or have the rank"),
        ({"weights": None}, ValueError, "weights must be a number or an array, got None"),
        ({"reduction": "average"}, ValueError, "reduction must be"),
        ({"scope": 3}, TypeError, "scope must be a string"),
        ({"has_aux": 1}, TypeError, "has_aux must be True or False"),
    ],
)
def test_wrong_arguments(changed, error, message):
    with pytest.raises(error, match=message):
        BLOCKS(**{**GOOD, **changed})


def test_right_arguments():
    for changed in (
        {"weights": ROWS["y"] == 0}, {"weights": np.ones((6, 1))}, {"block_size": 100},
        {"loss_fn": lambda _, r: r["x"][:, 0], "params": None}, {"scope": "head"},
    ):  # fmt: skip
        assert np.isfinite(BLOCKS(**{**GOOD, **changed}))
