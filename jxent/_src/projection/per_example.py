"""Losses straight from the output projection, a block of examples or of classes at a time.

The logits of a step, `inputs @ kernel + bias`, are its largest array and are needed only to be
reduced. Here one block of them is alive at a time. A block of examples has all that its losses
need; a block of classes has it where classes are independent, and writes d/d kernel but once.

Both forms, one loss an example below and their weighted sum in `reduced`, compute the losses of a
block by `base.losses`, so every rule about digits, infinities and dropped examples holds here too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core import hints
from jxent._src.core.blocking import AnyBlocks, Block, ClassBlocks, ExampleBlocks, of_examples
from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import computing_dtype, zero_from
from jxent._src.core.kernel import Kernel, matrix
from jxent._src.core.versions import linear
from jxent._src.loss_fns import base
from jxent._src.loss_fns.base import Loss, OfLogits
from jxent._src.numerics.logsumexp import TangentMean
from jxent._src.projection.matmuls import (
    Operands,
    data_of,
    in_products,
    inputs_gradient,
    match_varying,
    no_losses,
    nonzero_tangents_of,
    of_block,
    other_tangents,
    scaled_cast,
)
from jxent._src.sharding import class_axis


def _kept(weights: Array | None, blocks: ExampleBlocks, inputs: Array) -> Array | None:
    """Weights that tell the places which are filled up from examples.

    Such a place has logits of its own, 0 times the kernel, which may be NaN: it weighs 0, and is
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
        return _by_classes(loss_fn, blocks, weights, operands)
    blocks = of_examples(blocks, operands.inputs, operands.kernel)
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
        return _tangent_by_classes(loss_fn, blocks, residuals, operands, nonzero_tangents)
    blocks = of_examples(blocks, operands.inputs, operands.kernel)
    return _tangent_by_examples(loss_fn, blocks, values, residuals, operands, nonzero_tangents)


def _tangent_of_block(
    loss_fn: Loss,
    is_shared: bool,
    values: Array,
    residuals: base.Residuals,
    operands: Operands,
    nonzero_tangents: Operands,
) -> Array:
    """The tangent of a block's losses. `is_shared`: both products read one slope, rounded for them.

    Low precision: transposing x = inputs @ kernel as it stands would multiply a float32 cotangent
    by a bfloat16 operand. So the tangent of the inputs meets the finished product of the gradient
    and the kernel; that of the kernel is rounded here, so that the products are between operands of
    one dtype in both directions.
    """
    _, inputs, kernel, _, _ = operands
    dlabels, dinputs, dkernel, dbias, dparameters = nonzero_tangents
    wide = computing_dtype(inputs.dtype)
    data = data_of(loss_fn, operands)
    if residuals.keep_mask is not None:  # a place that is filled up is not
        clean = base.without_dropped(loss_fn, residuals.keep_mask)
        data, operands = clean(data), operands._replace(labels=clean(operands.labels))
        dlabels = clean(dlabels)
    dothers = other_tangents(loss_fn, operands, dlabels, dparameters)
    grad = loss_fn.gradient(data, residuals.statistics)
    narrow = scaled_cast(grad, kernel.dtype)
    of_kernel = grad
    if is_shared and kernel.dtype != jnp.float16:
        narrow = narrow._replace(low=hints.materialize_grad(narrow.low))
        of_kernel = narrow.low.astype(wide)
    of_part = jnp.zeros_like(values)  # over the classes that this chip holds
    if dinputs is not None:
        of_part += jnp.sum(
            inputs_gradient(narrow, inputs, kernel) * dinputs.astype(wide),
            axis=1,
        )
    if dkernel is not None:
        # The output in the operands' dtype, so that the cotangent is in it too. In float16 that is
        # too narrow for a slope times its example's cotangent, usually 1 over their number.
        product = wide if inputs.dtype == jnp.float16 else inputs.dtype
        logits_jvp = jnp.matmul(
            hints.transpose(inputs.astype(product)).T,
            matrix(dkernel.astype(product)),
            out_sharding=class_axis.matmul_sharding(inputs, matrix(kernel)),
        ).astype(wide)
        of_part += jnp.sum(of_kernel * logits_jvp, axis=1)
    if dbias is not None:
        of_part += jnp.sum(grad * dbias[None], axis=1)
    tangent_out = loss_fn.classes.psum(of_part)
    if jax.tree.leaves(dothers):
        tangent_out += loss_fn.tangent(data, residuals.statistics, dothers)
    if residuals.keep_mask is not None:  # of what is dropped nothing is left, as in `base.losses`
        tangent_out = jnp.where(residuals.keep_mask, tangent_out, 0)
    return tangent_out


def by_examples(
    loss_fn: Loss, blocks: ExampleBlocks, weights: Array | None, operands: Operands
) -> tuple[Array, base.Residuals]:
    """What `per_example` returns, a block of examples at a time."""
    is_masked = weights is not None
    weights = _kept(weights, blocks, operands.inputs)
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
    if residuals.keep_mask is None and blocks.is_ragged(operands.inputs.shape[0]):  # see `_kept`
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
        return _tangent_of_block(loss_fn, False, values, residuals, own, downs)

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


