"""Implementations for XLA:GPU, each with its reason."""

from typing import Any

from jaxtyping import Array

from jxent._src.core import hints
from jxent._src.core.blocks import BlockCandidates, ClassBlocks, ExampleBlocks
from jxent._src.core.dispatch import implements
from jxent._src.loss_fns import label_lists
from jxent._src.loss_fns.base import Loss
from jxent._src.loss_fns.statistics import Predictor
from jxent._src.platforms import one_pass
from jxent._src.platforms.block_choice import chooses_blocks
from jxent._src.projection import per_example, plan, reduced, softmax_statistics
from jxent._src.projection.matmuls import Operands
from jxent._src.sharding.class_axis import ClassAxis

# Passes over 4096 x 32768 bfloat16 logits as compiled for an H100, value and gradient: ids 3.05
# instead of 4.06, smoothed 3.08 instead of 5.10, dense labels 5.06 instead of 6.08. The statistics
# take 56 instructions a logit (ptxas, sm_90a), half of them where threads join what each has of 8
# logits; optax's two passes take 20. With four slices of each row joined before they are reduced it
# is 37 at 32768 classes and 50 at 128256; but that would read dense labels twice, and move logits
# where a mesh splits the classes.


# On another axis than the last one XLA:GPU transposes all operands: 15 passes instead of 4.
def _are_last(classes: ClassAxis, *_: Any) -> bool:
    return classes.axis == -1


for function, in_one_pass in one_pass.IMPLEMENTATIONS.items():
    for platform in ("cuda", "rocm"):
        implements(function, platform, applies=_are_last)(in_one_pass)


# Adding to the kernel's gradient in float32 computes a quarter FLOP a byte for each example of a
# block, where an H100 computes 295 in the time that it moves one.
FEWEST = 1200


@chooses_blocks(reduced.values_and_gradients, "rocm", "cuda")
def _blocks_of_gradients(
    _: Loss, blocks: BlockCandidates, operands: Operands
) -> ExampleBlocks | None:
    """Larger ones, up to where the logits take as much memory traffic as the kernel's gradient.

    H100, 8192 examples, 2304 features, 256000 classes, bfloat16: 73 GB in place of 101 moved.
    4.5 GB in place of 3.0 are held.
    """
    examples, features = operands.inputs.shape
    chips = plan.chips_of(operands.inputs)
    larger = plan.grown(blocks.examples, examples, min(FEWEST, 2 * features), chips)
    return None if larger == blocks.examples else larger


def _class_blocks(blocks: BlockCandidates, operands: Operands, grads: int) -> ClassBlocks | None:
    """Blocks of classes where the gradients move less, and both have as many products.

    Of several blocks of examples each reads the kernel twice and adds to its gradient, of classes
    each does so with the inputs. `grads`: how often more these pass over the slopes.
    """
    of_classes = blocks.classes
    if of_classes is None or blocks.examples.number == 1:
        return None
    examples, features = operands.inputs.shape
    size = operands.inputs.dtype.itemsize
    number = of_classes.number + bool(of_classes.remainder)
    of_kernel = (8 + 2 * size) * operands.kernel.size * blocks.examples.number
    of_inputs = (8 + 2 * size) * examples * features * number
    pays = of_kernel > of_inputs + grads * size * examples * operands.kernel.shape[1]
    return of_classes if pays else None


@chooses_blocks(per_example.tangent_of_losses, "rocm", "cuda")
def _blocks_of_tangent(
    loss_fn: Loss, blocks: BlockCandidates, operands: Operands
) -> ClassBlocks | None:
    """One loss per example: the kernel's gradient is written once.

    H100, 8192 examples, 2304 features, 256000 classes, bfloat16: 84 GB in place of 123 moved, 1.6
    in place of 3.5 held, by the compiler.
    """
    if not loss_fn.second_order_by_class_block:
        return None
    return _class_blocks(blocks, operands, grads=3)  # stored once, read twice


@chooses_blocks(softmax_statistics.tangents_of_projection, "rocm", "cuda")
def _blocks_of_statistics(
    _: Predictor, blocks: BlockCandidates, operands: Operands
) -> ClassBlocks | None:
    """The same of statistics, which pass over the slopes as often, by the counts."""
    return _class_blocks(blocks, operands, grads=0)


def _is_long(classes: ClassAxis, ids: Array, _: Array) -> bool:
    return ids.shape[classes.index] > 12


@implements(label_lists.logits_of, "cuda", applies=_is_long)
@implements(label_lists.logits_of, "rocm", applies=_is_long)
def _logits_of_long_lists(classes: ClassAxis, ids: Array, x: Array) -> Array:
    """A reduction for each id reads the logits again: 5.6 passes for 32 ids in place of 2.6."""
    return label_lists.logits_of_long(classes, ids, x)


@implements(hints.materialize_grad, "cuda")
@implements(hints.materialize_grad, "rocm")
def _stored_grad(grad: Array) -> Array:
    """Else it is stored once for each of the two products."""
    return hints.materialize(grad)


@implements(hints.reload, "cuda")
@implements(hints.reload, "rocm")
def _of_their_own(labels: Any) -> Any:
    """Else loss and gradient share the mask of the listed classes, and store it.

    What passes over a teacher's and a student's logits have in common would be stored too, 0.54 GB
    at 4096 x 32768 bfloat16: 9 passes, for 13 to 17.
    """
    return hints.materialize(labels)
