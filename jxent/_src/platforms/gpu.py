"""What XLA:GPU wants spelled otherwise: each way with its reason."""

from typing import Any

from jaxtyping import Array

from jxent._src.core import blocking, hints
from jxent._src.core.blocking import AnyCut, Choice, Cut
from jxent._src.core.dispatch import way
from jxent._src.loss_fns.base import Loss
from jxent._src.loss_fns.statistics import Predictor
from jxent._src.platforms import one_pass
from jxent._src.projection import per_example, reduced, softmax_statistics
from jxent._src.projection.matmuls import Operands
from jxent._src.sharding.class_axis import Classes

# Passes over 4096 x 32768 bfloat16 logits as compiled for an H100, value and gradient: ids 3.05
# instead of 4.06, smoothed 3.08 instead of 5.10, dense labels 5.06 instead of 6.08. The statistics
# take 56 instructions a logit (ptxas, sm_90a), half of them where threads join what each has of 8
# logits; optax's two passes take 20. With four slices of each row joined before they are reduced it
# is 37 at 32768 classes and 50 at 128256; but that would read dense labels twice, and move logits
# where a mesh splits the classes.


# On another axis than the last one XLA:GPU transposes all operands: 15 passes instead of 4.
def _are_last(classes: Classes, *_: Any) -> bool:
    return classes.axis == -1


for function, in_one_pass in one_pass.WAYS.items():
    for platform in ("cuda", "rocm"):
        way(function, platform, applies=_are_last)(in_one_pass)


# Adding to the kernel's gradient in float32 computes a quarter FLOP a byte for each example of a
# block, where an H100 computes 295 in the time that it moves one.
FEWEST = 1200


def _larger(blocks: Choice, operands: Operands) -> Cut:
    """Up to where the logits take as much memory traffic as the kernel's gradient."""
    examples, features = operands.inputs.shape
    chips = blocking.chips_of(operands.inputs)
    return blocking.enlarged(blocks.examples, examples, min(FEWEST, 2 * features), chips)


def _are_small(_: Loss, blocks: AnyCut, *rest: Any) -> bool:
    return isinstance(blocks, Choice) and _larger(blocks, rest[-1]) != blocks.examples


@way(reduced.values_and_gradients, "cuda", applies=_are_small)
@way(reduced.values_and_gradients, "rocm", applies=_are_small)
def _in_larger_blocks(loss_fn: Loss, blocks: Choice, *rest: Any) -> Any:
    """H100, 8192 examples, 2304 features, 256000 classes, bfloat16: 73 GB in place of 101 moved.

    4.5 GB in place of 3.0 are held.
    """
    return reduced.values_and_gradients.plain(loss_fn, _larger(blocks, rest[-1]), *rest)


def _classes_pay(blocks: AnyCut, operands: Operands, slopes: int) -> bool:
    """Whether the gradients move less by blocks of classes, where both have as many products.

    Of several blocks of examples each reads the kernel twice and adds to its gradient, of classes
    each does so with the inputs. `slopes`: how often more these pass over the slopes.
    """
    if not isinstance(blocks, Choice) or blocks.classes is None or blocks.examples.number == 1:
        return False
    examples, features = operands.inputs.shape
    size, of_classes = operands.inputs.dtype.itemsize, blocks.classes
    number = of_classes.number + bool(of_classes.rest)
    of_kernel = (8 + 2 * size) * operands.kernel.size * blocks.examples.number
    of_inputs = (8 + 2 * size) * examples * features * number
    return of_kernel > of_inputs + slopes * size * examples * operands.kernel.shape[1]


def _classes_pay_each(loss_fn: Loss, blocks: AnyCut, *rest: Any) -> bool:
    curves = loss_fn.second_order_by_class_block
    return curves and _classes_pay(blocks, rest[-2], slopes=3)  # stored once, read twice


@way(per_example.change, "cuda", applies=_classes_pay_each)
@way(per_example.change, "rocm", applies=_classes_pay_each)
def _change_by_classes(loss_fn: Loss, blocks: Choice, *rest: Any) -> Array:
    """One loss an example: the kernel's gradient is written once.

    H100, 8192 examples, 2304 features, 256000 classes, bfloat16: 84 GB in place of 123 moved, 1.6
    in place of 3.5 held, by the compiler.
    """
    return per_example.change.plain(loss_fn, blocks.classes, *rest)


def _classes_pay_statistics(_: Predictor, blocks: AnyCut, *rest: Any) -> bool:
    return _classes_pay(blocks, rest[-2], slopes=0)  # as often, by the counts


@way(softmax_statistics.changes_of_projection, "cuda", applies=_classes_pay_statistics)
@way(softmax_statistics.changes_of_projection, "rocm", applies=_classes_pay_statistics)
def _changes_by_classes(predictor: Predictor, blocks: Choice, *rest: Any) -> dict[str, Array]:
    """The same of statistics."""
    return softmax_statistics.changes_of_projection.plain(predictor, blocks.classes, *rest)


@way(hints.materialize_grad, "cuda")
@way(hints.materialize_grad, "rocm")
def _stored_slope(slope: Array) -> Array:
    """Else it is stored once for each of the two products."""
    return hints.materialize(slope)


@way(hints.reload, "cuda")
@way(hints.reload, "rocm")
def _of_their_own(labels: Any) -> Any:
    """Else loss and gradient share the mask of the listed classes, and store it.

    What passes over a teacher's and a student's logits have in common would be stored too, 0.54 GB
    at 4096 x 32768 bfloat16: 9 passes, for 13 to 17.
    """
    return hints.materialize(labels)
