"""Distillation: digits, edges, memory, products, meshes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jxent
from jxent import losses
from tests.compile_options import quick
from tests.projection.test_linear import products
from tests.reference import WIDE, ulps, wide_divergence

inf, nan = np.inf, np.nan
KL = jxent.softmax_kl_divergence_with_logits

# Digits, against long double.


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("lead", [0, 20, 60])
@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.one_in(12)
def test_a_student_that_agrees_keeps_its_digits(platform, lead, classes):
    """From apart by 1e-5, where the divergence is 1e-10, to apart by 10."""
    rng = np.random.default_rng(0)
    temperature = np.float32(1.5)

    def program(teacher, student, temperature):
        def each(student):
            return KL(teacher_logits=teacher, logits=student, temperature=temperature)

        return each(student), jax.grad(lambda x: each(x).sum())(student)

    program = jax.jit(program)
    for apart in (1e-5, 1e-3, 0.1, 1.0, 10.0):
        teacher = rng.standard_normal((32, classes)) * 2
        teacher[:, 0] += lead
        student = np.asarray(teacher + apart * rng.standard_normal((32, classes)), np.float32)
        teacher = np.asarray(teacher, np.float32)
        with jxent.assume_platform(platform):
            value, slope = program(teacher, student, temperature)
        right, of_student, _ = wide_divergence(teacher, student, temperature)
        largest = np.abs(of_student).max(-1, keepdims=True)
        # A gap of `lead` is rounded, and both rows are: so many units in an exponential.
        allowed = 16 + lead
        assert np.max(ulps(value, right, np.float32)) <= allowed
        assert np.max(ulps(slope, of_student, np.float32, largest)) <= allowed
        log_t, log_s = (jax.nn.log_softmax(x / temperature) for x in (teacher, student))
        plain = (np.exp(log_t) * (log_t - log_s)).sum(-1)
        assert np.max(ulps(plain, right, np.float32)) > 1e6 or apart > 1e-3


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.long
def test_classes_that_the_teacher_hardly_has(temperature):
    """Whose odds are flushed to 0, or nearly so, and to which the student gives some."""
    scale = 1 if temperature is None else temperature
    rows = []
    for below in (60.0, 80.0, 86.0, 87.2, 87.5, 90.0, 103.0):
        for up in (0.0, 40.0, 70.0, 83.0, 85.0, 88.0, 95.0):
            teacher = np.array([0.3, -0.2, 0.0, -below, -below])
            rows.append((teacher, teacher + np.array([1e-6, -1e-6, 0, up, up - 3])))
    teacher, student = np.asarray(scale * np.array(rows), np.float32).swapaxes(0, 1)
    loss = partial(KL, temperature=1.0 if temperature is None else temperature)
    right, of_student, _ = wide_divergence(teacher, student, WIDE(scale))
    largest = np.abs(of_student).max(-1, keepdims=True)
    for chosen in (slice(None), *np.arange(len(rows))[:, None]):  # together and each alone
        of_teacher = partial(loss, teacher_logits=teacher[chosen])
        value, pull = jax.vjp(lambda x, f=of_teacher: f(logits=x), student[chosen])
        (slope,) = pull(jnp.ones_like(value))
        assert np.max(ulps(value, right[chosen], np.float32)) <= 128
        assert np.max(ulps(slope, of_student[chosen], np.float32, largest[chosen])) <= 128


@pytest.mark.optimized
@pytest.mark.since("0.10.2")
def test_a_step_on_logits_stores_nothing():
    """On CPU, where a select in a sum would be stored."""
    shape = (256, 8192)

    def step(x, teacher):
        value, slope = jax.value_and_grad(losses.softmax_kl_divergence, 1)(teacher, x)
        return value, x - 0.1 * slope

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    analysis = jax.jit(step, donate_argnums=0).lower(x, x).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 0.3 * 4 * shape[0] * shape[1]


@pytest.mark.parametrize("shift", [100.0, 1e4, 1e6])
@pytest.mark.one_in(3)
def test_a_constant_between_the_two_costs_no_digits(shift):
    """Their difference is rounded at its size, and what that loses is added back."""
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((50, 7)).astype(np.float32)
    student = (rng.standard_normal((50, 7)) + shift).astype(np.float32)
    value = KL(teacher_logits=teacher, logits=student)
    slope = jax.grad(lambda x: KL(teacher_logits=teacher, logits=x).sum())(student)
    right, of_student, _ = wide_divergence(teacher, student, 1.0)
    largest = np.abs(of_student).max(-1, keepdims=True)
    assert np.max(ulps(slope, of_student, np.float32, largest)) <= 16
    assert np.max(ulps(value, right, np.float32)) <= 16


@pytest.mark.parametrize("apart", [1e-6, 1e-3, 1.0])
@pytest.mark.one_in(2)
def test_the_temperature_has_its_digits(apart):
    """Where the two agree its gradient is of the order of the square of what they are apart."""
    rng = np.random.default_rng(0)
    teacher = (rng.standard_normal((50, 4)) * 3).astype(np.float32)
    student = (teacher + apart * rng.standard_normal((50, 4))).astype(np.float32)
    temperature = np.float32(1.5)
    slope = jax.vmap(
        jax.grad(lambda t, a, b: KL(teacher_logits=a, logits=b, temperature=t)), (None, 0, 0)
    )(temperature, teacher, student)

    def along(h):
        return wide_divergence(teacher, student, WIDE(temperature) * (1 + WIDE(h)))[0]

    h = 1e-4
    right = (8 * (along(h) - along(-h)) - along(2 * h) + along(-2 * h)) / (12 * h) / temperature
    value = wide_divergence(teacher, student, temperature)[0]
    size = np.maximum(np.abs(right), value / temperature)
    assert np.max(ulps(slope, right, np.float32, size)) <= 64


def of_logits(teacher, student, **options):
    return jxent.softmax_kl_divergence_with_logits(
        teacher_logits=teacher, logits=student, **options
    )


@pytest.mark.parametrize("platform", ["cpu", "tpu", "reference"])
@pytest.mark.parametrize("lead", [0.5, 5.0, 10.0, 20.0, 50.0])
@pytest.mark.one_in(15)
def test_a_confident_teacher_has_its_gradient(platform, lead):
    """At its leader too, where a slope is a difference of numbers that are nearly one."""
    rng = np.random.default_rng(0)
    for student in (np.array([0.0, 2.0, 0.0]), rng.standard_normal(40)):
        teacher = np.zeros_like(student)
        teacher[0] = lead
        y_t, y_s = (np.asarray(np.float32(y), np.longdouble) for y in (teacher, student))
        log_t, log_s = (y - np.log(np.exp(y - y[0]).sum()) - y[0] for y in (y_t, y_s))
        p = np.exp(log_t)
        p[0] = 1 / (1 + np.exp(y_t[1:] - y_t[0]).sum())
        apart = (log_s - log_t) - (log_s - log_t)[0]  # of the leader itself it is 0
        right = p * ((p * apart).sum() - apart)
        with jxent.assume_platform(platform):
            slope = jax.jit(jax.grad(of_logits))(np.float32(teacher), np.float32(student))
        np.testing.assert_allclose(slope, right, rtol=0, atol=2e-6 * np.abs(right).max())
        np.testing.assert_allclose(slope[0], right[0], rtol=2e-6)


@pytest.mark.one_in(112)
@pytest.mark.parametrize("nested", ["f", "r", "ff", "rr", "rff", "ffr"])
@pytest.mark.parametrize(
    "masked", [-1e9, -1.74e12, -1.75e12, -1e30, -1e38, np.finfo(np.float32).min]
)
@pytest.mark.parametrize("warmth", [0.5, 1.0, 2.0])
def test_derivatives_to_a_temperature_beside_a_masked_class(masked, nested, warmth):
    """As beside one that is ruled out by -inf."""

    def derivative(masked, nested):
        x_t, x_s = jnp.array([0.0, 1.0, masked]), jnp.array([0.5, 0.2, masked])

        def divergence(warmth):
            return of_logits(x_t, x_s, temperature=warmth)

        modes = {"r": jax.grad, "f": jax.jacfwd}
        for mode in reversed(nested):
            divergence = modes[mode](divergence)
        return divergence(jnp.float32(warmth))

    wanted = derivative(-np.inf, "f" * len(nested))
    np.testing.assert_allclose(derivative(masked, nested), wanted, rtol=2e-5)


@pytest.mark.parametrize("cap", [1e-39, 1e20, 1e38, 1e39, 1e300])
@pytest.mark.parametrize("name", ["logit_softcap", "teacher_logit_softcap"])
def test_caps_that_float32_cannot_divide_by(name, cap):
    with pytest.raises(ValueError, match=f"^{name} must be in"):
        of_logits(np.float32([0, 1]), np.float32([1, 0]), **{name: cap})


@pytest.mark.parametrize("nested", ["rr", "fr"])
@pytest.mark.parametrize("shift", [0.0, 1024.0, 131072.0])
@pytest.mark.long
def test_a_constant_costs_no_digits_of_the_second_derivative_to_a_temperature(shift, nested):
    x_t, x_s = jnp.array([0.0, 1.0, -1.0]) + shift, jnp.array([0.5, 0.25, 0.0]) + shift

    def divergence(warmth, shift=0.0):
        return of_logits(x_t - shift, x_s - shift, temperature=warmth)

    def second(shift, nested):
        outer = jax.grad if nested[0] == "r" else jax.jacfwd
        return outer(jax.grad(divergence))(jnp.float32(2), shift)

    np.testing.assert_allclose(second(0.0, nested), second(shift, "fr"), rtol=2e-5)


@pytest.mark.long
def test_dtypes_may_differ():
    """The teacher's is computed in the student's, under strict promotion too."""
    for teacher, student in ((np.float32, np.float64), (np.float64, np.float32)):
        with jax.enable_x64(True):
            x = jnp.asarray([[0.0, 2.0]], teacher), jnp.zeros((1, 2), student)
            for temperature in (1.0, 2.0):
                value, slopes = jax.value_and_grad(
                    lambda t, s, temperature=temperature: KL(
                        teacher_logits=t, logits=s, temperature=temperature
                    ).sum(),
                    (0, 1),
                )(*x)
                assert value.dtype == student
                assert [slope.dtype for slope in slopes] == [teacher, student]


def test_equal_logits_and_their_shift():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 7)), jnp.float32)
    np.testing.assert_array_equal(KL(teacher_logits=x, logits=x), 0)
    slope = jax.grad(lambda x, y: KL(teacher_logits=x, logits=y).sum(), (0, 1))(x, x)
    np.testing.assert_array_equal(slope, 0)
    shifted = KL(teacher_logits=jnp.round(x * 8) / 8, logits=jnp.round(x * 8) / 8 + 1024)
    np.testing.assert_array_equal(shifted, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(2)
def test_low_precision_is_rounded_once(dtype):
    rng = np.random.default_rng(0)
    teacher, student = (jnp.asarray(rng.standard_normal((8, 33)), dtype) for _ in range(2))
    got = KL(teacher_logits=teacher, logits=student)
    wide = KL(teacher_logits=teacher.astype(jnp.float32), logits=student.astype(jnp.float32))
    assert got.dtype == dtype
    np.testing.assert_array_equal(np.float32(got), np.float32(wide.astype(dtype)))
    # The teacher's may be of another dtype: it is data.
    mixed = KL(teacher_logits=teacher.astype(jnp.float32), logits=student)
    np.testing.assert_array_equal(np.float32(mixed), np.float32(got))


# Edges.

TEACHER = [[0, 0, -inf], [0, 0, 0], [0, 1, -inf], [nan, 0, 0], [-inf] * 3, [inf, 0, 0], [0, 1, 2]]
STUDENT = [[0, 0, 0], [0, 0, -inf], [0, 1, -inf], [0, 0, 0], [0, 0, 0], [inf, 0, 0], [0, nan, 2]]


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "reference"])
@pytest.mark.one_in(3)
def test_infinite_and_broken_rows(platform):
    """Ruled out by the teacher: adds p_s; by the student alone: inf; by both: takes no part."""

    @quick
    def program(teacher, student):
        def each(teacher, student):
            return KL(teacher_logits=teacher, logits=student)

        slopes = jax.grad(lambda *x: each(*x).sum(), (0, 1))(teacher, student)
        return each(teacher, student), slopes

    with jxent.assume_platform(platform):
        value, (of_teacher, of_student) = program(jnp.array(TEACHER), jnp.array(STUDENT))
    np.testing.assert_allclose(value, [np.log(1.5), inf, 0, nan, nan, 0, nan], rtol=1e-6)
    for slope in (of_teacher, of_student):
        assert np.isfinite(slope[np.array([0, 1, 2, 5])]).all()
        assert np.isnan(slope[np.array([3, 4, 6])]).any(-1).all()
    np.testing.assert_allclose(of_student[0], [-1 / 6, -1 / 6, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(of_student[1], [1 / 6, 1 / 6, -1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(of_student[2], 0)


def test_no_examples():
    """0, and every gradient is."""
    none = jnp.zeros((0, 5))
    operands = jnp.zeros((0, 2)), jnp.ones((2, 5)), jnp.zeros((0, 3)), jnp.ones((3, 5))
    for f, given in (
        (losses.softmax_kl_divergence, (none, none)),
        (losses.linear_softmax_kl_divergence, operands),
    ):
        value, slopes = jax.value_and_grad(f, tuple(range(len(given))))(*given)
        assert value == 0
        for slope in slopes:
            np.testing.assert_array_equal(slope, 0)


def test_weight_0_drops_what_is_broken():
    weights = np.array([1, 0, 1, 0, 0, 1, 0], np.float32)

    def total(teacher, student):
        return losses.softmax_kl_divergence(teacher, student, weights, reduction="weighted_mean")

    found = jax.value_and_grad(total, (0, 1))(jnp.array(TEACHER), jnp.array(STUDENT))
    np.testing.assert_allclose(found[0], np.log(1.5) / 3, rtol=1e-6)
    assert all(np.isfinite(slope).all() for slope in found[1])


def test_weight_0_drops_what_is_broken_of_a_projection():
    """NaN in a teacher's inputs too, on both floors' reverse modes, whatever is differentiated."""
    kernel = jnp.eye(3)
    inputs = jnp.array([[0.0, 1, 2], [1, 0, 0], [2, 0, 1], [nan, 0, 0], [0, 1, 0]])
    teacher = jnp.array([[0.0, 1, 1], [nan, 0, 0], [1, 0, 1], [1, 0, 0], [0, inf, 0]])
    weights = jnp.array([1.0, 0, 2, 0, 0])

    def total(reduction, teacher, teacher_kernel, inputs, kernel):
        found = losses.linear_softmax_kl_divergence(
            teacher, teacher_kernel, inputs, kernel, weights=weights, reduction=reduction,
            block_size=2,
        )  # fmt: skip
        return jnp.sum(found)

    for reduction in ("weighted_sum", "none"):
        f = jax.value_and_grad(partial(total, reduction), (0, 1, 2, 3))
        value, slopes = f(teacher, kernel, inputs, kernel)
        sound = np.array([0, 2])
        rest = partial(
            losses.linear_softmax_kl_divergence, weights=weights[sound], reduction="weighted_sum"
        )
        np.testing.assert_allclose(value, rest(teacher[sound], kernel, inputs[sound], kernel))
        assert all(np.isfinite(slope).all() for slope in slopes), reduction


# What it costs.


def test_products():
    """One more than a loss of labels: the teacher's. A frozen teacher costs no other."""
    operands = tuple(jnp.ones(shape) for shape in ((7, 2), (2, 5), (7, 3), (3, 5)))

    def each(*operands):
        names = ("teacher_inputs", "teacher_kernel", "inputs", "kernel")
        return jnp.sum(
            jxent.linear_softmax_kl_divergence(**dict(zip(names, operands, strict=True)))
        )

    scalar = losses.linear_softmax_kl_divergence
    for f, counts in ((scalar, (2, 4, 3, 6)), (each, (2, 6, 4, 8))):
        found = [
            len(products(wrapped, *operands))
            for wrapped in (
                f, jax.value_and_grad(f, (2, 3)), jax.value_and_grad(f, 3),
                jax.value_and_grad(f, (0, 1, 2, 3)),
            )
        ]  # fmt: skip
        assert found[:2] == list(counts[:2])
        assert found[2] <= found[1]
        assert found[3] <= counts[3]


