"""Sigmoid cross-entropy per class, from terms that do not cancel, and its gradients."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import exp, log1p, zero_safe_multiply
from jxent._src.numerics.sigmoid_terms import finite, finite_term, focal_term, sigmoid, softplus


@per_platform()
def class_losses(z: Array, q: Array | None, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """(1 - z) softplus(x) + q z softplus(-x), in terms that do not cancel for z in [0, 1]."""
    return _weighted_terms(z, q, softplus(x), softplus(-x), x)


def focused_losses(
    gammas: tuple[float, float], z: Array, q: Array | None, x: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The same of focused terms."""
    present, absent = gammas
    return _weighted_terms(z, q, focal_term(absent, x), focal_term(present, -x), x)


def _weighted_terms(z: Array, q: Array | None, absent: Array, present: Array, x: Array) -> Array:
    """(1 - z) absent + q z present."""
    if q is None:
        positive = zero_safe_multiply(z, present)
    else:
        # Without a label there is no positive term, be its weight infinite.
        positive = weighted_term(z * jnp.where((z == 0) & jnp.isinf(q), 0, q), present)
    loss = zero_safe_multiply(1 - z, absent) + positive
    return jnp.where(jnp.isnan(x), x, loss)


def weighted_term(a: Array, b: Array) -> Array:
    """The product, and 0 where one of the two is: either may be infinite."""
    return zero_safe_multiply(jnp.where(b == 0, 0, a), b)


@jax.custom_jvp
def logits_grad(negative: Array, positive: Array, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """D loss / dx = negative sigmoid(x) - positive sigmoid(-x), for weights 1 - z and q z.

    Not sigmoid(x) - z: that is 0 for z = 1 and x > 17 in float32, where the truth is
    -sigmoid(-x). Both sigmoids from one exponential: 1 / (1 + e) and e / (1 + e).
    """
    e = exp(-jnp.abs(x))
    up = jnp.where(x < 0, e, 1)
    down = jnp.where(x < 0, 1, e)
    return (negative * up - positive * down) / (1 + e)


# The weights are added first: times sigmoid(x) sigmoid(-x), the smaller could fall below the
# smallest normal number and be flushed to 0 while the sum is normal.
@logits_grad.defjvp
def _logits_grad_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    (negative, positive, x), (dnegative, dpositive, dx) = primals, tangents
    tangent_out = (negative + positive) * (sigmoid(x) * sigmoid(-x)) * dx
    tangent_out += dnegative * sigmoid(x) - dpositive * sigmoid(-x)
    return logits_grad(negative, positive, x), tangent_out


@jax.custom_jvp
def label_grad(x: Float[Array, "..."], q: Array) -> Float[Array, "..."]:
    """D loss / d label = q softplus(-x) - softplus(x), 0 where infinite; exactly -x for q = 1."""
    linear = q * jnp.maximum(-x, 0) - jnp.maximum(x, 0)
    grad = linear + (q - 1) * log1p(exp(-jnp.abs(x)))
    return jnp.where(jnp.isinf(x) | jnp.isinf(q), 0, grad)


@label_grad.defjvp
def _label_grad_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, q), (dx, dq) = primals, tangents
    tangent_out = dq * finite_term(0.0, -x) - (finite(q) * sigmoid(-x) + sigmoid(x)) * dx
    return label_grad(x, q), tangent_out
