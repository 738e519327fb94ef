"""The forms that one platform only uses: each is as right as the other."""

import itertools
import math
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jxent
from benchmarks.accuracy import measure
from benchmarks.compiled.cases import GEMMA, Case, shapes
from benchmarks.lib.peers import jxent_peer
from benchmarks.lib.samples import softmax_samples
from jxent import losses
from jxent._src.core import dispatch, hints
from jxent._src.loss_fns import base
from jxent._src.numerics import logsumexp
from jxent._src.platforms.cpu import softmax
from jxent._src.sharding.class_axis import Classes
from tests import reference
from tests.api.test_properties import close, each_loss, scalar, split, times, truth_at
from tests.catalog import CASES
from tests.compile_options import quick
from tests.numerics.test_accuracy import BOUNDS
from tests.reference import tolerance

pytestmark = pytest.mark.optimized

# The platforms that have ways of their own, and any that has none.
REGISTERED = {way.platform: None for f in dispatch.PerPlatform.every for way in f.ways}
PLAIN = "reference"


@pytest.fixture
def _platform(request):
    """Runs on CPU what is lowered for another platform, or for narrow rows."""
    if request.param == "narrow rows":
        request.getfixturevalue("narrow_rows")
        yield
        return
    with jxent.assume_platform(request.param):
        yield


as_on_others = pytest.mark.parametrize(
    "_platform", [PLAIN, "narrow rows", *(p for p in REGISTERED if p != "cpu")], indirect=True
)


@as_on_others
@pytest.mark.usefixtures("_platform")
@each_loss
@pytest.mark.one_in(45)
def test_other_platforms_get_the_same_value_gradient_and_second_order(case):
    with jax.enable_x64(True):
        arrays = case.arrays(jnp.dtype("float64"), 0.5)
        f, moving = split(case, arrays)
        slope = jax.grad(scalar(case, f))
        got = quick(lambda m: (f(m), jax.jvp(slope, (m,), (m,))))(moving)
        value, gradient, hessian = jax.tree.map(np.asarray, truth_at(case)(moving))
        close(got, (value, (gradient, times(hessian, moving))), "float64", case.terms)


def entropy(labels, inputs, kernel):
    found = jxent.linear_sparse_softmax_statistics(labels=labels, inputs=inputs, kernel=kernel)
    return jnp.sum(found.entropy)


@pytest.mark.parametrize("platform", REGISTERED)
@pytest.mark.long
def test_the_family_takes_every_way(platform, monkeypatch):
    """So that the tests of the family are tests of every way that is registered."""
    taken = dispatch.PerPlatform.taken
    ways = {
        w.function for f in dispatch.PerPlatform.every for w in f.ways if w.platform == platform
    }
    assert ways
    seen = set()

    def recorded(self, where, *arguments):
        function = taken(self, where, *arguments)
        seen.add(function)
        return function

    monkeypatch.setattr(dispatch.PerPlatform, "taken", recorded)
    jax.clear_caches()
    with jxent.assume_platform(platform):
        # Into how large blocks a projection is cut shows at the size of a model only.
        head = losses.linear_sparse_softmax_cross_entropy
        arrays = shapes(Case("projection, softmax ids", *GEMMA))[:3]
        jax.eval_shape(jax.grad(head, 2), *arrays)
        jax.eval_shape(jax.grad(lambda *a: jnp.sum(head(*a, reduction="none")), 2), *arrays)
        jax.eval_shape(jax.grad(entropy, 2), *arrays)
        for narrow, case in itertools.product((0, 32), CASES):
            if ways <= seen:
                break
            if narrow != softmax.NARROW:
                jax.clear_caches()
                monkeypatch.setattr(softmax, "NARROW", narrow)
            f, moving = split(case, case.arrays(jnp.dtype("float32")))
            slope = jax.grad(scalar(case, f))
            # Some stand in what is of second order only.
            jax.eval_shape(lambda m, slope=slope: jax.jvp(slope, (m,), (m,)), moving)
    assert ways <= seen
    jax.clear_caches()  # of NARROW


def test_what_a_way_calls_is_decided_with_it():
    """One decision on a path, and no platform's program in another's."""

    def loss(y, x):
        return jxent.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)

    traced = jax.jit(loss).trace(jnp.zeros(3, jnp.int32), jnp.zeros((3, 5)))
    assert decisions(traced.jaxpr.jaxpr) == 1


