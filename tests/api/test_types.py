"""Annotations are true: the package runs with each of them checked, jaxtyping's shapes too.

Nothing is compiled: programs are traced, value and gradient.
"""

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.catalog import CASES

X = np.zeros((3, 5), np.float32)
IDS = np.zeros(3, np.int32)
KERNEL = np.zeros((5, 4), np.float32)


# The last case of a function has the most options.
FULL = list({case.function: case for case in CASES}.values())


def public(package: ModuleType, name: str):
    """The function that a case or a row names, in this package."""
    module, _, function = name.rpartition(".")
    return getattr(package.losses if module.endswith("losses") else package, function)


def trace(function, differentiated, fixed):
    """Value and gradient."""

    def total(differentiated):
        return jnp.sum(function(**fixed, **differentiated))

    jax.eval_shape(jax.value_and_grad(total), differentiated)


def with_case(checked, case, dtype):
    """The case's function in the checked package, its arrays that have gradients, and the rest."""
    arrays = case.arrays(dtype)
    differentiated = {name: jnp.asarray(arrays.pop(name)) for name in case.differentiable()}
    return case.of(public(checked, case.function)), differentiated, arrays


@pytest.mark.parametrize("case", [case for case in CASES if case not in FULL], ids=str)
@pytest.mark.one_in(20)
def test_value_and_gradient(checked, case):
    trace(*with_case(checked, case, np.float32))


@pytest.mark.parametrize("case", FULL, ids=str)
@pytest.mark.one_in(4)
def test_one_gradient_of_low_precision(checked, case):
    function, differentiated, fixed = with_case(checked, case, jnp.bfloat16)
    name, array = differentiated.popitem()
    trace(function, {name: array}, {**fixed, **differentiated})


@pytest.mark.parametrize("case", FULL, ids=str)
@pytest.mark.one_in(12)
def test_second_derivatives_of_a_batch(checked, case):
    function, differentiated, fixed = with_case(checked, case, np.float32)

    def total(differentiated):
        return jnp.sum(function(**fixed, **differentiated))

    def second(differentiated):
        return jax.jvp(jax.grad(total), (differentiated,), (differentiated,))

    jax.eval_shape(jax.vmap(second), jax.tree.map(lambda x: jnp.stack([x, x]), differentiated))


@pytest.mark.parametrize("name", ["sparse_softmax", "linear_sparse_sigmoid"])
def test_classes_of_a_mesh(checked, name):
    mesh = jax.make_mesh((1,), ("chips",), axis_types=(jax.sharding.AxisType.Auto,))
    function = public(checked, f"losses.{name}_cross_entropy")
    fixed = {"inputs": X} if "linear" in name else {}
    labels = IDS[:, None] if "sigmoid" in name else IDS
    differentiated = "kernel" if fixed else "logits"

    def gradient(x):
        return jax.grad(
            lambda x: function(labels, **fixed, **{differentiated: x}, axis_name="chips")
        )(x)

    split = jax.P(None, "chips")
    shards = jax.shard_map(gradient, mesh=mesh, in_specs=split, out_specs=split)
    jax.eval_shape(shards, KERNEL if fixed else X)


@pytest.mark.parametrize("reduction", ["weighted_mean", "none"])
def test_losses_of_a_user(checked, reduction):
    def loss_fn(params, row):
        logits = checked.linear_logits(inputs=row["x"], kernel=params, bias=X[0])
        return checked.sparse_softmax_cross_entropy_with_logits(labels=row["y"], logits=logits)

    def total(kernel, weights):
        rows = {"x": X, "y": IDS}
        return checked.losses.blockwise(
            loss_fn, kernel, rows, block_size=2, weights=weights, reduction=reduction
        ).sum()  # fmt: skip

    differentiated = (jnp.zeros((5, 5)), jnp.ones(3))
    jax.eval_shape(jax.hessian(total, (0, 1)), *differentiated)


