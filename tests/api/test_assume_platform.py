"""`jxent.assume_platform`: one platform in the jaxpr, and never a program of another one."""

import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses
from tests.api.test_properties import each_loss, scalar, split

PLATFORMS = ("cpu", "tpu", "cuda", "reference")
IDS = jnp.arange(4) % 3
LOGITS = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5)), jnp.float32)


@each_loss
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.one_in(9)
def test_no_conditional_on_the_platform_is_left(platform, case):
    """Of the value, the gradient and both at once, in the step and around the loss alone."""
    f, differentiated = split(case, case.arrays(jnp.dtype("float32")))
    total = scalar(case, f)
    assumed = jxent.assume_platform(platform)
    for function in (total, jax.grad(total), jax.value_and_grad(total)):
        assert platforms_in(jax.make_jaxpr(assumed(function))(differentiated)) == 0
    assert platforms_in(jax.make_jaxpr(jax.grad(assumed(total)))(differentiated)) == 0
    gradient = jax.grad(total)
    second = assumed(lambda differentiated: jax.jvp(gradient, (differentiated,), (differentiated,)))
    assert platforms_in(jax.make_jaxpr(second)(differentiated)) == 0


def test_without_it_there_is_one():
    """So that the tests above can fail."""
    assert platforms_in(jax.make_jaxpr(jax.grad(loss))(LOGITS)) > 0


def loss(logits):
    return losses.sparse_softmax_cross_entropy(IDS, logits)


def platforms_in(jaxpr) -> int:
    return str(jaxpr).count("platform_index")


@pytest.mark.parametrize("transform", [
    jax.grad,
    pytest.param(jax.value_and_grad, marks=pytest.mark.long),
    pytest.param(lambda f: f, marks=pytest.mark.long),
    pytest.param(jax.hessian, marks=pytest.mark.long),
], ids=["grad", "value_and_grad", "value", "hessian"])  # fmt: skip
def test_one_jitted_function_outside_inside_and_outside_again(transform):
    """JAX's caches keep them apart, under a `jit` of the loss, of its gradient, and of both."""
    inner = jax.jit(loss)
    for program in (jax.jit(transform(loss)), jax.jit(transform(inner)), transform(inner)):
        # A new function each time, so that only what is inside of it can come from a cache.
        def count(program=program):
            return platforms_in(jax.make_jaxpr(partial(program))(LOGITS))

        outside = count()
        assert outside > 0
        want = program(LOGITS)
        for platform in (*PLATFORMS, *PLATFORMS):
            with jxent.assume_platform(platform):
                assert count() == 0
            assert count() == outside
        jax.clear_caches()
        with jxent.assume_platform("tpu"):  # the other way round
            got = program(LOGITS)
            assert count() == 0
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), got, want)
        assert count() == outside


def test_platforms_differ():
    """What is traced is what that platform computes, not what was traced last."""
    x = jnp.zeros((512, 1000))
    y = jnp.zeros(512, jnp.int32)
    step = jax.jit(jax.value_and_grad(partial(losses.sparse_softmax_cross_entropy, y)))

    def jaxprs():
        found = {}
        for platform in PLATFORMS:
            with jxent.assume_platform(platform):
                found[platform] = str(step.trace(x).jaxpr)
        return found

    first = jaxprs()
    assert len(set(first.values())) > 2
    assert jaxprs() == first