@pytest.mark.usefixtures("narrow_rows")
@pytest.mark.parametrize(("examples", "many"), [(128, False), (4096, True)])
def test_only_many_narrow_rows_are_worth_a_condition(examples, many):
    def loss(z, x):
        return jxent.softmax_cross_entropy_with_logits(labels=z, logits=x)

    shape = jax.ShapeDtypeStruct((examples, 10), jnp.float32)
    text = jax.jit(loss).lower(shape, shape).compile().as_text()
    assert text is not None
    assert (" conditional(" in text) == many


def decisions(jaxpr) -> int:
    """How many decisions between platforms lie on a path, at most."""
    most = 0
    for eqn in jaxpr.eqns:
        inner = [
            decisions(getattr(sub, "jaxpr", sub))
            for value in eqn.params.values()
            for sub in (value if isinstance(value, tuple) else (value,))
            if hasattr(getattr(sub, "jaxpr", sub), "eqns")
        ]
        most = max([most, *(n + (eqn.params.get("branches_platforms") is not None) for n in inner)])
    return most


@as_on_others
@pytest.mark.usefixtures("_platform")
@pytest.mark.one_in(5)
def test_other_platforms_keep_the_digits():
    for errors in measure(jnp.float32, [jxent_peer]):
        # XLA:CPU reduces tuples one after the other; no chip does: test_one_pass.py.
        order = 8 if errors.kind.startswith("1000 classes") else 0
        assert errors.excess.max() <= BOUNDS[errors.loss, errors.quantity] + order, errors.row()
        assert errors.zeros == 0, errors.row()


def test_cpu_and_accelerators_run_different_programs():
    """Otherwise the tests above compare a thing with itself."""

    def loss(y, x):
        return jxent.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)

    traced = jax.jit(loss).trace(jnp.zeros(3, jnp.int32), jnp.zeros((3, 5)))
    texts = [traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu", "cuda")]
    assert ["stablehlo.gather" in text for text in texts] == [True, False, False]


@jax.jit
def by_ids(x, ids):
    """Losses, and the gradient of their sum."""
    value, pull = jax.vjp(
        lambda x: jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=x), x
    )
    return value, pull(jnp.ones_like(value))[0]


@jax.jit
def by_dense_labels(x, z):
    value, pull = jax.vjp(lambda x: jxent.softmax_cross_entropy_with_logits(labels=z, logits=x), x)
    return value, pull(jnp.ones_like(value))[0]


def rarely(values, often):
    """The parameters, of which those not in `often` are in the long lane."""
    return [pytest.param(v, marks=[] if v in often else [pytest.mark.long]) for v in values]


# On CPU the fast way is tried first. One example that it is not right for sends all of them the
# exact way.


@pytest.mark.parametrize("drift", [0, 300, -300, 1e30])
@pytest.mark.parametrize("classes", [7, 4096])
@pytest.mark.one_in(2)
def test_logits_that_drifted(drift, classes):
    rng = np.random.default_rng(0)
    ids = rng.integers(classes, size=5)
    x = rng.standard_normal((5, classes)).astype(np.float32) * np.float32(3) + np.float32(drift)
    truths = [reference.wide_softmax_of_class(y, row) for y, row in zip(ids, x, strict=True)]

    value, gradient = by_ids(x, ids)
    allowed = tolerance(jnp.float32, classes)
    np.testing.assert_allclose(value, np.float64([t[0] for t in truths]), rtol=allowed)
    slopes = np.float64([t[1] for t in truths])
    np.testing.assert_allclose(gradient, slopes, rtol=4 * allowed, atol=1e-37)


