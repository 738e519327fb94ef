"""The probability that a mixed label is missed, and its powers: focal loss as optax has it.

Of a label z between 0 and 1 optax mixes the probabilities first, and takes the power of the mixture

    m = (1 - z) p + z q        p = sigmoid(x)        q = sigmoid(-x)

With r = p q / m, which at z = 1 is p, and at z = 0 is q:

    d log m = (1 - 2 z) r dx + (q - p) / m dz
    d r     = r ((q - p) - (1 - 2 z) r) dx - r (q - p) / m dz
    d m^g   = g m^g (1 - 2 z) r dx + g m^(g - 1) (q - p) dz + m^g log(m) dg

closed under differentiation. No term cancels for a z in [0, 1] in first order.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent._src.core.elementary import clip_posinf, exp, log, log1p, zero_safe_multiply
from jxent._src.numerics.sigmoid_terms import sigmoid, softplus


class _Mixture(NamedTuple):
    """m = mixed / (1 + e), seen from the label's larger share."""

    x: Array  # towards that share
    e: Array  # exp(-|x|)
    mixed: Array  # 1 where the label is hard
    numerator: Array
    is_hard: Array  # whether the label has one share, so that m is sigmoid(-x)


def _mixture(z: Array, x: Array) -> _Mixture:
    flipped = z < 0.5
    x = jnp.where(flipped, -x, x)
    minor, major = jnp.where(flipped, z, 1 - z), jnp.where(flipped, 1 - z, z)
    e = exp(-jnp.abs(x))
    mixed = minor * jnp.where(x < 0, e, 1) + major * jnp.where(x < 0, 1, e)
    is_hard = minor == 0
    return _Mixture(x, e, jnp.where(is_hard, 1, mixed), mixed, is_hard)


@jax.custom_jvp
def _log_missed(z: Array, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log m: of a hard label a softplus, as m itself may be below the smallest number."""
    m = _mixture(z, x)
    return jnp.where(m.is_hard, -softplus(m.x), log(m.mixed) - log1p(m.e))


@_log_missed.defjvp
def _log_missed_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (z, x), (dz, dx) = primals, tangents
    return _log_missed(z, x), (1 - 2 * z) * _ratio(z, x) * dx + _per_missed(z, x) * dz


@jax.custom_jvp
def _ratio(z: Array, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The r above."""
    m = _mixture(z, x)
    return jnp.where(m.is_hard, sigmoid(m.x), m.e / ((1 + m.e) * m.mixed))


@_ratio.defjvp
def _ratio_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (z, x), (dz, dx) = primals, tangents
    r = _ratio(z, x)
    by_logits = r * (_difference(x) - (1 - 2 * z) * r)
    return r, by_logits * dx - r * _per_missed(z, x) * dz


def _difference(x: Array) -> Array:
    """The difference q - p."""
    return sigmoid(-x) - sigmoid(x)


def _per_missed(z: Array, x: Array) -> Array:
    """(q - p) / m, finite: a factor of tangents, which may be 0."""
    return _difference(x) * clip_posinf(exp(-_log_missed(z, x)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def missed_power(whole: int, rest: Any, z: Array, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """m^(whole + rest): by products, and what is left of the power, if anything, as an exponential.

    An exponential is off by as many units as its exponent says.
    """
    m = _mixture(z, x)
    power: Array = jax.lax.integer_pow(m.numerator / (1 + m.e), whole)
    if rest is None:
        return power
    return power * exp(zero_safe_multiply(rest, _log_missed(z, x)))


@missed_power.defjvp
def _missed_power_jvp(
    whole: int, primals: tuple[Any, Array, Array], tangents: tuple[Any, Array, Array]
) -> tuple[Array, Array]:
    (rest, z, x), (drest, dz, dx) = primals, tangents
    power = missed_power(whole, rest, z, x)
    if rest is None:
        gamma: Any = whole
        lower = missed_power(whole - 1, None, z, x) if whole else jnp.zeros_like(x)
    else:
        gamma = whole + rest
        lower = missed_power(whole - 1, rest, z, x) if whole else missed_power(0, rest - 1, z, x)
    tangent_out = gamma * power * (1 - 2 * z) * _ratio(z, x) * dx
    tangent_out += gamma * clip_posinf(lower) * _difference(x) * dz
    if rest is not None:
        tangent_out += zero_safe_multiply(power, _log_missed(z, x)) * drest
    return power, tangent_out
