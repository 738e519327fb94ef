"""Classes that lists of ids take out of an example."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import jxent
from benchmarks.lib.programs import temporaries
from jxent import losses
from tests import reference

EACH = jxent.sparse_softmax_cross_entropy_with_logits
LINEAR = jxent.linear_sparse_softmax_cross_entropy
STATISTICS = jxent.sparse_softmax_statistics_with_logits
RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.standard_normal((4, 6)).astype(np.float32)
IDS = np.array([0, 2, 5, 1])
OUT = np.array([[1, 3, -1], [5, 5, 0], [-1, -7, -1], [2, 3, 4]])


def value_and_gradient(**arguments):
    def total(logits):
        value = EACH(logits=logits, **arguments)
        return jnp.sum(value), value

    gradient, value = jax.grad(total, has_aux=True)(jnp.asarray(arguments.pop("logits")))
    return np.asarray(value), np.asarray(gradient)


def test_an_excluded_label_has_an_infinite_loss_and_a_finite_gradient():
    out = OUT.copy()
    out[1, 0] = IDS[1]
    value, gradient = value_and_gradient(labels=IDS, logits=LOGITS, excluded=out)
    assert np.isinf(value).tolist() == [False, True, False, False]
    assert np.all(np.isfinite(gradient))
    found = STATISTICS(labels=IDS, logits=LOGITS, excluded=out)
    assert found.log_prob[1] == -np.inf
    assert np.all(np.isfinite(found.entropy))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
@pytest.mark.one_in(3)
def test_an_id_beyond_the_classes_makes_its_example_nan(dtype):
    out = np.array([[1], [127], [3], [6]], dtype)
    value, gradient = value_and_gradient(labels=IDS, logits=LOGITS, excluded=out)
    expected = [False, True, False, True]
    assert np.isnan(value).tolist() == expected
    assert np.all(np.isnan(gradient), -1).tolist() == expected
    weights = np.array([1.0, 0.0, 1.0, 0.0])
    left = losses.sparse_softmax_cross_entropy(
        IDS[::2], LOGITS[::2], excluded=out[::2], reduction="sum"
    )
    linear, projected = losses.linear_sparse_softmax_cross_entropy, (LOGITS, np.eye(6, dtype="f4"))
    for function, arrays in (
        (losses.sparse_softmax_cross_entropy, (LOGITS,)),
        (linear, projected),
        (partial(linear, class_block_size=4), projected),
    ):
        loss, gradients = jax.value_and_grad(
            lambda *a, f=function: f(IDS, *a, weights=weights, excluded=out, reduction="sum"),
            argnums=tuple(range(len(arrays))),
        )(*map(jnp.asarray, arrays))
        np.testing.assert_allclose(loss, left, rtol=1e-6)
        assert all(np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.one_in(2)
def test_what_a_masked_example_excludes_is_not_looked_at(dtype):
    out = np.array([[0, 0, 0], [255, 1, 1], [3, 3, 3], [1, 200, 4]], dtype)
    mask = np.array([True, False, True, False])
    kernel = np.eye(6, dtype=np.float32)

    given = {"labels": IDS[::-1], "excluded": out, "mask": mask}

    def total(function, arrays):
        fields = jax.tree.leaves(function(**given, **arrays))
        return sum(jnp.sum(x.astype(jnp.float32)) for x in fields), fields

    for functions, arrays in (
        ((STATISTICS, EACH), {"logits": LOGITS}),
        ((jxent.linear_sparse_softmax_statistics, LINEAR), {"inputs": LOGITS, "kernel": kernel}),
    ):
        for function in functions:
            gradients, fields = jax.grad(partial(total, function), has_aux=True)(arrays)
            assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((gradients, fields)))
            assert not next(iter(gradients.values()))[~mask].any()
            assert all(set(np.asarray(x)[~mask].tolist()) <= {0, -1} for x in fields)


def test_only_the_label_left_costs_nothing():
    out = np.stack([np.delete(np.arange(6), y) for y in IDS])
    value, gradient = value_and_gradient(labels=IDS, logits=LOGITS, excluded=out)
    assert value.tolist() == [0.0] * 4
    assert not gradient.any()
    found = STATISTICS(logits=LOGITS, excluded=out)
    assert found.prediction.tolist() == IDS.tolist()
    assert found.entropy.tolist() == [0.0] * 4


def test_a_class_that_is_left_out_has_no_derivative_whatever_stands_there():
    logits = LOGITS.copy()
    logits[0, 1], logits[1, 5], logits[3, 2] = np.nan, np.inf, -np.inf
    value, gradient = value_and_gradient(labels=IDS, logits=logits, excluded=OUT)
    whole, its_gradient = value_and_gradient(labels=IDS, logits=LOGITS, excluded=OUT)
    np.testing.assert_array_equal(value, whole)
    np.testing.assert_array_equal(gradient, its_gradient)
    for row, out in enumerate(OUT):
        assert not gradient[row, out[out >= 0]].any()


def test_no_ids_are_no_exclusion():
    none = np.zeros((4, 0), np.int32)
    np.testing.assert_array_equal(
        EACH(labels=IDS, logits=LOGITS, excluded=none), EACH(labels=IDS, logits=LOGITS)
    )


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "reference"])
@pytest.mark.parametrize(("classes", "number"), [(40, 9), (1400, 80)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.one_in(8)
def test_long_lists_on_each_platform(platform, classes, number, smoothing):
    rng = np.random.default_rng(1)
    logits = 5 * rng.standard_normal((7, classes))
    ids = rng.integers(classes, size=7)
    out = rng.integers(classes, size=(7, number))
    out = np.where(out == ids[:, None], -1, out)
    cotangent = rng.standard_normal(7)
    options = {"label_smoothing": smoothing, "z_loss": 0.1}

    def total(function, logits):
        return jnp.sum(cotangent * function(labels=ids, logits=logits, excluded=out, **options))

    with jax.enable_x64(True):
        expected = jax.value_and_grad(lambda x: total(reference.sparse_softmax, x))(logits)
        with jxent.assume_platform(platform):
            found = jax.value_and_grad(lambda x: total(EACH, x))(logits)
        eye = np.eye(classes)
        linear = jax.value_and_grad(
            lambda x: jnp.sum(
                cotangent
                * LINEAR(
                    labels=ids, inputs=x, kernel=eye, excluded=out, class_block_size=16, **options
                )
            )
        )(logits)
    for got in (found, linear):
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)
        np.testing.assert_allclose(got[1], expected[1], atol=1e-12)


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
def test_classes_split_over_chips():
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("model",), auto, devices=jax.devices()[:2])
    split = PartitionSpec(None, "model")

    def on_a_chip(logits):
        return EACH(labels=IDS, logits=logits, excluded=OUT, axis_name="model")

    on_chips = jax.shard_map(on_a_chip, mesh=mesh, in_specs=split, out_specs=PartitionSpec())
    found = jax.jit(on_chips)(LOGITS)
    np.testing.assert_allclose(found, EACH(labels=IDS, logits=LOGITS, excluded=OUT), rtol=1e-6)


@pytest.mark.parametrize(
    ("excluded", "error", "words"),
    [
        (OUT[:3], ValueError, r"excluded must be lists of ids, .* got shape \(3, 3\)"),
        (IDS, ValueError, r"excluded must be lists of ids, .* got shape \(4,\)"),
        (OUT.astype(np.float32), TypeError, "excluded must be integer class ids, got float32"),
        ([[1], [2], [3], [0.5]], TypeError, "excluded must be integer class ids"),
        (
            [[1], [2, 3], [3], [0]],
            ValueError,
            "excluded must be ids, or lists of ids of one length",
        ),
    ],
)
def test_what_is_no_list_of_ids_is_refused(excluded, error, words):
    with pytest.raises(error, match=words):
        EACH(labels=IDS, logits=LOGITS, excluded=excluded)


@pytest.mark.parametrize(("number", "bytes_a_logit"), [(2, 0), (32, 1)])
@pytest.mark.optimized
def test_a_projection_stores_no_logits_for_what_is_excluded(number, bytes_a_logit):
    """On CPU a mask of a block for long lists."""
    n, c, d, block = 2048, 16384, 64, 1024
    f32 = jnp.float32
    arrays = (
        jax.ShapeDtypeStruct((n, d), f32), jax.ShapeDtypeStruct((d, c), f32),
        jax.ShapeDtypeStruct((n,), jnp.int32), jax.ShapeDtypeStruct((n, number), jnp.int32),
    )  # fmt: skip

    def step(excludes):
        def loss(inputs, kernel, ids, out):
            return losses.linear_sparse_softmax_cross_entropy(
                ids, inputs, kernel, excluded=out if excludes else None, block_size=block
            )

        return temporaries(jax.value_and_grad(loss, (0, 1)), *arrays)

    assert step(True) <= step(False) + 2 * n * number * 4 + bytes_a_logit * block * c
