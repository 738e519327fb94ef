"""What several files of this folder use: slopes of losses, parameters of the full suite."""

import jax
import jax.numpy as jnp
import pytest

PLAIN = "reference"


def rarely(values, often):
    """The parameters, of which those not in `often` are in the full suite."""
    return [pytest.param(v, marks=[] if v in often else [pytest.mark.long]) for v in values]


def value_and_gradient(function, x):
    value, pull = jax.vjp(function, jnp.asarray(x))
    return value, pull(jnp.ones_like(value))[0]
