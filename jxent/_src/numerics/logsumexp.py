"""Log-sum-exp as a pair (row_max, sumexp_rest), which keeps the digits that one number loses.

For a row `x` with maximum `m`, `sumexp_rest` sums `exp(x_j - m)` over all classes *but one* that
attains the maximum. Then `logsumexp = m + log1p(sumexp_rest)`, and on a row where one class is far
ahead `sumexp_rest` is tiny yet exact to the last digits, whereas `log(sum(exp(x_j - m)))` over all
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
from jxent._src.core.elementary import clip_posinf, exp, log1p, max_minus_x, nan_unless, upcast
from jxent._src.sharding.class_axis import ClassAxis

Arrays = tuple[Array, ...]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def pair(x: Float[Array, "..."], classes: ClassAxis) -> tuple[Array, Array]:
    """(row_max, sumexp_rest) of `x` over the classes; NaN for a row with a NaN or no class left."""
    return nan_if_invalid(*pair_of_rows(classes, x))


def nan_if_invalid(row_max: Array, sumexp_rest: Array) -> tuple[Array, Array]:
    """The pair, NaN where the row has a NaN or no class left."""
    # Some compilers' maximum drops NaN, so the sum says where one is.
    is_valid = (row_max != -jnp.inf) & ~jnp.isnan(sumexp_rest)
    return nan_unless(is_valid, row_max), nan_unless(is_valid, sumexp_rest)


# 0: all of d logsumexp = sum_j p_j t_j is in the rules of the functions that take the pair.
@pair.defjvp
def _pair_jvp(
    classes: ClassAxis, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    row_max, sumexp_rest = pair(*primals, classes)
    return (row_max, sumexp_rest), (jnp.zeros_like(row_max), jnp.zeros_like(sumexp_rest))


@per_platform(statics=1)
def pair_of_rows(classes: ClassAxis, x: Array) -> tuple[Array, Array]:
    """The pair as it is defined; NaN reaches `sumexp_rest` through its sum."""
    x = upcast(x)
    row_max = classes.max(x)
    at_top = x == row_max
    others = classes.sum(jnp.where(at_top, 0, exp(-max_minus_x(x, row_max))))
    ties = classes.sum(at_top.astype(x.dtype))
    return row_max, others + (ties - 1)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def num_unmasked_classes(x: Float[Array, "..."], classes: ClassAxis) -> Array:
    """The number of classes that are not ruled out, by -inf."""
    return count_unmasked(classes, x)


@num_unmasked_classes.defjvp
def _num_unmasked_classes_jvp(
    classes: ClassAxis, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    count = num_unmasked_classes(*primals, classes)
    return count, jnp.zeros_like(count)


@per_platform(statics=1)
def count_unmasked(classes: ClassAxis, x: Array) -> Array:
    """The number of classes that are not at -inf."""
    x = upcast(x)
    return classes.sum((x > -jnp.inf).astype(x.dtype))


def uniform_mass_of(x: Float[Array, "..."], smoothing: float, classes: ClassAxis) -> Array | None:
    """What smoothing adds to the label of each class that is not ruled out; None without it."""
    return smoothing / jnp.maximum(num_unmasked_classes(x, classes), 1) if smoothing else None


@per_platform()
def is_dominant(x: Float[Array, "..."], row_max: Array, sumexp_rest: Array) -> Array:
    """Marks the class that holds more than half of the probability, in rows that have one.

    A second class at the maximum would make `sumexp_rest` at least 1, so no row has two marks.
    """
    return (x == row_max) & (sumexp_rest < 1)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def probability_and_complement(
    x: Float[Array, "..."], row_max: Array, sumexp_rest: Array, classes: ClassAxis
) -> tuple[Array, Array]:
    """Probabilities p, and 1 - p with the digits that the subtraction would lose."""
    p = exp(-max_minus_x(x, row_max)) / (1 + sumexp_rest)
    return p, jnp.where(
        is_dominant(x, row_max, sumexp_rest), sumexp_rest / (1 + sumexp_rest), 1 - p
    )


# dp_j = p_j (t_j - sum_i p_i t_i). Where one class holds most of the probability, its t_j and
# the mean agree in nearly all digits. Measured from that class, t_j is exactly 0 there and the
# mean is a sum over the *other* classes alone, so p (1 - p) keeps its digits at p near 1.
@probability_and_complement.defjvp
def _probability_and_complement_jvp(
    classes: ClassAxis, primals: Arrays, tangents: Arrays
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    x, row_max, sumexp_rest = primals
    p, q = probability_and_complement(x, row_max, sumexp_rest, classes)
    dp = p * deviation(p, x, row_max, sumexp_rest, tangents[0], classes)
    return (p, q), (dp, -dp)


@partial(jax.custom_jvp, nondiff_argnums=(6,))
def grads(
    x: Float[Array, "..."],
    z: Float[Array, "..."],
    total: Array,
    others: Array,
    row_max: Array,
    sumexp_rest: Array,
    classes: ClassAxis,
) -> Array:
    """The gradient of -sum_j z_j log p_j: Z p - z, where Z is the sum of the labels, `total`.

    For a confident one-hot row that difference is 0; its parts (Z - z) p and z (1 - p) are not. One
    class a row can need them, whose p is 1 / (1 + sumexp_rest). `others` is Z - z of each class,
    which is no difference where its label is nearly all of Z.
    """
    scale = 1 / (1 + sumexp_rest)
    of_dominant = others * scale - z * (sumexp_rest * scale)
    p = exp(clip_posinf(x) - clip_posinf(row_max)) * scale
    return jnp.where(is_dominant(x, row_max, sumexp_rest), of_dominant, total * p - z)


# `total` and `others` are caches as well: their share of the second derivative is in `by_labels`.
# For the third one the factor of the last term must be a function of the labels: summed once more.
@grads.defjvp
def _grads_jvp(classes: ClassAxis, primals: Arrays, tangents: Arrays) -> tuple[Array, Array]:
    x, z, _, _, row_max, sumexp_rest = primals
    dx, dz, *_ = tangents
    p, q = probability_and_complement(x, row_max, sumexp_rest, classes)
    dominant = is_dominant(x, row_max, sumexp_rest)
    of_others = jnp.where(dominant, classes.sum(jnp.where(dominant, 0, dz)), classes.sum(dz) - dz)
    by_labels = of_others * p - dz * q
    return grads(*primals, classes), by_labels + classes.sum(z) * softmax_tangent(x, dx, classes)


def softmax_tangent(
    x: Float[Array, "..."], t: Float[Array, "..."], classes: ClassAxis
) -> Float[Array, "..."]:
    """The tangent of the probabilities of `x` along `t`."""
    row_max, sumexp_rest = pair(x, classes)
    p, _ = probability_and_complement(x, row_max, sumexp_rest, classes)
    return p * deviation(p, x, row_max, sumexp_rest, t, classes)


def deviation(
    p: Array,
    x: Array,
    row_max: Array,
    sumexp_rest: Array,
    t: Float[Array, "..."],
    classes: ClassAxis,
) -> Float[Array, "..."]:
    """`t` minus its mean under the probabilities `p` of the logits `x`."""
    dominant = is_dominant(x, row_max, sumexp_rest)
    origin = classes.sum(jnp.where(dominant, t, 0))  # 0 without a dominant class
    beyond = t - origin
    # Not `t - sum(p t)`: where `vmap` goes over t alone, a fusion of jaxlib 0.10.2 goes wrong from
    # 2^15 numbers on (jax issue 39103). With something between product and sum there is none.
    mean = classes.sum(jnp.where(dominant, 0, p * beyond))
    return jnp.where(dominant, 0, beyond) - mean


class TangentMean(NamedTuple):
    """Of rows in blocks of classes: 0; the sum of its tangents is that of logsumexp.

    The tangent of the dominant class, and the mean of the others' less it, as in `deviation`.
    """

    origin: Array
    mean: Array


class SparseLabelResiduals(NamedTuple):
    """One number an example each; the class axis is kept, of size 1.

    Their tangents are 0, as those of the pair are.
    """

    loss: Array  # -log p of the label, smoothed
    log_normalizer: Array  # logsumexp
    shift: Array  # p_j = exp(x_j - shift) * scale
    scale: Array
    complement: Array  # 1 - p of the label
    uniform_mass: Array | None = None  # what smoothing adds to every label, if there is smoothing
    correct: Array | None = None  # 1 where the label is the predicted class, if that is asked for
    tangent_mean: TangentMean | None = (
        None  # for a block of classes, whose row sums are those of all blocks
    )

    def smoothed(
        self, smoothing: float, uniform_mass: Array, uniform_cross_entropy: Array
    ) -> "SparseLabelResiduals":
        """The same of a smoothed label, given the cross-entropy of the uniform part."""
        # At s = 1 the label has no part in it, at -inf neither.
        loss = (
            uniform_cross_entropy + (1 - smoothing) * self.loss
            if smoothing < 1
            else uniform_cross_entropy
        )
        return self._replace(loss=loss, uniform_mass=uniform_mass)


def log_normalizer(
    x: Float[Array, "..."],
    known: Array,
    classes: ClassAxis,
    tangent_mean: TangentMean | None = None,
) -> Array:
    """logsumexp, which is known; `x` is there to be differentiated."""
    if tangent_mean is not None:
        return known + (tangent_mean.origin + tangent_mean.mean)
    return _log_normalizer(x, known, classes)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _log_normalizer(x: Float[Array, "..."], known: Array, classes: ClassAxis) -> Array:
    return known


# d logsumexp = sum_j p_j t_j: positive weights on the tangent, nothing to protect.
@_log_normalizer.defjvp
def _log_normalizer_jvp(
    classes: ClassAxis, primals: Arrays, tangents: Arrays
) -> tuple[Array, Array]:
    x, known = primals
    p, _ = probability_and_complement(x, *pair(x, classes), classes)
    # The `where` keeps product and sum apart: see `deviation`.
    terms = jnp.where(p == 0, 0, p * tangents[0])
    return _log_normalizer(x, known, classes), classes.sum(terms)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def probabilities(
    x: Float[Array, "..."], normalizer: SparseLabelResiduals, classes: ClassAxis
) -> Array:
    """Probabilities from any normaliser: exp(x - shift) * scale."""
    return exp(clip_posinf(x) - normalizer.shift) * normalizer.scale


@probabilities.defjvp
def _probabilities_jvp(classes: ClassAxis, primals: Any, tangents: Any) -> tuple[Array, Array]:
    return probabilities(*primals, classes), _probabilities_tangent(classes, primals, tangents)


def _probabilities_tangent(classes: ClassAxis, primals: Any, tangents: Any) -> Array:
    """The tangent of the probabilities, of whole rows or of a block of their classes."""
    (x, normalizer), (t, dnormalizer) = primals, tangents
    if dnormalizer.tangent_mean is None:
        return softmax_tangent(x, t, classes)
    p: Array = probabilities(x, normalizer, classes)
    tangent_out: Array = p * deviation_in_block(p, t, dnormalizer.tangent_mean)
    return tangent_out


def deviation_in_block(p: Array, t: Array, tangent_mean: TangentMean) -> Array:
    """As `deviation`, for a block of classes."""
    return beyond(p, t, tangent_mean.origin) - tangent_mean.mean


# Two passes may differ in the last digits, so the thresholds do: a class that is dominant here,
# above 0.9, was so where the origin was chosen, above 0.6.
def origin_of(p: Array, t: Array, classes: ClassAxis) -> Array:
    """What a block adds to the moment's `origin`."""
    return classes.sum(jnp.where(p > 0.6, t, 0))


