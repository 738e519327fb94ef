"""What a softmax predicts of each example: log-probability, entropy, normaliser, likeliest class.

With y the logits, capped and divided by the temperature, p their softmax, m their maximum and
`sumexp_rest` as in `logsumexp`, gap = m - y and E = sum p gap, whose terms are not negative:

    entropy = log1p(sumexp_rest) + E                d entropy / d y = p (gap - E)

From log-softmax it would lose its digits: on a confident row the entropy is 1e-20, and log p of the
dominant class rounds to 0.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jxent._src.core import hints
from jxent._src.core.elementary import (
    clip_posinf,
    divided_about,
    divided_by,
    log1p,
    nan_unless,
    upcast,
)
from jxent._src.core.serialization import register_serialization
from jxent._src.loss_fns import base, label_lists
from jxent._src.loss_fns.base import OfLogits
from jxent._src.numerics import logsumexp, softmax_rows
from jxent._src.numerics.logsumexp import SparseLabelResiduals
from jxent._src.numerics.softcap import softcap
from jxent._src.sharding.class_axis import ClassAxis


@register_serialization("jxent.SoftmaxStatistics")
class SoftmaxStatistics(NamedTuple):
    """What a softmax predicts of each example, `[*batch]`, in float32 at least.

    In their own dtype bfloat16 and float16 could not be compared or subtracted.
    """

    log_prob: Float[Array, "..."]
    """Of the label, in nats: minus the loss. NaN for an id out of range; None without labels.

    `[*batch, K]` of lists of K ids, and 0 for padding, a negative id.
    """

    entropy: Float[Array, "*batch"]
    """Of the prediction, in nats."""

    log_normalizer: Float[Array, "*batch"]
    """logsumexp of the logits, capped and divided by the temperature."""

    prediction: Int[Array, "*batch"]
    """The class of the largest logit, the lowest id among equals; -1 where that is NaN."""


class RowResiduals(NamedTuple):
    """What is kept of each example, the class axis of size 1; a cache, whose tangents are 0."""

    normalizer: SparseLabelResiduals
    mean_gap: Array  # E above
    gap_tangent_covariance: Array | None = None  # see `softmax_statistics`


Outputs = tuple[SoftmaxStatistics, RowResiduals]
FIELDS = ("log_prob", "entropy", "log_normalizer")  # those with a derivative


@dataclass(frozen=True)
class Predictor(OfLogits):
    """Where the classes are, and what becomes of the logits before the softmax."""

    has_class_blocks = True

    def scaled(
        self, logits: Array, temperature: Array | None, origin: Array | None = None
    ) -> Array:
        """What the softmax is taken of; its derivatives as those of `divided_about`."""
        y = softcap(upcast(logits), self.logit_softcap)
        if self.logit_softcap is not None:
            y = hints.materialize_capped(False, y)
        if temperature is None:
            return y
        if origin is None:
            return divided_by(temperature, y)
        return divided_about(temperature, y, origin)

    def statistics(self, labels: Array, logits: Array, temperature: Array | None) -> Outputs:
        """All of them, and what their derivatives are made of."""
        as_given = self.logit_softcap is None and temperature is None
        y = logits if as_given else self.scaled(logits, temperature)
        lists, labels = self._lists_and_ids(labels, y)
        found = softmax_rows.of_prediction(self.classes, y, self.classes.ids(labels, y))
        row_max, sumexp_rest = logsumexp.nan_if_invalid(found.row_max, found.sumexp_rest)
        normalizer = softmax_rows.of_pair(found.logit, row_max, sumexp_rest)
        in_range = self.classes.contains(labels, y)
        log_prob = jnp.squeeze(nan_unless(in_range, -normalizer.loss), self.axis)
        if lists is not None:
            found_of_lists = label_lists.log_probs(self.classes, lists, y, row_max, sumexp_rest)
            log_prob = jnp.moveaxis(found_of_lists, self.classes.index, -1)
        # An id out of range is of the log-probability alone: the other fields stay.
        complement = nan_unless(in_range, normalizer.complement)
        mean_gap = found.gaps / (1 + sumexp_rest)
        log_normalizer = normalizer.log_normalizer
        prediction = jnp.where(jnp.isnan(log_normalizer), -1, found.prediction)
        of_rows = (mean_gap + log1p(sumexp_rest), log_normalizer, prediction)
        row = RowResiduals(normalizer._replace(complement=complement), mean_gap)
        return SoftmaxStatistics(log_prob, *(jnp.squeeze(x, self.axis) for x in of_rows)), row

    def _lists_and_ids(self, labels: Array, y: Array) -> tuple[Array | None, Array]:
        """Lists of ids, if labels are any, and one id per example: any of those of a list."""
        if labels.ndim < y.ndim:
            return None, labels
        return labels, jnp.zeros_like(jnp.sum(labels, self.axis))

    def moved(self, data: Any, nonzero_tangents: Any, row: RowResiduals) -> tuple[Array, Array]:
        """What the softmax is taken of, and its tangent but for a constant of the row."""
        scaled = partial(self.scaled, origin=_origin(row))
        return cast(tuple[Array, Array], _jvp_with_zeros(scaled, data, nonzero_tangents))

    def with_constant(
        self, tangents_out: dict[str, Array], temperature: Any, dtemperature: Any, row: RowResiduals
    ) -> dict[str, Array]:
        """The tangents of the fields with what a constant of the row makes of them."""
        if temperature is None or dtemperature is None:
            return tangents_out
        fixed = jax.lax.stop_gradient(_origin(row) * temperature)
        _, constant = jax.jvp(lambda t: divided_by(t, fixed), (temperature,), (dtemperature,))
        moved = tangents_out["log_normalizer"] + jnp.squeeze(constant, self.axis)
        return {**tangents_out, "log_normalizer": moved}

    def tangents_out(
        self, labels: Array, y: Array, dy: Array, row: RowResiduals
    ) -> dict[str, Array]:
        """The tangents of the fields along `dy`, of whole rows or of a block of their classes.

        Of lists of ids, of whole rows alone.
        """
        p = logsumexp.probabilities(y, row.normalizer, self.classes)
        lists, labels = self._lists_and_ids(labels, y)
        scale = row.normalizer.scale
        scale = nan_unless(~jnp.isnan(row.normalizer.complement), scale)
        # None is out of range where the normaliser is not NaN, but for other classes of a block.
        ids = self.classes.expand(jnp.where(labels < 0, -1, labels).astype(jnp.int32))
        of_label = logsumexp.label_grads(
            self.classes, 0.0, y, ids, row.normalizer._replace(scale=scale)
        )
        grads = {
            "log_prob": -of_label,
            "entropy": p * gap_minus_mean(y, row, self.classes),
            "log_normalizer": p,
        }
        tangents = {name: self.classes.total(grad * dy) for name, grad in grads.items()}
        if lists is not None:
            moved = label_lists.log_probs_tangent(self.classes, lists, p, dy)
            tangents["log_prob"] = jnp.moveaxis(moved, self.classes.index, -1)
        return tangents


def _origin(row: RowResiduals) -> Array:
    """What tangents to the temperature are measured from: the row's largest logit, or 0."""
    shift = row.normalizer.shift
    # Of a dominant class at +inf the shift is the largest number.
    return jnp.where(jnp.abs(shift) < jnp.finfo(shift.dtype).max, shift, 0)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def gap_minus_mean(y: Array, row: RowResiduals, classes: ClassAxis) -> Array:
    """The difference gap - E; -E where a class has no probability.

    Where it has none the gap may be so large that its product with a tangent overflows.
    """
    gap = row.normalizer.shift - clip_posinf(y)
    least = float(jnp.finfo(y.dtype).smallest_subnormal)  # the least that any exponential is
    return jnp.where(gap > -math.log(least), 0, gap) - row.mean_gap


