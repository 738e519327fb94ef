"""The truth that the tests compare with, in float64 or wider, importing nothing from jxent.

Two kinds. The *plain* formulas are the textbook's, in JAX and float64: moderate logits only, any
transform. The *wide* ones are NumPy's long double, written so that nothing cancels and in other
terms than the library's (no maximum is taken out), for counting ulps at any confidence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

WIDE = np.longdouble
IS_WIDER = np.finfo(WIDE).eps < np.finfo(np.float64).eps


def tolerance(dtype, terms: int) -> float:
    """Relative error to allow in `dtype` for a result made of `terms` added terms.

    A dozen roundings and a random walk over the terms in the computing dtype, then one in the
    dtype itself.
    """
    bits = jnp.finfo(dtype).bits
    computed_in = jnp.float32 if bits < 32 else dtype
    rounding = float(jnp.finfo(dtype).eps) if bits < 32 else 0.0
    return rounding + (16 + 4 * terms**0.5) * float(jnp.finfo(computed_in).eps)


def ulps(got, expected, dtype, scale=None) -> np.ndarray:
    """Distance in units in the last place of the truth, or of `scale` where terms cancel.

    Below the smallest normal number, where XLA flushes to zero, one unit is that number's.
    """
    expected = np.asarray(expected, WIDE)
    scale = expected if scale is None else np.asarray(scale, WIDE)
    info = jnp.finfo(dtype)
    unit = np.maximum(np.abs(scale), WIDE(float(info.tiny))) * WIDE(float(info.eps))
    return (np.abs(np.asarray(got, WIDE) - expected) / unit).astype(np.float64)


# Plain formulas.


def capped(x, cap):
    return x if cap is None else cap * jnp.tanh(x / cap)


def sigmoid(
    labels, logits, pos_weight=1.0, label_smoothing=0.0, logit_softcap=None, focusing=0.0,
    negative_focusing=None,
):  # fmt: skip
    z = labels.astype(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    x = capped(logits, logit_softcap)
    pos_weight = jnp.broadcast_to(pos_weight, logits.shape).astype(logits.dtype)
    p = 1 / (1 + jnp.exp(-x))
    absent = focusing if negative_focusing is None else negative_focusing
    present = -(pos_weight * z * (1 - p) ** focusing * jnp.log(p))
    return present - (1 - z) * p**absent * jnp.log(1 / (1 + jnp.exp(x)))


def softmax(
    labels, logits, axis=-1, label_smoothing=0.0, z_loss=0.0, logit_softcap=None, excluded=None
):
    left = are_left(excluded, logits, axis)
    smoothed = label_smoothing / jnp.sum(left, axis, keepdims=True, dtype=logits.dtype)
    z = labels * (1 - label_smoothing) + smoothed
    x = capped(logits, logit_softcap)
    log_normalizer = jnp.log(jnp.sum(jnp.exp(x), axis, keepdims=True, where=left))
    loss = jnp.sum(z * (log_normalizer - x), axis, where=left)
    return loss + z_loss * jnp.squeeze(log_normalizer, axis) ** 2


def are_left(excluded, logits, axis=-1):
    """Which classes take part: all but those of lists `[*batch, ids]`; None for all."""
    if excluded is None:
        return jnp.ones_like(logits, dtype=bool)
    listed = jnp.any(jax.nn.one_hot(excluded, logits.shape[axis], dtype=bool), -2)
    return ~jnp.moveaxis(listed, -1, axis)


def dense_labels(ids, weights, logits, axis=-1):
    """Those that lists `[*batch, ids]` stand for: negative ids are padding, repeated ones add."""
    onehot = jax.nn.one_hot(ids, logits.shape[axis], dtype=logits.dtype)
    dense = jnp.sum(weights[..., None] * onehot, -2)
    return jnp.moveaxis(dense, -1, axis)


def sparse_softmax(
    labels, logits, axis=-1, focusing=0.0, z_loss=0.0, label_weights=None, **options
):
    if label_weights is not None:
        dense = dense_labels(labels, label_weights, logits, axis)
        return softmax(dense, logits, axis, z_loss=z_loss, **options)
    onehot = jax.nn.one_hot(labels, logits.shape[axis], axis=axis, dtype=logits.dtype)
    loss = softmax(onehot, logits, axis, **options)
    beside = softmax(onehot, logits, axis, z_loss=z_loss, **options) - loss
    return (1 - jnp.exp(-loss)) ** focusing * loss + beside


def statistics(field, labels, logits, axis=-1, temperature=1.0, logit_softcap=None, excluded=None):
    """Log-probability of the label, entropy, or log-normaliser."""
    left = are_left(excluded, logits, axis)
    x = capped(logits, logit_softcap) / temperature
    log_normalizer = jnp.log(jnp.sum(jnp.exp(x), axis, keepdims=True, where=left))
    log_p = x - log_normalizer
    if field == "log_prob" and jnp.ndim(labels) == x.ndim:  # lists, 0 for padding
        listed = jnp.take_along_axis(jnp.moveaxis(log_p, axis, -1), jnp.maximum(labels, 0), -1)
        return jnp.where(labels < 0, 0, listed)
    if field == "log_prob":
        onehot = jax.nn.one_hot(labels, x.shape[axis], axis=axis, dtype=x.dtype)
        return jnp.sum(onehot * log_p, axis)
    if field == "entropy":
        return -jnp.sum(jnp.exp(log_p) * log_p, axis, where=left)
    return jnp.squeeze(log_normalizer, axis)


def kl_divergence(
    labels, logits, axis=-1, temperature=1.0, teacher_logit_softcap=None, logit_softcap=None
):
    """Of the softmax of the teacher's logits, which stand in the labels' place."""

    def log_p(x):
        return x - jnp.log(jnp.sum(jnp.exp(x), axis, keepdims=True))

    teacher = log_p(capped(labels, teacher_logit_softcap) / temperature)
    student = log_p(capped(logits, logit_softcap) / temperature)
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis)


def sparse_sigmoid(labels, logits, **options):
    """Sum over classes; ids below 0 are padding, repeated ones count once."""
    listed = np.asarray(labels)[..., None] == np.arange(logits.shape[-1])
    dense = jnp.asarray(listed.any(-2), logits.dtype)
    return jnp.sum(sigmoid(dense, logits, **options), -1)


def sigmoid_sum(labels, logits, **options):
    return jnp.sum(sigmoid(labels, logits, **options), -1)


def projected(plain):
    """The same function of a projection's operands, with its logits in memory."""

    def of_operands(labels, inputs, kernel, bias=None, **rest):
        logits = inputs @ kernel
        if bias is not None:
            logits += jnp.broadcast_to(bias, logits.shape)
        return plain(labels, logits, **rest)

    return of_operands


