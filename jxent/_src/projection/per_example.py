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
from jxent._src.core.blocking import AnyCut, Block, ClassCut, Cut, of_examples
from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import computing_dtype, zero_from
from jxent._src.core.kernel import Kernel, matrix
from jxent._src.core.versions import linear
from jxent._src.loss_fns import base
from jxent._src.loss_fns.base import Loss, OfLogits
from jxent._src.numerics.logsumexp import Moment
from jxent._src.projection.matmuls import (
    Operands,
    alike,
    data_of,
    in_products,
    inputs_gradient,
    moving_of,
    narrowed,
    no_losses,
    of_block,
    other_tangents,
)
from jxent._src.sharding import class_axis


def _kept(weights: Array | None, blocks: Cut, inputs: Array) -> Array | None:
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
    loss_fn: Loss, blocks: AnyCut, weights: Array | None, operands: Operands
) -> tuple[Array, base.Known]:
    """Losses of all examples, unweighted, and what is known of them, as `base.losses`."""
    return losses_and_known(loss_fn, blocks, weights, operands)


@per_platform(statics=2)
def losses_and_known(
    loss_fn: Loss, blocks: AnyCut, weights: Array | None, operands: Operands
) -> tuple[Array, base.Known]:
    """What `per_example` returns."""
    if isinstance(blocks, ClassCut) and loss_fn.classwise:
        return _by_classes(loss_fn, blocks, weights, operands)
    blocks = of_examples(blocks, operands.inputs, operands.kernel)
    return by_examples(loss_fn, blocks, weights, operands)


# The tangent is computed block by block, each under `jax.checkpoint`: its transpose multiplies a
# block's logits once more, and keeps nothing of a block but one normaliser an example.
def _per_example_jvp(loss_fn: Loss, blocks: AnyCut, primals: Any, tangents: Any) -> tuple[Any, Any]:
    weights, operands = primals
    values, known = per_example(loss_fn, blocks, weights, operands)
    moving = moving_of(tangents[1])
    dvalues = change(loss_fn, blocks, values, known, operands, moving)
    return (values, known), (dvalues, jax.tree.map(base.no_tangent, known))


per_example.defjvp(_per_example_jvp, symbolic_zeros=True)


@per_platform(statics=2)
def change(
    loss_fn: Loss,
    blocks: AnyCut,
    values: Array,
    known: base.Known,
    operands: Operands,
    moving: Operands,
) -> Array:
    """The tangent of the losses."""
    if isinstance(blocks, ClassCut) and loss_fn.second_order_by_class_block:
        return _change_by_classes(loss_fn, blocks, known, operands, moving)
    blocks = of_examples(blocks, operands.inputs, operands.kernel)
    return _change_by_examples(loss_fn, blocks, values, known, operands, moving)


def _change_of_block(
    loss_fn: Loss,
    is_shared: bool,
    values: Array,
    known: base.Known,
    operands: Operands,
    moving: Operands,
) -> Array:
    """The tangent of a block's losses. `is_shared`: both products read one slope, rounded for them.

    Low precision: transposing x = inputs @ kernel as it stands would multiply a float32 cotangent
    by a bfloat16 operand. So the tangent of the inputs meets the finished product of the gradient
    and the kernel; that of the kernel is rounded here, so that the products are between operands of
    one dtype in both directions.
    """
    _, inputs, kernel, _, _ = operands
    dlabels, dinputs, dkernel, dbias, dparameters = moving
    wide = computing_dtype(inputs.dtype)
    data = data_of(loss_fn, operands)
    if known.kept is not None:  # a place that is filled up is not
        clean = base.without_dropped(loss_fn, known.kept)
        data, operands = clean(data), operands._replace(labels=clean(operands.labels))
        dlabels = clean(dlabels)
    dothers = other_tangents(loss_fn, operands, dlabels, dparameters)
    slope = loss_fn.gradient(data, known.statistics)
    narrow = narrowed(slope, kernel.dtype)
    of_kernel = slope
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
        pushed = jnp.matmul(
            hints.transpose(inputs.astype(product)).T,
            matrix(dkernel.astype(product)),
            out_sharding=class_axis.split_of_product(inputs, matrix(kernel)),
        ).astype(wide)
        of_part += jnp.sum(of_kernel * pushed, axis=1)
    if dbias is not None:
        of_part += jnp.sum(slope * dbias[None], axis=1)
    change = loss_fn.classes.across(of_part)
    if jax.tree.leaves(dothers):
        change += loss_fn.tangent(data, known.statistics, dothers)
    if known.kept is not None:  # of what is dropped nothing is left, as in `base.losses`
        change = jnp.where(known.kept, change, 0)
    return change


