"""The weighted sum of a projection's losses: value and gradients in one scan, three matmuls."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jxent._src.core import hints
from jxent._src.core.blocking import (
    AnyBlocks,
    Block,
    ClassBlocks,
    ExampleBlocks,
    for_tangents,
    of_examples,
)
from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import WeightedIds, computing_dtype, upcast
from jxent._src.loss_fns import base
from jxent._src.loss_fns.base import Data, Loss, LossComponents, Residuals
from jxent._src.projection import per_example
from jxent._src.projection.matmuls import (
    Operands,
    data_of,
    in_products,
    inputs_gradient,
    kernel_gradient,
    match_varying,
    no_losses,
    of_block,
    other_tangents,
    project,
    scaled_cast,
    zero_nonfinite_where_masked,
)
from jxent._src.sharding import class_axis

_Pair = tuple[Array, Operands]  # weights and the rest
_Names = frozenset[str]  # of arguments
_Grads = dict[str, Any]  # by the arguments' names
_ValueAndGrads = tuple[Array, LossComponents | None, _Grads]  # losses, gradients of their total
_CheckpointBlock = Callable[[Callable[..., Any]], Callable[..., Any]]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def total(
    loss_fn: Loss,
    blocks: AnyBlocks,
    masks: bool,
    weights: Float[Array, "examples"],
    operands: Operands,
) -> tuple[Float[Array, ""], LossComponents | None]:
    """sum(weights * losses), weights in the computing dtype, and the losses' parts if asked for.

    `masks`: whether a weight of 0 was meant to drop its example, or came from a plain number.
    """
    value, parts, _ = _value_and_grads(loss_fn, blocks, masks, frozenset(), weights, operands)
    return value, parts


# The loss is a scalar, so its derivatives need no cotangent to be known: one sweep over the blocks
# returns the loss and d/d every argument that has a tangent, three products for value and both
# gradients. The tangent is then a sum of inner products, which JAX transposes by itself. In
# float32, so that the rounding to the operands' dtype comes last.
def _total_jvp(
    loss_fn: Loss, blocks: AnyBlocks, masks: bool, primals: _Pair, tangents: tuple[Any, Any]
) -> tuple[Any, Any]:
    dweights, nonzero_tangents = base.present(tangents)
    tangents_out = {k: t for k, t in nonzero_tangents._asdict().items() if jax.tree.leaves(t)}
    if dweights is not None:
        tangents_out["weights"] = dweights
    value, parts, grads = _value_and_grads(
        loss_fn, blocks, masks, frozenset(tangents_out), *primals
    )
    tangent_out = {k: inner(grads[k], t, value.dtype) for k, t in tangents_out.items()}
    # All but these act through the classes that this chip holds.
    whole = ("weights", "labels") if isinstance(primals[1].labels, WeightedIds) else ("weights",)
    of_whole = sum((tangent_out.pop(k) for k in whole if k in tangent_out), jnp.zeros_like(value))
    dvalue = of_whole + loss_fn.classes.psum(sum(tangent_out.values(), jnp.zeros_like(value)))
    return (value, parts), (dvalue, jax.tree.map(jnp.zeros_like, parts))


total.defjvp(_total_jvp, symbolic_zeros=True)


# Saves the slope as it is, not a wider copy. Without the barrier that a checkpoint otherwise sets
# up, a compiler drops the factor 1 of a gradient, and holds no second and third slope for it.
@partial(jax.checkpoint, static_argnums=2, prevent_cse=False)
def inner(grad: Any, tangent_out: Any, dtype: DTypeLike) -> Array:
    """The inner product of a slope and a tangent."""

    def product(t: Array | None, grad: Any) -> Array | None:
        return None if t is None else jnp.sum(grad.astype(dtype) * t.astype(dtype))

    products = jax.tree.map(product, tangent_out, grad, is_leaf=lambda t: t is None)
    inner: Array = jax.tree.reduce(jnp.add, products)
    return inner


def _value_and_grads(
    loss_fn: Loss,
    blocks: AnyBlocks,
    masks: bool,
    wanted: _Names,
    weights: Array,
    operands: Operands,
) -> _ValueAndGrads:
    """The total, parts, and d total / d each argument that is wanted, by its name."""
    if wanted <= {"weights"}:
        mask = weights if masks else None
        values, residuals = per_example.per_example(loss_fn, blocks, mask, operands)
        parts, grads = base.components(loss_fn, residuals.statistics), _Grads()
    else:
        names = wanted - {"weights"}
        values, parts, grads = _fused_value_and_grads(
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
    wanted: _Names,
    weights: Array,
    operands: Operands,
) -> _ValueAndGrads:
    """The losses of all examples, their parts, and the gradients of their total."""
    return _unfused_value_and_grads(
        loss_fn, blocks, masks, wanted, lambda block: block, weights, operands
    )


_fused_value_and_grads = jax.custom_jvp(values_and_gradients, nondiff_argnums=(0, 1, 2, 3))


# The derivatives of this scan (second order of the loss) are those of its steps, with each block
# under `jax.checkpoint`, the accumulators outside it: of a block only its rows are kept. A
# checkpoint in the scan itself would be inlined when the rule above is linearised, and a second
# reverse pass would keep all the logits. A block of classes has no second derivative of its own
# where the others are in its statistics.
#
# The tangents come from a scan of their own, all of it under `jax.checkpoint`. When JAX transposes
# a scan of primals and tangents it first evaluates what does not depend on the tangents, and there
# the functions that are called lose their derivative rules, which a third derivative then misses.
@_fused_value_and_grads.defjvp
def _fused_value_and_grads_jvp(
    loss_fn: Loss, blocks: AnyBlocks, masks: bool, wanted: _Names, primals: _Pair, tangents: _Pair
) -> tuple[_ValueAndGrads, _ValueAndGrads]:
    results = _fused_value_and_grads(loss_fn, blocks, masks, wanted, *primals)
    inputs, kernel = primals[1].inputs, primals[1].kernel
    if not (isinstance(blocks, ClassBlocks) and loss_fn.classwise):
        blocks = for_tangents(blocks, inputs, kernel)

    def value_and_grads(weights: Array, operands: Operands) -> _ValueAndGrads:
        plain = partial(_unfused_value_and_grads, loss_fn, blocks, masks, wanted, jax.checkpoint)
        if not (masks and loss_fn.has_teacher):
            return plain(weights, operands)
        # Where a teacher's inputs are inf or NaN they are zeroed, and the loss stays out as before.
        finite = jnp.all(jnp.isfinite(operands.labels), axis=1)
        weights, inputs = zero_nonfinite_where_masked(weights, operands.labels)
        values, parts, grads = plain(weights, operands._replace(labels=inputs))
        return jnp.where((weights != 0) | finite, values, 0), parts, grads

    @jax.checkpoint
    def tangents_out(primals: _Pair, tangents: _Pair) -> _ValueAndGrads:
        tangent: _ValueAndGrads = jax.jvp(value_and_grads, primals, tangents)[1]
        return tangent

    return results, tangents_out(primals, tangents)


def _unfused_value_and_grads(
    loss_fn: Loss,
    blocks: AnyBlocks,
    masks: bool,
    wanted: _Names,
    checkpoint_block: _CheckpointBlock,
    weights: Array,
    operands: Operands,
) -> _ValueAndGrads:
    if isinstance(blocks, ClassBlocks):
        return _by_classes(loss_fn, blocks, masks, wanted, checkpoint_block, weights, operands)
    blocks = of_examples(blocks, operands.inputs, operands.kernel)
    return _by_examples(loss_fn, blocks, masks, wanted, checkpoint_block, weights, operands)


class _OfBlock(NamedTuple):
    """What a block gives; gradients by their arguments' names, of its own examples and shared."""

    values: Array
    parts: LossComponents | None
    keep_mask: Array | None
    of_rows: _Grads
    of_shared: _Grads


