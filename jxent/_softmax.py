"""Cross-entropy over classes that exclude each other, from logits in memory.

Each example has one class, or a distribution over the classes.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jxent import _checks, _derivative, _explicit, _label, _normalizer
from jxent._attempt import attempt, by_rows, own_constants
from jxent._classes import Classes
from jxent._softcap import softcap, softcap_slope
from jxent._widen import largest_id, widen


def softmax_cross_entropy_with_logits(
    *,
    labels: Float[ArrayLike, "*batch classes"],
    logits: Float[ArrayLike, "*batch classes"],
    axis: int = -1,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    axis_name: str | None = None,
    name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""Cross-entropy, in nats, of each example's distribution and the softmax of its logits.

    $$\ell = \sum_j z_j (\mathrm{logsumexp}(x) - x_j) + \zeta\,\mathrm{logsumexp}(x)^2$$

    with labels $z$, logits $x$ and $\zeta$ = `z_loss`.

    Args:
      labels: A weight for every class, in the logits' shape and dtype; usually a distribution,
        but nothing has to sum to 1. Differentiable. A label of 0 costs nothing, even where the
        logit is -inf.
      logits: Unnormalised log-probabilities. -inf rules a class out; several +inf share the
        probability equally. A row without a class left is NaN.
      axis: The axis that holds the classes.
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c). A class at
        -inf stays ruled out.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; labels are split like the logits. Gradients taken inside need shard_map's default
        `check_vma=True`. None: the classes are whole, or split by `jit` alone.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, in the logits' dtype: their shape without `axis`. bfloat16 and
      float16 are computed in float32 and rounded once.

    Raises:
      TypeError: `logits` is not floating, `labels` has another dtype, or an option is not a
        Python value.
      ValueError: The shapes differ, `axis` is not an axis of `logits`, or an option is out of
        its range.

    Examples:
      >>> softmax_cross_entropy_with_logits(labels=[0.5, 0.5], logits=[0.0, 0.0])
      Array(0.6931472, dtype=float32)

    References:
      TensorFlow, `tf.nn.softmax_cross_entropy_with_logits`. z-loss: Chowdhery et al., PaLM,
      2022, section 5.
    """
    logits = _checks.floating("logits", logits)
    labels = _checks.dense_labels(labels, logits)
    member = Softmax(
        classes=_checks.classes(_checks.axis(axis, logits), axis_name),
        z_loss=_checks.z_loss(z_loss),
        logit_softcap=_checks.logit_softcap(logit_softcap, logits.dtype),
    )
    with _checks.scope(name, "softmax_cross_entropy_with_logits"):
        return _per_example(member, labels, logits)