def by_examples(
    loss_fn: Loss, blocks: Cut, weights: Array | None, operands: Operands
) -> tuple[Array, base.Known]:
    """What `per_example` returns, a block of examples at a time."""
    is_masked = weights is not None
    weights = _kept(weights, blocks, operands.inputs)
    operands = in_products(alike(operands))
    kernel, bias, parameters = operands.shared

    def block(rows: Any) -> tuple[Array, base.Known]:
        weights, labels, inputs = rows
        data = data_of(loss_fn, Operands(labels, inputs, kernel, bias, parameters))
        return base.losses(loss_fn, False, weights, *data)

    values, known = blocks.each(block, operands.inputs.shape[0], (weights, *operands.of_rows))
    # What a platform returns must not depend on how it cuts the examples.
    return values, known if is_masked else known._replace(kept=None)


# That of the kernel enters the scan in float32, which its transpose then accumulates in.
def _change_by_examples(
    loss_fn: Loss,
    blocks: Cut,
    values: Array,
    known: base.Known,
    operands: Operands,
    moving: Operands,
) -> Array:
    if known.kept is None and blocks.is_ragged(operands.inputs.shape[0]):  # see `_kept`
        known = known._replace(kept=jnp.ones_like(values, bool))
    if moving.kernel is not None:
        moving = moving._replace(
            kernel=moving.kernel.astype(computing_dtype(operands.inputs.dtype))
        )
    operands, moving = alike((operands, moving))
    operands = in_products(operands)
    examples = operands.inputs.shape[0]

    @jax.checkpoint
    def block(rows: Any, shared: Any) -> Array:
        (values, known, of_rows), dof_rows = rows
        own, downs = (Operands(*r, *s) for r, s in zip((of_rows, dof_rows), shared, strict=True))
        return _change_of_block(loss_fn, False, values, known, own, downs)

    @jax.checkpoint  # saves the rows as they were given, not as they are cut
    def all_blocks(rows: Any, shared: Any, moving: Operands) -> Array:
        def along(dof_rows: Any, dshared: Any) -> Array:
            change: Array = blocks.each(
                lambda rows: block(rows, (shared, dshared)), examples, (rows, dof_rows)
            )
            return change

        return linear(along, moving.of_rows, moving.shared)

    change: Array = all_blocks((values, known, operands.of_rows), operands.shared, moving)
    return change


def _by_classes(
    loss_fn: Loss, blocks: ClassCut, weights: Array | None, operands: Operands
) -> tuple[Array, base.Known]:
    weights, operands = class_axis.alike((weights, operands))
    operands = in_products(operands)

    def step(width: int, sums: tuple[Array, Array], number: int | Array) -> Any:
        data = data_of(loss_fn, of_block(loss_fn, Block(blocks, width, number), operands))
        values, known = base.losses(loss_fn.unsharded, False, weights, *data)
        dropped = jnp.zeros_like(values)
        if known.kept is not None:
            dropped = (~known.kept).astype(values.dtype)
        return (sums[0] + values, sums[1] + dropped), None

    none = no_losses(operands)
    sums, _ = jax.lax.scan(partial(step, blocks.width), (none, none), blocks.numbers)
    if blocks.rest:
        sums, _ = step(blocks.rest, sums, blocks.number)
    values, dropped = map(loss_fn.classes.across, sums)
    if weights is None:
        return values, base.Known(None, None)
    kept = dropped == 0  # in every block
    return jnp.where(kept, values, 0), base.Known(None, kept)


def _change_by_classes(
    loss_fn: Loss,
    blocks: ClassCut,
    known: base.Known,
    operands: Operands,
    moving: Operands,
) -> Array:
    """The tangent of the losses, a block of classes at a time."""
    operands, moving = class_axis.alike((operands, moving))
    operands = in_products(operands)
    if not loss_fn.classwise:
        moment = _moment(loss_fn, blocks, known, operands)
        known = known._replace(statistics=known.statistics._replace(moment=moment))

    def block(known: base.Known, own: Operands, change: Operands) -> Array:
        return _change_of_block(loss_fn.unsharded, True, no_losses(own), known, own, change)

    none = no_losses(operands)
    return cast(Array, sum_over_blocks(loss_fn, blocks, block, none, known, operands, moving))


