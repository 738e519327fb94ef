"""The projection fused in: its memory, its matrix products, its blocks, its dropped examples."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jxent
from benchmarks.lib import programs as projection
from jxent import losses
from jxent._src.core import blocking
from jxent._src.projection import matmuls
from tests.compile_options import quick

inf, nan = np.inf, np.nan
MEMBERS = ("sparse_softmax", "softmax", "sparse_sigmoid", "sigmoid")


def operands(member, examples=7, features=3, classes=5, dtype=np.float32, seed=0):
    """Labels, inputs and kernel."""
    rng = np.random.default_rng(seed)
    labels = {
        "sparse_softmax": rng.integers(classes, size=examples),
        "sparse_sigmoid": rng.integers(-1, classes, size=(examples, 3)),
    }.get(member, rng.uniform(0, 1, (examples, classes)).astype(np.float32))
    inputs = rng.standard_normal((examples, features))
    kernel = rng.standard_normal((features, classes))
    return labels, jnp.asarray(inputs, dtype), jnp.asarray(kernel, dtype)


def scalar(member):
    return getattr(losses, f"linear_{member}_cross_entropy")


def per_example(member):
    function = getattr(jxent, f"linear_{member}_cross_entropy")

    def by_position(labels, inputs, kernel, **options):
        return function(labels=labels, inputs=inputs, kernel=kernel, **options)

    return by_position


# Memory, as the compiler counts it.

SHAPE = (4096, 256, 65536)
KERNEL, BLOCK_OF_64 = 256 * 65536 * 4, 64 * 65536 * 4


def abstract(examples, features, classes):
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    return (
        f32((examples, features)),
        f32((features, classes)),
        jax.ShapeDtypeStruct((examples,), jnp.int32),
    )


def temporaries(wrap, loss):
    return projection.temporaries(wrap(loss), *abstract(*SHAPE))


def value(loss):
    return loss


@pytest.fixture(scope="module")
def default():
    return partial(projection.scalar, None)


@pytest.mark.optimized
def test_gradients_take_a_sixth_of_the_memory_of_stored_logits(default):
    theirs = temporaries(projection.value_and_gradients, projection.of_optax)
    assert 6 * temporaries(projection.value_and_gradients, default) <= theirs
    assert 4 * temporaries(projection.value_and_gradients, projection.per_example) <= theirs
    small = temporaries(projection.value_and_gradients, partial(projection.scalar, 64))
    assert small <= 2.2 * KERNEL + 6 * BLOCK_OF_64


@pytest.mark.parametrize(
    "wrap",
    [
        value,
        partial(projection.hessian_vector, forward=True),
        pytest.param(partial(projection.hessian_vector, forward=False), marks=pytest.mark.long),
    ],
    ids=["value", "forward over reverse", "reverse over reverse"],
)
@pytest.mark.one_in(2)
@pytest.mark.optimized
def test_value_and_second_order_take_a_third(wrap, default):
    theirs = temporaries(wrap, projection.of_optax)
    assert 3 * temporaries(wrap, default) <= theirs
    if wrap is not value:
        assert 3 * temporaries(wrap, projection.per_example) <= theirs


@pytest.mark.optimized
def test_label_ids_take_a_quarter_of_the_dense_form():
    examples, features, classes = 512, 64, 262144
    inputs, kernel, _ = abstract(examples, features, classes)
    lists = jax.ShapeDtypeStruct((examples, 8), jnp.int32)
    dense = jax.ShapeDtypeStruct((examples, classes), jnp.float32)

    def by_ids(inputs, kernel, labels):
        return losses.linear_sparse_sigmoid_cross_entropy(labels, inputs, kernel)

    def by_dense(inputs, kernel, labels):
        return optax.sigmoid_binary_cross_entropy(inputs @ kernel, labels).sum(-1).mean()

    gradients = projection.value_and_gradients
    ours = projection.temporaries(gradients(by_ids), inputs, kernel, lists)
    assert 4 * ours <= projection.temporaries(gradients(by_dense), inputs, kernel, dense)


# Matrix products, as the program is lowered.


def products(function, *arguments) -> list[tuple[str, str]]:
    """The dtypes of the operands of every matrix product."""
    text = jax.jit(function).lower(*arguments).as_text()
    found = re.findall(r"stablehlo\.dot_general.*: \(tensor<(\S+)>, tensor<(\S+)>\)", text)
    return [(a.split("x")[-1], b.split("x")[-1]) for a, b in found]


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.one_in(2)
def test_three_products_and_fewer_where_something_is_frozen(member):
    labels, inputs, kernel = operands(member)
    f = scalar(member)
    assert len(products(f, labels, inputs, kernel)) == 1
    assert len(products(jax.value_and_grad(f, (1, 2)), labels, inputs, kernel)) == 3
    assert len(products(jax.value_and_grad(f, 1), labels, inputs, kernel)) == 2
    assert len(products(jax.value_and_grad(f, 2), labels, inputs, kernel)) == 2

    def summed(labels, inputs, kernel):
        return per_example(member)(labels, inputs, kernel).sum()

    assert len(products(summed, labels, inputs, kernel)) == 1
    assert len(products(jax.value_and_grad(summed, (1, 2)), labels, inputs, kernel)) == 4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.one_in(2)
def test_no_product_mixes_dtypes(member, dtype):
    """A float32 x bfloat16 product runs at a fraction of the speed."""
    labels, inputs, kernel = operands(member, dtype=dtype)

    def summed(labels, inputs, kernel):
        return per_example(member)(labels, inputs, kernel).sum()

    for f in (scalar(member), summed):
        for order in (f, jax.value_and_grad(f, (1, 2))):
            found = products(order, labels, inputs, kernel)
            assert found
            assert all(a == b for a, b in found), found
            # d/d kernel of float16, one loss an example: cotangents of any size.
            wide = sum(a == "f32" for a, _ in found)
            assert wide == (dtype == jnp.float16 and f is summed and order is not f), found
        gradients = jax.eval_shape(jax.grad(f, (1, 2)), labels, inputs, kernel)
        assert all(g.dtype == dtype for g in gradients)
        assert jax.eval_shape(f, labels, inputs, kernel).dtype == jnp.float32


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.one_in(2)
def test_bfloat16_gradients_are_accumulated_in_float32(form):
    """1024 equal blocks of one example: a bfloat16 running sum would stop growing."""
    examples = 1024
    inputs = jnp.ones((examples, 2), jnp.bfloat16)
    kernel = jnp.zeros((2, 3), jnp.bfloat16)
    labels = jnp.zeros(examples, jnp.int32)

    def total(kernel):
        each = form("sparse_softmax")(labels, inputs, kernel, block_size=1)
        return jnp.sum(each)

    def stored(kernel):
        logits = inputs.astype(jnp.float32) @ kernel.astype(jnp.float32)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return each.mean() if form is scalar else each.sum()

    truth = jax.grad(stored)(kernel)
    np.testing.assert_allclose(np.float32(jax.grad(total)(kernel)), np.float32(truth), rtol=2**-7)


# Master weights: a float32 kernel beside narrower inputs.

BY_CLASSES = {"sigmoid": 2, "sparse_sigmoid": 2, "sparse_softmax": 2}
WAYS = [(m, {"block_size": 3}) for m in MEMBERS]
WAYS += [(m, {"class_block_size": n}) for m, n in BY_CLASSES.items()]


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("member", "sizes"), WAYS)
@pytest.mark.one_in(18)
def test_a_float32_kernel_is_that_of_the_products(form, dtype, member, sizes):
    """Value and gradients of the rounded kernel, but its own gradient is a float32 array."""
    labels, inputs, kernel = operands(member, dtype=dtype)
    master = kernel.astype(jnp.float32) * (1 + 2**-13)  # rounded to the kernel again

    def program(inputs, kernel):
        def f(inputs, kernel):
            return jnp.sum(form(member)(labels, inputs, kernel, **sizes))

        return jax.value_and_grad(f, (0, 1))(inputs, kernel)

    value, (dinputs, dkernel) = quick(program)(inputs, kernel)
    same, (dsame, dmaster) = quick(program)(inputs, master)
    np.testing.assert_array_equal(same, value)
    np.testing.assert_array_equal(np.float32(dsame), np.float32(dinputs))
    assert dmaster.dtype == jnp.float32
    unit = float(np.max(np.abs(np.float32(dkernel)))) * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(dmaster, np.float32(dkernel), atol=unit)
    found = products(program, inputs, master)
    assert all(a == b for a, b in found), found


@pytest.mark.parametrize(("member", "sizes"), WAYS)
@pytest.mark.one_in(6)
def test_the_gradient_of_a_float32_kernel_is_not_rounded(member, sizes):
    """At logits of 0, and of 2^k examples, all that the products multiply is exact."""
    _, inputs, _ = operands(member, examples=8, classes=4, dtype=jnp.bfloat16)
    ids = np.arange(8) % 4
    hot = np.eye(4, dtype=np.float32)[ids]
    labels = {"sparse_softmax": ids, "sparse_sigmoid": ids[:, None]}.get(member, hot)
    kernel = jnp.zeros((3, 4))
    got = jax.grad(scalar(member), 2)(labels, inputs, kernel, **sizes)
    p = 1 / 4 if "softmax" in member else 1 / 2
    truth = np.asarray(inputs, np.float64).T @ (p - hot) / 8
    np.testing.assert_allclose(got, truth, atol=1e-6 * np.max(np.abs(truth)), rtol=0)


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.parametrize(("member", "sizes"), WAYS)
@pytest.mark.one_in(18)
def test_second_order_of_a_float32_kernel(form, member, sizes):
    """As that of float32 inputs, to the roundings of bfloat16 products."""
    labels, inputs, kernel = operands(member, dtype=jnp.bfloat16)
    kernel = kernel.astype(jnp.float32)
    line = jnp.asarray(np.random.default_rng(4).integers(-2, 3, kernel.shape), jnp.float32)

    @partial(quick, static_argnums=2)
    def program(inputs, kernel, reverse):
        def slope(kernel):
            return jax.grad(lambda w: jnp.sum(form(member)(labels, inputs, w, **sizes)))(kernel)

        if reverse:
            return jax.vjp(slope, kernel)[1](line)[0]
        return jax.jvp(slope, (kernel,), (line,))[1]

    truth = program(inputs.astype(jnp.float32), kernel, False)
    for reverse in (False, True):
        got = program(inputs, kernel, reverse)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, truth, atol=0.02 * float(np.max(np.abs(truth))))


# Blocks.


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.one_in(5)
def test_every_block_size_gives_the_same(member):
    """On small logits: a padded class or example would show."""
    labels, inputs, kernel = operands(member)
    kernel = 0.01 * kernel
    weights = np.array([1, 0.5, 0, 2, 1, 3, 0.25], np.float32)

    def f(inputs, kernel, block_size):
        return scalar(member)(labels, inputs, kernel, weights=weights, block_size=block_size)

    @partial(quick, static_argnums=2)
    def both(inputs, kernel, block_size):
        each = per_example(member)(labels, inputs, kernel, block_size=block_size)
        return jax.value_and_grad(f, (0, 1))(inputs, kernel, block_size), each

    truth, each = both(inputs, kernel, 7)
    for block_size in (None, 1, 3, 6, 8):
        got, by_example = both(inputs, kernel, block_size)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, truth
        )
        np.testing.assert_allclose(by_example, each, rtol=1e-6)


def test_the_default_block():
    def size(examples, features, classes):
        return blocking.cut(examples, (features, classes), None).size

    assert size(4096, 256, 65536) == 512
    assert size(8192, 4096, 128256) == 2048  # half the features: the kernel's gradient is large
    assert size(100, 64, 1000) == 100
    assert size(2048, 128, 10_000_000) == 64
    assert blocking.cut(0, (3, 5), None) == (1, 0)


@pytest.mark.parametrize("member", MEMBERS)
def test_no_examples(member):
    labels, inputs, kernel = operands(member, examples=0)
    value, gradients = jax.value_and_grad(scalar(member), (1, 2))(labels, inputs, kernel)
    assert float(value) == 0
    assert not any(np.any(g) for g in gradients)
    assert per_example(member)(labels, inputs, kernel).shape == (0,)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.one_in(2)
def test_a_masked_class_and_ragged_blocks(member):
    """A bias of -inf rules class 0 out; examples that fill up the last block meet it as well."""
    labels, inputs, kernel = operands(member, classes=4)
    if labels.dtype.kind == "i":
        labels = np.where(labels == 0, 1, labels)
    else:
        labels[:, 0] = 0
    bias = np.array([-inf, 0.1, 0.2, 0.3], np.float32)

    def f(inputs, kernel, block_size):
        return scalar(member)(labels, inputs, kernel, bias=bias, block_size=block_size)

    gradients = quick(jax.value_and_grad(f, (0, 1)), static_argnums=2)
    truth, got = gradients(inputs, kernel, 7), gradients(inputs, kernel, 3)
    assert np.isfinite(truth[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, truth)
    assert not np.any(got[1][1][:, 0])


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.parametrize("member", ["sparse_softmax", "softmax"])
@pytest.mark.one_in(5)
def test_a_kernel_that_rules_a_class_out_and_ragged_blocks(member, form):
    """Places that fill up the last block are 0 @ kernel, which is NaN: none reaches a sum."""
    inputs = np.float32([[1, 1], [2, 1], [1, 3]])
    kernel = np.float32([[1, 2, -inf], [0, 1, -inf]])
    labels = np.array([0, 1, 0])
    if member == "softmax":
        labels = np.eye(3, dtype=np.float32)[labels]

    def total(kernel, bias, block_size):
        each = form(member)(labels, inputs, kernel, bias=bias, block_size=block_size)
        return jnp.sum(each)

    def stored(kernel, bias):
        logits = inputs @ kernel + bias[None]
        return getattr(losses, f"{member}_cross_entropy")(
            labels, logits, reduction="weighted_mean" if form is scalar else "weighted_sum"
        )

    bias = np.zeros(3, np.float32)
    truth = jax.value_and_grad(stored, (0, 1))(kernel, bias)
    for block_size in (1, 2, 3, 5):
        gradients = quick(jax.value_and_grad(total, (0, 1)), static_argnums=2)
        got = gradients(kernel, bias, block_size)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, truth
        )


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.parametrize("dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.long)])
@pytest.mark.one_in(2)
def test_half_precision_keeps_the_gradient_of_many_examples(form, dtype):
    """A probability over the number of examples is below float16's range."""
    rng = np.random.default_rng(0)
    examples, features, classes = 2048, 16, 4096
    inputs = jnp.asarray(rng.standard_normal((examples, features)) * 0.5 + 1, dtype)
    kernel = jnp.asarray(rng.standard_normal((features, classes)) * 0.1, dtype)
    labels = rng.integers(10, size=examples)

    def fused(kernel):
        return jnp.mean(form("sparse_softmax")(labels, inputs, kernel))

    def stored(kernel):
        logits = jnp.matmul(inputs, kernel, preferred_element_type=jnp.float32)
        return losses.sparse_softmax_cross_entropy(labels, logits)

    wide = np.asarray(inputs, np.float64)
    odds = np.exp(wide @ np.asarray(kernel, np.float64))
    slope = odds / odds.sum(1, keepdims=True)
    slope[np.arange(examples), labels] -= 1
    truth = wide.T @ slope / examples

    def error(gradient):
        return np.linalg.norm(np.float64(gradient) - truth) / np.linalg.norm(truth)

    got = jax.grad(fused)(kernel)
    assert error(got) <= 2 * error(jax.grad(stored)(kernel))
    if dtype == jnp.float16:
        assert np.all(got != 0)


