"""Implementations for XLA:CPU of sigmoid losses, each with its reason."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent._src.core import hints
from jxent._src.core.dispatch import implements
from jxent._src.core.elementary import exp, log1p
from jxent._src.loss_fns import sigmoid
from jxent._src.loss_fns.sigmoid import Sigmoid, SparseSigmoid
from jxent._src.numerics import sigmoid_terms
from jxent._src.numerics.sigmoid import class_losses
from jxent._src.numerics.sigmoid_terms import integer_exponent
from jxent._src.numerics.softcap import tanh
from jxent._src.platforms.cpu.fallback import (
    is_unsharded,
    map_row_blocks,
    with_fallback,
    written,
)
from jxent._src.sharding import explicit
from jxent._src.sharding.class_axis import ClassAxis


def _is_unsharded(loss_fn: Sigmoid, _: Array, logits: Array, *__: Array | None) -> bool:
    return loss_fn.classes.name is None and not explicit.is_split(logits)


@implements(sigmoid.summed_losses, "cpu", applies=_is_unsharded)
def _total_on_cpu(loss_fn: Sigmoid, *data: Array | None) -> Array:
    logits = cast(Array, data[1])

    # From the arrays as they were given: a condition stores what it is handed.
    def exact_total(*data: Array | None) -> Array:
        exact: Callable[..., Array] = partial(sigmoid.weighted_class_losses, loss_fn)
        sums = map_row_blocks(lambda *data: jnp.sum(exact(*data), -1, keepdims=True))
        return loss_fn.classes.total(sums(*data) if logits.ndim else exact(*data))

    # Infinite logits are rare, and without care for them 0 * inf makes the sum NaN.
    def of_finite(
        labels: Array, logits: Array, pos_weight: Array | None, weights: Array | None
    ) -> tuple[Array, Array]:
        x = _softcap_of_finite(hints.unshared_upcast(logits, jnp.zeros(())), loss_fn.logit_softcap)
        z = hints.unshared_upcast(labels, jnp.zeros(()), x.dtype)
        if loss_fn.label_smoothing:
            smoothing = (1 - loss_fn.label_smoothing, loss_fn.label_smoothing / 2)
            smoothed_one, added = hints.unshared_constants(x.dtype, *smoothing)
            z = smoothed_one * z + added
        if any(loss_fn.gammas):
            (one,) = hints.unshared_constants(x.dtype, 1.0)
            positive = z if pos_weight is None else hints.materialize(pos_weight) * z
            losses = _focused_of_finite(loss_fn.gammas, one - z, positive, x)
        else:
            losses = _loss_of_finite(z, pos_weight, x)
        total = loss_fn.classes.total(losses if weights is None else weights * losses)
        return jnp.isfinite(total), total

    loss: Array = with_fallback(of_finite, exact_total)(*data)
    return loss


# Ids up to which a comparison for each is as fast as a mask into which they are scattered, at 2048
# examples of 10000 classes (with 64, at 128 examples, the loss takes three times as long for them).
SHORT = 8


@implements(
    sigmoid.multi_hot_mask,
    "cpu",
    applies=lambda classes, ids, x: (
        classes.name is None and is_unsharded(x) and ids.shape[classes.index] > SHORT
    ),
)
def _scattered_mask(classes: ClassAxis, ids: Array, x: Array) -> Array:
    """Stored, a byte a class."""
    shape = list(x.shape)
    shape[classes.index] = ids.shape[classes.index]
    places = jnp.broadcast_to(jnp.where(ids < 0, -1, ids), shape).astype(jnp.int32)
    listed = jnp.ones_like(places, dtype=bool)
    return written(jnp.zeros_like(x, dtype=bool), classes.index, places, listed)


def _is_unsharded_ids(loss_fn: SparseSigmoid, _: Array, logits: Array, *__: Array | None) -> bool:
    return loss_fn.classes.are_last(logits)


@implements(sigmoid.summed_losses_of_ids, "cpu", applies=_is_unsharded_ids)
def _total_of_ids_on_cpu(loss_fn: SparseSigmoid, *data: Array | None) -> Array:
    def exact(*data: Any) -> Array:
        return jnp.sum(loss_fn.class_losses(*data), -1, keepdims=True)

    # As above; a select, and what booleans become, would be stored before it is summed.
    def of_finite(labels: Array, logits: Array, pos_weight: Array | None) -> tuple[Array, Array]:
        x = _softcap_of_finite(hints.unshared_upcast(logits, jnp.zeros(())), loss_fn.logit_softcap)
        listed = sigmoid.multi_hot_mask(loss_fn.classes, labels, x)
        listed = hints.materialize(listed.astype(jnp.int8)).astype(x.dtype)
        one, two, smoothed_one, smoothed_zero = hints.unshared_constants(
            x.dtype, 1.0, 2.0, 1 - loss_fn.label_smoothing / 2, loss_fn.label_smoothing / 2
        )
        if loss_fn.label_smoothing:
            positive = listed * smoothed_one + (one - listed) * smoothed_zero
            negative = (one - listed) * smoothed_one + listed * smoothed_zero
        else:
            positive, negative = listed, one - listed
        if pos_weight is not None:
            positive *= hints.materialize(pos_weight)
        if any(loss_fn.gammas):
            losses = _focused_of_finite(loss_fn.gammas, negative, positive, x)
        elif pos_weight is None and not loss_fn.label_smoothing:
            losses = _softplus_of_finite(x * (one - two * listed))
        else:
            losses = _weighted_of_finite(negative, positive, x)
        total = jnp.sum(losses, -1, keepdims=True)
        return jnp.isfinite(total), total

    loss: Array = with_fallback(of_finite, map_row_blocks(exact))(*data)
    return loss[..., 0]


# For XLA:CPU's fusions, which end at a select and at a clamp: infinite logits are brought down to
# the largest number, since 0 * inf is NaN, and the factor `infinite`, 1 for all others, makes the
# product overflow again where the label does not agree. (Not for a sum that may meet both inf and
# -inf: fused with its addition, the product does not overflow.) NaN, which minima drop, is in the
# logarithm.
@implements(class_losses, "cpu")
def _loss_without_selects(z: Array, q: Array | None, x: Array) -> Array:
    most = float(jnp.finfo(x.dtype).max)
    zero, one = hints.unshared_constants(x.dtype, 0.0, 1.0)
    above = jnp.maximum(-jnp.maximum(-x, -most), zero)
    below = jnp.maximum(-jnp.maximum(x, -most), zero)
    infinite = one + jnp.minimum(jnp.abs(x) - jnp.minimum(jnp.abs(x), most), most)
    log = log1p(exp(-jnp.abs(x)))
    if q is None:
        return ((one - z) * above + z * below) * infinite + (one - z + z) * log
    finite, overflows = _overflowing(q)
    positive = (finite * z) * (below + log) * overflows * overflows
    return ((one - z) * (above + log) + positive) * infinite


def _overflowing(q: Array) -> tuple[Array, Array]:
    """Weights as finite numbers, and what makes terms of those that were infinite overflow.

    Twice times the latter, a term that is not 0 is infinite, and one that is 0 stays so. They
    are of the weights' size, hence behind a barrier.
    """
    large = 2.0 ** int(0.8 * jnp.finfo(q.dtype).maxexp)
    infinite = jnp.isinf(q)
    both = jnp.where(infinite, jnp.sign(q) * large, q), jnp.where(infinite, large, 1)
    finite, overflows = hints.materialize(both)
    return finite, overflows


@implements(sigmoid_terms.without_infinities, "cpu")
def _select_apart(q: Array) -> Array:
    """In the loop over the logits, the select would end its fusion."""
    return hints.materialize(sigmoid_terms.without_infinities.reference(q))


def _loss_of_finite(z: Array, q: Array | None, x: Array) -> Array:
    """The same in fewer operations: inf or NaN if a logit is infinite."""
    if q is None:  # (1 - z) x >= -z x exactly where x >= 0, for every z
        return log1p(exp(-jnp.abs(x))) - jnp.minimum((z - 1) * x, z * x)
    (one,) = hints.unshared_constants(x.dtype, 1.0)
    return _weighted_of_finite(one - z, hints.materialize(q) * z, x)


def _weighted_of_finite(negative: Array, positive: Array, x: Array) -> Array:
    """Negative softplus(x) + positive softplus(-x), of finite logits."""
    (zero,) = hints.unshared_constants(x.dtype, 0.0)
    linear = negative * jnp.maximum(x, zero) - positive * jnp.minimum(x, zero)
    return linear + (negative + positive) * log1p(exp(-jnp.abs(x)))


def _softplus_of_finite(x: Array) -> Array:
    (zero,) = hints.unshared_constants(x.dtype, 0.0)
    return jnp.maximum(x, zero) + log1p(exp(-jnp.abs(x)))


def _focused_of_finite(
    gammas: tuple[float, float], negative: Array, positive: Array, x: Array
) -> Array:
    """As `numerics.sigmoid.focused_losses`, with constants that the gradient does not share.

    Of finite logits: exp(-x) may overflow, its quotient is then 0, as the power is to rounding.
    """
    (one,) = hints.unshared_constants(x.dtype, 1.0)

    def focal_term(g: float, x: Array) -> Array:
        whole = integer_exponent(g)
        (rest,) = hints.unshared_constants(x.dtype, whole - g)
        loss = jax.lax.integer_pow(one / (one + exp(-x)), whole) * _softplus_of_finite(x)
        return loss if g == whole else loss * exp(rest * _softplus_of_finite(-x))

    present, absent = gammas
    return negative * focal_term(absent, x) + positive * focal_term(present, -x)


def _softcap_of_finite(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """The same without a select, which would end XLA:CPU's fusions: NaN at an infinite logit."""
    if cap is None:
        return x
    c, zero = hints.unshared_constants(x.dtype, cap, 0.0)
    return c * tanh(x / c) + zero * x
