"""Losses straight from the output projection, a block of examples at a time.

The logits of a step, `inputs @ kernel + bias`, are its largest array and are needed only to be
reduced. Here the examples are cut into blocks, each product keeps the full class axis (small
tiles of classes are slow on every chip), and one block of logits is alive at a time.

Both forms below compute the losses of a block by `_loss.losses`, so every rule about digits,
infinities and dropped examples holds here too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jxent import _loss, _mesh
from jxent._arithmetic import computing_dtype
from jxent._blocks import Cut
from jxent._dispatch import per_platform
from jxent._loss import Summed


def without_broken(weights: Array, inputs: Array) -> tuple[Array, Array]:
    """Weights and inputs with 0 in place of examples that weigh 0 and whose inputs are inf or NaN.

    Before the projection: its derivative multiplies the inputs by the logits' cotangent, which is
    0 there, and NaN with them. The weight is replaced as well, so that its slope is 0.
    """
    broken = (weights == 0) & ~jnp.all(jnp.isfinite(inputs), axis=1)
    return (
        jnp.where(broken, jnp.zeros_like(weights), weights),
        jnp.where(broken[:, None], jnp.zeros_like(inputs), inputs),
    )


class Operands(NamedTuple):
    """What the losses of a projection are computed from, beside their weights."""

    labels: Array
    inputs: Float[Array, "examples features"]
    kernel: Float[Array, "features classes"]
    bias: Float[Array, "classes"] | None
    parameters: Any  # the loss's own, such as a `pos_weight` of each class

    @property
    def of_rows(self) -> tuple[Any, Any]:
        """What each example has of its own; of tangents, None for one that is zero."""
        return self.labels, self.inputs

    @property
    def shared(self) -> tuple[Any, Any, Any]:
        """What all examples share; None as above, and for no bias."""
        return self.kernel, self.bias, self.parameters


_Pair = tuple[Array, Operands]  # weights and the rest
_Names = frozenset[str]  # of arguments
_Slopes = dict[str, Any]  # by the arguments' names
_Swept = tuple[Array, _Slopes]
_OfBlock = tuple[Array, _Slopes, _Slopes]


def _kept(weights: Array | None, blocks: Cut, inputs: Array) -> Array | None:
    """Weights that tell the places which are filled up from examples.

    Such a place has logits of its own, 0 times the kernel, which may be NaN: it weighs 0, and is
    dropped like any example of weight 0.
    """
    if weights is not None or not blocks.is_ragged(inputs.shape[0]):
        return weights
    return jnp.ones_like(inputs[:, 0], computing_dtype(inputs.dtype), shape=inputs.shape[:1])


def _project(inputs: Array, kernel: Array, bias: Array | None) -> Float[Array, "block classes"]:
    """The logits of a block, accumulated in float32 at least."""
    x = jnp.matmul(
        inputs,
        kernel,
        preferred_element_type=computing_dtype(kernel.dtype),
        out_sharding=_mesh.split_of_product(inputs, kernel),
    )
    return x if bias is None else x + bias[None]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def per_example(
    member: Summed, blocks: Cut, weights: Array | None, operands: Operands
) -> tuple[Array, _loss.Known]:
    """Losses of all examples, unweighted, and what is known of them, as `_loss.losses`."""
    operands = _mesh.alike(operands)
    kernel, bias, parameters = operands.shared

    def block(_: None, rows: Any) -> tuple[None, tuple[Array, _loss.Known]]:
        weights, labels, inputs = rows
        x = _project(inputs, kernel, bias)
        return None, _loss.losses(member, False, weights, labels, x, parameters)

    weights = _kept(weights, blocks, operands.inputs)
    rows = jax.tree.map(blocks.to_blocks, (weights, *operands.of_rows))
    _, results = jax.lax.scan(block, None, rows)
    values, known = jax.tree.map(partial(blocks.from_blocks, operands.inputs.shape[0]), results)
    return values, known


# A scan over blocks of tangents, each under `jax.checkpoint`: its transpose multiplies a block's
# logits once more, and keeps nothing of a block but one normaliser an example.
#
# Low precision: transposing x = inputs @ kernel as it stands would multiply a float32 cotangent by
# a bfloat16 operand, and add up d/d kernel over the scan in bfloat16. So the tangent of the inputs
# meets the finished product of the gradient and the kernel; that of the kernel enters the scan in
# float32, which its transpose then accumulates in, and is rounded inside, where the products are
# between operands of one dtype in both directions.
def _per_example_jvp(member: Summed, blocks: Cut, primals: Any, tangents: Any) -> tuple[Any, Any]:
    weights, operands = primals
    values, known = per_example(member, blocks, weights, operands)
    moving = _loss.present(tangents[1])
    wide = computing_dtype(operands.inputs.dtype)
    if moving.kernel is not None:
        moving = moving._replace(kernel=moving.kernel.astype(wide))
    operands, moving = _mesh.alike((operands, moving))

    @jax.checkpoint
    def block(rows: Any, shared: Any) -> Array:
        values, (statistics, kept), labels, inputs, dlabels, dinputs = rows
        (kernel, bias, parameters), (dkernel, dbias, dparameters) = shared
        data = (labels, _project(inputs, kernel, bias), parameters)
        dothers = (dlabels, None, dparameters)
        if kept is not None:  # a place that is filled up is not
            data, dothers = _loss.without_dropped(member, kept)((data, dothers))
        slope = member.gradient(data, statistics)
        of_part = jnp.zeros_like(values)  # over the classes that this chip holds
        if dinputs is not None:
            of_part += jnp.sum(
                _inputs_gradient(slope, inputs, kernel) * dinputs.astype(wide), axis=1
            )
        if dkernel is not None:
            # The output in the operands' dtype, so that the cotangent is in it too. In float16 that
            # is too narrow for a slope times its example's cotangent, usually 1 over their number.
            product = wide if inputs.dtype == jnp.float16 else inputs.dtype
            pushed = jnp.matmul(
                transposed(inputs.astype(product)).T,
                dkernel.astype(product),
                out_sharding=_mesh.split_of_product(inputs, kernel),
            ).astype(wide)
            of_part += jnp.sum(slope * pushed, axis=1)
        if dbias is not None:
            of_part += jnp.sum(slope * dbias[None], axis=1)
        change = member.classes.across(of_part)
        if jax.tree.leaves(dothers):
            change += member.tangent(data, statistics, dothers)
        return change

    @jax.checkpoint  # saves the rows as they were given, not as they are cut
    def all_blocks(rows: Any, shared: Any) -> Array:
        rows = jax.tree.map(blocks.to_blocks, rows)
        _, change = jax.lax.scan(lambda _, rows: (None, block(rows, shared)), None, rows)
        return blocks.from_blocks(operands.inputs.shape[0], change)

    rows = (values, known, *operands.of_rows, *moving.of_rows)
    change = all_blocks(rows, (operands.shared, moving.shared))
    return (values, known), (change, jax.tree.map(_loss.no_tangent, known))


per_example.defjvp(_per_example_jvp, symbolic_zeros=True)


def _inputs_gradient(slope: Array, inputs: Array, kernel: Array) -> Array:
    """d/d inputs of a block: the slope in the kernel's dtype before the product."""
    low, restored = _narrowed(slope, kernel.dtype)
    split = _mesh.split_of(inputs)
    return restored(
        jnp.matmul(low, kernel.T, preferred_element_type=slope.dtype, out_sharding=split)
    )


