"""Derivatives up to the third, in several nestings of the two modes."""

import jax
import jax.numpy as jnp


def nested(total, moving, along):
    """Value, gradient, its product with the Hessian in three nestings, and a third derivative."""

    def slope(moving):
        return jax.jvp(total, (moving,), (along,))[1]

    twice = jax.grad(slope)
    return (
        jax.value_and_grad(total)(moving),
        twice(moving),
        jax.jvp(jax.grad(total), (moving,), (along,))[1],
        jax.grad(lambda moving: sum_of(jax.grad(total)(moving), along))(moving),
        jax.grad(lambda moving: sum_of(twice(moving), along))(moving),
    )


def sum_of(a, b):
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))
