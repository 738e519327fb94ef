"""What a softmax predicts of infinite, broken, tied and no rows."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import jxent
from tests.compile_options import quick
from tests.loss_fns.softmax_statistics import IDENTITY, LINEAR, WITH_LOGITS

inf, nan = np.inf, np.nan


def found_on(platform, x, labels, form, **options):
    """The statistics, and the gradient of each field's sum."""

    def fields(x):
        if form == "linear":
            return LINEAR(
                labels=labels, inputs=x, kernel=jnp.eye(x.shape[1]), block_size=2, **options
            )
        return WITH_LOGITS(labels=labels, logits=x, **options)

    def gradients(x):
        return [jax.grad(lambda x, k=k: jnp.sum(fields(x)[k]))(x) for k in range(3)]

    with jxent.assume_platform(platform):
        result = quick(lambda x: (fields(x), gradients(x)))(jnp.asarray(x, jnp.float32))
    return jax.tree.map(np.asarray, result)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "reference"])
@pytest.mark.one_in(2)
def test_infinite_and_nan_rows(platform):
    """Each by itself; no gradient is NaN where the values are not."""
    x = [
        [0, -inf, -inf], [0, -inf, 0], [inf, 0, inf], [-inf, -inf, -inf], [0, nan, 0], [2, 2, 1],
        [0, 1, -inf],
    ]  # fmt: skip
    labels = np.array([0, 1, 2, 0, 0, 1, 3])
    (log_prob, entropy, log_normalizer, prediction), slopes = found_on(platform, x, labels, "")
    log2, e = np.log(2), np.exp(-1)
    uneven = np.log1p(e) + e / (1 + e)
    ties = np.log(2 + e) + e / (2 + e)
    np.testing.assert_allclose(log_prob, [0, -inf, -log2, nan, nan, -np.log(2 + e), nan], rtol=1e-6)
    np.testing.assert_allclose(entropy, [0, log2, log2, nan, nan, ties, uneven], rtol=1e-6)
    normalizers = [0, log2, inf, nan, nan, 2 + np.log(2 + e), 1 + np.log1p(e)]
    np.testing.assert_allclose(log_normalizer, normalizers, rtol=1e-6)
    np.testing.assert_array_equal(prediction, [0, 0, 0, -1, -1, 0, 1])
    assert prediction.dtype == np.int32
    for slope in slopes:
        assert np.isnan(slope[3:5]).all()
        assert np.isfinite(slope[[0, 1, 2, 5]]).all()
    # An id out of range is of the log-probability alone.
    assert np.isnan(slopes[0][6]).all()
    assert np.isfinite(slopes[1][6]).all()
    assert np.isfinite(slopes[2][6]).all()


@pytest.mark.parametrize("wrong", [-1, 5, 2**31, 2**32 + 1])
def test_an_id_out_of_range(wrong):
    for found in (
        WITH_LOGITS(labels=np.array([wrong, 1]), logits=IDENTITY[:2]),
        LINEAR(labels=np.array([wrong, 1]), inputs=IDENTITY[:2], kernel=IDENTITY),
    ):
        np.testing.assert_array_equal(np.isnan(found.log_prob), [True, False])
        assert np.isfinite(found.entropy).all()
        np.testing.assert_array_equal(found.prediction, [0, 1])


@pytest.mark.parametrize("form", ["", "linear"])
def test_no_examples_and_one_class(form):
    """Nothing is NaN: of one class the entropy is 0, and so is the logarithm of its probability."""
    for examples, classes in ((0, 3), (2, 1)):
        x = np.arange(examples * classes, dtype=np.float32).reshape(examples, classes)
        (log_prob, entropy, log_normalizer, prediction), slopes = found_on(
            "cpu", x, np.zeros(examples, int), form
        )
        for field in (log_prob, entropy, prediction):
            np.testing.assert_array_equal(field, np.zeros(examples))
        np.testing.assert_array_equal(log_normalizer, x.sum(-1) if classes == 1 else [])
        np.testing.assert_array_equal(slopes[0], 0 * x)
        np.testing.assert_array_equal(slopes[1], 0 * x)


def test_the_first_of_equals_is_the_prediction():
    """bfloat16 logits tie often; on long rows it is found in pieces."""
    x = jnp.asarray(np.random.default_rng(0).integers(0, 4, (5, 40_000)), jnp.bfloat16)
    labels = np.zeros(5, int)
    wanted = np.argmax(np.asarray(x, np.float32), -1)
    for platform in ("cpu", "tpu", "reference"):
        with jxent.assume_platform(platform):
            np.testing.assert_array_equal(WITH_LOGITS(labels=labels, logits=x).prediction, wanted)
    turned = jxent.sparse_softmax_statistics_with_logits(labels=labels, logits=x.T, axis=0)
    np.testing.assert_array_equal(turned.prediction, wanted)


def test_block_padding_is_ignored():
    """The kernel rules a class out: 0 times -inf is NaN in a place that is filled up."""
    kernel = jnp.array([[1.0, -inf, 0.5], [1.0, -inf, 0.25]])
    inputs = jnp.array([[1.0, 2.0], [0.5, 1.0], [2.0, 1.0]])

    def total(inputs, kernel, block_size):
        found = LINEAR(labels=[0, 2, 0], inputs=inputs, kernel=kernel, block_size=block_size)
        return jnp.sum(found.entropy + found.log_prob)

    @partial(quick, static_argnums=2)
    def program(inputs, kernel, block_size):
        f = partial(total, block_size=block_size)
        gradient = jax.grad(f, (0, 1))
        line = (jnp.ones_like(inputs), jnp.where(jnp.isinf(kernel), 0, 1.0))
        return gradient(inputs, kernel), jax.vjp(gradient, inputs, kernel)[1](line)

    whole, ragged = (program(inputs, kernel, n) for n in (3, 2))
    # The inputs' gradient multiplies the kernel's -inf by a slope of 0 in any case.
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(ragged), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    assert np.isfinite(ragged[0][1]).all()


@pytest.mark.parametrize("form", ["", "linear", "by classes"])
def test_without_labels(form):
    """All but the log-probability, which is None."""
    rng = np.random.default_rng(0)
    x, mask = np.float32(rng.standard_normal((5, 4))), np.array([True, False, True, True, True])
    name, function = ("inputs", LINEAR) if form else ("logits", WITH_LOGITS)
    given: dict[str, Any] = {}
    if form:
        given["kernel"] = np.float32(rng.standard_normal((4, 7)))
    if form == "by classes":
        given["class_block_size"] = 3

    def entropies(x, **options):
        found = function(**{**given, name: x}, mask=mask, **options)
        return jnp.sum(found.entropy), found

    (value, found), gradient = jax.value_and_grad(entropies, has_aux=True)(x)
    labels = rng.integers(4, size=5)
    labelled = jax.value_and_grad(partial(entropies, labels=labels), has_aux=True)(x)
    assert found.log_prob is None
    expected = labelled[0][1]._replace(log_prob=None)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7),
        (value, found, gradient), (labelled[0][0], expected, labelled[1]),
    )  # fmt: skip


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
def test_without_labels_where_classes_are_split():
    x = np.float32(np.random.default_rng(0).standard_normal((5, 8)))
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))

    @partial(jax.shard_map, mesh=mesh, in_specs=P(None, "model"), out_specs=P())
    def entropy(x):
        return WITH_LOGITS(logits=x, axis_name="model").entropy

    np.testing.assert_allclose(jax.jit(entropy)(x), WITH_LOGITS(logits=x).entropy, rtol=1e-6)
