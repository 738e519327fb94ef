"""What a projection's losses are computed from, and its three products."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jxent._src.core import hints
from jxent._src.core.blocks import Block
from jxent._src.core.elementary import WeightedIds, computing_dtype
from jxent._src.core.kernel import Kernel, Transposed, matrix
from jxent._src.loss_fns import excluded
from jxent._src.loss_fns.base import Data, OfLogits, none_for_zeros
from jxent._src.sharding import explicit, varying


class Operands(NamedTuple):
    """What the losses of a projection are computed from, beside their weights."""

    labels: Any  # an array, or a tree of them
    inputs: Float[Array, "examples features"]
    kernel: Kernel  # of tangents None where it is zero, as all of them
    bias: Float[Array, "classes"] | None = None
    parameters: Any = None  # the loss's own, such as a `pos_weight` of each class

    @property
    def of_rows(self) -> tuple[Any, Any]:
        """What each example has of its own; of tangents, None for one that is zero."""
        return self.labels, self.inputs

    @property
    def shared(self) -> tuple[Any, Any, Any]:
        """What all examples share; None as above, and for no bias."""
        return self.kernel, self.bias, self.parameters


def match_varying(operands: Any) -> Any:
    """As `varying.match_varying`; lists of weighted labels are whole on every chip."""

    def is_list(x: Any) -> bool:
        return isinstance(x, WeightedIds)

    def whole(given: Any, made: Any) -> Any:
        return given if is_list(given) else made

    return jax.tree.map(whole, operands, varying.match_varying(operands), is_leaf=is_list)


def in_products(operands: Operands) -> Operands:
    """With the kernel in the inputs' dtype, which all products are in."""
    low: Operands = operands._replace(kernel=operands.kernel.astype(operands.inputs.dtype))
    return low


def of_block(loss_fn: OfLogits, block: Block, operands: Operands) -> Operands:
    """The operands of a block of classes."""
    labels, inputs, kernel, bias, parameters = operands
    return Operands(
        excluded.labels_of_block(loss_fn, block, labels),
        inputs,
        block.of(kernel),
        None if bias is None else block.of(bias),
        block.of(parameters) if parameters is not None and parameters.ndim else parameters,
    )


def zero_nonfinite_where_masked(weights: Array, inputs: Array) -> tuple[Array, Array]:
    """Weights and inputs with 0 in place of examples that weigh 0 and whose inputs are inf or NaN.

    Before the projection: its derivative multiplies the inputs by the logits' cotangent, which is
    0 there, and NaN with them. The weight is replaced as well, so that its slope is 0.
    """
    nonfinite = (weights == 0) & ~jnp.all(jnp.isfinite(inputs), axis=1)
    return (
        jnp.where(nonfinite, jnp.zeros_like(weights), weights),
        jnp.where(nonfinite[:, None], jnp.zeros_like(inputs), inputs),
    )


def no_losses(operands: Operands) -> Array:
    """0 for each example, which varies and is split as the losses are."""
    inputs = operands.inputs
    return jnp.sum(jnp.zeros_like(inputs, dtype=computing_dtype(inputs.dtype)), axis=1)


def nonzero_tangents_of(tangents: Any) -> Operands:
    """The tangents of operands, None for those that are zero; excluded classes have none."""
    nonzero_tangents = cast(Operands, none_for_zeros(tangents))
    labels = excluded.labels_alone(nonzero_tangents.labels)
    labels, kernel = (x if jax.tree.leaves(x) else None for x in (labels, nonzero_tangents.kernel))
    return nonzero_tangents._replace(labels=labels, kernel=cast(Kernel, kernel))


def project(inputs: Array, kernel: Kernel, bias: Array | None) -> Float[Array, "block classes"]:
    """The logits of a block, accumulated in float32 at least."""
    columns = matrix(kernel)
    x = jnp.matmul(
        inputs,
        columns,
        preferred_element_type=computing_dtype(kernel.dtype),
        out_sharding=explicit.matmul_sharding(inputs, columns),
    )
    return x if bias is None else x + bias[None]


