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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import bounded, exp, gap, log1p, nan_unless, widen
from jxent._src.sharding.class_axis import Classes

Arrays = tuple[Array, ...]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def pair(x: Float[Array, "..."], classes: Classes) -> tuple[Array, Array]:
    """The pair (max, rest) of `x` over the classes. NaN for a row with a NaN or no class left."""
    return defined(*pair_of_rows(classes, x))


def defined(row_max: Array, rest: Array) -> tuple[Array, Array]:
    """The pair, NaN where the row has a NaN or no class left."""
    # Some compilers' maximum drops NaN, so the sum says where one is.
    is_defined = (row_max != -jnp.inf) & ~jnp.isnan(rest)
    return nan_unless(is_defined, row_max), nan_unless(is_defined, rest)


# 0: all of d logsumexp = sum_j p_j t_j is in the rules of the functions that take the pair.
@pair.defjvp
def _pair_jvp(
    classes: Classes, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    row_max, rest = pair(*primals, classes)
    return (row_max, rest), (jnp.zeros_like(row_max), jnp.zeros_like(rest))


@per_platform(statics=1)
def pair_of_rows(classes: Classes, x: Array) -> tuple[Array, Array]:
    """The pair as it is defined; NaN reaches `rest` through its sum."""
    x = widen(x)
    row_max = classes.max(x)
    at_top = x == row_max
    others = classes.sum(jnp.where(at_top, 0, exp(-gap(x, row_max))))
    ties = classes.sum(at_top.astype(x.dtype))
    return row_max, others + (ties - 1)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def classes_left(x: Float[Array, "..."], classes: Classes) -> Array:
    """The number of classes that are not ruled out, by -inf."""
    return counted(classes, x)


@classes_left.defjvp
def _classes_left_jvp(
    classes: Classes, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    count = classes_left(*primals, classes)
    return count, jnp.zeros_like(count)


@per_platform(statics=1)
def counted(classes: Classes, x: Array) -> Array:
    """The number of classes that are not at -inf."""
    x = widen(x)
    return classes.sum((x > -jnp.inf).astype(x.dtype))


def even_share(x: Float[Array, "..."], smoothing: float, classes: Classes) -> Array | None:
    """What smoothing adds to the label of each class that is not ruled out; None without it."""
    return smoothing / jnp.maximum(classes_left(x, classes), 1) if smoothing else None


@per_platform()
def leads(x: Float[Array, "..."], row_max: Array, rest: Array) -> Array:
    """Marks the class that holds more than half of the probability, in rows that have one.

    A second class at the maximum would make `rest` at least 1, so no row has two marks.
    """
    return (x == row_max) & (rest < 1)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def chances(
    x: Float[Array, "..."], row_max: Array, rest: Array, classes: Classes
) -> tuple[Array, Array]:
    """Probabilities p, and 1 - p with the digits that the subtraction would lose."""
    p = exp(-gap(x, row_max)) / (1 + rest)
    return p, jnp.where(leads(x, row_max, rest), rest / (1 + rest), 1 - p)


# dp_j = p_j (t_j - sum_i p_i t_i). Where one class holds most of the probability, its t_j and
# the mean agree in nearly all digits. Measured from that class, t_j is exactly 0 there and the
# mean is a sum over the *other* classes alone, so p (1 - p) keeps its digits at p near 1.
@chances.defjvp
def _chances_jvp(
    classes: Classes, primals: Arrays, tangents: Arrays
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    x, row_max, rest = primals
    p, q = chances(x, row_max, rest, classes)
    dp = p * deviation(p, x, row_max, rest, tangents[0], classes)
    return (p, q), (dp, -dp)


@partial(jax.custom_jvp, nondiff_argnums=(6,))
def slopes(
    x: Float[Array, "..."],
    z: Float[Array, "..."],
    total: Array,
    others: Array,
    row_max: Array,
    rest: Array,
    classes: Classes,
) -> Array:
    """The gradient of -sum_j z_j log p_j: Z p - z, where Z is the sum of the labels, `total`.

    For a confident one-hot row that difference is 0; its parts (Z - z) p and z (1 - p) are not. One
    class a row can need them, whose p is 1 / (1 + rest). `others` is Z - z of each class, which is
    no difference where its label is nearly all of Z.
    """
    scale = 1 / (1 + rest)
    of_leader = others * scale - z * (rest * scale)
    p = exp(bounded(x) - bounded(row_max)) * scale
    return jnp.where(leads(x, row_max, rest), of_leader, total * p - z)


# `total` and `others` are caches as well: their share of the second derivative is in `by_labels`.
# For the third one the factor of the last term must be a function of the labels: summed once more.
@slopes.defjvp
def _slopes_jvp(classes: Classes, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    x, z, _, _, row_max, rest = primals
    dx, dz, *_ = tangents
    p, q = chances(x, row_max, rest, classes)
    leader = leads(x, row_max, rest)
    of_others = jnp.where(leader, classes.sum(jnp.where(leader, 0, dz)), classes.sum(dz) - dz)
    by_labels = of_others * p - dz * q
    return slopes(*primals, classes), by_labels + classes.sum(z) * softmax_tangent(x, dx, classes)


def softmax_tangent(
    x: Float[Array, "..."], t: Float[Array, "..."], classes: Classes
) -> Float[Array, "..."]:
    """The tangent of the probabilities of `x` along `t`."""
    row_max, rest = pair(x, classes)
    p, _ = chances(x, row_max, rest, classes)
    return p * deviation(p, x, row_max, rest, t, classes)


def deviation(
    p: Array, x: Array, row_max: Array, rest: Array, t: Float[Array, "..."], classes: Classes
) -> Float[Array, "..."]:
    """`t` minus its mean under the probabilities `p` of the logits `x`."""
    leader = leads(x, row_max, rest)
    origin = classes.sum(jnp.where(leader, t, 0))  # 0 where nobody leads
    beyond = t - origin
    # Not `t - sum(p t)`: where `vmap` goes over t alone, a fusion of jaxlib 0.10.2 goes wrong from
    # 2^15 numbers on (jax issue 39103). With something between product and sum there is none.
    mean = classes.sum(jnp.where(leader, 0, p * beyond))
    return jnp.where(leader, 0, beyond) - mean


class Moment(NamedTuple):
    """Of rows in blocks of classes: 0, whose tangents add up to that of logsumexp.

    What the leader has, and the mean of what the others have beyond it, as in `deviation`.
    """

    origin: Array
    mean: Array


class LabelNormalizer(NamedTuple):
    """One number an example each; the class axis is kept, of size 1.

    Their tangents are 0, as those of the pair are.
    """

    loss: Array  # -log p of the label, smoothed
    log_normalizer: Array  # logsumexp
    shift: Array  # p_j = exp(x_j - shift) * scale
    scale: Array
    complement: Array  # 1 - p of the label
    share: Array | None = None  # what smoothing adds to every label, if there is smoothing
    right: Array | None = None  # 1 where the label is the predicted class, if that is asked for
    moment: Moment | None = None  # for a block of classes, whose row sums are those of all blocks

    def smoothed(self, smoothing: float, share: Array, evenly: Array) -> "LabelNormalizer":
        """The same of a smoothed label; `evenly` is what the shares of all classes cost."""
        # At s = 1 the label has no part in it, at -inf neither.
        loss = evenly + (1 - smoothing) * self.loss if smoothing < 1 else evenly
        return self._replace(loss=loss, share=share)


def log_normalizer(
    x: Float[Array, "..."], known: Array, classes: Classes, moment: Moment | None = None
) -> Array:
    """logsumexp, which is known; `x` is there to be differentiated."""
    if moment is not None:
        return known + (moment.origin + moment.mean)
    return _log_normalizer(x, known, classes)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _log_normalizer(x: Float[Array, "..."], known: Array, classes: Classes) -> Array:
    return known


# d logsumexp = sum_j p_j t_j: positive weights on the tangent, nothing to protect.
@_log_normalizer.defjvp
def _log_normalizer_jvp(classes: Classes, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    x, known = primals
    p, _ = chances(x, *pair(x, classes), classes)
    # Something between product and sum, for the same reason as in `deviation`.
    terms = jnp.where(p == 0, 0, p * tangents[0])
    return _log_normalizer(x, known, classes), classes.sum(terms)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def probabilities(x: Float[Array, "..."], normalizer: LabelNormalizer, classes: Classes) -> Array:
    """Probabilities from any normaliser: exp(x - shift) * scale."""
    return exp(bounded(x) - normalizer.shift) * normalizer.scale


@probabilities.defjvp
def _probabilities_jvp(classes: Classes, primals: Any, tangents: Any) -> tuple[Array, Array]:
    return probabilities(*primals, classes), _change(classes, primals, tangents)


def _change(classes: Classes, primals: Any, tangents: Any) -> Array:
    """The tangent of the probabilities, of whole rows or of a block of their classes."""
    (x, normalizer), (t, dnormalizer) = primals, tangents
    if dnormalizer.moment is None:
        return softmax_tangent(x, t, classes)
    p: Array = probabilities(x, normalizer, classes)
    change: Array = p * deviation_in_block(p, t, dnormalizer.moment)
    return change


def deviation_in_block(p: Array, t: Array, moment: Moment) -> Array:
    """As `deviation`, for a block of classes."""
    return beyond(p, t, moment.origin) - moment.mean


# Passes differ in the last digits: who leads here, above 0.9, was the origin there, above 0.6.
def origin_of(p: Array, t: Array, classes: Classes) -> Array:
    """What a block adds to the moment's `origin`."""
    return classes.sum(jnp.where(p > 0.6, t, 0))


def mean_of(p: Array, t: Array, origin: Array, classes: Classes) -> Array:
    """What a block adds to the moment's `mean`."""
    return classes.sum(p * beyond(p, t, origin))


def beyond(p: Array, t: Array, origin: Array) -> Array:
    """What `t` has beyond the leader."""
    return jnp.where(p > 0.9, 0, t - origin)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def surprises(x: Float[Array, "..."], row_max: Array, rest: Array, classes: Classes) -> Array:
    """-log p of every class, which is what its label's weight multiplies; 0 where infinite.

    A derivative of 0 for the label of a class that is masked out: the true one is infinite,
    and times the tangent 0 it would be NaN.
    """
    value = gap(x, row_max) + log1p(rest)
    return jnp.where(jnp.isinf(value), 0, value)


# d(-log p_j) = -(t_j - sum_i p_i t_i), finite at a masked class too, where the value is cut.
@surprises.defjvp
def _surprises_jvp(classes: Classes, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    x, row_max, rest = primals
    p, _ = chances(x, row_max, rest, classes)
    return surprises(x, row_max, rest, classes), -deviation(
        p, x, row_max, rest, tangents[0], classes
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def label_slopes(
    classes: Classes,
    smoothing: float,
    x: Float[Array, "..."],
    ids: Integer[Array, "..."],
    normalizer: LabelNormalizer,
) -> Float[Array, "..."]:
    """The gradient of the losses: p - z, for labels z of the class alone, then smoothed.

    At the label it is -(1 - p) unsmoothed. Smoothed, z = 1 - s + s / C there, and the difference is
    taken as (1 - z) p - z (1 - p): neither of these loses digits where p is near 0 or 1.
    """
    p = probabilities(x, normalizer, classes)
    labelled = classes.numbers(x) == ids
    if normalizer.share is None:
        return jnp.where(labelled, -normalizer.complement, p)
    share = jnp.where(x > -jnp.inf, normalizer.share, 0)
    of_label = (smoothing - share) * p - (1 - smoothing + share) * normalizer.complement
    return jnp.where(labelled, of_label, p - share)


# p, p - 1 and p - z have one derivative; for an id out of range it is NaN as all else is.
@label_slopes.defjvp
def _label_slopes_jvp(
    classes: Classes,
    smoothing: float,
    primals: tuple[Array, Array, LabelNormalizer],
    tangents: tuple[Array, Any, LabelNormalizer],
) -> tuple[Array, Array]:
    x, _, normalizer = primals
    dx, _, dnormalizer = tangents
    complement = normalizer.complement
    known = nan_unless(~jnp.isnan(complement), jnp.ones_like(complement))
    change = known * _change(classes, (x, normalizer), (dx, dnormalizer))
    return label_slopes(classes, smoothing, *primals), change


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def label_loss(
    classes: Classes,
    x: Float[Array, "..."],
    ids: Integer[Array, "..."],
    normalizer: LabelNormalizer,
) -> Array:
    """-log p of the label, unsmoothed, which is known; `x` is there to be differentiated."""
    return normalizer.loss


# Of whole rows: there is no moment for what a block of classes would need of the others.
@label_loss.defjvp
def _label_loss_jvp(
    classes: Classes,
    primals: tuple[Array, Array, LabelNormalizer],
    tangents: tuple[Array, Any, LabelNormalizer],
) -> tuple[Array, Array]:
    slopes = label_slopes(classes, 0.0, *primals)
    terms = jnp.where(slopes == 0, 0, slopes * tangents[0])  # as in `_log_normalizer`
    return label_loss(classes, *primals), classes.sum(terms)
