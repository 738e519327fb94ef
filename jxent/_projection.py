"""Losses straight from the output projection, a block of examples at a time.

The logits of a step, `inputs @ kernel + bias`, are its largest array and are needed only to be
reduced. Here the examples are cut into blocks, each product keeps the full class axis (small
tiles of classes are slow on every chip), and one block of logits is alive at a time.

Block k takes the examples k, k + K, k + 2 K, ...: strided, so that under automatic sharding every
block stays evenly split over the chips that the examples are split over.

Both forms below compute the losses of a block by `_loss.losses`, so every rule about digits,
infinities and dropped examples holds here too.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent import _loss, _mesh
from jxent._arithmetic import computing_dtype
from jxent._dispatch import per_platform
from jxent._loss import Member

# Elements of a block of logits that every shape may have: 128 MiB in float32.
_ROOM = 2**25


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


class Cut(NamedTuple):
    """How examples are cut: `number` blocks of `size`; the last places may be filled up."""

    number: int
    size: int

    def is_ragged(self, examples: int) -> bool:
        """Whether places are filled up."""
        return self.number * self.size != examples

    def to_blocks(self, x: Array) -> Array:
        """`[examples, ...]` as `[number, size, ...]`, strided; zeros fill the last places."""
        number, size = self
        if self.is_ragged(x.shape[0]):
            x = jnp.pad(x, [(0, number * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
        return jnp.swapaxes(x.reshape(size, number, *x.shape[1:]), 0, 1)

    def from_blocks(self, examples: int, x: Array) -> Array:
        """The inverse: drops what was filled in."""
        return jnp.swapaxes(x, 0, 1).reshape(self.number * self.size, *x.shape[2:])[:examples]


def cut(examples: int, kernel: tuple[int, ...], block_size: int | None) -> Cut:
    """The blocks to cut the examples into.

    By default a block has 2^25 logits, but at least half as many examples as there are features:
    adding to d/d kernel reads and writes it once a block, and fewer examples a block would leave
    the products waiting for that. Blocks are evened out, unless the examples' number is a symbol
    (`jax.export`).
    """
    features, classes = kernel
    if block_size is None:
        block_size = max(_ROOM // classes, features // 2, 8)
        block_size -= block_size % 128 if block_size > 128 else 0
    number = -(-examples // block_size)
    if not isinstance(examples, int):
        return Cut(number, block_size)
    number = max(1, number)
    return Cut(number, -(-examples // number))


def flat(labels: Array, inputs: Array) -> tuple[Array, Array]:
    """Labels and inputs with one axis of examples."""
    batch = inputs.shape[:-1]
    examples = math.prod(batch)
    labels = labels.reshape(examples, *labels.shape[len(batch) :])
    return labels, inputs.reshape(examples, inputs.shape[-1])


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
def per_example(member: Member, blocks: Cut, weights, labels, inputs, kernel, bias, pos_weight):
    """Losses of all examples, unweighted, and what is known of them, as `_loss.losses`."""
    labels, inputs, kernel, bias, pos_weight = _mesh.alike(labels, inputs, kernel, bias, pos_weight)

    def block(_, rows):
        weights, labels, inputs = rows
        x = _project(inputs, kernel, bias)
        return None, _loss.losses(member, False, weights, labels, x, pos_weight)

    weights = _kept(weights, blocks, inputs)
    rows = jax.tree.map(blocks.to_blocks, (weights, labels, inputs))
    _, results = jax.lax.scan(block, None, rows)
    return jax.tree.map(partial(blocks.from_blocks, inputs.shape[0]), results)


# A scan over blocks of tangents, each under `jax.checkpoint`: its transpose multiplies a block's
# logits once more, and keeps nothing of a block but one normaliser an example.
#
# Low precision: transposing x = inputs @ kernel as it stands would multiply a float32 cotangent by
# a bfloat16 operand, and add up d/d kernel over the scan in bfloat16. So the tangent of the inputs
# meets the finished product of the gradient and the kernel; that of the kernel enters the scan in
# float32, which its transpose then accumulates in, and is rounded inside, where the products are
# between operands of one dtype in both directions.
def _per_example_jvp(member, blocks, primals, tangents):
    _, labels, inputs, kernel, bias, pos_weight = primals
    dlabels, dinputs, dkernel, dbias, dpos_weight = _loss.present(tangents[1:])
    values, known = per_example(member, blocks, *primals)
    wide = computing_dtype(inputs.dtype)
    dkernel = None if dkernel is None else dkernel.astype(wide)
    labels, inputs, kernel, bias, pos_weight, dlabels, dinputs, dkernel, dbias, dpos_weight = (
        _mesh.alike(
            labels, inputs, kernel, bias, pos_weight, dlabels, dinputs, dkernel, dbias, dpos_weight
        )
    )

    @jax.checkpoint
    def block(rows, shared):
        values, (statistics, kept), labels, inputs, dlabels, dinputs = rows
        kernel, bias, pos_weight, dkernel, dbias, dpos_weight = shared
        x = _project(inputs, kernel, bias)
        data = (labels, x, pos_weight)
        moving = (dlabels, None, dpos_weight)
        if kept is not None:  # a place that is filled up is not
            data, moving = _loss.without_dropped(member, kept)((data, moving))
        slope = member.gradient(data, statistics)
        of_part = jnp.zeros_like(values)  # over the classes that this chip holds
        if dinputs is not None:
            of_part += jnp.sum(_pull(slope, kernel, inputs) * dinputs.astype(wide), axis=1)
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
        if dlabels is not None or dpos_weight is not None:
            change += member.tangent(data, statistics, moving)
        return change

    @jax.checkpoint  # saves the rows as they were given, not as they are cut
    def all_blocks(rows, shared):
        rows = jax.tree.map(blocks.to_blocks, rows)
        _, change = jax.lax.scan(lambda _, rows: (None, block(rows, shared)), None, rows)
        return blocks.from_blocks(inputs.shape[0], change)

    change = all_blocks(
        (values, known, labels, inputs, dlabels, dinputs),
        (kernel, bias, pos_weight, dkernel, dbias, dpos_weight),
    )
    return (values, known), (change, jax.tree.map(_loss.no_tangent, known))


per_example.defjvp(_per_example_jvp, symbolic_zeros=True)


def _pull(slope: Array, kernel: Array, inputs: Array) -> Array:
    """d/d inputs of a block: the slope in the kernel's dtype before the product."""
    low, restored = _narrowed(slope, kernel.dtype)
    return restored(
        jnp.matmul(
            low,
            kernel.T,
            preferred_element_type=slope.dtype,
            out_sharding=_mesh.split_of(inputs),
        )
    )