@pytest.mark.parametrize("around", [
    jax.checkpoint, jax.vmap,
    lambda f: lambda x: jax.lax.scan(lambda c, row: (c, f(row)), 0.0, x)[1],
    lambda f: lambda x: jax.lax.map(f, x),
    lambda f: lambda x: jax.lax.cond(x[0, 0, 0] > 0, f, lambda x: f(-x), x),
], ids=["checkpoint", "vmap", "scan", "map", "cond"])  # fmt: skip
@pytest.mark.one_in(2)
def test_inside_of_other_transforms(around):
    x = jnp.stack([LOGITS, -LOGITS])

    def total(x):
        return jnp.sum(around(lambda x: losses.sparse_softmax_cross_entropy(
            jnp.broadcast_to(IDS, x.shape[:-1]), x))(x))  # fmt: skip

    step = jax.jit(jax.grad(total))
    want = step(x)
    outside = platforms_in(step.trace(x).jaxpr)
    assert outside > 0
    with jxent.assume_platform("reference"):
        assert platforms_in(step.trace(x).jaxpr) == 0
        np.testing.assert_allclose(step(x), want, rtol=1e-5)
    assert platforms_in(step.trace(x).jaxpr) == outside


def test_the_innermost_counts_and_an_error_leaves_nothing_behind():
    count = jax.jit(jax.grad(loss))

    def seen():
        return str(count.trace(LOGITS).jaxpr)

    outside = seen()
    with jxent.assume_platform("tpu"):
        tpu = seen()
        with jxent.assume_platform("reference"):
            reference = seen()
        assert seen() == tpu
        with pytest.raises(KeyError), jxent.assume_platform("cuda"):
            raise KeyError
        assert seen() == tpu
    assert seen() == outside
    assert len({outside, tpu, reference}) == 3


def test_each_thread_has_its_own():
    step = jax.jit(jax.grad(loss))
    inside = threading.Barrier(2, timeout=60)
    found = {}

    def trace(name, platform):
        with jxent.assume_platform(platform):
            inside.wait()
            found[name] = platforms_in(step.trace(LOGITS).jaxpr)
            inside.wait()

    def trace_outside():
        inside.wait()
        found["outside"] = platforms_in(step.trace(LOGITS).jaxpr)
        inside.wait()

    threads = [
        threading.Thread(target=trace, args=("inside", "reference")),
        threading.Thread(target=trace_outside),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["inside"] == 0
    assert found["outside"] > 0


def test_beside_a_context_of_the_user():
    context = jax.make_user_context(default_value=None)
    step = jax.jit(jax.grad(loss))
    outside = platforms_in(step.trace(LOGITS).jaxpr)
    with context("mine"):
        assert platforms_in(step.trace(LOGITS).jaxpr) == outside
        with jxent.assume_platform("tpu"):
            assert platforms_in(step.trace(LOGITS).jaxpr) == 0
            assert context.value == "mine"
        assert platforms_in(step.trace(LOGITS).jaxpr) == outside


def test_a_decorator_keeps_the_function():
    @jxent.assume_platform("cpu")
    def documented(x, *, scale=1.0):
        """Says what it is."""
        return loss(x) * scale

    assert documented.__doc__ == "Says what it is."
    assert documented(LOGITS, scale=2.0) == 2 * loss(LOGITS)
    assert documented(LOGITS) == loss(LOGITS)  # once more


def test_gpu_is_what_jax_calls_its_backend():
    def seen(platform):
        with jxent.assume_platform(platform):
            return str(jax.make_jaxpr(jax.grad(loss))(LOGITS))

    assert seen("gpu") == seen("cuda") == seen("rocm")


@pytest.mark.parametrize("platform", ["CPU", "none", None, 1, ["cpu"], ("cpu", "tpu")])
def test_what_is_no_platform(platform):
    with pytest.raises(ValueError, match=r"platform must be one of 'cpu', .* got"):
        jxent.assume_platform(platform)


def test_an_exported_program_for_several_platforms():
    """Outside every platform has its own branch; inside all have the one that is assumed."""
    shape = jax.ShapeDtypeStruct((512, 1000), jnp.float32)

    def total(x):
        return losses.sparse_softmax_cross_entropy(jnp.zeros(512, jnp.int32), x)

    def exported():
        return jax.export.export(jax.jit(total), platforms=("cpu", "tpu"))(shape)

    assert "stablehlo.case" in exported().mlir_module()
    with jxent.assume_platform("reference"):
        assert "stablehlo.case" not in exported().mlir_module()
