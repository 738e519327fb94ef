"""Log-sum-exp as a pair (max, rest), which keeps the digits that one number loses.

For a row `x` with maximum `m`, `rest` sums `exp(x_j - m)` over all classes *but one* that
attains the maximum. Then `logsumexp = m + log1p(rest)`, and on a row where one class is far
ahead `rest` is tiny yet exact to the last digits, whereas `log(sum(exp(x_j - m)))` over all
classes starts from `1 + tiny`, which rounds to 1, and its logarithm to 0.

All arrays keep the class axis (of size 1 in a pair), so that nothing has to be moved.

The functions below differentiate with respect to the logits as a whole. The pair that they
are handed is a cache: it is a function of the same logits, and its share of the derivative is
in their rules already, so the tangents of the pair are ignored.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def pair(x: Float[Array, "..."], axis: int) -> tuple[Array, Array]:
    """The pair (max, rest) of `x` along `axis`. NaN for a row without a class left."""
    top = jnp.max(x, axis, keepdims=True)
    top = jnp.where(top == -jnp.inf, jnp.nan, top)
    sums = partial(_sums, axis=axis)
    piece = _piece(x.shape[axis])
    if piece and axis % x.ndim == x.ndim - 1:
        sums = partial(
            jax.lax.platform_dependent, cpu=partial(_sums_of_pieces, piece), default=sums
        )
    everyone, but_one = sums(x, top)
    # With ties the sum over all classes is at least 2, and taking 1 from it loses no digits.
    return top, jnp.where(everyone >= 2, everyone - 1, but_one)


def _sums(x: Array, top: Array, axis: int) -> tuple[Array, Array]:
    """The sums of exp(x_j - m) over all classes, and over all but the maximum and its ties.

    XLA:CPU fuses a sum with its elements' arithmetic, but not with a select or a comparison, and
    it stores what two sums share; either would be an array of the logits' size. Hence minima in
    one sum, and the same distances spelled in another way in the other.
    """
    info = jnp.finfo(x.dtype)
    # +inf is brought down to the largest number, so that equals are 0 apart. `other` is 0 for the
    # maximum and its ties, and 1 for all others, whose distance is a normal number.
    below = jnp.minimum(top, info.max) - jnp.minimum(x, info.max)
    other = jnp.minimum(below * (1 / info.tiny), 1)
    but_one = jnp.sum(other * jnp.exp(-below), axis, keepdims=True)
    above = jnp.maximum(-top, -info.max) - jnp.maximum(-x, -info.max)
    return jnp.sum(jnp.exp(above), axis, keepdims=True), but_one


def _piece(classes: int) -> int | None:
    """The length to cut long rows into on CPU: the largest divisor that its caches like."""
    if classes <= 2**14:
        return None
    return next((n for n in range(2**13, 2**10 - 1, -1) if classes % n == 0), None)


def _sums_of_pieces(piece: int, x: Array, top: Array) -> tuple[Array, Array]:
    """The same in two steps along the last axis: measured 2 to 9 times as fast on long rows.

    XLA:CPU works on whole rows, whose intermediate results then leave the cache. The barriers keep
    it from joining the pieces again.
    """
    pieces = jax.lax.optimization_barrier(x.reshape(*x.shape[:-1], -1, piece))
    partial_sums = jax.lax.optimization_barrier(_sums(pieces, top[..., None], axis=-1))
    everyone, but_one = (jnp.sum(s[..., 0], -1, keepdims=True) for s in partial_sums)
    return everyone, but_one


def gap(x: Float[Array, "..."], top: Float[Array, "..."]) -> Float[Array, "..."]:
    """How far `x` lies below the maximum; two infinities of one sign are no distance apart."""
    return jnp.where(x == top, 0, top - x)


def zero_times(a: Array, b: Array) -> Array:
    """The product for b >= 0, and 0 where a is 0: no label, no loss, at an infinite logit too.

    Without a select, which would end XLA:CPU's fusion of the sum that this stands in: infinity is
    brought down to the largest number, and the second term, which is 0 for every smaller one,
    overflows again unless a is 0.
    """
    info = jnp.finfo(b.dtype)
    most = float(info.max)
    bounded = jnp.minimum(b, most)
    excess = jnp.maximum(bounded - most * (1 - float(info.epsneg)), 0)
    return a * bounded + (a * excess) * most


def _leader(x: Float[Array, "..."], top: Array, rest: Array) -> Array:
    """Marks the class that holds more than half of the probability, in rows that have one.

    A second class at the maximum would make `rest` at least 1, so no row has two marks.
    """
    return (x == top) & (rest < 1)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def chances(x: Float[Array, "..."], top: Array, rest: Array, axis: int) -> tuple[Array, Array]:
    """Probabilities p, and 1 - p with the digits that the subtraction would lose."""
    p = jnp.exp(-gap(x, top)) / (1 + rest)
    return p, jnp.where(_leader(x, top, rest), rest / (1 + rest), 1 - p)


# dp_j = p_j (t_j - sum_i p_i t_i). Where one class holds most of the probability, its t_j and
# the mean agree in nearly all digits. Measured from that class, t_j is exactly 0 there and the
# mean is a sum over the *other* classes alone, so p (1 - p) keeps its digits at p near 1.
@chances.defjvp
def _chances_jvp(axis, primals, tangents):
    x, top, rest = primals
    p, q = chances(x, top, rest, axis)
    dp = p * deviation(p, x, top, rest, tangents[0], axis)
    return (p, q), (dp, -dp)


def deviation(
    p: Array, x: Array, top: Array, rest: Array, t: Float[Array, "..."], axis: int
) -> Float[Array, "..."]:
    """`t` minus its mean under the probabilities `p` of the logits `x`."""
    leader = _leader(x, top, rest)
    origin = jnp.sum(jnp.where(leader, t, 0), axis, keepdims=True)  # 0 where nobody leads
    t = jnp.where(leader, 0, t - origin)
    return t - jnp.sum(p * t, axis, keepdims=True)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def log_normalizer(x: Float[Array, "..."], top: Array, rest: Array, axis: int) -> Array:
    """logsumexp, of the pair alone; `x` is there to be differentiated."""
    return top + jnp.log1p(rest)


# d logsumexp = sum_j p_j t_j: positive weights on the tangent, nothing to protect.
@log_normalizer.defjvp
def _log_normalizer_jvp(axis, primals, tangents):
    x, top, rest = primals
    p, _ = chances(x, top, rest, axis)
    mean = jnp.sum(p * tangents[0], axis, keepdims=True)
    return log_normalizer(x, top, rest, axis), mean


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def surprises(x: Float[Array, "..."], top: Array, rest: Array, axis: int) -> Array:
    """-log p of every class, which is what its label's weight multiplies; 0 where infinite.

    A derivative of 0 for the label of a class that is masked out: the true one is infinite,
    and times the tangent 0 it would be NaN.
    """
    value = gap(x, top) + jnp.log1p(rest)
    return jnp.where(jnp.isinf(value), 0, value)


# d(-log p_j) = -(t_j - sum_i p_i t_i), finite at a masked class too, where the value is cut.
@surprises.defjvp
def _surprises_jvp(axis, primals, tangents):
    x, top, rest = primals
    p, _ = chances(x, top, rest, axis)
    return surprises(x, top, rest, axis), -deviation(p, x, top, rest, tangents[0], axis)
