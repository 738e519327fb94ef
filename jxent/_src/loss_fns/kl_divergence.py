"""The Kullback-Leibler divergence of two softmaxes, of a teacher's logits and a student's.

With p_t and p_s their probabilities and d = log p_s - log p_t, whose mean of e^d under p_t is 1:

    KL = sum p_t (-d) = log1p(S)        S = sum p_t (e^b - 1 - b)        d = b - KL

where a = x_s - x_t, and b is a less its mean under p_t. No term of S is negative, where the plain
sum of p_t (-d) cancels to nothing between a student and a teacher that agree; nor is d a difference
of two log-probabilities, while the two are near. Where they are not, S <= 1 fails, KL is a
difference of the two normalisers, and d one of the log-probabilities.

    d KL / d y_s = p_s - p_t = p_t expm1(d)        d KL / d y_t = p_t (-d - KL)

for y = x / temperature. `DivergenceResiduals` is a cache of the row, whose tangents are 0.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core import hints
from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import (
    HIGHEST_ACCURACY,
    clip_posinf,
    computing_dtype,
    divided_about,
    divided_by,
    exp,
    expm1_residual,
    is_masked,
    log1p,
    max_minus_x,
    nan_unless,
    upcast,
    zero_safe_multiply,
)
from jxent._src.loss_fns.base import Data, Loss, Tangents
from jxent._src.numerics import logsumexp
from jxent._src.numerics.softcap import softcap, softcap_grad
from jxent._src.sharding.class_axis import ClassAxis

# No logarithm of 1 + S, which is not negative. Not NaN, which tools that look for it would report.
FAR = -1.0


class DivergenceResiduals(NamedTuple):
    """What is kept of each example, the class axis of size 1."""

    teacher: tuple[Array, Array]  # the pair (row_max, sumexp_rest)
    student: tuple[Array, Array]
    teacher_is_infinite: Array  # whether some logit is +inf, see `_finite`
    student_is_infinite: Array
    shift: Array  # what a is measured from, and what rounding it has lost
    shift_lost: Array
    mean: Array  # of a under p_t
    more: Array  # log1p(S); `FAR` where the two are not near
    divergence: Array


@dataclass(frozen=True)
class Divergence(Loss):
    """The divergence per example; its labels are the teacher's logits."""

    teacher_logit_softcap: float | None = None

    def losses(
        self, labels: Array, logits: Array, parameters: Array | None
    ) -> tuple[Array, DivergenceResiduals]:
        rows = self._rows((labels, logits, parameters))
        return jnp.squeeze(rows.divergence, self.axis), rows

    def gradient(self, data: Data, statistics: DivergenceResiduals) -> Array:
        _, logits, temperature = data
        grad, _ = self._grads(data, statistics)
        return _per(grad, temperature) * softcap_grad(upcast(logits), self.logit_softcap)

    def local_tangent(
        self, data: Data, statistics: DivergenceResiduals, tangents: Tangents
    ) -> Array:
        teacher, logits, temperature = data
        dteacher, dlogits, dtemperature = tangents
        of_student, of_teacher = self._grads(data, statistics)
        tangent_out = jnp.zeros_like(of_student)
        if dlogits is not None:
            grad = _per(of_student, temperature)
            grad *= softcap_grad(upcast(logits), self.logit_softcap)
            tangent_out += grad * upcast(dlogits)
        if dteacher is not None:
            grad = _per(of_teacher, temperature)
            grad *= softcap_grad(_in_dtype_of(logits, teacher), self.teacher_logit_softcap)
            tangent_out += grad * _in_dtype_of(logits, dteacher)
        if dtemperature is not None:
            y = self._scaled(data, statistics)
            by_logarithm = _by_logarithm(*y, statistics, self.classes)
            tangent_out += _per(by_logarithm, temperature) * dtemperature
        return jnp.sum(tangent_out, self.axis)

    def _capped(self, teacher: Array, logits: Array) -> tuple[Array, Array]:
        x_t = softcap(_in_dtype_of(logits, teacher), self.teacher_logit_softcap)
        x_s = softcap(upcast(logits), self.logit_softcap)
        x_t = x_t if self.teacher_logit_softcap is None else hints.materialize_capped(False, x_t)
        return x_t, x_s if self.logit_softcap is None else hints.materialize_capped(False, x_s)

    def _scaled(self, data: Data, rows: DivergenceResiduals) -> tuple[Array, Array, Array]:
        """Both logits over the temperature, and a, which is subtracted before it is divided."""
        teacher, logits, temperature = data
        return _scaled(*self._capped(teacher, logits), temperature, rows)

    def _rows(self, data: Data) -> DivergenceResiduals:
        """In three passes: the pairs, the mean of a, and S."""
        classes, temperature = self.classes, data[2]
        capped = self._capped(*data[:2])
        pairs = [logsumexp.pair(_per(x, temperature), classes) for x in capped]
        infinite = [row_max == jnp.inf for row_max, _ in pairs]
        (max_t, sumexp_rest_t), (max_s, sumexp_rest_s) = (
            (jnp.where(is_infinite, 0, row_max), sumexp_rest)
            for is_infinite, (row_max, sumexp_rest) in zip(infinite, pairs, strict=True)
        )
        # Where both have the same dominant class, this is exactly its a: its b, which is tiny, is
        # then no difference of large numbers.
        tops = [max_t, max_s] if temperature is None else map(classes.max, capped)
        top_t, top_s = (jnp.where(i, 0, top) for i, top in zip(infinite, tops, strict=True))
        shift, lost = _difference(top_s, top_t)
        shift = jnp.where(jnp.isfinite(shift), shift, 0)
        none = jnp.zeros_like(shift)
        pair_t, pair_s = (max_t, sumexp_rest_t), (max_s, sumexp_rest_s)
        rows = DivergenceResiduals(
            pair_t, pair_s, infinite[0], infinite[1], shift, lost, none, none, none
        )
        mean = sum_logit_differences(classes, *capped, temperature, rows) / (1 + sumexp_rest_t)
        # At -inf the student rules out what the teacher does not.
        infinite_mean = mean == -jnp.inf
        mean = jnp.where(infinite_mean, 0, mean)
        rows = rows._replace(mean=mean)
        offset = (max_s - max_t) - classes.replicated(_per(shift, temperature)) - mean
        # Else what both passes are made of might be stored.
        capped = self._capped(hints.reload(data[0]), data[1])
        excess = sum_expm1_residuals(classes, *capped, temperature, rows, offset) / (
            1 + sumexp_rest_t
        )
        # Near, no term is above 1 + sumexp_rest: that of a b above 1 is one exponential, and where
        # it overflows the two are not near.
        near = excess <= 1
        apart = offset + (log1p(sumexp_rest_s) - log1p(sumexp_rest_t))
        divergence = jnp.where(near, log1p(excess), apart)
        divergence = jnp.where(infinite_mean, jnp.inf, divergence)
        # NaN of a row is in its pairs.
        nonfinite = jnp.isnan(sumexp_rest_t) | jnp.isnan(sumexp_rest_s)
        return rows._replace(
            more=jnp.where(near, divergence, FAR),
            divergence=nan_unless(~nonfinite, divergence),
        )

    def _grads(self, data: Data, rows: DivergenceResiduals) -> tuple[Array, Array]:
        """The gradient to y of the student and of the teacher."""
        teacher, logits, temperature = data
        if logits.dtype.itemsize < 4:  # else what is made of them in float32 might be stored
            teacher, logits = hints.reload((teacher, logits))
        y_t, y_s, a = self._scaled((teacher, logits, temperature), rows)
        return (
            _student_grad(y_t, y_s, a, rows, self.classes),
            _teacher_grad(y_t, y_s, a, rows, self.classes),
        )


