"""Draws batches of the fuzz: rows of logits, each of another kind, labels and weights."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from tests.numerics.fuzz_programs import Program
from tests.reference import WIDE

inf, nan = np.inf, np.nan


# Rows of logits.


def rows_of(rng, kind: str, count: int, classes: int, labels) -> np.ndarray:
    """`[count, classes]`, each row of another kind; `labels` are the rows' own classes."""
    x = rng.standard_normal((count, classes))
    for row, own, take in zip(x, labels, rng.integers(len(ROWS), size=count), strict=True):
        ROWS[take](rng, row, own)
    if kind == "calm":  # all rows are such that a fast path may take all of them
        x = rng.standard_normal((count, classes)) * rng.choice([0.01, 1, 10])
        for row, own, take in zip(
            x, labels, rng.integers(len(WELL_CONDITIONED), size=count), strict=True
        ):
            WELL_CONDITIONED[take](rng, row, own)
    return x


def label_margin(*sizes):
    def row(rng, x, own):
        x[own] = x.max() + rng.choice(sizes) * rng.uniform(0.9, 1.1)

    return row


def negative_margin(*sizes):
    def row(rng, x, own):
        x[own] = x.min() - rng.choice(sizes) * rng.uniform(0.9, 1.1)

    return row


def opposite_sign(*sizes):
    """The label as far below 0 as the others are above."""

    def row(rng, x, own):
        size = rng.choice(sizes) * rng.uniform(0.97, 1.03)
        x *= 0.1
        x += size / 2
        x[own] = -size / 2

    return row


def offset(*sizes):
    def row(rng, x, own):
        x += rng.choice(sizes)

    return row


def spreads(*sizes):
    def row(rng, x, own):
        x *= rng.choice(sizes)

    return row


def split_in_two(rng, x, own):
    """Most classes far below a few, everything far from 0."""
    x *= 0.1
    x += rng.choice([-69.0, -60.0, -20.0, 60.0])
    x[rng.random(x.size) < 0.5] -= rng.choice([19.0, 28.5, 68.5])


def tied(rng, x, own):
    x[:] = np.round(x)


def sets(value, share):
    def row(rng, x, own):
        where = rng.random(x.size) < share
        where[rng.integers(x.size)] = share > 0.1  # one at least, or one class is left
        x[where] = value

    return row


def masked_but_one(rng, x, own):
    x[np.arange(x.size) != rng.integers(x.size)] = -inf


def one_nan(rng, x, own):
    x[rng.integers(x.size)] = nan


def label_at(value):
    def row(rng, x, own):
        x[own] = value

    return row


WELL_CONDITIONED = (
    label_margin(1, 10, 20, 60), negative_margin(1, 10, 60, 88, 100, 150), split_in_two,
    opposite_sign(60, 88, 89, 100, 150),
    offset(-60, 60, 78, -78), spreads(1, 3), tied,
)  # fmt: skip
ROWS = (
    *WELL_CONDITIONED, *WELL_CONDITIONED, label_margin(100, 1e4, 1e30),
    negative_margin(87, 89, 300, 1e4, 1e30),
    offset(-87.5, 87.5, 88.8, 300, -300, 1e30, -1e30), spreads(0.1, 100, 1e4, 1e30, 1e-30),
    sets(-inf, 0.3), sets(inf, 0.02), sets(-inf, 1.0), sets(1.2e-38, 0.5), masked_but_one,
    one_nan, label_at(-inf), label_at(inf),
)  # fmt: skip


# Batches.


@dataclass(frozen=True)
class Batch:
    """Arguments in the dtypes that are passed, and the same in the wide type, classes last."""

    arguments: dict
    differentiated: tuple[str, ...]
    directions: dict
    labels: np.ndarray  # dense
    logits: np.ndarray
    along: np.ndarray  # the direction of the logits
    invalid: np.ndarray  # examples with an id out of range
    pos_weight: np.ndarray
    weights: np.ndarray | None  # of the losses' shape
    features: np.ndarray | None  # the inputs, [examples, features]


