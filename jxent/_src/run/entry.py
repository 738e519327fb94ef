"""From a public function inwards: weights, `jit`, cast and reduction."""

from collections.abc import Callable
from functools import partial, wraps
from math import prod
from numbers import Real
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from jxent._src.checks import check, check_labels, check_weights
from jxent._src.core import options
from jxent._src.core.blocks import BY_SHAPE, AnyBlocks, BlockSizes
from jxent._src.core.elementary import computing_dtype, upcast
from jxent._src.loss_fns import base, excluded, statistics
from jxent._src.loss_fns.base import Loss, OfLogits
from jxent._src.loss_fns.sigmoid import Sigmoid, weighted_total
from jxent._src.loss_fns.statistics import Predictor, SoftmaxStatistics
from jxent._src.projection import (
    blockwise,
    matmuls,
    per_example,
    plan,
    reduced as reduced_sum,
    softmax_statistics,
)
from jxent._src.projection.blockwise import BlockwiseSpec
from jxent._src.projection.captured import Checked
from jxent._src.projection.matmuls import Operands
from jxent._src.run.reduction import Count, Reduction, aux, count, divided
from jxent._src.sharding import class_axis, explicit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(*statics: int) -> Callable[[Function], Function]:
    """`jax.jit` of a function, in the type that the function has."""

    def of(function: Function) -> Function:
        # JAX traces a derivative with its mesh set, and a value with none where there is none. Set
        # to what it is, it is the same, and what a value's trace cached serves its gradient.
        @wraps(function)
        def with_mesh_set(*arguments: Any, **named: Any) -> Any:
            with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
                return function(*arguments, **named)

        return cast(Function, jax.jit(with_mesh_set, static_argnums=statics))

    return of


def _match_all_varying(loss_fn: OfLogits, arrays: Any) -> Any:
    return class_axis.match_all_varying(loss_fn.classes, arrays)


class Logits(NamedTuple):
    """What the losses of logits in memory are computed from; of a projection: `Operands`."""

    labels: Any  # an array, or a tree of them
    logits: Array
    parameters: Array | None = None  # the loss's own, such as a `pos_weight`


def _without_excluded(loss_fn: OfLogits, data: Logits) -> Logits:
    """The data with the logits of excluded classes at -inf; `data_of` does it for a projection."""
    labels, x = excluded.labels_and_logits(loss_fn.classes, data.labels, data.logits)
    return Logits(labels, x, data.parameters)


