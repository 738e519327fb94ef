"""A row's statistics by one reduction of tuples: how it joins, and in what order."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jxent
from benchmarks.compiled.collectives import collectives
from jxent import losses
from jxent._src.numerics import logsumexp, softmax_rows
from jxent._src.platforms import one_pass
from jxent._src.platforms.one_pass import RowSums
from jxent._src.sharding.class_axis import ClassAxis
from tests import reference

pytestmark = pytest.mark.optimized

inf, nan = np.inf, np.nan
ODD = [0.0, 1.5, -2.0, 40.0, -120.0, 5e37, -5e37, inf, -inf, nan]

UNIT = 0.25  # of the classes that are left


def expected(x, ids, z) -> dict[str, np.ndarray]:
    """The statistics of rows `x` by their definition, in float64."""
    x, z = np.asarray(x, np.float64), np.asarray(z, np.float64)
    row_max = x.max(-1)  # NaN where one is
    top = row_max[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where(x == top, 0, top - x)
        first = np.arange(x.shape[-1]) == np.argmax(x, -1)[:, None]
        rest = np.where(first, 0 * gap, np.exp(-gap)).sum(-1)
        left = (x > -inf).astype(np.float64)
        return {
            "row_max": row_max,
            "sumexp_rest": rest,
            "logit": np.take_along_axis(x, ids[:, None], -1)[:, 0],
            "labels": np.where(z == 0, 0, z * gap).sum(-1),
            "left": np.where(left == 0, 0, left * gap).sum(-1),
            "total": z.sum(-1),
            "count": left.sum(-1),
        }


def rows_of(x, ids, z) -> RowSums:
    """Each class of the rows alone."""
    logit = jnp.where(jnp.arange(x.shape[-1])[None] == ids[:, None], x, 0)
    return one_pass.singleton(jnp.asarray(x), logit, jnp.asarray(z), UNIT)


def known(row: RowSums) -> dict[str, np.ndarray]:
    assert row.labels is not None
    assert row.unmasked is not None
    found = {
        "row_max": row.row_max, "sumexp_rest": row.sumexp_rest, "logit": row.logit,
        "labels": row.labels.below, "left": row.unmasked.below / UNIT,
        "total": row.labels.total, "count": row.unmasked.total / UNIT,
    }  # fmt: skip
    return {k: np.asarray(v)[..., 0] for k, v in found.items()}


def agree(got, wanted, rtol=2e-6):
    """What a row of NaN has beside the NaN in `rest` is nobody's."""
    fine = ~np.isnan(wanted["row_max"])
    np.testing.assert_array_equal(np.isnan(got["sumexp_rest"]), ~fine)
    for name, value in wanted.items():
        np.testing.assert_allclose(
            got[name][fine], np.asarray(value, np.float64)[fine], rtol, atol=1e-37, err_msg=name
        )


@pytest.fixture(scope="module")
def edges():
    """Every row of three of the odd logits, a label each, and dense labels of which one is 0."""
    x = np.asarray(list(itertools.product(ODD, repeat=3)), np.float32)
    ids = np.arange(len(x)) % 3
    z = np.asarray([0.3, 0.0, 1.1], np.float32)[(np.arange(len(x))[:, None] + np.arange(3)) % 3]
    return x, ids, z


combine = jax.jit(one_pass.combine)


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))], ids=str)
@pytest.mark.parametrize("right", [False, True], ids=["(ab)c", "a(bc)"])
def test_joined_in_any_order_rows_are_what_they_are_defined_to_be(edges, order, right):
    rows = rows_of(*edges)
    a, b, c = (jax.tree.map(lambda v, k=k: v[:, k : k + 1], rows) for k in order)
    got = combine(a, combine(b, c)) if right else combine(combine(a, b), c)
    agree(known(got), expected(*edges))


