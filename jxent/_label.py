"""The normaliser of a row whose class is known: all that the loss of ids and its gradient need.

The probability of the label is never subtracted from 1, neither in the loss, `-log p`, nor in
its slope, `-(1 - p)`: both come from the sum over the *other* classes.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jxent import _normalizer
from jxent._attempt import attempt
from jxent._classes import Classes
from jxent._normalizer import bounded, gap


class LabelNormalizer(NamedTuple):
    """One number an example each; the class axis is kept, of size 1.

    A cache of the logits: see `_normalizer`.
    """

    loss: Array  # -log p of the label
    log_normalizer: Array  # logsumexp
    shift: Array  # p_j = exp(x_j - shift) * scale
    scale: Array
    miss: Array  # 1 - p of the label
    share: Array | None = None  # what smoothing adds to every label, if there is smoothing


def normalizer(
    x: Float[Array, "..."], ids: Integer[Array, "..."], own: Float[Array, "..."], classes: Classes
) -> LabelNormalizer:
    """From the logits, the labels' ids in range, and the labels' logits `own`."""

    def careful(x, ids, own):
        return of_pair(own, *_normalizer.pair(x, classes))

    exact = 2 ** (jnp.finfo(x.dtype).nmant + 1)  # up to here integers are, as `_others` needs
    if not classes.are_last(x) or x.shape[-1] > exact:
        return careful(x, ids, own)
    cheap = attempt(_without_shift, careful)
    return jax.lax.platform_dependent(x, ids, own, cpu=cheap, default=careful)


def of_pair(own: Array, top: Array, rest: Array) -> LabelNormalizer:
    """From the pair (max, rest) of the row."""
    apart = gap(own, top)
    more = jnp.log1p(rest)
    scale = 1 / (1 + rest)
    leads = (own == top) & (rest < 1)
    miss = jnp.where(leads, rest * scale, 1 - jnp.exp(-apart) * scale)
    return LabelNormalizer(apart + more, top + more, bounded(top), scale, miss)


# The maximum costs as much as a third of the loss on CPU. Without a shift there is nothing to
# round in exp(x), and most programs' logits are far from where it overflows. With e = exp(own) and
# r = `others`, every intermediate that a usable row has (float32; n classes, at most 2^24):
#
#     exp(x_j)       below most, as r is; what is flushed to 0 adds up to n tiny < eps r
#     e, 1 / e       between exp(-reach) = 2e-35 and exp(reach) = 5e34
#     r              between least = n 1e-31 and most = 2^(126 - bits of n)
#     r + e          between least and 2^125
#     r / e          below the largest number, by a guard of its own: from e = 2e-35 and r > 6e3 it
#                    would overflow; above tiny, or flushed to 0 as the loss itself is then
#     log(r + e)     between -72 and 87, so its exponential is as far from both ends as r + e
#     miss, scale    miss in [0, 1], above tiny or flushed as it is; scale is 1 to rounding
#
# Rows with -inf for the label, with +inf or with NaN are not usable: no comparison holds for NaN.
def _without_shift(x: Array, ids: Array, own: Array) -> tuple[Array, LabelNormalizer]:
    info = jnp.finfo(x.dtype)
    classes = x.shape[-1]
    least = classes * float(info.tiny) / float(info.eps)
    # A power of two, by which every number of a class can be multiplied exactly: fused into one
    # operation with the subtraction after it, the product is not rounded.
    most = 2.0 ** (info.maxexp - 2 - classes.bit_length())
    reach = 0.9 * math.log(float(info.max))
    others = _others(x, ids, own, most)
    label = jnp.exp(own)
    odds = others / label
    usable = (others > least) & (others < most) & (jnp.abs(own) < reach) & (odds < float(info.max))
    total = others + label
    # The shift of the probabilities is near the row's own size: exp(x_j) alone would be flushed
    # to 0 where p_j is a normal number. That it is rounded does not matter, `scale` knows; the
    # barrier keeps the compiler from taking exp(log(total)) for total.
    log_normalizer = jax.lax.optimization_barrier(jnp.log(total))
    scale = jnp.exp(log_normalizer) / total
    result = LabelNormalizer(jnp.log1p(odds), log_normalizer, log_normalizer, scale, others / total)
    return usable, result


def _others(x: Array, ids: Array, own: Array, most: float) -> Array:
    """sum(exp(x_j)) over all classes but the label; right if it is below `most`."""
    piece = _normalizer.piece_length(x.shape[-1])
    if not piece:
        return _without(ids, x, most)
    pieces = _normalizer.in_pieces(x, piece)
    sums = jax.lax.optimization_barrier(jnp.sum(jnp.exp(pieces), -1))
    total = jnp.sum(sums, -1, keepdims=True)
    label = jnp.exp(own)

    def left_out(ids, pieces, sums):
        which = ids // piece
        in_own = jax.lax.optimization_barrier(_normalizer.piece_at(pieces, which))
        rest = _without(jax.lax.optimization_barrier(ids % piece), in_own, most)
        return _normalizer.sum_without(sums, which) + rest

    def mended(ids, pieces, sums):
        return jnp.where(small, total - label, left_out(ids, pieces, sums))

    # Where the label has less than half of the probability, the subtraction loses no digit.
    small = 2 * label < total
    return jax.lax.cond(jnp.all(small), lambda *_: total - label, mended, ids, pieces, sums)


def _without(ids: Array, x: Array, most: float) -> Array:
    """sum(exp(x_j)) along the last axis over all j but `ids`; right if it is below `most`.

    By a minimum with a number that is 0 for j = ids and larger than any exp(x_j) for the others: a
    comparison would end XLA:CPU's fusion of the sum, and store an array of the size of `x`.
    """
    numbers = jnp.arange(x.shape[-1], dtype=x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    distance = jnp.abs(numbers * most - ids.astype(x.dtype) * most)
    return jnp.sum(jnp.minimum(jnp.exp(x), distance), -1, keepdims=True)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def slopes(
    classes: Classes,
    smoothing: float,
    x: Float[Array, "..."],
    ids: Integer[Array, "..."],
    normalizer: LabelNormalizer,
) -> Float[Array, "..."]:
    """The gradient of the losses: p - z, for labels z of the class alone, then smoothed.

    At the label it is -(1 - p) unsmoothed. Smoothed, z = 1 - s + s / C there, and the difference is
    taken as (1 - z) p - z (1 - p): neither of these loses digits where p is near 0 or 1.
    """
    p = _normalizer.probabilities(x, normalizer.shift, normalizer.scale, classes)
    labelled = classes.numbers(x) == ids
    if normalizer.share is None:
        return jnp.where(labelled, -normalizer.miss, p)
    share = jnp.where(x > -jnp.inf, normalizer.share, 0)
    of_label = (smoothing - share) * p - (1 - smoothing + share) * normalizer.miss
    return jnp.where(labelled, of_label, p - share)


# p, p - 1 and p - z have one derivative; for an id out of range it is NaN as all else is.
@slopes.defjvp
def _slopes_jvp(classes, smoothing, primals, tangents):
    x, _, normalizer = primals
    known = jnp.where(jnp.isnan(normalizer.miss), jnp.nan, jnp.ones_like(normalizer.miss))
    change = known * _normalizer.spread(x, tangents[0], classes)
    return slopes(classes, smoothing, *primals), change
