"""Small helpers: arguments' types, the computing dtype, exponentials, differences at infinity."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Integer, Real

Numbers = Real[ArrayLike, "..."] | Bool[ArrayLike, "..."]
"""Real numbers of any dtype, a number of Python's among them."""

Bias = Real[ArrayLike, "classes"] | Bool[ArrayLike, "classes"]
"""One number a class, of any real dtype."""

Dense = Real[ArrayLike, "*batch classes"] | Bool[ArrayLike, "*batch classes"]
"""A label for every class, of any real dtype."""

Ids = Integer[ArrayLike, "..."]
"""Class ids `[*batch]` or `[*batch, 1]`: which of them only the other arguments tell."""


class WeightedIds(NamedTuple):
    """Labels as lists of weighted ids, which lie along the axis of the classes."""

    ids: Any  # an array; of a tangent None
    weights: Any  # an array; of a tangent None where it is zero


# What is asked of XLA in every function that it approximates: for some chips it otherwise takes
# forms that are 100 to 4000 ulp off. Where its functions are good, it computes them as ever.
HIGHEST_ACCURACY = jax.lax.AccuracyMode.HIGHEST


def exp(x: Array) -> Array:
    """e^x, with its digits on every platform."""
    return jax.lax.exp(x, accuracy=HIGHEST_ACCURACY)


def log(x: Array) -> Array:
    """The natural logarithm, with its digits on every platform."""
    return jax.lax.log(x, accuracy=HIGHEST_ACCURACY)


def log1p(x: Array) -> Array:
    """log(1 + x), with its digits on every platform."""
    return jax.lax.log1p(x, accuracy=HIGHEST_ACCURACY)


def expm1_residual(d: Float[Array, "..."]) -> Float[Array, "..."]:
    """e^d - 1 - d: by its series where that cancels."""
    near = jnp.abs(d) <= 1
    small = jnp.where(near, d, 0)
    terms = 12 if jnp.finfo(d.dtype).bits <= 32 else 19
    series = jnp.ones_like(d)
    for n in range(terms, 2, -1):
        series = 1 + small * series / n
    whole: Array = jax.lax.expm1(d, accuracy=HIGHEST_ACCURACY) - d
    return jnp.where(near, jnp.square(small) / 2 * series, whole)


def computing_dtype(dtype: DTypeLike) -> jnp.dtype:
    """float32 for bfloat16, float16 and narrower; the dtype itself from float32 up.

    Decided from the number of bits: `jnp.promote_types` raises where a user has made dtype
    promotion strict.
    """
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def upcast(x: Array) -> Array:
    """A floating array in the dtype that losses of it are computed in."""
    return x.astype(computing_dtype(x.dtype))


def of_rank(ndim: int, x: Array | None) -> Array | None:
    """With leading axes of size 1."""
    return None if x is None else x.reshape((1,) * (ndim - x.ndim) + x.shape)


def largest_id(dtype: DTypeLike, classes: int) -> int:
    """The last class that an id of this integer dtype can name."""
    return min(classes - 1, int(jnp.iinfo(dtype).max))


def clip_posinf(x: Array) -> Array:
    """+inf brought down to the largest number, so that two of them are 0 apart."""
    return jnp.minimum(x, jnp.finfo(x.dtype).max)


def max_minus_x(x: Float[Array, "..."], row_max: Float[Array, "..."]) -> Float[Array, "..."]:
    """How far `x` lies below the maximum; two infinities of one sign are no distance apart."""
    # Selected before the subtraction, as tools that look for NaN would report inf - inf.
    equal = x == row_max
    return jnp.where(equal, 0, row_max) - jnp.where(equal, 0, x)


def zero_safe_multiply(a: Array, b: Array) -> Array:
    """The product, and 0 where a is 0: no label, no loss, at an infinite logit too."""
    # Selected before the product, as tools that look for NaN would report 0 * inf.
    return a * jnp.where(a == 0, 0, b)


def nan_unless(valid: Array, x: Array) -> Array:
    """`x` where it is valid, else NaN, which is computed there and nowhere else.

    A literal NaN would be an operand on valid data too: without `jit`, `jax.debug_nans` looks at
    each of them, and `checkify` at each result of arithmetic. No compiler takes inf - inf for 0.
    """
    # On an explicit mesh `valid` may be split otherwise than `x`: what is beside a scalar in
    # `jnp.where` is split alike, and nothing else is.
    infinite = jnp.where(valid, jnp.zeros_like(x), jnp.inf)
    return jnp.where(infinite == 0, x, infinite - infinite)


def zero_from(*arrays: Array) -> Array:
    """0 in the arrays' shape, as a result that depends on them; compilers see that it is 0.

    For the value of a `custom_jvp` function whose tangent depends on an argument that the value
    does not depend on. Where `vmap` batches that argument alone, value and tangent are otherwise
    batched differently, and derivatives taken outside of the `vmap` fail.
    """
    zero = jnp.zeros_like(arrays[0])
    for x in arrays:
        zero = jax.lax.select(x > 0, zero, zero)
    return zero


@jax.custom_jvp
def divided_by(temperature: Array, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The quotient, NaN unless the temperature is positive."""
    # Without the barrier a compiler multiplies by a constant's inverse, in some fusions as one
    # operation with the subtraction of a maximum, which then equals none of the quotients.
    temperature = jax.lax.optimization_barrier(temperature)
    return nan_unless(temperature > 0, x / temperature)


# What is infinite at one temperature is taken to stay so.
@divided_by.defjvp
def _divided_by_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (temperature, x), (dtemperature, dx) = primals, tangents
    value = divided_by(temperature, x)
    finite = jnp.where(jnp.isinf(value), 0, value)
    return value, divided_by(temperature, dx) - finite * (dtemperature / temperature)


def is_masked(apart: Array) -> Array:
    """Whether a distance of logits is that of a class masked by a large finite number, or -inf.

    Its third power overflows, so that some order of differentiation has an infinite tangent, and
    multiplies it by the probability of 0.
    """
    far: Array = jnp.abs(apart) > float(jnp.finfo(apart.dtype).max) ** (1 / 3) / 4
    return far


@jax.custom_jvp
def divided_about(
    temperature: Array, x: Float[Array, "..."], origin: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`divided_by`, for what a constant added to a row of quotients does not change.

    Its derivative to the temperature is taken as if `origin`, one of the row's quotients, stood
    still: what moves all alike would cancel in the end, and take the digits with it. A class that
    is masked has none.
    """
    return divided_by(temperature, x) + zero_from(origin)


@divided_about.defjvp
def _divided_about_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    (temperature, x, origin), (dtemperature, dx, _) = primals, tangents
    value = divided_about(temperature, x, origin)
    apart = value - jax.lax.stop_gradient(origin)
    finite = jnp.where(is_masked(apart), 0, apart)
    return value, divided_by(temperature, dx) - finite * (dtemperature / temperature)
