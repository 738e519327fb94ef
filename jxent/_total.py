"""The weighted sum of a projection's losses: value and gradients in one sweep, three products."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jxent import _loss, _mesh
from jxent._arithmetic import computing_dtype
from jxent._blocks import Cut
from jxent._loss import Summed
from jxent._projection import Operands, inputs_gradient, kernel_gradient, project

_Pair = tuple[Array, Operands]  # weights and the rest
_Names = frozenset[str]  # of arguments
_Slopes = dict[str, Any]  # by the arguments' names
_Swept = tuple[Array, _Slopes]
_OfBlock = tuple[Array, _Slopes, _Slopes]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def total(
    member: Summed, blocks: Cut, masks: bool, weights: Float[Array, "examples"], operands: Operands
) -> Float[Array, ""]:
    """sum(weights * losses), weights in the computing dtype.

    `masks`: whether a weight of 0 was meant to drop its example, or came from a plain number.
    """
    return _sweep(member, blocks, masks, frozenset(), weights, operands)[0]


# The loss is a scalar, so its derivatives need no cotangent to be known: one sweep over the blocks
# returns the loss and d/d every argument that has a tangent, three products for value and both
# gradients. The tangent is then a sum of inner products, which JAX transposes by itself. In
# float32, so that the rounding to the operands' dtype comes last.
def _total_jvp(
    member: Summed, blocks: Cut, masks: bool, primals: _Pair, tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    dweights, moving = _loss.present(tangents)
    changes = {k: t for k, t in moving._asdict().items() if t is not None}
    if dweights is not None:
        changes["weights"] = dweights
    value, slopes = _sweep(member, blocks, masks, frozenset(changes), *primals)
    change = {k: _inner(slopes[k], t, value.dtype) for k, t in changes.items()}
    # All but the weights act through the classes that this chip holds.
    of_weights = change.pop("weights", jnp.zeros_like(value))
    return value, of_weights + member.classes.across(sum(change.values(), jnp.zeros_like(value)))


total.defjvp(_total_jvp, symbolic_zeros=True)


# Saves the slope as it is, not a wider copy. Without the barrier that a checkpoint otherwise sets
# up, a compiler drops the factor 1 of a gradient, and holds no second and third slope for it.
@partial(jax.checkpoint, static_argnums=2, prevent_cse=False)
def _inner(slope: Any, change: Any, dtype: DTypeLike) -> Array:
    def product(slope: Array, t: Array) -> Array:
        return jnp.sum(slope.astype(dtype) * t.astype(dtype))

    inner: Array = jax.tree.reduce(jnp.add, jax.tree.map(product, slope, change))
    return inner


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def _sweep(
    member: Summed, blocks: Cut, masks: bool, wanted: _Names, weights: Array, operands: Operands
) -> _Swept:
    """The total, and d total / d each argument that is wanted, by its name."""
    return _plain_sweep(member, blocks, masks, wanted, lambda block: block, weights, operands)


# The derivatives of the sweep (second order of the loss) are those of its scan, with each block
# under `jax.checkpoint`, the accumulators outside it: of a block only its rows are kept. A
# checkpoint in the sweep itself would be inlined when the rule above is linearised, and a second
# reverse pass would keep all the logits.
@_sweep.defjvp
def _sweep_jvp(
    member: Summed, blocks: Cut, masks: bool, wanted: _Names, primals: _Pair, tangents: _Pair
) -> tuple[_Swept, _Swept]:
    swept = partial(_plain_sweep, member, blocks, masks, wanted, jax.checkpoint)
    return jax.jvp(swept, primals, tangents)


def _plain_sweep(
    member: Summed,
    blocks: Cut,
    masks: bool,
    wanted: _Names,
    protect: Callable[..., Callable[..., _OfBlock]],
    weights: Array,
    operands: Operands,
) -> _Swept:
    examples = operands.inputs.shape[0]
    masks = masks or blocks.is_ragged(examples)  # see `_kept`
    wide = computing_dtype(operands.inputs.dtype)
    operands = _mesh.alike(operands)

    @protect
    def block(weights: Array, labels: Array, inputs: Array, shared: Any) -> _OfBlock:
        kernel, bias, parameters = shared
        data = (labels, project(inputs, kernel, bias), parameters)
        values, known = _loss.losses(member, False, weights if masks else None, *data)
        if not wanted - {"weights"}:
            return values, {}, {}
        if known.kept is not None:
            data = _loss.without_dropped(member, known.kept)(data)
        # The sum has the type of the values, on every mesh.
        cotangent = weights + jnp.zeros_like(values)
        of_rows, of_shared = _Slopes(), _Slopes()
        if wanted & {"inputs", "kernel", "bias"}:
            slope = jnp.expand_dims(cotangent, member.axis) * member.gradient(
                data, known.statistics
            )
        if "inputs" in wanted:
            of_rows["inputs"] = inputs_gradient(slope, inputs, kernel)
        if "kernel" in wanted:
            of_shared["kernel"] = kernel_gradient(slope, inputs, kernel)
        if "bias" in wanted:
            of_shared["bias"] = jnp.sum(slope, axis=0)
        if wanted & {"labels", "parameters"}:
            # Linear in the tangents, so at any point its transpose is the gradient.
            _, pull = jax.vjp(
                lambda dlabels, dparameters: member.tangent(
                    data, known.statistics, (dlabels, None, dparameters)
                ),
                data[0] if "labels" in wanted else None,
                data[2] if "parameters" in wanted else None,
            )
            dlabels, dparameters = pull(cotangent)
            if "labels" in wanted:
                of_rows["labels"] = dlabels
            if "parameters" in wanted:
                of_shared["parameters"] = dparameters
        return values, of_rows, of_shared

    def step(sums: _Slopes, rows: Any) -> tuple[_Slopes, Any]:
        values, of_rows, of_shared = block(*rows, operands.shared)
        return jax.tree.map(jnp.add, sums, of_shared), (values, of_rows)

    start: _Slopes = {
        name: jax.tree.map(partial(jnp.zeros_like, dtype=wide), getattr(operands, name))
        for name in ("kernel", "bias", "parameters")
        if name in wanted
    }
    rows = jax.tree.map(blocks.to_blocks, (weights, *operands.of_rows))
    sums, (values, of_rows) = jax.lax.scan(step, start, rows)
    values, of_rows = jax.tree.map(partial(blocks.from_blocks, examples), (values, of_rows))
    slopes = {**sums, **of_rows}
    if "weights" in wanted:
        slopes["weights"] = jnp.where(jnp.isfinite(values), values, 0)
    return jnp.sum(_loss.weigh(weights, values)), slopes