# With dev = t - sum p t: d gap = -dev up to a constant of the row, d E = sum p dev gap + the same.
@gap_minus_mean.defjvp
def _gap_minus_mean_jvp(classes: ClassAxis, primals: Any, tangents: Any) -> tuple[Array, Array]:
    y, row = primals
    dy, drow = tangents
    value = gap_minus_mean(y, row, classes)
    if drow.gap_tangent_covariance is not None:
        p = logsumexp.probabilities(y, row.normalizer, classes)
        dev = logsumexp.deviation_in_block(p, dy, drow.normalizer.tangent_mean)
        return value, -(dev + drow.gap_tangent_covariance)
    pair = logsumexp.pair(y, classes)
    p, _ = logsumexp.probability_and_complement(y, *pair, classes)
    dev = logsumexp.deviation(p, y, *pair, dy, classes)
    # The `where` keeps product and sum apart: see `logsumexp.deviation`.
    return value, -(dev + classes.sum(jnp.where(p == 0, 0, p * (value * dev))))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def predicted(
    predictor: Predictor, labels: Array, logits: Array, temperature: Array | None
) -> Outputs:
    """The statistics of logits in memory."""
    return predictor.statistics(labels, logits, temperature)


# The tangent of each field is recomputed from the data as given, under a checkpoint of its own:
# reverse mode saves no second array of the logits' size, and one field alone costs no other.
def _predicted_jvp(predictor: Predictor, primals: Any, tangents: Any) -> tuple[Outputs, Outputs]:
    labels, *data = primals
    found = predicted(predictor, *primals)
    nonzero_tangents = base.none_for_zeros(tangents[1:])

    def tangent_out(
        name: str, value: Array, row: RowResiduals, data: Any, nonzero_tangents: Any
    ) -> Array:
        # After the field itself, see `base`: a step writes the new logits over the old ones.
        if value.ndim == row.mean_gap.ndim:  # of lists of ids
            value = jnp.sum(value, -1)
        zero = predictor.classes.expand(hints.ordering_zero(value))
        (_, *data), row = hints.add_dependency(zero, (labels, *data), row)
        found = predictor.tangents_out(labels, *predictor.moved(data, nonzero_tangents, row), row)
        return predictor.with_constant(found, data[1], nonzero_tangents[1], row)[name]

    tangents_out = {name: jnp.zeros_like(getattr(found[0], name)) for name in FIELDS}
    if jax.tree.leaves(nonzero_tangents):
        for name in FIELDS:
            tangent = jax.checkpoint(partial(tangent_out, name), prevent_cse=False)
            tangents_out[name] = tangent(getattr(found[0], name), found[1], data, nonzero_tangents)
    return found, with_tangents(tangents_out, found)


predicted.defjvp(_predicted_jvp, symbolic_zeros=True)


def _jvp_with_zeros(function: Any, primals: Any, tangents: Any) -> Any:
    """As `jax.jvp`, of tangents of which some are None, for zero."""
    tangents = [jnp.zeros_like(x) if t is None and x is not None else t
             for x, t in zip(primals, tangents, strict=True)]  # fmt: skip
    return jax.jvp(function, tuple(primals), tuple(tangents))


def with_tangents(tangents_out: dict[str, Array], found: Outputs) -> Outputs:
    """The tangents of all that was found: those of the cache and of the prediction are 0."""
    values, row = jax.tree.map(base.no_tangent, found)
    return values._replace(**tangents_out), row
