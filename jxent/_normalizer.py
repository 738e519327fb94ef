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

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent._attempt import are_whole, attempt, by_rows, own_constants
from jxent._classes import Classes


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def pair(x: Float[Array, "..."], classes: Classes) -> tuple[Array, Array]:
    """The pair (max, rest) of `x` over the classes. NaN for a row with a NaN or no class left."""
    on_cpu = _pair_on_cpu if classes.are_last(x) else partial(_pair_without_selects, classes)
    top, rest = jax.lax.platform_dependent(x, cpu=on_cpu, default=partial(_pair_of_rows, classes))
    # XLA:CPU's maximum drops NaN, so the sum says where one is.
    undefined = (top == -jnp.inf) | jnp.isnan(rest)
    return jnp.where(undefined, jnp.nan, top), jnp.where(undefined, jnp.nan, rest)


# A cache, see above.
@pair.defjvp
def _pair_jvp(classes, primals, tangents):
    top, rest = pair(*primals, classes)
    return (top, rest), (jnp.zeros_like(top), jnp.zeros_like(rest))


def _pair_of_rows(classes: Classes, x: Array) -> tuple[Array, Array]:
    """The pair as it is defined; NaN reaches `rest` through its sum."""
    top = classes.max(x)
    at_top = x == top
    others = classes.sum(jnp.where(at_top, 0, jnp.exp(-gap(x, top))))
    ties = classes.sum(at_top.astype(x.dtype))
    return top, others + (ties - 1)


# XLA:CPU fuses a sum with its elements' arithmetic, but not with a select or a comparison, and it
# stores what two sums share; either would be an array of the logits' size. Hence minima in one of
# these sums, and the same distances spelled in another way in the other, with its own constants.
def _pair_without_selects(classes: Classes, x: Array) -> tuple[Array, Array]:
    """The same in terms that XLA:CPU sums without storing them, on any axis and mesh."""
    info = jnp.finfo(x.dtype)
    top = classes.max(x)

    def of_others(below, inverse=1 / info.tiny, one=1.0):
        # 0 for the maximum and its ties, 1 for all others, whose distance is a normal number.
        return jnp.minimum(below * inverse, one)

    # +inf is brought down to the largest number, so that equals are 0 apart.
    below = bounded(top) - bounded(x)
    others = jnp.sum(of_others(below) * jnp.exp(-below), classes.axis, keepdims=True)
    least, inverse, one = own_constants(x.dtype, -info.max, 1 / info.tiny, 1.0)
    below = jnp.maximum(-x, least) - jnp.maximum(-top, least)
    ties = classes.sum(one - of_others(below, inverse, one))
    # Minima drop NaN, this sum does not.
    size = jnp.sum(jnp.abs(x), classes.axis, keepdims=True)
    others = classes.across(jnp.where(jnp.isnan(size), jnp.nan, others))
    return top, others + (ties - 1)


def _pair_on_cpu(x: Array) -> tuple[Array, Array]:
    """The pair along the last axis in three steps, each taken only if a row needs it.

    `everyone`, the sum over all classes, is at least 1 in a row whose maximum is finite: every
    exponent is at most 0 and one is 0, none overflows, and what is flushed to 0 is below
    classes * tiny. In all other rows, and in those with a NaN, it is NaN, as inf - inf is.

    1. From 2 on, as with ties, 1 is taken from it without losing a digit.
    2. Below 2 one class is the maximum alone, and it is left out of the sum.
    3. A row of NaN is computed with all care for infinities.
    """
    piece = piece_length(x.shape[-1])
    top, everyone, but_one, *parts = _pieces(piece, x) if piece else _whole_rows(x)

    def subtracted(everyone, *_):
        return everyone >= 2, everyone - 1

    def left_out(everyone, _, *parts):
        return ~jnp.isnan(everyone), jnp.where(everyone >= 2, everyone - 1, but_one(*parts))

    def careful(_, x, *__):
        form = _pair_of_rows if are_whole() else _pair_without_selects
        return by_rows(lambda x: form(Classes(-1), x)[1])(x)

    return top, attempt(subtracted, attempt(left_out, careful))(everyone, x, *parts)


def _whole_rows(x: Array) -> tuple[Array, Array, Callable[..., Array], Array, Array]:
    """The maximum, the sum of all, and how to sum all but the maximum, of two arrays."""

    def but_one(x, top):
        # As in `_pair_without_selects`; the maximum is finite.
        below = top - x
        other = jnp.minimum(below * (1 / jnp.finfo(x.dtype).tiny), 1)
        return jnp.sum(other * jnp.exp(-below), -1, keepdims=True)

    top = jnp.max(x, -1, keepdims=True)
    everyone = jnp.sum(jnp.exp(x - top), -1, keepdims=True)
    return top, everyone, but_one, x, top


def piece_length(classes: int) -> int | None:
    """The length to cut rows into on CPU: a divisor of their width, near what its caches like.

    None for short rows, where a piece would be a large part of the row, and for those which have
    no such divisor. In rows of more than 2^15 any division is worth it: whole, XLA:CPU takes about
    ten times as long for them. None, too, where the rows may be split.
    """
    if not are_whole():
        return None
    longest = classes // 10 if classes <= 2**15 else 2**15
    lengths = (n for n in range(2**6, longest + 1) if classes % n == 0)
    return min(lengths, key=lambda n: (max(n, 2**9), -n), default=None)


