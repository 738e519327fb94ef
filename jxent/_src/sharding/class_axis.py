"""Where the classes are: an axis of the logits, which `shard_map` may split over chips."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core.blocks import Block
from jxent._src.core.elementary import largest_id
from jxent._src.core.kernel import Transposed
from jxent._src.sharding import explicit, varying


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

    def count(self, x: Array | Transposed) -> int:
        """The number of all classes."""
        return self.width(x) * (1 if self.name is None else jax.lax.axis_size(self.name))

    def iota(self, x: Array) -> Array:
        """The number of each class, in the shape of `x`."""
        numbers = jax.lax.broadcasted_iota(
            jnp.int32, x.shape, self.index % x.ndim, out_sharding=explicit.explicit_sharding(x)
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

    def width(self, x: Array | Transposed) -> int:
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
        return self.name is None and not explicit.is_split(x) and self.index == -1


def match_all_varying(classes: ClassAxis | None, arrays: Any) -> Any:
    """The same tree, all arrays varying over the same axes of a surrounding `shard_map`.

    Implementations for several platforms must agree on the axes that their results vary over, and
    so must the rounds of a scan, whatever mix of arrays each of them reads. Not over the axis that
    splits the classes: labels, weights and losses are the same on all of its chips.
    """
    name = None if classes is None else classes.name
    split = set(name) if isinstance(name, tuple) else {name}
    leaves = jax.tree.leaves(arrays)
    return varying.varying_over(
        arrays, {axis for x in leaves for axis in varying.varying_axes_of(x)} - split, jnp.generic
    )
