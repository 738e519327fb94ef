"""What a row's loss and gradient are computed from, found in one go where a platform can.

Logits and labels come in their own dtypes, and are widened where they are read: an array of the
wider dtype that several passes read would be stored.
"""

from typing import NamedTuple, cast

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import clip_posinf, exp, gap, log1p, upcast, zero_safe_multiply
from jxent._src.numerics.logsumexp import SparseLabelResiduals, grads, pair, uniform_mass
from jxent._src.sharding.class_axis import ClassAxis


@per_platform(statics=1)
def labels_sums(classes: ClassAxis, z: Array, rest: Array) -> tuple[Array, Array]:
    """The largest label, and the sum of all but one of its size.

    Any other one does where the largest is not more than all others together. `rest` is there for
    an implementation that must not be fused with the gradient.
    """
    z = z.astype(rest.dtype)
    largest = classes.max(z)
    is_largest = z == largest
    ties = classes.sum(is_largest.astype(z.dtype))
    return largest, classes.sum(jnp.where(is_largest, 0, z)) + (ties - 1) * largest


def smoothed(smoothing: float, x: Array, share: Array | None, z: Array | None = None) -> Array:
    """The labels `z`, or none, and what smoothing adds to them."""
    if share is None:
        return cast(Array, z)  # one of the two is there
    share = jnp.where(x > -jnp.inf, share, 0)
    return share if z is None else (1 - smoothing) * z + share


@per_platform(statics=2)
def expected(
    classes: ClassAxis,
    smoothing: float,
    x: Array,
    row_max: Array,
    more: Array,
    share: Array | None,
    z: Array | None,
) -> Array:
    """sum_j z_j (-log p_j) with the smoothed labels; a label of 0 costs nothing at -inf."""
    x = upcast(x)
    z = None if z is None else z.astype(x.dtype)
    neg_log_probs = gap(x, row_max) + more
    total = classes.sum(zero_safe_multiply(smoothed(smoothing, x, share, z), neg_log_probs))
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
    rest: Array
    share: Array | None  # what smoothing adds to every label, if there is smoothing
    total: Array  # the sum of the labels, smoothed
    largest: Array  # before smoothing; one that is more than all others together
    others: Array  # the sum of these
    loss: Array  # what `expected` gives
    right: Array | None = None  # 1 where the predicted class has the largest label, if asked for


@per_platform(statics=2)
def dense_label_residuals(
    classes: ClassAxis, smoothing: float, x: Float[Array, "..."], z: Array
) -> DenseLabelResiduals:
    """From the logits and the labels, which are smoothed here."""
    row_max, rest = pair(x, classes)
    share = uniform_mass(x, smoothing, classes)
    loss = expected(classes, smoothing, x, row_max, log1p(rest), share, z)
    largest, others = labels_sums(classes, z, rest)
    return DenseLabelResiduals(row_max, rest, share, largest + others, largest, others, loss)


@per_platform(statics=2)
def dense_label_residuals_and_prediction(
    classes: ClassAxis, smoothing: float, x: Float[Array, "..."], z: Array
) -> DenseLabelResiduals:
    """The same, and whether the prediction is right."""
    residuals = dense_label_residuals(classes, smoothing, x, z)
    z = z.astype(residuals.rest.dtype)
    of_predicted = label_logit(classes, first_largest(classes, x), z)
    return residuals._replace(right=as_right(of_predicted == classes.max(z), residuals.rest))


def grads_of_labels(
    classes: ClassAxis,
    smoothing: float,
    x: Float[Array, "..."],
    given: Float[Array, "..."],
    rows: DenseLabelResiduals,
) -> Float[Array, "..."]:
    """The gradient of the losses of the given labels, smoothed here."""
    z = smoothed(smoothing, x, rows.share, given)
    # A label that is not the largest has no more than all others, and there is nothing to cancel.
    others = jnp.where(given == rows.largest, rows.others, rows.largest + rows.others - given)
    if rows.share is not None:
        others = (1 - smoothing) * others + (smoothing - rows.share)
    return grads(x, z, rows.total, others, rows.row_max, rows.rest, classes)


def as_right(right: Array, rest: Array) -> Array:
    """1 where a prediction is right; none is in a row of NaN."""
    return (right & ~jnp.isnan(rest)).astype(rest.dtype)


@per_platform(statics=2)
def sparse_label_residuals(
    classes: ClassAxis, smoothing: float, x: Float[Array, "..."], ids: Integer[Array, "..."]
) -> SparseLabelResiduals:
    """From the logits and the labels' ids in range."""
    logit = label_logit(classes, ids, x)
    row_max, rest = pair(x, classes)
    share = uniform_mass(x, smoothing, classes)
    normalizer = of_pair(logit, row_max, rest)
    if share is None:
        return normalizer
    uniform_cross_entropy = expected(classes, smoothing, x, row_max, log1p(rest), share, None)
    return normalizer.smoothed(smoothing, share, uniform_cross_entropy)


@per_platform(statics=2)
def sparse_label_residuals_and_prediction(
    classes: ClassAxis, smoothing: float, x: Float[Array, "..."], ids: Integer[Array, "..."]
) -> SparseLabelResiduals:
    """The same, and whether the prediction is right."""
    normalizer = sparse_label_residuals(classes, smoothing, x, ids)
    predicted = first_largest(classes, x)
    return normalizer._replace(right=as_right(predicted == ids, normalizer.loss))


class PredictionResiduals(NamedTuple):
    """Of the prediction and one label; the class axis is kept, of size 1. No tangents."""

    logit: Array  # of the label
    row_max: Array
    rest: Array
    gaps: Array  # sum of exp(x - row_max) (row_max - x); nothing at -inf
    prediction: Array


@per_platform(statics=1)
def of_prediction(
    classes: ClassAxis, x: Float[Array, "..."], ids: Integer[Array, "..."]
) -> PredictionResiduals:
    """From the logits and the labels' ids in range."""
    row_max, rest = pair(x, classes)
    gaps = sum_of_gaps(classes, x, row_max)
    logit, prediction = label_logit(classes, ids, x), first_largest(classes, x)
    return PredictionResiduals(logit, row_max, rest, gaps, prediction)


@per_platform(statics=1)
def sum_of_gaps(classes: ClassAxis, x: Array, row_max: Array) -> Array:
    """Sum of exp(x - row_max) (row_max - x)."""
    below = gap(upcast(x), row_max)
    return classes.sum(zero_safe_multiply(exp(-below), below))


def of_pair(logit: Array, row_max: Array, rest: Array) -> SparseLabelResiduals:
    """From the pair (max, rest) of the row."""
    apart = gap(logit, row_max)
    more = log1p(rest)
    scale = 1 / (1 + rest)
    is_dominant = (logit == row_max) & (rest < 1)
    complement = jnp.where(is_dominant, rest * scale, 1 - exp(-apart) * scale)
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