def _narrowed(slope: Array, dtype) -> tuple[Array, Callable[[Array], Array]]:
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
    member: Member, blocks: Cut, masks: bool, weights, labels, inputs, kernel, bias, pos_weight
) -> Float[Array, ""]:
    """sum(weights * losses), weights `[examples]` in the computing dtype.

    `masks`: whether a weight of 0 was meant to drop its example, or came from a plain number.
    """
    primals = (weights, labels, inputs, kernel, bias, pos_weight)
    return _sweep(member, blocks, masks, (False,) * len(primals), *primals)[0]


# The loss is a scalar, so its derivatives need no cotangent to be known: one sweep over the blocks
# returns the loss and d/d every argument that has a tangent, three products for value and both
# gradients. The tangent is then a sum of inner products, which JAX transposes by itself. In
# float32, so that the rounding to the operands' dtype comes last.
def _total_jvp(member, blocks, masks, primals, tangents):
    moving = _loss.present(tangents)
    wanted = tuple(t is not None for t in moving)
    value, slopes = _sweep(member, blocks, masks, wanted, *primals)
    of_weights, *of_parts = (
        jnp.zeros_like(value) if t is None else _inner(slope, t, value.dtype)
        for slope, t in zip(slopes, moving, strict=True)
    )
    # All but the weights act through the classes that this chip holds.
    return value, of_weights + member.classes.across(sum(of_parts))


total.defjvp(_total_jvp, symbolic_zeros=True)


