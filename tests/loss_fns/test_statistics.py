"""What a softmax predicts: digits, edges, what an unused field costs, memory, meshes."""

import itertools
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jxent
from tests.compile_options import quick
from tests.projection.test_linear import products
from tests.reference import ulps, wide_entropy

inf, nan = np.inf, np.nan
WITH_LOGITS = jxent.sparse_softmax_statistics_with_logits
LINEAR = jxent.linear_sparse_softmax_statistics
FIELDS = ("log_prob", "entropy", "log_normalizer")
IDENTITY = np.eye(5, dtype=np.float32)

# Digits, against long double.


def confident_rows(spread, rows=64, classes=33, seed=0):
    """One class ahead of others by 0 to `spread`."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, classes))
    x[np.arange(rows), rng.integers(classes, size=rows)] += np.linspace(0, spread, rows)
    return np.asarray(x, np.float32), rng.standard_normal((rows, classes)).astype(np.float32)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "reference"])
@pytest.mark.parametrize("spread", [5.0, 80.0])
@pytest.mark.one_in(9)
def test_the_entropy_keeps_its_digits(platform, spread):
    """Down to 1e-20; from log-softmax none are left where a class leads by 20."""
    x, t = confident_rows(spread)

    def entropy(x):
        return WITH_LOGITS(labels=np.zeros(len(x), int), logits=x).entropy

    def program(x, t):
        slope = jax.grad(lambda x: entropy(x).sum())
        return entropy(x), *jax.jvp(slope, (x,), (t,))

    with jxent.assume_platform(platform):
        value, slope, curve = jax.jit(program)(x, t)
    right = wide_entropy(x, t)
    # A difference of logits is rounded: an error of |gap| units in each term.
    assert np.max(ulps(value, right[0], np.float32)) <= 8 + spread / 2
    for got, wanted, size in ((slope, right[1], right[1]), (curve, right[2], right[3])):
        largest = np.abs(size).max(-1, keepdims=True)
        assert np.max(ulps(got, wanted, np.float32, largest)) <= 8 + spread / 2
    lost = -(jax.nn.softmax(x) * jax.nn.log_softmax(x)).sum(-1)
    assert np.max(ulps(lost, right[0], np.float32)) > 1e5 or spread < 20


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(2)
def test_low_precision_is_computed_and_returned_in_float32(dtype):
    x = jnp.asarray(confident_rows(8.0)[0], dtype)
    labels = np.arange(len(x)) % 33
    found = WITH_LOGITS(labels=labels, logits=x)
    wide = WITH_LOGITS(labels=labels, logits=x.astype(jnp.float32))
    for got, wanted in zip(found, wide, strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    logits = jax.grad(lambda x: WITH_LOGITS(labels=labels, logits=x).entropy.sum())(x)
    assert logits.dtype == dtype


def test_log_prob_is_minus_the_loss():
    x, _ = confident_rows(60.0)
    labels = np.arange(len(x)) % 33
    found = WITH_LOGITS(labels=labels, logits=x)
    loss = jxent.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=x)
    np.testing.assert_allclose(found.log_prob, -loss, rtol=2e-6)


# Edges.


def found_on(platform, x, labels, form, **options):
    """The statistics, and the gradient of each field's sum."""

    def fields(x):
        if form == "linear":
            return LINEAR(
                labels=labels, inputs=x, kernel=jnp.eye(x.shape[1]), block_size=2, **options
            )
        return WITH_LOGITS(labels=labels, logits=x, **options)

    def gradients(x):
        return [jax.grad(lambda x, k=k: jnp.sum(fields(x)[k]))(x) for k in range(3)]

    with jxent.assume_platform(platform):
        result = quick(lambda x: (fields(x), gradients(x)))(jnp.asarray(x, jnp.float32))
    return jax.tree.map(np.asarray, result)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "reference"])