def test_nothing_joined_with_a_row_changes_no_bit(edges):
    rows = rows_of(*edges)
    pairs = combine(*(jax.tree.map(lambda v, k=k: v[:, k : k + 1], rows) for k in (0, 1)))
    nothing = jax.tree.map(lambda e, v: jnp.full_like(v, e), one_pass.identity(pairs), pairs)
    for got in (combine(pairs, nothing), combine(nothing, pairs)):
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(pairs), strict=True):
            fine = ~np.isnan(pairs.sumexp_rest)
            np.testing.assert_array_equal(np.asarray(one)[fine], np.asarray(other)[fine])
        np.testing.assert_array_equal(np.isnan(got.sumexp_rest), np.isnan(pairs.sumexp_rest))


def test_a_maximum_that_drops_nan_loses_none(edges, monkeypatch):
    """Some compilers' do: `rest` says where one is."""
    plain = jnp.maximum

    def dropping(a, b):
        return plain(jnp.where(jnp.isnan(a), b, a), jnp.where(jnp.isnan(b), a, b))

    monkeypatch.setattr(jnp, "maximum", dropping)
    x, *_ = edges
    rows = rows_of(*edges)
    a, b, c = (jax.tree.map(lambda v, k=k: v[:, k : k + 1], rows) for k in range(3))
    got = one_pass.combine(one_pass.combine(a, b), c)
    np.testing.assert_array_equal(np.isnan(np.asarray(got.sumexp_rest)[:, 0]), np.isnan(x).any(-1))


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_the_reduction_is_the_definition(edges, classes):
    x, ids, z = (v[:, :classes] if v.ndim == 2 else v % classes for v in edges)
    got = jax.jit(partial(one_pass.reduced, ClassAxis(-1)))(rows_of(x, ids, z))
    agree(known(got), expected(x, ids, z))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.one_in(2)
def test_every_row_has_the_statistics_of_the_plain_spelling(edges, smoothing):
    """Bit for bit where they are 0, infinite or NaN, of the same sign, and else to rounding."""
    x, ids, z = edges
    classes = ClassAxis(-1)
    for one, plain, data in (
        (
            one_pass.sparse_label_residuals,
            softmax_rows.sparse_label_residuals.reference,
            (x, ids[:, None]),
        ),
        (one_pass.dense_label_residuals, softmax_rows.dense_label_residuals.reference, (x, z)),
    ):
        got = jax.jit(partial(one, classes, smoothing))(*data)
        with jxent.assume_platform("reference"):
            wanted = jax.jit(partial(plain, classes, smoothing))(*data)
        for name, value in wanted._asdict().items():
            if value is not None:
                np.testing.assert_allclose(
                    getattr(got, name), value, rtol=2e-6, atol=1e-37, err_msg=name
                )


# A chip joins in an order of its own. A TPU's lanes each take one class of a tile after the other
# and are joined at the end; a GPU's threads take a few classes each and are joined in a tree. On
# the axis of the sublanes there are 8 of them, each with an eighth of a row.


def in_order(x, ids, lanes):
    """Value and complement of the label's probability."""
    logit = jnp.where(jnp.arange(x.shape[-1])[None] == ids, x, 0)
    row = one_pass.singleton(x, logit)
    tiles = jax.tree.map(lambda v: jnp.moveaxis(v.reshape(len(x), -1, lanes), 1, 0), row)
    start = jax.tree.map(lambda v, e: jnp.full(v.shape[1:], e), tiles, one_pass.identity(row))
    row, _ = jax.lax.scan(lambda row, tile: (one_pass.combine(row, tile), None), start, tiles)
    while row.row_max.shape[-1] > 1:
        row = one_pass.combine(*halves(row))
    pair = logsumexp.nan_if_invalid(row.row_max, row.sumexp_rest)
    normalizer = softmax_rows.of_pair(row.logit, *pair)
    return normalizer.loss, normalizer.complement


def halves(row):
    """The first and the second half of the lanes."""
    middle = row.row_max.shape[-1] // 2
    return jax.tree.map(lambda v: v[..., :middle], row), jax.tree.map(
        lambda v: v[..., middle:], row
    )


