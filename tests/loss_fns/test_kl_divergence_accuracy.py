"""Distillation: digits of the divergence and of its derivatives, to a temperature too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from tests.reference import WIDE, ulps, wide_divergence

KL = jxent.softmax_kl_divergence_with_logits


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("lead", [0, 20, 60])
@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.one_in(12)
def test_a_student_that_agrees_keeps_its_digits(platform, lead, classes):
    """From apart by 1e-5, where the divergence is 1e-10, to apart by 10."""
    rng = np.random.default_rng(0)
    temperature = np.float32(1.5)

    def program(teacher, student, temperature):
        def each(student):
            return KL(teacher_logits=teacher, logits=student, temperature=temperature)

        return each(student), jax.grad(lambda x: each(x).sum())(student)

    program = jax.jit(program)
    for apart in (1e-5, 1e-3, 0.1, 1.0, 10.0):
        teacher = rng.standard_normal((32, classes)) * 2
        teacher[:, 0] += lead
        student = np.asarray(teacher + apart * rng.standard_normal((32, classes)), np.float32)
        teacher = np.asarray(teacher, np.float32)
        with jxent.assume_platform(platform):
            value, gradient = program(teacher, student, temperature)
        right, of_student, _ = wide_divergence(teacher, student, temperature)
        largest = np.abs(of_student).max(-1, keepdims=True)
        # A gap of `lead` is rounded, and both rows are: so many units in an exponential.
        allowed = 16 + lead
        assert np.max(ulps(value, right, np.float32)) <= allowed
        assert np.max(ulps(gradient, of_student, np.float32, largest)) <= allowed
        log_t, log_s = (jax.nn.log_softmax(x / temperature) for x in (teacher, student))
        plain = (np.exp(log_t) * (log_t - log_s)).sum(-1)
        assert np.max(ulps(plain, right, np.float32)) > 1e6 or apart > 1e-3


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.long
def test_classes_that_the_teacher_hardly_has(temperature):
    """Whose odds are flushed to 0, or nearly so, and to which the student gives some."""
    scale = 1 if temperature is None else temperature
    rows = []
    for below in (60.0, 80.0, 86.0, 87.2, 87.5, 90.0, 103.0):
        for up in (0.0, 40.0, 70.0, 83.0, 85.0, 88.0, 95.0):
            teacher = np.array([0.3, -0.2, 0.0, -below, -below])
            rows.append((teacher, teacher + np.array([1e-6, -1e-6, 0, up, up - 3])))
    teacher, student = np.asarray(scale * np.array(rows), np.float32).swapaxes(0, 1)
    loss = partial(KL, temperature=1.0 if temperature is None else temperature)
    right, of_student, _ = wide_divergence(teacher, student, WIDE(scale))
    largest = np.abs(of_student).max(-1, keepdims=True)
    for chosen in (slice(None), *np.arange(len(rows))[:, None]):  # together and each alone
        of_teacher = partial(loss, teacher_logits=teacher[chosen])
        value, pull = jax.vjp(lambda x, f=of_teacher: f(logits=x), student[chosen])
        (gradient,) = pull(jnp.ones_like(value))
        assert np.max(ulps(value, right[chosen], np.float32)) <= 128
        assert np.max(ulps(gradient, of_student[chosen], np.float32, largest[chosen])) <= 128


@pytest.mark.parametrize("shift", [100.0, 1e4, 1e6])
@pytest.mark.one_in(3)
def test_a_constant_between_the_two_costs_no_digits(shift):
    """Their difference is rounded at its size, and what that loses is added back."""
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((50, 7)).astype(np.float32)
    student = (rng.standard_normal((50, 7)) + shift).astype(np.float32)
    value = KL(teacher_logits=teacher, logits=student)
    gradient = jax.grad(lambda x: KL(teacher_logits=teacher, logits=x).sum())(student)
    right, of_student, _ = wide_divergence(teacher, student, 1.0)
    largest = np.abs(of_student).max(-1, keepdims=True)
    assert np.max(ulps(gradient, of_student, np.float32, largest)) <= 16
    assert np.max(ulps(value, right, np.float32)) <= 16


@pytest.mark.parametrize("apart", [1e-6, 1e-3, 1.0])
@pytest.mark.one_in(2)
def test_the_temperature_has_its_digits(apart):
    """Where the two agree its gradient is of the order of the square of what they are apart."""
    rng = np.random.default_rng(0)
    teacher = (rng.standard_normal((50, 4)) * 3).astype(np.float32)
    student = (teacher + apart * rng.standard_normal((50, 4))).astype(np.float32)
    temperature = np.float32(1.5)
    gradient = jax.vmap(
        jax.grad(lambda t, a, b: KL(teacher_logits=a, logits=b, temperature=t)), (None, 0, 0)
    )(temperature, teacher, student)

    def along(h):
        return wide_divergence(teacher, student, WIDE(temperature) * (1 + WIDE(h)))[0]

    h = 1e-4
    right = (8 * (along(h) - along(-h)) - along(2 * h) + along(-2 * h)) / (12 * h) / temperature
    value = wide_divergence(teacher, student, temperature)[0]
    size = np.maximum(np.abs(right), value / temperature)
    assert np.max(ulps(gradient, right, np.float32, size)) <= 64


def of_logits(teacher, student, **options):
    return jxent.softmax_kl_divergence_with_logits(
        teacher_logits=teacher, logits=student, **options
    )


@pytest.mark.parametrize("platform", ["cpu", "tpu", "reference"])
@pytest.mark.parametrize("lead", [0.5, 5.0, 10.0, 20.0, 50.0])
@pytest.mark.one_in(15)
def test_a_confident_teacher_has_its_gradient(platform, lead):
    """At its leader too, where a slope is a difference of numbers that are nearly one."""
    rng = np.random.default_rng(0)
    for student in (np.array([0.0, 2.0, 0.0]), rng.standard_normal(40)):
        teacher = np.zeros_like(student)
        teacher[0] = lead
        y_t, y_s = (np.asarray(np.float32(y), np.longdouble) for y in (teacher, student))
        log_t, log_s = (y - np.log(np.exp(y - y[0]).sum()) - y[0] for y in (y_t, y_s))
        p = np.exp(log_t)
        p[0] = 1 / (1 + np.exp(y_t[1:] - y_t[0]).sum())
        apart = (log_s - log_t) - (log_s - log_t)[0]  # of the leader itself it is 0
        right = p * ((p * apart).sum() - apart)
        with jxent.assume_platform(platform):
            gradient = jax.jit(jax.grad(of_logits))(np.float32(teacher), np.float32(student))
        np.testing.assert_allclose(gradient, right, rtol=0, atol=2e-6 * np.abs(right).max())
        np.testing.assert_allclose(gradient[0], right[0], rtol=2e-6)


@pytest.mark.one_in(112)
@pytest.mark.parametrize("nested", ["f", "r", "ff", "rr", "rff", "ffr"])
@pytest.mark.parametrize(
    "masked", [-1e9, -1.74e12, -1.75e12, -1e30, -1e38, np.finfo(np.float32).min]
)
@pytest.mark.parametrize("warmth", [0.5, 1.0, 2.0])
def test_derivatives_to_a_temperature_beside_a_masked_class(masked, nested, warmth):
    """As beside one that is ruled out by -inf."""

    def derivative(masked, nested):
        x_t, x_s = jnp.array([0.0, 1.0, masked]), jnp.array([0.5, 0.2, masked])

        def divergence(warmth):
            return of_logits(x_t, x_s, temperature=warmth)

        modes = {"r": jax.grad, "f": jax.jacfwd}
        for mode in reversed(nested):
            divergence = modes[mode](divergence)
        return divergence(jnp.float32(warmth))

    wanted = derivative(-np.inf, "f" * len(nested))
    np.testing.assert_allclose(derivative(masked, nested), wanted, rtol=2e-5)


@pytest.mark.parametrize("cap", [1e-39, 1e20, 1e38, 1e39, 1e300])
@pytest.mark.parametrize("name", ["logit_softcap", "teacher_logit_softcap"])
def test_caps_that_float32_cannot_divide_by(name, cap):
    with pytest.raises(ValueError, match=f"^{name} must be in"):
        of_logits(np.float32([0, 1]), np.float32([1, 0]), **{name: cap})


@pytest.mark.parametrize("nested", ["rr", "fr"])
@pytest.mark.parametrize("shift", [0.0, 1024.0, 131072.0])
@pytest.mark.long
def test_a_constant_costs_no_digits_of_the_second_derivative_to_a_temperature(shift, nested):
    x_t, x_s = jnp.array([0.0, 1.0, -1.0]) + shift, jnp.array([0.5, 0.25, 0.0]) + shift

    def divergence(warmth, shift=0.0):
        return of_logits(x_t - shift, x_s - shift, temperature=warmth)

    def second(shift, nested):
        outer = jax.grad if nested[0] == "r" else jax.jacfwd
        return outer(jax.grad(divergence))(jnp.float32(2), shift)

    np.testing.assert_allclose(second(0.0, nested), second(shift, "fr"), rtol=2e-5)


@pytest.mark.long
def test_dtypes_may_differ():
    """The teacher's is computed in the student's, under strict promotion too."""
    for teacher, student in ((np.float32, np.float64), (np.float64, np.float32)):
        with jax.enable_x64(True):
            x = jnp.asarray([[0.0, 2.0]], teacher), jnp.zeros((1, 2), student)
            for temperature in (1.0, 2.0):
                value, gradients = jax.value_and_grad(
                    lambda t, s, temperature=temperature: KL(
                        teacher_logits=t, logits=s, temperature=temperature
                    ).sum(),
                    (0, 1),
                )(*x)
                assert value.dtype == student
                assert [gradient.dtype for gradient in gradients] == [teacher, student]


def test_equal_logits_and_their_shift():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 7)), jnp.float32)
    np.testing.assert_array_equal(KL(teacher_logits=x, logits=x), 0)
    gradient = jax.grad(lambda x, y: KL(teacher_logits=x, logits=y).sum(), (0, 1))(x, x)
    np.testing.assert_array_equal(gradient, 0)
    shifted = KL(teacher_logits=jnp.round(x * 8) / 8, logits=jnp.round(x * 8) / 8 + 1024)
    np.testing.assert_array_equal(shifted, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(2)
def test_low_precision_is_rounded_once(dtype):
    rng = np.random.default_rng(0)
    teacher, student = (jnp.asarray(rng.standard_normal((8, 33)), dtype) for _ in range(2))
    got = KL(teacher_logits=teacher, logits=student)
    wide = KL(teacher_logits=teacher.astype(jnp.float32), logits=student.astype(jnp.float32))
    assert got.dtype == dtype
    np.testing.assert_array_equal(np.float32(got), np.float32(wide.astype(dtype)))
    # The teacher's may be of another dtype: it is data.
    mixed = KL(teacher_logits=teacher.astype(jnp.float32), logits=student)
    np.testing.assert_array_equal(np.float32(mixed), np.float32(got))