@pytest.mark.parametrize("odd", [0.0, inf, nan, 1e-45, 3e38])
def test_scaling_a_float16_slope_loses_nothing(odd):
    slope = jnp.asarray([[1e-9, 2.0**-30, -1e-6], [odd, 0, 0]], jnp.float32)
    narrow = matmuls.narrowed(slope, jnp.float16)
    assert narrow.low.dtype == jnp.float16
    assert narrow.down is not None
    restored = narrow.low.astype(jnp.float32) * narrow.down
    if odd in (0.0, 1e-45):
        np.testing.assert_allclose(restored[0], slope[0], rtol=2**-11, atol=0)
    elif odd == 3e38:  # the others are below what it leaves room for
        np.testing.assert_allclose(restored[1, 0], odd, rtol=2**-11)
    else:
        assert not np.isfinite(restored[1, 0])


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.one_in(2)
def test_no_ids_and_no_features(form):
    none = np.zeros((2, 0), int)
    value = form("sparse_sigmoid")(none, np.ones((2, 3), np.float32), np.eye(3, dtype=np.float32))
    np.testing.assert_allclose(value, np.log1p(np.e) + 2 * np.log1p(np.e), rtol=1e-6)
    inputs, kernel = np.ones((2, 0), np.float32), np.ones((0, 3), np.float32)
    for member in MEMBERS:
        labels, *_ = operands(member, examples=2, classes=3)
        f = form(member)
        total = jax.value_and_grad(
            lambda *a, f=f, y=labels: jnp.sum(f(y, *a[:2], bias=a[2])), (0, 1, 2)
        )
        value, slopes = quick(total)(inputs, kernel, np.zeros(3, np.float32))
        assert np.isfinite(value)
        assert [s.shape for s in slopes] == [(2, 0), (0, 3), (3,)]
        assert np.any(slopes[2])


