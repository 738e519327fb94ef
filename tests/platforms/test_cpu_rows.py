"""Rows of every width on CPU: drifted, masked, cut into pieces, odd, none."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from benchmarks.lib.samples import softmax_samples
from jxent import losses
from jxent._src.numerics import logsumexp
from jxent._src.platforms.cpu import softmax
from jxent._src.sharding.class_axis import ClassAxis
from tests import reference
from tests.platforms.common import PLAIN, rarely, value_and_gradient
from tests.reference import tolerance

pytestmark = pytest.mark.optimized

inf, nan = np.inf, np.nan


@jax.jit
def by_ids(x, ids):
    """Losses, and the gradient of their sum."""
    value, pull = jax.vjp(
        lambda x: jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=x), x
    )
    return value, pull(jnp.ones_like(value))[0]


@jax.jit
def by_dense_labels(x, z):
    value, pull = jax.vjp(lambda x: jxent.softmax_cross_entropy_with_logits(labels=z, logits=x), x)
    return value, pull(jnp.ones_like(value))[0]


# On CPU the fast way is tried first. One example that it is not right for sends all of them the
# exact way.


@pytest.mark.parametrize("drift", [0, 300, -300, 1e30])
@pytest.mark.parametrize("classes", [7, 4096])
@pytest.mark.one_in(2)
def test_logits_that_drifted(drift, classes):
    rng = np.random.default_rng(0)
    ids = rng.integers(classes, size=5)
    x = rng.standard_normal((5, classes)).astype(np.float32) * np.float32(3) + np.float32(drift)
    truths = [reference.wide_softmax_of_class(y, row) for y, row in zip(ids, x, strict=True)]

    value, gradient = by_ids(x, ids)
    allowed = tolerance(jnp.float32, classes)
    np.testing.assert_allclose(value, np.float64([t[0] for t in truths]), rtol=allowed)
    gradients = np.float64([t[1] for t in truths])
    np.testing.assert_allclose(gradient, gradients, rtol=4 * allowed, atol=1e-37)


@pytest.mark.parametrize(
    "classes",
    rarely([*range(1, 20), 250, 255, 256, 257, 1000, 4097], (1, 2, 3, 4, 7, 8, 9, 17, 256, 4097)),
)
@pytest.mark.parametrize("examples", rarely([1, 8], [8]))
@pytest.mark.one_in(4)
def test_no_other_class_is_left_out(examples, classes):
    """Whatever XLA makes of so many: small programs are compiled to other loops than large ones."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, classes)).astype(np.float32)
    ids = rng.integers(classes, size=examples)
    expected = [reference.wide_softmax_of_class(y, row)[0] for y, row in zip(ids, x, strict=True)]
    got = jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=x)
    np.testing.assert_allclose(got, np.float64(expected), rtol=2e-6)