def in_pieces(x: Array, piece: int) -> Array:
    """`[..., classes]` as `[..., pieces, piece]`, which the barrier keeps XLA from joining again.

    XLA:CPU works on whole rows, whose intermediate results then leave the cache: sums of pieces
    were measured 2 to 9 times as fast on long rows. And a sum that leaves one class out needs to
    look for it in one piece only.
    """
    split = (*x.shape[:-1], x.shape[-1] // piece, piece)  # no -1: there may be no examples
    return jax.lax.optimization_barrier(x.reshape(split))


def piece_at(pieces: Array, which: Array) -> Array:
    """The piece number `which` `[..., 1]` of every row."""
    return jnp.take_along_axis(pieces, which[..., None], -2, mode="promise_in_bounds")[..., 0, :]


def sum_without(x: Array, which: Array) -> Array:
    """The sum along the last axis without element `which` `[..., 1]`."""
    numbers = jax.lax.broadcasted_iota(which.dtype, x.shape, x.ndim - 1)
    return jnp.sum(jnp.where(numbers == which, 0, x), -1, keepdims=True)


def _pieces(piece: int, x: Array):
    """As `_whole_rows`: the maximum is left out of its own piece."""
    pieces = in_pieces(x, piece)
    tops = jax.lax.optimization_barrier(jnp.max(pieces, -1))
    top = jnp.max(tops, -1, keepdims=True)
    sums = jnp.sum(jnp.exp(pieces - top[..., None]), -1)
    sums = jax.lax.optimization_barrier(sums)
    everyone = jnp.sum(sums, -1, keepdims=True)
    return top, everyone, _sum_of_pieces_but_one, pieces, tops, top, sums


def _sum_of_pieces_but_one(pieces: Array, tops: Array, top: Array, sums: Array) -> Array:
    which = _first(tops, top)
    own = piece_at(pieces, which)
    in_own = sum_without(jnp.exp(own - top), _first(own, top))
    return sum_without(sums, which) + in_own


def _first(x: Array, value: Array) -> Array:
    """The number `[..., 1]` of the first element of each row that equals `value`."""
    last = x.shape[-1] - 1
    numbers = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.min(jnp.where(x == value, numbers, last), -1, keepdims=True)


def bounded(x: Array) -> Array:
    """+inf brought down to the largest number, so that two of them are 0 apart."""
    return jnp.minimum(x, jnp.finfo(x.dtype).max)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def classes_left(x: Float[Array, "..."], classes: Classes) -> Array:
    """The number of classes that are not ruled out, by -inf."""

    def counted(x):
        return classes.sum((x > -jnp.inf).astype(x.dtype))

    # A comparison would end XLA:CPU's fusion of the sum, and store an array of the logits' size.
    def of_finite(x):
        zero = classes.sum(x - x)
        return zero == 0, jnp.full_like(zero, classes.count(x))

    if not classes.are_last(x):
        return counted(x)
    on_cpu = attempt(of_finite, by_rows(counted))
    return jax.lax.platform_dependent(x, cpu=on_cpu, default=counted)


@classes_left.defjvp
def _classes_left_jvp(classes, primals, tangents):
    count = classes_left(*primals, classes)
    return count, jnp.zeros_like(count)


def even_share(x: Float[Array, "..."], smoothing: float, classes: Classes) -> Array | None:
    """What smoothing adds to the label of each class that is not ruled out; None without it."""
    return smoothing / jnp.maximum(classes_left(x, classes), 1) if smoothing else None


def gap(x: Float[Array, "..."], top: Float[Array, "..."]) -> Float[Array, "..."]:
    """How far `x` lies below the maximum; two infinities of one sign are no distance apart."""
    return jnp.where(x == top, 0, top - x)


def zero_times(a: Array, b: Array) -> Array:
    """The product, and 0 where a is 0: no label, no loss, at an infinite logit too."""
    return jnp.where(a == 0, 0, a * b)


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


@partial(jax.custom_jvp, nondiff_argnums=(5,))
def slopes(
    x: Float[Array, "..."],
    z: Float[Array, "..."],
    total: Array,
    top: Array,
    rest: Array,
    classes: Classes,
) -> Array:
    """The gradient of -sum_j z_j log p_j: Z p - z, where Z is the sum of the labels, `total`.

    For a confident one-hot row that difference is 0; its parts (Z - z) p and z (1 - p) are not. One
    class a row can need them, whose p is 1 / (1 + rest).
    """
    # The select ends XLA:CPU's fusion of the sum, which else stores it for every class.
    total = jnp.where(rest >= 0, total, jnp.nan)
    scale = 1 / (1 + rest)
    of_leader = (total - z) * scale - z * (rest * scale)
    p = jnp.exp(bounded(x) - bounded(top)) * scale
    return jnp.where(_leader(x, top, rest), of_leader, total * p - z)


# `total` is a cache as well: its share of the second derivative is in `by_labels`. For the third
# one the factor of the last term must be a function of the labels, so it is summed once more.
@slopes.defjvp
def _slopes_jvp(classes, primals, tangents):
    x, z, _, top, rest = primals
    dx, dz, *_ = tangents
    p, q = chances(x, top, rest, classes)
    by_labels = (classes.sum(dz) - dz) * p - dz * q
    return slopes(*primals, classes), by_labels + classes.sum(z) * spread(x, dx, classes)


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
