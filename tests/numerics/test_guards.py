"""Across every end of every range that a fast path's guard is made of."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses
from jxent._src.numerics import logsumexp, softmax_rows
from jxent._src.platforms.cpu import softmax
from jxent._src.sharding.class_axis import ClassAxis
from tests import reference
from tests.reference import WIDE

pytestmark = pytest.mark.optimized

wider = pytest.mark.skipif(not reference.IS_WIDER, reason="long double is float64 here")
DTYPES = ["float32", pytest.param("float64", marks=wider)]
LONG = [pytest.param(c, marks=pytest.mark.long) for c in (3, 64, 1000, 4099)]
WIDEST = pytest.param(2**17, marks=pytest.mark.long)
CLASSES = [2, 640, WIDEST, *LONG]
BOUNDARY_SIDES = [1 - 1e-3, 1 + 1e-3]


def ranges(dtype, classes):
    """The ends of the ranges of the logits without a shift, see `platforms.cpu._without_shift`."""
    info = jnp.finfo(dtype)
    least = classes * float(info.tiny) / float(info.eps)
    most = 2.0 ** (info.maxexp - 2 - classes.bit_length())
    reach = 0.9 * math.log(float(info.max))
    return least, most, reach


def row(dtype, classes, others: float, own: float) -> np.ndarray:
    """Class 0 is the label, at `own`; exp of the others adds up to exp(`others`)."""
    x = np.full(classes, others - np.log(WIDE(classes - 1)), WIDE)
    x[0] = own
    return np.asarray(x, dtype)


def ends(dtype, classes):
    """(what, row, whether the fast path may take it; None: at this end it need not be decided)."""
    info = jnp.finfo(dtype)
    least, most, reach = ranges(dtype, classes)
    log = {
        name: float(np.log(WIDE(v)))
        for name, v in {
            "least": least,
            "most": most,
            "max": float(info.max),
            "tiny": float(info.tiny),
        }.items()
    }
    for side in BOUNDARY_SIDES:
        inside = side < 1
        nudge = math.log(side) * 4  # rows are rounded to the dtype
        yield "others above least", row(dtype, classes, log["least"] - nudge, 0.0), inside
        yield "others below most", row(dtype, classes, log["most"] + nudge, 0.0), inside
        for sign in (1, -1):
            own = sign * reach * side
            others = min(max(own, log["least"] + 1), log["most"] - 1)
            yield f"label at {sign} reach", row(dtype, classes, others, own), inside
        yield "quotient below max", row(dtype, classes, log["max"] - 60 + nudge, -60.0), inside
        # Below tiny the loss itself is flushed: either way takes it.
        yield "quotient above tiny", row(dtype, classes, log["tiny"] + 60 - nudge, 60.0), None
        yield "a class at tiny", row(dtype, classes, -3.0, -3.0), None
    x = row(dtype, classes, 1.0, 1.0)
    x[-1] = log["tiny"] + 0.01
    yield "one class flushed or not", x, None
    yield "far from 0", row(dtype, classes, -69.0, -69.0), None


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=[wider, pytest.mark.long])]
)
@pytest.mark.one_in(3)
def test_logits_without_a_shift(dtype, classes):
    with jax.enable_x64(dtype == "float64"):
        found = list(ends(dtype, classes))
        x = jnp.asarray(np.stack([r for _, r, _ in found]))
        ids = jnp.zeros((len(found), 1), jnp.int32)
        usable, _ = jax.jit(softmax._without_shift)(x, ids, x[:, :1])
        for (what, _, inside), got in zip(found, np.asarray(usable)[:, 0], strict=True):
            assert inside is None or bool(got) == inside, what
        check(x, [what for what, *_ in found])
        if classes in (2, 640):
            for what, r, _ in found:
                check(jnp.asarray(r[None]), [what])  # alone: nothing else decides


@pytest.mark.usefixtures("narrow_rows")
@pytest.mark.parametrize("classes", [2, 10, 31])
@pytest.mark.one_in(2)
def test_narrow_rows_keep_their_digits(classes):
    """With no condition there is no guard: over all ranges, and a label that leads or is behind.

    Up to where a class's own term is flushed to 0, as it is everywhere.
    """
    rows = [r for _, r, _ in ends("float32", classes)]
    rows += [row("float32", classes, 0.0, float(lead)) for lead in range(-78, 79, 6)]
    check(jnp.asarray(np.stack(rows)), [str(k) for k in range(len(rows))])


@pytest.mark.parametrize("classes", [31, 32, 640, 2**15 + 3])
@pytest.mark.parametrize("own", [0.0, 1e-3, -1e-3, -0.49, -0.51, 1.0])
@pytest.mark.one_in(24)
def test_a_normalizer_near_0_keeps_its_digits(classes, own):
    """Its square is the z-loss: of a label that leads by 16 from near 0, and of one beside it."""
    x = row("float32", classes, own - 16.0, own)
    log_normalizer = np.logaddexp.reduce(x.astype(WIDE))
    if own == 0:
        log_normalizer = np.log1p(np.exp(x[1:].astype(WIDE)).sum())

    def z_loss(x):
        _, aux = losses.sparse_softmax_cross_entropy(
            jnp.zeros(1, int), x[None], z_loss=1.0, has_aux=True
        )
        return aux.z_loss

    np.testing.assert_allclose(z_loss(jnp.asarray(x)), np.square(log_normalizer), rtol=1e-5)

    def slope(factor):
        return jax.grad(
            lambda x: jxent.sparse_softmax_cross_entropy_with_logits(
                labels=0, logits=x, z_loss=factor
            )
        )(jnp.asarray(x))[0]

    right = 2 * log_normalizer - (1 - 1 / np.exp(log_normalizer - x[0].astype(WIDE)))
    np.testing.assert_allclose(slope(1.0), right, rtol=2e-5)


@pytest.mark.parametrize("classes", [32, 640])
@pytest.mark.parametrize("loss", [0.49, 0.51])
@pytest.mark.parametrize("own", [-0.51, -0.49, 0.0, 0.49, 0.51])
@pytest.mark.one_in(3)
def test_a_normalizer_on_both_sides_of_its_guard(classes, loss, own):
    """The sum of the label's logit and its loss stands for it where both are below 1/2."""
    x = row("float32", classes, own + math.log(math.expm1(loss)), own)
    log_normalizer = np.logaddexp.reduce(x.astype(WIDE))
    _, aux = losses.sparse_softmax_cross_entropy(
        jnp.zeros(1, int), jnp.asarray(x)[None], z_loss=1.0, has_aux=True
    )
    assert abs(np.sqrt(WIDE(aux.z_loss)) - abs(log_normalizer)) < 2**-22


