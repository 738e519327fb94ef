"""Dtypes: the one that losses compute in, and what an integer one can name."""

import jax.numpy as jnp
from jaxtyping import Array


def computing_dtype(dtype) -> jnp.dtype:
    """float32 for bfloat16, float16 and narrower; the dtype itself from float32 up.

    Decided from the number of bits: `jnp.promote_types` raises where a user has made dtype
    promotion strict.
    """
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def widen(x: Array) -> Array:
    """A floating array in the dtype that losses of it are computed in."""
    return x.astype(computing_dtype(x.dtype))


def largest_id(dtype, classes: int) -> int:
    """The last class that an id of this integer dtype can name."""
    return min(classes - 1, int(jnp.iinfo(dtype).max))