def _of_block(
    loss_fn: Loss,
    masks: bool,
    wanted: _Names,
    shared: Callable[[Array], Array],
    weights: Array,
    operands: Operands,
) -> _OfBlock:
    """Losses and gradients of a block. `shared`: what becomes of a slope that two products read."""
    data = data_of(loss_fn, operands)
    values, residuals = base.losses(loss_fn, False, weights if masks else None, *data)
    grads = _grads_of_block(loss_fn, wanted, shared, weights, values, residuals, data, operands)
    return _OfBlock(
        values, base.components(loss_fn, residuals.statistics), residuals.keep_mask, *grads
    )


def _grads_of_block(
    loss_fn: Loss,
    wanted: _Names,
    shared: Callable[[Array], Array],
    weights: Array,
    values: Array,
    residuals: Residuals,
    data: Data,
    operands: Operands,
) -> tuple[_Grads, _Grads]:
    """The gradients alone: of a block's own examples or classes, and shared."""
    _, inputs, kernel, _, _ = operands
    own_labels, own_parameters = data[0], data[2]
    if loss_fn.has_teacher:
        own_labels, own_parameters = operands.labels, operands.parameters
    if residuals.keep_mask is not None:
        clean = base.without_dropped(loss_fn, residuals.keep_mask)
        data, operands = clean(data), operands._replace(labels=clean(operands.labels))
    # The sum has the type of the values, on every mesh.
    cotangent = weights + jnp.zeros_like(values)
    if residuals.keep_mask is not None:  # what is dropped stays so for every weight
        cotangent = jnp.where(residuals.keep_mask, cotangent, 0)
    of_rows, of_shared = _Grads(), _Grads()
    if wanted & {"inputs", "kernel", "bias"}:
        grad = loss_fn.classes.expand(cotangent) * loss_fn.gradient(data, residuals.statistics)
        narrow = scaled_cast(grad, kernel.dtype)
        narrow = narrow._replace(low=shared(narrow.low))
    if "inputs" in wanted:
        of_rows["inputs"] = inputs_gradient(narrow, inputs, kernel)
    if "kernel" in wanted:
        of_shared["kernel"] = kernel_gradient(narrow, inputs, kernel)
    if "bias" in wanted:
        of_shared["bias"] = jnp.sum(grad, axis=0)
    if wanted & {"labels", "parameters"}:
        # Linear in the tangents, so at any point its transpose is the gradient. Over the classes of
        # this chip: where `shard_map` does not check what varies, JAX transposes the sum over the
        # chips to a sum of their cotangents, which are all the same.
        tangent_out, pull = jax.vjp(
            lambda dlabels, dparameters: loss_fn.local_tangent(
                data,
                residuals.statistics,
                other_tangents(loss_fn, operands, dlabels, dparameters),
            ),
            _floating(own_labels) if "labels" in wanted else None,
            own_parameters if "parameters" in wanted else None,
        )
        dlabels, dparameters = pull(cotangent + jnp.zeros_like(tangent_out))
        if "labels" in wanted:
            of_rows["labels"] = dlabels
        if "parameters" in wanted:
            of_shared["parameters"] = dparameters
    return of_rows, of_shared


