"""The soft cap on logits, c tanh(x / c), with derivatives that keep their digits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent._src.core.elementary import HIGHEST_ACCURACY, exp


@jax.custom_jvp
def tanh(y: Float[Array, "..."]) -> Float[Array, "..."]:
    value: Array = jax.lax.tanh(y, accuracy=HIGHEST_ACCURACY)
    return value


@tanh.defjvp
def _tanh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (y,), (t,) = primals, tangents
    return tanh(y), _sech2(y) * t


@jax.custom_jvp
def _sech2(y: Float[Array, "..."]) -> Float[Array, "..."]:
    e = exp(-2 * jnp.abs(y))
    return 4 * e / jnp.square(1 + e)


# sech^2 y, not 1 - tanh^2 y, which is 0 from y = 9 in float32, where the truth is 6e-8. A rule of
# its own, because derivatives through |y| are wrong at 0 from the third order on.
@_sech2.defjvp
def _sech2_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (y,), (t,) = primals, tangents
    value = _sech2(y)
    return value, -2 * tanh(y) * value * t


def softcap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """`x`, or c tanh(x / c) where a cap is given; -inf, a class masked out, stays -inf."""
    if cap is None:
        return x
    return jnp.where(x == -jnp.inf, -jnp.inf, cap * tanh(x / cap))


def softcap_grad(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."] | float:
    """D softcap / d x, 0 at -inf."""
    return 1.0 if cap is None else _sech2(x / cap)