@compiled(0, 2, 4)
def each(
    loss_fn: Loss,
    data: Logits | Operands,
    sizes: BlockSizes = BY_SHAPE,
    mask: Array | None = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """The losses per example or class; exactly 0 where the mask is False.

    In this dtype, or that of the logits; of a projection, the only one to have blocks, in float32
    at least.
    """
    if isinstance(data, Operands):
        options.in_dtype(loss_fn, data.inputs.dtype)
        weights = None if mask is None else _as_weights(mask, data.inputs).reshape(-1)
        batch, operands, blocks = _cut(loss_fn, data, sizes)
        each = _each_projected(loss_fn, blocks, mask is not None, weights, operands)
        return each.reshape(batch)
    options.in_dtype(loss_fn, data.logits.dtype)
    dtype = data.logits.dtype if dtype is None else dtype
    if mask is None:
        own = _without_excluded(loss_fn, _match_all_varying(loss_fn, data))
        losses, _ = base.losses(loss_fn, True, None, *own)
        return losses.astype(dtype)
    if loss_fn.axis is None:
        more = data.logits.ndim - mask.ndim  # one mask for all classes of an example
        mask = explicit.broadcast_like(mask.reshape(*mask.shape, *(1,) * more), data.logits)
    weights, own = _match_all_varying(loss_fn, (_as_weights(mask, data.logits), data))
    own = _without_excluded(loss_fn, own)
    return base.weighted_losses(loss_fn, weights, *own).astype(dtype)


def _as_weights(mask: Array, x: Array) -> Array:
    return mask.astype(computing_dtype(x.dtype))


def _each_projected(
    loss_fn: Loss, blocks: AnyBlocks, masks: bool, weights: Array | None, operands: Operands
) -> Array:
    """The losses of a projection, weighted; of examples along one axis."""
    if masks:
        assert weights is not None
        weights, inputs = matmuls.zero_nonfinite_where_masked(weights, operands.inputs)
        operands = operands._replace(inputs=inputs)
        if loss_fn.has_teacher:  # its inputs stand in the labels' place
            weights, labels = matmuls.zero_nonfinite_where_masked(weights, operands.labels)
            operands = operands._replace(labels=labels)
    weights, operands = _match_all_varying(loss_fn, (weights, operands))
    losses, _ = per_example.per_example(loss_fn, blocks, weights if masks else None, operands)
    return losses if weights is None else base.apply_weights(weights, losses)


@compiled(0, 2)
def predicted(
    predictor: Predictor,
    data: Logits | Operands,
    sizes: BlockSizes = BY_SHAPE,
    mask: Array | None = None,
) -> SoftmaxStatistics:
    """The statistics of a prediction, in float32 at least; 0 where the mask is False."""
    name, x, axis = (
        ("inputs", data.inputs, -1)
        if isinstance(data, Operands)
        else ("logits", data.logits, predictor.classes.index)
    )
    options.in_dtype(predictor, x.dtype)
    ids = excluded.labels_alone(data.labels)
    is_labelled = ids is not None
    if not is_labelled:  # ids of any class: what is computed of them is left out
        of_rows = jnp.sum(x, axis)
        if predictor.classes.name is not None:  # the same on all chips that split the classes
            of_rows = jnp.zeros(of_rows.shape)
        ids = jnp.zeros_like(of_rows, dtype=jnp.int32)
    labels = data.labels
    if mask is not None:
        ids, x = _zero_where_masked(mask, axis, ids, x)
        of = data.kernel if isinstance(data, Operands) else data.logits
        labels = excluded.none_where_masked(predictor.classes, mask, labels, of)
    data = data._replace(labels=excluded.replaced(labels, ids), **{name: x})
    if isinstance(data, Operands):
        batch, operands, blocks = _cut(predictor, data, sizes)
        values, _ = softmax_statistics.projected(predictor, blocks, operands)
        found = SoftmaxStatistics(*(x.reshape(*batch, *x.shape[1:]) for x in values))
    else:
        own = _without_excluded(predictor, _match_all_varying(predictor, data))
        found = statistics.predicted(predictor, *own)[0]
    if mask is not None:
        kept = (jnp.where(_along(mask, -1, x), x, jnp.zeros_like(x)) for x in found)
        prediction = jnp.where(mask, found.prediction, -1)
        found = SoftmaxStatistics(*kept)._replace(prediction=prediction)
    return found if is_labelled else found._replace(log_prob=cast(Array, None))


def _zero_where_masked(mask: Array, axis: int, labels: Array, x: Array) -> tuple[Array, Array]:
    """Labels, and logits or inputs with one more axis, with 0 where the mask is False."""
    labels, x = (jnp.where(_along(mask, axis, a), a, jnp.zeros_like(a)) for a in (labels, x))
    return labels, x


def _along(mask: Array, axis: int, x: Array) -> Array:
    """The mask, in the shape of an array that may have an axis more."""
    return explicit.broadcast_like(jnp.expand_dims(mask, axis), x) if x.ndim > mask.ndim else mask


def _cut(
    loss_fn: OfLogits, data: Operands, sizes: BlockSizes
) -> tuple[tuple[int, ...], Operands, AnyBlocks]:
    """The shape of the batch, the operands with one axis of examples, and their blocks."""
    labels, inputs = _flat(*data.of_rows)
    operands = _match_all_varying(loss_fn, data._replace(labels=labels, inputs=inputs))
    return data.inputs.shape[:-1], operands, plan.blocks_of(loss_fn, sizes, operands)


def reduced(
    loss_fn: Loss,
    weights: ArrayLike,
    reduction: Reduction | str,
    data: Logits | Operands,
    sizes: BlockSizes = BY_SHAPE,
    mean_over: str | None = None,
) -> Any:
    """The losses, weighted and reduced, in float32 at least; beside them what is asked for."""
    x = data.inputs if isinstance(data, Operands) else data.logits
    is_reduced = loss_fn.axis is not None
    shape = _shape_of_losses(loss_fn, data)
    masks, weights = _checked_weights(weights, shape, x.dtype, per_example=is_reduced)
    if mean_over == "examples" and not is_reduced:
        check_weights.weights_of_examples(weights, shape)
    kind = _kind(loss_fn, reduction, masks)
    if isinstance(data, Operands):
        blocks = plan.blocks_of(loss_fn, sizes, data)
        return _reduced_projection(loss_fn, masks, kind, mean_over, blocks, weights, data)
    return _reduced(loss_fn, masks, kind, mean_over, weights, data)


def reduced_losses(weights: ArrayLike, reduction: Reduction | str, losses: Array) -> Array:
    """Losses computed elsewhere, weighted and reduced."""
    masks, weights = _checked_weights(
        weights, losses.shape, losses.dtype, per_example=losses.ndim == 1
    )
    return _reduced_losses(masks, _kind(None, reduction, masks), weights, losses)


def reduced_rows(
    checked: Checked, weights: ArrayLike, reduction: Reduction | str, has_aux: bool
) -> Any:
    """A user's losses, weighted and reduced; beside them what else it adds up.

    Not compiled here: a function is a new one in every call.
    """
    given, blocks = checked.given, checked.blocks
    shape = (given.number,)
    learned = any(
        isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
        for x in jax.tree.leaves(weights)
    )
    masks, weights = _checked_weights(weights, shape, checked.dtype, per_example=True)
    kind = _kind(None, reduction, masks)
    each = jnp.broadcast_to(weights, shape)
    some = not isinstance(given.number, int) or given.number > 0
    masks = masks and some
    plan = BlockwiseSpec(checked.function, blocks, masks, masks and learned)
    if kind is Reduction.NONE:
        if has_aux:
            raise ValueError(_NOT_IN_PARTS)
        return blockwise.weighted_losses(plan, each, given)
    shares = divided(each, count(kind, weights, shape))
    loss, sums = blockwise.total(plan, shares, each, given)
    if checked.crosses_unchecked:
        # Which gradients to add up over the chips, only JAX's own transpose of the whole can tell.
        loss = jnp.sum(blockwise.weighted_losses(plan, shares, given))
    return (loss, sums) if has_aux else loss


_NOT_IN_PARTS = (
    "has_aux must be False for Reduction.NONE: the parts are of a reduced loss, and one "
    "loss per example is reduced to none"
)


def _flat(labels: Any, inputs: Array) -> tuple[Any, Array]:
    """Labels, an array or a tree of them, and inputs with one axis of examples."""
    batch = inputs.shape[:-1]
    examples = prod(batch)

    def rows(x: Array) -> Array:
        return x.reshape(examples, *x.shape[len(batch) :])

    return jax.tree.map(rows, labels), rows(inputs)


def _kind(loss_fn: Loss | None, reduction: Reduction | str, masks: bool) -> Reduction:
    """The reduction that is meant, which a loss in parts must have."""
    kind = check.reduction(reduction, Reduction)
    if kind is Reduction.SUM_BY_NONZERO_WEIGHTS and not masks:
        return Reduction.SUM_OVER_BATCH_SIZE  # a weight for all that is not 0
    if kind is Reduction.NONE and loss_fn is not None and loss_fn.returns_components:
        raise ValueError(_NOT_IN_PARTS)
    return kind


def _checked_weights(
    weights: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike, *, per_example: bool
) -> tuple[bool, Array]:
    """Whether the weights can mask, and the weights: a nonzero Python number costs no mask."""
    masks = not (isinstance(weights, Real) and weights != 0)
    dtype = computing_dtype(dtype)
    return masks, check.weights(weights, shape, dtype, per_example=per_example)


def _shape_of_losses(loss_fn: Loss, data: Logits | Operands) -> tuple[int, ...]:
    if isinstance(data, Operands):
        return data.inputs.shape[:-1]
    shape = data.logits.shape
    return shape if loss_fn.axis is None else check_labels.batch_shape(shape, loss_fn.classes.index)


def _count(
    loss_fn: Loss,
    reduction: Reduction,
    mean_over: str | None,
    weights: Array,
    data: Logits | Operands,
) -> Count:
    """What the sum is divided by: each loss counts as one.

    With `mean_over` "elements" each class of an example does; with "examples" only an example does,
    whose classes are the last axis of the logits.
    """
    shape = _shape_of_losses(loss_fn, data)
    if loss_fn.axis is not None:
        of = data.kernel if isinstance(data, Operands) else data.logits
        classes = loss_fn.classes.count(of) if mean_over == "elements" else 1
        return count(reduction, weights, shape, classes)
    if mean_over == "examples":
        return count(reduction, jnp.squeeze(weights, -1) if weights.ndim else weights, shape[:-1])
    return count(reduction, weights, shape)


@compiled(0, 1, 2, 3)
def _reduced(
    loss_fn: Loss,
    masks: bool,
    reduction: Reduction,
    mean_over: str | None,
    weights: Array,
    given: Logits,
) -> Any:
    logits = given.logits
    options.in_dtype(loss_fn, logits.dtype)
    own, data = _match_all_varying(loss_fn, (weights, given))
    data = _without_excluded(loss_fn, data)
    denominator = partial(_count, loss_fn, reduction, mean_over, weights, given)
    if isinstance(loss_fn, Sigmoid) and loss_fn.axis is None and reduction is not Reduction.NONE:
        summed = loss_fn.total_of(logits.ndim)
        if masks:
            total = weighted_total(summed, own, *data)
        else:
            total = own * base.losses(summed, True, None, *data)[0]
        return divided(total, denominator())
    if loss_fn.returns_components:
        values, known = base.losses(loss_fn, True, own if masks else None, *data)
        number = denominator()
        weights = explicit.broadcast_like(weights, values)
        total = divided(jnp.sum(base.apply_weights(weights, values)), number)
        parts = aux(loss_fn.components(known.statistics), weights, number)
        return total, parts
    if masks:
        weighted = base.weighted_losses(loss_fn, own, *data)
    else:
        weighted = own * base.losses(loss_fn, True, None, *data)[0]
    return weighted if reduction is Reduction.NONE else divided(jnp.sum(weighted), denominator())


@compiled(0, 1)
def _reduced_losses(masks: bool, reduction: Reduction, weights: Array, losses: Array) -> Array:
    values = upcast(losses)
    if masks:
        # So that of what is dropped nothing is left for mixed second derivatives, too.
        dropped = (weights == 0) & ~jnp.isfinite(values)
        weighted = base.apply_weights(weights, jnp.where(dropped, jnp.zeros_like(values), values))
    else:
        weighted = weights * values
    if reduction is Reduction.NONE:
        return weighted
    return divided(jnp.sum(weighted), count(reduction, weights, weighted.shape))


@compiled(0, 1, 2, 3, 4)
def _reduced_projection(
    loss_fn: Loss,
    masks: bool,
    reduction: Reduction,
    mean_over: str | None,
    blocks: AnyBlocks,
    weights: Array,
    operands: Operands,
) -> Any:
    options.in_dtype(loss_fn, operands.inputs.dtype)
    given = operands
    batch = given.inputs.shape[:-1]
    each = explicit.broadcast_row_weights(operands.inputs, weights).reshape(-1)
    labels, inputs = _flat(*operands.of_rows)
    operands = operands._replace(labels=labels, inputs=inputs)
    if reduction is Reduction.NONE:
        return _each_projected(loss_fn, blocks, masks, each, operands).reshape(batch)
    if masks:
        # A teacher's inputs are cleaned where the sum is differentiated twice, so that no second
        # array of their size is saved before.
        each, inputs = matmuls.zero_nonfinite_where_masked(each, inputs)
        operands = operands._replace(inputs=inputs)
    # The denominator goes into the weights: dividing the loss afterwards would cost another pass
    # over the kernel's gradient.
    denominator = _count(loss_fn, reduction, mean_over, weights, given)
    shares, operands = _match_all_varying(loss_fn, (divided(each, denominator), operands))
    total, parts = reduced_sum.total(loss_fn, blocks, masks, shares, operands)
    return total if parts is None else (total, aux(parts, each, denominator))
