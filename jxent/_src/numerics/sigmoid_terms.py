"""The term that a sigmoid loss has for each of its two labels, and its derivatives.

The term of an absent class is softplus(x), that of a present one softplus(-x). Focusing (Lin et
al., Focal Loss, 2017) multiplies a term by (1 - p)^g, p the probability that is given to what its
label says: sigmoid(x)^g and sigmoid(-x)^g. With w that power, l the softplus, q = sigmoid(x),
p = 1 - q and s = p l:

    term = w l        d term / dx = w (g s + q)        dw = g w p    ds = q (p - s)    dq = p q

closed under differentiation, without a power whose derivative is infinite.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import exp, log1p, zero_safe_multiply


@jax.custom_jvp
def sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return 1 / (1 + exp(-x))


# sigmoid(x) sigmoid(-x), never sigmoid(x) (1 - sigmoid(x)).
@sigmoid.defjvp
def _sigmoid_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    value = sigmoid(x)
    return value, value * sigmoid(-x) * t


def softplus(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.maximum(x, 0) + log1p(exp(-jnp.abs(x)))


def integer_exponent(g: float) -> int:
    """What of a power is taken by products, which are off by as many units as it says."""
    return int(g) if g <= 16 else 0


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _power(g: float, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """sigmoid(x)^g: by products, and what is left of g as an exponential, f |x| units off."""
    whole = integer_exponent(g)
    value: Array = jax.lax.integer_pow(sigmoid(x), whole)
    if g > whole:
        value *= exp(-(g - whole) * softplus(-x))
    return value


@_power.defjvp
def _power_jvp(g: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    w = _power(g, x)
    return w, g * (w * sigmoid(-x)) * t


@jax.custom_jvp
def _share(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """sigmoid(-x) softplus(x), 0 at inf."""
    return zero_safe_multiply(sigmoid(-x), softplus(x))


@_share.defjvp
def _share_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    s = _share(x)
    return s, sigmoid(x) * (sigmoid(-x) - s) * t


def focal_term(g: float, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """What an absent class costs; a present one with -x."""
    return softplus(x) if g == 0 else _power(g, x) * softplus(x)


def focal_term_grad(g: float, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Its derivative."""
    return sigmoid(x) if g == 0 else _power(g, x) * (g * _share(x) + sigmoid(x))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def finite_term(g: float, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The term, and 0 where that is infinite: a factor of tangents, which may be 0."""
    return jnp.where(jnp.isinf(x), 0, focal_term(g, x))


@finite_term.defjvp
def _finite_term_jvp(
    g: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    return finite_term(g, x), focal_term_grad(g, x) * t


@jax.custom_jvp
def finite(q: Array) -> Array:
    """A weight of terms, and 0 where it is infinite: a factor of tangents, which may be 0."""
    return without_infinities(q)


# As if it were finite, so that mixed derivatives do not depend on the order.
@finite.defjvp
def _finite_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return finite(*primals), tangents[0]


@per_platform()
def without_infinities(q: Array) -> Array:
    """The same, for its value."""
    return jnp.where(jnp.isinf(q), 0, q)