# Dropped examples.


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(
    "reduction", [*(pytest.param(r, marks=pytest.mark.long) for r in ("none", "weighted_sum")),
                  "weighted_mean"],
)  # fmt: skip
@pytest.mark.one_in(5)
def test_weight_0_takes_a_broken_example_out(member, reduction):
    labels, inputs, kernel = operands(member)
    weights = np.array([1, 0.5, 0, 2, 1, 3, 0], np.float32)
    broken_inputs = inputs.at[2].set(nan).at[6, 0].set(inf)
    broken_labels = labels.copy()
    broken_labels[2] = 99 if labels.dtype.kind == "i" else nan

    def total(labels, inputs, kernel, weights):
        each = scalar(member)(
            labels, inputs, kernel, weights=weights, reduction=reduction, block_size=3
        )
        return jnp.sum(each)

    @partial(quick, static_argnums=0)
    def everything(labels_are_broken, inputs):
        labels_now = broken_labels if labels_are_broken else labels
        f = partial(total, labels_now)
        return [
            jax.value_and_grad(f, (0, 1))(inputs, kernel, weights),
            jax.jvp(jax.grad(f, (0, 1)), (inputs, kernel, weights),
                    (jnp.ones_like(inputs), kernel, weights))[1],
            jax.vjp(lambda a, b: jax.grad(f, (0, 1))(a, b, weights), inputs, kernel)[1](
                (jnp.ones_like(inputs), kernel)),
        ], jax.grad(f, 2)(inputs, kernel, weights)  # fmt: skip

    got, by_weight = everything(True, broken_inputs)
    truth, _ = everything(False, inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, truth)
    assert not np.any(got[0][1][0][jnp.array([2, 6])])
    assert np.isfinite(by_weight).all()