def reduced(losses, weights, reduction, mean_over=None, classes=None):
    """`mean_over` for losses that are sums over so many classes, or per class: `classes` None."""
    weights = jnp.asarray(weights)
    if mean_over == "examples" and classes is None and reduction != "none":
        losses, weights = jnp.sum(losses, -1), weights[..., 0] if weights.ndim else weights
    if weights.ndim > losses.ndim:
        weights = weights[..., 0]
    w = jnp.broadcast_to(weights, losses.shape)
    count = {
        "weighted_sum": 1,
        "weighted_mean": jnp.sum(w),
        "weighted_sum_over_batch_size": losses.size,
        "weighted_sum_by_nonzero_weights": jnp.sum(w != 0, dtype=w.dtype),
    }
    if reduction == "none":
        return w * losses
    elements = classes if mean_over == "elements" and classes and reduction != "weighted_sum" else 1
    return jnp.sum(w * losses) / (count[reduction] * elements)


# Wide formulas: the value, d/dx and second derivative, one row of logits at a time.


def wide_sigmoid(z, x, q=1.0):
    """Value, d/dx, d2/dx2, and the size of the terms that d/dx is the difference of."""
    z, x, q = (np.asarray(a, WIDE) for a in (z, x, q))
    present, absent = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
    value = (1 - z) * np.logaddexp(0, x) + q * z * np.logaddexp(0, -x)
    gradient = (1 - z) * present - q * z * absent
    return value, gradient, (1 - z + q * z) * present * absent, (1 - z) * present + q * z * absent


def wide_softmax_of_class(y: int, x):
    """Loss of class `y` in the row `x`, its gradient, and the diagonal of its Hessian."""
    x = np.asarray(x, WIDE)
    others = np.arange(x.size) != y
    odds = np.exp(x - x[y])  # long double holds exp of +-11000
    p = odds / odds.sum()
    rest = 1 - p  # cancels only where p is near 1, for one class at most
    first = np.argmax(p)
    rest[first] = np.delete(p, first).sum()
    value = np.log1p(odds[others].sum())
    return value, np.where(others, p, -rest), p * rest


