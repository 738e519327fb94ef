"""The axis of the classes, which may be split over the chips of a mesh axis."""

from collections.abc import Hashable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent import _explicit


@dataclass(frozen=True)
class Classes:
    """Where the classes are: an axis of the logits, and under `shard_map` the mesh axis `name`.

    The axis is counted from the end, as `vmap` and blocks add axes in front.
    With a name each chip holds a part of the classes, of equal width, in the order of the chips;
    whatever is reduced over the classes is then reduced over the chips as well.
    """

    axis: int | tuple[int, ...]
    name: Hashable | None = None

    @property
    def _one(self) -> int:
        assert isinstance(self.axis, int)
        return self.axis

    def sum(self, x: Array) -> Array:
        """The sum over all classes; the axis is kept, of size 1."""
        return self.across(jnp.sum(x, self.axis, keepdims=True))

    def total(self, x: Array) -> Array:
        """The sum over all classes, without the axis."""
        return self.across(jnp.sum(x, self.axis))

    def across(self, x: Array) -> Array:
        """The sum over the chips of what each has summed over its own classes."""
        return x if self.name is None else jax.lax.psum(x, self.name)

    def max(self, x: Array) -> Array:
        """The maximum over all classes; the axis is kept, of size 1. It has no derivative."""
        top = jnp.max(x, self.axis, keepdims=True)
        return top if self.name is None else jax.lax.pmax(top, self.name)

    def count(self, x: Array) -> int:
        """The number of all classes."""
        return self.width(x) * (1 if self.name is None else jax.lax.axis_size(self.name))

    def numbers(self, x: Array) -> Array:
        """The number of each class, in the shape of `x`."""
        numbers = jax.lax.broadcasted_iota(
            jnp.int32, x.shape, self._one % x.ndim, out_sharding=_explicit.split_of(x)
        )
        if self.name is None:
            return numbers
        return numbers + jax.lax.axis_index(self.name) * self.width(x)

    def width(self, x: Array) -> int:
        """The number of the classes that this chip holds."""
        return x.shape[self._one]

    def are_last(self, x: Array) -> bool:
        """Whether the classes are the last axis of `x`, not known to be split."""
        return self.name is None and not _explicit.is_split(x) and self._one == -1
