"""Blocks of examples and of classes: how arrays are cut into them and put together again.

Block k of examples takes the examples k, k + K, k + 2 K, ...: strided, so that under automatic
sharding every block stays evenly split over the chips that the examples are split over. Blocks of
classes are cut out of as many runs of classes as there are chips, for the same reason.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from jxent._src.core.kernel import Transposed


class BlockSizes(NamedTuple):
    """What the caller says of the blocks, None for what is left to us."""

    examples: int | None
    classes: int | None


BY_SHAPE = BlockSizes(None, None)


class ExampleBlocks(NamedTuple):
    """How examples are cut: `number` blocks of `size`; the last places may be filled up."""

    number: int
    size: int

    def is_ragged(self, examples: int) -> bool:
        """Whether places are filled up."""
        return self.number * self.size != examples

    def to_blocks(self, x: Array) -> Array:
        """`[examples, ...]` as `[number, size, ...]`, strided; zeros fill the last places."""
        number, size = self
        if self.is_ragged(x.shape[0]):
            more = number * size - x.shape[0]
            if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # a random key is never 0
                x = jnp.concatenate([x, jnp.broadcast_to(x[:1], (more, *x.shape[1:]))])
            else:
                x = jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1))
        return jnp.swapaxes(x.reshape(size, number, *x.shape[1:]), 0, 1)

    def from_blocks(self, examples: int, x: Array) -> Array:
        """The inverse: drops what was filled in."""
        rows = jnp.swapaxes(x, 0, 1).reshape(self.number * self.size, *x.shape[2:])
        # Not `rows[:examples]`: outside of `jit` a gather, which explicit sharding refuses.
        return jax.lax.slice_in_dim(rows, 0, examples) if self.is_ragged(examples) else rows

    def each(self, block: Callable[[Any], Any], examples: int, rows: Any) -> Any:
        """What each row has, of all of them: a tree of arrays, computed one block at a time."""
        of_rows, _, _ = self.over(lambda rows: (block(rows), None, None), examples, rows, None)
        return of_rows

    def over(
        self, block: Callable[[Any], tuple[Any, Any, Any]], examples: int, rows: Any, sums: Any
    ) -> tuple[Any, Any, Any]:
        """What each block of rows gives, one block at a time.

        A block gives trees of what each of its rows has, which come back for all of them; of what
        is added up afterwards; and of what all rows share, which each block adds to `sums`.
        """

        def step(sums: Any, rows: Any) -> tuple[Any, Any]:
            of_rows, of_block, of_shared = block(rows)
            sums = jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, of_shared)
            return sums, (of_rows, of_block)

        sums, (of_rows, of_blocks) = jax.lax.scan(step, sums, jax.tree.map(self.to_blocks, rows))
        of_rows = jax.tree.map(partial(self.from_blocks, examples), of_rows)
        return of_rows, jax.tree.map(lambda x: jnp.sum(x, 0), of_blocks), sums


class ClassBlocks(NamedTuple):
    """How classes are cut: `runs` of equal length, and a block takes `width` classes of each.

    With one run blocks are slices. Where the classes may be split over a mesh there is a run for
    each chip: every block then lies evenly over the chips, and none is moved to be multiplied.
    """

    classes: int
    runs: int
    width: int

    @property
    def length(self) -> int:
        """The classes of a run."""
        return self.classes // self.runs

    @property
    def number(self) -> int:
        """The blocks of full width."""
        return self.length // self.width

    @property
    def numbers(self) -> Array:
        """The numbers of these blocks, from 0."""
        return jnp.arange(self.number, dtype=jnp.int32)

    @property
    def remainder(self) -> int:
        """The width of the last block, which is narrower, or 0."""
        return self.length % self.width

    def scan(
        self, step: Callable[["Block", Any, Any], Any], carry: Any, columns: Any = None
    ) -> Any:
        """What `carry = step(block, carry, columns of the block)` leaves after all blocks.

        `columns`: a dictionary of arrays `[..., classes]`, cut before the scan, so that a transpose
        writes each of their blocks once.
        """
        cut = {name: self.stacked(x) for name, x in (columns or {}).items()}

        def body(carry: Any, own: Any) -> tuple[Any, None]:
            number, columns = own
            return step(Block(self, self.width, number), carry, columns), None

        full = {name: blocks for name, (blocks, _) in cut.items()}
        carry, _ = jax.lax.scan(body, carry, (self.numbers, full))
        if self.remainder:
            last = {name: rest for name, (_, rest) in cut.items()}
            carry = step(Block(self, self.remainder, self.number), carry, last)
        return carry

    def stacked(self, x: Any) -> tuple[Any, Any]:
        """`[..., classes]` as the full blocks `[number, ..., classes of a block]`, and the rest."""
        if isinstance(x, Transposed):
            full, rest = self._stacked(x.table, x.table.shape[1:])
            return Transposed(full), Transposed(rest)
        return self._stacked(x)

    def _stacked(self, x: Array, after: tuple[int, ...] = ()) -> tuple[Array, Array]:
        """`after`: the shape of the axes that follow the classes, here and below."""
        lead = x.shape[: x.ndim - 1 - len(after)]
        runs = x.reshape(*lead, self.runs, self.length, *after)
        axis, full = len(lead) + 1, self.number * self.width
        blocks = jax.lax.slice_in_dim(runs, 0, full, axis=axis)
        blocks = blocks.reshape(*lead, self.runs, self.number, self.width, *after)
        blocks = jnp.moveaxis(blocks, axis, 0)
        blocks = blocks.reshape(self.number, *lead, self.runs * self.width, *after)
        rest = jax.lax.slice_in_dim(runs, full, self.length, axis=axis)
        return blocks, rest.reshape(*lead, self.runs * self.remainder, *after)


class BlockCandidates(NamedTuple):
    """The cuts that the shapes allow, where the caller leaves it to the platform."""

    examples: ExampleBlocks
    classes: ClassBlocks | None


AnyBlocks = ExampleBlocks | ClassBlocks | BlockCandidates


class Block(NamedTuple):
    """A block of classes: that with this number, `width` classes of each run."""

    cut: ClassBlocks
    width: int
    number: int | Array

    @property
    def start(self) -> int | Array:
        """Its first class in each run."""
        return self.number * self.cut.width

    @property
    def size(self) -> int:
        """The number of its classes."""
        return self.cut.runs * self.width

    def of(self, x: Any) -> Any:
        """`[..., classes]` for the classes of this block."""
        if isinstance(x, Transposed):
            return Transposed(self._of(x.table, x.table.shape[1:]))
        return self._of(x)

    def put(self, whole: Any, x: Any) -> Any:
        """`whole` `[..., classes]` with `x` in the place of this block's classes."""
        if isinstance(whole, Transposed):
            return Transposed(self._put(whole.table, x.table, x.table.shape[1:]))
        return self._put(whole, x)

    def _of(self, x: Array, after: tuple[int, ...] = ()) -> Array:
        lead, axis = x.shape[: x.ndim - 1 - len(after)], -1 - len(after)
        runs = x.reshape(*lead, self.cut.runs, self.cut.length, *after)
        own: Array = jax.lax.dynamic_slice_in_dim(runs, self.start, self.width, axis)
        return own.reshape(*lead, self.size, *after)

    def _put(self, whole: Array, x: Array, after: tuple[int, ...] = ()) -> Array:
        lead, axis = x.shape[: x.ndim - 1 - len(after)], -1 - len(after)
        runs = whole.reshape(*lead, self.cut.runs, self.cut.length, *after)
        own = x.reshape(*lead, self.cut.runs, self.width, *after).astype(whole.dtype)
        runs = jax.lax.dynamic_update_slice_in_dim(runs, own, self.start, axis)
        return runs.reshape(whole.shape)

    def local_ids(self, ids: Integer[Array, "..."]) -> Integer[Array, "..."]:
        """Where class ids stand in this block, -1 for those that do not."""
        run, place = jnp.divmod(ids, self.cut.length)
        place -= self.start
        inside = (ids >= 0) & (ids < self.cut.classes) & (place >= 0) & (place < self.width)
        return jnp.where(inside, run * self.width + place, -1)