@pytest.mark.parametrize(
    "classes",
    rarely([*range(1, 20), 250, 255, 256, 257, 1000, 4097], (1, 2, 3, 4, 7, 8, 9, 17, 256, 4097)),
)
@pytest.mark.parametrize("examples", rarely([1, 8], [8]))
@pytest.mark.one_in(4)
def test_no_other_class_is_left_out(examples, classes):
    """Whatever XLA makes of so many: small programs are compiled to other loops than large ones."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, classes)).astype(np.float32)
    ids = rng.integers(classes, size=examples)
    truth = [reference.wide_softmax_of_class(y, row)[0] for y, row in zip(ids, x, strict=True)]
    got = jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=x)
    np.testing.assert_allclose(got, np.float64(truth), rtol=2e-6)


@pytest.mark.parametrize("chance", [1e-4, 0.49, 0.51, 1 - 1e-7])
@pytest.mark.parametrize("classes", rarely([639, 640, 1000, 4096, 50257, 32771], (639, 640, 32771)))
@pytest.mark.xdist_group("rows")
@pytest.mark.one_in(15)
def test_rows_that_are_cut_into_pieces(classes, chance):
    """The label is subtracted from the sum where none has half of the probability, else left out.

    One more row, which is decided, sends all others the second way.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, classes))
    ids = rng.integers(classes, size=9)
    ids[:2] = 0, classes - 1
    rows = np.arange(8)
    x[rows, ids[:8]] = -np.inf
    others = np.log(np.exp(x[:8]).sum(1))
    x[rows, ids[:8]] = others + np.log(chance / (1 - chance))
    x[8, ids[8]] = 30
    x = x.astype(np.float32)
    truths = [reference.wide_softmax_of_class(y, row) for y, row in zip(ids, x, strict=True)]
    value = np.array([t[0] for t in truths])
    slope = np.array([t[1][y] for t, y in zip(truths, ids, strict=True)])

    for examples in (8, 9):
        z = np.float32(ids[:examples, None] == np.arange(classes))
        for got, gradient in (
            by_ids(x[:examples], ids[:examples]),
            by_dense_labels(x[:examples], z),
        ):
            slopes = np.asarray(gradient)[np.arange(examples), ids[:examples]]
            assert np.all(reference.ulps(got, value[:examples], np.float32) <= 16)
            assert np.all(reference.ulps(slopes, slope[:examples], np.float32) <= 16)


WIDE = 1000  # cut into pieces
inf, nan = np.inf, np.nan
ROWS = [[1.0, 2.0, 3.0], [inf, 1.0, 2.0], [inf, inf, 0.0], [-inf, 1.0, 1.0], [nan, 0.0, 0.0],
        [-inf, -inf, -inf], [0.0, -inf, -inf], [3e38, -3e38, 0.0], [0.0, 40.0, 0.0]]  # fmt: skip
OPTIONS = {
    "plain": {}, "z_loss": {"z_loss": 0.1}, "smoothed": {"label_smoothing": 0.1},
}  # fmt: skip


@cache
def losses_of(kind, named):
    """Losses of one example, its label 0."""
    options = OPTIONS[named]
    if kind == "ids":

        def loss(x):
            return jxent.sparse_softmax_cross_entropy_with_logits(labels=0, logits=x, **options)
    else:

        def loss(x):
            z = jnp.zeros_like(x).at[0].set(1)
            return losses.softmax_cross_entropy(z, x, reduction="none", **options)

    return loss


each_option = pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(kind, named, marks=[pytest.mark.long] * (kind == "dense" and named != "plain"))
        for kind in ("ids", "dense")
        for named in OPTIONS
    ],
)


@cache
def value_and_slopes_of(kind, named):
    return jax.jit(jax.value_and_grad(losses_of(kind, named)))


@each_option
@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.xdist_group("masked")
@pytest.mark.one_in(40)
def test_masked_classes_change_nothing_in_wide_rows(row, kind, options):
    """Infinities, ties and NaN, where rows are cut as where they are not."""
    narrow = jnp.asarray(row, jnp.float32)
    wide = jnp.full(WIDE, -jnp.inf).at[:3].set(narrow)
    both = value_and_slopes_of(kind, options)
    (value, slopes), (value_of_narrow, slopes_of_narrow) = both(wide), both(narrow)
    np.testing.assert_allclose(value, value_of_narrow, rtol=1e-6)
    slopes = np.asarray(slopes)
    np.testing.assert_allclose(slopes[:3], slopes_of_narrow, rtol=1e-6, atol=1e-37)
    if not np.isnan(value_of_narrow):
        np.testing.assert_array_equal(slopes[3:], 0)


@each_option
@pytest.mark.xdist_group("masked")
@pytest.mark.one_in(7)
def test_vmap_over_wide_rows_is_a_loop(kind, options):
    x = 3 * jax.random.normal(jax.random.key(0), (4, WIDE))
    both = value_and_slopes_of(kind, options)
    looped = [both(row) for row in x]
    for k, got in enumerate(jax.jit(jax.vmap(both))(x)):
        np.testing.assert_allclose(got, jnp.stack([r[k] for r in looped]), rtol=1e-5, atol=1e-9)


