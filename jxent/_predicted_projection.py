"""What a softmax predicts, of a projection: a block of examples or of classes at a time."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent import _logsumexp, _mesh, _operands, _projection
from jxent._arithmetic import computing_dtype, zero_from
from jxent._blocks import AnyCut, ClassCut, Cut, of_examples
from jxent._dispatch import per_platform
from jxent._logsumexp import Moment
from jxent._operands import Operands
from jxent._prediction import FIELDS, Found, Prediction, Row, surplus, with_changes
from jxent._versions import SECOND_ORDER_BY_CLASSES, linear


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def projected(member: Prediction, blocks: AnyCut, operands: Operands) -> Found:
    """The statistics of a projection, a block of examples at a time."""
    return statistics_of_projection(member, blocks, operands)


@per_platform(statics=2)
def statistics_of_projection(member: Prediction, blocks: AnyCut, operands: Operands) -> Found:
    """What `projected` returns."""
    blocks = of_examples(blocks, operands.inputs, operands.kernel)
    return by_examples(member, blocks, operands)


def by_examples(member: Prediction, blocks: Cut, operands: Operands) -> Found:
    """What `projected` returns, of these blocks."""
    operands = _operands.in_products(_mesh.alike(operands))

    def block(rows: Any) -> Found:
        labels, inputs = rows
        own = Operands(labels, inputs, *operands.shared)
        return member.statistics(*_operands.data_of(member, own))

    found: Found = blocks.each(block, operands.inputs.shape[0], operands.of_rows)
    return found


def _projected_jvp(
    member: Prediction, blocks: AnyCut, primals: tuple[Operands], tangents: tuple[Operands]
) -> tuple[Found, Found]:
    (operands,) = primals
    found = projected(member, blocks, operands)
    moving = _operands.moving_of(tangents[0])
    return found, with_changes(
        changes_of_projection(member, blocks, found[1], operands, moving), found
    )


projected.defjvp(_projected_jvp, symbolic_zeros=True)


@per_platform(statics=2)
def changes_of_projection(
    member: Prediction, blocks: AnyCut, row: Row, operands: Operands, moving: Operands
) -> dict[str, Array]:
    """The tangents of the fields."""
    if isinstance(blocks, ClassCut) and SECOND_ORDER_BY_CLASSES:
        changes = _changes_by_classes(member, blocks, row, operands, moving)
    else:
        blocks = of_examples(blocks, operands.inputs, operands.kernel)
        changes = _changes_by_examples(member, blocks, row, operands, moving)
    # Of the temperature as it is given, which is the same on every chip.
    return member.with_constant(changes, operands.parameters, moving.parameters, row)


# Block by block, each under `jax.checkpoint`: the transpose multiplies a block's logits once more.
# The kernel's tangent enters the scan in float32, which its transpose then accumulates in.
def _changes_by_examples(
    member: Prediction, cut: Cut, row: Row, operands: Operands, moving: Operands
) -> dict[str, Array]:
    examples, wide = operands.inputs.shape[0], computing_dtype(operands.inputs.dtype)
    if moving.kernel is not None:
        moving = moving._replace(kernel=moving.kernel.astype(wide))
    operands, moving = _mesh.alike((operands, moving))
    operands = _operands.in_products(operands)

    # A place that is filled up has logits of its own, which may be NaN, and is cut off later.
    kept = None
    if cut.is_ragged(examples):
        kept = jnp.ones_like(operands.inputs[:, :1], dtype=bool)

    @jax.checkpoint
    def block(rows: Any, shared: Any) -> dict[str, Array]:
        (kept, row, of_rows), dof_rows = rows
        own, change = (Operands(*r, *s) for r, s in zip((of_rows, dof_rows), shared, strict=True))
        labels, logits, temperature = _operands.data_of(member, own)
        dlogits = _operands.pushed(own, change)
        y, dy = member.moved((logits, temperature), (dlogits, change.parameters), row)
        if kept is not None:
            y, dy = (jnp.where(_mesh.filled(kept, y), x, 0) for x in (y, dy))
        return member.changes(labels, y, dy, row)

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
    member: Prediction, blocks: ClassCut, row: Row, operands: Operands, moving: Operands
) -> dict[str, Array]:
    operands, moving = _mesh.alike((operands, moving))
    operands = _operands.in_products(operands)
    row = _with_curvature(row, _curvature(member, blocks, row, operands))

    def block(row: Row, own: Operands, change: Operands) -> dict[str, Array]:
        return member.whole.changes(own.labels, *_moved_of_block(member, own, change, row), row)

    none = dict.fromkeys(FIELDS, _operands.no_losses(operands))
    changes: dict[str, Array] = _projection.sum_over_blocks(
        member, blocks, block, none, row, operands, moving
    )
    return changes


def _moved_of_block(
    member: Prediction, own: Operands, change: Operands, row: Row
) -> tuple[Array, Array]:
    """Those of a block of classes."""
    _, logits, temperature = _operands.data_of(member, own)
    dlogits = _operands.pushed(own, change, shared=True)
    return member.whole.moved((logits, temperature), (dlogits, change.parameters), row)


class Curvature(NamedTuple):
    """What a block of classes needs of the others for its second derivatives: 0, but not along t.

    `spread` is there the sum of p (gap - E) and what t has beyond the leader.
    """

    moment: Moment
    spread: Array


def _with_curvature(row: Row, curvature: Curvature) -> Row:
    normalizer = row.normalizer._replace(moment=curvature.moment)
    return row._replace(normalizer=normalizer, spread=curvature.spread)


# As `_projection._moment`: a row is a cache, whose tangents are 0.
@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _curvature(member: Prediction, blocks: ClassCut, row: Row, operands: Operands) -> Curvature:
    none = zero_from(*jax.tree.leaves(row))
    return Curvature(Moment(none, none), none)


@_curvature.defjvp
def _curvature_jvp(
    member: Prediction, blocks: ClassCut, primals: Any, tangents: Any
) -> tuple[Curvature, Curvature]:
    row, operands = primals
    curvature = _curvature(member, blocks, row, operands)
    row = _with_curvature(row, curvature)
    moving = tangents[1]._replace(labels=None)
    whole = member.whole.classes

    def block(rows: Any, own: Operands, change: Operands) -> tuple[Array, ...]:
        row, origin = rows
        y, dy = _moved_of_block(member, own, change, row)
        p = _logsumexp.probabilities(y, row.normalizer, whole)
        if origin is None:
            sums = [_logsumexp.origin_of(p, dy, whole)]
        else:
            beyond = p * _logsumexp.beyond(p, dy, origin)
            sums = [whole.sum(beyond), whole.sum(surplus(y, row, whole) * beyond)]
        return tuple(jnp.squeeze(x, member.axis) for x in sums)

    def total(number: int, origin: Array | None) -> Any:
        none = (_operands.no_losses(operands),) * number
        sums = _projection.sum_over_blocks(
            member, blocks, block, none, (row, origin), operands, moving
        )
        return (jnp.expand_dims(x, member.axis) for x in sums)

    (origin,) = total(1, None)
    mean, spread = total(2, origin)
    return curvature, Curvature(Moment(origin, mean), spread)
