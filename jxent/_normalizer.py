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

from jxent._classes import Classes


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def pair(x: Float[Array, "..."], classes: Classes) -> tuple[Array, Array]:
    """The pair (max, rest) of `x` over the classes. NaN for a row without a class left."""
    whole = partial(_pair_of_rows, classes)
    piece = piece_length(classes.width(x))
    if piece and classes.are_last(x):
        top, rest = jax.lax.platform_dependent(
            x, cpu=partial(_pair_of_pieces, piece), default=whole
        )
    else:
        top, rest = whole(x)
    return jnp.where(top == -jnp.inf, jnp.nan, top), rest


# A cache, see above.
@pair.defjvp
def _pair_jvp(classes, primals, tangents):
    top, rest = pair(*primals, classes)
    return (top, rest), (jnp.zeros_like(top), jnp.zeros_like(rest))


def _pair_of_rows(classes: Classes, x: Array) -> tuple[Array, Array]:
    """In one sum over all classes, and one over all but the maximum and its ties.

    XLA:CPU fuses a sum with its elements' arithmetic, but not with a select or a comparison, and
    it stores what two sums share; either would be an array of the logits' size. Hence minima in
    one sum, and the same distances spelled in another way in the other.
    """
    info = jnp.finfo(x.dtype)
    top = classes.max(x)
    # +inf is brought down to the largest number, so that equals are 0 apart. `other` is 0 for the
    # maximum and its ties, and 1 for all others, whose distance is a normal number.
    below = bounded(top) - bounded(x)
    other = jnp.minimum(below * (1 / info.tiny), 1)
    but_one = classes.sum(other * jnp.exp(-below))
    above = jnp.maximum(-top, -info.max) - jnp.maximum(-x, -info.max)
    everyone = classes.sum(jnp.exp(above))
    # With ties the sum over all classes is at least 2, and taking 1 from it loses no digits.
    return top, jnp.where(everyone >= 2, everyone - 1, but_one)


def piece_length(classes: int) -> int | None:
    """The length to cut long rows into on CPU: the largest divisor that its caches like."""
    if classes < 2**12:
        return None
    return next((n for n in range(2**9, 2**7 - 1, -1) if classes % n == 0), None)


def in_pieces(x: Array, piece: int) -> Array:
    """`[..., classes]` as `[..., pieces, piece]`, which the barrier keeps XLA from joining again.

    XLA:CPU works on whole rows, whose intermediate results then leave the cache: sums of pieces
    were measured 2 to 9 times as fast on long rows. And a sum that leaves one class out needs to
    look for it in one piece only.
    """
    return jax.lax.optimization_barrier(x.reshape(*x.shape[:-1], -1, piece))


def piece_at(pieces: Array, which: Array) -> Array:
    """The piece number `which` `[..., 1]` of every row."""
    return jnp.take_along_axis(pieces, which[..., None], -2, mode="promise_in_bounds")[..., 0, :]


def sum_without(x: Array, which: Array) -> Array:
    """The sum along the last axis without element `which` `[..., 1]`."""
    numbers = jax.lax.broadcasted_iota(which.dtype, x.shape, x.ndim - 1)
    return jnp.sum(jnp.where(numbers == which, 0, x), -1, keepdims=True)


def _pair_of_pieces(piece: int, x: Array) -> tuple[Array, Array]:
    """The same along the last axis: the maximum is left out of its own piece."""
    pieces = in_pieces(x, piece)
    tops = jax.lax.optimization_barrier(jnp.max(pieces, -1))
    top = jnp.max(tops, -1, keepdims=True)
    sums = jnp.sum(jnp.exp(bounded(pieces) - bounded(top)[..., None]), -1)
    sums = jax.lax.optimization_barrier(sums)
    which = _first(tops, top)
    own = piece_at(pieces, which)
    in_own = sum_without(jnp.exp(bounded(own) - bounded(top)), _first(own, top))
    return top, sum_without(sums, which) + in_own


def _first(x: Array, value: Array) -> Array:
    """The number `[..., 1]` of the first element of each row that equals `value`."""
    last = x.shape[-1] - 1
    numbers = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.min(jnp.where(x == value, numbers, last), -1, keepdims=True)


def bounded(x: Array) -> Array:
    """+inf brought down to the largest number, so that two of them are 0 apart."""
    return jnp.minimum(x, jnp.finfo(x.dtype).max)


