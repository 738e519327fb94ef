"""Exclusive classes, labels as lists of weighted ids: those of a top-k teacher, say.

They stand for dense labels z_j = sum_k w_k [id_k = j], of which no array is stored. A negative id
is padding. With o_j = sum_k w_k [id_k != j], what all other classes have, the gradient of the loss
-sum_j z_j log p_j is

    o_j p_j - z_j (1 - p_j)

where neither o_j nor 1 - p_j is a difference: Z p_j - z_j with Z = sum_k w_k is the same, and
loses all digits at a leader whose label has nearly all of the weight.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent import _logsumexp, _loss, _statistics
from jxent._arithmetic import Listed, bounded, exp, gap, largest_id, log1p
from jxent._dispatch import per_platform
from jxent._mesh import Classes
from jxent._statistics import LabelsStatistics


class Shares(NamedTuple):
    """For the class of each entry of a list; what is of padding is of no class."""

    own: Array  # the z above
    others: Array  # the o above


def numbered(classes: Classes, labels: Listed, x: Array) -> tuple[Listed, Array]:
    """The same with ids of int32, -1 for padding, and whether all are in range, one an example."""
    # In the ids' own dtype: a cast to int32 first would fold large ids into the range.
    last = largest_id(labels.ids.dtype, classes.count(x))
    in_range = jnp.all(labels.ids <= last, axis=classes.one, keepdims=True)
    ids = jnp.where(labels.ids < 0, -1, labels.ids).astype(jnp.int32)
    return Listed(ids, labels.weights), in_range


def shares(classes: Classes, ids: Array, weights: Array) -> Shares:
    """What each entry's class has, an id that appears twice adding up, and what all others have."""
    ids, weights = (jnp.moveaxis(a, classes.one, -1) for a in (ids, weights))
    same = ids[..., :, None] == ids[..., None, :]
    weights = jnp.where(ids < 0, 0, weights)[..., None, :]
    sums = (jnp.sum(jnp.where(which, weights, 0), -1) for which in (same, ~same))
    return Shares(*(jnp.moveaxis(a, -1, classes.one) for a in sums))


def weights_total(classes: Classes, labels: Listed) -> Array:
    """The sum of all weights, one an example, the axis of the classes kept, of size 1."""
    weights = jnp.where(labels.ids < 0, 0, labels.weights)
    return jnp.sum(weights, classes.one, keepdims=True)


def spread(classes: Classes, ids: Array, values: Array, elsewhere: Array) -> Array:
    """`elsewhere`, of the logits' shape, with the values in the places of the ids.

    One comparison an id, as in `_sigmoid.listed_classes`.
    """
    axis, numbers = classes.one, classes.numbers(elsewhere)

    def with_id(k: int | Array, spread: Array) -> Array:
        own, value = (jax.lax.dynamic_index_in_dim(a, k, axis % a.ndim) for a in (ids, values))
        placed: Array = jnp.where(numbers == own, value, spread)
        return placed

    count = ids.shape[axis]
    if count > 64:
        all_placed: Array = jax.lax.fori_loop(0, count, jax.checkpoint(with_id), elsewhere)
        return all_placed
    for k in range(count):
        elsewhere = with_id(k, elsewhere)
    return elsewhere


@per_platform(statics=1)
def logits_of(classes: Classes, ids: Array, x: Array) -> Array:
    """The logits of the listed classes, 0 for padding."""
    x, ids = jnp.expand_dims(x, classes.one - 1), jnp.expand_dims(ids, classes.one)
    numbers = classes.numbers(x)
    return jnp.squeeze(classes.sum(jnp.where(numbers == ids, x, 0)), classes.one)


