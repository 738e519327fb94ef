"""What a softmax predicts of each example: log-probability, entropy, normaliser, likeliest class.

With y the logits, capped and divided by the temperature, p their softmax, m their maximum and
`rest` as in `logsumexp`, gap = m - y and E = sum p gap, whose terms are not negative:

    entropy = log1p(rest) + E                d entropy / d y = p (gap - E)

From log-softmax it would lose its digits: on a confident row the entropy is 1e-20, and log p of the
leader rounds to 0.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jxent._src.core import hints
from jxent._src.core.elementary import bounded, divided_about, divided_by, log1p, nan_unless, widen
from jxent._src.core.serialization import written_as
from jxent._src.loss_fns import base
from jxent._src.loss_fns.base import OfLogits
from jxent._src.numerics import logsumexp, softmax_rows
from jxent._src.numerics.logsumexp import LabelNormalizer
from jxent._src.numerics.softcap import softcap
from jxent._src.sharding.class_axis import Classes


@written_as("jxent.SoftmaxStatistics")
class SoftmaxStatistics(NamedTuple):
    """What a softmax predicts of each example, `[*batch]`, in float32 at least.

    In their own dtype bfloat16 and float16 could not be compared or subtracted.
    """

    log_prob: Float[Array, "*batch"]
    """Of the label, in nats: minus the loss. NaN for an id out of range."""

    entropy: Float[Array, "*batch"]
    """Of the prediction, in nats."""

    log_normalizer: Float[Array, "*batch"]
    """logsumexp of the logits, capped and divided by the temperature."""

    prediction: Int[Array, "*batch"]
    """The class of the largest logit, the lowest id among equals; -1 where that is NaN."""


class Row(NamedTuple):
    """What is kept of each example, the class axis of size 1; a cache, whose tangents are 0."""

    normalizer: LabelNormalizer
    mean_gap: Array  # E above
    spread: Array | None = None  # see `softmax_statistics`


Found = tuple[SoftmaxStatistics, Row]
FIELDS = ("log_prob", "entropy", "log_normalizer")  # those with a derivative


@dataclass(frozen=True)
class Predictor(OfLogits):
    """Where the classes are, and what becomes of the logits before the softmax."""

    has_class_blocks = True

    def scaled(
        self, logits: Array, temperature: Array | None, origin: Array | None = None
    ) -> Array:
        """What the softmax is taken of; its derivatives as those of `divided_about`."""
        y = softcap(widen(logits), self.logit_softcap)
        if self.logit_softcap is not None:
            y = hints.materialize_capped(False, y)
        if temperature is None:
            return y
        if origin is None:
            return divided_by(temperature, y)
        return divided_about(temperature, y, origin)

    def statistics(self, labels: Array, logits: Array, temperature: Array | None) -> Found:
        """All of them, and what their derivatives are made of."""
        as_given = self.logit_softcap is None and temperature is None
        y = logits if as_given else self.scaled(logits, temperature)
        found = softmax_rows.of_prediction(self.classes, y, self.classes.ids(labels, y))
        row_max, rest = logsumexp.defined(found.row_max, found.rest)
        normalizer = softmax_rows.of_pair(found.logit, row_max, rest)
        in_range = self.classes.has(labels, y)
        log_prob = nan_unless(in_range, -normalizer.loss)
        # An id out of range is of the log-probability alone: the other fields stay.
        complement = nan_unless(in_range, normalizer.complement)
        mean_gap = found.gaps / (1 + rest)
        log_normalizer = normalizer.log_normalizer
        prediction = jnp.where(jnp.isnan(log_normalizer), -1, found.prediction)
        every = (log_prob, mean_gap + log1p(rest), log_normalizer, prediction)
        row = Row(normalizer._replace(complement=complement), mean_gap)
        return SoftmaxStatistics(*(jnp.squeeze(x, self.axis) for x in every)), row

    def moved(self, data: Any, moving: Any, row: Row) -> tuple[Array, Array]:
        """What the softmax is taken of, and its tangent but for a constant of the row."""
        scaled = partial(self.scaled, origin=_origin(row))
        return cast(tuple[Array, Array], _pushed_through(scaled, data, moving))

    def with_constant(
        self, changes: dict[str, Array], temperature: Any, dtemperature: Any, row: Row
    ) -> dict[str, Array]:
        """The tangents of the fields with what a constant of the row makes of them."""
        if temperature is None or dtemperature is None:
            return changes
        fixed = jax.lax.stop_gradient(_origin(row) * temperature)
        _, constant = jax.jvp(lambda t: divided_by(t, fixed), (temperature,), (dtemperature,))
        moved = changes["log_normalizer"] + jnp.squeeze(constant, self.axis)
        return {**changes, "log_normalizer": moved}

    def changes(self, labels: Array, y: Array, dy: Array, row: Row) -> dict[str, Array]:
        """The tangents of the fields along `dy`, of whole rows or of a block of their classes."""
        p = logsumexp.probabilities(y, row.normalizer, self.classes)
        scale = row.normalizer.scale
        scale = nan_unless(~jnp.isnan(row.normalizer.complement), scale)
        # None is out of range where the normaliser is not NaN, but for other classes of a block.
        ids = self.classes.expand(jnp.where(labels < 0, -1, labels).astype(jnp.int32))
        of_label = logsumexp.label_slopes(
            self.classes, 0.0, y, ids, row.normalizer._replace(scale=scale)
        )
        slopes = {
            "log_prob": -of_label,
            "entropy": p * surplus(y, row, self.classes),
            "log_normalizer": p,
        }
        return {name: self.classes.total(slope * dy) for name, slope in slopes.items()}


def _origin(row: Row) -> Array:
    """What tangents to the temperature are measured from: the row's largest logit, or 0."""
    shift = row.normalizer.shift
    # Of a leader at +inf the shift is the largest number.
    return jnp.where(jnp.abs(shift) < jnp.finfo(shift.dtype).max, shift, 0)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def surplus(y: Array, row: Row, classes: Classes) -> Array:
    """The difference gap - E; -E where a class has no probability.

    Where it has none the gap may be so large that its product with a tangent overflows.
    """
    gap = row.normalizer.shift - bounded(y)
    least = float(jnp.finfo(y.dtype).smallest_subnormal)  # the least that any exponential is
    return jnp.where(gap > -math.log(least), 0, gap) - row.mean_gap