# Saves the slope as it is, not a wider copy. Without the barrier that a checkpoint otherwise sets
# up, XLA:TPU drops the factor 1 of a gradient, and holds no second and third slope for it.
@partial(jax.checkpoint, static_argnums=2, prevent_cse=False)
def _inner(slope: Array, t: Array, dtype) -> Array:
    return jnp.sum(slope.astype(dtype) * t.astype(dtype))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def _sweep(member: Member, blocks: Cut, masks: bool, wanted: tuple[bool, ...], *arguments):
    """The total, and for each argument d total / d argument if it is wanted, else None."""
    return _plain_sweep(member, blocks, masks, wanted, lambda block: block, *arguments)


# The derivatives of the sweep (second order of the loss) are those of its scan, with each block
# under `jax.checkpoint`, the accumulators outside it: of a block only its rows are kept. A
# checkpoint in the sweep itself would be inlined when the rule above is linearised, and a second
# reverse pass would keep all the logits.
@_sweep.defjvp
def _sweep_jvp(member, blocks, masks, wanted, primals, tangents):
    return jax.jvp(
        partial(_plain_sweep, member, blocks, masks, wanted, jax.checkpoint), primals, tangents
    )


def _plain_sweep(
    member, blocks, masks, wanted, protect, weights, labels, inputs, kernel, bias, pos_weight
):
    want_weights, want_labels, want_inputs, want_kernel, want_bias, want_pos_weight = wanted
    examples = inputs.shape[0]
    masks = masks or blocks.is_ragged(examples)  # see `_kept`
    labels, inputs, kernel, bias, pos_weight = _mesh.alike(labels, inputs, kernel, bias, pos_weight)

    @protect
    def block(weights, labels, inputs, kernel, bias, pos_weight):
        x = _project(inputs, kernel, bias)

        def losses(labels, x, pos_weight):
            return _loss.losses(
                member, False, weights if masks else None, labels, x, pos_weight
            )[0]  # fmt: skip

        by_logits = want_inputs or want_kernel or want_bias
        float_labels = labels if want_labels else None
        values, pull = jax.vjp(
            lambda z, x, q: losses(
                labels if z is None else z, x, pos_weight if q is None else q
            ),
            float_labels,
            x,
            pos_weight if want_pos_weight else None,
        )  # fmt: skip
        by_rows: list[Array | None] = [values, None, None]
        by_shared: list[Array | None] = [None, None, None]
        if by_logits or want_labels or want_pos_weight:
            # The sum has the type of the values, on every mesh.
            by_rows[1], slope, by_shared[2] = pull(weights + jnp.zeros_like(values))
        if by_logits:
            if want_inputs:
                by_rows[2] = _pull(slope, kernel, inputs)
            if want_kernel:
                low, restored = _narrowed(slope, kernel.dtype)
                by_shared[0] = restored(
                    jnp.matmul(
                        transposed(inputs),
                        low,
                        preferred_element_type=slope.dtype,
                        out_sharding=_mesh.split_of(kernel),
                    )
                )
            if want_bias:
                by_shared[1] = jnp.sum(slope, axis=0)
        return by_rows, by_shared

    def step(carry, rows):
        by_rows, by_shared = block(*rows, kernel, bias, pos_weight)
        return jax.tree.map(jnp.add, carry, by_shared), by_rows

    wide = computing_dtype(inputs.dtype)

    def accumulator(wanted, x):
        return jnp.zeros_like(x, dtype=wide) if wanted else None

    start = [
        accumulator(want_kernel, kernel),
        accumulator(want_bias, bias),
        accumulator(want_pos_weight, pos_weight),
    ]
    rows = jax.tree.map(blocks.to_blocks, (weights, labels, inputs))
    by_shared, by_rows = jax.lax.scan(step, start, rows)
    values, *by_rows = jax.tree.map(partial(blocks.from_blocks, examples), by_rows)
    value = jnp.sum(_loss.weigh(weights, values))
    by_weights = jnp.where(jnp.isfinite(values), values, 0) if want_weights else None
    return value, [by_weights, *by_rows, *by_shared]
