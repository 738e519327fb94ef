"""Losses straight from the output projection, a block of examples or of classes at a time.

The logits of a step, `inputs @ kernel + bias`, are its largest array and are needed only to be
reduced. Here one block of them is alive at a time. A block of examples has all that its losses
need; a block of classes has it where classes are independent, and writes d/d kernel but once.

Both forms, one loss per example below and their weighted sum in `reduced`, compute the losses of a
block by `base.losses`, so every rule about digits, infinities and dropped examples holds here too.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core.blocks import AnyBlocks, ClassBlocks, ExampleBlocks
from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import computing_dtype
from jxent._src.core.versions import linear
from jxent._src.loss_fns import base
from jxent._src.loss_fns.base import Loss
from jxent._src.projection import class_blocks, one_block, plan
from jxent._src.projection.matmuls import (
    Operands,
    data_of,
    in_products,
    match_varying,
    nonzero_tangents_of,
)


def _weights_of_padding(
    weights: Array | None, blocks: ExampleBlocks, inputs: Array
) -> Array | None:
    """Weights of 1 for the examples, where blocks are padded: `to_blocks` pads them with 0.

    A padded place has logits of its own, 0 times the kernel, which may be NaN: it weighs 0, and is
    dropped like any example of weight 0. The inputs as they were given: made to vary over the axis
    that splits the classes, they would make the losses vary over it too.
    """
    if weights is not None or not blocks.is_ragged(inputs.shape[0]):
        return weights
    return jnp.ones_like(inputs[:, 0], computing_dtype(inputs.dtype), shape=inputs.shape[:1])


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def per_example(
    loss_fn: Loss, blocks: AnyBlocks, weights: Array | None, operands: Operands
) -> tuple[Array, base.Residuals]:
    """Losses of all examples, unweighted, and their residuals, as `base.losses`."""
    return losses_and_residuals(loss_fn, blocks, weights, operands)


@per_platform(statics=2)
def losses_and_residuals(
    loss_fn: Loss, blocks: AnyBlocks, weights: Array | None, operands: Operands
) -> tuple[Array, base.Residuals]:
    """What `per_example` returns."""
    if isinstance(blocks, ClassBlocks) and loss_fn.classwise:
        return class_blocks.losses(loss_fn, blocks, weights, operands)
    blocks = plan.of_examples(blocks, operands.inputs, operands.kernel)
    return by_examples(loss_fn, blocks, weights, operands)


# The tangent is computed block by block, each under `jax.checkpoint`: its transpose multiplies a
# block's logits once more, and keeps nothing of a block but one normaliser an example.
def _per_example_jvp(
    loss_fn: Loss, blocks: AnyBlocks, primals: Any, tangents: Any
) -> tuple[Any, Any]:
    weights, operands = primals
    values, residuals = per_example(loss_fn, blocks, weights, operands)
    nonzero_tangents = nonzero_tangents_of(tangents[1])
    dvalues = tangent_of_losses(loss_fn, blocks, values, residuals, operands, nonzero_tangents)
    return (values, residuals), (dvalues, jax.tree.map(base.no_tangent, residuals))


per_example.defjvp(_per_example_jvp, symbolic_zeros=True)


@per_platform(statics=2)
def tangent_of_losses(
    loss_fn: Loss,
    blocks: AnyBlocks,
    values: Array,
    residuals: base.Residuals,
    operands: Operands,
    nonzero_tangents: Operands,
) -> Array:
    """The tangent of the losses."""
    if isinstance(blocks, ClassBlocks) and loss_fn.second_order_by_class_block:
        return class_blocks.tangent_of_losses(
            loss_fn, blocks, residuals, operands, nonzero_tangents
        )
    blocks = plan.of_examples(blocks, operands.inputs, operands.kernel)
    return _tangent_by_examples(loss_fn, blocks, values, residuals, operands, nonzero_tangents)


def by_examples(
    loss_fn: Loss, blocks: ExampleBlocks, weights: Array | None, operands: Operands
) -> tuple[Array, base.Residuals]:
    """What `per_example` returns, a block of examples at a time."""
    is_masked = weights is not None
    weights = _weights_of_padding(weights, blocks, operands.inputs)
    operands = in_products(match_varying(operands))
    kernel, bias, parameters = operands.shared

    def block(rows: Any) -> tuple[Array, base.Residuals]:
        weights, labels, inputs = rows
        data = data_of(loss_fn, Operands(labels, inputs, kernel, bias, parameters))
        return base.losses(loss_fn, False, weights, *data)

    values, residuals = blocks.each(block, operands.inputs.shape[0], (weights, *operands.of_rows))
    # What a platform returns must not depend on how it cuts the examples.
    return values, residuals if is_masked else residuals._replace(keep_mask=None)


# That of the kernel enters the scan in float32, which its transpose then accumulates in.
def _tangent_by_examples(
    loss_fn: Loss,
    blocks: ExampleBlocks,
    values: Array,
    residuals: base.Residuals,
    operands: Operands,
    nonzero_tangents: Operands,
) -> Array:
    if residuals.keep_mask is None and blocks.is_ragged(
        operands.inputs.shape[0]
    ):  # see `_weights_of_padding`
        residuals = residuals._replace(keep_mask=jnp.ones_like(values, bool))
    if nonzero_tangents.kernel is not None:
        nonzero_tangents = nonzero_tangents._replace(
            kernel=nonzero_tangents.kernel.astype(computing_dtype(operands.inputs.dtype))
        )
    operands, nonzero_tangents = match_varying((operands, nonzero_tangents))
    operands = in_products(operands)
    examples = operands.inputs.shape[0]

    @jax.checkpoint
    def block(rows: Any, shared: Any) -> Array:
        (values, residuals, of_rows), dof_rows = rows
        own, downs = (Operands(*r, *s) for r, s in zip((of_rows, dof_rows), shared, strict=True))
        return one_block.tangent(loss_fn, False, values, residuals, own, downs)

    @jax.checkpoint  # saves the rows as they were given, not as they are cut
    def all_blocks(rows: Any, shared: Any, nonzero_tangents: Operands) -> Array:
        def along(dof_rows: Any, dshared: Any) -> Array:
            tangent_out: Array = blocks.each(
                lambda rows: block(rows, (shared, dshared)), examples, (rows, dof_rows)
            )
            return tangent_out

        return linear(along, nonzero_tangents.of_rows, nonzero_tangents.shared)

    tangent_out: Array = all_blocks(
        (values, residuals, operands.of_rows), operands.shared, nonzero_tangents
    )
    return tangent_out
