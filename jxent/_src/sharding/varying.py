"""Which axes of a surrounding `shard_map` arrays vary over."""

from collections.abc import Hashable, Set
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core.versions import varying_axes


def varying_axes_of(x: Array) -> frozenset[Any]:
    """The axes of a surrounding `shard_map` that an array varies over."""
    return varying_axes(x)


def varies_otherwise(x: Array, y: Array) -> bool:
    """Whether two arrays vary over different axes."""
    return varying_axes_of(x) != varying_axes_of(y)


def is_unchecked(axis: Hashable) -> bool:
    """Whether a bound axis is one for which JAX does not track what varies over it.

    As under `shard_map(check_vma=False)`, where the transpose of a sum over chips is again one.
    """
    return not varying_axes_of(jax.lax.axis_index(axis))


def sum_to_varying_of(like: Array, x: Array) -> Array:
    """`x`, summed over the axes of a surrounding `shard_map` that `like` does not vary over."""
    more = tuple(varying_axes_of(x) - varying_axes_of(like))
    return jax.lax.psum(x, more) if more else x


def match_varying(arrays: Any, integers: bool = False) -> Any:
    """The same tree, its floating arrays varying over the same axes of a surrounding `shard_map`.

    `integers`: these too.

    An array that is the same on all chips has the sum of the chips' derivatives as its own, and
    JAX takes that sum where such an array meets one that varies: here, once, not in every block.
    """
    kind = jnp.number if integers else jnp.floating
    leaves = [x for x in jax.tree.leaves(arrays) if jnp.issubdtype(x.dtype, kind)]
    return varying_over(arrays, {axis for x in leaves for axis in varying_axes_of(x)}, kind)


def varying_over(arrays: Any, axes: Set[Any], kind: Any = jnp.floating) -> Any:
    """The same tree, its arrays of this kind, or these, varying over these axes at least."""
    kinds = kind if isinstance(kind, tuple) else (kind,)

    def over_axes(x: Array) -> Array:
        is_of_kind = any(jnp.issubdtype(x.dtype, kind) for kind in kinds)
        missing = tuple(axes - varying_axes_of(x)) if is_of_kind else ()
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(over_axes, arrays)