def value_and_gradient(function, x):
    value, pull = jax.vjp(function, x)
    return value, pull(jnp.ones_like(value))[0]


@jax.jit
def by_ids(x):
    ids = jnp.zeros(x.shape[0], jnp.int32)
    return value_and_gradient(
        lambda x: jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=x), x
    )


@jax.jit
def by_dense_labels(x):
    z = jnp.zeros_like(x).at[:, 0].set(1)
    return value_and_gradient(
        lambda x: jxent.softmax_cross_entropy_with_logits(labels=z, logits=x), x
    )


def check(x, names):
    """Losses and gradients of class 0 by ids and by dense labels, within the published bounds."""
    z = np.zeros(x.shape)
    z[:, 0] = 1
    with np.errstate(all="ignore"):
        expected = reference.wide_softmax_of(z, np.asarray(x), np.zeros(x.shape))
    info = jnp.finfo(x.dtype)
    eps, tiny = float(info.eps), float(info.tiny)
    for f in (by_ids, by_dense_labels):
        value, slope = f(x)
        walk = 16 + x.shape[1] ** 0.5
        size = np.abs(np.log(np.maximum(np.float64(expected.value), tiny)))
        allowed = (walk + size) * eps * expected.value_size + 4 * tiny
        off = np.abs(np.asarray(value, WIDE) - expected.value)
        assert np.all(off <= allowed), (f, [names[i] for i in np.flatnonzero(off > allowed)])
        gap = np.float64(x.max(-1, keepdims=True) - x)
        lost = np.minimum(gap, -np.log(tiny)) + size[:, None]
        allowed = 2 * (walk + lost) * eps * expected.gradient_size + 4 * tiny
        off = np.abs(np.asarray(slope, WIDE) - expected.gradient)
        wrong = np.flatnonzero((off > allowed).any(1))
        assert not wrong.size, (f, [names[i] for i in wrong])


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_maximum_left_out_or_subtracted(dtype, classes):
    """The sum over all classes just under and just over 2, and far from it."""
    with jax.enable_x64(dtype == "float64"):
        sums = [1e-30, 1e-6, 1 - 1e-3, 1 + 1e-3, 2.0, 100.0]
        rows = [row(dtype, classes, math.log(s), 0.0) for s in sums]
        rows += [r + np.asarray(shift, dtype) for r in rows for shift in (-1e4, 3e4)]
        x = np.stack(rows)
        top, rest = jax.jit(lambda x: logsumexp.pair(x, ClassAxis(-1)))(x)
        with np.errstate(under="ignore"):
            odds = np.exp(np.asarray(x, WIDE) - np.asarray(x, WIDE).max(-1, keepdims=True))
        odds[np.arange(len(x)), odds.argmax(-1)] = 0
        expected = odds.sum(-1)
        np.testing.assert_array_equal(np.asarray(top)[:, 0], x.max(-1))
        far = 1 + np.abs(np.log(np.maximum(np.float64(expected), 1e-300)))
        allowed = (16 + classes**0.5 + far) * float(jnp.finfo(dtype).eps) * expected
        assert np.all(np.abs(np.asarray(rest, WIDE)[:, 0] - expected) <= allowed)


