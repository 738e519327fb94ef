"""Explicit sharding: meshes whose axes are part of an array's type.

There JAX wants to be told how the results are split that it cannot infer. On all other meshes, and
without one, the functions below give None: nothing is asked for.
"""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array


def split_of(x: Array) -> NamedSharding | None:
    """How `x` is split."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def is_split(x: Array) -> bool:
    """Whether some axis of `x` is split explicitly."""
    return split_of(x) is not None and any(axis is not None for axis in jax.typeof(x).sharding.spec)


def split_of_product(rows: Array, columns: Array) -> NamedSharding | None:
    """How `rows @ columns` is split: like the rows of the one and the columns of the other."""
    sharding = split_of(rows)
    if sharding is None:
        return None
    spec = PartitionSpec(sharding.spec[0], jax.typeof(columns).sharding.spec[1])
    return NamedSharding(sharding.mesh, spec)


def filled(x: Array, like: Array) -> Array:
    """`x`, whose axes are of the size of those of `like` or 1, in its shape and split like it."""
    return jnp.broadcast_to(x, like.shape, out_sharding=split_of(like))
