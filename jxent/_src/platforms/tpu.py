"""Implementations for XLA:TPU, each with its reason."""

from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core import hints
from jxent._src.core.blocks import AnyBlocks, BlockCandidates, ClassBlocks, ExampleBlocks
from jxent._src.core.dispatch import implements
from jxent._src.core.elementary import WeightedIds
from jxent._src.loss_fns import sigmoid
from jxent._src.loss_fns.base import Loss, Residuals
from jxent._src.loss_fns.excluded import labels_alone
from jxent._src.loss_fns.statistics import Outputs, Predictor
from jxent._src.platforms import one_pass
from jxent._src.platforms.block_choice import chooses_blocks
from jxent._src.projection import per_example, plan, reduced, softmax_statistics
from jxent._src.projection.matmuls import Operands
from jxent._src.sharding import explicit
from jxent._src.sharding.class_axis import ClassAxis

# A v5e: 197 TFLOP/s, 819 GB/s, and 128 MiB of fast memory, of which products take a part.
V5E = plan.Chip(balance=240, fast=104 * 2**20)

# Passes over 4096 x 32768 bfloat16 logits as compiled for a v5e, value and gradient: ids 3.00
# instead of 4.00, smoothed 3.00 instead of 4.00 to 5.00, dense labels 5.00 instead of 7.00; on any
# axis. A product that makes the logits is fused with the reduction.


for function, in_one_pass in one_pass.IMPLEMENTATIONS.items():
    implements(function, "tpu")(in_one_pass)


@implements(hints.materialize_capped, "tpu", applies=lambda has_ids, _: has_ids)
def _capped_in_each_pass(_: bool, x: Array) -> Array:
    """The maximum and the label's logit are of one reduction: 3 passes; stored it would be 11."""
    return _stored_in_second_order(x)


@jax.custom_jvp
def _stored_in_second_order(x: Array) -> Array:
    return x


# There the row's maximum is looked for among the logits of another pass.
@_stored_in_second_order.defjvp
def _stored_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return hints.materialize(primals[0]), tangents[0]


def _are_fused(loss_fn: Loss, blocks: AnyBlocks, _: Array | None, operands: Operands) -> bool:
    """Whether the matrix product may be fused with the reduction of its rows.

    Not with a soft-cap, whose fusion takes the compiler minutes; not for long lists of ids, whose
    mask would be stored; nor where the statistics take several passes over the logits, which then
    would be stored.
    """
    return (
        loss_fn.logit_softcap is None
        and isinstance(blocks, BlockCandidates | ClassBlocks)
        and not (_has_long_lists(operands) or loss_fn.has_teacher)
    )


def _has_long_lists(operands: Operands) -> bool:
    lists = (x for x in jax.tree.leaves(operands.labels) if x.ndim > 1)
    return any(x.shape[-1] > LONG for x in lists if jnp.issubdtype(x.dtype, jnp.integer))


@implements(per_example.losses_and_residuals, "tpu", applies=_are_fused)
def _in_one_block(
    loss_fn: Loss, _: AnyBlocks, weights: Array | None, operands: Operands
) -> tuple[Array, Residuals]:
    """The product is fused with the one reduction of its rows: no logits are stored at all.

    v5e, 8192 examples, 2304 features, 256000 classes, bfloat16: 1.2 GB in place of 27 GB moved.
    """
    whole = ExampleBlocks(1, operands.inputs.shape[0])
    return per_example.by_examples(loss_fn, whole, weights, _kept_near(operands))


# Bytes of an example's inputs, from which a product with the whole kernel waits for them.
LONG_INPUTS = 4096


def _are_long(operands: Operands) -> bool:
    return operands.inputs.shape[1] * operands.inputs.dtype.itemsize >= LONG_INPUTS


def _kept_near(operands: Operands) -> Operands:
    """With inputs of its own for the product, which fast memory then keeps.

    Where gradients are computed too, the compiler would read them again and again, in small pieces.
    v5e, 8192 examples, bfloat16, cycles of the product by the compiler: 76 million in place of 121
    at 2304 features and 256000 classes, 51 in place of 99 at 3072 and 131072; but at 1536 features
    44 in place of 32.
    """
    if not _are_long(operands):
        return operands
    one = hints.materialize(jnp.ones((), operands.inputs.dtype))
    own = hints.materialize(operands.inputs * one)
    return operands._replace(inputs=own)


# Classes of a block where inputs are long, and its logits at most. By the compiler, five shapes of
# 4096 to 16384 examples and 2048 to 3072 features, scalar and one loss per example: 3 % fewer
# cycles to 1 % more than in the blocks that every platform has, and 343 million in place of 397 for
# one loss per example of 8192 by a kernel of 2304 x 256000.
WIDE, MOST_LOGITS = 15 * 1024, 2**27