@pytest.mark.parametrize("member", ["sparse_softmax", "sparse_sigmoid"])
@pytest.mark.one_in(2)
def test_an_id_out_of_range_is_loud_and_local(member):
    labels, inputs, kernel = operands(member)
    labels[3] = 5
    each = per_example(member)(labels, inputs, kernel, block_size=2)
    gradient = jax.grad(
        lambda x: per_example(member)(labels, x, kernel, block_size=2).sum()
    )(inputs)  # fmt: skip
    bad = np.arange(7) == 3
    np.testing.assert_array_equal(np.isnan(each), bad)
    np.testing.assert_array_equal(np.isnan(gradient).all(1), bad)
    np.testing.assert_array_equal(np.isnan(gradient).any(1), bad)
    assert np.isnan(scalar(member)(labels, inputs, kernel))


# Lists of ids.


def dense_of(lists, classes):
    return (lists[..., None] == np.arange(classes)).any(-2).astype(np.float32)


@pytest.mark.parametrize("count", [0, 1, 5, 64, 65, 130])
@pytest.mark.one_in(8)
def test_lists_of_every_length(count):
    """Short ones are compared id by id, long ones in a loop."""
    rng = np.random.default_rng(count)
    lists = rng.integers(-3, 11, size=(4, count))
    x = rng.standard_normal((4, 11)).astype(np.float32)
    q = rng.uniform(0.5, 2, 11).astype(np.float32)

    def ids(x, q):
        return jxent.sparse_sigmoid_cross_entropy_with_logits(
            labels=lists, logits=x, pos_weight=q
        ).sum()

    def dense(x, q):
        return jxent.weighted_cross_entropy_with_logits(
            labels=dense_of(lists, 11), logits=x, pos_weight=q
        ).sum()

    got, truth = (jax.value_and_grad(f, (0, 1))(x, q) for f in (ids, dense))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, truth)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.int64])