def _kernel_gradient(slope: Array, inputs: Array, kernel: Array) -> Array:
    """d/d kernel of a block, in the same way."""
    low, restored = _narrowed(slope, kernel.dtype)
    split = _mesh.split_of(kernel)
    return restored(
        jnp.matmul(transposed(inputs), low, preferred_element_type=slope.dtype, out_sharding=split)
    )


def _narrowed(slope: Array, dtype: DTypeLike) -> tuple[Array, Callable[[Array], Array]]:
    """The slope of a block in the dtype of its products, and what is left to do to them.

    float16 has 5 bits of exponent: a probability over the number of examples is below its range.
    So the largest element of a block is brought to between 2^13 and 2^14, by a power of two, which
    rounds nothing; float16 then holds what is 2^27 times smaller with all its bits, and an element
    that is 2^38 times smaller is 0. Where the largest is 0, inf or NaN nothing is scaled.
    """
    if dtype != jnp.float16:
        return slope.astype(dtype), lambda product: product
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(slope)), initial=0)
    _, exponent = jnp.frexp(largest)  # largest = m 2^exponent, m in [1/2, 1)
    usable = jnp.isfinite(largest) & (largest > 0)
    # Beyond these ends the power of two would not be a normal number of float32.
    exponent = jnp.clip(jnp.where(usable, exponent, 14), -100, 128)
    up, down = (jnp.ldexp(jnp.ones_like(largest), e) for e in (14 - exponent, exponent - 14))
    return (slope * up).astype(dtype), lambda product: product * down


@per_platform()
def transposed(inputs: Array) -> Array:
    """inputs.T, for d/d kernel = inputs.T @ slope."""
    return jnp.transpose(inputs)


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
        data = (labels, _project(inputs, kernel, bias), parameters)
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
            of_rows["inputs"] = _inputs_gradient(slope, inputs, kernel)
        if "kernel" in wanted:
            of_shared["kernel"] = _kernel_gradient(slope, inputs, kernel)
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