HARD = np.eye(3, 5, dtype=int)
ROWS = (
    ("losses.sigmoid_cross_entropy", {"multi_class_labels": HARD}),
    ("losses.sigmoid_cross_entropy", {"multi_class_labels": HARD == 1, "weights": HARD == 0}),
    ("losses.sigmoid_cross_entropy", {"multi_class_labels": X, "weights": HARD}),
    ("losses.sigmoid_cross_entropy", {"multi_class_labels": X, "weights": 2, "pos_weight": 3}),
    ("losses.sigmoid_cross_entropy", {"multi_class_labels": 1.0, "logits": 0.5, "weights": True}),
    ("losses.sigmoid_cross_entropy", {"multi_class_labels": X, "pos_weight": np.arange(5)}),
    ("losses.softmax_cross_entropy", {"onehot_labels": HARD}),
    ("losses.softmax_cross_entropy", {"onehot_labels": HARD == 1, "weights": IDS >= 0}),
    ("losses.sparse_softmax_cross_entropy", {"labels": IDS, "weights": IDS >= 0}),
    ("losses.sparse_softmax_cross_entropy", {"labels": IDS[:, None], "weights": IDS}),
    ("losses.sparse_softmax_cross_entropy", {"labels": IDS.astype(np.uint8), "reduction": "none"}),
    ("losses.sparse_softmax_cross_entropy", {"labels": 1, "logits": X[0]}),
    ("losses.sparse_sigmoid_cross_entropy", {"labels": HARD, "weights": IDS >= 0}),
    ("losses.compute_weighted_loss", {"losses": X, "weights": HARD}),
    ("losses.compute_weighted_loss", {"losses": X, "weights": HARD == 1}),
    ("losses.linear_sparse_softmax_cross_entropy", {"labels": IDS[:, None], "bias": np.arange(4)}),
    ("losses.linear_sparse_softmax_cross_entropy", {"labels": IDS, "weights": IDS >= 0}),
    (
        "losses.linear_softmax_cross_entropy",
        {"labels": HARD[:, :4] == 1, "bias": KERNEL[0] == 0},
    ),
    ("losses.linear_sigmoid_cross_entropy", {"labels": HARD[:, :4], "pos_weight": np.arange(4)}),
    ("jxent.linear_sparse_softmax_cross_entropy", {"labels": 1, "inputs": X[0]}),
    ("jxent.softmax_cross_entropy_with_logits", {"labels": X, "axis": 0}),
    ("jxent.sparse_softmax_cross_entropy_with_logits", {"labels": np.zeros(5, int), "axis": 0}),
    ("jxent.sigmoid_cross_entropy_with_logits", {"labels": 1.0, "logits": 0.5}),
    ("jxent.sigmoid_cross_entropy_with_logits", {"labels": X[None], "logits": X[None]}),
    ("jxent.weighted_cross_entropy_with_logits", {"labels": X[0], "logits": X[0], "pos_weight": 3}),
    ("jxent.weighted_cross_entropy_with_logits", {"labels": X, "pos_weight": HARD == 1}),
)


@pytest.mark.parametrize(("name", "arguments"), ROWS)
def test_all_that_is_taken(checked, name, arguments):
    data = {"inputs": X, "kernel": KERNEL} if ".linear" in name else {"logits": X}
    if "losses" in arguments:
        data = {}
    function = public(checked, name)
    jax.eval_shape(lambda: function(**{**data, **arguments}))


def test_what_is_wrong_is_seen(checked):
    with pytest.raises(TypeCheckError):
        checked.sigmoid_cross_entropy_with_logits(labels=X, logits=HARD)
    with pytest.raises(TypeCheckError):
        checked.softmax_cross_entropy_with_logits(labels=X, logits=X[:, :4])
    with pytest.raises(TypeCheckError):
        checked.losses.softmax_cross_entropy(X, X, weights=np.ones(3, complex))
    with pytest.raises(TypeCheckError):
        checked._src.core.elementary.upcast([1.0])