def test_vmap_over_rows_that_no_length_divides():
    """The label in the first piece, in the last and shorter one, and in between; led by 0 to 40."""
    classes = 32771
    x = jax.random.normal(jax.random.key(1), (4, classes))
    ids = jnp.array([0, classes - 1, classes - 4, 20000])
    x = x.at[jnp.arange(4), ids].add(jnp.array([40.0, 20.0, 30.0, 0.0]))

    def loss(y, x):
        return jxent.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)

    both = jax.jit(jax.vmap(jax.value_and_grad(loss, 1)))(ids, x)
    for k, (y, row) in enumerate(zip(np.asarray(ids), np.asarray(x), strict=True)):
        value, slope, *_ = reference.wide_softmax_of_class(y, row)
        assert reference.ulps(np.asarray(both[0])[k], value, np.float32) <= 16
        assert reference.ulps(np.asarray(both[1])[k, y], slope[y], np.float32) <= 16


def projected(kernel):
    inputs = jax.random.normal(jax.random.key(3), (32, len(kernel)))
    return jxent.linear_sparse_softmax_cross_entropy(
        labels=jnp.arange(32) % 8, inputs=inputs, kernel=kernel
    )


def focused(y, x):
    return losses.sparse_softmax_cross_entropy(y, x, focusing=2.0, reduction="none")


def with_entropy(x):
    found = jxent.sparse_softmax_statistics_with_logits(labels=jnp.arange(32) % 8, logits=x)
    return found.log_prob + found.entropy


@pytest.mark.parametrize(
    ("loss", "rows"),
    [
        (
            lambda x: losses.sparse_softmax_cross_entropy(jnp.arange(32) % 8, x, reduction="none"),
            32,
        ),
        (lambda x: losses.softmax_cross_entropy(jnp.flip(x) ** 2, x, reduction="none"), 32),
        (lambda x: losses.softmax_kl_divergence(jnp.flip(x), x, reduction="none"), 32),
        (lambda x: focused(jnp.arange(32) % 8, x), 32),
        (with_entropy, 32),
        (projected, 5),
    ],
    ids=["ids", "dense", "KL", "focused ids", "statistics", "projection"],
)
@pytest.mark.one_in(8)
def test_second_order_along_many_directions(loss, rows):
    """`jax.hessian` of a batch: XLA:CPU has had a fusion that went wrong from 2^15 numbers on."""
    x = jax.random.normal(jax.random.key(0), (rows, 8))
    along = jax.random.normal(jax.random.key(1), (256 * 32 // rows // 8 * 8, rows, 8))
    slope = jax.grad(lambda x: jnp.sum(loss(x) * jnp.linspace(0.5, 2, 32)))
    products = jax.jit(jax.vmap(lambda t: jax.jvp(slope, (x,), (t,))[1]))
    few = [products(part) for part in jnp.split(along, len(along) // 8)]
    np.testing.assert_allclose(products(along), jnp.concatenate(few), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, WIDE), (3, 0, WIDE), (0, 32771), (0, 3)])
@pytest.mark.usefixtures("narrow_rows")
@pytest.mark.one_in(4)
def test_no_examples_of_rows_of_any_width(shape):
    x, y = jnp.zeros(shape), jnp.zeros(shape[:-1], jnp.int32)
    for options in ({}, {"label_smoothing": 0.1}):
        ids = jax.value_and_grad(losses.sparse_softmax_cross_entropy, 1)(y, x, **options)
        dense = jax.value_and_grad(losses.softmax_cross_entropy, 1)(x, x, **options)
        assert ids[0] == dense[0] == 0
        assert ids[1].shape == dense[1].shape == shape


def test_no_product_reads_the_inputs_across():
    """XLA:CPU takes twice as long for a product whose left operand is summed over its rows."""
    shapes = ((16, 8), (8, 640), (16,))
    dtypes = (jnp.float32, jnp.float32, jnp.int32)
    arguments = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes, strict=True)]

    def mean(inputs, kernel, labels):
        return losses.linear_sparse_softmax_cross_entropy(labels, inputs, kernel, block_size=8)

    def per_example(inputs, kernel, labels):
        return jxent.linear_sparse_softmax_cross_entropy(
            labels=labels, inputs=inputs, kernel=kernel, block_size=8
        ).sum()

    for loss in (mean, per_example):
        text = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile().as_text()
        assert text is not None
        products = [line for line in text.splitlines() if " dot(" in line]
        assert products
        assert not any("lhs_contracting_dims={0}" in line for line in products)