def wide_entropy(x, t):
    """The entropy of rows, its gradient, the product of its Hessian and `t`, and that one's terms.

    These truly cancel: at a leader of six tenths what is left is a hundredth of them.
    """
    x, t = np.asarray(x, WIDE), np.asarray(t, WIDE)
    gap = x.max(-1, keepdims=True) - x
    odds = np.exp(-gap)
    is_largest = np.arange(x.shape[-1]) == odds.argmax(-1)[..., None]
    rest = np.where(is_largest, 0, odds).sum(-1, keepdims=True)
    p = odds / (1 + rest)
    mean_gap = (p * gap).sum(-1, keepdims=True)
    gradient = p * (gap - mean_gap)
    apart = t - np.where(is_largest, t, 0).sum(-1, keepdims=True)
    dev = apart - (p * apart).sum(-1, keepdims=True)
    curve = dev * (gradient - p) - p * (dev * gradient).sum(-1, keepdims=True)
    size = np.abs(dev) * (np.abs(gradient) + p) + p * (np.abs(dev * gradient)).sum(
        -1, keepdims=True
    )
    return (np.log1p(rest) + mean_gap)[..., 0], gradient, curve, size


def wide_divergence(teacher, student, temperature):
    """The divergence, its gradient to the student, and the logarithm of the ratio."""

    def log_p(y):
        gap = y.max(-1, keepdims=True) - y
        odds = np.exp(-gap)
        is_largest = np.arange(y.shape[-1]) == odds.argmax(-1)[:, None]
        rest = np.where(is_largest, 0, odds).sum(-1, keepdims=True)
        return -gap - np.log1p(rest), odds / (1 + rest)

    t = WIDE(temperature)
    log_t, p_t = log_p(np.asarray(teacher, WIDE) / t)
    log_s, _ = log_p(np.asarray(student, WIDE) / t)
    d = log_s - log_t
    series = d**2 / 2 * (1 + d / 3 * (1 + d / 4 * (1 + d / 5 * (1 + d / 6))))
    excess = np.where(np.abs(d) < 1e-3, series, np.expm1(d) - d)
    return (p_t * excess).sum(-1), p_t * np.expm1(d) / t, d


def wide_focal_term(g, x):
    """sigmoid(x)^g softplus(x), first and second derivative, and the sizes of their terms."""
    x = np.asarray(x, WIDE)
    q, p, loss = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x)), np.logaddexp(WIDE(0), x)
    w, s = q ** WIDE(g), p * loss
    gradient = w * (g * s + q)
    curve = w * (g * p * (g * s + q) - g * q * s + (g + 1) * p * q)
    size = w * (g * p * (g * s + q) + g * q * s + (g + 1) * p * q)
    return w * loss, gradient, curve, size


# Wide formulas of whole arrays at any logits: infinite, masked, NaN. Classes are the last axis.


class Wide(NamedTuple):
    """The truth of one loss per example (an element for sigmoid), and what its terms add up to.

    `curve` is the Hessian-vector product along a given direction. A `..._size` is the sum of the
    absolute values of the terms, which a relative error is relative to.
    """

    value: np.ndarray
    gradient: np.ndarray
    curve: np.ndarray
    value_size: np.ndarray
    gradient_size: np.ndarray
    curve_size: np.ndarray


def _no_times(a, b):
    """The product, and 0 where a is 0, at infinity too."""
    return np.where(a == 0, 0, a * np.where((a == 0) & ~np.isfinite(b), 0, b))


def _cap(x, cap):
    """Soft-capped logits with first and second derivative; -inf stays."""
    if cap is None:
        return x, np.ones_like(x), np.zeros_like(x)
    y = np.abs(x) / cap
    e = np.exp(-2 * y)
    first = 4 * e / (1 + e) ** 2
    tanh = np.sign(x) * -np.expm1(-2 * y) / (1 + e)
    return np.where(x == -np.inf, -np.inf, cap * tanh), first, -2 * tanh * first / cap


