"""A projection a block of classes at a time: losses, tangents, gradients, statistics."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core import hints
from jxent._src.core.blocks import Block, ClassBlocks
from jxent._src.core.elementary import WeightedIds, computing_dtype, upcast, zero_from
from jxent._src.core.kernel import Kernel
from jxent._src.core.versions import linear
from jxent._src.loss_fns import base, excluded
from jxent._src.loss_fns.base import Loss, OfLogits, Residuals
from jxent._src.loss_fns.statistics import FIELDS, Predictor, RowResiduals, gap_minus_mean
from jxent._src.numerics import logsumexp
from jxent._src.numerics.logsumexp import TangentMean
from jxent._src.projection import one_block
from jxent._src.projection.matmuls import (
    Operands,
    data_of,
    in_products,
    logits_jvp,
    no_losses,
    of_block,
    project,
)
from jxent._src.projection.one_block import (
    BlockResults,
    CheckpointBlock,
    Grads,
    Names,
    ValuesAndGrads,
)
from jxent._src.sharding import varying


def losses(
    loss_fn: Loss, blocks: ClassBlocks, weights: Array | None, operands: Operands
) -> tuple[Array, Residuals]:
    weights, operands = varying.match_varying((weights, operands))
    operands = in_products(operands)

    def step(block: Block, sums: tuple[Array, Array], _: Any) -> tuple[Array, Array]:
        data = data_of(loss_fn.unsharded, of_block(loss_fn, block, operands))
        values, residuals = base.losses(loss_fn.unsharded, False, weights, *data)
        dropped = jnp.zeros_like(values)
        if residuals.keep_mask is not None:
            dropped = (~residuals.keep_mask).astype(values.dtype)
        return sums[0] + values, sums[1] + dropped

    none = no_losses(operands)
    values, dropped = map(loss_fn.classes.psum, blocks.scan(step, (none, none)))
    if weights is None:
        return values, Residuals(None, None)
    keep_mask = dropped == 0  # in every block
    return jnp.where(keep_mask, values, 0), Residuals(None, keep_mask)


def tangent_of_losses(
    loss_fn: Loss,
    blocks: ClassBlocks,
    residuals: Residuals,
    operands: Operands,
    nonzero_tangents: Operands,
) -> Array:
    """The tangent of the losses."""
    operands, nonzero_tangents = varying.match_varying((operands, nonzero_tangents))
    operands = in_products(operands)
    if not loss_fn.classwise:
        tangent_mean = _tangent_mean(loss_fn, blocks, residuals, operands)
        residuals = residuals._replace(
            statistics=residuals.statistics._replace(tangent_mean=tangent_mean)
        )

    def block(residuals: Residuals, own: Operands, tangents_in: Operands) -> Array:
        return one_block.tangent(
            loss_fn.unsharded, True, no_losses(own), residuals, own, tangents_in
        )

    none = no_losses(operands)
    return cast(
        Array, _sum_over_blocks(loss_fn, blocks, block, none, residuals, operands, nonzero_tangents)
    )


# Independent classes need no statistics of their example, so a block of classes has its losses and
# its gradients at once; for exclusive ones the losses come first, which are a product more. Where
# there are more classes than examples, the gradient to which every block adds, that of the inputs,
# is the smaller one; that of the kernel is written once.
def values_and_gradients(
    loss_fn: Loss,
    blocks: ClassBlocks,
    masks: bool,
    wanted: Names,
    checkpoint_block: CheckpointBlock,
    before: tuple[Array, Residuals] | None,
    weights: Array,
    operands: Operands,
) -> ValuesAndGrads:
    """Losses and gradients, with sums for what the blocks share.

    `before`: losses and residuals, of exclusive classes.
    """
    given = operands.kernel.dtype
    weights, operands = varying.match_varying((weights, operands))
    operands = in_products(operands)

    def step(own: Block, carry: tuple[Grads, Grads], _: Any) -> tuple[Grads, Grads]:
        sums, columns = carry

        @checkpoint_block
        def block(number: int | Array, weights: Array, operands: Operands) -> BlockResults:
            part = of_block(loss_fn, own._replace(number=number), operands)
            if before is None:
                found = one_block.results(
                    loss_fn.unsharded, masks, wanted, hints.materialize_grad, weights, part
                )
                if found.keep_mask is None:
                    return found
                # An example that one block drops has no loss, whatever the others find.
                return found._replace(values=jnp.where(found.keep_mask, found.values, jnp.inf))
            values, residuals = before
            labels, inputs, kernel, bias, parameters = part
            # Not `data_of`: where the slope is stored alone, a cap may be fused with the product.
            x = project(inputs, kernel, bias)
            if are_lists:
                number = excluded.labels_alone(labels).ids.shape[-1]
                x = hints.materialize_before_lists(number, x)
            data = (*excluded.labels_and_logits(loss_fn.unsharded.classes, labels, x), parameters)
            grads = one_block.gradients(
                loss_fn.unsharded,
                wanted,
                hints.materialize_grad,
                weights,
                values,
                residuals,
                data,
                part,
            )
            return BlockResults(values, None, None, *grads)

        values, _, _, of_rows, of_shared = block(own.number, weights, operands)
        found = {"values": values, **of_rows, **of_shared}
        return (
            {name: jax.tree.map(jnp.add, sum, found[name]) for name, sum in sums.items()},
            {name: own.put(whole, found[name]) for name, whole in columns.items()},
        )

    wide = computing_dtype(operands.inputs.dtype)
    # float16 has too few exponents for what a factor of the loss may still multiply.
    stored = wide if given == jnp.float16 else given
    dtypes = {"kernel": stored, "inputs": wide, "bias": wide, "parameters": wide}
    own_labels = excluded.labels_alone(operands.labels)
    are_lists = isinstance(own_labels, WeightedIds)
    floating = operands._replace(labels=one_block.floating(own_labels))
    start = {
        name: jax.tree.map(partial(jnp.zeros_like, dtype=dtypes.get(name)), x)
        for name, x in floating._asdict().items()
        if name in wanted
    }
    of_rows = ("inputs", "labels") if are_lists else ("inputs",)
    columns = {k: x for k, x in start.items() if k not in of_rows and x.ndim}
    sums = {k: x for k, x in start.items() if k not in columns}
    if before is None:
        sums["values"] = no_losses(operands)
    sums, columns = blocks.scan(step, (sums, columns))
    if before is None:
        return loss_fn.classes.psum(sums.pop("values")), None, {**sums, **columns}
    # As by blocks of examples, whose derivatives stand in for these in second order.
    values, residuals = before
    parts = base.components(loss_fn, residuals.statistics)
    if are_lists and "labels" in sums:  # a chip's classes have a part of each list
        sums["labels"] = jax.tree.map(loss_fn.classes.psum, sums["labels"])
    return values, parts, jax.tree.map(upcast, {**sums, **columns})


# What belongs to the classes is cut into blocks before the scan: if each iteration took a slice,
# the transpose would add up as many arrays of the kernel's size as there are blocks. What belongs
# to the examples enters it in float32, which its transpose then accumulates in.
def _sum_over_blocks(
    loss_fn: OfLogits,
    blocks: ClassBlocks,
    of_own: Callable[[Any, Operands, Operands], Any],
    none: Any,
    of_rows: Any,
    operands: Operands,
    nonzero_tangents: Operands,
) -> Any:
    """The sum over the blocks of classes of what is linear in the tangents of each.

    A tree of arrays, as `none` is, its zeros. `of_rows`: what else the function takes. It must not
    close over anything with derivatives.
    """
    if nonzero_tangents.inputs is not None:
        nonzero_tangents = nonzero_tangents._replace(
            inputs=nonzero_tangents.inputs.astype(computing_dtype(nonzero_tangents.inputs.dtype))
        )

    @partial(jax.checkpoint, static_argnums=0)
    def block(
        width: int,
        number: int | Array,
        of_rows: Any,
        operands: Operands,
        nonzero_tangents: Operands,
    ) -> Any:
        own = of_block(loss_fn, Block(blocks, width, number), operands)
        return of_own(of_rows, own, nonzero_tangents)

    # Without it the derivative rules of what a block calls are lost to a third derivative.
    @jax.checkpoint
    def all_blocks(of_rows: Any, operands: Operands, nonzero_tangents: Operands) -> Any:
        return linear(partial(along, of_rows, operands), nonzero_tangents)

    def along(of_rows: Any, operands: Operands, nonzero_tangents: Operands) -> Any:
        columns = {
            name: t
            for name, t in nonzero_tangents._asdict().items()
            if t is not None and t.ndim and name != "inputs"
        }

        def step(own: Block, total: Any, columns: Any) -> Any:
            tangents_of_own = nonzero_tangents._replace(**columns)
            tangent_out = block(own.width, own.number, of_rows, operands, tangents_of_own)
            return jax.tree.map(jnp.add, total, tangent_out)

        return blocks.scan(step, none, columns)

    return jax.tree.map(loss_fn.classes.psum, all_blocks(of_rows, operands, nonzero_tangents))


# A block of exclusive classes has its gradient from the statistics of all of them, whose tangents
# are 0: they are a cache. What the gradient's own derivative needs of the other blocks is in the
# tangent of `_tangent_mean`, which costs nothing where nothing is differentiated twice.
@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _tangent_mean(
    loss_fn: Loss, blocks: ClassBlocks, residuals: Residuals, operands: Operands
) -> TangentMean:
    none = zero_from(*jax.tree.leaves(residuals.statistics))
    return TangentMean(none, none)


@_tangent_mean.defjvp
def _tangent_mean_jvp(
    loss_fn: Loss, blocks: ClassBlocks, primals: Any, tangents: Any
) -> tuple[TangentMean, TangentMean]:
    residuals, operands = primals
    tangent_mean = _tangent_mean(loss_fn, blocks, residuals, operands)
    statistics = residuals.statistics._replace(tangent_mean=tangent_mean)
    # Ids have no tangent, and exclusive classes have no parameters.
    nonzero_tangents = tangents[1]._replace(labels=None, parameters=None)
    whole = loss_fn.unsharded

    def block(rows: Any, own: Operands, tangents_in: Operands) -> Array:
        origin, statistics = rows

        def logits(inputs: Array, kernel: Kernel, bias: Array | None) -> Array:
            _, x, _ = data_of(whole, Operands(own.labels, inputs, kernel, bias, None))
            if residuals.keep_mask is None:
                return x
            kept_logits: Array = base.without_dropped(loss_fn, residuals.keep_mask)(x)
            return kept_logits

        dinputs = tangents_in.inputs
        if dinputs is not None:
            dinputs = dinputs.astype(own.inputs.dtype)
        x, dx = jax.jvp(
            logits,
            (own.inputs, own.kernel, own.bias),
            (dinputs, tangents_in.kernel, tangents_in.bias),
        )
        return jnp.squeeze(whole.tangent_mean_of_block(x, dx, statistics, origin), loss_fn.axis)

    def total(origin: Array | None) -> Array:
        rows = (origin, statistics)
        none = no_losses(operands)
        sums = _sum_over_blocks(loss_fn, blocks, block, none, rows, operands, nonzero_tangents)
        return loss_fn.classes.expand(sums)

    origin = total(None)
    return tangent_mean, TangentMean(origin, total(origin))


def tangents_of_statistics(
    predictor: Predictor,
    blocks: ClassBlocks,
    row: RowResiduals,
    operands: Operands,
    nonzero_tangents: Operands,
) -> dict[str, Array]:
    operands, nonzero_tangents = varying.match_varying((operands, nonzero_tangents))
    operands = in_products(operands)
    row = _with_second_order_sums(row, _second_order_sums(predictor, blocks, row, operands))

    def block(row: RowResiduals, own: Operands, tangents_in: Operands) -> dict[str, Array]:
        moved = _moved_of_block(predictor, own, tangents_in, row)
        return predictor.unsharded.tangents_out(excluded.labels_alone(own.labels), *moved, row)

    none = dict.fromkeys(FIELDS, no_losses(operands))
    tangents_out: dict[str, Array] = _sum_over_blocks(
        predictor, blocks, block, none, row, operands, nonzero_tangents
    )
    return tangents_out


def _moved_of_block(
    predictor: Predictor, own: Operands, tangents_in: Operands, row: RowResiduals
) -> tuple[Array, Array]:
    """Those of a block of classes."""
    predictor = predictor.unsharded
    _, logits, temperature = data_of(predictor, own)
    dlogits = logits_jvp(own, tangents_in, shared=True)
    return predictor.moved((logits, temperature), (dlogits, tangents_in.parameters), row)


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


# As `_tangent_mean`: a row is a cache, whose tangents are 0.
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

    def block(rows: Any, own: Operands, tangents_in: Operands) -> tuple[Array, ...]:
        row, origin = rows
        y, dy = _moved_of_block(predictor, own, tangents_in, row)
        p = logsumexp.probabilities(y, row.normalizer, whole)
        if origin is None:
            sums = [logsumexp.origin_of(p, dy, whole)]
        else:
            beyond = p * logsumexp.beyond(p, dy, origin)
            sums = [whole.sum(beyond), whole.sum(gap_minus_mean(y, row, whole) * beyond)]
        return tuple(jnp.squeeze(x, predictor.axis) for x in sums)

    def total(number: int, origin: Array | None) -> Any:
        none = (no_losses(operands),) * number
        sums = _sum_over_blocks(
            predictor, blocks, block, none, (row, origin), operands, nonzero_tangents
        )
        return (predictor.classes.expand(x) for x in sums)

    (origin,) = total(1, None)
    mean, gap_tangent_covariance = total(2, origin)
    return second_order_sums, SecondOrderSums(TangentMean(origin, mean), gap_tangent_covariance)