def test_lists_of_every_integer_dtype(dtype):
    with jax.enable_x64(True):
        top = min(int(np.iinfo(dtype).max), 2**32 + 1)
        lists = np.array([[1, 0], [2, top]], dtype)
        loss = jxent.sparse_sigmoid_cross_entropy_with_logits(labels=lists, logits=np.zeros((2, 3)))
        np.testing.assert_array_equal(np.isnan(loss), [False, True])


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.one_in(2)
def test_lists_at_infinite_logits(label):
    """The limit, and a finite gradient."""
    lists = np.array([[0]] if label else [[-1]])
    for x, expected in ((inf, 0 if label else inf), (-inf, inf if label else 0)):
        logits = jnp.array([[x]])
        for q in (1.0, 2.0, jnp.array(2.0)):
            f = partial(jxent.sparse_sigmoid_cross_entropy_with_logits, labels=lists, pos_weight=q)
            assert f(logits=logits)[0] == expected
            assert np.isfinite(jax.grad(lambda x, f=f: f(logits=x)[0])(logits)).all()


def test_a_positive_class_keeps_its_digits():
    """softplus(-x), not softplus(x) - x: that is 0 from x = 17 on in float32."""
    loss = jxent.sparse_sigmoid_cross_entropy_with_logits(labels=[[0]], logits=jnp.array([[30.0]]))
    np.testing.assert_allclose(loss, np.exp(-30.0), rtol=1e-6)