def test_a_label_of_nan_is_in_a_sum():
    """Whatever a maximum or a minimum makes of it."""
    z = jnp.array([[0.0, jnp.nan, 1.0]])
    labels = one_pass.singleton(jnp.zeros_like(z), labels=z).labels
    assert labels is not None
    np.testing.assert_array_equal(np.isnan(labels.others), np.isnan(z))


@pytest.mark.parametrize("lanes", [8, 128, 8 * 128, 2**13])
@pytest.mark.parametrize(
    "classes", [2**15, *(pytest.param(n, marks=pytest.mark.long) for n in (2**17, 2**18))]
)
@pytest.mark.one_in(4)
def test_in_every_order_the_digits_are_kept(classes, lanes):
    """Within 4 ulp, where 8 + |ln loss| are allowed; of 8 lanes each, within a walk's length."""
    for lead in (0, 20, 60):
        rng = np.random.default_rng(lead)
        x = np.float32(2 * rng.standard_normal((8, classes)))
        ids = rng.integers(classes, size=(8, 1))
        if lead:
            np.put_along_axis(x, ids, x.max(-1, keepdims=True) + np.float32(lead), -1)
        logit = np.take_along_axis(x, ids, -1).astype(np.float64)
        odds = np.exp(x.astype(np.float64) - logit)
        np.put_along_axis(odds, ids, 0, -1)
        others = odds.sum(-1, keepdims=True)
        allowed = 4 if lanes > 8 else 4 + (classes / lanes) ** 0.5 / 4
        expected = np.log1p(others), others / (1 + others)
        for got, wanted in zip(
            jax.jit(partial(in_order, lanes=lanes))(x, ids), expected, strict=True
        ):
            assert np.all(reference.ulps(got, wanted, np.float32) <= allowed), lead


# Over the chips, on CPU as on a TPU.


def losses_of(labels, dense, logits, **options):
    return (
        jxent.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits, **options),
        losses.softmax_cross_entropy(dense, logits, reduction="none", **options),
    )


def split_rows():
    """Rows with everything odd in one of four parts of the classes."""
    rng = np.random.default_rng(0)
    x = np.asarray(3 * rng.standard_normal((16, 64)), np.float32)
    ids, z = rng.integers(64, size=16), rng.uniform(0, 1, (16, 64)).astype(np.float32)
    x[3, 5], z[3, 5], ids[3] = -inf, 0, 9
    x[4] = -inf
    x[5, 7] = nan
    x[6, [3, 40]] = inf
    x[7, 16:32], z[7, 16:32], ids[7] = -inf, 0, 3
    x[8, :16] = 40
    return ids, z, x


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.01}], ids=str)
@pytest.mark.parametrize("kind", ["shard_map", "unchecked", "Auto", "Explicit"])
@pytest.mark.one_in(9)
def test_split_classes_are_joined_and_no_logits_move(kind, options):
    jax.clear_caches()
    ids, z, x = split_rows()
    wanted = losses_of(ids, z, x, **options)
    axes = AxisType.Explicit if kind == "Explicit" else AxisType.Auto
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axes, axes))
    specs = P("data"), P("data", "model"), P("data", "model")
    function = partial(losses_of, **options)
    if axes == AxisType.Auto and kind != "Auto":
        function = jax.shard_map(
            partial(function, axis_name="model"), mesh=mesh, in_specs=specs, out_specs=P("data"),
            check_vma=kind == "shard_map",
        )  # fmt: skip
    split = [
        jax.device_put(v, NamedSharding(mesh, s)) for v, s in zip((ids, z, x), specs, strict=True)
    ]
    with jxent.assume_platform("tpu"), jax.set_mesh(mesh):
        program = jax.jit(function).lower(*split).compile()
    for got, want in zip(program(*split), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=4e-6)
    moved = collectives(program.as_text())
    assert {c.kind for c in moved} <= {"all-reduce", "all-gather"}
    # A few numbers an example and chip, of the 16 that are a chip's part of a row.
    results = [buffer for c in moved for buffer in c.result]
    assert all(np.prod(buffer.shape) <= 8 * 4 for buffer in results)
    assert len(results) <= 15