def logits_jvp(
    operands: Operands, tangents_in: Operands, shared: bool = False
) -> Float[Array, "block classes"] | None:
    """The tangent of a block's logits, of operands in the products' dtype; None for zero.

    Its products have their operands' dtype, so that the transposed ones, whose operand is the
    cotangent, do. float16 is too narrow for a slope times its example's cotangent. `shared`: the
    transposed ones read one cotangent.
    """
    _, inputs, kernel, _, _ = operands
    wide = computing_dtype(inputs.dtype)
    product = wide if inputs.dtype == jnp.float16 else inputs.dtype
    split = explicit.matmul_sharding(inputs, matrix(kernel))

    def times(rows: Array, columns: Kernel) -> Array:
        rows, columns = rows.astype(product), matrix(columns.astype(product))
        return jnp.matmul(rows, columns, out_sharding=split)

    moved = []
    if tangents_in.inputs is not None:
        moved.append(times(tangents_in.inputs, kernel))
    if tangents_in.kernel is not None:
        moved.append(times(inputs, tangents_in.kernel))
    if shared and moved:
        moved = hints.materialize(moved)  # else each product computes it again
    moved = [x.astype(wide) for x in moved]
    if tangents_in.bias is not None:
        rows = jnp.zeros_like(inputs[:, :1], dtype=wide)
        moved.append(rows + tangents_in.bias[None])
    return reduce(jnp.add, moved) if moved else None


@jax.custom_jvp
def logits(inputs: Array, kernel: Kernel, bias: Array | None) -> Float[Array, "block classes"]:
    """The logits of a block, whose derivatives are products in the inputs' dtype too."""
    return project(inputs, kernel.astype(inputs.dtype), bias)


# As JAX differentiates a product of bfloat16 operands that is accumulated in float32, the products
# of its transpose would be of float32 operands.
def _logits_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    value = logits(*primals)
    inputs, kernel, bias = primals
    operands = in_products(Operands(None, inputs, kernel, bias, None))
    tangent_out = logits_jvp(operands, nonzero_tangents_of(Operands(None, *tangents, None)))  # type: ignore[call-arg]
    return value, jnp.zeros_like(value) if tangent_out is None else tangent_out


logits.defjvp(_logits_jvp, symbolic_zeros=True)


def data_of(loss_fn: OfLogits, operands: Operands) -> Data:
    """What the loss_fn's losses are computed from, with the logits of a block."""
    x = project(operands.inputs, operands.kernel, operands.bias)
    if loss_fn.logit_softcap is not None:
        x = hints.materialize_before_cap(x)
    if loss_fn.has_teacher:
        labels, parameters = loss_fn.of_operands(operands.labels, operands.parameters)
        return labels, x, parameters
    labels, x = excluded.labels_and_logits(loss_fn.classes, operands.labels, x)
    return labels, x, operands.parameters


def other_tangents(
    loss_fn: OfLogits, operands: Operands, dlabels: Any, dparameters: Any
) -> tuple[Any, None, Any]:
    """Those of a block's data but its logits, linear in those of labels and parameters."""
    if not loss_fn.has_teacher:
        return dlabels, None, dparameters
    if not jax.tree.leaves((dlabels, dparameters)):
        return None, None, None
    given = (operands.labels, operands.parameters)

    def zeros_for_none(x: Array | None, t: Array | None) -> Array | None:
        return jnp.zeros_like(x) if t is None and x is not None else t

    if dparameters is None:
        dparameters = jax.tree.map(lambda _: None, operands.parameters)
    nonzero_tangents = jax.tree.map(
        zeros_for_none, given, (dlabels, dparameters), is_leaf=lambda x: x is None
    )
    _, (dlabels, dparameters) = jax.jvp(loss_fn.of_operands, given, nonzero_tangents)
    return dlabels, None, dparameters


