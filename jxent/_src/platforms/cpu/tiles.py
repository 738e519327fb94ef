"""Long rows in pieces, and what is left out of one of them, for XLA:CPU."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core import hints
from jxent._src.platforms.cpu.fallback import gathered, is_unsharded, moved


class RowTiles(NamedTuple):
    """How rows are cut into pieces, the last of which may be shorter than the others.

    XLA:CPU works on whole rows, whose intermediate results then leave the cache: sums of pieces
    were measured 2 to 9 times as fast on long rows. And a sum that leaves one class out needs to
    look for it in one piece only.
    """

    length: int
    classes: int

    @property
    def remainder(self) -> int:
        """The length of the last one, if it is shorter."""
        return self.classes % self.length

    def cut(self, x: Array) -> Array:
        """What the functions below take: `[..., pieces, length]`, if all are of one length."""
        if self.remainder:
            return x
        # No -1: there may be no examples. The barrier keeps XLA from joining the pieces again.
        shape = (*x.shape[:-1], self.classes // self.length, self.length)
        pieces = hints.materialize(x.reshape(shape))
        return pieces

    def each(self, function: Callable[..., Array], x: Array, *rows: Array) -> Array:
        """`function` of every piece, which reduces the last axis: `[..., pieces]`.

        `rows`: what else it is given, `[..., 1]` of each row.
        """
        if not self.remainder:
            x, *own = hints.materialize((x, *rows))  # as in `unshared_upcast`
            found = function(x, *(row[..., None, :] for row in own))
            return hints.materialize(found)
        # A piece at a time: beside one another all of them would be stored.
        count = self.classes // self.length

        def of_piece(_: None, number: Array) -> tuple[None, Array]:
            whole, start = hints.unshared_in_loop(x, number * self.length)
            own = moved(lambda x: jax.lax.dynamic_slice_in_dim(x, start, self.length, -1), whole)
            return None, function(own, *rows)

        _, found = jax.lax.scan(of_piece, None, jnp.arange(count))
        last = function(jax.lax.slice_in_dim(x, count * self.length, None, axis=-1), *rows)
        return jnp.concatenate([jnp.moveaxis(found, 0, -1), last[..., None]], -1)

    def own(self, x: Array, which: Array, other: float) -> tuple[Array, Array]:
        """The piece number `which` `[..., 1]` of every row, and the class that it starts with.

        Before a shorter last one are classes of another, in whose place is `other`.
        """
        if not self.remainder:
            return gathered(x, which[..., None], -2)[..., 0, :], which * self.length
        start = jnp.minimum(which * self.length, self.classes - self.length)
        cut = partial(jax.lax.dynamic_slice_in_dim, slice_size=self.length)
        for _ in x.shape[:-1]:
            cut = jax.vmap(cut)
        own = moved(lambda x: cut(x, start[..., 0]), x)
        numbers = start + jax.lax.broadcasted_iota(start.dtype, own.shape, own.ndim - 1)
        return jnp.where(numbers < which * self.length, other, own), start


def row_tiles(x: Array) -> RowTiles | None:
    """How to cut rows on CPU: at a divisor of their width, near what its caches like.

    None for short rows, where a piece would be a large part of the row, and for those which have
    no such divisor; but in rows of more than 2^15 any pieces are worth it: whole, XLA:CPU takes
    about ten times as long for them. None, too, where the rows may be split.
    """
    classes = x.shape[-1]
    if not is_unsharded(x):
        return None
    longest = classes // 10 if classes <= 2**15 else 2**12
    lengths = (n for n in range(2**6, longest + 1) if classes % n == 0)
    length = min(lengths, key=lambda n: (max(n, 2**9), -n), default=None)
    if length is None and classes > 2**15:
        length = 2**10
    return None if length is None else RowTiles(length, classes)


def sum_without(x: Array, which: Array) -> Array:
    """The sum along the last axis without element `which` `[..., 1]`."""
    numbers = jax.lax.broadcasted_iota(which.dtype, x.shape, x.ndim - 1)
    return jnp.sum(jnp.where(numbers == which, 0, x), -1, keepdims=True)


def first_place(x: Array, value: Array) -> Array:
    """The number `[..., 1]` of the first element of each row that equals `value`."""
    last = x.shape[-1] - 1
    numbers = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.min(jnp.where(x == value, numbers, last), -1, keepdims=True)