@pytest.mark.one_in(2)
def test_infinite_and_broken_rows(platform):
    """Each by itself; no gradient is NaN where the values are not."""
    x = [
        [0, -inf, -inf], [0, -inf, 0], [inf, 0, inf], [-inf, -inf, -inf], [0, nan, 0], [2, 2, 1],
        [0, 1, -inf],
    ]  # fmt: skip
    labels = np.array([0, 1, 2, 0, 0, 1, 3])
    (log_prob, entropy, log_normalizer, prediction), slopes = found_on(platform, x, labels, "")
    log2, e = np.log(2), np.exp(-1)
    uneven = np.log1p(e) + e / (1 + e)
    ties = np.log(2 + e) + e / (2 + e)
    np.testing.assert_allclose(log_prob, [0, -inf, -log2, nan, nan, -np.log(2 + e), nan], rtol=1e-6)
    np.testing.assert_allclose(entropy, [0, log2, log2, nan, nan, ties, uneven], rtol=1e-6)
    normalizers = [0, log2, inf, nan, nan, 2 + np.log(2 + e), 1 + np.log1p(e)]
    np.testing.assert_allclose(log_normalizer, normalizers, rtol=1e-6)
    np.testing.assert_array_equal(prediction, [0, 0, 0, -1, -1, 0, 1])
    assert prediction.dtype == np.int32
    for slope in slopes:
        assert np.isnan(slope[3:5]).all()
        assert np.isfinite(slope[[0, 1, 2, 5]]).all()
    # An id out of range is of the log-probability alone.
    assert np.isnan(slopes[0][6]).all()
    assert np.isfinite(slopes[1][6]).all()
    assert np.isfinite(slopes[2][6]).all()


@pytest.mark.parametrize("wrong", [-1, 5, 2**31, 2**32 + 1])
def test_an_id_out_of_range(wrong):
    for found in (
        WITH_LOGITS(labels=np.array([wrong, 1]), logits=IDENTITY[:2]),
        LINEAR(labels=np.array([wrong, 1]), inputs=IDENTITY[:2], kernel=IDENTITY),
    ):
        np.testing.assert_array_equal(np.isnan(found.log_prob), [True, False])
        assert np.isfinite(found.entropy).all()
        np.testing.assert_array_equal(found.prediction, [0, 1])


@pytest.mark.parametrize("form", ["", "linear"])
def test_no_examples_and_one_class(form):
    """Nothing is NaN: of one class the entropy is 0, and so is the logarithm of its probability."""
    for examples, classes in ((0, 3), (2, 1)):
        x = np.arange(examples * classes, dtype=np.float32).reshape(examples, classes)
        (log_prob, entropy, log_normalizer, prediction), slopes = found_on(
            "cpu", x, np.zeros(examples, int), form
        )
        for field in (log_prob, entropy, prediction):
            np.testing.assert_array_equal(field, np.zeros(examples))
        np.testing.assert_array_equal(log_normalizer, x.sum(-1) if classes == 1 else [])
        np.testing.assert_array_equal(slopes[0], 0 * x)
        np.testing.assert_array_equal(slopes[1], 0 * x)


def test_the_first_of_equals_is_the_prediction():
    """bfloat16 logits tie often; on long rows it is found in pieces."""
    x = jnp.asarray(np.random.default_rng(0).integers(0, 4, (5, 40_000)), jnp.bfloat16)
    labels = np.zeros(5, int)
    wanted = np.argmax(np.asarray(x, np.float32), -1)
    for platform in ("cpu", "tpu", "reference"):
        with jxent.assume_platform(platform):
            np.testing.assert_array_equal(WITH_LOGITS(labels=labels, logits=x).prediction, wanted)
    turned = jxent.sparse_softmax_statistics_with_logits(labels=labels, logits=x.T, axis=0)
    np.testing.assert_array_equal(turned.prediction, wanted)


