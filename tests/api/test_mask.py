"""Examples that a mask takes out: 0 and no derivative, whatever stands in their place."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from tests.combinations.table import FUNCTIONS

MASKED = [f for f in FUNCTIONS if "mask" in f.parameters]
RNG = np.random.default_rng(0)
MASK = np.array([True, False, True, True, False, True, True])
EXAMPLES, CLASSES, FEATURES = len(MASK), 5, 3
X = RNG.standard_normal((EXAMPLES, CLASSES))
INPUTS, KERNEL = RNG.standard_normal((EXAMPLES, FEATURES)), RNG.standard_normal((FEATURES, CLASSES))
DENSE = RNG.uniform(0, 1, (EXAMPLES, CLASSES))
IDS = RNG.integers(CLASSES, size=EXAMPLES)
LISTS = RNG.integers(-1, CLASSES, size=(EXAMPLES, 2))
INVALID = {"logits": np.nan, "inputs": np.inf, "labels": 255, "teacher_logits": np.nan,
           "teacher_inputs": np.nan}  # fmt: skip


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def arguments(function):
    labels = {"ids": IDS, "lists": LISTS, "dense": DENSE}.get(function.labels)
    arrays = {
        "labels": labels, "logits": X, "inputs": INPUTS, "kernel": KERNEL, "pos_weight": 1.5,
        "teacher_logits": 2 * X, "teacher_inputs": 1 + INPUTS, "teacher_kernel": KERNEL,
    }  # fmt: skip
    return {name: arrays[name] for name in function.parameters if name in arrays}


def with_invalid(given):
    """What stands where the mask is False is no number, or no class."""
    given = dict(given)
    for name, value in INVALID.items():
        if name in given:
            given[name] = given[name].copy()
            given[name][~MASK] = value
    return given


def outputs(found):
    return found._asdict() if isinstance(found, jxent.SoftmaxStatistics) else {"loss": found}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("function", MASKED, ids=str)
@pytest.mark.one_in(6)
def test_masked_examples_are_zero_and_have_no_derivative(function):
    good = arguments(function)
    names = [n for n in good if n in ("logits", "inputs", "kernel")]

    def each(given, mask=None):
        return outputs(function.call(**given, mask=mask))

    def total(differentiated, given, mask):
        found = each({**given, **differentiated}, mask)
        parts = [x for name, x in found.items() if name != "prediction"]
        rows = jnp.stack([x.reshape(EXAMPLES, -1).sum(-1) for x in parts])
        counted = MASK if mask is None else np.ones_like(MASK)
        return jnp.sum(rows * np.where(counted, np.arange(1.0, 1 + EXAMPLES), 0)[None])

    def derivatives(given, mask):
        at = {name: jnp.asarray(given[name]) for name in names}
        given = {name: x for name, x in given.items() if name not in names}
        gradient = jax.grad(total)
        direction = jax.tree.map(jnp.ones_like, at)
        return jax.jvp(lambda at: gradient(at, given, mask), (at,), (direction,))

    for given in (good, with_invalid(good)):
        got, wanted = each(given, MASK), each(good)
        for name, x in wanted.items():
            kept = MASK.reshape(-1, *(1,) * (x.ndim - 1))
            zero = -1 if name == "prediction" else 0
            np.testing.assert_allclose(got[name], np.where(kept, x, zero), rtol=1e-12, atol=1e-14)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
            derivatives(given, MASK), derivatives(good, None),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["sigmoid", "weighted"])
def test_classes_whose_labels_are_unknown(name):
    """A mask of the logits' shape takes out single elements."""
    function = getattr(jxent, f"{name}_cross_entropy_with_logits")
    options = {"pos_weight": 2.0}
    known = RNG.uniform(size=X.shape) > 0.4
    x, labels = np.float32(X), np.float32(np.where(known, DENSE, np.nan))

    def total(x):
        return jnp.sum(function(labels=labels, logits=x, mask=known, **options))

    value, gradient = jax.value_and_grad(total)(x)
    each = function(labels=np.float32(DENSE), logits=x, **options)
    np.testing.assert_allclose(value, np.sum(np.where(known, each, 0)), rtol=1e-6)
    np.testing.assert_array_equal(gradient == 0, ~known)


def test_an_image_with_an_ignored_label():
    """Labels of 255, classes on axis 1: one call, with a gradient of 0 there."""
    logits = np.float32(RNG.standard_normal((2, CLASSES, 3, 4)))
    labels = RNG.integers(CLASSES, size=(2, 3, 4)).astype(np.uint8)
    labels[:, 1] = 255

    def total(logits):
        return jnp.sum(
            jxent.sparse_softmax_cross_entropy_with_logits(
                labels=labels, logits=logits, axis=1, mask=labels != 255
            )
        )

    value, gradient = jax.value_and_grad(total)(logits)
    assert np.isfinite(value)
    np.testing.assert_array_equal(gradient[:, :, 1], 0)
    assert np.all(np.asarray(gradient)[:, :, [0, 2]] != 0)


@pytest.mark.parametrize("function", MASKED, ids=str)
def test_a_mask_that_does_not_fit(function):
    given = arguments(function)
    given = {k: np.float32(v) if np.asarray(v).dtype == np.float64 else v for k, v in given.items()}
    with pytest.raises(TypeError, match=r"^mask must be boolean, got int"):
        function.call(**given, mask=np.int32(MASK))
    for shape in ((), (EXAMPLES, 1), (EXAMPLES + 1,)):
        with pytest.raises(ValueError, match=r"^mask must have shape"):
            function.call(**given, mask=np.ones(shape, bool))
    assert "mask" in inspect.signature(function.call).parameters
