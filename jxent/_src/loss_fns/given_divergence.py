"""Divergences of probabilities as they are given, in logarithms: nothing is normalized.

In a `Loss` the logits are the predictions' logarithms, log p, and the labels the targets, t.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core.elementary import (
    HIGHEST_ACCURACY,
    exp,
    expm1_residual,
    log,
    upcast,
    zero_safe_multiply,
)
from jxent._src.loss_fns.base import Data, Loss, Tangents


@dataclass(frozen=True)
class GivenDivergence(Loss):
    """A sum over the classes of terms, of which each has its own prediction and target alone."""

    # The prediction and the target of an element that is left out: its term is 0.
    left_out: ClassVar[tuple[float, float]]

    @abstractmethod
    def terms(self, log_p: Array, targets: Array) -> Array:
        """What is summed."""

    @abstractmethod
    def by_prediction(self, log_p: Array, targets: Array) -> Array:
        """The derivative of each term by its log p."""

    @abstractmethod
    def by_target(self, log_p: Array, targets: Array) -> Array:
        """The same by its target; 0 where it is infinite: times the tangent 0 it would be NaN."""

    def losses(self, labels: Array, logits: Array, parameters: None) -> tuple[Array, None]:
        return jnp.sum(self.terms(*_computed(labels, logits)), self.axis), None

    def gradient(self, data: Data, statistics: None) -> Array:
        return self.by_prediction(*_computed(*data[:2]))

    def local_tangent(self, data: Data, statistics: None, tangents: Tangents) -> Array:
        log_p, targets = _computed(*data[:2])
        dtargets, dlog_p, _ = tangents
        tangent_out = jnp.zeros_like(log_p)
        if dlog_p is not None:
            tangent_out += self.by_prediction(log_p, targets) * upcast(dlog_p)
        if dtargets is not None:
            tangent_out += self.by_target(log_p, targets) * dtargets.astype(log_p.dtype)
        return jnp.sum(tangent_out, self.axis)


def _computed(targets: Array, log_p: Array) -> tuple[Array, Array]:
    log_p = upcast(log_p)
    return log_p, targets.astype(log_p.dtype)


@dataclass(frozen=True)
class RelativeEntropy(GivenDivergence):
    """The sum of t (log t - log p), 0 where t is."""

    left_out = (0.0, 0.0)

    def terms(self, log_p: Array, targets: Array) -> Array:
        return zero_safe_multiply(targets, _log_ratio(log_p, targets))

    def by_prediction(self, log_p: Array, targets: Array) -> Array:
        return -targets

    def by_target(self, log_p: Array, targets: Array) -> Array:
        ratio = _log_ratio(log_p, targets)
        return jnp.where((targets == 0) | jnp.isinf(ratio), 0, ratio + 1)


def _log_ratio(log_p: Array, targets: Array) -> Array:
    """Log t - log p, 0 where t is."""
    positive = jnp.where(targets == 0, 1, targets)
    return log(positive) - jnp.where(targets == 0, 0, log_p)


@dataclass(frozen=True)
class RelativeEntropyOfLogs(GivenDivergence):
    """The same of targets in logarithms, 0 where these are -inf."""

    left_out = (0.0, -float("inf"))

    def terms(self, log_p: Array, targets: Array) -> Array:
        return zero_safe_multiply(exp(targets), _ratio_of_logs(log_p, targets))

    def by_prediction(self, log_p: Array, targets: Array) -> Array:
        return -exp(targets)

    def by_target(self, log_p: Array, targets: Array) -> Array:
        ratio = _ratio_of_logs(log_p, targets)
        return exp(targets) * jnp.where(jnp.isinf(ratio), 0, ratio + 1)


def _ratio_of_logs(log_p: Array, log_targets: Array) -> Array:
    """Log t - log p, 0 where t is."""
    no_target = log_targets == -jnp.inf
    return jnp.where(no_target, 0, log_targets) - jnp.where(no_target, 0, log_p)


@dataclass(frozen=True)
class GeneralizedRelativeEntropy(GivenDivergence):
    """The sum of t (log t - log p) + p - t, no term of which is negative.

    With d = log p - log t a term is t (e^d - 1 - d), and its derivative by log p is p - t: both
    cancel where p and t are near, and are computed from d there.
    """

    left_out = (-float("inf"), 0.0)

    def terms(self, log_p: Array, targets: Array) -> Array:
        ratio = _log_ratio(log_p, targets)
        far = zero_safe_multiply(targets, ratio) + (exp(log_p) - targets)
        return jnp.where(_are_near(ratio, targets), targets * expm1_residual(-ratio), far)

    def by_prediction(self, log_p: Array, targets: Array) -> Array:
        return _excess(log_p, targets)

    def by_target(self, log_p: Array, targets: Array) -> Array:
        ratio = _log_ratio(log_p, targets)
        return jnp.where(jnp.isinf(ratio), 0, ratio)


def _are_near(ratio: Array, targets: Array) -> Array:
    return (jnp.abs(ratio) <= 1) & (targets != 0)


@jax.custom_jvp
def _excess(log_p: Array, targets: Array) -> Array:
    """The difference p - t."""
    ratio = _log_ratio(log_p, targets)
    near = _are_near(ratio, targets)
    relative = jax.lax.expm1(jnp.where(near, -ratio, 0), accuracy=HIGHEST_ACCURACY)
    return jnp.where(near, targets * relative, exp(log_p) - targets)


@_excess.defjvp
def _excess_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (log_p, targets), (dlog_p, dtargets) = primals, tangents
    return _excess(log_p, targets), exp(log_p) * dlog_p - dtargets