def draw_batch(program: Program, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    count, classes = program.examples, program.classes
    style = ("calm", "any", "any")[seed % 3]
    own = rng.integers(classes, size=count)
    if program.is_linear:
        arguments, direction, x, along, features = draw_projection(program, rng, style)
    else:
        features = None
        x = rounded(rows_of(rng, style, count, classes, own), program.dtype)
        along = rounded(rng.standard_normal((count, classes)), program.dtype)
        arguments, direction = ({"logits": _with_axis(program, a)} for a in (x, along))
    differentiated = ("kernel",) if program.is_linear else ("logits",)
    arguments["labels"], z, invalid = draw_labels(program, rng, own)
    if program.kind == "sparse_softmax" and program.ids:
        z, arguments["label_weights"] = draw_label_weights(program, rng, arguments["labels"])
    pos_weight: np.ndarray = np.ones(classes)
    if program.pos_weight is not None:
        size = () if program.pos_weight == "number" else (classes,)
        pos_weight = np.asarray(rng.uniform(0.3, 4, size), program.wide)
        arguments["pos_weight"] = pos_weight
    weights = None
    if program.is_scalar:
        weights = draw_weights(program, rng, arguments)
    return Batch(
        arguments, differentiated, direction, z, x, along, invalid, pos_weight, weights, features
    )


def rounded(x, dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(jnp.asarray(np.asarray(x, np.float64), dtype))


def draw_projection(program: Program, rng, style: str):
    """One feature an example picks a row of the kernel, so that the logits are exact."""
    count, classes, width = program.examples, program.classes, program.features
    features = np.zeros((count, width))
    features[np.arange(count), rng.integers(width, size=count)] = 2.0 ** rng.integers(
        -2, 3, size=count
    )
    style = "calm" if style == "calm" else "finite"
    kernel = rows_of(rng, style, width, classes, rng.integers(classes, size=width))
    kernel = np.where(np.isfinite(kernel) & (np.abs(kernel) < 1e4), kernel, 3.0)
    kernel = rounded(kernel, program.dtype)
    inputs = rounded(features, program.dtype).reshape(*program.batch, width)
    arguments = {"inputs": inputs, "kernel": kernel}
    x = np.asarray(features, WIDE) @ np.asarray(kernel, WIDE)
    if program.bias:
        bias = np.where(rng.random(classes) < 0.1, -inf, 0.0).astype(program.wide)
        bias[0] = 0
        arguments["bias"] = bias
        x = x + bias
    direction = rounded(rng.standard_normal(kernel.shape), program.dtype)
    return arguments, {"kernel": direction}, x, features @ np.asarray(direction, WIDE), features


def draw_labels(program: Program, rng, own):
    """Labels as they are passed, dense, and which examples have an id out of range."""
    count, classes = program.examples, program.classes
    invalid = rng.random(count) < 0.05
    if program.kind == "sparse_softmax" and program.ids:
        lists = rng.integers(-1, classes, size=(count, program.ids))
        lists[:, 0] = own
        lists[invalid, -1] = classes + 3
        return lists.reshape(*program.batch, program.ids), np.eye(classes)[own], invalid
    if program.kind == "sparse_softmax":
        ids = own.copy()
        ids[invalid] = rng.choice([-1, classes, classes + 5])
        return ids.reshape(program.batch), np.eye(classes)[own], invalid
    if program.kind == "sparse_sigmoid":
        lists = rng.integers(-1, classes, size=(count, program.ids))
        z = (lists[..., None] == np.arange(classes)).any(1) * 1.0
        invalid &= program.ids > 0
        lists[invalid, :1] = classes + 3
        return lists.reshape(*program.batch, program.ids), z, invalid
    z = rng.choice([0.0, 1.0, 0.3, 0.9999], size=(count, classes), p=[0.6, 0.3, 0.05, 0.05])
    if program.kind == "softmax" and rng.random() < 0.5:
        z = np.eye(classes)[own]
        if rng.random() < 0.5:  # nearly
            z = np.maximum(z, 1e-12 * (rng.random(z.shape) < 0.1))
    if rng.random() < 0.2:
        z = z * 1.5 - 0.25
    z = rounded(z, program.dtype)
    passed = z.reshape(*program.batch, classes) if program.is_linear else _with_axis(program, z)
    return passed, z, np.zeros(count, bool)


def draw_label_weights(program: Program, rng, lists):
    """The labels that lists stand for, dense, and their weights as they are passed."""
    lists = np.reshape(lists, (program.examples, program.ids))
    weights = rng.choice([0.0, 1.0, 0.3, 1e-12], size=lists.shape).astype(program.wide)
    listed = lists[..., None] == np.arange(program.classes)
    z = (listed * np.asarray(weights, WIDE)[..., None]).sum(1)
    return z, weights.reshape(*program.batch, program.ids)


def draw_weights(program: Program, rng, arguments) -> np.ndarray:
    """Weights in the losses' shape; as they are passed, they join the arguments."""
    count = program.examples
    size = (count, program.classes) if program.is_elementwise else (count,)
    if program.weights == "number":
        arguments["weights"] = 0.75
        return np.full(size, 0.75)
    if program.weights is None:
        return np.ones(size)
    each = rng.choice([0.0, 0.0, 0.5, 1.0, 3.0], size=count)
    column = (1,) if program.is_elementwise else ()
    arguments["weights"] = each.astype(program.wide).reshape((*program.batch, *column))
    return np.broadcast_to(each.reshape((count, *column)), size)


def _with_axis(program: Program, x):
    """`[count, classes]` in the shape that the function is called with."""
    return np.moveaxis(x.reshape(*program.batch, program.classes), -1, program.axis)


def _without_axis(program: Program, x):
    x = np.moveaxis(np.asarray(x), program.axis, -1)
    return x.reshape(program.examples, program.classes)
