"""What XLA:CPU wants spelled otherwise of lists of weighted ids: each way with its reason."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core.dispatch import way
from jxent._src.core.elementary import Listed, bounded, exp, gap, log1p, widen, zero_times
from jxent._src.loss_fns import label_lists
from jxent._src.numerics import logsumexp, softmax_rows
from jxent._src.numerics.softmax_rows import LabelsStatistics
from jxent._src.platforms.cpu.fallback import gathered, written
from jxent._src.sharding import class_axis
from jxent._src.sharding.class_axis import Classes


def _is_whole(classes: Classes, *rest: Any) -> bool:
    x = next(a for a in rest if hasattr(a, "ndim"))
    return classes.name is None and not class_axis.is_split(x)


def _gathered(classes: Classes, ids: Array, x: Array) -> Array:
    places = jnp.clip(ids, 0, x.shape[classes.one] - 1)
    return widen(gathered(x, places, classes.one))


@way(label_lists.logits_of, "cpu", applies=lambda classes, _, x: _is_whole(classes, x))
def _gathered_logits(classes: Classes, ids: Array, x: Array) -> Array:
    """Comparisons would store as many arrays of the logits' size as a list has entries."""
    return jnp.where(ids < 0, 0, _gathered(classes, ids, x))


@way(label_lists.statistics, "cpu", applies=_is_whole)
def _statistics_of_entries(
    classes: Classes, smoothing: float, predicts: bool, x: Array, labels: Listed
) -> LabelsStatistics:
    """From the listed logits: dense labels would be stored."""
    row_max, rest = logsumexp.pair(x, classes)
    share = logsumexp.even_share(x, smoothing, classes)
    surprises = gap(_gathered(classes, labels.ids, x), row_max) + log1p(rest)
    own, _, first = label_lists.shares(classes, labels)
    loss = jnp.sum(zero_times(jnp.where(first, own, 0), surprises), classes.one, keepdims=True)
    loss = jnp.where(jnp.isnan(rest), rest, loss)
    if share is not None:
        evenly = softmax_rows.expected(classes, smoothing, x, row_max, log1p(rest), share, None)
        loss = evenly + (1 - smoothing) * loss if smoothing < 1 else evenly
    right = None
    if predicts:
        right = softmax_rows.as_right(_is_right(classes, x, labels), rest)
    # What the largest label's others have is told from the list again.
    total = jnp.sum(labels.weights, classes.one, keepdims=True)
    return LabelsStatistics(row_max, rest, share, total, total, total, loss, right)


def _is_right(classes: Classes, x: Array, labels: Listed) -> Array:
    """Whether the predicted class has the largest label, which is 0 of all that are not listed."""
    own, _, first = label_lists.shares(classes, labels)
    is_predicted = labels.ids == softmax_rows.first_largest(classes, x)
    listed = jnp.sum(first & (labels.ids >= 0), classes.one, keepdims=True)
    of_listed = jnp.max(own, classes.one, keepdims=True, initial=-jnp.inf, where=labels.ids >= 0)
    all_listed = listed == x.shape[classes.one]
    largest = jnp.where(all_listed, of_listed, jnp.maximum(of_listed, 0))
    of_predicted = jnp.max(
        jnp.where(is_predicted, own, -jnp.inf), classes.one, keepdims=True, initial=-jnp.inf
    )
    none = ~jnp.any(is_predicted, classes.one, keepdims=True)
    return jnp.where(none, 0, of_predicted) == largest


@way(label_lists.slopes_of_rows, "cpu", applies=_is_whole)
def _scattered_slopes(
    classes: Classes, smoothing: float, x: Array, labels: Listed, rows: LabelsStatistics
) -> Array:
    """As if no class were listed, and the listed ones written over it: o p - z (1 - p)."""
    scale = 1 / (1 + rows.rest)
    shift, total = bounded(rows.row_max), rows.total
    elsewhere = total * (exp(bounded(x) - shift) * scale)
    own, others, _ = label_lists.shares(classes, labels)
    listed = _gathered(classes, labels.ids, x)
    if rows.share is not None:
        share = rows.share
        weights = jnp.sum(labels.weights, classes.one, keepdims=True)
        of_others = (1 - smoothing) * weights + (smoothing - share)
        of_leader = of_others * scale - share * (rows.rest * scale)
        leads = logsumexp.leads(x, rows.row_max, rows.rest)
        elsewhere = jnp.where(leads, of_leader, elsewhere - jnp.where(x > -jnp.inf, share, 0))
        share = jnp.where(listed > -jnp.inf, share, 0)
        own = (1 - smoothing) * own + share
        others = (1 - smoothing) * others + (smoothing - share)
    p = exp(bounded(listed) - shift) * scale
    leads = logsumexp.leads(listed, rows.row_max, rows.rest)
    complement = jnp.where(leads, rows.rest * scale, 1 - p)
    return written(elsewhere, classes.one, labels.ids, others * p - own * complement)