# What belongs to the classes enters the scan cut: the transpose of a slice that each round takes
# would add up as many arrays of the kernel's size as there are blocks. What belongs to the examples
# enters it in float32, which its transpose then accumulates in.
def sum_over_blocks(
    loss_fn: OfLogits,
    blocks: ClassCut,
    of_own: Callable[[Any, Operands, Operands], Any],
    none: Any,
    of_rows: Any,
    operands: Operands,
    moving: Operands,
) -> Any:
    """The sum over the blocks of classes of what is linear in the tangents of each.

    A tree of arrays, as `none` is, its zeros. `of_rows`: what else the function takes. It must not
    close over anything with derivatives.
    """
    if moving.inputs is not None:
        moving = moving._replace(inputs=moving.inputs.astype(computing_dtype(moving.inputs.dtype)))

    @partial(jax.checkpoint, static_argnums=0)
    def block(
        width: int, number: int | Array, of_rows: Any, operands: Operands, moving: Operands
    ) -> Any:
        own = of_block(loss_fn, Block(blocks, width, number), operands)
        return of_own(of_rows, own, moving)

    # Without it the derivative rules of what a block calls are lost to a third derivative.
    @jax.checkpoint
    def all_blocks(of_rows: Any, operands: Operands, moving: Operands) -> Any:
        return linear(partial(along, of_rows, operands), moving)

    def along(of_rows: Any, operands: Operands, moving: Operands) -> Any:
        columns = {
            name: blocks.stacked(t)
            for name, t in moving._asdict().items()
            if t is not None and t.ndim and name != "inputs"
        }

        def step(width: int, total: Any, own: Any) -> tuple[Any, None]:
            number, columns = own
            change = block(width, number, of_rows, operands, moving._replace(**columns))
            return jax.tree.map(jnp.add, total, change), None

        full = {name: cut[0] for name, cut in columns.items()}
        total, _ = jax.lax.scan(partial(step, blocks.width), none, (blocks.numbers, full))
        if blocks.rest:
            rest = {name: cut[1] for name, cut in columns.items()}
            total, _ = step(blocks.rest, total, (blocks.number, rest))
        return total

    return jax.tree.map(loss_fn.classes.across, all_blocks(of_rows, operands, moving))


# A block of exclusive classes has its gradient from the statistics of all of them, whose tangents
# are 0: they are a cache. What the gradient's own derivative needs of the other blocks is in the
# tangent of the moment, which costs nothing where nobody differentiates twice.
@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _moment(loss_fn: Loss, blocks: ClassCut, known: base.Known, operands: Operands) -> Moment:
    none = zero_from(*jax.tree.leaves(known.statistics))
    return Moment(none, none)


@_moment.defjvp
def _moment_jvp(
    loss_fn: Loss, blocks: ClassCut, primals: Any, tangents: Any
) -> tuple[Moment, Moment]:
    known, operands = primals
    moment = _moment(loss_fn, blocks, known, operands)
    statistics = known.statistics._replace(moment=moment)
    # Ids have no tangent, and exclusive classes have no parameters.
    moving = tangents[1]._replace(labels=None, parameters=None)

    def block(rows: Any, own: Operands, change: Operands) -> Array:
        origin, statistics = rows

        def logits(inputs: Array, kernel: Kernel, bias: Array | None) -> Array:
            _, x, _ = data_of(loss_fn, Operands(own.labels, inputs, kernel, bias, None))
            if known.kept is None:
                return x
            kept: Array = base.without_dropped(loss_fn, known.kept)(x)
            return kept

        dinputs = change.inputs
        if dinputs is not None:
            dinputs = dinputs.astype(own.inputs.dtype)
        x, dx = jax.jvp(
            logits, (own.inputs, own.kernel, own.bias), (dinputs, change.kernel, change.bias)
        )
        whole = loss_fn.unsharded
        return jnp.squeeze(whole.moment_of_block(x, dx, statistics, origin), loss_fn.axis)

    def total(origin: Array | None) -> Array:
        rows = (origin, statistics)
        none = no_losses(operands)
        sums = sum_over_blocks(loss_fn, blocks, block, none, rows, operands, moving)
        return loss_fn.classes.expand(sums)

    origin = total(None)
    return moment, Moment(origin, total(origin))
