"""What the function of `losses.blockwise` may close over, and be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent import losses

ROWS = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)  # a ragged block
PARAMS = np.array([1.0, -2.0, 0.5], np.float32)
KEY = jax.random.key(3)


def by_blocks(loss_fn, params, reduction):
    return losses.blockwise(loss_fn, params, ROWS, block_size=2, reduction=reduction)


def as_a_whole(loss_fn, params, reduction):
    each = loss_fn(params, ROWS)
    return each if reduction == "none" else each.sum()


def scaled(factor, params, block):
    return factor * jnp.tanh(block @ params)


class Head:
    def __init__(self, factor):
        self.factor = factor

    def losses(self, params, block):
        return scaled(self.factor, params, block)

    __call__ = losses


FUNCTIONS = {
    "a closure": lambda factor: lambda params, block: scaled(factor, params, block),
    "a bound method": lambda factor: Head(factor).losses,
    "an object": Head,
    "a partial": lambda factor: partial(scaled, factor),
    "a key beside it": lambda factor: (
        lambda params, block: scaled(factor, params, block) * jax.random.uniform(KEY)
    ),
    "jit inside": lambda factor: lambda params, block: jax.jit(scaled)(factor, params, block),
    "scan inside": lambda factor: (
        lambda params, block: jax.lax.scan(
            lambda carry, _: (carry * factor, None), jnp.tanh(block @ params), None, length=2
        )[0]
    ),
}
CONSTANTS = [1.5, 2, True, np.float32(1.5), np.int32(2), np.bool_(True), np.full((), 1.5, "f4"),
             jnp.float32(1.5), jnp.int32(2)]  # fmt: skip


def close(got, wanted):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), got, wanted)


def orders(f, x):
    gradient = jax.grad(f)
    return f(x), gradient(x), jax.jvp(gradient, (x,), (jnp.ones_like(x),))[1], jax.grad(
        lambda x: gradient(x).sum()
    )(x)  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("constant", CONSTANTS, ids=lambda c: f"{type(c).__name__} {c}")
@pytest.mark.one_in(30)
def test_constants(constant, compiled):
    def of(total):
        def head(params, block):
            # JAX's modes in the tests are strict.
            is_float = jnp.issubdtype(jnp.result_type(constant), jnp.floating)
            factor = constant if is_float else jnp.asarray(constant).astype(jnp.float32)
            return scaled(factor, params, block)

        def loss(params):
            return total(head, params, "weighted_sum")

        every = partial(orders, loss)
        return (jax.jit(every) if compiled else every)(PARAMS)

    close(of(by_blocks), of(as_a_whole))


@pytest.mark.parametrize("reduction", ["weighted_sum", "none"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.one_in(36)
def test_derivatives_to_a_number_of_python(kind, compiled, reduction):
    def of(total):
        def loss(factor):
            return total(FUNCTIONS[kind](factor), PARAMS, reduction).sum()

        every = partial(orders, loss)
        return (jax.jit(every) if compiled else every)(1.5)

    close(of(by_blocks), of(as_a_whole))


@pytest.mark.parametrize("place", ["closure", "params", "weights"])
def test_eager_gradient_to_a_number_of_python(place):
    def loss(factor):
        fixed = {"params": 1.0, "weights": 1.0, "closure": 1.0} | {place: factor}

        def head(params, block):
            return fixed["closure"] * params["factor"] * (block @ params["kernel"])

        params = {"kernel": PARAMS, "factor": fixed["params"]}
        return losses.blockwise(head, params, ROWS + 1, block_size=2, weights=fixed["weights"])

    close(jax.grad(loss)(1.5), ((ROWS + 1) @ PARAMS).mean())


@pytest.mark.parametrize("reduction", ["weighted_sum", "none"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_a_complex_number(compiled, reduction):
    """Its gradient is JAX's, as for any real function of a complex number."""

    def of(total):
        def loss(factor):
            def head(params, block):
                return jnp.abs(factor * (block @ params).astype(jnp.complex64) + 1) ** 2

            return total(head, PARAMS, reduction).sum()

        every = jax.value_and_grad(loss)
        return (jax.jit(every) if compiled else every)(jnp.complex64(1.5 + 0.5j))

    close(of(by_blocks), of(as_a_whole))


@pytest.mark.parametrize("reduction", ["weighted_sum", "none"])
@pytest.mark.parametrize("order", ["grad", "grad of grad", "vmap of grad"])
@pytest.mark.one_in(2)
def test_nothing_leaks(order, reduction):
    def of(total):
        def loss(factor):
            return total(lambda p, b: factor**3 * (b @ p) ** 2, PARAMS, reduction).sum()

        around = {
            "grad": jax.grad(loss),
            "grad of grad": jax.grad(jax.grad(loss)),
            "vmap of grad": jax.vmap(jax.grad(loss)),
        }
        factors = np.array([1.3, 1.2], np.float32) if "vmap" in order else 1.3
        return jax.jit(around[order])(factors)

    with jax.checking_leaks():
        got = of(by_blocks)
    close(got, of(as_a_whole))
