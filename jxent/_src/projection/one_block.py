"""What one block of a projection gives: losses, their tangent, their gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core import hints
from jxent._src.core.elementary import computing_dtype
from jxent._src.core.kernel import matrix
from jxent._src.loss_fns import base
from jxent._src.loss_fns.base import Data, Loss, LossComponents, Residuals
from jxent._src.projection.matmuls import (
    Operands,
    data_of,
    inputs_gradient,
    kernel_gradient,
    other_tangents,
    scaled_cast,
)
from jxent._src.sharding import explicit

Names = frozenset[str]  # of arguments
Grads = dict[str, Any]  # by the arguments' names
ValuesAndGrads = tuple[Array, LossComponents | None, Grads]  # losses, gradients of their total
CheckpointBlock = Callable[[Callable[..., Any]], Callable[..., Any]]


def tangent(
    loss_fn: Loss,
    is_shared: bool,
    values: Array,
    residuals: Residuals,
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
            out_sharding=explicit.matmul_sharding(inputs, matrix(kernel)),
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


class BlockResults(NamedTuple):
    """What a block gives; gradients by their arguments' names, of its own examples and shared."""

    values: Array
    parts: LossComponents | None
    keep_mask: Array | None
    of_rows: Grads
    of_shared: Grads


def results(
    loss_fn: Loss,
    masks: bool,
    wanted: Names,
    shared: Callable[[Array], Array],
    weights: Array,
    operands: Operands,
) -> BlockResults:
    """Losses and gradients of a block. `shared`: what becomes of a slope that two products read."""
    data = data_of(loss_fn, operands)
    values, residuals = base.losses(loss_fn, False, weights if masks else None, *data)
    grads = gradients(loss_fn, wanted, shared, weights, values, residuals, data, operands)
    return BlockResults(
        values, base.components(loss_fn, residuals.statistics), residuals.keep_mask, *grads
    )


def gradients(
    loss_fn: Loss,
    wanted: Names,
    shared: Callable[[Array], Array],
    weights: Array,
    values: Array,
    residuals: Residuals,
    data: Data,
    operands: Operands,
) -> tuple[Grads, Grads]:
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
    of_rows, of_shared = Grads(), Grads()
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
            floating(own_labels) if "labels" in wanted else None,
            own_parameters if "parameters" in wanted else None,
        )
        dlabels, dparameters = pull(cotangent + jnp.zeros_like(tangent_out))
        if "labels" in wanted:
            of_rows["labels"] = dlabels
        if "parameters" in wanted:
            of_shared["parameters"] = dparameters
    return of_rows, of_shared


def floating(labels: Any) -> Any:
    """None in place of what has no derivative."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, labels)