# Wrong arguments.

X, W, Y = np.zeros((2, 3), np.float32), np.zeros((3, 5), np.float32), np.zeros(2, int)


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"inputs": np.zeros((2, 4), np.float32)}, ValueError, r"inputs and kernel must.*\(2, 4"),
        ({"kernel": np.zeros(3, np.float32)}, ValueError, "kernel must be"),
        ({"kernel": np.zeros((3, 0), np.float32)}, ValueError, "kernel must have at least one"),
        ({"kernel": np.zeros((3, 5), int)}, TypeError, "kernel must be floating"),
        ({"kernel": jnp.zeros((3, 5), jnp.bfloat16)}, TypeError, "inputs, float32, got bfloat16"),
        ({"inputs": jnp.zeros((2, 3), jnp.bfloat16), "kernel": jnp.zeros((3, 5), jnp.float16)},
         TypeError, "kernel must have the dtype of inputs, bfloat16, or float32, got float16"),
        ({"bias": np.zeros(3)}, ValueError, r"bias must have one number a class, shape \(5,\)"),
        ({"bias": np.zeros((1, 5))}, ValueError, "bias must have one number a class"),
        ({"labels": np.zeros((5, 5, 5), np.float32)}, (TypeError, ValueError), "labels must"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
        ({"block_size": 1.5}, TypeError, "block_size must be a Python integer or None, got 1.5"),
        ({"block_size": True}, TypeError, "block_size must be a Python integer"),
        ({"label_smoothing": 2}, ValueError, "label_smoothing must be in"),
        ({"logit_softcap": 0}, ValueError, "logit_softcap must be in"),
    ],
)  # fmt: skip
def test_wrong_arguments(form, member, changed, error, message):
    labels = {"sparse_softmax": Y, "sparse_sigmoid": Y[:, None]}.get(
        member, np.zeros((2, 5), np.float32)
    )
    arguments = {"labels": labels, "inputs": X, "kernel": W, **changed}
    with pytest.raises(error, match=message):
        form(member)(**arguments)


def test_more_wrong_arguments():
    with pytest.raises(ValueError, match=r"pos_weight must be a number or one a class.*\(2, 5\)"):
        scalar("sigmoid")(np.zeros((2, 5)), X, W, pos_weight=np.ones((2, 5)))
    with pytest.raises(TypeError, match="labels must have the dtype of inputs, float32"):
        per_example("softmax")(np.zeros((2, 5), np.float16), X, W)
    with pytest.raises(ValueError, match="labels must be lists of ids"):
        jxent.sparse_sigmoid_cross_entropy_with_logits(labels=Y, logits=X)
    with pytest.raises(TypeError, match="labels must be integer class ids"):
        losses.sparse_sigmoid_cross_entropy(np.zeros((2, 1)), X)
    with pytest.raises(ValueError, match="weights must be a number"):
        scalar("sparse_softmax")(Y, X, W, weights=np.ones((2, 2)))
    with pytest.raises(TypeError, match="block_size is an option, compiled in"):
        jax.jit(lambda b: scalar("sparse_softmax")(Y, X, W, block_size=b))(2)
