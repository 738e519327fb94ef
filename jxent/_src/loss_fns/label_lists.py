"""Exclusive classes, labels as lists of weighted ids: those of a top-k teacher, say.

They stand for dense labels z_j = sum_k w_k [id_k = j], of which no array is stored for short lists.
A negative id is padding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import (
    WeightedIds,
    largest_id,
    log1p,
    max_minus_x,
    nan_unless,
    upcast,
)
from jxent._src.loss_fns import base
from jxent._src.numerics import logsumexp, softmax_rows
from jxent._src.numerics.softmax_rows import DenseLabelResiduals
from jxent._src.sharding import explicit
from jxent._src.sharding.class_axis import ClassAxis


def canonicalize_ids(
    classes: ClassAxis, labels: WeightedIds, x: Array
) -> tuple[WeightedIds, Array]:
    """The same with ids of int32, -1 for padding, whose weight is 0; and who is in range.

    One flag an example: whether all of its ids are.
    """
    # In the ids' own dtype: a cast to int32 first would fold large ids into the range.
    last = largest_id(labels.ids.dtype, classes.count(x))
    in_range = jnp.all(labels.ids <= last, axis=classes.index, keepdims=True)
    ids = jnp.where(labels.ids < 0, -1, labels.ids).astype(jnp.int32)
    return WeightedIds(ids, jnp.where(ids < 0, 0, labels.weights)), in_range


class Shares(NamedTuple):
    """For the class of each entry of a list."""

    own: Array  # what its entries weigh together
    others: Array  # what those of all other classes do
    first: Array  # whether no entry of the same class comes before


def shares(classes: ClassAxis, labels: WeightedIds) -> Shares:
    """What each entry's class has, an id that appears twice adding up, and what all others have."""
    ids, weights = (jnp.moveaxis(a, classes.index, -1) for a in labels)
    same = ids[..., :, None] == ids[..., None, :]
    sums = (jnp.sum(jnp.where(which, weights[..., None, :], 0), -1) for which in (same, ~same))
    # Not `jnp.tril`: before JAX 0.10 its mask is not split as an explicit mesh splits `same`.
    row, column = (
        jax.lax.broadcasted_iota(
            jnp.int32, same.shape, axis, out_sharding=explicit.explicit_sharding(same)
        )
        for axis in (same.ndim - 2, same.ndim - 1)
    )
    first = ~jnp.any(same & (column < row), -1)
    return Shares(*(jnp.moveaxis(a, -1, classes.index) for a in (*sums, first)))


# Ids up to which comparisons are written out, which compilers fuse with what reads the labels: as
# in `sigmoid.multi_hot_mask`. Beyond, dense labels are stored, but no mask of each id. (An H100's
# compiler stores them from 32 on: 7 to 9 passes over 4096 x 32768 bfloat16 logits in place of 3.)
UNROLLED = 64


def dense(classes: ClassAxis, labels: WeightedIds, x: Array) -> Array:
    """The labels that lists stand for, of the logits' shape; an id that appears twice adds up."""
    if labels.ids.shape[classes.index] > UNROLLED:
        return _reduced(classes, labels, x, lambda number, own: number == own)
    own = shares(classes, labels).own
    return _selected(classes, labels.ids, own, jnp.zeros_like(x))


def of_others(classes: ClassAxis, labels: WeightedIds, x: Array) -> Array:
    """What all other classes have, of each."""
    if labels.ids.shape[classes.index] > UNROLLED:
        return _reduced(classes, labels, x, lambda number, own: number != own)
    others = shares(classes, labels).others
    total = jnp.sum(labels.weights, classes.index, keepdims=True)
    return _selected(classes, labels.ids, others, jnp.zeros_like(x) + total)


def _selected(classes: ClassAxis, ids: Array, values: Array, elsewhere: Array) -> Array:
    """`elsewhere` with the values in the places of the ids."""
    numbers, axis = classes.iota(elsewhere), classes.index % elsewhere.ndim
    for k in range(ids.shape[axis]):
        own, value = (jax.lax.slice_in_dim(a, k, k + 1, axis=axis) for a in (ids, values))
        elsewhere = jnp.where(numbers == own, value, elsewhere)
    return elsewhere


def _reduced(
    classes: ClassAxis, labels: WeightedIds, x: Array, takes: Callable[[Array, Array], Array]
) -> Array:
    """The sum of the weights that each class takes."""
    axis = classes.index  # that of the lists comes before it
    ids, weights = (jnp.expand_dims(a, axis) for a in labels)
    numbers = jnp.expand_dims(classes.iota(x), axis - 1)
    return jnp.sum(jnp.where(takes(numbers, ids), weights, 0), axis - 1)


@per_platform(statics=1)
def logits_of(classes: ClassAxis, ids: Array, x: Array) -> Array:
    """The logits of the listed classes, 0 for padding."""
    axis = classes.index % x.ndim
    if ids.shape[axis] > UNROLLED:
        return logits_of_long(classes, ids, x)
    # One reduction each: over an axis more, some compilers would store the logits in float32.
    x, numbers = upcast(x), classes.iota(x)
    each = [jax.lax.slice_in_dim(ids, k, k + 1, axis=axis) for k in range(ids.shape[axis])]
    found = [jnp.sum(jnp.where(numbers == one, x, 0), axis, keepdims=True) for one in each]
    return classes.psum(jnp.concatenate(found, axis)) if found else jnp.zeros_like(ids, x.dtype)


def logits_of_long(classes: ClassAxis, ids: Array, x: Array) -> Array:
    """As `logits_of`, by one reduction for all entries of a list."""
    x, axis = upcast(x), classes.index % x.ndim
    x, ids = jnp.expand_dims(x, axis), jnp.expand_dims(ids, axis + 1)
    return classes.psum(jnp.sum(jnp.where(classes.iota(x) == ids, x, 0), axis + 1))