# With dev = t - sum p t: d gap = -dev up to a constant of the row, d E = sum p dev gap + the same.
@surplus.defjvp
def _surplus_jvp(classes: Classes, primals: Any, tangents: Any) -> tuple[Array, Array]:
    y, row = primals
    dy, drow = tangents
    value = surplus(y, row, classes)
    if drow.spread is not None:
        p = logsumexp.probabilities(y, row.normalizer, classes)
        dev = logsumexp.deviation_in_block(p, dy, drow.normalizer.moment)
        return value, -(dev + drow.spread)
    pair = logsumexp.pair(y, classes)
    p, _ = logsumexp.chances(y, *pair, classes)
    dev = logsumexp.deviation(p, y, *pair, dy, classes)
    # Something between product and sum, for the same reason as in `logsumexp.deviation`.
    return value, -(dev + classes.sum(jnp.where(p == 0, 0, p * (value * dev))))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def predicted(
    predictor: Predictor, labels: Array, logits: Array, temperature: Array | None
) -> Found:
    """The statistics of logits in memory."""
    return predictor.statistics(labels, logits, temperature)


# The tangent of each field is recomputed from the data as given, under a checkpoint of its own:
# reverse mode saves no second array of the logits' size, and one field alone costs no other.
def _predicted_jvp(predictor: Predictor, primals: Any, tangents: Any) -> tuple[Found, Found]:
    labels, *data = primals
    found = predicted(predictor, *primals)
    moving = base.present(tangents[1:])

    def change(name: str, value: Array, row: Row, data: Any, moving: Any) -> Array:
        # After the field itself, see `base`: a step writes the new logits over the old ones.
        zero = predictor.classes.expand(hints.ordering_zero(value))
        (_, *data), row = hints.add_dependency(zero, (labels, *data), row)
        found = predictor.changes(labels, *predictor.moved(data, moving, row), row)
        return predictor.with_constant(found, data[1], moving[1], row)[name]

    changes = {name: jnp.zeros_like(getattr(found[0], name)) for name in FIELDS}
    if jax.tree.leaves(moving):
        for name in FIELDS:
            tangent = jax.checkpoint(partial(change, name), prevent_cse=False)
            changes[name] = tangent(getattr(found[0], name), found[1], data, moving)
    return found, with_changes(changes, found)


predicted.defjvp(_predicted_jvp, symbolic_zeros=True)


def _pushed_through(function: Any, primals: Any, tangents: Any) -> Any:
    """As `jax.jvp`, of tangents of which some are None, for zero."""
    still = [jnp.zeros_like(x) if t is None and x is not None else t
             for x, t in zip(primals, tangents, strict=True)]  # fmt: skip
    return jax.jvp(function, tuple(primals), tuple(still))


def with_changes(changes: dict[str, Array], found: Found) -> Found:
    """The tangents of all that was found: those of the cache and of the prediction are 0."""
    values, row = jax.tree.map(base.no_tangent, found)
    return values._replace(**changes), row
