"""Implementations for XLA:CPU around a loss: weights, the order of a step, the inputs."""

import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core import hints
from jxent._src.core.dispatch import implements
from jxent._src.loss_fns import base


@implements(base.nonzero, "cpu", applies=lambda weights: weights.ndim > 0)
def _nonzero_without_comparison(weights: Array) -> Array:
    """A comparison would be stored before it is summed."""
    inverse, one = hints.unshared_constants(weights.dtype, 1 / jnp.finfo(weights.dtype).tiny, 1.0)
    return jnp.minimum(jnp.abs(weights) * inverse, one)


@implements(hints.ordering_zero, "cpu")
def _ordering_zero_on_cpu(values: Array) -> Array:
    """Else the logits are copied, and loss and gradient share a stored array."""
    info = jnp.finfo(values.dtype)
    return jnp.where(values < float(info.min), float(info.tiny), jnp.zeros_like(values))


@implements(hints.transpose, "cpu")
def _stored_transposed(inputs: Array) -> Array:
    """An array of its own.

    XLA:CPU would read the inputs across in the product, which then takes twice as long.
    """
    return hints.materialize(inputs.T)