CONTAMINANTS = {
    "NaN": np.nan, "inf": np.inf, "-inf": -np.inf, "far above": 1e30, "far below": -1e30,
    "drifted": 95.0,
}  # fmt: skip


def rows_for_neighbours(classes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((70, classes)).astype(np.float32)
    ids = rng.integers(classes, size=70)
    x[np.arange(0, 70, 3), ids[::3]] += 12  # some confident, so that all ways are taken
    return x, ids


@cache
def programs_of_neighbours(classes):
    """The same for every odd row, so compiled once."""
    _, ids = rows_for_neighbours(classes)
    dense = np.eye(classes, dtype=np.float32)[ids]
    lists = ids[:, None]
    functions = {
        "ids": lambda x: jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=x),
        "smoothed": lambda x: jxent.sparse_softmax_cross_entropy_with_logits(
            labels=ids, logits=x, label_smoothing=0.1, z_loss=0.01),
        "dense": lambda x: jxent.softmax_cross_entropy_with_logits(labels=dense, logits=x),
        "lists": lambda x: jxent.sparse_sigmoid_cross_entropy_with_logits(labels=lists, logits=x),
        "sigmoid": lambda x: losses.linear_sigmoid_cross_entropy(
            dense, x, np.eye(classes, dtype=np.float32), reduction="none", block_size=70),
    }  # fmt: skip
    return {k: jax.jit(partial(value_and_gradient, f)) for k, f in functions.items()}