def sparse_softmax_cross_entropy_with_logits(
    *,
    labels: Integer[ArrayLike, "*batch"],
    logits: Float[ArrayLike, "*batch classes"],
    axis: int = -1,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    axis_name: str | None = None,
    name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""Surprise, in nats, of each example's class under the softmax of its logits.

    $$\ell = \mathrm{logsumexp}(x) - \sum_j z_j x_j + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z_j = (1 - s)\,[j = y] + s / C$$

    with class $y$, logits $x$, $s$ = `label_smoothing`, $\zeta$ = `z_loss`. No array of one-hot
    labels is built.

    Args:
      labels: Class ids in [0, classes). Any other id makes its example's loss and gradient
        NaN. To ignore padding, use `jxent.losses` with `weights=labels >= 0`, or replace bad ids
        before this call and mask the losses after it.
      logits: Unnormalised log-probabilities. -inf rules a class out; several +inf share the
        probability equally. A row without a class left is NaN.
      axis: The axis of `logits` that holds the classes.
      label_smoothing: The share s of the label, in [0, 1], that is spread evenly over the C
        classes that are not at -inf.
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c). A class at
        -inf stays ruled out.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        None: the classes are whole, or split by `jit` alone.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, in the logits' dtype. bfloat16 and float16 are computed in float32
      and rounded once.

    Raises:
      TypeError: `labels` is not integer, `logits` is not floating, or an option is not a
        Python value.
      ValueError: `labels.shape` is not that of `logits` without `axis`, `axis` is not an axis
        of `logits`, or an option is out of its range.

    Examples:
      >>> sparse_softmax_cross_entropy_with_logits(labels=1, logits=[0.0, 0.0])
      Array(0.6931472, dtype=float32)

    References:
      TensorFlow, `tf.nn.sparse_softmax_cross_entropy_with_logits`. Smoothing: Szegedy et al.,
      Rethinking the Inception Architecture, 2016, section 7.
    """
    logits = _checks.floating("logits", logits)
    axis = _checks.axis(axis, logits)
    labels = _checks.class_ids(labels, logits.shape, axis)
    member = SparseSoftmax(
        classes=_checks.classes(axis, axis_name),
        label_smoothing=_checks.label_smoothing(label_smoothing),
        z_loss=_checks.z_loss(z_loss),
        logit_softcap=_checks.logit_softcap(logit_softcap, logits.dtype),
    )
    with _checks.scope(name, "sparse_softmax_cross_entropy_with_logits"):
        return _per_example(member, labels, logits)


@partial(jax.jit, static_argnums=0)
def _per_example(member, labels, logits):
    losses, _ = _derivative.losses(member, True, None, labels, logits, None)
    return losses.astype(logits.dtype)


@dataclass(frozen=True)
class _Exclusive:
    """What dense labels and ids share: the options, and everything about the normaliser."""

    classes: Classes
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    logit_softcap: float | None = None

    @property
    def axis(self):
        return self.classes.axis

    def _capped(self, logits):
        x = softcap(widen(logits), self.logit_softcap)
        if self.logit_softcap is None:
            return x
        # XLA recomputes the product in every fusion, here and there as one fused multiply-add:
        # without the barrier a row's maximum would equal none of its elements to the last bit.
        return jax.lax.optimization_barrier(x)

    def _smoothed(self, x, share, z=None):
        """The labels `z`, or none, and what smoothing adds to them."""
        if share is None:
            return z
        share = jnp.where(x > -jnp.inf, share, 0)
        return share if z is None else (1 - self.label_smoothing) * z + share

    def _expected(self, x, pair, share, z=None):
        """sum_j z_j (-log p_j) with the smoothed labels; a label of 0 costs nothing at -inf."""
        top, rest = pair

        def careful(x, top, more, share, z):
            surprises = _normalizer.gap(x, top) + more
            total = self.classes.sum(_normalizer.zero_times(self._smoothed(x, share, z), surprises))
            # The row of a NaN is NaN even if its labels are all 0.
            return jnp.where(jnp.isnan(more), jnp.nan, total)

        # A sum that is finite has no infinite logit in it, and no class is ruled out.
        def of_finite(x, top, more, share, z):
            surprises = (top - x) + more
            if z is None:
                total = share * self.classes.sum(surprises)
            else:
                if share is not None:
                    (keep,) = own_constants(x.dtype, 1 - self.label_smoothing)
                    z = keep * z + share
                total = self.classes.sum(z * surprises)
            return jnp.isfinite(total), total

        data = (x, top, jnp.log1p(rest), share, z)
        if not self.classes.are_last(x):
            return careful(*data)
        cheap = attempt(of_finite, by_rows(careful))
        return jax.lax.platform_dependent(*data, cpu=cheap, default=careful)

    def _z_slope(self, x, p, log_normalizer):
        """d/dx of z_loss * logsumexp^2; a logsumexp of inf has no slope worth following."""
        log_normalizer = _normalizer.log_normalizer(x, log_normalizer, self.classes)
        return 2 * self.z_loss * jnp.where(jnp.isinf(log_normalizer), 0, log_normalizer) * p


@dataclass(frozen=True)
class Softmax(_Exclusive):
    """Exclusive classes, dense labels: the member that `_derivative` differentiates."""

    def losses(self, labels, logits, pos_weight):
        x = self._capped(logits)
        top, rest = _normalizer.pair(x, self.classes)
        share = _normalizer.even_share(x, self.label_smoothing, self.classes)
        z = labels.astype(x.dtype)
        loss = self._expected(x, (top, rest), share, z)
        if self.z_loss:
            loss += self.z_loss * jnp.square(top + jnp.log1p(rest))
        total = self.classes.sum(z)
        if share is not None:
            total = (1 - self.label_smoothing) * total + self.label_smoothing
        return jnp.squeeze(loss, self.axis), (top, rest, share, total)

    def gradient(self, data, statistics):
        labels, logits, _ = data
        top, rest, share, total = statistics
        x = self._capped(logits)
        z = self._smoothed(x, share, labels.astype(x.dtype))
        slope = _normalizer.slopes(x, z, total, top, rest, self.classes)
        if self.z_loss:
            p, _ = _normalizer.chances(x, top, rest, self.classes)
            slope += self._z_slope(x, p, top + jnp.log1p(rest))
        return slope * softcap_slope(widen(logits), self.logit_softcap)

    def tangent(self, data, statistics, tangents):
        dlabels, dlogits, _ = tangents
        top, rest, *_ = statistics
        change = jnp.zeros_like(jnp.squeeze(top, self.axis))
        if dlogits is not None:
            slope = self.gradient(data, statistics)
            change += self.classes.total(slope * widen(dlogits))
        if dlabels is not None:
            slope = _normalizer.surprises(self._capped(data[1]), top, rest, self.classes)
            slope = (1 - self.label_smoothing) * slope
            change += self.classes.total(slope * widen(dlabels))
        return change


@dataclass(frozen=True)
class SparseSoftmax(_Exclusive):
    """Exclusive classes, ids: the member that `_derivative` differentiates."""

    def losses(self, labels, logits, pos_weight):
        x = self._capped(logits)
        ids = self._ids(labels, x)
        own = self._own(ids, x)
        if self.label_smoothing:
            top, rest = _normalizer.pair(x, self.classes)
            share = _normalizer.even_share(x, self.label_smoothing, self.classes)
            normalizer = _label.of_pair(own, top, rest)._replace(share=share)
            loss = self._expected(x, (top, rest), share)
            # At s = 1 the label has no part in it, at -inf neither.
            if self.label_smoothing < 1:
                loss += (1 - self.label_smoothing) * normalizer.loss
        else:
            normalizer = _label.normalizer(x, ids, own, self.classes)
            loss = normalizer.loss
        if self.z_loss:
            loss += self.z_loss * jnp.square(normalizer.log_normalizer)
        loss, scale, miss = (
            jnp.where(self._in_range(labels, x), a, jnp.nan)
            for a in (loss, normalizer.scale, normalizer.miss)
        )
        return jnp.squeeze(loss, self.axis), normalizer._replace(scale=scale, miss=miss)

    def gradient(self, data, statistics):
        labels, logits, _ = data
        x = self._capped(logits)
        ids = self._ids(labels, x)
        slope = _label.slopes(self.classes, self.label_smoothing, x, ids, statistics)
        if self.z_loss:
            _, log_normalizer, shift, scale, *_ = statistics
            p = _normalizer.probabilities(x, shift, scale, self.classes)
            slope += self._z_slope(x, p, log_normalizer)
        return slope * softcap_slope(widen(logits), self.logit_softcap)

    def tangent(self, data, statistics, tangents):
        _, dlogits, _ = tangents
        slope = self.gradient(data, statistics)
        return self.classes.total(slope * widen(dlogits))

    def _in_range(self, labels, x):
        # In the ids' own dtype: a cast to int32 first would fold large ids into the range.
        ids = jnp.expand_dims(labels, self.axis)
        return (ids >= 0) & (ids <= largest_id(ids.dtype, self.classes.count(x)))

    def _ids(self, labels, x):
        """The ids with the class axis, those out of range replaced by ones in range."""
        ids = jnp.clip(labels, 0, largest_id(labels.dtype, self.classes.count(x)))
        return jnp.expand_dims(ids.astype(jnp.int32), self.axis)

    def _own(self, ids, x):
        """The label's logit.

        Gathered on CPU, where a comparison would store an array; elsewhere compared, which fuses,
        and moves no logits where the classes are split.
        """

        def gathered(ids, x):
            return jnp.take_along_axis(x, ids, self.axis, mode="promise_in_bounds")

        def compared(ids, x):
            return self.classes.sum(jnp.where(self.classes.numbers(x) == ids, x, 0))

        if self.classes.name is not None or _explicit.is_split(x):
            return compared(ids, x)
        return jax.lax.platform_dependent(ids, x, cpu=gathered, default=compared)