def mean_of(p: Array, t: Array, origin: Array, classes: ClassAxis) -> Array:
    """What a block adds to the moment's `mean`."""
    return classes.sum(p * beyond(p, t, origin))


def beyond(p: Array, t: Array, origin: Array) -> Array:
    """`t` less its value at the dominant class."""
    return jnp.where(p > 0.9, 0, t - origin)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def neg_log_probs(
    x: Float[Array, "..."], row_max: Array, sumexp_rest: Array, classes: ClassAxis
) -> Array:
    """-log p of every class, which is what its label's weight multiplies; 0 where infinite.

    A derivative of 0 for the label of a class that is masked out: the true one is infinite,
    and times the tangent 0 it would be NaN.
    """
    value = max_minus_x(x, row_max) + log1p(sumexp_rest)
    return jnp.where(jnp.isinf(value), 0, value)


# d(-log p_j) = -(t_j - sum_i p_i t_i), finite at a masked class too, where the value is cut.
@neg_log_probs.defjvp
def _neg_log_probs_jvp(
    classes: ClassAxis, primals: Arrays, tangents: Arrays
) -> tuple[Array, Array]:
    x, row_max, sumexp_rest = primals
    p, _ = probability_and_complement(x, row_max, sumexp_rest, classes)
    return neg_log_probs(x, row_max, sumexp_rest, classes), -deviation(
        p, x, row_max, sumexp_rest, tangents[0], classes
    )


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def label_grads(
    classes: ClassAxis,
    smoothing: float,
    x: Float[Array, "..."],
    ids: Integer[Array, "..."],
    normalizer: SparseLabelResiduals,
) -> Float[Array, "..."]:
    """The gradient of the losses: p - z, for labels z of the class alone, then smoothed.

    At the label it is -(1 - p) unsmoothed. Smoothed, z = 1 - s + s / C there, and the difference is
    taken as (1 - z) p - z (1 - p): neither of these loses digits where p is near 0 or 1.
    """
    p = probabilities(x, normalizer, classes)
    labelled = classes.iota(x) == ids
    if normalizer.uniform_mass is None:
        return jnp.where(labelled, -normalizer.complement, p)
    uniform_mass = jnp.where(x > -jnp.inf, normalizer.uniform_mass, 0)
    of_label = (smoothing - uniform_mass) * p
    of_label -= (1 - smoothing + uniform_mass) * normalizer.complement
    return jnp.where(labelled, of_label, p - uniform_mass)


