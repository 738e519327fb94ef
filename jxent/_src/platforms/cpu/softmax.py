"""Implementations for XLA:CPU of log-sum-exp and label ids, each with its reason."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core import hints
from jxent._src.core.dispatch import implements
from jxent._src.core.elementary import (
    clip_posinf,
    computing_dtype,
    exp,
    log,
    log1p,
    max_minus_x,
    upcast,
)
from jxent._src.numerics import logsumexp, softmax_rows
from jxent._src.numerics.logsumexp import SparseLabelResiduals
from jxent._src.numerics.softmax_rows import DenseLabelResiduals
from jxent._src.platforms.cpu.fallback import (
    gathered,
    is_unsharded,
    map_row_blocks,
    unwatched,
    with_fallback,
)
from jxent._src.platforms.cpu.tiles import RowTiles, first_place, row_tiles, sum_without
from jxent._src.sharding import explicit
from jxent._src.sharding.class_axis import ClassAxis

# The maximum, the sum of all, how to sum all but the maximum, and the arrays that this takes.
Rows = tuple[Any, ...]

# Rows of fewer classes are computed without conditions, unless there are many: a condition and its
# branches cost 10 to 50 us a step, and up to half a second to compile (128 x 10, AMD EPYC). What
# XLA:CPU stores of the reference is a little then, and a step of 1024 x 10 dense labels takes
# 150 us by it, 220 without selects. One example alone may be one of the many that `vmap` adds.
NARROW = 32
MANY = 2**15  # logits


def _is_large(x: Array) -> bool:
    """Whether there are many logits; of a batch that is a symbol there may be."""
    return not isinstance(x.size, int) or x.size >= MANY


def is_small(classes: ClassAxis, x: Array, *_: Any) -> bool:
    """Whether the classes are narrow rows, and those not many."""
    return classes.are_last(x) and x.ndim > 1 and x.shape[-1] < NARROW and not _is_large(x)


def has_fast_rows(classes: ClassAxis, x: Array, *_: Any) -> bool:
    """Whether the classes are whole rows, and wide or many enough for a fast path."""
    return classes.are_last(x) and (x.shape[-1] >= NARROW or _is_large(x))


def is_not_small(*arguments: Any) -> bool:
    """Whether the reference would store much."""
    return not is_small(*arguments)


@implements(logsumexp.pair_of_rows, "cpu", applies=has_fast_rows)
def _pair_on_cpu(_: ClassAxis, x: Array) -> tuple[Array, Array]:
    """The pair along the last axis in three steps, each taken only if a row needs it.

    `sumexp_all`, the sum over all classes, is at least 1 in a row whose maximum is finite: every
    exponent is at most 0 and one is 0, none overflows, and what is flushed to 0 is below
    classes * tiny. In all other rows, and in those with a NaN, it is NaN, as inf - inf is.

    1. From 2 on, as with ties, 1 is taken from it without losing a digit.
    2. Below 2 one class is the maximum alone, and it is left out of the sum.
    3. A row of NaN is computed with all care for infinities.
    """
    pieces = row_tiles(x)
    row_max, sumexp_all, sumexp_except_max, *parts = (
        _in_pieces(pieces, x) if pieces else _whole_rows(x)
    )

    def subtracted(sumexp_all: Array, *_: Array) -> tuple[Array, Array]:
        return sumexp_all >= 2, sumexp_all - 1

    def left_out(sumexp_all: Array, _: Array, *parts: Array) -> tuple[Array, Array]:
        return ~jnp.isnan(sumexp_all), jnp.where(
            sumexp_all >= 2, sumexp_all - 1, sumexp_except_max(*parts)
        )

    def exact(_: Array, x: Array, *__: Array) -> Array:
        form = logsumexp.pair_of_rows.reference if is_unsharded(x) else _pair_without_selects
        return map_row_blocks(lambda x: form(ClassAxis(-1), x)[1])(x)

    return row_max, with_fallback(subtracted, with_fallback(left_out, exact))(sumexp_all, x, *parts)


def _whole_rows(x: Array) -> Rows:
    """The maximum, the sum of all, and how to sum all but the maximum, of two arrays."""

    def sumexp_except_max(x: Array, row_max: Array) -> Array:
        # As in `_pair_without_selects`; the maximum is finite.
        below = row_max - upcast(x)
        other = jnp.minimum(below * (1 / jnp.finfo(row_max.dtype).tiny), 1)
        return jnp.sum(other * exp(-below), -1, keepdims=True)

    def every(x: Array, row_max: Array) -> Array:
        return jnp.sum(exp(hints.unshared_upcast(x, row_max) - row_max), -1, keepdims=True)

    row_max = upcast(jnp.max(x, -1, keepdims=True))
    return row_max, unwatched(every)(x, row_max), sumexp_except_max, x, row_max


def _in_pieces(pieces: RowTiles, x: Array) -> Rows:
    """As `_whole_rows`: the maximum is left out of its own piece."""

    def sumexp_except_max(cut: Array, tops: Array, row_max: Array, sums: Array) -> Array:
        which = first_place(tops, row_max)
        own = upcast(pieces.own(cut, which, -jnp.inf)[0])
        in_own = sum_without(exp(own - row_max), first_place(own, row_max))
        return sum_without(sums, which) + in_own

    def every(cut: Array, row_max: Array) -> tuple[Array, Array]:
        sums = pieces.each(lambda x, row_max: jnp.sum(exp(upcast(x) - row_max), -1), cut, row_max)
        return sums, jnp.sum(sums, -1, keepdims=True)

    cut = pieces.cut(x)
    tops = pieces.each(lambda x: upcast(jnp.max(x, -1)), cut)
    row_max = jnp.max(tops, -1, keepdims=True)
    sums, sumexp_all = unwatched(every)(cut, row_max)
    return row_max, sumexp_all, sumexp_except_max, cut, tops, row_max, sums


# XLA:CPU fuses a sum with its elements' arithmetic, but not with a select or a comparison, and it
# stores what two sums share; either would be an array of the logits' size. Hence minima in one of
# these sums, and the same distances written differently in the other, with its own constants.
@implements(logsumexp.pair_of_rows, "cpu", applies=is_not_small)
def _pair_without_selects(classes: ClassAxis, x: Array) -> tuple[Array, Array]:
    """The same in terms that XLA:CPU sums without storing them, on any axis and mesh."""
    x = upcast(x)
    info = jnp.finfo(x.dtype)
    row_max = classes.max(x)

    def of_others(below: Array, inverse: Any = 1 / info.tiny, one: float | Array = 1.0) -> Array:
        # 0 for the maximum and its ties, 1 for all others, whose distance is a normal number.
        return jnp.minimum(below * inverse, one)

    # +inf is brought down to the largest number, so that equals are 0 apart.
    below = clip_posinf(row_max) - clip_posinf(x)
    others = jnp.sum(of_others(below) * exp(-below), classes.axis, keepdims=True)
    least, inverse, one = hints.unshared_constants(x.dtype, -info.max, 1 / info.tiny, 1.0)
    below = jnp.maximum(-x, least) - jnp.maximum(-row_max, least)
    ties = classes.sum(one - of_others(below, inverse, one))
    # Minima drop NaN, this sum does not.
    size = jnp.sum(jnp.abs(x), classes.axis, keepdims=True)
    others = classes.psum(jnp.where(jnp.isnan(size), size, others))
    return row_max, others + (ties - 1)


@implements(logsumexp.count_unmasked, "cpu", applies=has_fast_rows)
def _count_unmasked_on_cpu(classes: ClassAxis, x: Array) -> Array:
    # A comparison would end XLA:CPU's fusion of the sum, and store an array of the logits' size.
    def of_finite(x: Array) -> tuple[Array, Array]:
        x = hints.unshared_upcast(x, jnp.zeros(()))
        zero = classes.sum(x - x)
        return zero == 0, jnp.full_like(zero, classes.count(x))

    exact = map_row_blocks(partial(logsumexp.count_unmasked.reference, classes))
    count: Array = with_fallback(of_finite, exact)(x)
    return count


@implements(softmax_rows.sum_of_gaps, "cpu", applies=has_fast_rows)
def _sum_of_gaps_on_cpu(classes: ClassAxis, x: Array, row_max: Array) -> Array:
    # A sum that is finite has no infinite logit in it. exp(-below) is in [0, 1], a term at most
    # 1 / e, and one whose exponential is flushed to 0 is below 88 tiny; nothing overflows.
    def of_finite(x: Array, row_max: Array) -> tuple[Array, Array]:
        below = row_max - hints.unshared_upcast(x, row_max)
        total = classes.sum(below * exp(-below))
        return jnp.isfinite(total), total

    exact = map_row_blocks(partial(softmax_rows.sum_of_gaps.reference, classes))
    total: Array = with_fallback(of_finite, exact)(x, row_max)
    return total


@implements(
    logsumexp.is_dominant,
    "cpu",
    applies=lambda x, row_max, _: x.shape[-1] < NARROW and row_max.shape[-1] == 1,
)
def _is_dominant_of_narrow(x: Array, row_max: Array, sumexp_rest: Array) -> Array:
    """By one comparison a class: a row's boolean, spread over few, costs the loop its vectors.

    A gradient of 32768 x 10 dense labels takes 0.34 ms so, and 0.90 otherwise. In wide rows the
    boolean is taken out of the loop, and where it is false that is the shorter one.

    Logits are clipped to the largest number, so that no class is at +inf, and a class of NaN is at
    no maximum: `sumexp_rest` is NaN there. Only beside +inf the largest number itself is dominant,
    too, as its distance from the clipped infinity is 0.
    """
    return clip_posinf(x) == jnp.where(sumexp_rest < 1, clip_posinf(row_max), jnp.inf)


@implements(
    softmax_rows.first_largest,
    "cpu",
    applies=lambda classes, x: classes.are_last(x) and is_unsharded(x),
)
def _first_largest_of_rows(classes: ClassAxis, x: Array) -> Array:
    """A comparison is stored: of the one piece of each row that has the maximum, or of few rows."""
    pieces = row_tiles(x)
    if not pieces:
        return map_row_blocks(partial(softmax_rows.first_largest.reference, classes))(x)
    cut = pieces.cut(x)
    tops = pieces.each(lambda x: upcast(jnp.max(x, -1)), cut)
    row_max = jnp.max(tops, -1, keepdims=True)
    own, start = pieces.own(cut, first_place(tops, row_max), -jnp.inf)
    return start + first_place(upcast(own), row_max)


# Of the functions below, where nothing better applies: their parts have implementations, and so
# they are decided on together.
@implements(
    softmax_rows.dense_label_residuals,
    "cpu",
    applies=lambda classes, _, *data: is_not_small(classes, *data),
)
def _labels_statistics_in_parts(*arguments: Any) -> DenseLabelResiduals:
    return softmax_rows.dense_label_residuals.reference(*arguments)


def _are_narrow(classes: ClassAxis, smoothing: float, x: Array, _: Array) -> bool:
    return not smoothing and classes.are_last(x) and x.shape[-1] < NARROW


@implements(softmax_rows.sparse_label_residuals, "cpu", applies=_are_narrow)
def _label_statistics_of_narrow(
    classes: ClassAxis, _: float, x: Array, ids: Array
) -> SparseLabelResiduals:
    """Without a condition, and with one sum for the two of `_pair_without_selects`.

    Of all but the label where that is at the maximum. Elsewhere of all, less the 1 of a class at
    the maximum: the label has less than half of the probability then, and a loss above log 2,
    beside which what the subtraction loses is a rounding.
    """
    # A gather in the same loop as exp and log1p would keep them from being vectorised.
    logit = hints.materialize(softmax_rows.label_logit(classes, ids, x))[..., 0]
    x = upcast(x)
    row_max = classes.max(x)[..., 0]
    behind = max_minus_x(logit, row_max) > 0
    numbers = jnp.arange(x.shape[-1], dtype=x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    left_out = jnp.where(behind, -1, ids[..., 0]).astype(x.dtype)
    counts = jnp.minimum(jnp.abs(numbers - left_out[..., None]), 1)
    total = _of_top(row_max, jnp.sum(counts / _inverse(x, row_max[..., None]), -1))
    sumexp_rest = jnp.where(behind, total - 1, total)
    normalizer = softmax_rows.of_pair(logit, *logsumexp.nan_if_invalid(row_max, sumexp_rest))
    normalizer = SparseLabelResiduals(*jax.tree.map(lambda a: a[..., None], normalizer))
    # Stored, or the gradient computes what is a row's own for each class.
    return hints.materialize(normalizer)


# What a sum of exp(x - row_max) has to add up where +inf is the maximum.
_OF_TOP = 2.0**100


def _inverse(x: Array, row_max: Array) -> Array:
    """exp(row_max - x), so that NaN stays NaN: a minimum of +inf and the largest number drops it.

    From 1 up to inf, to which 1 / `_OF_TOP` adds nothing; or, at +inf, that number alone. So a sum
    of fewer than 32 inverses is below 32 where the maximum is finite, and else below 2^105.
    """
    return exp(clip_posinf(row_max) - x) + 1 / _OF_TOP


def _of_top(row_max: Array, total: Array) -> Array:
    """A sum over classes of 1 / `_inverse`, with 1 for each +inf."""
    return jnp.where(row_max == jnp.inf, total / _OF_TOP, total)


def _are_integers_exact(classes: ClassAxis, smoothing: float, x: Array, _: Array) -> bool:
    exact: int = 2 ** (
        jnp.finfo(computing_dtype(x.dtype)).nmant + 1
    )  # up to here integers are, as `_others` needs
    return not smoothing and has_fast_rows(classes, x) and x.shape[-1] <= exact


@implements(softmax_rows.sparse_label_residuals, "cpu", applies=_are_integers_exact)
def _label_statistics_on_cpu(
    classes: ClassAxis, _: float, x: Array, ids: Array
) -> SparseLabelResiduals:
    def exact(x: Array, _: Array, logit: Array) -> SparseLabelResiduals:
        return softmax_rows.of_pair(logit, *logsumexp.pair(x, classes))

    logit = softmax_rows.label_logit(classes, ids, x)
    normalizer: SparseLabelResiduals = with_fallback(_without_shift, exact)(x, ids, logit)
    return normalizer


@implements(softmax_rows.sparse_label_residuals, "cpu")
def _label_statistics_in_parts(*arguments: Any) -> SparseLabelResiduals:
    return softmax_rows.sparse_label_residuals.reference(*arguments)


# The maximum costs as much as a third of the loss on CPU. Without a shift there is nothing to
# round in exp(x), and most programs' logits are far from where it overflows. With e = exp(logit)
# and r = `others`, every intermediate that a usable row has (float32; n classes, at most 2^24):
#
#     exp(x_j)       below most, as r is; what is flushed to 0 adds up to n tiny < eps r
#     e, 1 / e       between exp(-reach) = 2e-35 and exp(reach) = 5e34
#     r              between least = n 1e-31 and most = 2^(126 - bits of n)
#     r + e          between least and 2^125
#     r / e          below the largest number, by a guard of its own: from e = 2e-35 and r > 6e3 it
#                    would overflow; above tiny, or flushed to 0 as the loss itself is then
#     log(r + e)     between -72 and 87, so its exponential is as far from both ends as r + e
#     logit + loss   where it stands for that: in (-1/2, 1), with the error of numbers below 1/2
#     complement     in [0, 1], above tiny or flushed as it is
#     scale          1 to rounding
#
# Rows with -inf for the label, with +inf or with NaN are not usable: no comparison holds for NaN.
def _without_shift(x: Array, ids: Array, logit: Array) -> tuple[Array, SparseLabelResiduals]:
    info = jnp.finfo(logit.dtype)
    classes = x.shape[-1]
    least = classes * float(info.tiny) / float(info.eps)
    # A power of two, by which every number of a class can be multiplied exactly: fused into one
    # operation with the subtraction after it, the product is not rounded.
    most = 2.0 ** (info.maxexp - 2 - classes.bit_length())
    reach = 0.9 * math.log(float(info.max))
    others = _others(x, ids, logit, most)
    label = exp(logit)
    odds = others / label
    usable = (
        (others > least) & (others < most) & (jnp.abs(logit) < reach) & (odds < float(info.max))
    )
    total = others + label
    # The shift of the probabilities is near the row's own size: exp(x_j) alone would be flushed
    # to 0 where p_j is a normal number. That it is rounded does not matter, `scale` knows; the
    # barrier keeps the compiler from taking exp(log(total)) for total.
    loss = log1p(odds)
    log_normalizer = hints.materialize(_log_of_sum(total, logit, loss))
    scale = exp(log_normalizer) / total
    result = SparseLabelResiduals(loss, log_normalizer, log_normalizer, scale, others / total)
    return usable, result


def _log_of_sum(total: Array, logit: Array, loss: Array) -> Array:
    """log(total), where that is near 0 as the sum of the two numbers that it adds up from.

    Of a total near 1 the logarithm has the error of the total's rounding: half a unit of 1.
    """
    small = jnp.maximum(jnp.abs(logit), loss) < 1 / 2
    return jnp.where(small, logit + loss, log(total))


def _others(x: Array, ids: Array, logit: Array, most: float) -> Array:
    """sum(exp(x_j)) over all classes but the label; right if it is below `most`."""
    pieces = row_tiles(x)
    if not pieces:
        return _without(ids, x, most)
    cut = pieces.cut(x)
    sums = pieces.each(lambda x: jnp.sum(exp(upcast(x)), -1), cut)
    total = jnp.sum(sums, -1, keepdims=True)
    label = exp(logit)

    def left_out(ids: Array, cut: Array, sums: Array) -> Array:
        which = ids // pieces.length
        own, start = hints.materialize(pieces.own(cut, which, -jnp.inf))
        sumexp_rest = _without(hints.materialize(ids - start), own, most)
        return sum_without(sums, which) + sumexp_rest

    def repaired(ids: Array, cut: Array, sums: Array) -> Array:
        return jnp.where(small, total - label, left_out(ids, cut, sums))

    # Where the label has less than half of the probability, the subtraction loses no digit.
    small = 2 * label < total
    others: Array = jax.lax.cond(jnp.all(small), lambda *_: total - label, repaired, ids, cut, sums)
    return others


def _without(ids: Array, x: Array, most: float) -> Array:
    """sum(exp(x_j)) along the last axis over all j but `ids`; right if it is below `most`.

    By a minimum with a number that is 0 for j = ids and larger than any exp(x_j) for the others: a
    comparison would end XLA:CPU's fusion of the sum, and store an array of the size of `x`.
    """
    x = hints.unshared_upcast(x, ids)
    numbers = jnp.arange(x.shape[-1], dtype=x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    distance = jnp.abs(numbers * most - ids.astype(x.dtype) * most)
    return jnp.sum(jnp.minimum(exp(x), distance), -1, keepdims=True)


@implements(
    softmax_rows.label_logit,
    "cpu",
    applies=lambda classes, _, x: classes.name is None and not explicit.is_split(x),
)
def _gathered_label_logit(classes: ClassAxis, ids: Array, x: Array) -> Array:
    """A comparison would store an array."""
    return upcast(gathered(x, ids, classes.index))