def test_places_that_fill_up_a_block_are_nobodys():
    """The kernel rules a class out: 0 times -inf is NaN in a place that is filled up."""
    kernel = jnp.array([[1.0, -inf, 0.5], [1.0, -inf, 0.25]])
    inputs = jnp.array([[1.0, 2.0], [0.5, 1.0], [2.0, 1.0]])

    def total(inputs, kernel, block_size):
        found = LINEAR(labels=[0, 2, 0], inputs=inputs, kernel=kernel, block_size=block_size)
        return jnp.sum(found.entropy + found.log_prob)

    @partial(quick, static_argnums=2)
    def program(inputs, kernel, block_size):
        f = partial(total, block_size=block_size)
        gradient = jax.grad(f, (0, 1))
        line = (jnp.ones_like(inputs), jnp.where(jnp.isinf(kernel), 0, 1.0))
        return gradient(inputs, kernel), jax.vjp(gradient, inputs, kernel)[1](line)

    whole, ragged = (program(inputs, kernel, n) for n in (3, 2))
    # The inputs' gradient multiplies the kernel's -inf by a slope of 0 in any case.
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(ragged), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    assert np.isfinite(ragged[0][1]).all()


# Temperature.


@pytest.mark.parametrize("form", ["", "linear"])
@pytest.mark.one_in(2)
def test_a_temperature_may_be_traced_and_differentiated(form):
    """A constant one gives the same, whose row maximum is found again among the quotients."""
    x, _ = confident_rows(20.0, rows=5, classes=5)
    labels = np.arange(5)

    def entropy(temperature):
        if form:
            found = LINEAR(labels=labels, inputs=x, kernel=IDENTITY, temperature=temperature)
        else:
            found = WITH_LOGITS(labels=labels, logits=x, temperature=temperature)
        return found.entropy

    traced, slope = jax.jvp(entropy, (jnp.float32(3.7),), (jnp.float32(1),))
    np.testing.assert_allclose(entropy(3.7), traced, rtol=3e-6)
    scaled = np.asarray(x, np.float64) / 3.7
    right = wide_entropy(scaled, 0 * scaled)
    np.testing.assert_allclose(traced, right[0].astype(float), rtol=2e-5)
    by_temperature = (right[1] * -scaled / 3.7).sum(-1).astype(float)
    np.testing.assert_allclose(slope, by_temperature, rtol=2e-5)
    for wrong in (0.0, -1.0, nan):
        assert np.isnan(entropy(jnp.float32(wrong))).all()


@pytest.mark.long
def test_a_finite_mask_may_overflow_at_a_low_temperature():
    """As -inf does: no derivative is NaN."""
    lowest = float(np.finfo(np.float32).min)

    def log_prob(x, temperature):
        return WITH_LOGITS(labels=0, logits=x, temperature=temperature).log_prob

    for mask in (lowest, -inf):
        x = jnp.array([1.0, 2.0, mask])
        np.testing.assert_allclose(jax.grad(log_prob, 1)(x, 0.5), 3.5231879, rtol=1e-6)
        hessian = jax.hessian(log_prob)(x, 0.5)
        np.testing.assert_allclose(hessian[0, 0], -0.41997434, rtol=1e-6)
        assert np.isfinite(hessian).all()


def nested_of(x, warmth, name, nested):
    """A derivative to the temperature of one field, by this order of the two modes."""

    def field(warmth):
        return getattr(WITH_LOGITS(labels=0, logits=x, temperature=warmth), name)

    def along(f):
        return lambda warmth: jax.jvp(f, (warmth,), (jnp.ones_like(warmth),))[1]

    modes = {"r": jax.grad, "f": along}
    for mode in reversed(nested):
        field = modes[mode](field)
    return field(jnp.float32(warmth))


ORDERS = ("rr", "rf", "fr", "ff")
# 1.745e12 is where a distance counts as a mask's, at a temperature of 1: both sides of it.
MASKS = (-1e9, -1.74e12, -1.75e12, -1e30, -1e38, np.finfo(np.float32).min, -inf)


@pytest.mark.one_in(224)
@pytest.mark.parametrize("nested", ["r", "f", *ORDERS, "fff", "rff", "ffr", "rrr"])
@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("warmth", [0.5, 1.0, 2.0])
def test_derivatives_to_a_temperature_beside_a_masked_class(masked, nested, warmth):
    """However it is ruled out: its tangents overflow where its probability is 0."""
    x = jnp.array([0.0, 1.0, masked])
    for name in FIELDS:
        wanted = nested_of(x[:2], warmth, name, "f" * len(nested))
        np.testing.assert_allclose(nested_of(x, warmth, name, nested), wanted, rtol=2e-5)


