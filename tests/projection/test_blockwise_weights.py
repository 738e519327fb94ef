"""Rows that do not count reach nothing, whatever stands in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.projection.blockwise import BLOCKS, D, by_blocks, close, data, normed


@pytest.mark.parametrize("reduction", ["weighted_mean", "none"])
@pytest.mark.parametrize("invalid", [0.0, np.nan, np.inf])
@pytest.mark.one_in(10)
def test_rows_that_do_not_count_reach_nothing(invalid, reduction):
    arrays = data()
    weights = arrays["weights"]
    rows = {"x": arrays["x"].at[weights == 0].set(invalid), "y": arrays["y"]}

    def loss(kernel, x, weights, y=rows["y"]):
        per_row = BLOCKS(
            normed, kernel, {"x": x, "y": y}, block_size=4, weights=weights, reduction=reduction
        )
        return jnp.sum(per_row)

    got = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(arrays["kernel"], rows["x"], weights)
    kept = weights != 0
    alone = jax.value_and_grad(loss, (0, 1, 2))(
        arrays["kernel"], rows["x"][kept], weights[kept], rows["y"][kept]
    )
    close(got[0], alone[0], rtol=1e-6)
    close(got[1][0], alone[1][0], rtol=1e-5, atol=1e-7)
    close(got[1][1][kept], alone[1][1], rtol=1e-5, atol=1e-7)
    assert not np.any(got[1][1][~kept])
    assert np.isfinite(got[1][2]).all()
    close(got[1][2][kept], alone[1][2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["weighted_mean", "none"])
@pytest.mark.one_in(2)
def test_debug_nans_takes_padding_for_what_it_is(reduction):
    arrays = data()
    weights = arrays["weights"] != 0
    x = arrays["x"].at[~weights].set(0)

    def loss(kernel, x):
        rows = {"x": x, "y": arrays["y"]}
        options = {"block_size": 4, "weights": weights, "reduction": reduction}
        return jnp.sum(BLOCKS(normed, kernel, rows, **options))

    with jax.debug_nans(True):
        found = jax.jit(jax.value_and_grad(loss, (0, 1)))(arrays["kernel"], x)
        jax.jit(jax.jvp, static_argnums=0)(
            jax.grad(loss), (arrays["kernel"], x), (arrays["kernel"], x)
        )
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(found))


@pytest.mark.parametrize("reduction", ["weighted_mean", "weighted_sum", "none"])
@pytest.mark.one_in(2)
def test_nothing_that_counts_is_0(reduction):
    x = jnp.full((5, D), jnp.nan)

    def loss(kernel, x):
        rows = {"x": x, "y": jnp.zeros(5, int)}
        weights = np.zeros(5, bool)
        return jnp.sum(
            BLOCKS(normed, kernel, rows, block_size=2, weights=weights, reduction=reduction)
        )

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(data()["kernel"], x)
    assert value == 0
    assert not any(map(np.any, gradients))


def test_no_rows():
    empty = {"x": jnp.zeros((0, D)), "y": jnp.zeros(0, int)}
    for weights in (1.0, jnp.zeros(0)):
        value, gradient = jax.value_and_grad(
            lambda kernel, w: BLOCKS(normed, kernel, empty, block_size=3, weights=w)
        )(data()["kernel"], weights)
        assert value == 0
        assert not np.any(gradient)


def test_a_loss_of_nan_that_counts_is_seen():
    arrays = data()
    arrays["x"] = arrays["x"].at[0].set(jnp.nan)
    y = arrays.pop("y")
    value, gradient = jax.value_and_grad(by_blocks)(arrays, y)
    assert np.isnan(value)
    assert np.isnan(gradient["kernel"]).all()
