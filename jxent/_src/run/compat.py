"""What other libraries' losses are made of, compiled: masks, mixed labels, divergences.

Arrays come checked, of one shape, with one axis of classes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jxent._src.core.elementary import (
    computing_dtype,
    nan_unless,
    upcast,
    zero_safe_multiply,
)
from jxent._src.loss_fns import base
from jxent._src.loss_fns.base import Loss
from jxent._src.loss_fns.given_divergence import GivenDivergence
from jxent._src.loss_fns.sigmoid import Sigmoid
from jxent._src.loss_fns.softmax import Softmax, SparseSoftmax
from jxent._src.numerics import logsumexp
from jxent._src.numerics.mixed_focal import missed_power
from jxent._src.run import entry
from jxent._src.run.entry import Logits, compiled
from jxent._src.sharding import class_axis
from jxent._src.sharding.class_axis import ClassAxis


@compiled(0, 1)
def dense(loss_fn: Softmax, dtype: DTypeLike, labels: Array, logits: Array, where: Array) -> Array:
    """The losses of the classes that the mask leaves, 0 with no derivative where it leaves none."""
    classes = loss_fn.classes
    if where.shape[classes.index] == 1:
        return _of_examples(loss_fn, labels, logits, where).astype(dtype)
    labels, logits = _left(classes, labels, logits, where)
    return entry.each(loss_fn, Logits(labels, logits), dtype=dtype)


def _of_examples(loss_fn: Loss, labels: Array, logits: Array, where: Array) -> Array:
    """The losses of examples; 0 of those that the mask, of size 1 along the classes, leaves out."""
    mask, dtype = jnp.squeeze(where, loss_fn.axis), computing_dtype(logits.dtype)
    return entry.each(loss_fn, Logits(labels, logits), mask=mask, dtype=dtype)


def _left(classes: ClassAxis, labels: Array, logits: Array, where: Array) -> tuple[Array, Array]:
    """Labels of 0 and logits of -inf for the classes that are left out; logits of 0 if all are."""
    # Selected, not multiplied: what is left out may be NaN, and reaches no derivative.
    return jnp.where(where, labels, 0), _logits_left(classes, logits, where)


def _logits_left(classes: ClassAxis, logits: Array, where: Array) -> Array:
    some = jnp.any(where, classes.index, keepdims=True)
    out = jnp.where(some, -jnp.inf, 0).astype(logits.dtype)
    return jnp.where(where, logits, out)


def in_range(ids: Array, classes: int) -> tuple[Array, Array]:
    """Ids in [0, classes), and whether they are; those from -classes on count from the end."""
    # In the ids' own dtype: a cast to int32 first would fold large ids into the range.
    info = jnp.iinfo(ids.dtype)
    least, most = max(-classes, int(info.min)), min(classes - 1, int(info.max))
    is_id = (ids >= least) & (ids <= most)
    ids = jnp.where(is_id, ids, 0).astype(jnp.int32)
    return jnp.where(ids < 0, ids + classes, ids), is_id


@compiled(0)
def of_ids(loss_fn: SparseSoftmax, ids: Array, logits: Array, where: Array | None) -> Array:
    """The losses of ids, NaN out of range, but with finite derivatives, so that they can be masked.

    The mask is one of classes in the logsumexp; the label's logit is taken wherever it is.
    """
    classes = loss_fn.classes
    ids, is_id = in_range(ids, logits.shape[classes.index])
    if where is None:
        return nan_unless(is_id, entry.each(loss_fn, Logits(ids, logits)))
    if where.shape[classes.index] == 1:
        loss = _of_examples(loss_fn, ids, logits, where)
        valid = is_id | ~jnp.squeeze(where, classes.index)
        return nan_unless(valid, loss).astype(logits.dtype)
    dtype, x = computing_dtype(logits.dtype), _logits_left(classes, logits, where)
    # A label that is left out stands for the largest class that is not, whose logit is another.
    is_label = classes.iota(x) == classes.expand(ids)
    left = jnp.any(where & is_label, classes.index)
    largest = jnp.argmax(x, classes.index).astype(jnp.int32)
    loss = entry.each(loss_fn, Logits(jnp.where(left, ids, largest), x), dtype=dtype)
    is_largest = classes.iota(x) == classes.expand(largest)
    out = classes.expand(~left)
    x = upcast(logits)
    loss += jnp.sum(jnp.where(out & is_largest, x, jnp.where(out & is_label, -x, 0)), classes.index)
    loss = nan_unless(is_id, loss)
    return jnp.where(jnp.any(where, classes.index), loss, 0).astype(logits.dtype)


@compiled(0, 1)
def poly(
    loss_fn: Softmax,
    dtype: DTypeLike,
    epsilon: Array,
    labels: Array,
    logits: Array,
    where: Array | None,
) -> Array:
    """The cross-entropy and `epsilon` times the probability that the labels miss."""
    classes = loss_fn.classes
    if where is not None:
        where = jnp.broadcast_to(where, logits.shape)
        labels, logits = _left(classes, labels, logits, where)
    computing = computing_dtype(logits.dtype)

    # Saves labels and logits, no array of probabilities.
    @partial(jax.checkpoint, prevent_cse=False)
    def missed(labels: Array, logits: Array) -> Array:
        x = upcast(logits)
        _, complement = logsumexp.probability_and_complement(
            x, *logsumexp.pair(x, classes), classes
        )
        return classes.total(zero_safe_multiply(labels.astype(x.dtype), complement))

    terms = (entry.each(loss_fn, Logits(labels, logits), dtype=computing), missed(labels, logits))
    loss, first = (jnp.broadcast_to(x, epsilon.shape) for x in terms)
    return (loss + epsilon.astype(computing) * first).astype(dtype)


@compiled(0, 1)
def focal(
    whole: int, dtype: DTypeLike, rest: Any, alpha: Any, labels: Array, logits: Array
) -> Array:
    """Focal losses whose power, `whole + rest`, is of the mixture of a label's probabilities."""

    @partial(jax.checkpoint, prevent_cse=False)
    def losses(rest: Any, alpha: Any, labels: Array, logits: Array) -> Array:
        x = upcast(logits)
        z = labels.astype(x.dtype)
        loss_fn = Sigmoid(ClassAxis(None))
        data = class_axis.match_all_varying(loss_fn.classes, (labels, logits, None))
        loss, _ = base.losses(loss_fn, False, None, *data)
        if whole or rest is not None:
            loss = base.apply_weights(missed_power(whole, rest, z, x), loss)
        if alpha is not None:
            loss = base.apply_weights(alpha * z + (1 - alpha) * (1 - z), loss)
        return loss

    values: Array = losses(rest, alpha, labels, logits)
    return values.astype(dtype)


@compiled(0, 1)
def divergence(
    loss_fn: GivenDivergence, dtype: DTypeLike, targets: Array, log_predictions: Array, where: Array
) -> Array:
    """The divergences of the elements that the mask leaves."""
    p, t = loss_fn.left_out
    targets, log_predictions = jnp.where(where, targets, t), jnp.where(where, log_predictions, p)
    return entry.each(loss_fn, Logits(targets, log_predictions), dtype=dtype)
