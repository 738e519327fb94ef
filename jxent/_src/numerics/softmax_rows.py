"""What a row's loss and gradient are computed from, found in one go where a platform can.

Logits and labels come in their own dtypes, and are widened where they are read: an array of the
wider dtype that several passes read would be stored.
"""

from typing import NamedTuple, cast

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import (
    clip_posinf,
    exp,
    log1p,
    max_minus_x,
    upcast,
    zero_safe_multiply,
)
from jxent._src.numerics.logsumexp import SparseLabelResiduals, grads, pair, uniform_mass_of
from jxent._src.sharding.class_axis import ClassAxis


@per_platform(statics=1)
def labels_sums(classes: ClassAxis, z: Array, sumexp_rest: Array) -> tuple[Array, Array]:
    """The largest label, and the sum of all but one of its size.

    Any other one does where the largest is not more than all others together. `sumexp_rest` is
    there for an implementation that must not be fused with the gradient.
    """
    z = z.astype(sumexp_rest.dtype)
    largest = classes.max(z)
    is_largest = z == largest
    ties = classes.sum(is_largest.astype(z.dtype))
    return largest, classes.sum(jnp.where(is_largest, 0, z)) + (ties - 1) * largest


def smoothed(
    smoothing: float, x: Array, uniform_mass: Array | None, z: Array | None = None
) -> Array:
    """The labels `z`, or none, and what smoothing adds to them."""
    if uniform_mass is None:
        return cast(Array, z)  # one of the two is there
    uniform_mass = jnp.where(x > -jnp.inf, uniform_mass, 0)
    return uniform_mass if z is None else (1 - smoothing) * z + uniform_mass


@per_platform(statics=2)
def expected(
    classes: ClassAxis,
    smoothing: float,
    x: Array,
    row_max: Array,
    more: Array,
    uniform_mass: Array | None,
    z: Array | None,
) -> Array:
    """sum_j z_j (-log p_j) with the smoothed labels; a label of 0 costs nothing at -inf."""
    x = upcast(x)
    z = None if z is None else z.astype(x.dtype)
    neg_log_probs = max_minus_x(x, row_max) + more
    total = classes.sum(zero_safe_multiply(smoothed(smoothing, x, uniform_mass, z), neg_log_probs))
    # The row of a NaN is NaN even if its labels are all 0.
    return jnp.where(jnp.isnan(more), more, total)


@per_platform(statics=1)
def first_largest(classes: ClassAxis, x: Float[Array, "..."]) -> Integer[Array, "..."]:
    """The class of the largest logit, the lowest number among equals; any for a row with a NaN."""
    numbers = jnp.where(x == classes.max(x), classes.iota(x), classes.count(x))
    return classes.min(numbers)


class DenseLabelResiduals(NamedTuple):
    """Of dense labels, the class axis kept, of size 1; their tangents are 0, as the pair's are."""

    row_max: Array
    sumexp_rest: Array
    uniform_mass: Array | None  # what smoothing adds to every label, if there is smoothing
    total: Array  # the sum of the labels, smoothed
    largest: Array  # before smoothing; one that is more than all others together
    others: Array  # the sum of these
    loss: Array  # what `expected` gives
    correct: Array | None = None  # 1 where the predicted class has the largest label, if asked for


@per_platform(statics=2)
def dense_label_residuals(
    classes: ClassAxis, smoothing: float, x: Float[Array, "..."], z: Array
) -> DenseLabelResiduals:
    """From the logits and the labels, which are smoothed here."""
    row_max, sumexp_rest = pair(x, classes)
    uniform_mass = uniform_mass_of(x, smoothing, classes)
    loss = expected(classes, smoothing, x, row_max, log1p(sumexp_rest), uniform_mass, z)
    largest, others = labels_sums(classes, z, sumexp_rest)
    return DenseLabelResiduals(
        row_max, sumexp_rest, uniform_mass, largest + others, largest, others, loss
    )


@per_platform(statics=2)
def dense_label_residuals_and_prediction(
    classes: ClassAxis, smoothing: float, x: Float[Array, "..."], z: Array
) -> DenseLabelResiduals:
    """The same, and whether the prediction is right."""
    residuals = dense_label_residuals(classes, smoothing, x, z)
    z = z.astype(residuals.sumexp_rest.dtype)
    of_predicted = label_logit(classes, first_largest(classes, x), z)
    return residuals._replace(
        correct=as_correct(of_predicted == classes.max(z), residuals.sumexp_rest)
    )


