"""Wrong arguments: the error names the argument, what came, and what would be right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses

X = np.zeros((2, 3), np.float32)
Y = np.zeros(2, int)

FUNCTIONS = {
    "sigmoid": lambda labels=X, logits=X, **k: jxent.sigmoid_cross_entropy_with_logits(
        labels=labels, logits=logits, **k
    ),
    "weighted": lambda labels=X, logits=X, **k: jxent.weighted_cross_entropy_with_logits(
        labels=labels, logits=logits, **{"pos_weight": 1.0, **k}
    ),
    "softmax": lambda labels=X, logits=X, **k: jxent.softmax_cross_entropy_with_logits(
        labels=labels, logits=logits, **k
    ),
    "sparse": lambda labels=Y, logits=X, **k: jxent.sparse_softmax_cross_entropy_with_logits(
        labels=labels, logits=logits, **k
    ),
    "losses.sigmoid": lambda labels=X, logits=X, **k: losses.sigmoid_cross_entropy(
        labels, logits, **k
    ),
    "losses.softmax": lambda labels=X, logits=X, **k: losses.softmax_cross_entropy(
        labels, logits, **k
    ),
    "losses.sparse": lambda labels=Y, logits=X, **k: losses.sparse_softmax_cross_entropy(
        labels, logits, **k
    ),
}
SMOOTHED = ("sparse", "losses.sigmoid", "losses.softmax", "losses.sparse")
EXCLUSIVE = ("softmax", "sparse", "losses.softmax", "losses.sparse")
SCALAR = tuple(name for name in FUNCTIONS if name.startswith("losses"))

Errors = type[Exception] | tuple[type[Exception], ...]
WRONG: list[tuple[tuple[str, ...], dict, Errors, str]] = [
    # Every function.
    (tuple(FUNCTIONS), {"logits": np.zeros((2, 3), int)}, TypeError, "logits must be floating"),
    (tuple(FUNCTIONS), {"logits": "text"}, TypeError, "logits must be an array"),
    (tuple(FUNCTIONS), {"logits": None}, ValueError, "logits must be a number or an arr.*got None"),
    (tuple(FUNCTIONS), {"logits": [[1.0], [1.0, 2.0]]}, TypeError, "logits must be an array"),
    (tuple(FUNCTIONS), {"labels": np.zeros((3, 2), np.float32)},
     (TypeError, ValueError), r"labels must"),
    (tuple(FUNCTIONS), {"logit_softcap": 0.0}, ValueError, "logit_softcap must be in .*got 0.0"),
    (tuple(FUNCTIONS), {"logit_softcap": -1}, ValueError, "logit_softcap must be in .*got -1"),
    (tuple(FUNCTIONS), {"logit_softcap": 1e20}, ValueError, "logit_softcap must be in .*got 1e.20"),
    (tuple(FUNCTIONS), {"logit_softcap": "big"}, TypeError, "logit_softcap must be a Python numb"),
    (tuple(FUNCTIONS), {"logit_softcap": True}, TypeError, "logit_softcap must be a Python numb"),
    (("sigmoid", "weighted", "softmax", "sparse"), {"name": 3}, TypeError, "name must be a string"),
    (SCALAR, {"scope": 3}, TypeError, "scope must be a string"),
    # Shapes that would broadcast.
    (("sigmoid", "weighted", "softmax"), {"labels": np.zeros((2, 1), np.float32)}, ValueError,
     r"labels must have the shape of logits, \(2, 3\), got \(2, 1\)"),
    (("losses.sigmoid",), {"labels": np.zeros((2, 1))}, ValueError, "multi_class_labels must have"),
    (("losses.softmax",), {"labels": np.zeros(3)}, ValueError, "onehot_labels must have the shape"),
    (("sigmoid",), {"labels": 1.0}, ValueError, r"labels must have the shape of logits"),
    # dtypes.
    (("sigmoid", "weighted", "softmax"), {"labels": np.zeros((2, 3), int)}, TypeError,
     "labels must have the dtype of logits, float32, or float32, got int"),
    (("sigmoid", "weighted", "softmax"), {"labels": jnp.zeros((2, 3), jnp.bfloat16)}, TypeError,
     "labels must have the dtype of logits, float32, or float32, got bfloat16"),
    (("losses.sigmoid", "losses.softmax"), {"labels": np.zeros((2, 3), complex)}, TypeError,
     "labels must be real"),
    # Ids.
    (("sparse", "losses.sparse"), {"labels": np.zeros(2)}, TypeError,
     "labels must be integer class ids, got float"),
    (("sparse", "losses.sparse"), {"labels": np.zeros(2, bool)}, TypeError, "labels must be int"),
    (("sparse", "losses.sparse"), {"labels": np.zeros(3, int)}, ValueError,
     r"labels must have the shape of logits without axis 1, \(2,\), got \(3,\)"),
    (("sparse",), {"labels": np.zeros((2, 1), int)}, ValueError, "labels must have the shape"),
    (("sparse", "losses.sparse"), {"labels": 0}, ValueError, "labels must have the shape"),
    # axis.
    (("softmax", "sparse"), {"axis": 2}, ValueError, "axis must be one of the 2 axes .*got 2"),
    (("softmax", "sparse"), {"axis": -3}, ValueError, "axis must be one of the 2 axes"),
    (("softmax", "sparse"), {"axis": 1.0}, TypeError, "axis must be a Python integer, got 1.0"),
    (("softmax", "sparse"), {"axis": None}, TypeError, "axis must be a Python integer"),
    (("softmax", "losses.softmax"), {"labels": np.float32(0), "logits": np.float32(0)}, ValueError,
     "logits must have an axis of classes"),
    # Options.
    (SMOOTHED, {"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got"),
    (SMOOTHED, {"label_smoothing": -0.1}, ValueError, "label_smoothing must be in"),
    (SMOOTHED, {"label_smoothing": float("nan")}, ValueError, "label_smoothing must be in"),
    (SMOOTHED, {"label_smoothing": None}, TypeError, "label_smoothing must be a Python number"),
    (EXCLUSIVE, {"z_loss": -1.0}, ValueError, r"z_loss must be in \[0, inf\), got -1.0"),
    (EXCLUSIVE, {"z_loss": float("inf")}, ValueError, "z_loss must be in"),
    # pos_weight.
    (("weighted", "losses.sigmoid"), {"pos_weight": np.ones(2)}, ValueError,
     r"pos_weight must be a number or broadcast to logits.*\(2,\).*\(2, 3\)"),
    (("weighted", "losses.sigmoid"), {"pos_weight": np.ones((1, 2, 3))}, ValueError, "pos_weight"),
    (("weighted", "losses.sigmoid"), {"pos_weight": None}, ValueError, "pos_weight must be .*None"),
    (("weighted", "losses.sigmoid"), {"pos_weight": np.array(1j)}, TypeError, "must be real"),
    # weights.
    (SCALAR, {"weights": None}, ValueError, "weights must be a number or an array, got None"),
    (SCALAR, {"weights": np.ones(5)}, ValueError, r"weights must be a number.*\(5,\).*\(2"),
    (SCALAR, {"weights": np.ones((1, 1, 1))}, ValueError, "weights must be a number"),
    (("losses.sigmoid",), {"weights": np.ones(3)}, ValueError, "weights must be a number"),
    (("losses.sigmoid",), {"weights": np.ones(2)}, ValueError, "weights must be a number"),
    (("losses.sigmoid",), {"weights": np.ones((2, 3, 1))}, ValueError, "weights must be a number"),
    (("losses.softmax", "losses.sparse"), {"weights": np.ones((2, 3))}, ValueError, "weights must"),
    (SCALAR, {"weights": np.array(1j)}, TypeError, "weights must be real"),
    (SCALAR, {"reduction": "average"}, ValueError,
     "reduction must be one of 'none', 'weighted_sum', 'weighted_mean',.* got 'average'"),
    (SCALAR, {"reduction": None}, ValueError, "reduction must be one of"),
]  # fmt: skip


ROWS = [(name, *rest) for names, *rest in WRONG for name in names]


@pytest.mark.parametrize(("name", "arguments", "error", "message"), ROWS)
def test_wrong_arguments(name, arguments, error, message):
    with pytest.raises(error, match=message):
        FUNCTIONS[name](**arguments)


@pytest.mark.parametrize(("name", "arguments", "error", "message"), ROWS)
@pytest.mark.usefixtures("asserts_disabled")
def test_wrong_arguments_with_asserts_disabled(name, arguments, error, message):
    test_wrong_arguments(name, arguments, error, message)


@pytest.mark.parametrize("option", ["label_smoothing", "z_loss", "logit_softcap"])
def test_a_traced_option_says_so(option):
    def f(value):
        return FUNCTIONS["losses.sparse"](**{option: value})

    with pytest.raises(TypeError, match=f"{option} is an option, compiled in"):
        jax.jit(f)(0.5)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.one_in(2)
def test_right_arguments(name):
    assert np.isfinite(FUNCTIONS[name]()).all()


def test_data_by_keyword_only_where_an_order_could_be_swapped():
    for function in (
        jxent.sigmoid_cross_entropy_with_logits,
        jxent.weighted_cross_entropy_with_logits,
        jxent.softmax_cross_entropy_with_logits,
        jxent.sparse_softmax_cross_entropy_with_logits,
    ):
        with pytest.raises(TypeError, match="positional"):
            function(X, X)


def test_compute_weighted_loss():
    with pytest.raises(TypeError, match="losses must be floating"):
        losses.compute_weighted_loss([1, 2])
    with pytest.raises(ValueError, match="weights must be a number"):
        losses.compute_weighted_loss(X, np.ones(3))
    with pytest.raises(ValueError, match="weights must be a number"):
        losses.compute_weighted_loss(X, np.ones((2, 3, 1)))
    with pytest.raises(ValueError, match="reduction must be one of"):
        losses.compute_weighted_loss(X, reduction="average")
