"""What a softmax predicts of each example: log-probability, entropy, normaliser, likeliest class.

With y the logits, capped and divided by the temperature, p their softmax, m their maximum and
`rest` as in `_logsumexp`, gap = m - y and E = sum p gap, whose terms are not negative:

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

from jxent import _logsumexp, _loss, _mesh, _operands, _statistics
from jxent._arithmetic import (
    bounded,
    computing_dtype,
    divided_about,
    divided_by,
    log1p,
    widen,
    zero_times,
)
from jxent._blocks import AnyCut, Cut, of_examples
from jxent._dispatch import per_platform
from jxent._logsumexp import LabelNormalizer
from jxent._mesh import Classes
from jxent._operands import Operands
from jxent._options import Options
from jxent._softcap import softcap
from jxent._softmax import stored


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


Found = tuple[SoftmaxStatistics, Row]
FIELDS = ("log_prob", "entropy", "log_normalizer")  # those with a derivative


@dataclass(frozen=True)
class Prediction(Options):
    """Where the classes are, and what becomes of the logits before the softmax."""

    classes: Classes
    logit_softcap: float | None = None

    @property
    def axis(self) -> int | tuple[int, ...]:
        return self.classes.axis

    def scaled(
        self, logits: Array, temperature: Array | None, origin: Array | None = None
    ) -> Array:
        """What the softmax is taken of; its derivatives as those of `divided_about`."""
        y = softcap(widen(logits), self.logit_softcap)
        if self.logit_softcap is not None:
            y = stored(False, y)
        if temperature is None:
            return y
        if origin is None:
            return divided_by(temperature, y)
        return divided_about(temperature, y, origin)

    def statistics(self, labels: Array, logits: Array, temperature: Array | None) -> Found:
        """All of them, and what their derivatives are made of."""
        as_given = self.logit_softcap is None and temperature is None
        y = logits if as_given else self.scaled(logits, temperature)
        found = _statistics.of_prediction(self.classes, y, self.classes.ids(labels, y))
        row_max, rest = _logsumexp.defined(found.row_max, found.rest)
        normalizer = _statistics.of_pair(found.logit, row_max, rest)
        in_range = self.classes.has(labels, y)
        log_prob = jnp.where(in_range, -normalizer.loss, jnp.nan)
        # An id out of range is of the log-probability alone: the other fields stay.
        complement = jnp.where(in_range, normalizer.complement, jnp.nan)
        mean_gap = found.gaps / (1 + rest)
        log_normalizer = normalizer.log_normalizer
        prediction = jnp.where(jnp.isnan(log_normalizer), -1, found.prediction)
        every = (log_prob, mean_gap + log1p(rest), log_normalizer, prediction)
        row = Row(normalizer._replace(complement=complement), mean_gap)
        return SoftmaxStatistics(*(jnp.squeeze(x, self.axis) for x in every)), row

    def moved(self, data: Any, moving: Any, row: Row) -> tuple[Array, Array, Array]:
        """What the softmax is taken of, its tangent, and that of a constant of the row."""
        _, temperature = data
        shift = row.normalizer.shift
        # Of a leader at +inf the shift is the largest number.
        origin = jnp.where(jnp.abs(shift) < jnp.finfo(shift.dtype).max, shift, 0)
        y, dy = _pushed_through(partial(self.scaled, origin=origin), data, moving)
        if temperature is None or moving[1] is None:
            return y, dy, jnp.zeros_like(origin)
        fixed = jax.lax.stop_gradient(origin * temperature)
        _, change = jax.jvp(lambda t: divided_by(t, fixed), (temperature,), (moving[1],))
        return y, dy, change

    def changes(
        self, labels: Array, y: Array, dy: Array, constant: Array, row: Row
    ) -> dict[str, Array]:
        """The tangents of the fields along `dy` and a constant of the row."""
        p = _logsumexp.probabilities(y, row.normalizer, self.classes)
        scale = row.normalizer.scale
        scale = jnp.where(jnp.isnan(row.normalizer.complement), jnp.nan, scale)
        of_label = _logsumexp.label_slopes(
            self.classes, 0.0, y, self.classes.ids(labels, y), row.normalizer._replace(scale=scale)
        )
        slopes = {
            "log_prob": -of_label,
            "entropy": p * _surplus(y, row, self.classes),
            "log_normalizer": p,
        }
        changes = {name: self.classes.total(slope * dy) for name, slope in slopes.items()}
        changes["log_normalizer"] += jnp.squeeze(constant, self.axis)
        return changes


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _surplus(y: Array, row: Row, classes: Classes) -> Array:
    """The difference gap - E; -E where a class has no probability.

    Where it has none the gap may be so large that its product with a tangent overflows.
    """
    gap = row.normalizer.shift - bounded(y)
    least = float(jnp.finfo(y.dtype).smallest_subnormal)  # the least that any exponential is
    return jnp.where(gap > -math.log(least), 0, gap) - row.mean_gap


# With dev = t - sum p t: d gap = -dev up to a constant of the row, d E = sum p dev gap + the same.
@_surplus.defjvp
def _surplus_jvp(classes: Classes, primals: Any, tangents: Any) -> tuple[Array, Array]:
    y, row = primals
    surplus = _surplus(y, row, classes)
    pair = _logsumexp.pair(y, classes)
    p, _ = _logsumexp.chances(y, *pair, classes)
    dev = _logsumexp.deviation(p, y, *pair, tangents[0], classes)
    # `zero_times` for the same reason as in `deviation`.
    return surplus, -(dev + classes.sum(zero_times(p, surplus * dev)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def predicted(member: Prediction, labels: Array, logits: Array, temperature: Array | None) -> Found:
    """The statistics of logits in memory."""
    return member.statistics(labels, logits, temperature)


# The tangent of each field is recomputed from the data as given, under a checkpoint of its own:
# reverse mode saves no second array of the logits' size, and one field alone costs no other.
def _predicted_jvp(member: Prediction, primals: Any, tangents: Any) -> tuple[Found, Found]:
    labels, *data = primals
    found = predicted(member, *primals)
    moving = _loss.present(tangents[1:])

    def change(name: str, value: Array, row: Row, data: Any, moving: Any) -> Array:
        # After the field itself, see `_loss`: a step writes the new logits over the old ones.
        zero = jnp.expand_dims(_loss.zero_known_from(value), cast(int, member.axis))
        (_, *data), row = _loss.after(zero, (labels, *data), row)
        return member.changes(labels, *member.moved(data, moving, row), row)[name]

    changes = {name: jnp.zeros_like(getattr(found[0], name)) for name in FIELDS}
    if jax.tree.leaves(moving):
        for name in FIELDS:
            tangent = jax.checkpoint(partial(change, name), prevent_cse=False)
            changes[name] = tangent(getattr(found[0], name), found[1], data, moving)
    return found, _with(changes, found)


predicted.defjvp(_predicted_jvp, symbolic_zeros=True)


def _pushed_through(function: Any, primals: Any, tangents: Any) -> Any:
    """As `jax.jvp`, of tangents of which some are None, for zero."""
    still = [jnp.zeros_like(x) if t is None and x is not None else t
             for x, t in zip(primals, tangents, strict=True)]  # fmt: skip
    return jax.jvp(function, tuple(primals), tuple(still))


def _with(changes: dict[str, Array], found: Found) -> Found:
    """The tangents of all that was found: those of the cache and of the prediction are 0."""
    values, row = jax.tree.map(_loss.no_tangent, found)
    return values._replace(**changes), row


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def projected(member: Prediction, blocks: AnyCut, operands: Operands) -> Found:
    """The statistics of a projection, a block of examples at a time."""
    return statistics_of_projection(member, blocks, operands)


@per_platform(statics=2)
def statistics_of_projection(member: Prediction, blocks: AnyCut, operands: Operands) -> Found:
    """What `projected` returns."""
    examples = operands.inputs.shape[0]
    blocks = of_examples(blocks, examples, operands.kernel.shape)
    return by_examples(member, blocks, operands)


def by_examples(member: Prediction, blocks: Cut, operands: Operands) -> Found:
    """What `projected` returns, of these blocks."""
    operands = _operands.in_products(_mesh.alike(operands))

    def block(rows: Any) -> Found:
        labels, inputs = rows
        own = Operands(labels, inputs, *operands.shared)
        return member.statistics(*_operands.data_of(member, own))

    found: Found = blocks.each(block, operands.inputs.shape[0], operands.of_rows)
    return found


# Block by block, each under `jax.checkpoint`: the transpose multiplies a block's logits once more.
# The kernel's tangent enters the scan in float32, which its transpose then accumulates in.
def _projected_jvp(
    member: Prediction, blocks: AnyCut, primals: tuple[Operands], tangents: tuple[Operands]
) -> tuple[Found, Found]:
    (operands,) = primals
    found = projected(member, blocks, operands)
    moving = _operands.moving_of(tangents[0])
    examples, wide = operands.inputs.shape[0], computing_dtype(operands.inputs.dtype)
    cut = of_examples(blocks, examples, operands.kernel.shape)
    if moving.kernel is not None:
        moving = moving._replace(kernel=moving.kernel.astype(wide))
    operands, moving = _mesh.alike((operands, moving))
    operands = _operands.in_products(operands)

    # A place that is filled up has logits of its own, which may be NaN, and is cut off later.
    kept = None
    if cut.is_ragged(examples):
        kept = jnp.ones_like(operands.inputs[:, :1], dtype=bool)

    @jax.checkpoint
    def block(rows: Any, shared: Any) -> dict[str, Array]:
        kept, row, of_rows, dof_rows = rows
        own, change = (Operands(*r, *s) for r, s in zip((of_rows, dof_rows), shared, strict=True))
        labels, logits, temperature = _operands.data_of(member, own)
        dlogits = _operands.pushed(own, change)
        y, dy, constant = member.moved((logits, temperature), (dlogits, change.parameters), row)
        if kept is not None:
            y, dy = (jnp.where(_mesh.filled(kept, y), x, 0) for x in (y, dy))
        return member.changes(labels, y, dy, constant, row)

    @jax.checkpoint  # saves the rows as they were given, not as they are cut
    def all_blocks(rows: Any, shared: Any) -> dict[str, Array]:
        changes: dict[str, Array] = cut.each(lambda rows: block(rows, shared), examples, rows)
        return changes

    rows = (kept, found[1], operands.of_rows, moving.of_rows)
    return found, _with(all_blocks(rows, (operands.shared, moving.shared)), found)


projected.defjvp(_projected_jvp, symbolic_zeros=True)
