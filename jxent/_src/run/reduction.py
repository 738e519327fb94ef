"""What becomes of the losses and their weights."""

from collections.abc import Sequence
from enum import Enum
from functools import reduce
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent._src.core import hints
from jxent._src.core.serialization import register_serialization
from jxent._src.loss_fns import base

Count = Array | float
"""How many elements were counted: a number where that is known before any weight is."""


class Reduction(str, Enum):  # noqa: UP042 - as TensorFlow users know it, str() included
    """What becomes of the losses l and their weights w, broadcast to l. No elements give 0."""

    NONE = "none"
    """w l: nothing is reduced."""

    SUM = "weighted_sum"
    """sum(w l)."""

    MEAN = "weighted_mean"
    """sum(w l) / sum(w)."""

    SUM_OVER_BATCH_SIZE = "weighted_sum_over_batch_size"
    """sum(w l) / number of elements of l."""

    SUM_BY_NONZERO_WEIGHTS = "weighted_sum_by_nonzero_weights"
    """sum(w l) / number of elements with w != 0."""

    SUM_OVER_NONZERO_WEIGHTS = SUM_BY_NONZERO_WEIGHTS
    """TensorFlow's older name of the same."""

    @classmethod
    def _missing_(cls, value: object) -> "Reduction | None":
        """The short names "mean" and "sum"."""
        return cls.MEAN if value == "mean" else cls.SUM if value == "sum" else None


@register_serialization("jxent.losses.SoftmaxAux")
class SoftmaxAux(NamedTuple):
    """What is reported beside a reduced softmax loss: scalars, float32 at least.

    Constants to differentiation: a gradient of them is 0.
    """

    cross_entropy: Float[Array, ""]
    """The reduced loss without its z-loss."""

    z_loss: Float[Array, ""]
    """The reduced z-loss; the two add up to the loss."""

    accuracy: Float[Array, ""]
    """sum(w right) / sum(w), and 0 where nothing is left.

    An example is right where its label is the class of the largest logit, the lowest id among
    equals; by dense labels, where that class has the row's largest label, before smoothing.
    """

    weight_sum: Float[Array, ""]
    """sum(w): adds accuracies up over micro-batches and chips."""

    denominator: Float[Array, ""]
    """What the reduction divided by: adds losses up."""


def aux(parts: base.LossComponents, weights: Array, denominator: Count) -> SoftmaxAux:
    """Of examples with these weights, one each."""
    denominator = jnp.asarray(denominator, weights.dtype)
    weights, denominator = jax.lax.stop_gradient((weights, denominator))
    weight_sum = jnp.sum(weights)

    def sums(x: Array) -> Array:
        return jnp.sum(base.apply_weights(weights, x))

    return SoftmaxAux(
        divided(sums(parts.cross_entropy), denominator),
        divided(sums(parts.z_loss), denominator),
        divided(sums(parts.correct), weight_sum),
        weight_sum,
        denominator,
    )


def count(reduction: Reduction, weights: Array, shape: tuple[int, ...], classes: int = 1) -> Count:
    """What the sum is divided by, for weights that are broadcast to losses of this shape.

    `classes`: how many elements each loss is the sum of, where they are counted.
    """
    if reduction is Reduction.SUM:
        return 1.0
    if reduction is Reduction.SUM_OVER_BATCH_SIZE:
        return _product((*shape, classes), weights)
    count_unmasked = weights
    if reduction is not Reduction.MEAN:
        count_unmasked = base.nonzero(
            jax.lax.stop_gradient(weights)
        )  # a step function has no derivative
    sizes = weights.shape or (1,) * len(shape)
    # Not `m == 1`, which is unknown for the symbolic dimensions of an export.
    repeated = [n for n, m in zip(shape, sizes, strict=True) if isinstance(m, int) and m == 1]
    return jnp.sum(count_unmasked) * _product((*repeated, classes), weights)


def _product(sizes: Sequence[int], like: Array) -> Count:
    """The product of sizes, in the dtype of `like`: int32 would wrap at 2^31 elements."""
    known: Count = float(prod(n for n in sizes if isinstance(n, int)))
    symbolic = (jnp.asarray(n).astype(like.dtype) for n in sizes if not isinstance(n, int))
    return reduce(jnp.multiply, symbolic, known)


def divided(x: Array, count: Count) -> Array:
    """The quotient, and 0 where nothing was counted."""
    known = isinstance(count, float)
    divisor = jnp.asarray(count or 1, x.dtype) if known else jnp.where(count == 0, 1, count)
    # Else a constant's rounded inverse is multiplied by: the mean of 41 ones would not be 1.
    quotient = x / hints.materialize(divisor)
    return quotient if known else jnp.where(count == 0, 0, quotient)
