"""Derivatives up to the third, in several nestings of the two modes."""

import jax
import jax.numpy as jnp


def nested(total, differentiated, along):
    """Value, gradient, its product with the Hessian in three nestings, and a third derivative."""

    def gradient(differentiated):
        return jax.jvp(total, (differentiated,), (along,))[1]

    twice = jax.grad(gradient)
    return (
        jax.value_and_grad(total)(differentiated),
        twice(differentiated),
        jax.jvp(jax.grad(total), (differentiated,), (along,))[1],
        jax.grad(lambda differentiated: sum_of(jax.grad(total)(differentiated), along))(
            differentiated
        ),
        jax.grad(lambda differentiated: sum_of(twice(differentiated), along))(differentiated),
    )


def sum_of(a, b):
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))
