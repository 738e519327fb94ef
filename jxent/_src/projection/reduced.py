"""The weighted sum of a projection's losses: value and gradients in one scan, three matmuls."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jxent._src.core.blocks import AnyBlocks, ClassBlocks, ExampleBlocks
from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import WeightedIds, computing_dtype
from jxent._src.loss_fns import base, excluded
from jxent._src.loss_fns.base import Loss, LossComponents
from jxent._src.projection import class_blocks, one_block, per_example, plan
from jxent._src.projection.matmuls import (
    Operands,
    in_products,
    match_varying,
    nonzero_tangents_of,
    zero_nonfinite_where_masked,
)
from jxent._src.projection.one_block import (
    BlockResults,
    CheckpointBlock,
    Grads,
    Names,
    ValuesAndGrads,
)

_Pair = tuple[Array, Operands]  # weights and the rest


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def total(
    loss_fn: Loss,
    blocks: AnyBlocks,
    masks: bool,
    weights: Float[Array, "examples"],
    operands: Operands,
) -> tuple[Float[Array, ""], LossComponents | None]:
    """sum(weights * losses), weights in the computing dtype, and the losses' parts if asked for.

    `masks`: whether a weight of 0 drops its example: not where weights are a nonzero plain number.
    """
    value, parts, _ = _total_and_gradients(loss_fn, blocks, masks, frozenset(), weights, operands)
    return value, parts


# The loss is a scalar, so its derivatives need no cotangent to be known: one sweep over the blocks
# returns the loss and d/d every argument that has a tangent, three products for value and both
# gradients. The tangent is then a sum of inner products, which JAX transposes by itself. In
# float32, so that the rounding to the operands' dtype comes last.
def _total_jvp(
    loss_fn: Loss, blocks: AnyBlocks, masks: bool, primals: _Pair, tangents: tuple[Any, Any]
) -> tuple[Any, Any]:
    dweights, nonzero_tangents = base.none_for_zeros(tangents[0]), nonzero_tangents_of(tangents[1])
    tangents_in = {k: t for k, t in nonzero_tangents._asdict().items() if jax.tree.leaves(t)}
    if dweights is not None:
        tangents_in["weights"] = dweights
    value, parts, grads = _total_and_gradients(
        loss_fn, blocks, masks, frozenset(tangents_in), *primals
    )
    tangent_out = {k: inner(grads[k], t, value.dtype) for k, t in tangents_in.items()}
    # All but these act through the classes that this chip holds.
    are_lists = isinstance(excluded.labels_alone(primals[1].labels), WeightedIds)
    whole = ("weights", "labels") if are_lists else ("weights",)
    of_whole = sum((tangent_out.pop(k) for k in whole if k in tangent_out), jnp.zeros_like(value))
    dvalue = of_whole + loss_fn.classes.psum(sum(tangent_out.values(), jnp.zeros_like(value)))
    return (value, parts), (dvalue, jax.tree.map(jnp.zeros_like, parts))


total.defjvp(_total_jvp, symbolic_zeros=True)


# Saves the slope as it is, not a wider copy. Without the barrier that a checkpoint otherwise sets
# up, a compiler drops the factor 1 of a gradient, and holds no second and third slope for it.
@partial(jax.checkpoint, static_argnums=2, prevent_cse=False)
def inner(grad: Any, tangent: Any, dtype: DTypeLike) -> Array:
    """The inner product of a slope and a tangent."""

    def product(t: Array | None, grad: Any) -> Array | None:
        return None if t is None else jnp.sum(grad.astype(dtype) * t.astype(dtype))

    products = jax.tree.map(product, tangent, grad, is_leaf=lambda t: t is None)
    inner: Array = jax.tree.reduce(jnp.add, products)
    return inner


def _total_and_gradients(
    loss_fn: Loss,
    blocks: AnyBlocks,
    masks: bool,
    wanted: Names,
    weights: Array,
    operands: Operands,
) -> ValuesAndGrads:
    """The total, parts, and d total / d each argument that is wanted, by its name."""
    if wanted <= {"weights"}:
        mask = weights if masks else None
        values, residuals = per_example.per_example(loss_fn, blocks, mask, operands)
        parts, grads = base.components(loss_fn, residuals.statistics), Grads()
    else:
        names = wanted - {"weights"}
        values, parts, grads = _fused_values_and_gradients(
            loss_fn, blocks, masks, names, weights, operands
        )
    if "weights" in wanted:
        grads = {**grads, "weights": jnp.where(jnp.isfinite(values), values, 0)}
    return jnp.sum(base.apply_weights(weights, values)), parts, grads


@per_platform(statics=4)
def values_and_gradients(
    loss_fn: Loss,
    blocks: AnyBlocks,
    masks: bool,
    wanted: Names,
    weights: Array,
    operands: Operands,
) -> ValuesAndGrads:
    """The losses of all examples, their parts, and the gradients of their total."""
    return _values_and_gradients_of_blocks(
        loss_fn, blocks, masks, wanted, lambda block: block, weights, operands
    )


_fused_values_and_gradients = jax.custom_jvp(values_and_gradients, nondiff_argnums=(0, 1, 2, 3))


# The derivatives of this scan (second order of the loss) are those of its steps, with each block
# under `jax.checkpoint`, the accumulators outside it: of a block only its rows are kept. A
# checkpoint in the scan itself would be inlined when the rule above is linearised, and a second
# reverse pass would keep all the logits. A block of classes has no second derivative of its own
# where the others are in its statistics.
#
# The tangents come from a scan of their own, all of it under `jax.checkpoint`. When JAX transposes
# a scan of primals and tangents it first evaluates what does not depend on the tangents, and there
# the functions that are called lose their derivative rules, which a third derivative then misses.
@_fused_values_and_gradients.defjvp
def _fused_values_and_gradients_jvp(
    loss_fn: Loss, blocks: AnyBlocks, masks: bool, wanted: Names, primals: _Pair, tangents: _Pair
) -> tuple[ValuesAndGrads, ValuesAndGrads]:
    results = _fused_values_and_gradients(loss_fn, blocks, masks, wanted, *primals)
    inputs, kernel = primals[1].inputs, primals[1].kernel
    if not (isinstance(blocks, ClassBlocks) and loss_fn.classwise):
        blocks = plan.for_tangents(blocks, inputs, kernel)

    def value_and_grads(weights: Array, operands: Operands) -> ValuesAndGrads:
        plain = partial(
            _values_and_gradients_of_blocks, loss_fn, blocks, masks, wanted, jax.checkpoint
        )
        if not (masks and loss_fn.has_teacher):
            return plain(weights, operands)
        # Where a teacher's inputs are inf or NaN they are zeroed, and the loss stays out as before.
        finite = jnp.all(jnp.isfinite(operands.labels), axis=1)
        weights, inputs = zero_nonfinite_where_masked(weights, operands.labels)
        values, parts, grads = plain(weights, operands._replace(labels=inputs))
        return jnp.where((weights != 0) | finite, values, 0), parts, grads

    @jax.checkpoint
    def tangents_out(primals: _Pair, tangents: _Pair) -> ValuesAndGrads:
        tangent: ValuesAndGrads = jax.jvp(value_and_grads, primals, tangents)[1]
        return tangent

    return results, tangents_out(primals, tangents)


def _values_and_gradients_of_blocks(
    loss_fn: Loss,
    blocks: AnyBlocks,
    masks: bool,
    wanted: Names,
    checkpoint_block: CheckpointBlock,
    weights: Array,
    operands: Operands,
) -> ValuesAndGrads:
    if isinstance(blocks, ClassBlocks):
        before = None
        if not loss_fn.classwise:  # of weights that vary as they were given, so that losses do
            before = per_example.losses_and_residuals(
                loss_fn, blocks, weights if masks else None, operands
            )
        return class_blocks.values_and_gradients(
            loss_fn, blocks, masks, wanted, checkpoint_block, before, weights, operands
        )
    blocks = plan.of_examples(blocks, operands.inputs, operands.kernel)
    return _by_examples(loss_fn, blocks, masks, wanted, checkpoint_block, weights, operands)


def _by_examples(
    loss_fn: Loss,
    blocks: ExampleBlocks,
    masks: bool,
    wanted: Names,
    checkpoint_block: CheckpointBlock,
    weights: Array,
    operands: Operands,
) -> ValuesAndGrads:
    """Losses and gradients, a block of examples at a time, with sums for what they share."""
    examples = operands.inputs.shape[0]
    masks = masks or blocks.is_ragged(examples)  # see `_weights_of_padding`
    wide = computing_dtype(operands.inputs.dtype)
    operands = in_products(match_varying(operands))

    @checkpoint_block
    def block(weights: Array, labels: Any, inputs: Array, shared: Any) -> BlockResults:
        return one_block.results(
            loss_fn, masks, wanted, lambda x: x, weights, Operands(labels, inputs, *shared)
        )

    def of_block(rows: Any) -> tuple[Any, None, Grads]:
        values, parts, _, of_rows, of_shared = block(*rows, operands.shared)
        return (values, parts, of_rows), None, of_shared

    start: Grads = {
        name: jax.tree.map(partial(jnp.zeros_like, dtype=wide), getattr(operands, name))
        for name in ("kernel", "bias", "parameters")
        if name in wanted
    }
    rows = (weights, *operands.of_rows)
    (values, parts, of_rows), _, sums = blocks.over(of_block, examples, rows, start)
    return values, parts, {**sums, **of_rows}