@pytest.mark.xdist_group("odd")
@pytest.mark.parametrize("odd", [200.0, -200.0, np.inf, -np.inf])
@pytest.mark.one_in(4)
def test_one_example_out_of_range_costs_the_others_no_digit(odd):
    for sample in softmax_samples(jnp.float32, rows=40):
        truths = [
            reference.wide_softmax_of_class(y, x)
            for y, x in zip(sample.labels, sample.logits, strict=True)
        ]
        value = np.array([t[0] for t in truths])
        strange = np.full((1, sample.logits.shape[1]), 0, np.float32)
        strange[0, 0] = odd
        x = jnp.asarray(np.concatenate([sample.logits, strange]))
        ids = np.append(sample.labels, 0)
        got, gradient = by_ids(x, ids)
        size = np.abs(np.log(np.maximum(np.float64(value), 1e-38)))
        assert np.all(reference.ulps(got[:-1], value, np.float32) <= 8 + size)
        own = (np.arange(len(value)), sample.labels)
        slope = np.array([t[1] for t in truths])[own]
        slopes = np.asarray(gradient)[:-1][own]
        assert np.all(reference.ulps(slopes, slope, np.float32) <= 8 + size)


def test_sums_of_sigmoid_losses_with_infinite_logits():
    z = jnp.array([[1.0, 0.0, 0.5], [0.3, 0.2, 1.0]])
    agree = jnp.array([[np.inf, -np.inf, 0.5], [3.0, -2.0, 80.0]])
    each = jxent.sigmoid_cross_entropy_with_logits(labels=z, logits=agree)
    for reduction in ("weighted_sum", "weighted_mean"):
        total = losses.sigmoid_cross_entropy(z, agree, reduction=reduction)
        wanted = each.sum() if reduction == "weighted_sum" else each.mean()
        np.testing.assert_allclose(total, wanted, rtol=1e-6)
    assert losses.sigmoid_cross_entropy(z, -agree) == np.inf
    assert np.isnan(losses.sigmoid_cross_entropy(z, agree.at[0, 0].set(np.nan)))


@pytest.mark.parametrize("count", [2, 5])  # of ids: compared, and scattered
@pytest.mark.parametrize(
    "options",
    [{}, {"pos_weight": 3.0}, {"pos_weight": 0.0}, {"label_smoothing": 1e-5, "pos_weight": 2.0},
     {"focusing": 0.7, "negative_focusing": 2.0}],
    ids=str,
)  # fmt: skip
@pytest.mark.one_in(8)
def test_losses_of_lists_are_those_of_dense_labels(options, count):
    """Finite rows, and one with infinite logits, which goes the exact way; ids out of range."""
    rng = np.random.default_rng(2)
    x = rng.uniform(-60, 60, (6, 70)).astype(np.float32)
    x[1, :3] = np.inf, -np.inf, np.inf
    ids = rng.integers(-1, 70, (6, count))
    ids[2] = -1
    ids[3] = 5  # once, however often
    ids[1, :2] = 0, 2  # agrees
    labels = (ids[..., None] == np.arange(70)).any(1).astype(np.float32)

    def of_lists(x, ids=ids):
        return losses.sparse_sigmoid_cross_entropy(ids, x, reduction="none", **options)

    def of_labels(x):
        smoothing = options.get("label_smoothing", 0)
        other = {k: v for k, v in options.items() if k != "label_smoothing"}
        with jax.enable_x64(True):  # 1 - s / 2 is no float32
            z = jnp.float64(labels) * (1 - smoothing) + smoothing / 2
            each = losses.sigmoid_cross_entropy(z, jnp.float64(x), reduction="none", **other)
            return each.sum(-1).astype(jnp.float32)

    value, slope = value_and_slope(of_lists, x)
    wanted, wanted_slope = value_and_slope(of_labels, x)
    np.testing.assert_allclose(value, wanted, rtol=3e-6)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-5, atol=1e-37)
    ids[4, 0] = 70
    bad = np.arange(6) == 4
    np.testing.assert_array_equal(np.isnan(of_lists(x, ids)), bad)


