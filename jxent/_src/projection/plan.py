"""Which blocks a projection is cut into, and what each choice would move.

What the caller says, or what shapes, mesh and platform ask for: the platforms choose between the
candidates with the functions of bytes below.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array

from jxent._src.core.blocks import (
    AnyBlocks,
    BlockCandidates,
    BlockSizes,
    ClassBlocks,
    ExampleBlocks,
)
from jxent._src.core.kernel import Kernel
from jxent._src.loss_fns.base import OfLogits
from jxent._src.loss_fns.excluded import labels_alone
from jxent._src.projection.matmuls import Operands
from jxent._src.sharding import explicit

# Elements of a block of logits that every shape may have: 128 MiB in float32.
_MAX_LOGITS = 2**25
_LANES = 128  # what the widest vector units work on at once


def blocks_of(loss_fn: OfLogits, sizes: BlockSizes, operands: Operands) -> AnyBlocks:
    """How the projection is cut: as the caller says, or as shapes and platform ask.

    Independent classes, whose losses need nothing of their example's other logits, are cut where
    there are more classes than examples. For exclusive ones it depends on the platform.
    """
    labels, inputs, kernel, bias, parameters = operands
    labels = labels_alone(labels)
    examples, classes = math.prod(inputs.shape[:-1]), kernel.shape[1]
    logits = 2 if loss_fn.has_teacher else 1  # the teacher's beside the student's
    shape = (kernel.shape[0], logits * classes)
    by_examples = cut(examples, shape, sizes.examples, chips_of(inputs))
    if sizes.examples:
        return by_examples
    fewer = isinstance(examples, int) and examples < classes
    by_classes = None
    if loss_fn.has_class_blocks and (sizes.classes or fewer):
        are_dense = isinstance(labels, jax.Array) and jnp.issubdtype(labels.dtype, jnp.floating)
        dense = labels if are_dense else None
        per_class = (x for x in (kernel, dense, bias, parameters) if x is not None and x.ndim)
        runs = explicit.num_class_shards(*per_class)
        if runs is not None:
            # Classes are split in equal parts, whose number divides theirs.
            runs = math.gcd(runs, classes)
            by_classes = class_blocks(examples, kernel.shape, runs, sizes.classes)
            if sizes.classes or loss_fn.classwise:
                return by_classes
        elif sizes.classes:
            raise ValueError(
                "class_block_size must be None where the classes are split explicitly, got "
                f"{sizes.classes}; split them automatically, or over `axis_name`"
            )
    return BlockCandidates(by_examples, by_classes)


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
    adding to d/d kernel reads and writes it once per block, and with fewer examples the products
    would wait for that. Blocks are evened out, unless the examples' number is a symbol
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
        moved += (blocks.number + bool(blocks.remainder)) * examples * features * (8 + 2 * size)
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
