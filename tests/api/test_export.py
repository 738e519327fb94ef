"""Programs exported for any batch: its size is a symbol, see `jax.export`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jxent
from jxent import losses
from tests.compile_options import quick

CLASSES, FEATURES, IDS = 5, 3, 2
LABELS = {
    "sparse_softmax": ((), jnp.int32), "sparse_sigmoid": ((IDS,), jnp.int32),
    "softmax": ((CLASSES,), jnp.float32), "sigmoid": ((CLASSES,), jnp.float32),
    "weighted": ((CLASSES,), jnp.float32),
}  # fmt: skip


def arrays(loss_name, batch, make, *, linear):
    """Labels and the arrays behind them, made by `make(shape, dtype)`."""
    last, dtype = LABELS[loss_name]
    labels = make((*batch, *last), dtype)
    if not linear:
        return labels, make((*batch, CLASSES), jnp.float32)
    return (
        labels, make((*batch, FEATURES), jnp.float32), make((FEATURES, CLASSES), jnp.float32),
    )  # fmt: skip


def some(shape, dtype):
    rng = np.random.default_rng(0)
    if dtype == jnp.int32:
        return jnp.asarray(rng.integers(CLASSES, size=shape), dtype)
    return jnp.asarray(rng.uniform(0, 1, shape), dtype)


def check(function, loss_name, *, linear=False, batches=((1,), (7,))):
    (n,) = export.symbolic_shape("n")
    symbolic = arrays(loss_name, (n,), jax.ShapeDtypeStruct, linear=linear)
    both = jax.value_and_grad(lambda *a: jnp.sum(function(*a)), 1)
    exported = export.export(jax.jit(both))(*symbolic)

    @quick
    def program(*given):
        return exported.call(*given), both(*given)

    for batch in batches:
        given = arrays(loss_name, batch, some, linear=linear)
        got, wanted = program(*given)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, wanted
        )


@pytest.mark.parametrize("loss_name", LABELS)
@pytest.mark.one_in(4)
def test_one_loss_an_example(loss_name):
    function = getattr(jxent, f"{loss_name}_cross_entropy_with_logits")
    options = {"pos_weight": 2.0} if loss_name == "weighted" else {}
    check(lambda y, x: function(labels=y, logits=x, **options), loss_name)


@pytest.mark.usefixtures("narrow_rows")
@pytest.mark.parametrize("loss_name", ["softmax", "sparse_softmax"])
def test_narrow_rows_of_any_number(loss_name):
    """A way that only many rows are worth cannot ask how many there are."""
    function = getattr(jxent, f"{loss_name}_cross_entropy_with_logits")
    check(lambda y, x: function(labels=y, logits=x), loss_name)


def rarely(values, often):
    """The parameters, of which those not in `often` are in the full suite."""
    return [pytest.param(v, marks=[] if v in often else [pytest.mark.long]) for v in values]


R = losses.Reduction


@pytest.mark.parametrize("reduction", rarely(R, (R.NONE, R.SUM_BY_NONZERO_WEIGHTS)))
@pytest.mark.parametrize("loss_name", [m for m in LABELS if m != "weighted"])
@pytest.mark.one_in(8)
def test_the_scalar(loss_name, reduction):
    function = getattr(losses, f"{loss_name}_cross_entropy")
    check(lambda y, x: function(y, x, reduction=reduction), loss_name)

    def masked(y, x):
        column = x[:, :1] if loss_name == "sigmoid" else x[:, 0]
        return function(y, x, weights=column > 0.4, label_smoothing=0.1, reduction=reduction)

    check(masked, loss_name)


@pytest.mark.parametrize("block_size", rarely([4, None], [4]))
@pytest.mark.parametrize("loss_name", [m for m in LABELS if m != "weighted"])
@pytest.mark.one_in(4)
def test_projections(loss_name, block_size):
    per_example = getattr(jxent, f"linear_{loss_name}_cross_entropy")
    scalar = getattr(losses, f"linear_{loss_name}_cross_entropy")
    check(
        lambda y, x, w: per_example(labels=y, inputs=x, kernel=w, block_size=block_size),
        loss_name, linear=True,
    )  # fmt: skip
    check(
        lambda y, x, w: scalar(y, x, w, block_size=block_size, weights=x[:, 0] > 0.4),
        loss_name, linear=True,
    )  # fmt: skip


def test_what_is_written_to_a_file():
    """Programs that take or return one of this library's own trees."""

    def step(y, x, table):
        kernel, reported = jxent.Transposed(table), jxent.sparse_softmax_statistics_with_logits
        loss, aux = losses.linear_sparse_softmax_cross_entropy(y, x, kernel, has_aux=True)
        return loss, aux, reported(labels=y, logits=x)

    def gradient(y, x, kernel):
        return jax.grad(losses.linear_sparse_softmax_cross_entropy, 2)(y, x, kernel)

    y, x, table = some((4,), jnp.int32) % FEATURES, some((4, FEATURES), float), some((5, 3), float)
    for function, given in ((step, (y, x, table)), (gradient, (y, x, jxent.Transposed(table)))):
        written = export.export(jax.jit(function))(*given).serialize()
        got, wanted = export.deserialize(written).call(*given), function(*given)
        chex.assert_trees_all_close(got, wanted, rtol=1e-5)


def test_losses_computed_elsewhere():
    (n,) = export.symbolic_shape("n")
    exported = export.export(jax.jit(losses.compute_weighted_loss))(
        jax.ShapeDtypeStruct((n,), jnp.float32)
    )
    assert exported.call(jnp.array([1.0, 2.0])) == 1.5


def test_the_number_of_classes_must_be_known():
    n, c = export.symbolic_shape("n, c")
    S = jax.ShapeDtypeStruct  # noqa: N806
    with pytest.raises(ValueError, match="logits must have classes and features of known number"):
        export.export(jax.jit(losses.sparse_softmax_cross_entropy))(
            S((n,), jnp.int32), S((n, c), jnp.float32)
        )
    with pytest.raises(ValueError, match="kernel must have classes and features of known number"):
        export.export(jax.jit(losses.linear_sparse_softmax_cross_entropy))(
            S((n,), jnp.int32), S((n, 3), jnp.float32), S((3, c), jnp.float32)
        )
