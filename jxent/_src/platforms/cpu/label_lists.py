"""Implementations for XLA:CPU of lists of weighted ids, each with its reason."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core.dispatch import implements
from jxent._src.core.elementary import (
    WeightedIds,
    clip_posinf,
    exp,
    log1p,
    max_minus_x,
    upcast,
    zero_safe_multiply,
)
from jxent._src.loss_fns import label_lists
from jxent._src.numerics import logsumexp, softmax_rows
from jxent._src.numerics.softmax_rows import DenseLabelResiduals
from jxent._src.platforms.cpu.fallback import gathered, written
from jxent._src.sharding import explicit
from jxent._src.sharding.class_axis import ClassAxis


def _is_unsharded(classes: ClassAxis, *rest: Any) -> bool:
    x = next(a for a in rest if hasattr(a, "ndim"))
    return classes.name is None and not explicit.is_split(x)


def _gathered(classes: ClassAxis, ids: Array, x: Array) -> Array:
    places = jnp.clip(ids, 0, x.shape[classes.index] - 1)
    return upcast(gathered(x, places, classes.index))


@implements(label_lists.logits_of, "cpu", applies=lambda classes, _, x: _is_unsharded(classes, x))
def _gathered_logits(classes: ClassAxis, ids: Array, x: Array) -> Array:
    """Comparisons would store as many arrays of the logits' size as a list has entries."""
    return jnp.where(ids < 0, 0, _gathered(classes, ids, x))


@implements(label_lists.statistics, "cpu", applies=_is_unsharded)
def _statistics_of_entries(
    classes: ClassAxis, smoothing: float, predicts: bool, x: Array, labels: WeightedIds
) -> DenseLabelResiduals:
    """From the listed logits: dense labels would be stored."""
    row_max, sumexp_rest = logsumexp.pair(x, classes)
    uniform_mass = logsumexp.uniform_mass_of(x, smoothing, classes)
    neg_log_probs = max_minus_x(_gathered(classes, labels.ids, x), row_max) + log1p(sumexp_rest)
    own, _, first = label_lists.shares(classes, labels)
    loss = jnp.sum(
        zero_safe_multiply(jnp.where(first, own, 0), neg_log_probs), classes.index, keepdims=True
    )
    loss = jnp.where(jnp.isnan(sumexp_rest), sumexp_rest, loss)
    if uniform_mass is not None:
        uniform_cross_entropy = softmax_rows.expected(
            classes, smoothing, x, row_max, log1p(sumexp_rest), uniform_mass, None
        )
        loss = (
            uniform_cross_entropy + (1 - smoothing) * loss
            if smoothing < 1
            else uniform_cross_entropy
        )
    correct = None
    if predicts:
        correct = softmax_rows.as_correct(_is_correct(classes, x, labels), sumexp_rest)
    # What the largest label's others have is told from the list again.
    total = jnp.sum(labels.weights, classes.index, keepdims=True)
    return DenseLabelResiduals(
        row_max, sumexp_rest, uniform_mass, total, total, total, loss, correct
    )


def _is_correct(classes: ClassAxis, x: Array, labels: WeightedIds) -> Array:
    """Whether the predicted class has the largest label, which is 0 of all that are not listed."""
    own, _, first = label_lists.shares(classes, labels)
    is_predicted = labels.ids == softmax_rows.first_largest(classes, x)
    listed = jnp.sum(first & (labels.ids >= 0), classes.index, keepdims=True)
    of_listed = jnp.max(own, classes.index, keepdims=True, initial=-jnp.inf, where=labels.ids >= 0)
    all_listed = listed == x.shape[classes.index]
    largest = jnp.where(all_listed, of_listed, jnp.maximum(of_listed, 0))
    of_predicted = jnp.max(
        jnp.where(is_predicted, own, -jnp.inf), classes.index, keepdims=True, initial=-jnp.inf
    )
    none = ~jnp.any(is_predicted, classes.index, keepdims=True)
    return jnp.where(none, 0, of_predicted) == largest


@implements(label_lists.grads_of_rows, "cpu", applies=_is_unsharded)
def _scattered_grads(
    classes: ClassAxis, smoothing: float, x: Array, labels: WeightedIds, rows: DenseLabelResiduals
) -> Array:
    """As if no class were listed, and the listed ones written over it: o p - z (1 - p)."""
    scale = 1 / (1 + rows.sumexp_rest)
    shift, total = clip_posinf(rows.row_max), rows.total
    elsewhere = total * (exp(clip_posinf(x) - shift) * scale)
    own, others, _ = label_lists.shares(classes, labels)
    listed = _gathered(classes, labels.ids, x)
    if rows.uniform_mass is not None:
        uniform_mass = rows.uniform_mass
        weights = jnp.sum(labels.weights, classes.index, keepdims=True)
        of_others = (1 - smoothing) * weights + (smoothing - uniform_mass)
        of_dominant = of_others * scale - uniform_mass * (rows.sumexp_rest * scale)
        is_dominant = logsumexp.is_dominant(x, rows.row_max, rows.sumexp_rest)
        elsewhere = jnp.where(
            is_dominant, of_dominant, elsewhere - jnp.where(x > -jnp.inf, uniform_mass, 0)
        )
        uniform_mass = jnp.where(listed > -jnp.inf, uniform_mass, 0)
        own = (1 - smoothing) * own + uniform_mass
        others = (1 - smoothing) * others + (smoothing - uniform_mass)
    p = exp(clip_posinf(listed) - shift) * scale
    is_dominant = logsumexp.is_dominant(listed, rows.row_max, rows.sumexp_rest)
    complement = jnp.where(is_dominant, rows.sumexp_rest * scale, 1 - p)
    return written(elsewhere, classes.index, labels.ids, others * p - own * complement)