def value_and_slope(function, x):
    value, pull = jax.vjp(function, jnp.asarray(x))
    return value, pull(jnp.ones_like(value))[0]


@pytest.mark.usefixtures("narrow_rows")
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.one_in(3)
def test_every_mix_of_odd_logits_in_narrow_rows(classes):
    """As the plain spelling, which has a decision for each of them."""
    odd = [np.inf, -np.inf, np.nan, 3e38, -3e38, 0.0, 1.0, 1.0 + 1e-7, 30.0, 90.0, 200.0]
    x = np.stack(np.meshgrid(*[np.float32(odd)] * classes), -1).reshape(-1, classes)
    for y in range(classes):
        ids = np.full(len(x), y)

        def loss(x, ids=ids):
            return jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=x)

        with jxent.assume_platform(PLAIN):
            value, slope = jax.jit(partial(value_and_slope, loss))(x)
        got, got_slope = jax.jit(partial(value_and_slope, loss))(x)
        np.testing.assert_allclose(got, value, rtol=1e-6)
        np.testing.assert_allclose(got_slope, slope, rtol=1e-6, atol=1e-37)


@pytest.mark.usefixtures("narrow_rows")
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_who_leads_in_narrow_rows(classes):
    """One comparison finds whom two find."""
    odd = [np.inf, -np.inf, np.nan, 3e38, -3e38, 0.0, 1.0, 1.0 + 1e-7, 90.0]
    x = np.stack(np.meshgrid(*[np.float32(odd)] * classes), -1).reshape(-1, classes)
    pair = logsumexp.defined(*logsumexp.pair_of_rows.plain(Classes(-1), jnp.asarray(x)))
    way = logsumexp.leads.taken("cpu", x, *pair)
    assert way is not logsumexp.leads.plain
    found = jax.jit(way)(x, *pair)
    np.testing.assert_array_equal(found, logsumexp.leads.plain(x, *pair))
    assert np.any(found)