# p, p - 1 and p - z have one derivative; for an id out of range it is NaN as all else is.
@label_grads.defjvp
def _label_grads_jvp(
    classes: ClassAxis,
    smoothing: float,
    primals: tuple[Array, Array, SparseLabelResiduals],
    tangents: tuple[Array, Any, SparseLabelResiduals],
) -> tuple[Array, Array]:
    x, _, normalizer = primals
    dx, _, dnormalizer = tangents
    complement = normalizer.complement
    factor = nan_unless(~jnp.isnan(complement), jnp.ones_like(complement))
    tangent_out = factor * _probabilities_tangent(classes, (x, normalizer), (dx, dnormalizer))
    return label_grads(classes, smoothing, *primals), tangent_out


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def label_loss(
    classes: ClassAxis,
    x: Float[Array, "..."],
    ids: Integer[Array, "..."],
    normalizer: SparseLabelResiduals,
) -> Array:
    """-log p of the label, unsmoothed, which is known; `x` is there to be differentiated."""
    return normalizer.loss


# Of whole rows: there is no moment for what a block of classes would need of the others.
@label_loss.defjvp
def _label_loss_jvp(
    classes: ClassAxis,
    primals: tuple[Array, Array, SparseLabelResiduals],
    tangents: tuple[Array, Any, SparseLabelResiduals],
) -> tuple[Array, Array]:
    grads = label_grads(classes, 0.0, *primals)
    terms = jnp.where(grads == 0, 0, grads * tangents[0])  # as in `_log_normalizer`
    return label_loss(classes, *primals), classes.sum(terms)
