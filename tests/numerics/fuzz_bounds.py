"""The truth of the fuzz in a wider type, and the check that a program keeps its bounds."""

import jax.numpy as jnp
import numpy as np

from tests import reference
from tests.numerics.fuzz_batches import Batch, _without_axis
from tests.numerics.fuzz_programs import Program
from tests.reference import WIDE, Wide

inf, nan = np.inf, np.nan


def expected_of(program: Program, batch: Batch) -> Wide:
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
    hole = np.where(batch.invalid, np.nan, WIDE(0))
    rows = hole[:, None]
    value = found.value + (rows if program.is_elementwise else hole)
    return found._replace(value=value, gradient=found.gradient + rows, curve=found.curve + rows)


class Bound:
    """How far off a row's numbers may be, in float32 (float64) roundings of their sizes.

    16 for the arithmetic of an element, a random walk over the classes, what rounding a difference
    of two logits costs in its exponential (up to where it is flushed), and in the soft cap's.
    """

    def __init__(self, program: Program, batch: Batch, expected: Wide):
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


def agree(got, expected, allowed, what):
    """Within the bounds where the truth is finite, and equal where it is not."""
    got = np.asarray(got, WIDE)
    with np.errstate(all="ignore"):
        fine = np.where(
            np.isfinite(expected), np.abs(got - expected) <= allowed,
            (got == expected) | (np.isnan(got) & np.isnan(expected)),
        )  # fmt: skip
    if not fine.all():
        at = tuple(int(i[0]) for i in np.nonzero(~fine))
        raise AssertionError(
            f"{what} at {at}: {got[at]}, the truth is {expected[at]}, allowed {allowed[at]}; "
            f"{int((~fine).sum())} of {fine.size}"
        )


def check(program: Program, batch: Batch, results):
    value, gradient, curve = results
    expected = expected_of(program, batch)
    bound = Bound(program, batch, expected)
    count = len(batch.logits)
    cotangent = cotangents(program, count)

    # Reduction.
    losses_, size = expected.value, expected.value_size
    factor = np.ones_like(losses_)
    if program.is_scalar:
        assert batch.weights is not None
        w = np.asarray(batch.weights, WIDE)
        count_ = {
            "none": 1, "weighted_sum": 1, "weighted_mean": w.sum(),
            "weighted_sum_over_batch_size": w.size,
            "weighted_sum_by_nonzero_weights": (w != 0).sum(),
        }[program.reduction or "none"]  # fmt: skip
        if program.mean_over == "elements" and program.reduction not in ("none", "weighted_sum"):
            count_ = count_ * program.classes
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
    check_derivatives(program, batch, bound, expected, pulled, gradient, curve)


def check_derivatives(program, batch, bound, expected, pulled, gradient, curve):
    floor = 4 * bound.tiny * np.max(scale_of_floor(program, batch), initial=0)
    with np.errstate(all="ignore"):
        cut = np.broadcast_to(pulled == 0, expected.gradient.shape)
        by_gradient = np.where(cut, 0, pulled * expected.gradient)
        allowed = np.where(cut, 0, np.abs(pulled) * bound.element(expected.gradient_size, 2))
        allowed = allowed + floor * np.maximum(1, np.abs(pulled))
        by_curve = np.where(cut, 0, pulled * expected.curve)
        curve_allowed = np.where(cut, 0, np.abs(pulled) * bound.element(expected.curve_size, 4))
        # Relative to the row: what is small beside it cancels.
        curve_allowed = curve_allowed + bound.eps * 8 * np.max(
            np.where(np.isfinite(curve_allowed), curve_allowed / bound.eps, 0),
            -1, keepdims=True, initial=0,
        ) + 64 * bound.tiny * np.maximum(1, np.abs(pulled))  # fmt: skip
        finite = (
            np.isfinite(np.asarray(batch.logits, WIDE)).all(-1, keepdims=True)
            | batch.invalid[:, None]
        )
        # Where a cap's own second derivative is below the range its share is nobody's.
        moderate = (np.abs(np.asarray(batch.logits, WIDE)) < 1e15).all(-1, keepdims=True)
    if not program.is_linear:
        agree(
            _without_axis(program, gradient["logits"]), by_gradient,
            allowed + bound.half * np.abs(by_gradient) + bound.least, "gradient",
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
        wanted = np.asarray(batch.features, WIDE).T @ by_gradient
        # Slopes are rounded to the operands' dtype before the product.
        low = np.abs(by_gradient) * bound.half
        if program.dtype == "float16":
            low = low + 2.0**-37 * np.max(np.abs(by_gradient), initial=0)
        within = features.T @ (allowed + low + 4 * bound.eps * np.abs(by_gradient))
        within = within + bound.half * np.abs(wanted) + bound.least
    agree(gradient["kernel"], wanted, within, "d/d kernel")
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