def gap(x: Float[Array, "..."], top: Float[Array, "..."]) -> Float[Array, "..."]:
    """How far `x` lies below the maximum; two infinities of one sign are no distance apart."""
    return jnp.where(x == top, 0, top - x)


def zero_times(a: Array, b: Array) -> Array:
    """The product for b >= 0, and 0 where a is 0: no label, no loss, at an infinite logit too.

    Without a select, which would end XLA:CPU's fusion of the sum that this stands in: infinity is
    brought down to the largest number, and the last factor, 1 for all others, makes it overflow
    again unless a is 0.
    """
    finite = bounded(b)
    return a * finite * (1 + bounded(b - finite))


def _leader(x: Float[Array, "..."], top: Array, rest: Array) -> Array:
    """Marks the class that holds more than half of the probability, in rows that have one.

    A second class at the maximum would make `rest` at least 1, so no row has two marks.
    """
    return (x == top) & (rest < 1)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def chances(
    x: Float[Array, "..."], top: Array, rest: Array, classes: Classes
) -> tuple[Array, Array]:
    """Probabilities p, and 1 - p with the digits that the subtraction would lose."""
    p = jnp.exp(-gap(x, top)) / (1 + rest)
    return p, jnp.where(_leader(x, top, rest), rest / (1 + rest), 1 - p)


# dp_j = p_j (t_j - sum_i p_i t_i). Where one class holds most of the probability, its t_j and
# the mean agree in nearly all digits. Measured from that class, t_j is exactly 0 there and the
# mean is a sum over the *other* classes alone, so p (1 - p) keeps its digits at p near 1.
@chances.defjvp
def _chances_jvp(classes, primals, tangents):
    x, top, rest = primals
    p, q = chances(x, top, rest, classes)
    dp = p * deviation(p, x, top, rest, tangents[0], classes)
    return (p, q), (dp, -dp)


def spread(x: Float[Array, "..."], t: Float[Array, "..."], classes: Classes) -> Float[Array, "..."]:
    """The tangent of the probabilities of `x` along `t`."""
    top, rest = pair(x, classes)
    p, _ = chances(x, top, rest, classes)
    return p * deviation(p, x, top, rest, t, classes)


def deviation(
    p: Array, x: Array, top: Array, rest: Array, t: Float[Array, "..."], classes: Classes
) -> Float[Array, "..."]:
    """`t` minus its mean under the probabilities `p` of the logits `x`."""
    leader = _leader(x, top, rest)
    origin = classes.sum(jnp.where(leader, t, 0))  # 0 where nobody leads
    t = jnp.where(leader, 0, t - origin)
    return t - classes.sum(p * t)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def log_normalizer(x: Float[Array, "..."], known: Array, classes: Classes) -> Array:
    """logsumexp, which is known; `x` is there to be differentiated."""
    return known


# d logsumexp = sum_j p_j t_j: positive weights on the tangent, nothing to protect.
@log_normalizer.defjvp
def _log_normalizer_jvp(classes, primals, tangents):
    x, known = primals
    p, _ = chances(x, *pair(x, classes), classes)
    return log_normalizer(x, known, classes), classes.sum(p * tangents[0])


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def probabilities(x: Float[Array, "..."], shift: Array, scale: Array, classes: Classes) -> Array:
    """Probabilities from any normaliser: exp(x - shift) * scale."""
    return jnp.exp(bounded(x) - shift) * scale


@probabilities.defjvp
def _probabilities_jvp(classes, primals, tangents):
    return probabilities(*primals, classes), spread(primals[0], tangents[0], classes)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def surprises(x: Float[Array, "..."], top: Array, rest: Array, classes: Classes) -> Array:
    """-log p of every class, which is what its label's weight multiplies; 0 where infinite.

    A derivative of 0 for the label of a class that is masked out: the true one is infinite,
    and times the tangent 0 it would be NaN.
    """
    value = gap(x, top) + jnp.log1p(rest)
    return jnp.where(jnp.isinf(value), 0, value)


# d(-log p_j) = -(t_j - sum_i p_i t_i), finite at a masked class too, where the value is cut.
@surprises.defjvp
def _surprises_jvp(classes, primals, tangents):
    x, top, rest = primals
    p, _ = chances(x, top, rest, classes)
    return surprises(x, top, rest, classes), -deviation(p, x, top, rest, tangents[0], classes)
