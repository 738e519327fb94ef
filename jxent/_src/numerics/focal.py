"""Focusing of a softmax loss l: F(l) = c^g l, with c = 1 - p of the label = -expm1(-l).

With e = exp(-l), k = 1 / expm1(l), h = l k and b = c^(g - 1) e:

    F' = c^g (1 + g h)      F'' = g b (2 - l + (g - 1) h)
    db = b ((g - 1) k - 1)  dh = k (1 - h) - h

At l = 0, where the higher derivatives of some g are infinite, they are taken as 0.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent._src.core.elementary import HIGHEST_ACCURACY, exp, log, zero_safe_multiply


def _expm1(x: Array) -> Array:
    value: Array = jax.lax.expm1(x, accuracy=HIGHEST_ACCURACY)
    return value


def _complement(loss: Array) -> Array:
    return -_expm1(-loss)


def _power(g: float, c: Array) -> Array:
    """c^g, of a c in [0, 1]: by products, and what is left of g as an exponential."""
    whole = int(g) if 0 <= g <= 16 else 0
    value: Array = jax.lax.integer_pow(c, whole)
    if g != whole:
        value *= exp((g - whole) * log(c))
    return value


def focused(g: float, loss: Float[Array, "..."]) -> Float[Array, "..."]:
    """The focused loss F."""
    return _power(g, _complement(loss)) * loss


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def focused_grad(g: float, loss: Float[Array, "..."]) -> Float[Array, "..."]:
    """F', one factor an example: 0 at 0 and 1 at inf, its limits."""
    return _power(g, _complement(loss)) * (1 + g * _ratio(loss))


@focused_grad.defjvp
def _focused_grad_jvp(
    g: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (loss,), (t,) = primals, tangents
    finite = jnp.where(jnp.isinf(loss), 0, loss)
    curve = g * _decay(g, loss) * (2 - finite + (g - 1) * _ratio(loss))
    return focused_grad(g, loss), curve * t


@jax.custom_jvp
def _ratio(loss: Float[Array, "..."]) -> Float[Array, "..."]:
    """The h above: 1 at 0, 0 at inf."""
    positive = jnp.where(loss == 0, 1, loss)
    return jnp.where(loss == 0, 1, zero_safe_multiply(exp(-loss), loss) / _complement(positive))


# 1 - h cancels where l is small: there dh = -1/2 + l/6 - l^3/180 + ..., by Bernoulli's numbers.
@_ratio.defjvp
def _ratio_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (loss,), (t,) = primals, tangents
    h = _ratio(loss)
    k = exp(-loss) / _complement(jnp.where(loss == 0, 1, loss))
    l2 = jnp.square(jnp.minimum(loss, 1))
    series = 1 / 6 - l2 * (1 / 180 - l2 * (1 / 5040 - l2 * (1 / 151200 - l2 / 4790016)))
    grad = jnp.where(loss < 0.2, -0.5 + loss * series, k * (1 - h) - h)
    return h, grad * t


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _decay(g: float, loss: Float[Array, "..."]) -> Float[Array, "..."]:
    """The b above, 0 at 0."""
    c = _complement(jnp.where(loss == 0, 1, loss))
    return jnp.where(loss == 0, 0, _power(g - 1, c) * exp(-loss))


@_decay.defjvp
def _decay_jvp(g: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (loss,), (t,) = primals, tangents
    b = _decay(g, loss)
    k = exp(-loss) / _complement(jnp.where(loss == 0, 1, loss))
    return b, b * ((g - 1) * k - 1) * t