def _widened(blocks: ClassBlocks, operands: Operands) -> ClassBlocks:
    if blocks.runs > 1 or not _are_long(operands):
        return blocks
    width = min(WIDE, blocks.length, MOST_LOGITS // operands.inputs.shape[0])
    return blocks._replace(width=max(blocks.width, width))


def _class_blocks(blocks: BlockCandidates, operands: Operands, products: int) -> ClassBlocks | None:
    """Blocks of classes where they take less time, with so many more products, in wide blocks."""
    are_weighted = isinstance(labels_alone(operands.labels), WeightedIds)
    if are_weighted and _has_long_lists(operands):
        return None  # the statistics are not fused with the product, so that both take more
    if not plan.prefer_class_blocks(V5E, blocks, operands.inputs, operands.kernel, products):
        return None
    return _widened(cast(ClassBlocks, blocks.classes), operands)


@chooses_blocks(reduced.values_and_gradients, "tpu")
def _blocks_of_gradients(
    _: Loss, blocks: BlockCandidates, operands: Operands
) -> ClassBlocks | None:
    """The kernel's gradient is written once, in its own dtype, and no logits are stored.

    v5e, 8192 examples, 2304 features, 256000 classes, bfloat16: 22 GB in place of 95 moved, a
    seventh held, and 350 million cycles in place of 364, by the compiler, which overlaps the
    traffic. Blocks of examples have a product less.
    """
    return _class_blocks(blocks, operands, products=1)


@chooses_blocks(per_example.tangent_of_losses, "tpu")
def _blocks_of_tangent(
    loss_fn: Loss, blocks: BlockCandidates, operands: Operands
) -> ClassBlocks | None:
    """The same of one loss per example, where both have four products."""
    if not loss_fn.second_order_by_class_block:
        return None
    return _class_blocks(blocks, operands, products=0)


@chooses_blocks(softmax_statistics.tangents_of_projection, "tpu")
def _blocks_of_statistics(
    _: Predictor, blocks: BlockCandidates, operands: Operands
) -> ClassBlocks | None:
    """As those of one loss per example."""
    return _class_blocks(blocks, operands, products=0)


def _is_one_pass(predictor: Predictor, blocks: AnyBlocks, operands: Operands) -> bool:
    are_lists = any(x.ndim > 1 for x in jax.tree.leaves(labels_alone(operands.labels)))
    return predictor.logit_softcap is None and isinstance(blocks, BlockCandidates) and not are_lists


@implements(softmax_statistics.statistics_of_projection, "tpu", applies=_is_one_pass)
def _statistics_in_one_block(predictor: Predictor, _: AnyBlocks, operands: Operands) -> Outputs:
    """As `_in_one_block`."""
    whole = ExampleBlocks(1, operands.inputs.shape[0])
    return softmax_statistics.by_examples(predictor, whole, _kept_near(operands))


@implements(hints.materialize_before_cap, "tpu")
def _stored_logits(x: Array) -> Array:
    """With a cap on it the compiler takes minutes to fuse a product with what comes next."""
    return hints.materialize(x)


@implements(hints.materialize_before_lists, "tpu", applies=lambda number, _: number > LONG)
def _stored_before_lists(_: int, x: Array) -> Array:
    """As with a cap: 64 ids take the compiler 40 s in place of 10 minutes."""
    return hints.materialize(x)


@implements(hints.materialize_grad, "tpu")
def _stored_grad(grad: Array) -> Array:
    """Else both products compute it again from logits in float32.

    v5e, 8192 examples, 1024 features, 131072 classes, bfloat16, value and both gradients: 7.8 GB in
    place of 14.3 GB moved, 59 in place of 66 million cycles, by the compiler.
    """
    return hints.materialize(grad)


LANES = 128
TILE = 8 * LANES
LONG = 12  # ids: up to here comparisons are cheaper than products


def _in_tiles(classes: ClassAxis, ids: Array, x: Array) -> bool:
    whole = classes.name is None and explicit.num_class_shards(x) == 1
    return whole and classes.index == -1 and ids.shape[-1] > LONG and x.shape[-1] % TILE == 0


@implements(sigmoid.multi_hot_mask, "tpu", applies=_in_tiles)
def _multi_hot_mask_by_products(_: ClassAxis, ids: Array, x: Array) -> Array:
    """By one small product an example: id = 128 high + low, and each is a one-hot row.

    v5e, 4096 x 131072 bfloat16, 24 and 64 ids, value and gradient: 17 million cycles for 49 and 32,
    3.0 passes for 3.0 and 4.0; the mask is stored, a byte a logit. By the compiler.
    """
    tiles = x.shape[-1] // LANES
    ids = jnp.where(ids < 0, -1, ids).astype(jnp.int32)
    high = jax.nn.one_hot(ids // LANES, tiles, dtype=jnp.bfloat16, axis=-2)
    low = jax.nn.one_hot(ids % LANES, LANES, dtype=jnp.bfloat16)
    return (jnp.matmul(high, low) > 0).reshape(x.shape)
