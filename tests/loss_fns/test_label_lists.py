"""Lists of weighted ids: the loss of the dense labels that they stand for, and its digits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from benchmarks.lib.programs import temporaries
from jxent import losses
from tests import reference
from tests.compile_options import quick
from tests.reference import WIDE, dense_labels, ulps

EACH = jxent.sparse_softmax_cross_entropy_with_logits
DENSE = jxent.softmax_cross_entropy_with_logits
LINEAR = jxent.linear_sparse_softmax_cross_entropy
PLATFORMS = ("cpu", "tpu", "cuda", "reference")


def value_and_gradients(logits, ids, weights, **options):
    """The losses, and the gradients of their sum to logits and weights."""

    def total(logits, weights):
        value = EACH(labels=ids, logits=logits, label_weights=weights, **options)
        return jnp.sum(value), value

    gradients, values = jax.grad(total, (0, 1), has_aux=True)(logits, weights)
    return values, *gradients


def as_computed(platform, function, *arguments):
    with jxent.assume_platform(platform):
        result = function(*arguments)
    return result


def value_and_gradients_of_dense(logits, ids, weights, **options):
    """The same from dense labels, whose own gradient is looked up for each id."""

    def total(logits, labels):
        value = DENSE(labels=labels, logits=logits, **options)
        return jnp.sum(value), value

    dense = dense_labels(ids, weights, logits)
    gradients, values = jax.grad(total, (0, 1), has_aux=True)(logits, dense)
    of_ids = jnp.take_along_axis(gradients[1], jnp.maximum(ids, 0), -1)
    return values, gradients[0], jnp.where(ids < 0, 0, of_ids)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("labels", [value_and_gradients, value_and_gradients_of_dense])
@pytest.mark.parametrize("classes", [6, 509, 1400])  # few, many, and such as are cut on CPU
@pytest.mark.one_in(25)
def test_a_dominant_class_keeps_the_digits_of_the_other_weights(platform, labels, classes):
    """(Z - z) p has none of them: Z = 1 + 1e-12 is 1."""
    rows, small = 60, 1e-12
    logits = np.zeros((rows, classes), np.float32)
    logits[:, 0] = np.arange(rows) + np.log(classes / 6)  # from level to far ahead of all others
    noise = np.random.default_rng(0).normal(0, 0.1, (rows, classes - 1))
    logits[:, 1:] += noise.astype(np.float32)
    ids = np.tile(np.array([0, 2, -1, 4]), (rows, 1))
    weights = np.tile(np.array([1, small, 7, 2 * small], np.float32), (rows, 1))
    values, gradients, of_weights = as_computed(
        platform, labels, jnp.asarray(logits), jnp.asarray(ids), jnp.asarray(weights)
    )
    x, w = logits.astype(WIDE), weights.astype(WIDE)
    odds = np.exp(x - x.max(-1, keepdims=True))
    first = np.arange(classes) == x.argmax(-1)[:, None]
    rest = np.where(first, 0, odds).sum(-1, keepdims=True)
    p = odds / (1 + rest)
    q = np.where(first, rest / (1 + rest), 1 - p)
    z = np.zeros_like(p)
    z[:, 0], z[:, 2], z[:, 4] = w[:, 0], w[:, 1], w[:, 3]
    others = np.tile(z.sum(-1, keepdims=True), classes)
    for j in (0, 2, 4):
        others[:, j] = np.delete(z, j, 1).sum(1)
    neg_log_prob = x.max(-1, keepdims=True) - x + np.log1p(rest)
    expected, size = others * p - z * q, others * p + z * q
    # The exponent of p is rounded too, and so is the sum of all classes.
    allowed = 16 + x[:, :1] - x.min()
    assert (ulps(gradients, expected, np.float32, size) < allowed).all()
    assert ulps(values, (z * neg_log_prob).sum(1), np.float32).max() < 16
    assert ulps(of_weights[:, [0, 1, 3]], neg_log_prob[:, [0, 2, 4]], np.float32).max() < 16
    assert (np.asarray(of_weights)[:, 2] == 0).all()


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("count", [1, 3, 70])
@pytest.mark.one_in(18)
def test_lists_are_the_dense_labels_that_they_stand_for(platform, count):
    """Ids in any order, padding anywhere, twice and thrice; more of them than are unrolled."""
    rng = np.random.default_rng(count)
    logits, weights = rng.normal(0, 3, (5, 9)), rng.uniform(0, 1, (5, count))
    ids = rng.integers(-2, 9, (5, count))
    options = {"z_loss": 0.1, "logit_softcap": 4.0}

    def listed(logits, weights):
        return EACH(labels=ids, label_weights=weights, logits=logits, **options)

    def dense(logits, weights):
        labels = dense_labels(ids, weights, logits)
        return DENSE(labels=labels, logits=logits, **options)

    def all_of(function, logits, weights):
        def total(logits, weights):
            return jnp.sum(jnp.square(function(logits, weights)))

        first = jax.grad(total, (0, 1))(logits, weights)
        _, second = jax.jvp(jax.grad(total, (0, 1)), (logits, weights), (logits, 1 - weights))
        return function(logits, weights), first, second

    with jax.enable_x64(True):
        operands = jnp.asarray(logits), jnp.asarray(weights)
        got = as_computed(platform, quick(partial(all_of, listed)), *operands)
        close = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)
        jax.tree.map(close, got, all_of(dense, *operands))


def test_padding_has_no_part():
    logits = jnp.asarray([[1.0, 2.0, -1.0]])
    ids = jnp.asarray([[2, -1, -(2**31), 0]])
    nonfinite = jnp.asarray([[0.25, jnp.nan, jnp.inf, 0.75]])
    values, gradients, of_weights = value_and_gradients(logits, ids, nonfinite)
    plain = value_and_gradients(logits, ids[:, ::3], nonfinite[:, ::3])
    np.testing.assert_array_equal(values, plain[0])
    np.testing.assert_array_equal(gradients, plain[1])
    np.testing.assert_array_equal(of_weights[:, ::3], plain[2])
    np.testing.assert_array_equal(of_weights[:, 1:3], [[0, 0]])


def test_nothing_but_padding_costs_nothing():
    for ids in (-np.ones((2, 3), int), np.zeros((2, 0), int)):
        weights = jnp.ones(ids.shape)
        values, gradients, of_weights = value_and_gradients(jnp.ones((2, 4)), ids, weights)
        assert not any(map(np.any, (values, gradients, of_weights)))


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.one_in(4)
def test_an_id_out_of_range_is_nan_for_its_example_alone(platform):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), jnp.float32)
    weights = jnp.ones((2, 2))
    for invalid in (4, 2**31 - 1):
        found = as_computed(
            platform, value_and_gradients, logits, jnp.asarray([[1, invalid], [0, 3]]), weights
        )
        for x in found:
            assert np.isnan(x[0]).all()
            assert np.isfinite(x[1]).all()
    small = jnp.asarray([[1, 200], [0, 3]], jnp.uint8)  # in int8 it would be padding
    assert np.isnan(EACH(labels=small, label_weights=weights, logits=logits)[0])


def test_a_dropped_example_takes_no_part():
    """Out of range, of weight 0: as with one id an example."""
    logits = jnp.asarray([[1.0, 2.0], [jnp.nan, 0.0], [0.0, 1.0]])
    ids, shares = jnp.asarray([[0, 1], [0, 0], [5, 1]]), jnp.full((3, 2), 0.5)
    mask = jnp.asarray([1.0, 0.0, 0.0])

    def loss(logits, shares):
        return losses.sparse_softmax_cross_entropy(ids, logits, mask, label_weights=shares)

    value, gradients = jax.value_and_grad(loss, (0, 1))(logits, shares)
    alone = EACH(labels=ids[:1], label_weights=shares[:1], logits=logits[:1])[0]
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(np.any(gradient, 1), [True, False, False])


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.long
def test_masked_and_infinite_logits(platform):
    """As dense labels: a listed class at -inf costs inf, a weight of 0 there nothing."""
    inf = jnp.inf
    logits = jnp.asarray([[0.0, -inf, 1.0], [0.0, -inf, 1.0], [inf, 0.0, inf], [-inf] * 3])
    ids = jnp.asarray([[0, 2], [0, 1], [0, 2], [0, 1]])
    half = jnp.asarray([[0.3, 0.7]] * 4)
    some = jnp.asarray([[0.3, 0.7], [1.0, 0.0], [0.3, 0.7], [0.0, 0.0]])
    for weights in (half, some):
        for options in ({}, {"z_loss": 0.1}):
            got = as_computed(
                platform, partial(value_and_gradients, **options), logits, ids, weights
            )
            dense = partial(DENSE, labels=dense_labels(ids, weights, logits), **options)
            value, pull = jax.vjp(lambda x, f=dense: f(logits=x), logits)
            np.testing.assert_allclose(got[0], value, rtol=1e-6)
            np.testing.assert_allclose(got[1], pull(jnp.ones_like(value))[0], rtol=1e-5, atol=1e-7)
            assert np.isfinite(got[2][:3]).all()


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.one_in(2)
def test_an_id_adds_up_before_it_meets_infinity(platform):
    """Weights that cancel are no label at all."""
    rows = (
        ([0.0, 1.0, -jnp.inf], [0, 2, 2], [1.0, 1.0, -1.0], 1.3132617),
        ([0.0, 10.0, -jnp.inf], [0, 0, 1], [3e38, -3e38, 0.0], 0.0),
        ([0.0, 1.0, -jnp.inf], [2, 0, 2], [2.0, 1.0, -1.0], jnp.inf),
    )
    logits, ids, weights, wanted = (jnp.asarray(x) for x in zip(*rows, strict=True))
    got, *_ = as_computed(platform, value_and_gradients, logits, ids, weights)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.one_in(2)
def test_accuracy_where_all_classes_are_listed(platform):
    """The largest of negative labels is right, of which none is 0."""
    logits = jnp.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    ids = jnp.array([[0, 1, 2, -1], [2, 1, 0, 2], [0, 2, 2, 0]])
    weights = jnp.array([[-0.3, -0.3, -0.1, 5], [-0.3, -0.2, -0.1, 0.1], [-0.1, -0.1, 0, 0]])

    def aux():
        return losses.sparse_softmax_cross_entropy(
            ids, logits, label_weights=weights, has_aux=True
        )[1]

    right = jnp.array([1.0, 0.0, 0.0])  # in the last row class 1 is not listed, and has 0
    np.testing.assert_allclose(as_computed(platform, aux).accuracy, right.mean(), rtol=1e-6)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.one_in(6)
def test_accuracy_is_that_of_the_dense_labels(platform):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.integers(0, 3, (64, 5)), jnp.float32)
    ids = jnp.asarray(rng.integers(-1, 6, (64, 3)))  # one is out of range, here and there
    weights = jnp.asarray(rng.integers(-1, 3, (64, 3)), jnp.float32)
    in_range = (ids < 5).all(1)

    def listed(function, *data, **options):
        return function(*data, label_weights=weights, weights=in_range, has_aux=True, **options)

    def all_of():
        _, got = listed(losses.sparse_softmax_cross_entropy, ids, logits)
        _, projected = listed(
            losses.linear_sparse_softmax_cross_entropy, ids, logits, jnp.eye(5), block_size=7
        )
        return got, projected

    got, projected = as_computed(platform, all_of)
    labels = dense_labels(ids, weights, logits)
    _, wanted = losses.softmax_cross_entropy(labels, logits, in_range, has_aux=True)
    assert 0 < wanted.accuracy < 1
    for aux in (got, projected):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), tuple(aux), tuple(wanted))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.int32, bool])
def test_weights_of_any_real_dtype(dtype):
    ids, logits = np.array([[0, 2], [1, -1]]), jnp.asarray([[1.0, 2, 3], [0, 1, 0]], jnp.bfloat16)
    weights = jnp.asarray([[1, 0], [1, 1]], dtype)
    got = EACH(labels=ids, label_weights=weights, logits=logits)
    wanted = EACH(labels=ids, label_weights=weights.astype(np.float32), logits=logits)
    np.testing.assert_array_equal(got, wanted)
    assert got.dtype == jnp.bfloat16


def test_a_lone_id_of_weight_1_is_the_class():
    x = jnp.asarray(np.random.default_rng(0).normal(0, 4, (7, 11)), jnp.float32)
    ids = jnp.arange(7)
    one = jnp.ones((7, 1))
    np.testing.assert_allclose(
        EACH(labels=ids[:, None], label_weights=one, logits=x), EACH(labels=ids, logits=x),
        rtol=3e-7,
    )  # fmt: skip


@pytest.mark.optimized
@pytest.mark.since("0.10.2")
def test_no_dense_labels_are_stored(narrow_rows):
    """Beyond the logits' gradient a step holds numbers of the examples and of the lists."""
    examples, classes, count = 256, 65536, 20
    x = jax.ShapeDtypeStruct((examples, classes), np.float32)
    ids = jax.ShapeDtypeStruct((examples, count), np.int32)
    weights = jax.ShapeDtypeStruct((examples, count), np.float32)

    def loss(x, weights, ids):
        return losses.sparse_softmax_cross_entropy(ids, x, label_weights=weights)

    step = jax.value_and_grad(loss, (0, 1))
    assert temporaries(loss, x, weights, ids) < 0.2 * examples * classes * 4
    assert temporaries(step, x, weights, ids) < 1.1 * examples * classes * 4