def wide_sigmoid_of(z, x, t, *, pos_weight=1.0, label_smoothing=0.0, logit_softcap=None):
    """Independent classes: every element by itself."""
    z, x, t, q = (np.asarray(a, WIDE) for a in (z, x, t, pos_weight))
    z = z * (1 - WIDE(label_smoothing)) + WIDE(label_smoothing) / 2
    u, first, second = _cap(x, logit_softcap)
    e = np.exp(-np.abs(u))
    up, down = np.where(u < 0, e, 1) / (1 + e), np.where(u < 0, 1, e) / (1 + e)
    above, below = np.maximum(u, 0) + np.log1p(e), np.maximum(-u, 0) + np.log1p(e)
    absent, present = _no_times(1 - z, above), _no_times(q * z, below)
    gradient = (1 - z) * up - q * z * down
    gradient_size = np.abs(1 - z) * up + np.abs(q * z) * down
    curve = (1 - z + q * z) * up * down
    curve_size = (np.abs(1 - z) + np.abs(q * z)) * up * down
    bad = np.isnan(x)
    return Wide(
        np.where(bad, np.nan, absent + present),
        gradient * first,
        (curve * first**2 + gradient * second) * t,
        np.abs(absent) + np.abs(present),
        gradient_size * first,
        np.abs((curve_size * first**2 + gradient_size * np.abs(second)) * t),
    )


def wide_softmax_of(z, x, t, *, label_smoothing=0.0, z_loss=0.0, logit_softcap=None):
    """Exclusive classes: `z` and `x` `[..., classes]`."""
    z, x, t = (np.asarray(a, WIDE) for a in (z, x, t))
    left = x > -np.inf
    share = WIDE(label_smoothing) / np.maximum(left.sum(-1, keepdims=True), 1)
    z = z * (1 - WIDE(label_smoothing)) + np.where(left, share, 0)
    u, first, second = _cap(x, logit_softcap)
    top = u.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        gap = np.where(u == top, 0, top - u)
    odds = np.exp(-gap)
    is_largest = np.arange(u.shape[-1]) == odds.argmax(-1)[..., None]
    rest = np.where(is_largest, 0, odds).sum(-1, keepdims=True)
    p = odds / (1 + rest)
    miss = np.where(is_largest & (rest < 1), rest / (1 + rest), 1 - p)
    normalizer = (top + np.log1p(rest))[..., 0]
    neg_log_prob = gap + np.log1p(rest)
    total = z.sum(-1, keepdims=True)
    terms = _no_times(z, neg_log_prob)
    zeta = WIDE(z_loss)
    value, value_size = terms.sum(-1), np.abs(terms).sum(-1)
    pull = np.where(np.isfinite(normalizer), normalizer, 0)[..., None] * 2 * zeta
    if z_loss:
        value = value + zeta * normalizer**2
        reach = np.where(np.isfinite(top), np.abs(top) + np.log1p(rest) + 1, 0)
        value_size = value_size + zeta * np.abs(normalizer) * reach[..., 0]
    others = np.where(is_largest, np.where(is_largest, 0, z).sum(-1, keepdims=True), total - z)
    gradient = others * p - z * miss + pull * p
    of_sum = np.where(is_largest, np.abs(others), np.abs(z).sum(-1, keepdims=True))
    gradient_size = (of_sum + np.where(is_largest, 0, np.abs(z))) * p + np.abs(z) * miss
    if z_loss:
        gradient_size = gradient_size + 2 * zeta * p * reach
    v = first * t
    dominant = np.where(is_largest, v, 0).sum(-1, keepdims=True)
    apart = v - dominant
    spread = p * (apart - (p * apart).sum(-1, keepdims=True))
    spread_size = p * (np.abs(apart) + (p * np.abs(apart)).sum(-1, keepdims=True))
    mean = (p * v).sum(-1, keepdims=True)
    curve = (total + pull) * spread + 2 * zeta * p * mean
    curve_size = (np.abs(total) + np.abs(pull)) * spread_size
    curve_size = curve_size + 2 * zeta * p * (p * np.abs(v)).sum(-1, keepdims=True)
    bad = np.isnan(x).any(-1) | (top[..., 0] == -np.inf)
    hole = np.where(bad, np.nan, WIDE(0))
    return Wide(
        value + hole,
        gradient * first + hole[..., None],
        curve * first + gradient * second * t + hole[..., None],
        value_size,
        gradient_size * first,
        curve_size * first + gradient_size * np.abs(second * t),
    )
