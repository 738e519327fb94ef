"""How arrays are split under explicit sharding, where a mesh's axes are part of an array's type.

There JAX wants to be told how the results are split that it cannot infer. On all other meshes, and
without one, these functions give None: nothing is asked for.
"""

from math import prod

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from jxent._src.core.kernel import Transposed


def explicit_sharding(x: Array) -> NamedSharding | None:
    """How `x` is split."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def is_split(x: Array) -> bool:
    """Whether some axis of `x` is split explicitly."""
    return explicit_sharding(x) is not None and any(
        axis is not None for axis in jax.typeof(x).sharding.spec
    )


def num_class_shards(*arrays: Array | Transposed) -> int | None:
    """How many equal runs the classes, the last axis, are cut into so that chips hold whole ones.

    As many as chips that it may be split over: under automatic sharding nothing tells which mesh
    axes do. None where it is split explicitly, so that JAX cuts no blocks out of it.
    """
    runs = 1
    for x in arrays:
        axis, array = (0, x.table) if isinstance(x, Transposed) else (-1, x)
        sharding = jax.typeof(array).sharding
        split = explicit_sharding(array)
        if split is not None and split.spec and split.spec[axis] is not None:
            return None
        mesh = sharding.mesh
        automatic = [
            size
            for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
            if kind is AxisType.Auto
        ]
        runs = max(runs, prod(automatic))
    return runs


def matmul_sharding(rows: Array, columns: Array) -> NamedSharding | None:
    """How `rows @ columns` is split: like the rows of the one and the columns of the other."""
    sharding = explicit_sharding(rows)
    if sharding is None:
        return None
    spec = PartitionSpec(sharding.spec[0], jax.typeof(columns).sharding.spec[1])
    return NamedSharding(sharding.mesh, spec)


def broadcast_like(x: Array, like: Array) -> Array:
    """`x`, whose axes are of the size of those of `like` or 1, in its shape and split like it."""
    return jnp.broadcast_to(x, like.shape, out_sharding=explicit_sharding(like))


def broadcast_row_weights(x: Array, weights: Array) -> Array:
    """Weights, broadcast to one for each row of `x` `[*batch, n]` and split like these."""
    split = explicit_sharding(x)
    if split is None:
        return jnp.broadcast_to(weights, x.shape[:-1])
    rows = NamedSharding(split.mesh, PartitionSpec(*split.spec[:-1]))
    each = jnp.broadcast_to(weights, x.shape[:-1], out_sharding=rows)
    placed: Array = jax.sharding.reshard(each, rows)  # of the right shape they stayed as they were
    return placed


def row(number: Array, x: Array) -> Array:
    """One row of `x`, which all chips have that the rows are split over."""
    one: Array
    if not is_split(x):
        one = jax.lax.dynamic_index_in_dim(x, number, keepdims=False)
        return one
    numbers = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0, out_sharding=explicit_sharding(x))
    is_row = numbers == number.astype(numbers.dtype)  # wider where JAX is set to 64 bits
    one = jnp.sum(jnp.where(is_row, x, jnp.zeros_like(x)), 0, dtype=x.dtype)
    return one