def _scaled(
    x_t: Array, x_s: Array, temperature: Array | None, rows: DivergenceResiduals
) -> tuple[Array, Array, Array]:
    x_t, x_s = _finite(x_t, rows.teacher_is_infinite), _finite(x_s, rows.student_is_infinite)
    apart, lost = _difference(x_s, x_t)
    apart = (apart - rows.shift) + (lost - rows.shift_lost)
    y_t, y_s = (
        _per(x, temperature, row_max)
        for x, (row_max, _) in ((x_t, rows.teacher), (x_s, rows.student))
    )
    return y_t, y_s, _per(apart, temperature)


@per_platform(statics=1)
def sum_logit_differences(
    classes: ClassAxis, x_t: Array, x_s: Array, temperature: Array | None, rows: DivergenceResiduals
) -> Array:
    """Sum of p_t a (1 + sumexp_rest)."""
    y_t, _, a = _scaled(x_t, x_s, temperature, rows)
    return classes.sum(zero_safe_multiply(exp(-max_minus_x(y_t, rows.teacher[0])), a))


@per_platform(statics=1)
def sum_expm1_residuals(
    classes: ClassAxis,
    x_t: Array,
    x_s: Array,
    temperature: Array | None,
    rows: DivergenceResiduals,
    offset: Array,
) -> Array:
    """S (1 + sumexp_rest); the terms times e^b are exp(offset - gap) of the student."""
    y_t, y_s, a = _scaled(x_t, x_s, temperature, rows)
    odds = exp(-max_minus_x(y_t, rows.teacher[0]))
    b = a - rows.mean
    # As one exponential: of a class that the teacher rules out it is all that there is.
    whole = exp(offset - max_minus_x(y_s, rows.student[0])) - odds - zero_safe_multiply(odds, b)
    few = (odds > 0) & (b <= 1)
    return classes.sum(jnp.where(few, odds * expm1_residual(jnp.where(few, b, 0)), whole))