@per_platform(statics=3)
def statistics(
    classes: ClassAxis,
    smoothing: float,
    predicts: bool,
    x: Float[Array, "..."],
    labels: WeightedIds,
) -> DenseLabelResiduals:
    """As `softmax_rows.dense_label_residuals`, and whether the prediction is right if asked for."""
    z = dense(classes, labels, upcast(x))
    if predicts:
        return softmax_rows.dense_label_residuals_and_prediction(classes, smoothing, x, z)
    return softmax_rows.dense_label_residuals(classes, smoothing, x, z)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def grads(
    classes: ClassAxis,
    smoothing: float,
    x: Float[Array, "..."],
    labels: WeightedIds,
    rows: DenseLabelResiduals,
) -> Float[Array, "..."]:
    """The gradient of the losses of smoothed labels; `rows` is a cache."""
    return grads_of_rows(classes, smoothing, x, labels, rows)


@per_platform(statics=2)
def grads_of_rows(
    classes: ClassAxis, smoothing: float, x: Array, labels: WeightedIds, rows: DenseLabelResiduals
) -> Array:
    """As of the dense labels."""
    z = dense(classes, labels, x)
    return softmax_rows.grads_of_labels(classes, smoothing, x, z, rows)


# Linear in the weights; to the logits Z dp, as for dense labels.
def _grads_jvp(
    classes: ClassAxis, smoothing: float, primals: Any, tangents: Any
) -> tuple[Array, Array]:
    (x, labels, rows), (dx, dlabels, _) = primals, base.none_for_zeros(tangents)
    value = grads(classes, smoothing, *primals)
    tangent_out = jnp.zeros_like(value)
    if dx is not None:
        total = jnp.sum(labels.weights, classes.index, keepdims=True)
        total = (1 - smoothing) * total + smoothing
        tangent_out += total * logsumexp.softmax_tangent(x, dx, classes)
    if dlabels.weights is not None:
        moved = labels._replace(weights=(1 - smoothing) * dlabels.weights)
        p, q = logsumexp.probability_and_complement(x, rows.row_max, rows.sumexp_rest, classes)
        tangent_out += of_others(classes, moved, x) * p - dense(classes, moved, x) * q
    # Where an id is out of range the derivatives are NaN as all else is.
    return value, tangent_out * nan_unless(
        ~jnp.isnan(rows.sumexp_rest), jnp.ones_like(rows.sumexp_rest)
    )


grads.defjvp(_grads_jvp, symbolic_zeros=True)


def log_probs(
    classes: ClassAxis, ids: Array, x: Array, row_max: Array, sumexp_rest: Array
) -> Array:
    """Log p of the listed classes; 0 for padding, NaN for an id that is too large.

    Its derivative is `log_probs_tangent`.
    """
    places, in_range = _places(classes, ids, x)
    value = -(max_minus_x(logits_of(classes, places, x), row_max) + log1p(sumexp_rest))
    return jnp.where(places < 0, 0, nan_unless(in_range, value))


def log_probs_tangent(classes: ClassAxis, ids: Array, p: Array, t: Array) -> Array:
    """Along the tangent `t` of the logits: what it is at the listed classes, less its mean.

    Both are measured from the dominant class: its own derivative is 1 - p, of which nothing is
    left where p is rounded to 1.
    """
    places, in_range = _places(classes, ids, p)
    origin = logsumexp.origin_of(p, t, classes)
    apart = logsumexp.beyond(p, t, origin) - logsumexp.mean_of(p, t, origin, classes)
    # Not a `where` for an id that is too large: its transpose would give the derivative 0.
    scale = jnp.where(places < 0, 0, nan_unless(in_range, jnp.ones_like(places, dtype=p.dtype)))
    return logits_of(classes, places, apart) * scale


def _places(classes: ClassAxis, ids: Array, x: Array) -> tuple[Array, Array]:
    """The ids in int32, -1 for padding, and which are not too large."""
    # In the ids' own dtype: a cast to int32 first would fold large ids into the range.
    in_range = ids <= largest_id(ids.dtype, classes.count(x))
    return jnp.where(in_range, jnp.where(ids < 0, -1, ids), 0).astype(jnp.int32), in_range


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def neg_log_probs(
    classes: ClassAxis, x: Float[Array, "..."], ids: Array, row_max: Array, sumexp_rest: Array
) -> Array:
    """-log p of the listed classes, which their weights multiply; 0 where infinite, see there.

    As `logsumexp.neg_log_probs`; 0 for padding, and for entries of another block of classes.
    """
    value = max_minus_x(logits_of(classes, ids, x), row_max) + log1p(sumexp_rest)
    value = jnp.where(jnp.isinf(value) | ~_are_listed(classes, ids, x), 0, value)
    return jnp.where(jnp.isnan(sumexp_rest) & (ids >= 0), sumexp_rest, value)


def _are_listed(classes: ClassAxis, ids: Array, x: Array) -> Array:
    """Whether each entry names a class of these."""
    return (ids >= 0) & (ids < classes.count(x))


@neg_log_probs.defjvp
def _neg_log_probs_jvp(classes: ClassAxis, primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, ids, row_max, sumexp_rest = primals
    p, _ = logsumexp.probability_and_complement(x, row_max, sumexp_rest, classes)
    apart = logsumexp.deviation(p, x, row_max, sumexp_rest, tangents[0], classes)
    tangent_out = jnp.where(_are_listed(classes, ids, x), -logits_of(classes, ids, apart), 0)
    return neg_log_probs(classes, *primals), tangent_out