@pytest.mark.optimized
def test_memory():
    """Both gradients of the student: at most a sixth of what stored logits take."""
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    n, d, c = 4096, 256, 65536
    operands = f32((n, d)), f32((d, c)), f32((n, d)), f32((d, c))

    def plain(teacher, teacher_kernel, inputs, kernel):
        log_t, log_s = map(jax.nn.log_softmax, (teacher @ teacher_kernel, inputs @ kernel))
        return (jnp.exp(log_t) * (log_t - log_s)).sum(-1).mean()

    def each(teacher, teacher_kernel, inputs, kernel):
        return jxent.linear_softmax_kl_divergence(
            teacher_inputs=teacher, teacher_kernel=teacher_kernel, inputs=inputs, kernel=kernel
        ).mean()

    def temporaries(f):
        compiled = jax.jit(jax.value_and_grad(f, (2, 3))).lower(*operands).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    stored = temporaries(plain)
    assert 6 * temporaries(losses.linear_softmax_kl_divergence) <= stored
    assert 6 * temporaries(each) <= stored


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(2)
def test_no_product_of_the_student_mixes_dtypes(dtype):
    """Under a frozen teacher, of another dtype too."""
    inputs, kernel = jnp.ones((7, 3), dtype), jnp.ones((3, 5), dtype)
    teacher = jnp.ones((7, 2)), jnp.ones((2, 5))
    f = jax.value_and_grad(partial(losses.linear_softmax_kl_divergence, *teacher), (0, 1))
    for master in (kernel, kernel.astype(jnp.float32)):
        found = products(f, inputs, master)
        assert len(found) == 4
        assert all(a == b for a, b in found), found


