"""The statistics of a row in one pass over its logits, for TPUs and GPUs.

The reference reads the logits twice: for the maximum, then for the sums that need it. These
chips wait for their memory, so there all of a row's numbers come from one reduction of tuples,
joined by `combine`. It has no derivative rule: what stands here is called under `custom_jvp` only.
XLA:CPU reduces sequentially, which costs digits, and time too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core.dispatch import PerPlatform
from jxent._src.core.elementary import exp, log1p, upcast, zero_safe_multiply
from jxent._src.numerics import logsumexp, softmax_rows
from jxent._src.numerics.logsumexp import SparseLabelResiduals
from jxent._src.numerics.softmax_rows import DenseLabelResiduals, PredictionResiduals
from jxent._src.sharding import varying
from jxent._src.sharding.class_axis import ClassAxis


class WeightedSums(NamedTuple):
    """Weights of classes, such as labels, and what they say of a row."""

    largest: Array  # 0 of units, which are added up only
    others: Array  # the sum of all but one of that size; carries NaN
    below: Array  # sum w (row_max - x); nothing where w = 0, at -inf too

    @property
    def total(self) -> Array:
        """Sum w."""
        return self.largest + self.others


class Predicted(NamedTuple):
    """The class of the largest logit, the lowest number among equals, and what labels say of it."""

    number: Array
    label: Array | None = None  # of that class
    largest: Array | None = None  # of all labels


class RowSums(NamedTuple):
    """What is known of some classes of a row; of each alone: `singleton`; of none: `identity`."""

    row_max: Array
    sumexp_rest: Array  # sum of exp(x - row_max) over all but one that attains it; carries NaN
    logit: Array | None = None  # of the label, 0 where it is not among them
    labels: WeightedSums | None = None
    unmasked: WeightedSums | None = None  # a unit for each class that is not at -inf
    predicted: Predicted | None = None
    gaps: Array | None = None  # sum of exp(x - row_max) (row_max - x); nothing at -inf


def apart(a: Array, b: Array) -> tuple[Array, Array]:
    """|a - b|, and exp(-|a - b|) with what rounding the difference lost; equals are 0 apart.

    By a two-sum. As tiles of 128 lanes joined one after the other, 262144 classes are off by 2.2
    units in the last place at worst; without it by 24, where a label is the largest by 60.
    """
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    max_minus_x = jnp.where(a == b, 0, -jnp.abs(a - b))
    back = max_minus_x - low
    lost = (low - (max_minus_x - back)) + (-high - back)
    e = exp(max_minus_x)
    # At infinities what was lost is NaN or inf.
    return -max_minus_x, e + e * jnp.where(jnp.abs(lost) < 1, lost, 0)


def combine(a: RowSums, b: RowSums) -> RowSums:
    """What is known of the classes of both: associative and commutative, to rounding.

    NaN, whatever a maximum makes of it, is in `sumexp_rest`: no select depends on it alone.
    """
    a_max, b_max = a.row_max, b.row_max
    max_minus_x, e = apart(a_max, b_max)
    first = a_max >= b_max
    sumexp_rest = jnp.where(
        first, a.sumexp_rest + (1 + b.sumexp_rest) * e, b.sumexp_rest + (1 + a.sumexp_rest) * e
    )

    # All terms of a sum are measured from the new maximum: no differences, nothing cancels.
    def weighed(a: WeightedSums, b: WeightedSums) -> WeightedSums:
        moved = zero_safe_multiply(jnp.where(first, b.total, a.total), max_minus_x)
        others = a.others + b.others + jnp.minimum(a.largest, b.largest)
        return WeightedSums(jnp.maximum(a.largest, b.largest), others, a.below + b.below + moved)

    def predicted(a: Predicted, b: Predicted) -> Predicted:
        ties = (a_max == b_max) & (a.number <= b.number)
        takes = (a_max > b_max) | ties
        number = jnp.where(takes, a.number, b.number)
        if a.label is None:
            return Predicted(number)
        largest = jnp.maximum(cast(Array, a.largest), cast(Array, b.largest))
        return Predicted(number, jnp.where(takes, a.label, cast(Array, b.label)), largest)

    def gaps(a_gaps: Array, b_gaps: Array) -> Array:
        higher, lower = jnp.where(first, a_gaps, b_gaps), jnp.where(first, b_gaps, a_gaps)
        moved = zero_safe_multiply(1 + jnp.where(first, b.sumexp_rest, a.sumexp_rest), max_minus_x)
        return higher + zero_safe_multiply(e, lower + moved)

    return RowSums(
        jnp.maximum(a_max, b_max),
        sumexp_rest,
        None if a.logit is None else a.logit + cast(Array, b.logit),
        None if a.labels is None else weighed(a.labels, cast(WeightedSums, b.labels)),
        None if a.unmasked is None else weighed(a.unmasked, cast(WeightedSums, b.unmasked)),
        None if a.predicted is None else predicted(a.predicted, cast(Predicted, b.predicted)),
        None if a.gaps is None else gaps(a.gaps, cast(Array, b.gaps)),
    )


def singleton(
    x: Array,
    logit: Array | None = None,
    labels: Array | None = None,
    unit: float | None = None,
    predicted: Predicted | None = None,
    gaps: bool = False,
) -> RowSums:
    """Each class alone, of the logits `x`."""
    zero = jnp.zeros_like(x)
    return RowSums(
        x,
        zero,
        logit,
        None
        if labels is None
        else WeightedSums(labels, jnp.where(jnp.isnan(labels), labels, 0), zero),
        None if unit is None else WeightedSums(zero, jnp.where(x > -jnp.inf, unit, zero), zero),
        predicted,
        zero if gaps else None,
    )


def identity(like: RowSums) -> RowSums:
    """No class: 1 + sumexp_rest is 0, and merged with any row it changes nothing."""
    dtype = like.row_max.dtype
    least = jnp.full((), -jnp.inf, dtype)
    nothing: RowSums = jax.tree.map(lambda x: jnp.zeros((), x.dtype), like)
    if nothing.predicted is not None:
        last = jnp.asarray(jnp.iinfo(jnp.int32).max, jnp.int32)
        largest = None if nothing.predicted.largest is None else least
        nothing = nothing._replace(predicted=Predicted(last, nothing.predicted.label, largest))
    return nothing._replace(row_max=least, sumexp_rest=jnp.full((), -1, dtype))


def reduced(classes: ClassAxis, row: RowSums) -> RowSums:
    """All classes of a row together; the axis is kept, of size 1."""
    axis = classes.index % row.row_max.ndim
    row, start = varying.match_varying((row, identity(row)), integers=True)
    row = jax.lax.reduce(row, start, combine, (axis,))
    row = across(classes, jax.tree.map(lambda a: jnp.expand_dims(a, axis), row))
    # At one class nothing is merged, and NaN is in the maximum only.
    return row._replace(sumexp_rest=jnp.where(jnp.isnan(row.row_max), row.row_max, row.sumexp_rest))


def across(classes: ClassAxis, row: RowSums) -> RowSums:
    """`combine` over the chips, which hold a part of the classes each."""
    if classes.name is None:
        return row
    row_max = jax.lax.pmax(row.row_max, classes.name)
    max_minus_x, e = apart(row.row_max, row_max)
    at_top = row.row_max == row_max
    others = jnp.where(at_top, row.sumexp_rest, (1 + row.sumexp_rest) * e)

    def below(a: WeightedSums) -> Array:
        return a.below + zero_safe_multiply(a.total, max_minus_x)

    labels, unmasked = row.labels, row.unmasked
    if labels is not None:
        largest_label = jax.lax.pmax(labels.largest, classes.name)
        has_it = labels.largest == largest_label
        less_dominant = jnp.where(has_it, labels.others, labels.total)
        labels = WeightedSums(has_it.astype(row_max.dtype), less_dominant, below(labels))

    predicted = row.predicted
    if predicted is not None:
        own = jnp.where(at_top, predicted.number, jnp.iinfo(jnp.int32).max)
        number = jax.lax.pmin(own, classes.name)
        label, largest = predicted.label, predicted.largest
        if label is not None:
            label = classes.psum(jnp.where(own == number, label, 0))
            largest = jax.lax.pmax(cast(Array, largest), classes.name)
        predicted = Predicted(number, label, largest)
    here = (
        others,
        at_top.astype(row_max.dtype),
        row.logit,
        labels,
        None if unmasked is None else (unmasked.others, below(unmasked)),
        None
        if row.gaps is None
        else zero_safe_multiply(e, row.gaps + zero_safe_multiply(1 + row.sumexp_rest, max_minus_x)),
    )
    others, ties, logit, labels, units, gaps = jax.tree.map(classes.psum, here)
    if unmasked is not None:
        unmasked = WeightedSums(jnp.zeros_like(units[0]), *units)
    if labels is not None:
        more = (labels.largest - 1) * largest_label
        labels = WeightedSums(largest_label, labels.others + more, labels.below)
    return RowSums(row_max, others + (ties - 1), logit, labels, unmasked, predicted, gaps)


def pair_of_rows(classes: ClassAxis, x: Array) -> tuple[Array, Array]:
    """As `logsumexp.pair_of_rows`."""
    row = reduced(classes, singleton(upcast(x)))
    return row.row_max, row.sumexp_rest


def sparse_label_residuals(
    classes: ClassAxis, smoothing: float, x: Array, ids: Array, predicts: bool = False
) -> SparseLabelResiduals:
    """As `softmax_rows.sparse_label_residuals`."""
    x = upcast(x)
    numbers = classes.iota(x)
    logit = jnp.where(numbers == ids, x, 0)
    predicted = Predicted(numbers) if predicts else None
    row = reduced(
        classes, singleton(x, logit, unit=_uniform_part(classes, smoothing, x), predicted=predicted)
    )
    pair = logsumexp.nan_if_invalid(row.row_max, row.sumexp_rest)
    normalizer = softmax_rows.of_pair(cast(Array, row.logit), *pair)
    if row.predicted is not None:
        correct = softmax_rows.as_correct(row.predicted.number == ids, pair[1])
        normalizer = normalizer._replace(correct=correct)
    if row.unmasked is None:
        return normalizer
    uniform_mass, uniform_cross_entropy = _shares(classes, smoothing, x, row.unmasked, pair[1])
    return normalizer.smoothed(smoothing, uniform_mass, uniform_cross_entropy)


def dense_label_residuals(
    classes: ClassAxis, smoothing: float, x: Array, z: Array, predicts: bool = False
) -> DenseLabelResiduals:
    """As `softmax_rows.dense_label_residuals`."""
    x = upcast(x)
    z = z.astype(x.dtype)
    predicted = Predicted(classes.iota(x), z, z) if predicts else None
    row = reduced(
        classes,
        singleton(x, labels=z, unit=_uniform_part(classes, smoothing, x), predicted=predicted),
    )
    row_max, sumexp_rest = logsumexp.nan_if_invalid(row.row_max, row.sumexp_rest)
    labels = cast(WeightedSums, row.labels)
    loss = _cost(labels, sumexp_rest)
    uniform_mass = None
    if row.unmasked is not None:
        uniform_mass, uniform_cross_entropy = _shares(
            classes, smoothing, x, row.unmasked, sumexp_rest
        )
        loss = (
            uniform_cross_entropy + (1 - smoothing) * loss
            if smoothing < 1
            else uniform_cross_entropy
        )
    correct = None
    if row.predicted is not None:
        of_predicted, largest = cast(tuple[Array, Array], row.predicted[1:])
        correct = softmax_rows.as_correct(of_predicted == largest, sumexp_rest)
    largest, others, _ = labels
    return DenseLabelResiduals(
        row_max, sumexp_rest, uniform_mass, labels.total, largest, others, loss, correct
    )


def of_prediction(classes: ClassAxis, x: Array, ids: Array) -> PredictionResiduals:
    """As `softmax_rows.of_prediction`."""
    x = upcast(x)
    numbers = classes.iota(x)
    logit = jnp.where(numbers == ids, x, 0)
    row = reduced(classes, singleton(x, logit, predicted=Predicted(numbers), gaps=True))
    predicted = cast(Predicted, row.predicted).number
    logit, gaps = cast(Array, row.logit), cast(Array, row.gaps)
    return PredictionResiduals(logit, row.row_max, row.sumexp_rest, gaps, predicted)


def _cost(w: WeightedSums, sumexp_rest: Array) -> Array:
    """Sum w (-log p): NaN in a row of NaN, whatever its labels are."""
    return w.below + w.total * log1p(sumexp_rest)


def _uniform_part(classes: ClassAxis, smoothing: float, x: Array) -> float | None:
    """A power of two of which all classes have 1 at most: no distance overflows in their sum."""
    return 2.0 ** -classes.count(x).bit_length() if smoothing else None


def _shares(
    classes: ClassAxis, smoothing: float, x: Array, unmasked: WeightedSums, sumexp_rest: Array
) -> tuple[Array, Array]:
    """What smoothing adds to the label of each class that is unmasked, and what that costs."""
    unit = cast(float, _uniform_part(classes, smoothing, x))
    per_unit = smoothing / jnp.maximum(unmasked.total, unit)
    return per_unit * unit, per_unit * _cost(unmasked, sumexp_rest)


# Each platform registers these as they are: what several share is traced once.
IMPLEMENTATIONS: dict[PerPlatform[Any], Callable[..., Any]] = {
    logsumexp.pair_of_rows: pair_of_rows,
    softmax_rows.sparse_label_residuals: sparse_label_residuals,
    softmax_rows.sparse_label_residuals_and_prediction: partial(
        sparse_label_residuals, predicts=True
    ),
    softmax_rows.dense_label_residuals: dense_label_residuals,
    softmax_rows.of_prediction: of_prediction,
    softmax_rows.dense_label_residuals_and_prediction: partial(
        dense_label_residuals, predicts=True
    ),
}
