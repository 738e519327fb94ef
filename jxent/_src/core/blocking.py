"""How the examples or the classes of a projection are cut into blocks.

Block k of examples takes the examples k, k + K, k + 2 K, ...: strided, so that under automatic
sharding every block stays evenly split over the chips that the examples are split over. Blocks of
classes are cut out of as many runs of classes as there are chips, for the same reason.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array, Integer

from jxent._src.core.kernel import Kernel, Transposed

# Elements of a block of logits that every shape may have: 128 MiB in float32.
_MAX_LOGITS = 2**25
_LANES = 128  # what the widest vector units work on at once


class BlockSizes(NamedTuple):
    """What the caller says of the blocks, None for what is left to us."""

    examples: int | None
    classes: int | None


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


def chips_of(rows: Array) -> int:
    """How many chips the first axis is split over explicitly.

    JAX cuts no block out of it whose size they do not divide.
    """
    sharding = jax.typeof(rows).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types or not sharding.spec:
        return 1
    names = sharding.spec[0]
    names = names if isinstance(names, tuple) else (names,)
    return math.prod(sharding.mesh.shape[name] for name in names if name is not None)


def cut(
    examples: int, kernel: tuple[int, ...], block_size: int | None, chips: int = 1
) -> ExampleBlocks:
    """The blocks to cut the examples into. `chips`: see `chips_of`.

    By default a block has 2^25 logits, but at least half as many examples as there are features:
    adding to d/d kernel reads and writes it once a block, and fewer examples a block would leave
    the products waiting for that. Blocks are evened out, unless the examples' number is a symbol
    (`jax.export`).
    """
    features, classes = kernel
    if block_size is None:
        block_size = max(_MAX_LOGITS // classes, features // 2, 8)
        block_size -= block_size % 128 if block_size > 128 else 0
    return balanced(examples, block_size, chips)


def balanced(examples: int, block_size: int, chips: int = 1) -> ExampleBlocks:
    """Blocks of this size at most, alike, unless the examples' number is a symbol.

    A size is a multiple of the chips that the examples are split over explicitly, see `chips_of`.
    """
    block_size = max(block_size - block_size % chips, chips)
    number = -(-examples // block_size)
    if not isinstance(examples, int):
        return ExampleBlocks(number, block_size)
    number = max(1, number)
    return ExampleBlocks(number, _rounded_up(-(-examples // number), chips))


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def grown(blocks: ExampleBlocks, examples: int, fewest: int, chips: int = 1) -> ExampleBlocks:
    """Blocks of `fewest` examples at least, where there are as many; if it can be, none filled up.

    Unchanged where they are as large, or the examples' number is a symbol.
    """
    if not isinstance(examples, int) or blocks.size >= min(fewest, examples):
        return blocks
    most = max(1, examples // fewest)
    number = next((n for n in range(most, most // 2, -1) if examples % n == 0), most)
    return ExampleBlocks(number, _rounded_up(-(-examples // number), chips))


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
        """Those of these blocks."""
        return jnp.arange(self.number, dtype=jnp.int32)

    @property
    def rest(self) -> int:
        """The width of the last block, which is narrower, or 0."""
        return self.length % self.width

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
        return blocks, rest.reshape(*lead, self.runs * self.rest, *after)


class BlockCandidates(NamedTuple):
    """The cuts that the shapes allow, where the caller leaves it to the platform."""

    examples: ExampleBlocks
    classes: ClassBlocks | None


AnyBlocks = ExampleBlocks | ClassBlocks | BlockCandidates


def of_examples(blocks: AnyBlocks, inputs: Array, kernel: Kernel) -> ExampleBlocks:
    """Blocks of examples, for what is not computed a block of classes at a time."""
    if isinstance(blocks, BlockCandidates):
        return blocks.examples
    if isinstance(blocks, ClassBlocks):
        return cut(inputs.shape[0], kernel.shape, None, chips_of(inputs))
    return blocks


def for_tangents(blocks: AnyBlocks, inputs: Array, kernel: Kernel) -> ExampleBlocks:
    """Blocks of examples for the sweep's own derivatives, which hold tangents beside the logits.

    By default of half the size, for the same memory.
    """
    of_rows = of_examples(blocks, inputs, kernel)
    if isinstance(blocks, ExampleBlocks) or of_rows.number == 1:
        return of_rows
    return balanced(inputs.shape[0], -(-of_rows.size // 2), chips_of(inputs))


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


# Classes per block and feature. Fewer make small products, and each block reads and writes the
# gradient of the inputs, to which it adds: below this, that takes most of the traffic.
_PER_FEATURE = 4
# The logits of a block may always have a sixth of the kernel's elements.
_PART = 6
# At least so many, and the logits of a block that every shape may have: on one chip, and on each
# chip of a mesh, where sums cross the chips in every block.
_ALONE, _ON_A_MESH = (1024, 3 * _MAX_LOGITS), (8192, _MAX_LOGITS // 2)


def class_blocks(
    examples: int, kernel: tuple[int, ...], runs: int, class_block_size: int | None
) -> ClassBlocks:
    """The blocks to cut the classes into, of `runs` equal runs.

    By default a block has 4 classes a feature of each run, within the limits above; however a mesh
    splits examples and classes, that is what a chip has of them.
    """
    features, classes = kernel
    length = classes // runs
    if class_block_size is not None:
        return ClassBlocks(classes, runs, min(-(-class_block_size // runs), length))
    fewest, max_logits = _ALONE if runs == 1 else _ON_A_MESH
    size = max(fewest, _PER_FEATURE * features)
    if isinstance(examples, int) and examples:
        size = max(size, features * classes // (_PART * examples))
        size = min(size, max(max_logits // examples, _LANES))
    return ClassBlocks(classes, runs, min(-(-size // _LANES) * _LANES, length))


class Chip(NamedTuple):
    """What decides between blocks of classes and of examples."""

    balance: float  # FLOP that it computes in the time that it moves a byte
    fast: int  # bytes of its fast memory that a loop may keep its arrays in


def bytes_by_examples(chip: Chip, blocks: ExampleBlocks, inputs: Array, kernel: Kernel) -> float:
    """What value and both gradients of a projection move, of exclusive classes.

    A block reads the kernel twice. It adds to the kernel's gradient in float32, which is narrowed
    at last, and stores its logits once and reads them three times: unless fast memory keeps them.
    The only block writes the gradient as it shall be.
    """
    (examples, features), classes = inputs.shape, kernel.shape[1]
    size, written = inputs.dtype.itemsize, kernel.dtype.itemsize
    moved, fast = 2.0 * size * features * classes * blocks.number, chip.fast
    if blocks.number == 1:
        moved += written * features * classes
    elif 4 * features * classes > fast:
        moved += features * classes * (8 * blocks.number + (4 + written) * (written < 4))
    else:
        fast -= 4 * features * classes
    if 4 * blocks.size * classes > fast:
        moved += 16 * examples * classes
    return moved


def bytes_by_classes(chip: Chip, blocks: ClassBlocks, inputs: Array, kernel: Kernel) -> float:
    """The same by blocks of classes, where the statistics take one pass and store no logits.

    The kernel is read three times and its gradient written. Each block reads the inputs twice and
    adds to their gradient in float32, and its slopes are stored once and read twice: unless fast
    memory keeps them.
    """
    (examples, features), classes = inputs.shape, kernel.shape[1]
    size, written = inputs.dtype.itemsize, kernel.dtype.itemsize
    moved, fast = (3.0 * size + written) * features * classes, chip.fast
    of_inputs = examples * features * (4 + size)
    if of_inputs > fast:
        moved += (blocks.number + bool(blocks.rest)) * examples * features * (8 + 2 * size)
    else:
        fast -= of_inputs
    if size * examples * blocks.width * blocks.runs > fast:
        moved += 3 * size * examples * classes
    return moved


def prefer_class_blocks(
    chip: Chip, blocks: BlockCandidates, inputs: Array, kernel: Kernel, products: int
) -> bool:
    """Whether blocks of classes take less time, with so many more products, than of examples.

    As if products and traffic never overlapped.
    """
    if blocks.classes is None:
        return False
    more = products * 2 * inputs.shape[0] * kernel.size / chip.balance
    by_examples = bytes_by_examples(chip, blocks.examples, inputs, kernel)
    return bytes_by_classes(chip, blocks.classes, inputs, kernel) + more < by_examples


def flat(labels: Any, inputs: Array) -> tuple[Any, Array]:
    """Labels, an array or a tree of them, and inputs with one axis of examples."""
    batch = inputs.shape[:-1]
    examples = math.prod(batch)

    def rows(x: Array) -> Array:
        return x.reshape(examples, *x.shape[len(batch) :])

    return jax.tree.map(rows, labels), rows(inputs)