# Meshes.


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
@pytest.mark.parametrize("form", ["", "linear"])
@pytest.mark.parametrize("kind", ["shard_map", "automatic", "explicit"])
@pytest.mark.long
def test_on_a_mesh(form, kind):
    """Classes split over one axis, examples over the other: the same numbers as on one device."""
    rng = np.random.default_rng(0)
    weights = np.linspace(0, 2, 8, dtype=np.float32)
    shapes = [(8, 2), (2, 12), (8, 3), (3, 12)] if form else [(8, 12), (8, 12)]
    operands = tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    rows, columns = P("data", None), P(None, "model")
    specs = (rows, columns) * 2 if form else (P("data", "model"),) * 2
    function = losses.linear_softmax_kl_divergence if form else losses.softmax_kl_divergence
    function = partial(function, temperature=1.5, reduction="weighted_sum")
    function = partial(function, block_size=2) if form else function

    def program(operands, weights, across=lambda x: x, **options):
        def total(operands):
            return across(function(*operands, weights=weights, **options))

        return jax.value_and_grad(total)(operands)

    wanted = program(operands, weights)
    explicit = kind == "explicit"
    kinds = (AxisType.Explicit if explicit else AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=kinds)
    if kind == "shard_map":
        split = jax.shard_map(
            partial(program, across=lambda x: jax.lax.psum(x, "data"), axis_name="model"),
            mesh=mesh, in_specs=(specs, P("data")), out_specs=(P(), specs),
        )  # fmt: skip
        got = jax.jit(split)(operands, weights)
    else:

        def put(x, spec):
            return jax.device_put(x, NamedSharding(mesh, spec))

        with jax.set_mesh(mesh):
            got = jax.jit(program)(tuple(map(put, operands, specs)), put(weights, P("data")))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=1e-5, atol=3e-6), got, wanted
    )


