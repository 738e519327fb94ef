"""Distillation: its matrix products, their dtypes, and its memory."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import jxent
from jxent import losses
from tests.projection.members import products


@pytest.mark.optimized
@pytest.mark.since("0.10.2")
def test_a_step_on_logits_stores_nothing():
    """On CPU, where a select in a sum would be stored."""
    shape = (256, 8192)

    def step(x, teacher):
        value, gradient = jax.value_and_grad(losses.softmax_kl_divergence, 1)(teacher, x)
        return value, x - 0.1 * gradient

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    analysis = jax.jit(step, donate_argnums=0).lower(x, x).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 0.3 * 4 * shape[0] * shape[1]


def test_products():
    """One more than a loss of labels: the teacher's. A frozen teacher costs no other."""
    operands = tuple(jnp.ones(shape) for shape in ((7, 2), (2, 5), (7, 3), (3, 5)))

    def each(*operands):
        names = ("teacher_inputs", "teacher_kernel", "inputs", "kernel")
        return jnp.sum(
            jxent.linear_softmax_kl_divergence(**dict(zip(names, operands, strict=True)))
        )

    scalar = losses.linear_softmax_kl_divergence
    for f, counts in ((scalar, (2, 4, 3, 6)), (each, (2, 6, 4, 8))):
        found = [
            len(products(wrapped, *operands))
            for wrapped in (
                f, jax.value_and_grad(f, (2, 3)), jax.value_and_grad(f, 3),
                jax.value_and_grad(f, (0, 1, 2, 3)),
            )
        ]  # fmt: skip
        assert found[:2] == list(counts[:2])
        assert found[2] <= found[1]
        assert found[3] <= counts[3]


@pytest.mark.optimized
def test_memory():
    """Both gradients of the student: at most a sixth of what stored logits take."""
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    n, d, c = 4096, 256, 65536
    operands = f32((n, d)), f32((d, c)), f32((n, d)), f32((d, c))

    def plain(teacher, teacher_kernel, inputs, kernel):
        log_t, log_s = map(jax.nn.log_softmax, (teacher @ teacher_kernel, inputs @ kernel))
        return (jnp.exp(log_t) * (log_t - log_s)).sum(-1).mean()

    def each(teacher, teacher_kernel, inputs, kernel):
        return jxent.linear_softmax_kl_divergence(
            teacher_inputs=teacher, teacher_kernel=teacher_kernel, inputs=inputs, kernel=kernel
        ).mean()

    def temporaries(f):
        compiled = jax.jit(jax.value_and_grad(f, (2, 3))).lower(*operands).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    stored = temporaries(plain)
    assert 6 * temporaries(losses.linear_softmax_kl_divergence) <= stored
    assert 6 * temporaries(each) <= stored


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(2)
def test_no_product_of_the_student_mixes_dtypes(dtype):
    """Under a frozen teacher, of another dtype too."""
    inputs, kernel = jnp.ones((7, 3), dtype), jnp.ones((3, 5), dtype)
    teacher = jnp.ones((7, 2)), jnp.ones((2, 5))
    f = jax.value_and_grad(partial(losses.linear_softmax_kl_divergence, *teacher), (0, 1))
    for master in (kernel, kernel.astype(jnp.float32)):
        found = products(f, inputs, master)
        assert len(found) == 4
        assert all(a == b for a, b in found), found