def _by_classes(
    loss_fn: Loss, blocks: ClassBlocks, weights: Array | None, operands: Operands
) -> tuple[Array, base.Residuals]:
    weights, operands = class_axis.match_varying((weights, operands))
    operands = in_products(operands)

    def step(width: int, sums: tuple[Array, Array], number: int | Array) -> Any:
        data = data_of(loss_fn, of_block(loss_fn, Block(blocks, width, number), operands))
        values, residuals = base.losses(loss_fn.unsharded, False, weights, *data)
        dropped = jnp.zeros_like(values)
        if residuals.keep_mask is not None:
            dropped = (~residuals.keep_mask).astype(values.dtype)
        return (sums[0] + values, sums[1] + dropped), None

    none = no_losses(operands)
    sums, _ = jax.lax.scan(partial(step, blocks.width), (none, none), blocks.numbers)
    if blocks.rest:
        sums, _ = step(blocks.rest, sums, blocks.number)
    values, dropped = map(loss_fn.classes.psum, sums)
    if weights is None:
        return values, base.Residuals(None, None)
    keep_mask = dropped == 0  # in every block
    return jnp.where(keep_mask, values, 0), base.Residuals(None, keep_mask)


def _tangent_by_classes(
    loss_fn: Loss,
    blocks: ClassBlocks,
    residuals: base.Residuals,
    operands: Operands,
    nonzero_tangents: Operands,
) -> Array:
    """The tangent of the losses, a block of classes at a time."""
    operands, nonzero_tangents = class_axis.match_varying((operands, nonzero_tangents))
    operands = in_products(operands)
    if not loss_fn.classwise:
        tangent_mean = _tangent_mean(loss_fn, blocks, residuals, operands)
        residuals = residuals._replace(
            statistics=residuals.statistics._replace(tangent_mean=tangent_mean)
        )

    def block(residuals: base.Residuals, own: Operands, tangent_out: Operands) -> Array:
        return _tangent_of_block(
            loss_fn.unsharded, True, no_losses(own), residuals, own, tangent_out
        )

    none = no_losses(operands)
    return cast(
        Array, sum_over_blocks(loss_fn, blocks, block, none, residuals, operands, nonzero_tangents)
    )


# What belongs to the classes is cut into blocks before the scan: if each iteration took a slice,
# the transpose would add up as many arrays of the kernel's size as there are blocks. What belongs
# to the examples enters it in float32, which its transpose then accumulates in.
def sum_over_blocks(
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
            name: blocks.stacked(t)
            for name, t in nonzero_tangents._asdict().items()
            if t is not None and t.ndim and name != "inputs"
        }

        def step(width: int, total: Any, own: Any) -> tuple[Any, None]:
            number, columns = own
            tangent_out = block(
                width, number, of_rows, operands, nonzero_tangents._replace(**columns)
            )
            return jax.tree.map(jnp.add, total, tangent_out), None

        full = {name: cut[0] for name, cut in columns.items()}
        total, _ = jax.lax.scan(partial(step, blocks.width), none, (blocks.numbers, full))
        if blocks.rest:
            rest = {name: cut[1] for name, cut in columns.items()}
            total, _ = step(blocks.rest, total, (blocks.number, rest))
        return total

    return jax.tree.map(loss_fn.classes.psum, all_blocks(of_rows, operands, nonzero_tangents))


# A block of exclusive classes has its gradient from the statistics of all of them, whose tangents
# are 0: they are a cache. What the gradient's own derivative needs of the other blocks is in the
# tangent of `_tangent_mean`, which costs nothing where nothing is differentiated twice.
@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _tangent_mean(
    loss_fn: Loss, blocks: ClassBlocks, residuals: base.Residuals, operands: Operands
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

    def block(rows: Any, own: Operands, tangent_out: Operands) -> Array:
        origin, statistics = rows

        def logits(inputs: Array, kernel: Kernel, bias: Array | None) -> Array:
            _, x, _ = data_of(loss_fn, Operands(own.labels, inputs, kernel, bias, None))
            if residuals.keep_mask is None:
                return x
            keep_mask: Array = base.without_dropped(loss_fn, residuals.keep_mask)(x)
            return keep_mask

        dinputs = tangent_out.inputs
        if dinputs is not None:
            dinputs = dinputs.astype(own.inputs.dtype)
        x, dx = jax.jvp(
            logits,
            (own.inputs, own.kernel, own.bias),
            (dinputs, tangent_out.kernel, tangent_out.bias),
        )
        whole = loss_fn.unsharded
        return jnp.squeeze(whole.tangent_mean_of_block(x, dx, statistics, origin), loss_fn.axis)

    def total(origin: Array | None) -> Array:
        rows = (origin, statistics)
        none = no_losses(operands)
        sums = sum_over_blocks(loss_fn, blocks, block, none, rows, operands, nonzero_tangents)
        return loss_fn.classes.expand(sums)

    origin = total(None)
    return tangent_mean, TangentMean(origin, total(origin))