def _per(x: Array, temperature: Array | None, origin: Array | None = None) -> Array:
    if temperature is None:
        return x
    if origin is None:
        return divided_by(temperature, x)
    return divided_about(temperature, x, origin)


def _in_dtype_of(logits: Array, teacher: Array) -> Array:
    """The teacher's logits in the dtype that the student's are computed in."""
    return teacher.astype(computing_dtype(logits.dtype))


def _difference(x: Array, y: Array) -> tuple[Array, Array]:
    """The difference, and what rounding has lost of it; equals are 0 apart, infinite ones too.

    A constant between a student and its teacher, however large, then costs no digits.
    """
    equal = x == y
    x, y = jnp.where(equal, 0, x), jnp.where(equal, 0, y)
    apart = x - y
    # Of infinite ones nothing is lost, which a difference of infinities would not say.
    finite = jnp.isfinite(apart)
    x, y, near = (jnp.where(finite, a, 0) for a in (x, y, apart))
    back = near - x
    return apart, (x - (near - back)) - (y + back)


def _finite(x: Array, is_infinite: Array) -> Array:
    """The same softmax without +inf: its classes share it, all others are ruled out."""
    return jnp.where(is_infinite, jnp.where(x == jnp.inf, 0, -jnp.inf).astype(x.dtype), x)


def _below(row_max: Array, y: Array) -> Array:
    """How far y is below the maximum, 0 for a masked class: a factor of slopes that are 0 there."""
    below = clip_posinf(row_max) - clip_posinf(y)
    return jnp.where(is_masked(below), 0, below)


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def _log_ratio(
    y_t: Array, y_s: Array, a: Array, rows: DivergenceResiduals, classes: ClassAxis
) -> Array:
    """The d above, 0 where both rule a class out."""
    gap_t, gap_s = max_minus_x(y_t, rows.teacher[0]), max_minus_x(y_s, rows.student[0])
    neither = jnp.isinf(gap_t) & jnp.isinf(gap_s)
    gap_t = jnp.where(neither, 0, gap_t)
    far = (gap_t + log1p(rows.teacher[1])) - (gap_s + log1p(rows.student[1]))
    far = jnp.where(neither, 0, far)
    return jnp.where(rows.more == FAR, far, a - rows.mean - rows.more)


# The deviations from the means, each measured from its dominant class: see `logsumexp.deviation`.
@_log_ratio.defjvp
def _log_ratio_jvp(classes: ClassAxis, primals: Any, tangents: Any) -> tuple[Array, Array]:
    dev_t, dev_s, *_ = _deviations(classes, primals, tangents)
    return _log_ratio(*primals, classes), dev_s - dev_t


def _deviations(
    classes: ClassAxis, primals: Any, tangents: Any
) -> tuple[Array, Array, Array, Array]:
    """Those of the teacher's and of the student's tangents, and p_t and p_s."""
    y_t, y_s, _, rows = primals
    p_t, _ = logsumexp.probability_and_complement(y_t, *rows.teacher, classes)
    p_s, _ = logsumexp.probability_and_complement(y_s, *rows.student, classes)
    (max_t, sumexp_rest_t), (max_s, sumexp_rest_s) = rows.teacher, rows.student
    dev_t = logsumexp.deviation(p_t, y_t, max_t, sumexp_rest_t, tangents[0], classes)
    dev_s = logsumexp.deviation(p_s, y_s, max_s, sumexp_rest_s, tangents[1], classes)
    return dev_t, dev_s, p_t, p_s


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def _student_grad(
    y_t: Array, y_s: Array, a: Array, rows: DivergenceResiduals, classes: ClassAxis
) -> Array:
    """p_s - p_t, without the cancellation: the larger of the two times -expm1(-|d|)."""
    d = _log_ratio(y_t, y_s, a, rows, classes)
    p_t, _ = logsumexp.probability_and_complement(y_t, *rows.teacher, classes)
    p_s, _ = logsumexp.probability_and_complement(y_s, *rows.student, classes)
    part: Array = -jax.lax.expm1(-jnp.abs(d), accuracy=HIGHEST_ACCURACY)
    return jnp.where(d < 0, -p_t, p_s) * part