@pytest.mark.usefixtures("narrow_rows")
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.one_in(2)
def test_odd_logits_of_dense_labels_in_narrow_rows(classes):
    """Few rows are computed by the plain spelling, many by CPU's."""
    odd = [np.inf, -np.inf, np.nan, 3e38, 0.0, 1.0, 30.0, 200.0]
    x = np.stack(np.meshgrid(*[np.float32(odd)] * classes), -1).reshape(-1, classes)
    z = np.random.default_rng(0).dirichlet(np.ones(classes), len(x)).astype(np.float32)

    def loss(x, z):
        return jxent.softmax_cross_entropy_with_logits(labels=z, logits=x)

    copies = -(-softmax.MANY // x.size)
    both = jax.jit(lambda x, z: value_and_slope(partial(loss, z=z), x))
    few, many = both(x, z), both(np.tile(x, (copies, 1)), np.tile(z, (copies, 1)))
    for a, b in zip(few, many, strict=True):
        np.testing.assert_allclose(a, b[: len(x)], rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("pos_weight", [1.0, np.float32(3)])
def test_sums_of_sigmoid_losses_of_any_label(pos_weight):
    """Labels outside [0, 1] follow the formula too, in the form of few operations."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((6, 7)).astype(np.float32) * 20
    z = rng.uniform(-1, 2, (6, 7)).astype(np.float32)
    value, slope, _, _ = reference.wide_sigmoid(z, x, pos_weight)
    got, gradient = jax.value_and_grad(losses.sigmoid_cross_entropy, 1)(
        z, x, reduction="weighted_sum", pos_weight=pos_weight
    )
    np.testing.assert_allclose(got, np.float64(value.sum()), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.float64(slope), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("member", ["sparse softmax", "sigmoid"])
def test_vmap_decides_once_for_all_examples(member):
    """With one decision an example, both ways would be computed for all of them."""
    decisions = 1
    if member == "sigmoid":
        arguments = (jnp.zeros((4, 9)), jnp.zeros((4, 9)))

        def loss(z, x):
            return losses.sigmoid_cross_entropy(z, x)
    else:
        arguments = (jnp.zeros(4, jnp.int32), jnp.zeros((4, 9)))
        decisions += 2  # the exact way has two of its own

        def loss(y, x):
            return jxent.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)

    text = jax.jit(jax.vmap(loss)).lower(*arguments).compile().as_text()
    assert text is not None
    assert text.count(" conditional(") == decisions


# A training step returns its loss, and writes the new logits over the old ones.


def ids_loss(x, labels, **options):
    return losses.sparse_softmax_cross_entropy(labels["ids"], x, **options)


def dense_loss(x, labels, **options):
    return losses.softmax_cross_entropy(labels["dense"], x, **options)


def sigmoid_loss(x, labels, **options):
    return losses.sigmoid_cross_entropy(labels["dense"], x, **options)


def mean_of_sigmoids(x, labels):
    return jxent.sigmoid_cross_entropy_with_logits(labels=labels["dense"], logits=x).mean()


def mean_of_weighted(x, labels):
    return jxent.weighted_cross_entropy_with_logits(
        labels=labels["dense"], logits=x, pos_weight=labels["q"]
    ).mean()


def mean_of_dense(x, labels):
    return jxent.softmax_cross_entropy_with_logits(labels=labels["dense"], logits=x).mean()


def mean_of_ids(x, labels):
    return jxent.sparse_softmax_cross_entropy_with_logits(labels=labels["ids"], logits=x).mean()


def weighted(loss, which, **options):
    def of(x, labels):
        return loss(x, labels, weights=labels[which], **options)

    return of


SMOOTHED = {"label_smoothing": 0.1}
IN_PLACE = {
    "sigmoid": sigmoid_loss,
    "sigmoid, smoothed": partial(sigmoid_loss, **SMOOTHED),
    "sigmoid, capped": partial(sigmoid_loss, logit_softcap=5.0),
    "sigmoid, pos_weight": lambda x, labels: sigmoid_loss(x, labels, pos_weight=labels["q"]),
    "sigmoid, a weight an example": weighted(sigmoid_loss, "column"),
    "sigmoid, a weight an example, smoothed": weighted(sigmoid_loss, "column", **SMOOTHED),
    "sigmoid, a weight a class": weighted(sigmoid_loss, "row"),
    "sigmoid, a weight an element": weighted(sigmoid_loss, "all"),
    "mean of sigmoids": mean_of_sigmoids,
    "mean of weighted": mean_of_weighted,
    "mean of dense": mean_of_dense,
    "mean of ids": mean_of_ids,
} | {
    f"{name}, {what}": make
    for name, loss in {"dense": dense_loss, "ids": ids_loss}.items()
    for what, make in {
        "plain": loss,
        "weighted": weighted(loss, "each"),
        "smoothed": partial(loss, **SMOOTHED),
        "weighted and smoothed": weighted(loss, "each", **SMOOTHED),
        "z_loss": partial(loss, z_loss=0.1),
    }.items()
}


@pytest.mark.parametrize("shape", rarely([(256, 8192), (4096, 500), (333, 5003)], [(256, 8192)]))
@pytest.mark.parametrize("loss", IN_PLACE)
@pytest.mark.one_in(15)
@pytest.mark.since("0.10.2")
def test_a_step_that_returns_its_loss_copies_and_stores_nothing(loss, shape):
    """Neither the old logits nor what loss and gradient share: see `zero_known_from`."""
    temporaries, copies = in_place(IN_PLACE[loss], shape)
    # A weight an element: which are dropped, one byte each.
    assert temporaries < (0.35 if loss.endswith("element") else 0.3) * size_of(shape)
    assert not copies


LISTS = {
    "plain": {}, "smoothed": SMOOTHED, "pos_weight": {"pos_weight": 3.0},
    "capped": {"logit_softcap": 5.0}, "focused": {"focusing": 2.0, "negative_focusing": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("options", LISTS)
@pytest.mark.one_in(6)
@pytest.mark.since("0.10.2")
def test_a_step_of_lists_stores_bytes_only(options, count):
    """Which classes are listed, as booleans and as integers."""
    shape = (256, 8192)

    def loss(x, labels):
        return losses.sparse_sigmoid_cross_entropy(
            jnp.tile(labels["ids"][:, None], count), x, **LISTS[options]
        )

    temporaries, copies = in_place(loss, shape)
    assert temporaries < 0.55 * size_of(shape)
    assert not copies


@pytest.mark.parametrize("shape", [(256, 8192), (4096, 500), (64, 40009)])
@pytest.mark.parametrize(
    "loss",
    [
        "ids",
        "dense",
        "ids, smoothed",
        "statistics",
        "sigmoid",
        "sigmoid, pos_weight",
    ],
)
@pytest.mark.one_in(12)
@pytest.mark.since("0.10.2")
def test_narrow_floats_are_not_stored_as_wide_ones(loss, shape):
    """What several passes read is read in its own dtype."""

    def statistics(x, labels):
        found = jxent.sparse_softmax_statistics_with_logits(labels=labels["ids"], logits=x)
        return (found.entropy - found.log_prob).mean()

    function = {"statistics": statistics}.get(
        loss, IN_PLACE.get(loss, IN_PLACE.get(f"{loss}, plain"))
    )
    temporaries, copies = in_place(function, shape, jnp.bfloat16)
    assert temporaries < 0.6 * size_of(shape) / 2
    assert not copies


def test_the_dependency_is_what_does_it(monkeypatch):
    """Without it the test above would fail: optax's step, and ours."""
    shape = (256, 8192)

    def theirs(x, labels):
        return optax.softmax_cross_entropy_with_integer_labels(x, labels["ids"]).mean()

    assert in_place(theirs, shape)[0] >= size_of(shape)
    jax.clear_caches()
    monkeypatch.setattr(base, "zero_known_from", jnp.zeros_like)
    temporaries, copies = in_place(sigmoid_loss, shape)
    assert temporaries >= size_of(shape)
    assert copies
    jax.clear_caches()


def size_of(shape):
    return 4 * math.prod(shape)


def in_place(loss, shape, dtype=jnp.float32):
    """Bytes of temporaries of a step, and its copies of the logits."""
    examples, classes = shape
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    logits = jax.ShapeDtypeStruct(shape, dtype)
    labels = {
        "ids": jax.ShapeDtypeStruct((examples,), jnp.int32),
        "dense": f32(shape), "q": f32((classes,)), "each": f32((examples,)),
        "column": f32((examples, 1)), "row": f32((1, classes)), "all": f32(shape),
    }  # fmt: skip

    def step(x, labels):
        value, gradient = jax.value_and_grad(loss)(x, labels)
        return value, x - 0.1 * gradient

    labels["dense"] = logits
    compiled = jax.jit(step, donate_argnums=0).lower(logits, labels).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    copies = re.findall(rf"= b?f\d+\[{examples},{classes}\]\S* copy\(", compiled.as_text())
    return analysis.temp_size_in_bytes, copies


@pytest.mark.parametrize("odd", [0.0, -0.0, np.inf, -np.inf, np.nan])
def test_the_zero_of_the_dependency(odd):
    """Added to a logit it changes nothing, whatever the loss is."""
    zero = jax.jit(hints.ordering_zero)(jnp.float32(odd))
    logits = np.float32([1e-30, -80, np.inf])
    np.testing.assert_array_equal(logits + np.asarray(zero), logits)
    assert zero == (np.finfo(np.float32).tiny if odd == -np.inf else 0)


@pytest.mark.parametrize(("classes", "count"), [(2048, 13), (2048, 200), (2047, 13), (2048, 12)])
@pytest.mark.usefixtures("usual_limits")
@pytest.mark.one_in(2)
def test_long_lists_on_a_tpu_name_the_same_classes(classes, count):
    """Padding, twice, the ends of a tile, out of range."""
    rng = np.random.default_rng(0)
    ids = rng.integers(-3, classes, (6, count))
    ids[0, :8] = [0, 127, 128, 1023, 1024, classes - 1, classes - 1, -1]
    ids[1] = -1
    ids[2, 3] = classes
    logits = rng.standard_normal((6, classes)).astype(np.float32)

    def found(x, ids):
        loss = jxent.sparse_sigmoid_cross_entropy_with_logits
        value, pull = jax.vjp(lambda x: loss(labels=ids, logits=x), x)
        return value, pull(jnp.ones_like(value))[0]

    by_platform = []
    for platform in ("tpu", PLAIN):
        with jxent.assume_platform(platform):
            by_platform.append(jax.tree.map(np.asarray, jax.jit(found)(logits, ids)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), *by_platform)
    np.testing.assert_array_equal(np.isnan(by_platform[0][0]), [0, 0, 1, 0, 0, 0])