@per_platform(statics=3)
def statistics(
    classes: Classes, smoothing: float, predicts: bool, x: Float[Array, "..."], labels: Listed
) -> LabelsStatistics:
    """As `_statistics.labels_statistics`, and whether the prediction is right if asked for."""
    own, _ = shares(classes, *labels)
    z = spread(classes, labels.ids, own, jnp.zeros_like(x))
    if predicts:
        return _statistics.labels_statistics_and_prediction(classes, smoothing, x, z)
    return _statistics.labels_statistics(classes, smoothing, x, z)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def slopes(
    classes: Classes,
    smoothing: float,
    x: Float[Array, "..."],
    labels: Listed,
    rows: LabelsStatistics,
) -> Float[Array, "..."]:
    """The gradient of the losses of smoothed labels; `rows` is a cache."""
    return slopes_of_rows(classes, smoothing, x, labels, rows)


@per_platform(statics=2)
def slopes_of_rows(
    classes: Classes, smoothing: float, x: Array, labels: Listed, rows: LabelsStatistics
) -> Array:
    """The o p - z (1 - p) above, of every class."""
    scale = 1 / (1 + rows.rest)
    p = exp(bounded(x) - bounded(rows.row_max)) * scale
    leads = (x == rows.row_max) & (rows.rest < 1)
    complement = jnp.where(leads, rows.rest * scale, 1 - p)
    own, others = shares(classes, *labels)
    none, total = jnp.zeros_like(x), weights_total(classes, labels)
    z = spread(classes, labels.ids, own, none)
    o = spread(classes, labels.ids, others, none + total)
    z, o = smoothed(smoothing, x, rows.share, Shares(z, o))
    return o * p - z * complement


def smoothed(smoothing: float, x: Array, share: Array | None, labels: Shares) -> Shares:
    """The same with what smoothing adds: to a class its share, to the others what is left."""
    if share is None:
        return labels
    share = jnp.where(x > -jnp.inf, share, 0)
    own, others = ((1 - smoothing) * a for a in labels)
    return Shares(own + share, others + (smoothing - share))


# Linear in the weights; to the logits Z dp, as for dense labels.
def _slopes_jvp(
    classes: Classes, smoothing: float, primals: Any, tangents: Any
) -> tuple[Array, Array]:
    (x, labels, rows), (dx, dlabels, _) = primals, _loss.present(tangents)
    value = slopes(classes, smoothing, *primals)
    change = jnp.zeros_like(value)
    if dx is not None:
        total = (1 - smoothing) * weights_total(classes, labels) + smoothing
        change += total * _logsumexp.softmax_tangent(x, dx, classes)
    if dlabels.weights is not None:
        moved = labels._replace(weights=(1 - smoothing) * dlabels.weights)
        p, q = _logsumexp.chances(x, rows.row_max, rows.rest, classes)
        own, others = shares(classes, *moved)
        of_own = spread(classes, moved.ids, own, jnp.zeros_like(x))
        of_others = jnp.zeros_like(x) + weights_total(classes, moved)
        of_others = spread(classes, moved.ids, others, of_others)
        change += of_others * p - of_own * q
    # Where an id is out of range the derivatives are NaN as all else is.
    return value, change * jnp.where(jnp.isnan(rows.rest), jnp.nan, jnp.ones_like(rows.rest))


slopes.defjvp(_slopes_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def surprises(
    classes: Classes, x: Float[Array, "..."], ids: Array, row_max: Array, rest: Array
) -> Array:
    """-log p of the listed classes, which their weights multiply; 0 where infinite, see there.

    As `_logsumexp.surprises`; 0 for padding.
    """
    value = gap(logits_of(classes, ids, x), row_max) + log1p(rest)
    return jnp.where(jnp.isinf(value) | (ids < 0), 0, value)


@surprises.defjvp
def _surprises_jvp(classes: Classes, primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, ids, row_max, rest = primals
    p, _ = _logsumexp.chances(x, row_max, rest, classes)
    apart = _logsumexp.deviation(p, x, row_max, rest, tangents[0], classes)
    change = jnp.where(ids < 0, 0, -logits_of(classes, ids, apart))
    return surprises(classes, *primals), change