@_student_grad.defjvp
def _student_grad_jvp(classes: ClassAxis, primals: Any, tangents: Any) -> tuple[Array, Array]:
    dev_t, dev_s, p_t, p_s = _deviations(classes, primals, tangents)
    return _student_grad(*primals, classes), p_s * dev_s - p_t * dev_t


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def _teacher_grad(
    y_t: Array, y_s: Array, a: Array, rows: DivergenceResiduals, classes: ClassAxis
) -> Array:
    """p_t (-d - KL); 0 in a row whose divergence is infinite.

    The slopes add up to 0. That of a class with more than half of the probability is what the
    others' leave: -d is nearly all of KL there.
    """
    d = _log_ratio(y_t, y_s, a, rows, classes)
    row_max, sumexp_rest = rows.teacher
    p_t, _ = logsumexp.probability_and_complement(y_t, row_max, sumexp_rest, classes)
    infinite = jnp.isinf(rows.divergence)
    divergence = jnp.where(infinite, 0, rows.divergence)
    infinite |= jnp.isinf(d)
    grad = jnp.where(infinite, 0, p_t * (-jnp.where(infinite, 0, d) - divergence))
    is_dominant = logsumexp.is_dominant(y_t, row_max, sumexp_rest)
    return jnp.where(is_dominant, -classes.sum(jnp.where(is_dominant, 0, grad)), grad)


@_teacher_grad.defjvp
def _teacher_grad_jvp(classes: ClassAxis, primals: Any, tangents: Any) -> tuple[Array, Array]:
    dev_t, dev_s, p_t, _ = _deviations(classes, primals, tangents)
    grad = _teacher_grad(*primals, classes)
    of_student = _student_grad(*primals, classes)
    dkl = classes.sum(grad * dev_t + of_student * dev_s)
    return grad, grad * dev_t + p_t * (dev_t - dev_s - dkl)


def _of_grads(
    y_t: Array, y_s: Array, a: Array, rows: DivergenceResiduals, classes: ClassAxis
) -> Array:
    """What adds up to d KL / d log T: each slope times its logits, measured from their maximum.

    Either slope's sum is 0, so that the logits may be measured from anywhere.
    """
    of_student = _student_grad(y_t, y_s, a, rows, classes) * _below(rows.student[0], y_s)
    of_teacher = _teacher_grad(y_t, y_s, a, rows, classes) * _below(rows.teacher[0], y_t)
    return of_student + of_teacher


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def _by_logarithm(
    y_t: Array, y_s: Array, a: Array, rows: DivergenceResiduals, classes: ClassAxis
) -> Array:
    """The same without the cancellation: a is the difference of the two gaps.

    Where student and teacher agree the slopes are of the order of d, and what they add up to is of
    that of d squared.
    """
    d = _log_ratio(y_t, y_s, a, rows, classes)
    p_t, _ = logsumexp.probability_and_complement(y_t, *rows.teacher, classes)
    near = (jnp.abs(d) <= 1) & (p_t > 0) & (rows.more != FAR)
    d, a_near = (jnp.where(near, x, 0) for x in (d, a))
    gap_t, gap_s = _below(rows.teacher[0], y_t), _below(rows.student[0], y_s)
    terms = p_t * (
        expm1_residual(d) * gap_s - d * a_near - jnp.where(near, rows.divergence, 0) * gap_t
    )
    return jnp.where(near, terms, _of_grads(y_t, y_s, a, rows, classes))


@_by_logarithm.defjvp
def _by_logarithm_jvp(classes: ClassAxis, primals: Any, tangents: Any) -> tuple[Array, Array]:
    y_t, y_s, a, rows = primals

    def of_logits(y_t: Array, y_s: Array) -> Array:
        return _of_grads(y_t, y_s, a, rows, classes)

    _, tangent_out = jax.jvp(of_logits, (y_t, y_s), tuple(tangents[:2]))
    return _by_logarithm(*primals, classes), tangent_out
