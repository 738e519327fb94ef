"""Losses, and values with gradients, converted to ONNX and run by onnxruntime."""

import warnings

import jax
import numpy as np
import pytest

import jxent
from jxent import losses

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx")
jax2onnx = pytest.importorskip("jax2onnx", reason="the extra onnx")

RNG = np.random.default_rng(0)
EXAMPLES, CLASSES = 4, 10
LOGITS = np.float32(5 * RNG.standard_normal((EXAMPLES, CLASSES)))
IDS = np.int32([1, 2, 9, 0])
LABELS = np.float32(RNG.random((EXAMPLES, CLASSES)))
DISTRIBUTIONS = LABELS / LABELS.sum(-1, keepdims=True)


def numbers(function, arguments):
    """What JAX computes, and what onnxruntime computes of the converted program."""
    function = jxent.assume_platform("reference")(function)
    want = jax.tree.map(np.asarray, jax.jit(function)(*arguments))
    jax.clear_caches()
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arguments]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter's own
        # Its stand-ins for functions of jax.numpy promote dtypes and ranks.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            model = jax2onnx.to_onnx(function, inputs=shapes)
    jax.clear_caches()  # which hold these stand-ins
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [x.name for x in session.get_inputs()]
    assert len(names) == len(arguments)
    return session.run(None, dict(zip(names, arguments, strict=True))), jax.tree.leaves(want)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("loss", "labels"), [
    (losses.sparse_softmax_cross_entropy, IDS),
    (losses.softmax_cross_entropy, DISTRIBUTIONS),
    (losses.sigmoid_cross_entropy, LABELS),
], ids=["ids", "dense", "sigmoid"])  # fmt: skip
def test_numbers_are_those_of_jax(loss, labels, gradient):
    function = jax.value_and_grad(loss, argnums=1) if gradient else loss
    got, want = numbers(function, (labels, LOGITS))
    assert len(got) == len(want) == 1 + gradient
    for g, w in zip(got, want, strict=True):
        assert np.any(w != 0)
        np.testing.assert_allclose(g, w, rtol=2e-6, atol=1e-7)
