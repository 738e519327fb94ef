"""What a softmax predicts, of a projection: a block of examples or of classes at a time."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core.blocks import AnyBlocks, ClassBlocks, ExampleBlocks
from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import computing_dtype
from jxent._src.core.versions import SECOND_ORDER_BY_CLASSES, linear
from jxent._src.loss_fns import excluded
from jxent._src.loss_fns.statistics import (
    Outputs,
    Predictor,
    RowResiduals,
    with_tangents,
)
from jxent._src.projection import class_blocks, matmuls, plan
from jxent._src.projection.matmuls import Operands
from jxent._src.sharding import explicit, varying


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def projected(predictor: Predictor, blocks: AnyBlocks, operands: Operands) -> Outputs:
    """The statistics of a projection, a block of examples at a time."""
    return statistics_of_projection(predictor, blocks, operands)


@per_platform(statics=2)
def statistics_of_projection(
    predictor: Predictor, blocks: AnyBlocks, operands: Operands
) -> Outputs:
    """What `projected` returns."""
    blocks = plan.of_examples(blocks, operands.inputs, operands.kernel)
    return by_examples(predictor, blocks, operands)


def by_examples(predictor: Predictor, blocks: ExampleBlocks, operands: Operands) -> Outputs:
    """What `projected` returns, of these blocks."""
    operands = matmuls.in_products(varying.match_varying(operands))

    def block(rows: Any) -> Outputs:
        labels, inputs = rows
        own = Operands(labels, inputs, *operands.shared)
        return predictor.statistics(*matmuls.data_of(predictor, own))

    found: Outputs = blocks.each(block, operands.inputs.shape[0], operands.of_rows)
    return found


def _projected_jvp(
    predictor: Predictor, blocks: AnyBlocks, primals: tuple[Operands], tangents: tuple[Operands]
) -> tuple[Outputs, Outputs]:
    (operands,) = primals
    found = projected(predictor, blocks, operands)
    nonzero_tangents = matmuls.nonzero_tangents_of(tangents[0])
    return found, with_tangents(
        tangents_of_projection(predictor, blocks, found[1], operands, nonzero_tangents), found
    )


projected.defjvp(_projected_jvp, symbolic_zeros=True)


@per_platform(statics=2)
def tangents_of_projection(
    predictor: Predictor,
    blocks: AnyBlocks,
    row: RowResiduals,
    operands: Operands,
    nonzero_tangents: Operands,
) -> dict[str, Array]:
    """The tangents of the fields."""
    are_lists = excluded.labels_alone(operands.labels).ndim > 1
    if isinstance(blocks, ClassBlocks) and SECOND_ORDER_BY_CLASSES and not are_lists:
        tangents_out = class_blocks.tangents_of_statistics(
            predictor, blocks, row, operands, nonzero_tangents
        )
    else:
        blocks = plan.of_examples(blocks, operands.inputs, operands.kernel)
        tangents_out = _tangents_by_examples(predictor, blocks, row, operands, nonzero_tangents)
    # Of the temperature as it is given, which is the same on every chip.
    return predictor.with_constant(
        tangents_out, operands.parameters, nonzero_tangents.parameters, row
    )


# Block by block, each under `jax.checkpoint`: the transpose multiplies a block's logits once more.
# The kernel's tangent enters the scan in float32, which its transpose then accumulates in.
def _tangents_by_examples(
    predictor: Predictor,
    cut: ExampleBlocks,
    row: RowResiduals,
    operands: Operands,
    nonzero_tangents: Operands,
) -> dict[str, Array]:
    examples, wide = operands.inputs.shape[0], computing_dtype(operands.inputs.dtype)
    if nonzero_tangents.kernel is not None:
        nonzero_tangents = nonzero_tangents._replace(kernel=nonzero_tangents.kernel.astype(wide))
    operands, nonzero_tangents = varying.match_varying((operands, nonzero_tangents))
    operands = matmuls.in_products(operands)

    # A place that is filled up has logits of its own, which may be NaN, and is cut off later.
    keep_mask = None
    if cut.is_ragged(examples):
        keep_mask = jnp.ones_like(operands.inputs[:, :1], dtype=bool)

    @jax.checkpoint
    def block(rows: Any, shared: Any) -> dict[str, Array]:
        (keep_mask, row, of_rows), dof_rows = rows
        own, tangents_in = (
            Operands(*r, *s) for r, s in zip((of_rows, dof_rows), shared, strict=True)
        )
        labels, logits, temperature = matmuls.data_of(predictor, own)
        dlogits = matmuls.logits_jvp(own, tangents_in)
        y, dy = predictor.moved((logits, temperature), (dlogits, tangents_in.parameters), row)
        if keep_mask is not None:
            y, dy = (jnp.where(explicit.broadcast_like(keep_mask, y), x, 0) for x in (y, dy))
        return predictor.tangents_out(labels, y, dy, row)

    @jax.checkpoint  # saves the rows as they were given, not as they are cut
    def all_blocks(rows: Any, shared: Any, nonzero_tangents: Operands) -> dict[str, Array]:
        def along(dof_rows: Any, dshared: Any) -> dict[str, Array]:
            tangents_out: dict[str, Array] = cut.each(
                lambda rows: block(rows, (shared, dshared)), examples, (rows, dof_rows)
            )
            return tangents_out

        return linear(along, nonzero_tangents.of_rows, nonzero_tangents.shared)

    tangents_out: dict[str, Array] = all_blocks(
        (keep_mask, row, operands.of_rows), operands.shared, nonzero_tangents
    )
    return tangents_out