def grads_of_labels(
    classes: ClassAxis,
    smoothing: float,
    x: Float[Array, "..."],
    given: Float[Array, "..."],
    rows: DenseLabelResiduals,
) -> Float[Array, "..."]:
    """The gradient of the losses of the given labels, smoothed here."""
    z = smoothed(smoothing, x, rows.uniform_mass, given)
    # A label that is not the largest has no more than all others, and there is nothing to cancel.
    others = jnp.where(given == rows.largest, rows.others, rows.largest + rows.others - given)
    if rows.uniform_mass is not None:
        others = (1 - smoothing) * others + (smoothing - rows.uniform_mass)
    return grads(x, z, rows.total, others, rows.row_max, rows.sumexp_rest, classes)


def as_correct(correct: Array, sumexp_rest: Array) -> Array:
    """1 where a prediction is right; none is in a row of NaN."""
    return (correct & ~jnp.isnan(sumexp_rest)).astype(sumexp_rest.dtype)


@per_platform(statics=2)
def sparse_label_residuals(
    classes: ClassAxis, smoothing: float, x: Float[Array, "..."], ids: Integer[Array, "..."]
) -> SparseLabelResiduals:
    """From the logits and the labels' ids in range."""
    logit = label_logit(classes, ids, x)
    row_max, sumexp_rest = pair(x, classes)
    uniform_mass = uniform_mass_of(x, smoothing, classes)
    normalizer = of_pair(logit, row_max, sumexp_rest)
    if uniform_mass is None:
        return normalizer
    uniform_cross_entropy = expected(
        classes, smoothing, x, row_max, log1p(sumexp_rest), uniform_mass, None
    )
    return normalizer.smoothed(smoothing, uniform_mass, uniform_cross_entropy)


@per_platform(statics=2)
def sparse_label_residuals_and_prediction(
    classes: ClassAxis, smoothing: float, x: Float[Array, "..."], ids: Integer[Array, "..."]
) -> SparseLabelResiduals:
    """The same, and whether the prediction is right."""
    normalizer = sparse_label_residuals(classes, smoothing, x, ids)
    predicted = first_largest(classes, x)
    return normalizer._replace(correct=as_correct(predicted == ids, normalizer.loss))


class PredictionResiduals(NamedTuple):
    """Of the prediction and one label; the class axis is kept, of size 1. No tangents."""

    logit: Array  # of the label
    row_max: Array
    sumexp_rest: Array
    gaps: Array  # sum of exp(x - row_max) (row_max - x); nothing at -inf
    prediction: Array


@per_platform(statics=1)
def of_prediction(
    classes: ClassAxis, x: Float[Array, "..."], ids: Integer[Array, "..."]
) -> PredictionResiduals:
    """From the logits and the labels' ids in range."""
    row_max, sumexp_rest = pair(x, classes)
    gaps = sum_of_gaps(classes, x, row_max)
    logit, prediction = label_logit(classes, ids, x), first_largest(classes, x)
    return PredictionResiduals(logit, row_max, sumexp_rest, gaps, prediction)


@per_platform(statics=1)
def sum_of_gaps(classes: ClassAxis, x: Array, row_max: Array) -> Array:
    """Sum of exp(x - row_max) (row_max - x)."""
    below = max_minus_x(upcast(x), row_max)
    return classes.sum(zero_safe_multiply(exp(-below), below))


def of_pair(logit: Array, row_max: Array, sumexp_rest: Array) -> SparseLabelResiduals:
    """From the pair (row_max, sumexp_rest) of the row."""
    apart = max_minus_x(logit, row_max)
    more = log1p(sumexp_rest)
    scale = 1 / (1 + sumexp_rest)
    is_dominant = (logit == row_max) & (sumexp_rest < 1)
    complement = jnp.where(is_dominant, sumexp_rest * scale, 1 - exp(-apart) * scale)
    return SparseLabelResiduals(
        apart + more, row_max + more, clip_posinf(row_max), scale, complement
    )


@per_platform(statics=1)
def label_logit(
    classes: ClassAxis, ids: Integer[Array, "..."], x: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The label's logit: compared, which fuses, and moves no logits where the classes are split."""
    x = upcast(x)
    return classes.sum(jnp.where(classes.iota(x) == ids, x, 0))
