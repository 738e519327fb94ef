"""One derivative rule for every loss per example.

A member of the family is a frozen dataclass of its options (`_sigmoid.Sigmoid`,
`_softmax.Softmax`, ...) with three methods:

    losses(*data)                       -> losses, statistics
    gradient(data, statistics)          -> d losses / d logits
    tangent(data, statistics, tangents) -> the tangent of the losses

`data` is (labels, logits, pos_weight) as the caller gave them; `statistics` is what is small
and dear, one normaliser an example.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from jxent import _explicit


class Member(Protocol):
    """What the rule below, and the projection in `_blocks`, ask of a loss."""

    axis: int | tuple[int, ...] | None  # of the classes, where a loss sums over them

    def losses(self, labels, logits, pos_weight) -> tuple[Array, Any]: ...

    def gradient(self, data, statistics) -> Array: ...

    def tangent(self, data, statistics, tangents) -> Array: ...


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def losses(member: Member, weights: Array | None, *data: Array | None) -> tuple[Array, Any]:
    """The member's losses, unweighted, in the computing dtype, and their statistics.

    `weights` leave the values as they are. They tell the rule which examples are dropped:
    where a weight is 0 and the loss is inf or NaN, nothing is passed back.
    """
    return member.losses(*data)


# The tangent is recomputed from the data as given and one normaliser an example: under
# `jax.checkpoint` reverse mode saves these and no second array of the logits' size, neither a
# float32 copy of bfloat16 logits nor smoothed labels nor capped logits.
#
# A dropped example is cut out of the *factors* (its data and statistics become 0), because zero
# times NaN is NaN, and out of its own tangent, which may come from the same broken computation.
# Where the loss is finite its factors are finite too, and multiplying by the weight is exact.
#
# The statistics are a cache. Whoever takes them differentiates with respect to the logits as a
# whole, so their own tangents are 0.
def _losses_jvp(member, primals, tangents):
    weights, *data = primals
    values, statistics = losses(member, weights, *data)
    moving = [None if isinstance(t, SymbolicZero) else t for t in tangents[1:]]

    @partial(jax.checkpoint, prevent_cse=False)
    def tangent(weights, data, statistics, values, moving):
        if weights is not None:
            clean = without_dropped(member, weights, values)
            data, statistics, moving = clean((data, statistics, moving))
        return member.tangent(data, statistics, moving)

    if all(t is None for t in moving):
        change = jnp.zeros_like(values)
    else:
        change = tangent(weights, data, statistics, None if weights is None else values, moving)
    return (values, statistics), (change, jax.tree.map(jnp.zeros_like, statistics))


losses.defjvp(_losses_jvp, symbolic_zeros=True)


def without_dropped(member: Member, weights: Array, values: Array) -> Callable[[Any], Any]:
    """Puts 0 in place of dropped examples in a tree of arrays."""
    dropped = (weights == 0) & ~jnp.isfinite(values)

    def clean(x):
        along = dropped
        if x.ndim > dropped.ndim:
            assert member.axis is not None
            along = jnp.expand_dims(dropped, member.axis)
        if x.ndim == 0 or any(m == 1 < n for m, n in zip(x.shape, along.shape, strict=True)):
            return x  # a pos_weight that all examples share
        return jnp.where(_explicit.filled(along, x), jnp.zeros_like(x), x)

    return partial(jax.tree.map, clean)


def weighted_losses(member: Member, weights: Array, *data: Array | None) -> Array:
    """The member's losses times their weights; exactly 0 where a weight is 0."""

    def weighted(weights, *data):
        values, _ = losses(member, weights, *data)
        return weigh(weights, values)

    if member.axis is None:
        # The losses are of the logits' size: compute them again rather than save them.
        weighted = jax.checkpoint(weighted)
    return weighted(weights, *data)


@jax.custom_jvp
def weigh(weights: Array, values: Array) -> Array:
    """Weights * values, and 0 where the weight is 0, even for a value of inf or NaN."""
    return jnp.where(weights == 0, 0, weights * values)


# To the weight the derivative is the loss, also at weight 0 where learned weights start. Where
# that loss is not finite it is 0: an infinite factor times the tangent 0 would be NaN.
@weigh.defjvp
def _weigh_jvp(primals, tangents):
    (weights, values), (dweights, dvalues) = primals, tangents
    slope = jnp.where(jnp.isfinite(values), values, 0)
    return weigh(weights, values), dweights * slope + weights * dvalues