def _floating(labels: Any) -> Any:
    """None in place of what has no derivative."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, labels)


def _by_examples(
    loss_fn: Loss,
    blocks: ExampleBlocks,
    masks: bool,
    wanted: _Names,
    checkpoint_block: _CheckpointBlock,
    weights: Array,
    operands: Operands,
) -> _ValueAndGrads:
    """Losses and gradients, a block of examples at a time, with sums for what they share."""
    examples = operands.inputs.shape[0]
    masks = masks or blocks.is_ragged(examples)  # see `_kept`
    wide = computing_dtype(operands.inputs.dtype)
    operands = in_products(match_varying(operands))

    @checkpoint_block
    def block(weights: Array, labels: Any, inputs: Array, shared: Any) -> _OfBlock:
        return _of_block(
            loss_fn, masks, wanted, lambda x: x, weights, Operands(labels, inputs, *shared)
        )

    def of_block(rows: Any) -> tuple[Any, None, _Grads]:
        values, parts, _, of_rows, of_shared = block(*rows, operands.shared)
        return (values, parts, of_rows), None, of_shared

    start: _Grads = {
        name: jax.tree.map(partial(jnp.zeros_like, dtype=wide), getattr(operands, name))
        for name in ("kernel", "bias", "parameters")
        if name in wanted
    }
    rows = (weights, *operands.of_rows)
    (values, parts, of_rows), _, sums = blocks.over(of_block, examples, rows, start)
    return values, parts, {**sums, **of_rows}


# Independent classes need no statistics of their example, so a block of classes has its losses and
# its gradients at once; for exclusive ones the losses come first, which are a product more. Where
# there are more classes than examples, the gradient to which every block adds, that of the inputs,
# is the smaller one; that of the kernel is written once.
def _by_classes(
    loss_fn: Loss,
    blocks: ClassBlocks,
    masks: bool,
    wanted: _Names,
    checkpoint_block: _CheckpointBlock,
    weights: Array,
    operands: Operands,
) -> _ValueAndGrads:
    """Losses and gradients, a block of classes at a time, with sums for what they share."""
    given = operands.kernel.dtype
    before = None
    if not loss_fn.classwise:  # of weights that vary as they were given, so that losses do
        before = per_example.losses_and_residuals(
            loss_fn, blocks, weights if masks else None, operands
        )
    weights, operands = class_axis.match_varying((weights, operands))
    operands = in_products(operands)

    def step(width: int, carry: tuple[_Grads, _Grads], number: int | Array) -> Any:
        sums, columns = carry

        @checkpoint_block
        def block(number: int | Array, weights: Array, operands: Operands) -> _OfBlock:
            own = of_block(loss_fn, Block(blocks, width, number), operands)
            if before is None:
                found = _of_block(
                    loss_fn.unsharded, masks, wanted, hints.materialize_grad, weights, own
                )
                if found.keep_mask is None:
                    return found
                # An example that one block drops has no loss, whatever the others find.
                return found._replace(values=jnp.where(found.keep_mask, found.values, jnp.inf))
            values, residuals = before
            # Not `data_of`: where the slope is stored alone, a cap may be fused with the product.
            data = (own.labels, project(own.inputs, own.kernel, own.bias), own.parameters)
            grads = _grads_of_block(
                loss_fn.unsharded,
                wanted,
                hints.materialize_grad,
                weights,
                values,
                residuals,
                data,
                own,
            )
            return _OfBlock(values, None, None, *grads)

        values, _, _, of_rows, of_shared = block(number, weights, operands)
        found = {"values": values, **of_rows, **of_shared}
        own = Block(blocks, width, number)
        return (
            {name: sum + found[name] for name, sum in sums.items()},
            {name: own.put(whole, found[name]) for name, whole in columns.items()},
        ), None

    wide = computing_dtype(operands.inputs.dtype)
    # float16 has too few exponents for what a factor of the loss may still multiply.
    stored = wide if given == jnp.float16 else given
    dtypes = {"kernel": stored, "inputs": wide, "bias": wide, "parameters": wide}
    start = {
        name: jax.tree.map(partial(jnp.zeros_like, dtype=dtypes.get(name)), x)
        for name, x in operands._asdict().items()
        if name in wanted
    }
    columns = {k: x for k, x in start.items() if k != "inputs" and x.ndim}
    sums = {k: x for k, x in start.items() if k not in columns}
    if before is None:
        sums["values"] = no_losses(operands)
    carry, _ = jax.lax.scan(partial(step, blocks.width), (sums, columns), blocks.numbers)
    if blocks.rest:
        carry, _ = step(blocks.rest, carry, blocks.number)
    sums, columns = carry
    if before is None:
        return loss_fn.classes.psum(sums.pop("values")), None, {**sums, **columns}
    # As by blocks of examples, whose derivatives stand in for these in second order.
    values, residuals = before
    parts = base.components(loss_fn, residuals.statistics)
    return values, parts, jax.tree.map(upcast, {**sums, **columns})
