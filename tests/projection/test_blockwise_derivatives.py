"""A user's losses by blocks of rows have the derivatives of a projection's own functions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses
from tests.compile_options import quick
from tests.projection.blockwise import C, D, all_orders, by_blocks, by_projection, close, data


@pytest.mark.parametrize("reduction", [r.value for r in losses.Reduction])
@pytest.mark.parametrize("differentiated", ["all", "without weights", "weights alone"])
@pytest.mark.long
def test_every_derivative_is_the_projections(reduction, differentiated):
    """Of ragged blocks, rows of weight 0 and their weights' slopes among them."""
    with jax.enable_x64(True):
        arrays = data(np.float64)
        y = arrays.pop("y")
        fixed = {}
        if differentiated == "without weights":
            fixed = {"weights": arrays.pop("weights")}
        elif differentiated == "weights alone":
            fixed, arrays = arrays, {"weights": arrays.pop("weights")}

        def of(function):
            def loss(differentiated):
                return jnp.sum(
                    jnp.sin(function({**differentiated, **fixed}, y, reduction=reduction))
                )

            return quick(partial(all_orders, loss))(arrays)

        close(of(by_blocks), of(by_projection), rtol=1e-10, atol=1e-10)


@pytest.mark.long
def test_a_weight_that_moves_only_in_the_last_derivative():
    """The row that stands for one of weight 0 must not lend it its slope."""
    with jax.enable_x64(True):
        arrays = data(np.float64)
        y = arrays["y"]

        def of(function, reduction):
            def loss(kernel, weights):
                given = {**arrays, "kernel": kernel, "weights": weights}
                return jnp.sum(function(given, y, reduction=reduction))

            def along(kernel, weights):
                gradient = partial(jax.grad(loss), weights=weights)
                return jax.jvp(gradient, (kernel,), (jnp.cos(kernel),))[1]

            def last(kernel, weights):
                return jax.grad(lambda w: jnp.sum(jnp.sin(along(kernel, w))))(weights)

            return quick(last)(arrays["kernel"], arrays["weights"])

        for reduction in ("weighted_sum", "none"):
            got, wanted = (of(f, reduction) for f in (by_blocks, by_projection))
            assert np.all(wanted != 0)
            close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", [1, 7, 8])
@pytest.mark.long
def test_vmap_is_a_loop(rows):
    arrays = data(rows=rows)
    y = arrays.pop("y")
    batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), arrays)
    batch["weights"] = batch["weights"] ** 2
    step = jax.value_and_grad(partial(by_blocks, y=y))
    got = jax.jit(jax.vmap(step))(batch)
    each = [step(jax.tree.map(lambda x, i=i: x[i], batch)) for i in range(3)]
    close(got, jax.tree.map(lambda *x: jnp.stack(x), *each), rtol=2e-5, atol=1e-6)


def test_logits_are_those_of_the_products():
    arrays = data()
    bias = jnp.arange(C, dtype=jnp.float32)

    def of(function):
        def loss(x, kernel, bias):
            return jnp.sum(jnp.sin(function(x, kernel, bias)))

        differentiated = (arrays["x"].reshape(2, 5, D), arrays["kernel"], bias)
        return all_orders(lambda differentiated: loss(*differentiated), differentiated)

    got = of(lambda x, k, b: jxent.linear_logits(inputs=x, kernel=k, bias=b))
    close(got, of(lambda x, k, b: x @ k + b[None, None]), rtol=2e-5, atol=2e-5)
