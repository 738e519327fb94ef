"""What a softmax predicts, of a projection: a block of examples or of classes at a time."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core.blocking import AnyCut, ClassCut, Cut, of_examples
from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import computing_dtype, zero_from
from jxent._src.core.versions import SECOND_ORDER_BY_CLASSES, linear
from jxent._src.loss_fns.statistics import FIELDS, Found, Predictor, Row, surplus, with_changes
from jxent._src.numerics import logsumexp
from jxent._src.numerics.logsumexp import Moment
from jxent._src.projection import matmuls, per_example
from jxent._src.projection.matmuls import Operands
from jxent._src.sharding import class_axis


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def projected(predictor: Predictor, blocks: AnyCut, operands: Operands) -> Found:
    """The statistics of a projection, a block of examples at a time."""
    return statistics_of_projection(predictor, blocks, operands)


@per_platform(statics=2)
def statistics_of_projection(predictor: Predictor, blocks: AnyCut, operands: Operands) -> Found:
    """What `projected` returns."""
    blocks = of_examples(blocks, operands.inputs, operands.kernel)
    return by_examples(predictor, blocks, operands)


def by_examples(predictor: Predictor, blocks: Cut, operands: Operands) -> Found:
    """What `projected` returns, of these blocks."""
    operands = matmuls.in_products(class_axis.alike(operands))

    def block(rows: Any) -> Found:
        labels, inputs = rows
        own = Operands(labels, inputs, *operands.shared)
        return predictor.statistics(*matmuls.data_of(predictor, own))

    found: Found = blocks.each(block, operands.inputs.shape[0], operands.of_rows)
    return found


def _projected_jvp(
    predictor: Predictor, blocks: AnyCut, primals: tuple[Operands], tangents: tuple[Operands]
) -> tuple[Found, Found]:
    (operands,) = primals
    found = projected(predictor, blocks, operands)
    moving = matmuls.moving_of(tangents[0])
    return found, with_changes(
        changes_of_projection(predictor, blocks, found[1], operands, moving), found
    )


projected.defjvp(_projected_jvp, symbolic_zeros=True)


@per_platform(statics=2)
def changes_of_projection(
    predictor: Predictor, blocks: AnyCut, row: Row, operands: Operands, moving: Operands
) -> dict[str, Array]:
    """The tangents of the fields."""
    if isinstance(blocks, ClassCut) and SECOND_ORDER_BY_CLASSES:
        changes = _changes_by_classes(predictor, blocks, row, operands, moving)
    else:
        blocks = of_examples(blocks, operands.inputs, operands.kernel)
        changes = _changes_by_examples(predictor, blocks, row, operands, moving)
    # Of the temperature as it is given, which is the same on every chip.
    return predictor.with_constant(changes, operands.parameters, moving.parameters, row)


# Block by block, each under `jax.checkpoint`: the transpose multiplies a block's logits once more.
# The kernel's tangent enters the scan in float32, which its transpose then accumulates in.
def _changes_by_examples(
    predictor: Predictor, cut: Cut, row: Row, operands: Operands, moving: Operands
) -> dict[str, Array]:
    examples, wide = operands.inputs.shape[0], computing_dtype(operands.inputs.dtype)
    if moving.kernel is not None:
        moving = moving._replace(kernel=moving.kernel.astype(wide))
    operands, moving = class_axis.alike((operands, moving))
    operands = matmuls.in_products(operands)

    # A place that is filled up has logits of its own, which may be NaN, and is cut off later.
    kept = None
    if cut.is_ragged(examples):
        kept = jnp.ones_like(operands.inputs[:, :1], dtype=bool)

    @jax.checkpoint
    def block(rows: Any, shared: Any) -> dict[str, Array]:
        (kept, row, of_rows), dof_rows = rows
        own, change = (Operands(*r, *s) for r, s in zip((of_rows, dof_rows), shared, strict=True))
        labels, logits, temperature = matmuls.data_of(predictor, own)
        dlogits = matmuls.pushed(own, change)
        y, dy = predictor.moved((logits, temperature), (dlogits, change.parameters), row)
        if kept is not None:
            y, dy = (jnp.where(class_axis.filled(kept, y), x, 0) for x in (y, dy))
        return predictor.changes(labels, y, dy, row)

    @jax.checkpoint  # saves the rows as they were given, not as they are cut
    def all_blocks(rows: Any, shared: Any, moving: Operands) -> dict[str, Array]:
        def along(dof_rows: Any, dshared: Any) -> dict[str, Array]:
            changes: dict[str, Array] = cut.each(
                lambda rows: block(rows, (shared, dshared)), examples, (rows, dof_rows)
            )
            return changes

        return linear(along, moving.of_rows, moving.shared)

    changes: dict[str, Array] = all_blocks((kept, row, operands.of_rows), operands.shared, moving)
    return changes


def _changes_by_classes(
    predictor: Predictor, blocks: ClassCut, row: Row, operands: Operands, moving: Operands
) -> dict[str, Array]:
    operands, moving = class_axis.alike((operands, moving))
    operands = matmuls.in_products(operands)
    row = _with_curvature(row, _curvature(predictor, blocks, row, operands))

    def block(row: Row, own: Operands, change: Operands) -> dict[str, Array]:
        return predictor.unsharded.changes(
            own.labels, *_moved_of_block(predictor, own, change, row), row
        )

    none = dict.fromkeys(FIELDS, matmuls.no_losses(operands))
    changes: dict[str, Array] = per_example.sum_over_blocks(
        predictor, blocks, block, none, row, operands, moving
    )
    return changes


def _moved_of_block(
    predictor: Predictor, own: Operands, change: Operands, row: Row
) -> tuple[Array, Array]:
    """Those of a block of classes."""
    _, logits, temperature = matmuls.data_of(predictor, own)
    dlogits = matmuls.pushed(own, change, shared=True)
    return predictor.unsharded.moved((logits, temperature), (dlogits, change.parameters), row)


class Curvature(NamedTuple):
    """What a block of classes needs of the others for its second derivatives: 0, but not along t.

    `spread` is there the sum of p (gap - E) and what t has beyond the leader.
    """

    moment: Moment
    spread: Array


def _with_curvature(row: Row, curvature: Curvature) -> Row:
    normalizer = row.normalizer._replace(moment=curvature.moment)
    return row._replace(normalizer=normalizer, spread=curvature.spread)


# As `per_example._moment`: a row is a cache, whose tangents are 0.
@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _curvature(predictor: Predictor, blocks: ClassCut, row: Row, operands: Operands) -> Curvature:
    none = zero_from(*jax.tree.leaves(row))
    return Curvature(Moment(none, none), none)


@_curvature.defjvp
def _curvature_jvp(
    predictor: Predictor, blocks: ClassCut, primals: Any, tangents: Any
) -> tuple[Curvature, Curvature]:
    row, operands = primals
    curvature = _curvature(predictor, blocks, row, operands)
    row = _with_curvature(row, curvature)
    moving = tangents[1]._replace(labels=None)
    whole = predictor.unsharded.classes

    def block(rows: Any, own: Operands, change: Operands) -> tuple[Array, ...]:
        row, origin = rows
        y, dy = _moved_of_block(predictor, own, change, row)
        p = logsumexp.probabilities(y, row.normalizer, whole)
        if origin is None:
            sums = [logsumexp.origin_of(p, dy, whole)]
        else:
            beyond = p * logsumexp.beyond(p, dy, origin)
            sums = [whole.sum(beyond), whole.sum(surplus(y, row, whole) * beyond)]
        return tuple(jnp.squeeze(x, predictor.axis) for x in sums)

    def total(number: int, origin: Array | None) -> Any:
        none = (matmuls.no_losses(operands),) * number
        sums = per_example.sum_over_blocks(
            predictor, blocks, block, none, (row, origin), operands, moving
        )
        return (predictor.classes.expand(x) for x in sums)

    (origin,) = total(1, None)
    mean, spread = total(2, origin)
    return curvature, Curvature(Moment(origin, mean), spread)
