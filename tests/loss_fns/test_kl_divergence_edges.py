"""Distillation: infinite, broken, dropped and no examples, and wrong arguments."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses
from tests.compile_options import quick

inf, nan = np.inf, np.nan
KL = jxent.softmax_kl_divergence_with_logits
TEACHER = [[0, 0, -inf], [0, 0, 0], [0, 1, -inf], [nan, 0, 0], [-inf] * 3, [inf, 0, 0], [0, 1, 2]]
STUDENT = [[0, 0, 0], [0, 0, -inf], [0, 1, -inf], [0, 0, 0], [0, 0, 0], [inf, 0, 0], [0, nan, 2]]


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "reference"])
@pytest.mark.one_in(3)
def test_infinite_and_nan_rows(platform):
    """Ruled out by the teacher: adds p_s; by the student alone: inf; by both: takes no part."""

    @quick
    def program(teacher, student):
        def each(teacher, student):
            return KL(teacher_logits=teacher, logits=student)

        gradients = jax.grad(lambda *x: each(*x).sum(), (0, 1))(teacher, student)
        return each(teacher, student), gradients

    with jxent.assume_platform(platform):
        value, (of_teacher, of_student) = program(jnp.array(TEACHER), jnp.array(STUDENT))
    np.testing.assert_allclose(value, [np.log(1.5), inf, 0, nan, nan, 0, nan], rtol=1e-6)
    for gradient in (of_teacher, of_student):
        assert np.isfinite(gradient[np.array([0, 1, 2, 5])]).all()
        assert np.isnan(gradient[np.array([3, 4, 6])]).any(-1).all()
    np.testing.assert_allclose(of_student[0], [-1 / 6, -1 / 6, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(of_student[1], [1 / 6, 1 / 6, -1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(of_student[2], 0)


def test_no_examples():
    """0, and every gradient is."""
    none = jnp.zeros((0, 5))
    operands = jnp.zeros((0, 2)), jnp.ones((2, 5)), jnp.zeros((0, 3)), jnp.ones((3, 5))
    for f, given in (
        (losses.softmax_kl_divergence, (none, none)),
        (losses.linear_softmax_kl_divergence, operands),
    ):
        value, gradients = jax.value_and_grad(f, tuple(range(len(given))))(*given)
        assert value == 0
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)


def test_weight_0_drops_nonfinite_examples():
    weights = np.array([1, 0, 1, 0, 0, 1, 0], np.float32)

    def total(teacher, student):
        return losses.softmax_kl_divergence(teacher, student, weights, reduction="weighted_mean")

    found = jax.value_and_grad(total, (0, 1))(jnp.array(TEACHER), jnp.array(STUDENT))
    np.testing.assert_allclose(found[0], np.log(1.5) / 3, rtol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in found[1])


def test_weight_0_drops_nonfinite_examples_of_a_projection():
    """NaN in a teacher's inputs too, on both floors' reverse modes, whatever is differentiated."""
    kernel = jnp.eye(3)
    inputs = jnp.array([[0.0, 1, 2], [1, 0, 0], [2, 0, 1], [nan, 0, 0], [0, 1, 0]])
    teacher = jnp.array([[0.0, 1, 1], [nan, 0, 0], [1, 0, 1], [1, 0, 0], [0, inf, 0]])
    weights = jnp.array([1.0, 0, 2, 0, 0])

    def total(reduction, teacher, teacher_kernel, inputs, kernel):
        found = losses.linear_softmax_kl_divergence(
            teacher, teacher_kernel, inputs, kernel, weights=weights, reduction=reduction,
            block_size=2,
        )  # fmt: skip
        return jnp.sum(found)

    for reduction in ("weighted_sum", "none"):
        f = jax.value_and_grad(partial(total, reduction), (0, 1, 2, 3))
        value, gradients = f(teacher, kernel, inputs, kernel)
        sound = np.array([0, 2])
        rest = partial(
            losses.linear_softmax_kl_divergence, weights=weights[sound], reduction="weighted_sum"
        )
        np.testing.assert_allclose(value, rest(teacher[sound], kernel, inputs[sound], kernel))
        assert all(np.isfinite(gradient).all() for gradient in gradients), reduction


# Wrong arguments.

X = np.zeros((2, 5), np.float32)
LINEAR: dict[str, Any] = {
    "teacher_inputs": np.zeros((2, 4), np.float32), "teacher_kernel": np.zeros((4, 5), np.float32),
    "inputs": np.zeros((2, 3), np.float32), "kernel": np.zeros((3, 5), np.float32),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"teacher_inputs": np.zeros((3, 4), np.float32)}, ValueError, "have the batch of inputs"),
        ({"teacher_kernel": np.zeros((4, 6), np.float32)}, ValueError, "have the classes of kern"),
        ({"teacher_kernel": np.zeros((3, 5), np.float32)}, ValueError, "teacher_inputs and teache"),
        ({"teacher_kernel": np.zeros((4, 5), np.float16)}, TypeError, "teacher_kernel must have"),
        ({"teacher_kernel": np.zeros((4, 5), int)}, TypeError, "teacher_kernel must be floating"),
        ({"teacher_bias": np.zeros(4)}, ValueError, "teacher_bias must have one number a class"),
        ({"teacher_logit_softcap": 0.0}, ValueError, "teacher_logit_softcap must be in"),
        ({"temperature": 0.0}, ValueError, "temperature must be in"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_projections(changed, error, message):
    for f in (jxent.linear_softmax_kl_divergence, losses.linear_softmax_kl_divergence):
        with pytest.raises(error, match=message):
            f(**{**LINEAR, **changed})


def test_wrong_arguments():
    for f in (KL, losses.softmax_kl_divergence):
        with pytest.raises(ValueError, match=r"teacher_logits must have the shape of logits, \(2"):
            f(teacher_logits=X[:, :4], logits=X)
        with pytest.raises(TypeError, match="teacher_logits must be floating"):
            f(teacher_logits=X.astype(int), logits=X)
        with pytest.raises(ValueError, match="logits must have at least one class"):
            f(teacher_logits=X[:, :0], logits=X[:, :0])
    with pytest.raises(TypeError, match="positional"):
        KL(X, X)