# Wrong arguments.

X = np.zeros((2, 5), np.float32)
LINEAR: dict[str, Any] = {
    "teacher_inputs": np.zeros((2, 4), np.float32), "teacher_kernel": np.zeros((4, 5), np.float32),
    "inputs": np.zeros((2, 3), np.float32), "kernel": np.zeros((3, 5), np.float32),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"teacher_inputs": np.zeros((3, 4), np.float32)}, ValueError, "have the batch of inputs"),
        ({"teacher_kernel": np.zeros((4, 6), np.float32)}, ValueError, "have the classes of kern"),
        ({"teacher_kernel": np.zeros((3, 5), np.float32)}, ValueError, "teacher_inputs and teache"),
        ({"teacher_kernel": np.zeros((4, 5), np.float16)}, TypeError, "teacher_kernel must have"),
        ({"teacher_kernel": np.zeros((4, 5), int)}, TypeError, "teacher_kernel must be floating"),
        ({"teacher_bias": np.zeros(4)}, ValueError, "teacher_bias must have one number a class"),
        ({"teacher_logit_softcap": 0.0}, ValueError, "teacher_logit_softcap must be in"),
        ({"temperature": 0.0}, ValueError, "temperature must be in"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_projections(changed, error, message):
    for f in (jxent.linear_softmax_kl_divergence, losses.linear_softmax_kl_divergence):
        with pytest.raises(error, match=message):
            f(**{**LINEAR, **changed})


def test_wrong_arguments():
    for f in (KL, losses.softmax_kl_divergence):
        with pytest.raises(ValueError, match=r"teacher_logits must have the shape of logits, \(2"):
            f(teacher_logits=X[:, :4], logits=X)
        with pytest.raises(TypeError, match="teacher_logits must be floating"):
            f(teacher_logits=X.astype(int), logits=X)
        with pytest.raises(ValueError, match="logits must have at least one class"):
            f(teacher_logits=X[:, :0], logits=X[:, :0])
    with pytest.raises(TypeError, match="positional"):
        KL(X, X)