def test_three_products_and_one_block_of_logits():
    examples, features, classes, count = 1024, 64, 8192, 8
    inputs = jax.ShapeDtypeStruct((examples, features), np.float32)
    kernel = jax.ShapeDtypeStruct((features, classes), np.float32)
    ids = jax.ShapeDtypeStruct((examples, count), np.int32)
    weights = jax.ShapeDtypeStruct((examples, count), np.float32)

    def loss(inputs, kernel, weights, ids):
        return losses.linear_sparse_softmax_cross_entropy(
            ids, inputs, kernel, label_weights=weights, block_size=128
        )

    step = jax.value_and_grad(loss, (0, 1, 2))
    text = jax.jit(step).lower(inputs, kernel, weights, ids).as_text()
    assert text.count("stablehlo.dot_general") == 3
    assert temporaries(step, inputs, kernel, weights, ids) < 0.5 * examples * classes * 4


X = np.zeros((2, 5), np.float32)
IDS, WEIGHTS = np.zeros((2, 3), int), np.ones((2, 3), np.float32)
FUNCTIONS = {
    "each": partial(EACH, logits=X),
    "losses": partial(losses.sparse_softmax_cross_entropy, logits=X),
    "linear": partial(LINEAR, inputs=X, kernel=np.zeros((5, 4), np.float32)),
    "linear losses": partial(
        losses.linear_sparse_softmax_cross_entropy, inputs=X, kernel=np.zeros((5, 4), np.float32)
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"labels": IDS[:, 0]}, ValueError, r"labels must with label_weights be lists of ids"),
        ({"labels": IDS[:1]}, ValueError, r"labels must with label_weights be lists of ids"),
        ({"labels": WEIGHTS}, TypeError, "labels must be integer class ids"),
        ({"label_weights": WEIGHTS[:, :2]}, ValueError, r"label_weights must have the shape of la"),
        ({"label_weights": 1.0}, ValueError, r"label_weights must have the shape of labels"),
        ({"label_weights": 1j * WEIGHTS}, TypeError, "label_weights must be real"),
        ({"label_weights": "1"}, TypeError, "label_weights must be an array"),
        ({"label_weights": None}, ValueError, "labels must have the shape of logits without axis"),
        ({"focusing": 2.0}, ValueError, "focusing must be 0 with label_weights, got 2.0"),
        ({"focusing": -2.0}, ValueError, "focusing must be in"),
    ],
)
def test_wrong_arguments(name, changed, error, message):
    with pytest.raises(error, match=message):
        FUNCTIONS[name](**{"labels": IDS, "label_weights": WEIGHTS, **changed})


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("ids_per_example", [3, 70])
@pytest.mark.one_in(4)
def test_blocks_of_classes(platform, ids_per_example):
    """Entries of other blocks count in a block's gradient, and have none of their own there."""
    rng = np.random.default_rng(2)
    classes, examples = 23, 5
    logits = 4 * rng.standard_normal((examples, classes))
    ids = rng.integers(-1, classes, (examples, ids_per_example))
    listed, each = rng.uniform(0, 1, ids.shape), rng.uniform(0.5, 2, examples)
    options = {"label_smoothing": 0.1, "z_loss": 0.2}

    def of_blocks(logits, listed):
        return losses.linear_sparse_softmax_cross_entropy(
            ids, logits, jnp.eye(classes), label_weights=listed, weights=each, reduction="sum",
            class_block_size=5, **options,
        )  # fmt: skip

    def expected(logits, listed):
        labels = dense_labels(ids, listed, logits)
        return jnp.sum(each * reference.softmax(labels, logits, **options))

    with jax.enable_x64(True):
        with jxent.assume_platform(platform):
            found = jax.value_and_grad(of_blocks, (0, 1))(logits, listed)
        wanted = jax.value_and_grad(expected, (0, 1))(logits, listed)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), found, wanted)
