"""Errors in ulp of value, gradient and second derivative: jxent, optax, PyTorch, TensorFlow.

    python -m benchmarks.accuracy [--dtype float32] [--summary] [--tiny] [--results DIR]
                                  [--json DIR] [--plots DIR]

The truth is computed in long double, from formulas of its own (`tests/reference.py`). A peer that
is not installed is left out. An error is counted in units in the last place of the true result, or
of the smallest normal number where the truth lies below it, since XLA flushes such results to 0.
Where a soft label makes the gradient the difference of two terms, the unit is that of the terms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib import command
from benchmarks.lib.command import Options
from benchmarks.lib.peers import FOCUS, PEERS, Peer
from benchmarks.lib.report import Table
from benchmarks.lib.samples import (
    POINTS,
    ROWS,
    divergence_samples,
    focal_samples,
    sigmoid_samples,
    softmax_samples,
)
from tests import reference


@dataclass(frozen=True)
class Errors:
    """Errors of one quantity on one kind of sample."""

    loss: str
    kind: str
    quantity: str
    peer: str
    ulps: np.ndarray
    excess: np.ndarray  # ulps beyond what the sample's condition accounts for: the bound's slack
    zeros: float  # share of results that are 0 where the truth is a normal number

    def row(self) -> dict:
        """One line of the table."""
        return {
            "loss": self.loss,
            "samples": self.kind,
            "quantity": self.quantity,
            "library": self.peer,
            "max ulp": float(self.ulps.max()),
            "median ulp": float(np.median(self.ulps)),
            "returned as 0": f"{self.zeros:.0%}",
        }


def _errors(loss, kind, quantity, peer, got, expected, dtype, scale=None, condition=0.0) -> Errors:
    got = np.asarray(got, np.longdouble)
    ulps = reference.ulps(got, expected, dtype, scale)
    normal = np.abs(expected) >= float(jnp.finfo(dtype).tiny)
    zeros = np.mean(got[normal] == 0) if normal.any() else 0.0
    excess = ulps - np.asarray(condition, np.float64)
    return Errors(loss, kind, quantity, peer, ulps, excess, float(zeros))


def sigmoid_errors(peer: Peer, dtype, points: int = POINTS) -> list[Errors]:
    """Errors of one peer's sigmoid loss over all samples."""
    found = []
    for sample in sigmoid_samples(dtype, points):
        if sample.pos_weight != 1 and not peer.has_pos_weight:
            continue
        value, gradient, curvature, terms = reference.wide_sigmoid(
            sample.labels, sample.logits, sample.pos_weight
        )
        kind = f"{sample.kind}, pos_weight {float(sample.pos_weight):.2g}"
        results = peer.sigmoid(sample.labels, sample.logits, sample.pos_weight)
        record = partial(_errors, "sigmoid", kind, peer=peer.name, dtype=dtype)
        found += [
            record("value", got=results[0], expected=value),
            record("d/dx", got=results[1], expected=gradient, scale=terms),
            record("d2/dx2", got=results[2], expected=curvature),
        ]
    return found


def softmax_errors(peer: Peer, dtype, rows: int = ROWS) -> list[Errors]:
    """Errors of one peer's softmax loss with ids over all samples."""
    found = []
    for sample in softmax_samples(dtype, rows):
        truths = [
            reference.wide_softmax_of_class(y, x)
            for y, x in zip(sample.labels, sample.logits, strict=True)
        ]
        value, gradient = (np.array([t[i] for t in truths]) for i in (0, 1))
        curvature = np.array([t[2][y] for t, y in zip(truths, sample.labels, strict=True)])
        got = peer.softmax(sample.labels, sample.logits)
        own = sample.labels[:, None]
        others = np.arange(gradient.shape[1]) != own
        x = np.asarray(sample.logits, np.float64)
        below = x.max(1, keepdims=True) - x

        def size(a):
            return np.abs(np.log(np.maximum(a, np.finfo(np.float64).tiny)).astype(np.float64))

        record = partial(_errors, "softmax ids", sample.kind, peer=peer.name, dtype=dtype)

        def at_label(a, own=own):
            return np.take_along_axis(np.asarray(a, np.longdouble), own, 1)[:, 0]

        found += [
            record("value", got=got[0], expected=value, condition=size(value)),
            record(
                "d/dx_label",
                got=at_label(got[1]),
                expected=at_label(gradient),
                condition=size(value),
            ),
            record(
                "d/dx_other",
                got=np.asarray(got[1], np.longdouble)[others],
                expected=gradient[others],
                condition=below[others],
            ),
            record("d2/dx_label2", got=got[2], expected=curvature, condition=size(curvature)),
        ]
    return found