@pytest.mark.parametrize("masked", [-1e38, np.finfo(np.float32).min, -inf])
@pytest.mark.long
def test_a_product_with_the_hessian_of_a_masked_class(masked):
    x, t = jnp.array([0.0, 1.0, masked]), jnp.array([4.0, 2.0, 4.0])

    def entropy(x):
        return WITH_LOGITS(labels=0, logits=x).entropy

    forward = jax.jvp(jax.grad(entropy), (x,), (t,))[1]
    backward = jax.grad(lambda x: jnp.vdot(jax.grad(entropy)(x), t))(x)
    alone = jax.jvp(jax.grad(entropy), (x[:2],), (t[:2],))[1]
    for found in (forward, backward):
        np.testing.assert_allclose(found, [*alone, 0.0], rtol=1e-5)


# With T = 2 the division is exact; a constant moves the normaliser, and nothing else.
@pytest.mark.parametrize("nested", ORDERS)
@pytest.mark.parametrize("shift", [0.0, 1024.0, 131072.0])
@pytest.mark.long
def test_a_constant_costs_no_digits_of_the_derivatives_to_a_temperature(shift, nested):
    x = jnp.array([0.0, 1.0, -1.0])
    for name in FIELDS:
        right = nested_of(x, 2.0, name, "ff")
        if name == "log_normalizer":
            right += 2 * shift / 2.0**3
        np.testing.assert_allclose(nested_of(x + shift, 2.0, name, nested), right, rtol=1e-5)


def test_wrong_temperatures():
    f = partial(WITH_LOGITS, labels=[0], logits=IDENTITY[:1])
    for wrong in (0, -1.0, inf, nan):
        with pytest.raises(ValueError, match=r"temperature must be in \(0, inf\), got"):
            f(temperature=wrong)
    with pytest.raises(ValueError, match="temperature must be one positive number, got shape"):
        f(temperature=np.ones(3))
    strange: tuple[Any, ...] = ("1", None, True, 1j, np.array(1j), np.array(True))
    for value in strange:
        with pytest.raises((TypeError, ValueError), match="temperature must be"):
            f(temperature=value)


# What a field costs.


def operations(function, *arguments):
    """The exponentials and logarithms of a compiled program's text, fused computations too."""
    text = jax.jit(function).lower(*arguments).compile().as_text() or ""
    return len(re.findall(r"= \S+ (?:exponential|log-plus-one|log|tanh)\(", text))


def test_a_field_that_is_not_used_costs_nothing():
    x, labels = jnp.ones((8, 64)), np.zeros(8, int)

    def field(name, x):
        return jnp.sum(getattr(WITH_LOGITS(labels=labels, logits=x), name))

    def every(x):
        return sum(field(name, x) for name in FIELDS)

    for wrap in (lambda f: f, jax.grad):
        alone = [operations(wrap(partial(field, name)), x) for name in FIELDS]
        assert max(alone) <= operations(wrap(every), x)
        assert alone[2] < operations(wrap(every), x)


def test_products():
    """All fields and both gradients take the four products of one loss an example, no more."""
    labels, x, kernel = np.zeros(7, int), jnp.ones((7, 3)), jnp.ones((3, 5))

    def total(names, x, kernel):
        found = LINEAR(labels=labels, inputs=x, kernel=kernel)
        return sum(jnp.sum(getattr(found, name)) for name in names)

    for names in (FIELDS, ("entropy",), ("log_prob", "log_normalizer")):
        f = partial(total, names)
        assert len(products(f, x, kernel)) == 1
        assert len(products(jax.value_and_grad(f, (0, 1)), x, kernel)) == 4
        assert len(products(jax.grad(f, 0), x, kernel)) == 3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(2)
