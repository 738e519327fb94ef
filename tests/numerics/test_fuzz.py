"""Every public function on drawn shapes, dtypes, options and logits, against a wider type.

A drawn program is compiled once and run on several batches, each row of which is of another kind:
undecided, confident, drifted, spread, masked, infinite, NaN. Value, gradient and Hessian-vector
product; here on one device, where rows may be cut, and in `test_fuzz_split.py` on eight.

The bound of an element is a number of roundings of what its terms add up to, more where a
difference of logits is exponentiated: see `Bound`.
"""

import inspect
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

import jxent
from jxent import losses
from jxent._src.numerics import logsumexp, softmax_rows
from jxent._src.platforms.cpu import dense_labels, sigmoid, softmax
from tests import reference
from tests.reference import WIDE, Wide

pytestmark = pytest.mark.optimized

inf, nan = np.inf, np.nan
BATCHES = 3  # of data for every program that is compiled

# Programs.

LOGITS = ("sigmoid", "weighted", "softmax", "sparse_softmax", "sparse_sigmoid")
FUNCTIONS = {
    **{f"{name}_cross_entropy_with_logits": name for name in LOGITS},
    **{f"losses.{name}_cross_entropy": name for name in LOGITS if name != "weighted"},
    **{
        f"{module}linear_{name}_cross_entropy": name
        for module in ("", "losses.")
        for name in LOGITS
        if name != "weighted"
    },
}
SHAPES = (
    (), (1,), (0,), (3,), (2, 3), (1, 1), (5, 1, 2), (2, 0, 1), (16,), (16,), (70,), (70,),
)  # fmt: skip
CLASSES = (1, 2, 3, 7, 64, 130, 640, 1000)
DTYPES = ("float32", "float32", "float32", "float64", "bfloat16", "float16")
SMOOTHING = (0.0, 0.0, 0.0, 0.0, 0.1, 0.999, 1.0)
REDUCTIONS = (
    "none", "weighted_sum", "weighted_mean", "weighted_sum_over_batch_size",
    "weighted_sum_by_nonzero_weights",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A public function with its options and shapes."""

    function: str
    dtype: str
    batch: tuple[int, ...]
    classes: int
    options: dict = field(hash=False)
    axis: int = -1
    pos_weight: str | None = None  # "number" or "class"
    weights: str | None = None  # "number" or "example"
    reduction: str | None = None
    block_size: int | None = None
    class_block_size: int | None = None
    bias: bool = False
    features: int = 1
    ids: int = 0  # of a list; 0 of exclusive classes: one an example
    second_order: bool = True

    @property
    def kind(self) -> str:
        """Which loss it is."""
        return FUNCTIONS[self.function]

    @property
    def examples(self) -> int:
        return int(np.prod(self.batch, dtype=int))

    @property
    def wide(self):
        """The dtype of bias, weights and pos_weight."""
        return np.float64 if self.dtype == "float64" else np.float32

    @property
    def is_linear(self) -> bool:
        return "linear_" in self.function

    @property
    def is_scalar(self) -> bool:
        return self.function.startswith("losses.")

    @property
    def is_elementwise(self) -> bool:
        return self.kind in ("sigmoid", "weighted") and not self.is_linear


def some(data, choices, label):
    return data.draw(st.sampled_from(choices), label=label)


# Examples a block, or classes for the losses of independent ones.
BLOCKS = ((None, None), (1, None), (2, None), (5, None), (None, 1), (None, 3), (None, 8))


def draw_program(data, function: str) -> Program:
    kind = FUNCTIONS[function]
    exclusive = "softmax" in kind
    linear, scalar = "linear_" in function, function.startswith("losses.")
    smoothing = not function.endswith("_with_logits") or kind.startswith("sparse")
    options = {}
    if smoothing:
        options["label_smoothing"] = some(data, SMOOTHING, "label_smoothing")
    if exclusive:
        options["z_loss"] = some(data, (0.0, 0.0, 1e-4, 0.5), "z_loss")
    options["logit_softcap"] = some(data, (None, None, None, 0.7, 30.0), "logit_softcap")
    batch = some(data, SHAPES, "batch")
    weighted = kind == "weighted" or (not exclusive and (scalar or linear or smoothing))
    reduction = some(data, REDUCTIONS, "reduction") if scalar else None
    lists = {"sparse_sigmoid": (0, 1, 3), "sparse_softmax": (0, 0, 0, 1, 3, 70)}
    ids = some(data, lists[kind], "ids") if kind in lists else 0
    by_classes = not exclusive or (
        scalar and kind.startswith("sparse") and reduction != "none" and not ids
    )
    return Program(
        function,
        some(data, DTYPES, "dtype"),
        batch,
        some(data, CLASSES, "classes"),
        options,
        some(data, (-1, -1, *range(-1 - len(batch), 1 + len(batch))), "axis")
        if function in ("softmax_cross_entropy_with_logits",
                        "sparse_softmax_cross_entropy_with_logits") else -1,
        some(data, ("number", "class") if kind == "weighted" else (None, "number", "class"), "q")
        if weighted else None,
        some(data, (None, "number", "example"), "weights") if scalar else None,
        reduction,
        *(some(data, BLOCKS[: None if by_classes else 4], "blocks") if linear else (None, None)),
        data.draw(st.booleans(), label="bias") if linear else False,
        some(data, (1, 2, 5), "features") if linear else 1,
        ids,
        some(data, (True, False, False), "second order"),  # it doubles the time of compilation
    )  # fmt: skip


# Rows of logits.


def rows_of(rng, kind: str, count: int, classes: int, labels) -> np.ndarray:
    """`[count, classes]`, each row of another kind; `labels` are the rows' own classes."""
    x = rng.standard_normal((count, classes))
    for row, own, take in zip(x, labels, rng.integers(len(ROWS), size=count), strict=True):
        ROWS[take](rng, row, own)
    if kind == "calm":  # all rows are such that a fast path may take all of them
        x = rng.standard_normal((count, classes)) * rng.choice([0.01, 1, 10])
        for row, own, take in zip(x, labels, rng.integers(len(CALM), size=count), strict=True):
            CALM[take](rng, row, own)
    return x


def leads_by(*sizes):
    def row(rng, x, own):
        x[own] = x.max() + rng.choice(sizes) * rng.uniform(0.9, 1.1)

    return row


def trails_by(*sizes):
    def row(rng, x, own):
        x[own] = x.min() - rng.choice(sizes) * rng.uniform(0.9, 1.1)

    return row


def faces(*sizes):
    """The label as far below 0 as the others are above."""

    def row(rng, x, own):
        size = rng.choice(sizes) * rng.uniform(0.97, 1.03)
        x *= 0.1
        x += size / 2
        x[own] = -size / 2

    return row


def drifts_to(*sizes):
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


CALM = (
    leads_by(1, 10, 20, 60), trails_by(1, 10, 60, 88, 100, 150), split_in_two,
    faces(60, 88, 89, 100, 150),
    drifts_to(-60, 60, 78, -78), spreads(1, 3), tied,
)  # fmt: skip
ROWS = (
    *CALM, *CALM, leads_by(100, 1e4, 1e30), trails_by(87, 89, 300, 1e4, 1e30),
    drifts_to(-87.5, 87.5, 88.8, 300, -300, 1e30, -1e30), spreads(0.1, 100, 1e4, 1e30, 1e-30),
    sets(-inf, 0.3), sets(inf, 0.02), sets(-inf, 1.0), sets(1.2e-38, 0.5), masked_but_one,
    one_nan, label_at(-inf), label_at(inf),
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Arguments in the dtypes that are passed, and the same in the wide type, classes last."""

    arguments: dict
    moving: tuple[str, ...]
    directions: dict
    labels: np.ndarray  # dense
    logits: np.ndarray
    along: np.ndarray  # the direction of the logits
    bad: np.ndarray  # examples with an id out of range
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
    moving = ("kernel",) if program.is_linear else ("logits",)
    arguments["labels"], z, bad = draw_labels(program, rng, own)
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
    return Batch(arguments, moving, direction, z, x, along, bad, pos_weight, weights, features)


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
    bad = rng.random(count) < 0.05
    if program.kind == "sparse_softmax" and program.ids:
        lists = rng.integers(-1, classes, size=(count, program.ids))
        lists[:, 0] = own
        lists[bad, -1] = classes + 3
        return lists.reshape(*program.batch, program.ids), np.eye(classes)[own], bad
    if program.kind == "sparse_softmax":
        ids = own.copy()
        ids[bad] = rng.choice([-1, classes, classes + 5])
        return ids.reshape(program.batch), np.eye(classes)[own], bad
    if program.kind == "sparse_sigmoid":
        lists = rng.integers(-1, classes, size=(count, program.ids))
        z = (lists[..., None] == np.arange(classes)).any(1) * 1.0
        bad &= program.ids > 0
        lists[bad, :1] = classes + 3
        return lists.reshape(*program.batch, program.ids), z, bad
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


# Running them.


def public(name: str):
    module, _, function = name.rpartition(".")
    return getattr(losses if module else jxent, function)


def compiled(program: Program, batch: Batch):
    """Losses, gradient for the cotangents given, and Hessian-vector product, as one program."""
    function = public(program.function)
    options = dict(program.options)
    if program.axis != -1:
        options["axis"] = program.axis
    if program.block_size is not None:
        options["block_size"] = program.block_size
    if program.class_block_size is not None:
        options["class_block_size"] = program.class_block_size
    if program.reduction is not None:
        options["reduction"] = program.reduction
    if program.weights == "number":
        options["weights"] = batch.arguments["weights"]
    names = [*inspect.signature(function).parameters]
    renamed = {"labels": names[0]} if program.is_scalar else {}

    def loss(moving, fixed):
        arguments = {renamed.get(k, k): v for k, v in (fixed | moving).items()}
        return function(**arguments, **options)

    @jax.jit
    def run(moving, fixed, directions, cotangent):
        def total(moving):
            value = loss(moving, fixed)
            return jnp.sum(value * cotangent.astype(value.dtype)), value

        gradient = jax.grad(total, has_aux=True)
        if not program.second_order:
            return (*gradient(moving)[::-1], None)
        (slope, value), (curve, _) = jax.jvp(gradient, (moving,), (directions,))
        return value, slope, curve

    return run


def run(program, function, batch, cotangent, split):
    fixed = {
        k: v for k, v in batch.arguments.items()
        if k not in batch.moving and not (k == "weights" and program.weights == "number")
    }  # fmt: skip
    moving = {k: batch.arguments[k] for k in batch.moving}
    arrays = jax.tree.map(split, (moving, fixed, batch.directions))
    return jax.tree.map(np.asarray, function(*arrays, cotangent))


# The truth and its bounds.


def truth_of(program: Program, batch: Batch) -> Wide:
    options = dict(program.options)
    with np.errstate(all="ignore"):
        if "softmax" in program.kind:
            found = reference.wide_softmax_of(batch.labels, batch.logits, batch.along, **options)
        else:
            found = reference.wide_sigmoid_of(
                batch.labels, batch.logits, batch.along, pos_weight=batch.pos_weight, **options
            )
            if not program.is_elementwise:
                found = found._replace(
                    value=found.value.sum(-1), value_size=found.value_size.sum(-1)
                )
    hole = np.where(batch.bad, np.nan, WIDE(0))
    rows = hole[:, None]
    value = found.value + (rows if program.is_elementwise else hole)
    return found._replace(value=value, slope=found.slope + rows, curve=found.curve + rows)


class Bound:
    """How far off a row's numbers may be, in float32 (float64) roundings of their sizes.

    16 for the arithmetic of an element, a random walk over the classes, what rounding a difference
    of two logits costs in its exponential (up to where it is flushed), and in the soft cap's.
    """

    def __init__(self, program: Program, batch: Batch, truth: Wide):
        wide = jnp.float64 if program.dtype == "float64" else jnp.float32
        self.eps, self.tiny = float(jnp.finfo(wide).eps), float(jnp.finfo(wide).tiny)
        narrow = jnp.finfo(program.dtype)
        self.half = float(narrow.eps) if narrow.bits < 32 else 0.0
        self.least = float(narrow.tiny) * float(narrow.eps) if narrow.bits < 32 else 0.0
        x = np.asarray(batch.logits, WIDE)
        cap = program.options["logit_softcap"]
        reach = -np.log(self.tiny)
        with np.errstate(all="ignore"):
            ratio = 0 if cap is None else np.abs(x) / cap
            if cap is not None:
                x = np.clip(x, -cap, cap)
            finite = np.where(np.isfinite(x), x, 0)
            if "softmax" in program.kind:
                apart = np.minimum(finite.max(-1, keepdims=True, initial=-inf) - finite, reach)
                self.of_value = 16 + program.classes**0.5 + apart.max(-1, initial=0)
                self.of_element = 16 + program.classes**0.5 + apart
            else:
                self.of_element = np.full(x.shape, 16.0)
                self.of_value = np.full(x.shape[:-1], 16 + program.classes**0.5)
            if cap is not None:
                # An error of the capped logit, and of x / c, which sech^2 depends on twice.
                lost = 4 * np.minimum(np.abs(finite), cap) + 4 * np.minimum(ratio, reach / 2)
                lost = np.where(np.isfinite(lost), lost, 0).max(-1, keepdims=True, initial=0)
                self.of_element = self.of_element + lost
                self.of_value = self.of_value + lost[..., 0]
        if program.is_elementwise:
            self.of_value = self.of_element

    def value(self, size):
        return self.of_value * self.eps * size

    def element(self, size, factor=1.0):
        return factor * self.of_element * self.eps * size


def agree(got, truth, allowed, what):
    """Within the bounds where the truth is finite, and equal where it is not."""
    got = np.asarray(got, WIDE)
    with np.errstate(all="ignore"):
        fine = np.where(
            np.isfinite(truth), np.abs(got - truth) <= allowed,
            (got == truth) | (np.isnan(got) & np.isnan(truth)),
        )  # fmt: skip
    if not fine.all():
        at = tuple(int(i[0]) for i in np.nonzero(~fine))
        raise AssertionError(
            f"{what} at {at}: {got[at]}, the truth is {truth[at]}, allowed {allowed[at]}; "
            f"{int((~fine).sum())} of {fine.size}"
        )


def check(program: Program, batch: Batch, results):
    value, slope, curve = results
    truth = truth_of(program, batch)
    bound = Bound(program, batch, truth)
    count = len(batch.logits)
    cotangent = cotangents(program, count)

    # Reduction.
    losses_, size = truth.value, truth.value_size
    factor = np.ones_like(losses_)
    if program.is_scalar:
        assert batch.weights is not None
        w = np.asarray(batch.weights, WIDE)
        count_ = {
            "none": 1, "weighted_sum": 1, "weighted_mean": w.sum(),
            "weighted_sum_over_batch_size": w.size,
            "weighted_sum_by_nonzero_weights": (w != 0).sum(),
        }[program.reduction or "none"]  # fmt: skip
        factor = w / count_ if count_ else np.zeros_like(w)
    with np.errstate(all="ignore"):
        weighted = reference._no_times(factor, losses_)
        size = reference._no_times(factor, size)
        allowed = bound.value(size) + factor * scale_of_floor(program, batch) * bound.tiny
        if program.is_scalar and program.reduction != "none":
            weighted, size, allowed = weighted.sum(), size.sum(), allowed.sum()
            allowed = allowed + (8 + max(count, 1) ** 0.5) * bound.eps * size
        narrow = 0.0 if program.is_linear else bound.half
        allowed = allowed + narrow * np.abs(weighted) + bound.least
    got = np.asarray(value, WIDE)
    if not (program.is_scalar and program.reduction != "none"):
        got = _without_axis(program, got) if program.is_elementwise else got.reshape(count)
    # Above half of the largest number, either side of overflow is right.
    largest = WIDE(float(jnp.finfo(value.dtype).max))
    weighted = np.where(np.abs(weighted) > largest / 2, got, weighted)
    agree(got, weighted, np.asarray(allowed), "value")

    # Derivatives: each element's cotangent is its weight times that of its example.
    pulled = factor * cotangent if program.reduction in (None, "none") else factor
    if not program.is_elementwise:
        pulled = pulled[:, None]
    check_derivatives(program, batch, bound, truth, pulled, slope, curve)


def check_derivatives(program, batch, bound, truth, pulled, slope, curve):
    floor = 4 * bound.tiny * np.max(scale_of_floor(program, batch), initial=0)
    with np.errstate(all="ignore"):
        cut = np.broadcast_to(pulled == 0, truth.slope.shape)
        by_slope = np.where(cut, 0, pulled * truth.slope)
        allowed = np.where(cut, 0, np.abs(pulled) * bound.element(truth.slope_size, 2))
        allowed = allowed + floor * np.maximum(1, np.abs(pulled))
        by_curve = np.where(cut, 0, pulled * truth.curve)
        curve_allowed = np.where(cut, 0, np.abs(pulled) * bound.element(truth.curve_size, 4))
        # Relative to the row: what is small beside it cancels.
        curve_allowed = curve_allowed + bound.eps * 8 * np.max(
            np.where(np.isfinite(curve_allowed), curve_allowed / bound.eps, 0),
            -1, keepdims=True, initial=0,
        ) + 64 * bound.tiny * np.maximum(1, np.abs(pulled))  # fmt: skip
        finite = (
            np.isfinite(np.asarray(batch.logits, WIDE)).all(-1, keepdims=True) | batch.bad[:, None]
        )
        # Where a cap's own second derivative is below the range its share is nobody's.
        moderate = (np.abs(np.asarray(batch.logits, WIDE)) < 1e15).all(-1, keepdims=True)
    if not program.is_linear:
        agree(
            _without_axis(program, slope["logits"]), by_slope,
            allowed + bound.half * np.abs(by_slope) + bound.least, "gradient",
        )  # fmt: skip
        if curve is None:
            return
        got = _without_axis(program, curve["logits"])
        known = np.broadcast_to(finite & moderate, by_curve.shape)
        allowed = curve_allowed + bound.half * np.abs(by_curve) + bound.least
        agree(*(np.where(known, a, 0) for a in (got, by_curve, allowed)), "curve")
        return
    # d/d kernel adds up the examples of a feature.
    assert batch.features is not None
    features = np.abs(np.asarray(batch.features, WIDE))
    with np.errstate(all="ignore"):
        wanted = np.asarray(batch.features, WIDE).T @ by_slope
        # Slopes are rounded to the operands' dtype before the product.
        low = np.abs(by_slope) * bound.half
        if program.dtype == "float16":
            low = low + 2.0**-37 * np.max(np.abs(by_slope), initial=0)
        within = features.T @ (allowed + low + 4 * bound.eps * np.abs(by_slope))
        within = within + bound.half * np.abs(wanted) + bound.least
    agree(slope["kernel"], wanted, within, "d/d kernel")
    if bound.half or curve is None:
        return  # second order of a projection in half precision: the tangent itself is rounded
    with np.errstate(all="ignore"):
        wanted = np.asarray(batch.features, WIDE).T @ by_curve
        within = features.T @ (curve_allowed + 8 * bound.eps * np.abs(by_curve))
    agree(curve["kernel"], wanted, within, "d2/d kernel2")


def scale_of_floor(program, batch):
    """How many smallest normal numbers may be flushed: a factor behind such a number, and sums."""
    labels = 1 + np.abs(np.asarray(batch.labels, np.float64))
    q = np.max(np.atleast_1d(np.abs(batch.pos_weight)))
    cap = program.options["logit_softcap"]
    scale = 4 * labels * max(q, 1) * (1 if cap is None else max(cap, 1))
    return scale if program.is_elementwise else scale.sum(-1)


def cotangents(program: Program, count: int):
    size = (count, program.classes) if program.is_elementwise else (count,)
    return (0.5 + np.arange(int(np.prod(size))).reshape(size) % 7 / 8) * np.ones(size)


def fuzz(data, function, split):
    program = draw_program(data, function)
    seed = data.draw(st.integers(0, 10**6), label="seed") * BATCHES
    try_batches(program, range(seed, seed + BATCHES), split)


def try_batches(program, seeds, split):
    """The program on a batch a seed."""
    call = None
    for seed in seeds:
        batch = draw_batch(program, seed)
        if call is None:
            call = compiled(program, batch)
        c = cotangents(program, len(batch.logits))
        if program.reduction not in (None, "none"):
            c = np.float64(1)
        elif program.is_elementwise:
            c = _with_axis(program, c)
        else:
            c = c.reshape(program.batch)
        with jax.numpy_rank_promotion("allow"):
            results = run(program, call, batch, jnp.asarray(c), split)
        check(program, batch, results)


def bounded(examples):
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # every simpler program would be compiled anew
    )  # fmt: skip


FEW, MANY = 2, 20  # programs a function; on eight devices half of that
each_function = pytest.mark.parametrize("function", FUNCTIONS)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


each_count = pytest.mark.parametrize(
    "examples", [FEW, pytest.param(MANY, marks=pytest.mark.long)], ids=["few", "many"]
)


@pytest.mark.usefixtures("x64")
@each_count
@each_function
@pytest.mark.one_in(16)
def test_on_one_device(function, examples, request):
    """A few programs as users have them, many with every way at every width."""
    if examples == FEW:
        request.getfixturevalue("narrow_rows")

    @bounded(examples)
    @given(st.data())
    def test(data):
        fuzz(data, function, jnp.asarray)

    test()


# What a fast path accepts is what its exact form gives.


def both(fast, exact):
    """`attempt` that runs both ways and compares them where the fast one calls itself usable."""

    def tried(*arrays):
        usable, result = fast(*arrays)
        other = exact(*arrays)
        sizes = [x.shape[-1] for x in jax.tree.leaves(arrays) if x.ndim]
        jax.debug.callback(partial(compare, max(sizes, default=1)), usable, result, other)
        return jax.tree.map(partial(jnp.where, usable), result, other)

    return tried


COMPARED = {"fast": 0, "exact": 0}  # elements, so that nothing is compared with nothing


def compare(classes, usable, fast, exact):
    COMPARED["fast"] += int(np.sum(usable))
    COMPARED["exact"] += int(np.sum(~np.asarray(usable)))
    if isinstance(fast, logsumexp.LabelNormalizer):
        # Each has its own shift; what both mean is the logarithm of the sum.
        fast, exact = (
            (n.loss, n.complement, n.log_normalizer + 1e3, n.shift - np.log(n.scale) + 1e3)
            for n in (fast, exact)
        )
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(exact), strict=True):
        got, wanted, ok = np.broadcast_arrays(a, b, usable)
        info = np.finfo(got.dtype)
        allowed = (64 + 4 * classes**0.5 - np.log(info.tiny)) * info.eps * np.abs(wanted)
        with np.errstate(invalid="ignore"):
            fine = (np.abs(got - wanted) <= allowed + info.tiny) | (got == wanted)
        assert np.all(fine | ~ok), (got, wanted)


@pytest.mark.usefixtures("x64")
@each_count
@pytest.mark.parametrize("function", [f for f in FUNCTIONS if "linear" not in f])
@pytest.mark.one_in(4)
def test_fast_paths_agree_with_their_exact_forms(function, examples, monkeypatch):
    jax.clear_caches()
    for room in (softmax, dense_labels, sigmoid):
        monkeypatch.setattr(room, "attempt", both)
    COMPARED.update(fast=0, exact=0)

    @bounded(examples // 2)
    @given(st.data())
    def test(data):
        fuzz(data, function, jnp.asarray)
        jax.effects_barrier()

    test()
    jax.clear_caches()
    per_class = function in (
        "sigmoid_cross_entropy_with_logits", "weighted_cross_entropy_with_logits",
        "sparse_sigmoid_cross_entropy_with_logits", "losses.sparse_sigmoid_cross_entropy",
    )  # fmt: skip
    assert COMPARED["fast"] or per_class or examples == FEW


# The net catches what it was made for: each mend taken out again.

MUTANTS = {
    "the quotient's guard": (
        softmax, ("_without_shift",), " & (odds < float(info.max))", "",
        "sparse_softmax_cross_entropy_with_logits", 64, 0.0,
    ),
    "NaN dropped by a minimum": (
        softmax, ("_in_pieces",), "exp(widen(x) - row_max)",
        "jnp.where(jnp.isnan(x), 0, exp(widen(x) - row_max))",
        "softmax_cross_entropy_with_logits", 640, None,
    ),
    "a leader's label taken from the sum": (
        softmax_rows, ("slopes_of_labels",),
        "jnp.where(given == rows.largest, rows.others, rows.largest + rows.others - given)",
        "rows.largest + rows.others - given",
        "softmax_cross_entropy_with_logits", 64, None,
    ),
    "probabilities without a shift": (
        softmax, ("_without_shift",),
        "LabelNormalizer(loss, log_normalizer, log_normalizer, scale, others / total)",
        "LabelNormalizer(loss, log_normalizer, 0 * logit, 1 / total, others / total)",
        "sparse_softmax_cross_entropy_with_logits", 7, 0.0,
    ),
    "the smoothed label's slope": (
        logsumexp, ("label_slopes", "_label_slopes_jvp"),
        "of_label = (smoothing - share) * p - (1 - smoothing + share) * normalizer.complement",
        "of_label = smoothing - share - normalizer.complement",
        "sparse_softmax_cross_entropy_with_logits", 20_000, 1.0,
    ),
}  # fmt: skip


def mutated(room, names, right, wrong):
    """The module's names with the mend taken out."""
    source = "\n".join(inspect.getsource(getattr(room, name)) for name in names)
    assert source.count(right) == 1, f"{right!r} does not stand once in {names}"
    copy = dict(vars(room))
    exec(source.replace(right, wrong), copy)
    return copy


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mend_can_be_taken_out(mutant):
    """In the default lane, for the long one to find its place in the source."""
    room, names, right, wrong, *_ = MUTANTS[mutant]
    assert mutated(room, names, right, wrong)[names[0]] is not getattr(room, names[0])


@pytest.mark.long
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_fuzz_finds_what_was_wrong(mutant, monkeypatch):
    room, names, right, wrong, function, classes, smoothing = MUTANTS[mutant]
    copy = mutated(room, names, right, wrong)
    monkeypatch.setattr(room, names[0], copy[names[0]])
    jax.clear_caches()
    options = {"z_loss": 0.0, "logit_softcap": None}
    if smoothing is not None:
        options["label_smoothing"] = smoothing
    program = Program(function, "float32", (70,), classes, options, second_order=False)
    with pytest.raises(AssertionError, match="the truth is"):
        try_batches(program, range(20), jnp.asarray)
    jax.clear_caches()
