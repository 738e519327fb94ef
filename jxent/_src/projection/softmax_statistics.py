"""What a softmax predicts, of a projection: a block of examples or of classes at a time."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core.blocking import AnyBlocks, ClassBlocks, ExampleBlocks, of_examples
from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import computing_dtype, zero_from
from jxent._src.core.versions import SECOND_ORDER_BY_CLASSES, linear
from jxent._src.loss_fns.statistics import (
    FIELDS,
    Outputs,
    Predictor,
    RowResiduals,
    gap_minus_mean,
    with_tangents,
)
from jxent._src.numerics import logsumexp
from jxent._src.numerics.logsumexp import TangentMean
from jxent._src.projection import matmuls, per_example
from jxent._src.projection.matmuls import Operands
from jxent._src.sharding import class_axis


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def projected(predictor: Predictor, blocks: AnyBlocks, operands: Operands) -> Outputs:
    """The statistics of a projection, a block of examples at a time."""
    return statistics_of_projection(predictor, blocks, operands)


@per_platform(statics=2)
def statistics_of_projection(
    predictor: Predictor, blocks: AnyBlocks, operands: Operands
) -> Outputs:
    """What `projected` returns."""
    blocks = of_examples(blocks, operands.inputs, operands.kernel)
    return by_examples(predictor, blocks, operands)


def by_examples(predictor: Predictor, blocks: ExampleBlocks, operands: Operands) -> Outputs:
    """What `projected` returns, of these blocks."""
    operands = matmuls.in_products(class_axis.match_varying(operands))

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
    if isinstance(blocks, ClassBlocks) and SECOND_ORDER_BY_CLASSES:
        tangents_out = _tangents_by_classes(predictor, blocks, row, operands, nonzero_tangents)
    else:
        blocks = of_examples(blocks, operands.inputs, operands.kernel)
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
    operands, nonzero_tangents = class_axis.match_varying((operands, nonzero_tangents))
    operands = matmuls.in_products(operands)

    # A place that is filled up has logits of its own, which may be NaN, and is cut off later.
    keep_mask = None
    if cut.is_ragged(examples):
        keep_mask = jnp.ones_like(operands.inputs[:, :1], dtype=bool)

    @jax.checkpoint
    def block(rows: Any, shared: Any) -> dict[str, Array]:
        (keep_mask, row, of_rows), dof_rows = rows
        own, tangent_out = (
            Operands(*r, *s) for r, s in zip((of_rows, dof_rows), shared, strict=True)
        )
        labels, logits, temperature = matmuls.data_of(predictor, own)
        dlogits = matmuls.logits_jvp(own, tangent_out)
        y, dy = predictor.moved((logits, temperature), (dlogits, tangent_out.parameters), row)
        if keep_mask is not None:
            y, dy = (jnp.where(class_axis.broadcast_like(keep_mask, y), x, 0) for x in (y, dy))
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


def _tangents_by_classes(
    predictor: Predictor,
    blocks: ClassBlocks,
    row: RowResiduals,
    operands: Operands,
    nonzero_tangents: Operands,
) -> dict[str, Array]:
    operands, nonzero_tangents = class_axis.match_varying((operands, nonzero_tangents))
    operands = matmuls.in_products(operands)
    row = _with_second_order_sums(row, _second_order_sums(predictor, blocks, row, operands))

    def block(row: RowResiduals, own: Operands, tangent_out: Operands) -> dict[str, Array]:
        return predictor.unsharded.tangents_out(
            own.labels, *_moved_of_block(predictor, own, tangent_out, row), row
        )

    none = dict.fromkeys(FIELDS, matmuls.no_losses(operands))
    tangents_out: dict[str, Array] = per_example.sum_over_blocks(
        predictor, blocks, block, none, row, operands, nonzero_tangents
    )
    return tangents_out


def _moved_of_block(
    predictor: Predictor, own: Operands, tangent_out: Operands, row: RowResiduals
) -> tuple[Array, Array]:
    """Those of a block of classes."""
    _, logits, temperature = matmuls.data_of(predictor, own)
    dlogits = matmuls.logits_jvp(own, tangent_out, shared=True)
    return predictor.unsharded.moved((logits, temperature), (dlogits, tangent_out.parameters), row)


class SecondOrderSums(NamedTuple):
    """What a block of classes needs of the others for its second derivatives.

    The values are 0; only their tangents along t are not. That of `gap_tangent_covariance` is the
    sum of p (gap - E) (t less its value at the dominant class).
    """

    tangent_mean: TangentMean
    gap_tangent_covariance: Array


def _with_second_order_sums(row: RowResiduals, second_order_sums: SecondOrderSums) -> RowResiduals:
    normalizer = row.normalizer._replace(tangent_mean=second_order_sums.tangent_mean)
    return row._replace(
        normalizer=normalizer, gap_tangent_covariance=second_order_sums.gap_tangent_covariance
    )


# As `per_example._tangent_mean`: a row is a cache, whose tangents are 0.
@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _second_order_sums(
    predictor: Predictor, blocks: ClassBlocks, row: RowResiduals, operands: Operands
) -> SecondOrderSums:
    none = zero_from(*jax.tree.leaves(row))
    return SecondOrderSums(TangentMean(none, none), none)


@_second_order_sums.defjvp
def _second_order_sums_jvp(
    predictor: Predictor, blocks: ClassBlocks, primals: Any, tangents: Any
) -> tuple[SecondOrderSums, SecondOrderSums]:
    row, operands = primals
    second_order_sums = _second_order_sums(predictor, blocks, row, operands)
    row = _with_second_order_sums(row, second_order_sums)
    nonzero_tangents = tangents[1]._replace(labels=None)
    whole = predictor.unsharded.classes

    def block(rows: Any, own: Operands, tangent_out: Operands) -> tuple[Array, ...]:
        row, origin = rows
        y, dy = _moved_of_block(predictor, own, tangent_out, row)
        p = logsumexp.probabilities(y, row.normalizer, whole)
        if origin is None:
            sums = [logsumexp.origin_of(p, dy, whole)]
        else:
            beyond = p * logsumexp.beyond(p, dy, origin)
            sums = [whole.sum(beyond), whole.sum(gap_minus_mean(y, row, whole) * beyond)]
        return tuple(jnp.squeeze(x, predictor.axis) for x in sums)

    def total(number: int, origin: Array | None) -> Any:
        none = (matmuls.no_losses(operands),) * number
        sums = per_example.sum_over_blocks(
            predictor, blocks, block, none, (row, origin), operands, nonzero_tangents
        )
        return (predictor.classes.expand(x) for x in sums)

    (origin,) = total(1, None)
    mean, gap_tangent_covariance = total(2, origin)
    return second_order_sums, SecondOrderSums(TangentMean(origin, mean), gap_tangent_covariance)