@pytest.mark.parametrize("chance", [1e-4, 0.49, 0.51, 1 - 1e-7])
@pytest.mark.parametrize("classes", rarely([639, 640, 1000, 4096, 50257, 32771], (639, 640, 32771)))
@pytest.mark.xdist_group("rows")
@pytest.mark.one_in(15)
def test_tiled_rows(classes, chance):
    """The label is subtracted from the sum where none has half of the probability, else left out.

    One more row, which is decided, sends all others the second way.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, classes))
    ids = rng.integers(classes, size=9)
    ids[:2] = 0, classes - 1
    rows = np.arange(8)
    x[rows, ids[:8]] = -np.inf
    others = np.log(np.exp(x[:8]).sum(1))
    x[rows, ids[:8]] = others + np.log(chance / (1 - chance))
    x[8, ids[8]] = 30
    x = x.astype(np.float32)
    truths = [reference.wide_softmax_of_class(y, row) for y, row in zip(ids, x, strict=True)]
    value = np.array([t[0] for t in truths])
    slope = np.array([t[1][y] for t, y in zip(truths, ids, strict=True)])

    for examples in (8, 9):
        z = np.float32(ids[:examples, None] == np.arange(classes))
        for got, gradient in (
            by_ids(x[:examples], ids[:examples]),
            by_dense_labels(x[:examples], z),
        ):
            gradients = np.asarray(gradient)[np.arange(examples), ids[:examples]]
            assert np.all(reference.ulps(got, value[:examples], np.float32) <= 16)
            assert np.all(reference.ulps(gradients, slope[:examples], np.float32) <= 16)


WIDE = 1000  # cut into pieces
ROWS = [[1.0, 2.0, 3.0], [inf, 1.0, 2.0], [inf, inf, 0.0], [-inf, 1.0, 1.0], [nan, 0.0, 0.0],
        [-inf, -inf, -inf], [0.0, -inf, -inf], [3e38, -3e38, 0.0], [0.0, 40.0, 0.0]]  # fmt: skip
OPTIONS = {
    "plain": {}, "z_loss": {"z_loss": 0.1}, "smoothed": {"label_smoothing": 0.1},
}  # fmt: skip


@cache
def losses_of(kind, named):
    """Losses of one example, its label 0."""
    options = OPTIONS[named]
    if kind == "ids":

        def loss(x):
            return jxent.sparse_softmax_cross_entropy_with_logits(labels=0, logits=x, **options)
    else:

        def loss(x):
            z = jnp.zeros_like(x).at[0].set(1)
            return losses.softmax_cross_entropy(z, x, reduction="none", **options)

    return loss


each_option = pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(kind, named, marks=[pytest.mark.long] * (kind == "dense" and named != "plain"))
        for kind in ("ids", "dense")
        for named in OPTIONS
    ],
)


@cache
def value_and_slopes_of(kind, named):
    return jax.jit(jax.value_and_grad(losses_of(kind, named)))


@each_option
@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.xdist_group("masked")
@pytest.mark.one_in(40)
def test_masked_classes_change_nothing_in_wide_rows(row, kind, options):
    """Infinities, ties and NaN, where rows are cut as where they are not."""
    narrow = jnp.asarray(row, jnp.float32)
    wide = jnp.full(WIDE, -jnp.inf).at[:3].set(narrow)
    both = value_and_slopes_of(kind, options)
    (value, gradients), (value_of_narrow, slopes_of_narrow) = both(wide), both(narrow)
    np.testing.assert_allclose(value, value_of_narrow, rtol=1e-6)
    gradients = np.asarray(gradients)
    np.testing.assert_allclose(gradients[:3], slopes_of_narrow, rtol=1e-6, atol=1e-37)
    if not np.isnan(value_of_narrow):
        np.testing.assert_array_equal(gradients[3:], 0)


@each_option
@pytest.mark.xdist_group("masked")
@pytest.mark.one_in(7)
def test_vmap_over_wide_rows_is_a_loop(kind, options):
    x = 3 * jax.random.normal(jax.random.key(0), (4, WIDE))
    both = value_and_slopes_of(kind, options)
    looped = [both(row) for row in x]
    for k, got in enumerate(jax.jit(jax.vmap(both))(x)):
        np.testing.assert_allclose(got, jnp.stack([r[k] for r in looped]), rtol=1e-5, atol=1e-9)


def test_vmap_over_rows_that_no_length_divides():
    """The label in the first piece, in the last and shorter one, and in between; led by 0 to 40."""
    classes = 32771
    x = jax.random.normal(jax.random.key(1), (4, classes))
    ids = jnp.array([0, classes - 1, classes - 4, 20000])
    x = x.at[jnp.arange(4), ids].add(jnp.array([40.0, 20.0, 30.0, 0.0]))

    def loss(y, x):
        return jxent.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)

    both = jax.jit(jax.vmap(jax.value_and_grad(loss, 1)))(ids, x)
    for k, (y, row) in enumerate(zip(np.asarray(ids), np.asarray(x), strict=True)):
        value, slope, *_ = reference.wide_softmax_of_class(y, row)
        assert reference.ulps(np.asarray(both[0])[k], value, np.float32) <= 16
        assert reference.ulps(np.asarray(both[1])[k, y], slope[y], np.float32) <= 16


@pytest.mark.parametrize("shape", [(0, WIDE), (3, 0, WIDE), (0, 32771), (0, 3)])
@pytest.mark.usefixtures("narrow_rows")
@pytest.mark.one_in(4)
def test_no_examples_of_rows_of_any_width(shape):
    x, y = jnp.zeros(shape), jnp.zeros(shape[:-1], jnp.int32)
    for options in ({}, {"label_smoothing": 0.1}):
        ids = jax.value_and_grad(losses.sparse_softmax_cross_entropy, 1)(y, x, **options)
        dense = jax.value_and_grad(losses.softmax_cross_entropy, 1)(x, x, **options)
        assert ids[0] == dense[0] == 0
        assert ids[1].shape == dense[1].shape == shape


@pytest.mark.xdist_group("odd")
@pytest.mark.parametrize("nonfinite", [200.0, -200.0, np.inf, -np.inf])
@pytest.mark.one_in(4)
def test_one_example_out_of_range_costs_the_others_no_digit(nonfinite):
    for sample in softmax_samples(jnp.float32, rows=40):
        truths = [
            reference.wide_softmax_of_class(y, x)
            for y, x in zip(sample.labels, sample.logits, strict=True)
        ]
        value = np.array([t[0] for t in truths])
        strange = np.full((1, sample.logits.shape[1]), 0, np.float32)
        strange[0, 0] = nonfinite
        x = jnp.asarray(np.concatenate([sample.logits, strange]))
        ids = np.append(sample.labels, 0)
        got, gradient = by_ids(x, ids)
        size = np.abs(np.log(np.maximum(np.float64(value), 1e-38)))
        assert np.all(reference.ulps(got[:-1], value, np.float32) <= 8 + size)
        own = (np.arange(len(value)), sample.labels)
        slope = np.array([t[1] for t in truths])[own]
        gradients = np.asarray(gradient)[:-1][own]
        assert np.all(reference.ulps(gradients, slope, np.float32) <= 8 + size)


# Narrow rows.


@pytest.mark.usefixtures("narrow_rows")
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.one_in(3)
def test_every_mix_of_nonfinite_logits_in_narrow_rows(classes):
    """As the plain spelling, which has a decision for each of them."""
    nonfinite = [np.inf, -np.inf, np.nan, 3e38, -3e38, 0.0, 1.0, 1.0 + 1e-7, 30.0, 90.0, 200.0]
    x = np.stack(np.meshgrid(*[np.float32(nonfinite)] * classes), -1).reshape(-1, classes)
    for y in range(classes):
        ids = np.full(len(x), y)

        def loss(x, ids=ids):
            return jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=x)

        with jxent.assume_platform(PLAIN):
            value, slope = jax.jit(partial(value_and_gradient, loss))(x)
        got, got_slope = jax.jit(partial(value_and_gradient, loss))(x)
        np.testing.assert_allclose(got, value, rtol=1e-6)
        np.testing.assert_allclose(got_slope, slope, rtol=1e-6, atol=1e-37)


@pytest.mark.usefixtures("narrow_rows")
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_dominant_class_in_narrow_rows(classes):
    """One comparison finds whom two find."""
    nonfinite = [np.inf, -np.inf, np.nan, 3e38, -3e38, 0.0, 1.0, 1.0 + 1e-7, 90.0]
    x = np.stack(np.meshgrid(*[np.float32(nonfinite)] * classes), -1).reshape(-1, classes)
    pair = logsumexp.nan_if_invalid(
        *logsumexp.pair_of_rows.reference(ClassAxis(-1), jnp.asarray(x))
    )
    implementation = logsumexp.is_dominant.select("cpu", x, *pair)
    assert implementation is not logsumexp.is_dominant.reference
    found = jax.jit(implementation)(x, *pair)
    np.testing.assert_array_equal(found, logsumexp.is_dominant.reference(x, *pair))
    assert np.any(found)


@pytest.mark.usefixtures("narrow_rows")
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.one_in(2)
def test_nonfinite_logits_of_dense_labels_in_narrow_rows(classes):
    """Few rows are computed by the plain spelling, many by CPU's."""
    nonfinite = [np.inf, -np.inf, np.nan, 3e38, 0.0, 1.0, 30.0, 200.0]
    x = np.stack(np.meshgrid(*[np.float32(nonfinite)] * classes), -1).reshape(-1, classes)
    z = np.random.default_rng(0).dirichlet(np.ones(classes), len(x)).astype(np.float32)

    def loss(x, z):
        return jxent.softmax_cross_entropy_with_logits(labels=z, logits=x)

    copies = -(-softmax.MANY // x.size)
    both = jax.jit(lambda x, z: value_and_gradient(partial(loss, z=z), x))
    few, many = both(x, z), both(np.tile(x, (copies, 1)), np.tile(z, (copies, 1)))
    for a, b in zip(few, many, strict=True):
        np.testing.assert_allclose(a, b[: len(x)], rtol=1e-6, atol=1e-37)