def entropy_errors(peer: Peer, dtype, rows: int = ROWS) -> list[Errors]:
    """Errors of the entropy of one peer's prediction; of the gradient, by its row's largest term.

    It is a difference of two, p (max x - x) and p times their sum.
    """
    found = []
    for sample in softmax_samples(dtype, rows):
        if sample.kind.endswith("wrong"):  # the same logits as right
            continue
        value, gradient, *_ = reference.wide_entropy(sample.logits, np.zeros_like(sample.logits))
        gap = sample.logits.max(-1, keepdims=True) - np.asarray(sample.logits, np.longdouble)
        p = np.exp(-gap)
        p /= p.sum(-1, keepdims=True)
        terms = p * (gap + (p * gap).sum(-1, keepdims=True))
        largest = terms.max(-1, keepdims=True)
        got = peer.entropy(sample.logits)
        record = partial(_errors, "entropy", sample.kind, peer=peer.name, dtype=dtype)

        def size(a):
            return np.abs(np.log(np.maximum(a, np.finfo(np.float64).tiny)).astype(np.float64))

        found += [
            record("value", got=got[0], expected=value, condition=size(value)),
            record("d/dx", got=got[1], expected=gradient, scale=largest, condition=size(largest)),
        ]
    return found


def divergence_errors(peer: Peer, dtype, rows: int = ROWS) -> list[Errors]:
    """Errors of one peer's KL divergence; of the student's gradient, by its row's largest."""
    found = []
    for sample in divergence_samples(dtype, rows):
        value, gradient, _ = reference.wide_divergence(sample.teacher, sample.student, 1.0)
        largest = np.abs(gradient).max(-1, keepdims=True)
        got = peer.divergence(sample.teacher, sample.student)
        record = partial(_errors, "KL", sample.kind, peer=peer.name, dtype=dtype)
        found += [
            record("value", got=got[0], expected=value, condition=sample.lead),
            record("d/dx", got=got[1], expected=gradient, scale=largest, condition=sample.lead),
        ]
    return found


def focal_errors(peer: Peer, dtype, points: int = POINTS) -> list[Errors]:
    """Errors of one peer's focal loss of hard labels, where none of its terms is flushed to 0."""
    found = []
    for sample in focal_samples(dtype, points):
        sign = 1 - 2 * np.asarray(sample.labels, np.longdouble)
        value, gradient, *_ = reference.wide_focal_term(FOCUS, sign * sample.logits)
        results = zip(
            peer.focal(sample.labels, sample.logits), (value, sign * gradient), strict=True
        )
        for quantity, (got, expected) in zip(("value", "d/dx"), results, strict=True):
            normal = np.abs(expected) > 4 * (1 + FOCUS) * float(jnp.finfo(dtype).tiny)
            found.append(
                _errors(
                    "focal", sample.kind, quantity, peer.name, got[normal], expected[normal], dtype
                )
            )
    return found


def measure(
    dtype,
    peers: Sequence[Callable[[], Peer | None]] = PEERS,
    points: int = POINTS,
    rows: int = ROWS,
) -> list[Errors]:
    """All errors of all peers that are installed, on `points` logits or `rows` of them a sample."""
    with jax.enable_x64(jnp.dtype(dtype) == jnp.float64):
        found = [
            errors
            for make in peers
            if (peer := make()) is not None
            for errors in (
                *sigmoid_errors(peer, dtype, points),
                *softmax_errors(peer, dtype, rows),
                *entropy_errors(peer, dtype, rows),
                *divergence_errors(peer, dtype, rows),
                *focal_errors(peer, dtype, points),
            )
        ]
    order = ("sigmoid", "softmax ids", "entropy", "KL", "focal")
    return sorted(found, key=lambda e: (order.index(e.loss), e.quantity))


def all_digits(dtype) -> float:
    """The error in ulp from which on no digit is right: half of the result's own size."""
    return 0.5 / float(jnp.finfo(dtype).eps)


def summary(rows: list[dict], dtype) -> list[dict]:
    """The largest error of each quantity over all samples, one column a library."""
    table: dict[tuple[str, str], dict] = {}
    for row in rows:
        line = table.setdefault(
            (row["loss"], row["quantity"]), {"loss": row["loss"], "quantity": row["quantity"]}
        )
        line[row["library"]] = max(line.get(row["library"], 0.0), row["max ulp"])
    lost = all_digits(dtype)
    return [
        {
            k: v if isinstance(v, str) else "all digits" if v >= lost else f"{v:.2g}"
            for k, v in line.items()
        }
        for line in table.values()
    ]


NOTE = """\
Errors are in units in the last place (ulp) of the truth, which is computed in long double. \
"Returned as 0": the share of results that are exactly 0 where the truth is a normal number. \
"All digits": an error of half the result's own size or more."""


def tables(
    options: Options, peers: Sequence[Callable[[], Peer | None]] = PEERS
) -> list[Table]:  # fmt: skip
    """The largest errors, and unless only these are wanted the errors on each kind of sample."""
    points, rows = (400, 8) if options.tiny else (POINTS, ROWS)
    found = []
    for dtype in options.dtypes:
        lines = [errors.row() for errors in measure(jnp.dtype(dtype), peers, points, rows)]
        found.append(Table(f"Largest error, ulp, {dtype}", summary(lines, dtype), NOTE))
        if not options.summary:
            found.append(Table(f"Errors by sample, {dtype}", lines))
    if options.plots:
        from benchmarks import plots  # noqa: PLC0415  # needs matplotlib

        present = [peer for make in peers if (peer := make()) is not None]
        plots.accuracy(present, options.plots, points=41 if options.tiny else 641)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    command.main("accuracy", tables, __doc__ or "", argv)


if __name__ == "__main__":
    main()
