"""A user's losses by blocks of rows, the same by a projection's own function, and their data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jxent
from jxent import losses

N, D, C = 10, 4, 6
EACH = jxent.sparse_softmax_cross_entropy_with_logits
BLOCKS = losses.blockwise


def data(dtype=np.float32, rows=N, features=D, classes=C):
    rng = np.random.default_rng(0)
    return {
        "x": jnp.asarray(rng.normal(size=(rows, features)), dtype),
        "kernel": jnp.asarray(rng.normal(size=(features, classes)), dtype),
        "scale": jnp.asarray(1.3, dtype),
        "y": jnp.asarray(rng.integers(0, classes, rows)),
        "weights": jnp.asarray(np.resize([1, 2, 0, 1, 0.5, 0], rows), dtype),
    }


def loss_fn(params, row):
    """A head in a user's code: a scaled kernel."""
    logits = jxent.linear_logits(inputs=row["x"], kernel=params["kernel"] * params["scale"])
    return EACH(labels=row["y"], logits=logits, z_loss=0.1)


def by_blocks(differentiated, y, **options):
    params = {
        "kernel": differentiated["kernel"],
        "scale": differentiated["scale"],
        "step": jnp.int32(3),
    }
    weights = differentiated.get("weights", 1.0)
    rows = {"x": differentiated["x"], "y": y}
    return BLOCKS(loss_fn, params, rows, block_size=4, weights=weights, **options)


def by_projection(differentiated, y, **options):
    return losses.linear_sparse_softmax_cross_entropy(
        y,
        differentiated["x"],
        differentiated["kernel"] * differentiated["scale"],
        weights=differentiated.get("weights", 1.0),
        z_loss=0.1, **options,
    )  # fmt: skip


def normed(kernel, row):
    """NaN for a row of zeros, with its derivatives."""
    x = row["x"] / jnp.linalg.norm(row["x"], axis=-1, keepdims=True)
    return EACH(labels=row["y"], logits=x @ kernel)


def close(got, wanted, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), got, wanted)


def all_orders(loss, differentiated):
    """Value, gradient, its derivatives both ways, and a third one."""
    gradient = jax.grad(loss)

    def along(differentiated):
        return jax.jvp(gradient, (differentiated,), (differentiated,))[1]

    def back(function):
        return jax.vjp(function, differentiated)[1](differentiated)[0]

    return (
        loss(differentiated),
        gradient(differentiated),
        along(differentiated),
        back(gradient),
        back(along),
    )
