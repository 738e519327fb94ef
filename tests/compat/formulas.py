"""The formulas that optax documents, in float64 and plainly, importing nothing from jxent."""

import jax.numpy as jnp


def sigmoid_binary_cross_entropy(x, z):
    return (1 - z) * jnp.log1p(jnp.exp(x)) + z * jnp.log1p(jnp.exp(-x))


def sigmoid_focal_loss(x, z, alpha=None, gamma=2.0):
    p, q = 1 / (1 + jnp.exp(-x)), 1 / (1 + jnp.exp(x))
    loss = ((1 - z) * p + z * q) ** gamma * sigmoid_binary_cross_entropy(x, z)
    return loss if alpha is None else (alpha * z + (1 - alpha) * (1 - z)) * loss


def _normalizer(x, axis, where):
    return jnp.log(jnp.sum(jnp.exp(x), axis, where=where, keepdims=True))


def softmax_cross_entropy(x, z, axis=-1, where=None):
    return jnp.sum(z * (_normalizer(x, axis, where) - x), axis, where=where)


def safe_softmax_cross_entropy(x, z):
    return softmax_cross_entropy(x, z)


def softmax_cross_entropy_with_integer_labels(x, ids, axis=-1, where=None):
    label = jnp.take_along_axis(x, jnp.expand_dims(ids, axis), axis)
    return jnp.squeeze(_normalizer(x, axis, where) - label, axis)


def poly_loss_cross_entropy(x, z, epsilon=2.0, axis=-1, where=None):
    p = jnp.exp(x - _normalizer(x, axis, where))
    missed = jnp.sum(z * (1 - p), axis, where=where)
    return softmax_cross_entropy(x, z, axis, where) + epsilon * missed


def kl_divergence(log_p, t, axis=-1, where=None):
    return jnp.sum(t * (jnp.log(t) - log_p), axis, where=where)


def kl_divergence_with_log_targets(log_p, log_t, axis=-1, where=None):
    return jnp.sum(jnp.exp(log_t) * (log_t - log_p), axis, where=where)


def generalized_kl_divergence(log_p, t, axis=-1, where=None):
    return jnp.sum(t * (jnp.log(t) - log_p) + jnp.exp(log_p) - t, axis, where=where)


def smooth_labels(z, alpha, axis=-1):
    return (1 - alpha) * z + alpha / z.shape[axis]
