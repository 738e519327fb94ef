"""Where classes and examples are split.

The classes may be split over the chips of a mesh axis, by `shard_map`. Under explicit sharding a
mesh's axes are part of an array's type: there JAX wants to be told how the results are split that
it cannot infer. On all other meshes, and without one, the functions of explicit sharding give
None: nothing is asked for.
"""

from collections.abc import Hashable, Set
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from jxent._src.core.blocks import Block
from jxent._src.core.elementary import largest_id
from jxent._src.core.kernel import Transposed
from jxent._src.core.versions import varying_axes


@dataclass(frozen=True)
class ClassAxis:
    """Where the classes are: an axis of the logits, and under `shard_map` the mesh axis `name`.

    The axis is counted from the end, as `vmap` and blocks add axes in front; None where nothing is
    reduced over the classes.
    With a name each chip holds a part of the classes, of equal width, in the order of the chips;
    whatever is reduced over the classes is then reduced over the chips as well.
    """

    axis: int | tuple[int, ...] | None
    name: Hashable | None = None

    @property
    def index(self) -> int:
        """The axis, where it is one."""
        assert isinstance(self.axis, int)
        return self.axis

    def sum(self, x: Array) -> Array:
        """The sum over all classes; the axis is kept, of size 1."""
        return self.psum(jnp.sum(x, self.axis, keepdims=True))

    def total(self, x: Array) -> Array:
        """The sum over all classes, without the axis."""
        return self.psum(jnp.sum(x, self.axis))

    def psum(self, x: Array) -> Array:
        """The sum over the chips of what each has summed over its own classes."""
        return x if self.name is None else jax.lax.psum(x, self.name)

    def max(self, x: Array) -> Array:
        """The maximum over all classes; the axis is kept, of size 1. It has no derivative."""
        top = jnp.max(x, self.axis, keepdims=True)
        return top if self.name is None else jax.lax.pmax(top, self.name)

    def min(self, x: Array) -> Array:
        """The minimum over all classes; the axis is kept, of size 1. It has no derivative."""
        least = jnp.min(x, self.axis, keepdims=True)
        return least if self.name is None else jax.lax.pmin(least, self.name)

    def replicated(self, x: Array) -> Array:
        """`x`, which all chips have, in a type that says so. It has no derivative."""
        return x if self.name is None else jax.lax.pmax(x, self.name)

    def expand(self, x: Array) -> Array:
        """`x` without the axis, with it: of size 1."""
        assert self.axis is not None
        return jnp.expand_dims(x, self.axis)

    def count(self, x: Array) -> int:
        """The number of all classes."""
        return self.width(x) * (1 if self.name is None else jax.lax.axis_size(self.name))

    def iota(self, x: Array) -> Array:
        """The number of each class, in the shape of `x`."""
        numbers = jax.lax.broadcasted_iota(
            jnp.int32, x.shape, self.index % x.ndim, out_sharding=explicit_sharding(x)
        )
        if self.name is None:
            return numbers
        return numbers + jax.lax.axis_index(self.name) * self.width(x)

    def contains(self, labels: Array, x: Array) -> Array:
        """Whether each example's id is one of all classes; the axis is kept, of size 1."""
        # In the ids' own dtype: a cast to int32 first would fold large ids into the range.
        ids = jnp.expand_dims(labels, self.index)
        return (ids >= 0) & (ids <= largest_id(ids.dtype, self.count(x)))

    def ids(self, labels: Array, x: Array) -> Array:
        """The ids with the axis of the classes, those out of range replaced by ones in range."""
        ids = jnp.clip(labels, 0, largest_id(labels.dtype, self.count(x)))
        return jnp.expand_dims(ids.astype(jnp.int32), self.index)

    def width(self, x: Array) -> int:
        """The number of the classes that this chip holds."""
        return x.shape[self.index]

    def local_ids(self, block: Block, ids: Array) -> Array:
        """Places of ids in a block of the classes that this chip holds, -1 for all others.

        An id out of range is out of range in every block.
        """
        classes = block.cut.classes
        first: int | Array = 0
        if self.name is not None:
            first = jax.lax.axis_index(self.name) * classes
            classes *= jax.lax.axis_size(self.name)
        # What a cast folds into the range is out of it.
        places = block.local_ids(jnp.where(ids < 0, -1, ids).astype(jnp.int32) - first)
        return jnp.where(ids <= largest_id(ids.dtype, classes), places, block.size)

    def are_last(self, x: Array) -> bool:
        """Whether the classes are the last axis of `x`, not known to be split."""
        return self.name is None and not is_split(x) and self.index == -1


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


def match_all_varying(classes: ClassAxis | None, arrays: Any) -> Any:
    """The same tree, all arrays varying over the same axes of a surrounding `shard_map`.

    Implementations for several platforms must agree on the axes that their results vary over, and
    so must the rounds of a scan, whatever mix of arrays each of them reads. Not over the axis that
    splits the classes: labels, weights and losses are the same on all of its chips.
    """
    name = None if classes is None else classes.name
    split = set(name) if isinstance(name, tuple) else {name}
    leaves = jax.tree.leaves(arrays)
    return varying(
        arrays, {axis for x in leaves for axis in varying_axes_of(x)} - split, jnp.generic
    )


def match_varying(arrays: Any, integers: bool = False) -> Any:
    """The same tree, its floating arrays varying over the same axes of a surrounding `shard_map`.

    `integers`: these too.

    An array that is the same on all chips has the sum of the chips' derivatives as its own, and
    JAX takes that sum where such an array meets one that varies: here, once, not in every block.
    """
    kind = jnp.number if integers else jnp.floating
    leaves = [x for x in jax.tree.leaves(arrays) if jnp.issubdtype(x.dtype, kind)]
    return varying(arrays, {axis for x in leaves for axis in varying_axes_of(x)}, kind)


def varying(arrays: Any, axes: Set[Any], kind: Any = jnp.floating) -> Any:
    """The same tree, its arrays of this kind, or these, varying over these axes at least."""
    kinds = kind if isinstance(kind, tuple) else (kind,)

    def over_axes(x: Array) -> Array:
        is_of_kind = any(jnp.issubdtype(x.dtype, kind) for kind in kinds)
        missing = tuple(axes - varying_axes_of(x)) if is_of_kind else ()
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(over_axes, arrays)