class ScaledCast(NamedTuple):
    """The slope of a block, and the same in the dtype of its products."""

    grad: Array
    low: Array
    down: Array | None  # what products of `low` are multiplied by; None for 1

    def times(self, multiply: Callable[[Array, Array], Array], operand: Array) -> Array:
        """A product of the slope and an operand of the projection."""
        if self.down is None:
            return multiply(self.low, operand)
        product: Array = _scaled_product(multiply, *self, operand)
        return product


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _scaled_product(
    multiply: Callable[[Array, Array], Array], grad: Array, low: Array, down: Array, operand: Array
) -> Array:
    return multiply(low, operand) * down


# `low` is scaled for the slope: its tangent may be larger by any factor, and would overflow. So the
# tangent meets the operand in its own, wider dtype.
def _scaled_product_jvp(
    multiply: Callable[[Array, Array], Array], primals: Any, tangents: Any
) -> tuple[Array, Array]:
    _, low, down, operand = primals
    dgrad, _, _, doperand = none_for_zeros(tangents)
    value = _scaled_product(multiply, *primals)
    tangent_out = jnp.zeros_like(value)
    if dgrad is not None:
        tangent_out += multiply(dgrad, operand.astype(dgrad.dtype))
    if doperand is not None:
        tangent_out += multiply(low, doperand) * down
    return value, tangent_out


_scaled_product.defjvp(_scaled_product_jvp, symbolic_zeros=True)


def inputs_gradient(grad: ScaledCast, inputs: Array, kernel: Kernel) -> Array:
    """d/d inputs of a block."""
    wide, split = computing_dtype(kernel.dtype), explicit.explicit_sharding(inputs)

    def multiply(low: Array, rows: Array) -> Array:
        return jnp.matmul(low, rows, preferred_element_type=wide, out_sharding=split)

    return grad.times(multiply, matrix(kernel).T)


def kernel_gradient(grad: ScaledCast, inputs: Array, kernel: Kernel) -> Kernel:
    """d/d kernel of a block, as the kernel lies."""
    wide = computing_dtype(kernel.dtype)
    if isinstance(kernel, Transposed):
        of_table = explicit.explicit_sharding(kernel.table)

        def multiply_table(low: Array, inputs: Array) -> Array:
            return jnp.matmul(low.T, inputs, preferred_element_type=wide, out_sharding=of_table)

        return Transposed(grad.times(multiply_table, inputs))
    split = explicit.explicit_sharding(kernel)

    def multiply(low: Array, columns: Array) -> Array:
        return jnp.matmul(columns, low, preferred_element_type=wide, out_sharding=split)

    return grad.times(multiply, hints.transpose(inputs))


def scaled_cast(grad: Array, dtype: DTypeLike) -> ScaledCast:
    """The slope of a block in the dtype of its products.

    float16 has 5 bits of exponent: a probability over the number of examples is below its range.
    So the largest element of a block is brought to between 2^13 and 2^14, by a power of two, which
    rounds nothing; float16 then holds what is 2^27 times smaller with all its bits, and an element
    that is 2^38 times smaller is 0. Where the largest is 0, inf or NaN nothing is scaled.
    """
    if dtype != jnp.float16:
        return ScaledCast(grad, grad.astype(dtype), None)
    fixed = jax.lax.stop_gradient(grad)  # see `_scaled_product`
    largest = jnp.max(jnp.abs(fixed), initial=0)
    _, exponent = jnp.frexp(largest)  # largest = m 2^exponent, m in [1/2, 1)
    usable = jnp.isfinite(largest) & (largest > 0)
    # Beyond these ends the power of two would not be a normal number of float32.
    exponent = jnp.clip(jnp.where(usable, exponent, 14), -100, 128)
    up, down = (jnp.ldexp(jnp.ones_like(largest), e) for e in (14 - exponent, exponent - 14))
    return ScaledCast(grad, (fixed * up).astype(dtype), down)