@pytest.mark.xdist_group("neighbours")
@pytest.mark.parametrize("classes", [640, *LONG])
@pytest.mark.parametrize("nonfinite", CONTAMINANTS)
@pytest.mark.one_in(8)
def test_one_invalid_row_changes_no_other(nonfinite, classes):
    """The others' answers are those without it, to one unit in the last place."""
    x, ids = rows_for_neighbours(classes)
    invalid = x.copy()
    invalid[7, ids[7] if nonfinite == "drifted" else 1] = CONTAMINANTS[nonfinite]
    invalid[9] = CONTAMINANTS[nonfinite]
    others = np.delete(np.arange(70), [7, 9])
    for kind, program in programs_of_neighbours(classes).items():
        if kind == "sigmoid" and not np.isfinite(CONTAMINANTS[nonfinite]):
            continue  # in a projection 0 times it is NaN for its whole row: test_linear_blocks
        (clean, slope), (got, gradient_invalid) = program(x), program(invalid)
        np.testing.assert_array_max_ulp(np.asarray(got)[others], np.asarray(clean)[others], 1)
        np.testing.assert_allclose(
            np.asarray(gradient_invalid)[others], np.asarray(slope)[others], rtol=1e-6, atol=1e-37
        )
        if nonfinite == "NaN":
            assert np.isnan(got[7])
            assert np.isnan(got[9])
            if kind != "lists":  # its classes are independent
                assert np.isnan(gradient_invalid[7]).all()


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        pytest.param(shape, axis, marks=[] if axis or shape == (70, 640) else [pytest.mark.long])
        for shape in ((4096, 10), (5, 1000), (1, 4096), (2, 50257), (70, 640))
        for axis in (-1, 0)
    ],
)
@pytest.mark.one_in(6)
def test_a_nan_logit_reaches_its_loss_and_gradient(shape, axis):
    """XLA:CPU's maximum and minimum drop NaN from some size on."""
    rng = np.random.default_rng(0)
    examples, classes = shape
    x = rng.standard_normal(shape).astype(np.float32)
    invalid = examples // 2
    x[invalid, classes - 1] = np.nan
    ids = np.zeros(examples, int)
    z = np.full(shape, 1 / classes, np.float32)
    moved = np.moveaxis(x, -1, axis)
    for f in (
        lambda x: jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=x, axis=axis),
        lambda x: jxent.softmax_cross_entropy_with_logits(
            labels=np.moveaxis(z, -1, axis), logits=x, axis=axis
        ),
    ):
        value, gradient = jax.jit(partial(value_and_gradient, f))(moved)
        gradient = np.moveaxis(np.asarray(gradient), axis, -1)
        only = np.arange(examples) == invalid
        np.testing.assert_array_equal(np.isnan(value), only)
        np.testing.assert_array_equal(np.isnan(gradient).any(1), only)
        np.testing.assert_array_equal(np.isnan(gradient).all(1), only)


def test_a_nan_in_one_column_of_the_kernel():
    inputs, kernel = np.ones((64, 4), np.float32), np.ones((4, 640), np.float32)
    kernel[2, 5] = np.nan
    for loss_name, labels in (
        ("sparse_softmax", np.zeros(64, int)), ("softmax", np.zeros((64, 640), np.float32)),
        ("sigmoid", np.zeros((64, 640), np.float32)), ("sparse_sigmoid", np.zeros((64, 1), int)),
    ):  # fmt: skip
        function = getattr(losses, f"linear_{loss_name}_cross_entropy")
        value, slope = jax.value_and_grad(function, 1)(labels, inputs, kernel)
        assert np.isnan(value), loss_name
        assert np.isnan(slope).all(), loss_name


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("classes", [2, 64, 65, 509, 640, 4000])
@pytest.mark.one_in(2)
def test_sums_of_labels(classes, axis):
    """From none to more than the largest label, across half of it, and ties: each way on CPU."""
    rng = np.random.default_rng(0)
    shares = [
        0,
        1e-30,
        1e-12,
        1e-6,
        0.3,
        *(0.5 * s for s in BOUNDARY_SIDES),
        1 - 1e-3,
        1,
        1 + 1e-3,
        10,
    ]
    others = rng.dirichlet(np.ones(classes - 1), len(shares)) * np.array(shares)[:, None]
    rows = [rng.permutation([1.0, *row]) for row in others]
    z = np.asarray([*rows, np.full(classes, 0.25), np.zeros(classes)], np.float32)
    rest = jnp.zeros((len(z), 1))
    z = np.moveaxis(z, -1, axis)
    got = jax.jit(partial(softmax_rows.labels_sums, ClassAxis(axis - 2 * (axis == 0))))(
        jnp.asarray(z), jnp.moveaxis(rest, -1, axis)
    )
    largest, left = (np.moveaxis(np.asarray(a), axis, -1)[:, 0] for a in got)
    z = np.moveaxis(z, axis, -1).astype(WIDE)
    # The entry that is left out: the largest, or where none outweighs all others any.
    assert all(value in row.astype(np.float32) for value, row in zip(largest, z, strict=True))
    ends = [
        np.argmax(row.astype(np.float32) == value) for value, row in zip(largest, z, strict=True)
    ]
    expected = np.array([np.delete(row, end).sum() for row, end in zip(z, ends, strict=True)])
    rounding = (8 + classes**0.5) * float(jnp.finfo(np.float32).eps)
    assert (np.abs(left - expected) <= rounding * np.abs(expected)).all()
    outweighs = 2 * z.max(-1) > z.sum(-1)
    np.testing.assert_array_equal(largest[outweighs], z.max(-1)[outweighs])