def test_no_product_mixes_dtypes(dtype):
    labels, x, kernel = np.zeros(7, int), jnp.ones((7, 3), dtype), jnp.ones((3, 5), dtype)

    def total(x, kernel, **sizes):
        return jnp.sum(LINEAR(labels=labels, inputs=x, kernel=kernel, **sizes).entropy)

    for kernel_ in (kernel, kernel.astype(jnp.float32)):
        for sizes in ({}, {"class_block_size": 2}):
            f = partial(total, **sizes)
            found = products(jax.value_and_grad(f, (0, 1)), x, kernel_)
            assert all(a == b for a, b in found), found


@pytest.mark.parametrize("shape", [(512, 32768), (2048, 1000)], ids=str)
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.one_in(4)
@pytest.mark.optimized
@pytest.mark.since("0.10.2")
def test_values_store_no_array_of_the_logits_size(shape, name):
    logits = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)

    def value(logits, labels):
        found = WITH_LOGITS(labels=labels, logits=logits)
        return getattr(found, name), found.prediction

    analysis = jax.jit(value).lower(logits, labels).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes <= 0.3 * 4 * shape[0] * shape[1]


@pytest.mark.optimized
def test_gradients_of_a_projection_take_a_sixth_of_stored_logits():
    examples, features, classes = 4096, 256, 65536
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    labels = jax.ShapeDtypeStruct((examples,), jnp.int32)

    def total(inputs, kernel, labels):
        found = LINEAR(labels=labels, inputs=inputs, kernel=kernel)
        return jnp.sum(found.log_prob + 0.01 * found.entropy), found.prediction

    program = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    lowered = program.lower(f32((examples, features)), f32((features, classes)), labels)
    analysis = lowered.compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes <= 2 * 4 * examples * classes / 6


# Meshes.


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
@pytest.mark.parametrize(
    ("form", "kind"),
    [
        *itertools.product(("", "linear", "by classes"), ("shard_map", "automatic")),
        *itertools.product(("", "linear"), ("explicit",)),  # by classes it is refused
    ],
)
@pytest.mark.one_in(14)
def test_on_a_mesh(form, kind):
    """Classes split over one axis, examples over the other: the same numbers as on one device."""
    rng = np.random.default_rng(0)
    labels = rng.integers(12, size=8)
    shapes = [(8, 3), (3, 12)] if form else [(8, 12)]
    arrays = [rng.integers(-3, 4, shape).astype(np.float32) / 2 for shape in shapes]
    operands = (*arrays, np.float32(1.5))
    names = (*(("inputs", "kernel") if form else ("logits",)), "temperature")
    specs = (P("data", None), P(None, "model"), P()) if form else (P("data", "model"), P())
    blocks = {"linear": {"block_size": 2}, "by classes": {"class_block_size": 8}}
    function = partial(LINEAR, **blocks[form]) if form else WITH_LOGITS

    def program(labels, operands, across=lambda x: x, **options):
        def total(operands):
            found = function(labels=labels, **dict(zip(names, operands, strict=True)), **options)
            sums = found.log_prob + 2 * found.entropy + 3 * found.log_normalizer
            return across(jnp.sum(sums)), found

        gradient, found = jax.grad(total, has_aux=True)(operands)
        slope = jax.grad(lambda operands: total(operands)[0])
        return gradient, jax.jvp(slope, (operands,), (operands,))[1], found

    wanted = program(labels, operands)
    explicit = kind == "explicit"
    kinds = (AxisType.Explicit if explicit else AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=kinds)
    if kind == "shard_map":
        split = jax.shard_map(
            partial(program, across=lambda x: jax.lax.psum(x, "data"), axis_name="model"),
            mesh=mesh, in_specs=(P("data"), specs), out_specs=(specs, specs, P("data")),
        )  # fmt: skip
        got = jax.jit(split)(labels, operands)
    else:

        def put(x, spec):
            return jax.device_put(x, NamedSharding(mesh, spec))

        placed = put(labels, P("data")), tuple(map(put, operands, specs))
        with jax.set_mesh(mesh):
            got = jax.jit(program)(*placed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=5e-6, atol=5e-6), got, wanted
    )
