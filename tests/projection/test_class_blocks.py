"""Projections in blocks of classes: three products where they are independent, four otherwise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jxent
from benchmarks.compiled.collectives import collectives
from benchmarks.lib import programs as projection
from jxent import losses
from jxent._src.core import blocking
from jxent._src.core.blocking import Block, ClassCut, Cut
from jxent._src.platforms import tpu
from jxent._src.projection.matmuls import Operands
from tests.compile_options import quick
from tests.projection.test_linear import MEMBERS, operands, per_example, products, scalar

inf, nan = np.inf, np.nan
INDEPENDENT = ("sparse_sigmoid", "sigmoid")
independent = pytest.mark.parametrize("member", INDEPENDENT)


@pytest.mark.parametrize("runs", [1, 2, 4])
@pytest.mark.parametrize("width", [1, 2, 3, 6])
@pytest.mark.one_in(15)
def test_every_class_is_in_one_block(runs, width):
    """Ragged and not: cut out, put back, named by id, and all blocks at once."""
    cut = ClassCut(classes=24, runs=runs, width=min(width, 24 // runs))
    x = jnp.arange(48, dtype=jnp.float32).reshape(2, 24)
    blocks = [Block(cut, cut.width, k) for k in range(cut.number)]
    blocks += [Block(cut, cut.rest, cut.number)] * bool(cut.rest)
    assert sum(block.size for block in blocks) == 24
    whole, ids, seen = jnp.zeros_like(x), jnp.arange(-2, 26), np.zeros(28, int)
    stacked, rest = cut.stacked(x)
    for block, columns in zip(blocks, [*stacked, rest], strict=False):
        own = block.of(x)
        np.testing.assert_array_equal(own, columns)
        whole = block.put(whole, own)
        places = np.asarray(block.places(ids))
        seen += places >= 0
        found = ids[places >= 0]
        np.testing.assert_array_equal(own[0][places[places >= 0]], x[0][found])
    np.testing.assert_array_equal(whole, x)
    np.testing.assert_array_equal(seen, [0, 0, *[1] * 24, 0, 0])


def test_the_default_block_of_classes():
    def width(examples, features, classes, runs=1):
        return blocking.class_cut(examples, (features, classes), runs, None).width

    assert width(4096, 256, 65536) == 1024
    assert width(8192, 1024, 131072) == 4096
    assert width(8192, 256, 1048576) == 5504  # a sixth of the kernel
    assert width(8192, 2304, 65536) == 9216  # four a feature
    assert width(8192, 2304, 262144) == 12288  # 3 * 2^25 logits
    assert width(8, 4, 100) == 100
    assert width(2**20, 64, 2**21) == 128
    assert width(8192, 1024, 131072, runs=16) == 2048
    assert width(2048, 128, 10_000_384, runs=16) == 8192
    assert width(4, 2, 2 * 3001) == 1024


@independent
def test_there_are_blocks_of_what_there_is_more_of(member):
    def shape_of_block(examples, classes, **sizes):
        labels, inputs, kernel = operands(member, examples=examples, classes=classes)
        jaxpr = jax.make_jaxpr(partial(scalar(member), **sizes))(labels, inputs, kernel)
        text = str(jaxpr)
        return {s for s in ("f32[40,6]", "f32[6,40]", "f32[4,6]", "f32[6,4]") if s in text}

    assert shape_of_block(6, 40, class_block_size=4) >= {"f32[6,4]"}
    assert shape_of_block(40, 6, block_size=4) >= {"f32[4,6]"}
    labels, inputs, kernel = operands(member, examples=6, classes=40)
    with pytest.raises(ValueError, match="class_block_size must be None where block_size is"):
        scalar(member)(labels, inputs, kernel, block_size=2, class_block_size=2)


@independent
@pytest.mark.one_in(2)
def test_every_width_gives_the_same_as_blocks_of_examples(member):
    """In float64, to rounding: value, every gradient, and the loss of each example."""
    with jax.enable_x64(True):
        labels, inputs, kernel = operands(member, examples=5, classes=13, dtype=np.float64)
        rng = np.random.default_rng(1)
        bias, q = rng.standard_normal(13), rng.uniform(0.5, 2, 13)
        weights = np.array([1, 0.5, 0, 2, 3])
        moving = {"inputs": inputs, "kernel": kernel, "bias": bias, "pos_weight": q}
        if member == "sigmoid":
            labels = labels.astype(np.float64)
            moving["labels"] = labels

        @partial(quick, static_argnums=2)
        def both(moving, weights, sizes):
            options = {"label_smoothing": 0.1, "logit_softcap": 4.0, **dict(sizes)}

            def total(moving, weights):
                data = {"labels": labels, **moving}
                first = [data.pop(k) for k in ("labels", "inputs", "kernel")]
                return scalar(member)(*first, weights=weights, **data, **options)

            def each(moving):
                return jnp.vdot(
                    weights, per_example(member)(**{"labels": labels, **moving}, **options)
                )

            return jax.value_and_grad(total, (0, 1))(moving, weights), jax.value_and_grad(each)(
                moving
            )

        wanted = both(moving, weights, (("block_size", 5),))
        for width in (1, 4, 13, 50):
            got = both(moving, weights, (("class_block_size", width),))
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), got, wanted)


@independent
@pytest.mark.parametrize("odd", [nan, inf, -inf, 3e38])
@pytest.mark.one_in(8)
def test_an_example_of_weight_0_takes_no_part(member, odd):
    """Not in one block, and not in the others."""
    labels, inputs, kernel = operands(member, examples=4, classes=7)
    weights = jnp.array([1.0, 0.0, 2.0, 0.0])
    f = jax.value_and_grad(partial(scalar(member), class_block_size=3), (1, 2))

    def of(weights, labels, inputs):
        value, slopes = f(labels, inputs, kernel, weights=weights, reduction="weighted_sum")
        return value, *slopes

    wanted = of(weights, labels, inputs)
    broken = inputs.at[1, 0].set(odd)
    bad = labels.copy()
    bad[3, 0] = 7 if member == "sparse_sigmoid" else nan
    got = of(weights, bad, broken)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    slope = jax.grad(lambda w: of(w, bad, broken)[0])(weights)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(slope[np.array([1, 3])], 0)


def test_an_id_out_of_range_is_nan_for_its_example_alone():
    labels, inputs, kernel = operands("sparse_sigmoid", examples=4, classes=7)

    def of(bad, inputs):
        return per_example("sparse_sigmoid")(bad, inputs, kernel, class_block_size=3)

    for odd, dtype in ((7, np.int32), (2**31 - 1, np.int32), (2**32 - 1, np.uint32)):
        bad = np.where(labels < 0, 0, labels).astype(dtype)
        bad[2, 1] = odd
        values, pull = jax.vjp(partial(of, bad), inputs)
        np.testing.assert_array_equal(np.isnan(values), [0, 0, 1, 0])
        (slope,) = pull(jnp.ones(4))
        np.testing.assert_array_equal(np.isnan(slope).any(1), [0, 0, 1, 0])


@independent
@pytest.mark.one_in(2)
def test_a_class_at_minus_infinity_costs_nothing_without_a_label(member):
    labels, inputs, kernel = operands(member, examples=4, classes=7)
    bias = np.zeros(7, np.float32)
    bias[5] = -inf
    if member == "sparse_sigmoid":
        labels = np.where(labels == 5, -1, labels)
    else:
        labels[:, 5] = 0

    def f(kernel, bias, labels):
        return scalar(member)(labels, inputs, kernel, bias=bias, class_block_size=3)

    value, slope = jax.value_and_grad(f)(kernel, bias, labels)
    keep = np.array([0, 1, 2, 3, 4, 6])
    ids = member == "sparse_sigmoid"
    labels = np.where(labels == 6, 5, labels) if ids else labels[:, keep]
    wanted, slopes = jax.value_and_grad(f)(kernel[:, keep], bias[keep], labels)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(slope[:, keep], slopes, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(slope[:, 5], 0)


@independent
def test_three_products_and_four_for_one_loss_an_example(member):
    labels, inputs, kernel = operands(member, classes=12)
    f = partial(scalar(member), class_block_size=4)

    def each(*arguments):
        return per_example(member)(*arguments, class_block_size=4).sum()

    counts = {None: 1, 1: 2, 2: 2, (1, 2): 3}
    for moving, count in counts.items():
        g = f if moving is None else jax.value_and_grad(f, moving)
        assert len(products(g, labels, inputs, kernel)) == count
    assert len(products(each, labels, inputs, kernel)) == 1
    assert len(products(jax.value_and_grad(each, (1, 2)), labels, inputs, kernel)) == 4


@pytest.mark.optimized
@pytest.mark.since("0.10.0")
@pytest.mark.long
def test_memory_of_a_block_in_first_and_second_order():
    """4096 x 256 x 65536 float32: in blocks of examples 311 MB, and 445 to 647 MB."""
    examples, features, classes = 4096, 256, 65536
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    arrays = (f32((examples, features)), f32((features, classes)))
    ids = jax.ShapeDtypeStruct((examples, 8), jnp.int32)

    def by_ids(inputs, kernel, labels):
        return losses.linear_sparse_sigmoid_cross_entropy(labels, inputs, kernel)

    def held(wrap):
        return projection.temporaries(wrap(by_ids), *arrays, ids)

    assert held(lambda loss: loss) <= 30e6
    assert held(projection.value_and_gradients) <= 60e6
    assert held(partial(projection.hessian_vector, forward=True)) <= 62e6
    assert held(partial(projection.hessian_vector, forward=False)) <= 250e6


SOFTMAX = scalar("sparse_softmax")
ALL = {"label_smoothing": 0.1, "z_loss": 0.3, "logit_softcap": 4.0}


@pytest.mark.parametrize("width", [1, 4, 13, 50])
@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(12)
def test_exclusive_classes_of_every_width(width):
    """In float64, to rounding: value, every gradient, and their derivatives."""
    with jax.enable_x64(True):
        labels, inputs, kernel = operands(
            "sparse_softmax", examples=5, classes=13, dtype=np.float64
        )
        rng = np.random.default_rng(1)
        moving = (inputs, kernel, rng.standard_normal(13), np.array([1, 0.5, 0, 2, 3]))

        @partial(quick, static_argnums=1)
        def both(moving, sizes):
            def total(moving):
                inputs, kernel, bias, weights = moving
                return SOFTMAX(
                    labels, inputs, kernel, bias=bias, weights=weights, **ALL, **dict(sizes)
                )

            slope = jax.grad(total)
            return jax.value_and_grad(total)(moving), jax.jvp(slope, (moving,), (moving,))[1]

        wanted = both(moving, (("block_size", 5),))
        got = both(moving, (("class_block_size", width),))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), got, wanted)


@pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
@pytest.mark.parametrize("width", [1, 4, 13])
@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(18)
def test_one_loss_an_example_of_exclusive_classes(width, options):
    """In float64, to rounding: value, every gradient, and their derivatives up to the third."""
    with jax.enable_x64(True):
        labels, inputs, kernel = operands(
            "sparse_softmax", examples=5, classes=13, dtype=np.float64
        )
        inputs = inputs.at[1].multiply(30)  # one class leads by far
        rng = np.random.default_rng(1)
        moving = {"inputs": inputs, "kernel": kernel, "bias": rng.standard_normal(13)}
        moving["weights"] = np.array([1, 0.5, 0, 2, 3])
        along = jax.tree.map(lambda x: rng.standard_normal(x.shape), moving)

        @partial(quick, static_argnums=1)
        def both(moving, sizes):
            def total(moving):
                each = SOFTMAX(labels, **moving, **options, **dict(sizes), reduction="none")
                return jnp.sum(each * jnp.sin(each))

            return nested(total, moving, along)

        wanted = both(moving, (("block_size", 5),))
        got = both(moving, (("class_block_size", width),))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), got, wanted)


def nested(total, moving, along):
    """Value, gradient, its product with the Hessian in three nestings, and a third derivative."""

    def slope(moving):
        return jax.jvp(total, (moving,), (along,))[1]

    twice = jax.grad(slope)
    return (
        jax.value_and_grad(total)(moving),
        twice(moving),
        jax.jvp(jax.grad(total), (moving,), (along,))[1],
        jax.grad(lambda moving: sum_of(jax.grad(total)(moving), along))(moving),
        jax.grad(lambda moving: sum_of(twice(moving), along))(moving),
    )


def sum_of(a, b):
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))


@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(3)
def test_second_derivatives_of_a_leader_keep_their_digits():
    """p (1 - p), for p across both ends of the moment's guard, 0.6 and 0.9, to 1 - 1e-25."""
    ahead = np.concatenate([np.linspace(-1, 4, 60), np.linspace(5, 60, 56)]).astype(np.float32)
    inputs = np.stack([ahead, np.ones_like(ahead)], 1)
    kernel = np.array([[0, 0, 0, 1, 0], [0, -1, 0.5, 0, -0.3]], np.float32)
    labels, along = np.full(len(ahead), 3), jnp.zeros(5).at[3].set(1)

    def each(bias):
        return SOFTMAX(labels, inputs, kernel, bias=bias, class_block_size=2, reduction="none")

    def slope(bias):
        return jax.jvp(each, (bias,), (along,))[1]

    got = jax.jvp(slope, (jnp.zeros(5),), (along,))[1]
    logits = inputs.astype(np.float64) @ kernel.astype(np.float64)
    rest = np.exp(np.delete(logits, 3, 1) - logits[:, 3:4]).sum(1)
    p = 1 / (1 + rest)
    assert (np.abs(p - 0.6) < 0.02).any()
    assert (np.abs(p - 0.9) < 0.02).any()
    np.testing.assert_allclose(got, p * rest / (1 + rest), rtol=2e-6)


@pytest.mark.parametrize("odd", [nan, inf, -inf, 3e38])
@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(12)
def test_an_example_of_weight_0_has_no_part_in_exclusive_classes(odd):
    labels, inputs, kernel = operands("sparse_softmax", examples=4, classes=7)
    weights = jnp.array([1.0, 0.0, 2.0, 0.0])

    def f(labels, inputs, kernel, weights):
        return SOFTMAX(labels, inputs, kernel, weights=weights, class_block_size=3)

    of = jax.value_and_grad(f, (1, 2, 3))
    wanted = of(labels, inputs, kernel, weights)
    bad = np.array([labels[0], labels[1], labels[2], 7])
    got = of(bad, inputs.at[1, 0].set(odd), kernel, weights)
    np.testing.assert_array_equal(got[0], wanted[0])
    jax.tree.map(np.testing.assert_array_equal, got[1][:2], wanted[1][:2])
    assert np.isfinite(got[1][2]).all()


@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(3)
def test_an_id_out_of_range_is_nan_in_blocks_of_classes():
    labels, inputs, kernel = operands("sparse_softmax", examples=4, classes=7)
    f = jax.value_and_grad(partial(SOFTMAX, class_block_size=3), 1)
    for odd, dtype in (
        (7, np.int32),
        (-1, np.int32),
        (2**31 - 1, np.int32),
        (2**32 - 1, np.uint32),
    ):
        bad = labels.astype(dtype)
        bad[2] = odd
        value, slope = f(bad, inputs, kernel)
        assert np.isnan(value)
        np.testing.assert_array_equal(np.isnan(slope).any(1), [0, 0, 1, 0])


@pytest.mark.usefixtures("lowered_for")
@pytest.mark.one_in(2)
def test_a_confident_example_keeps_its_digits():
    """1 - p far below the last digit of p; a class that is ruled out has no slope."""
    inputs, labels = jnp.array([[40.0], [60.0]]), np.array([4, 4])
    kernel = jnp.array([[0.0, -1.0, 0.7, 0.5, 1.0]])
    bias = jnp.array([0.0, 0.0, -jnp.inf, 0.0, 0.0])
    f = jax.value_and_grad(partial(SOFTMAX, bias=bias, class_block_size=2), (1, 2))
    value, (dx, dkernel) = f(labels, inputs, kernel)
    x, k = np.asarray(inputs, np.float64), np.asarray(kernel, np.float64)
    logits = x @ k + np.asarray(bias, np.float64)
    rest = np.exp(logits - logits[:, 4:])
    rest[:, 4] = 0
    slope = rest / (1 + rest.sum(1, keepdims=True))
    slope[:, 4] = -slope.sum(1)
    np.testing.assert_allclose(value, np.log1p(rest.sum(1)).mean(), rtol=1e-5)
    np.testing.assert_allclose(dkernel, x.T @ slope / 2, rtol=1e-5)
    np.testing.assert_allclose(dx, slope @ k.T / 2, rtol=1e-5)


def test_four_products_of_exclusive_classes():
    labels, inputs, kernel = operands("sparse_softmax", classes=12)
    f = partial(SOFTMAX, class_block_size=4)
    for moving, count in {None: 1, 1: 3, 2: 3, (1, 2): 4}.items():
        g = f if moving is None else jax.value_and_grad(f, moving)
        assert len(products(g, labels, inputs, kernel)) == count

    def each(*arguments):
        return per_example("sparse_softmax")(*arguments, class_block_size=4).sum()

    assert len(products(each, labels, inputs, kernel)) == 1
    assert len(products(jax.value_and_grad(each, (1, 2)), labels, inputs, kernel)) == 4


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.usefixtures("lowered_for")
@pytest.mark.long
def test_default_blocks_that_are_filled_up(member, monkeypatch):
    """13 examples in blocks of 8 at most, where a kernel of 24 classes is as large as a model's."""
    monkeypatch.setattr(blocking, "_ROOM", 64)
    with jax.enable_x64(True):
        labels, inputs, kernel = operands(member, examples=13, classes=24, dtype=np.float64)
        labels = labels if labels.dtype == np.int64 else labels.astype(np.float64)
        moving = (inputs, kernel)

        @partial(quick, static_argnums=(1, 2))
        def both(moving, loss, block_size):
            def total(moving):
                return jnp.sum(loss(labels, *moving, block_size=block_size) ** 2)

            slope = jax.grad(total)
            return jax.value_and_grad(total)(moving), jax.jvp(slope, (moving,), (moving,))[1]

        for loss in (scalar(member), per_example(member)):
            wanted, got = both(moving, loss, 13), both(moving, loss, None)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), got, wanted)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(
    ("examples", "features", "classes"), [(4096, 4, 50304), (1000, 4, 32000), (5, 4096, 128256)]
)
@pytest.mark.one_in(3)
def test_every_platform_has_models_of_usual_sizes(member, examples, features, classes):
    """One program holds all ways, which must return the same however they cut."""
    ids = {"sparse_softmax": ((examples,), jnp.int32), "sparse_sigmoid": ((examples, 8), jnp.int32)}
    labels = ids.get(member, ((examples, classes), jnp.float32))
    arrays = [
        jax.ShapeDtypeStruct(*labels),
        jax.ShapeDtypeStruct((examples, features), jnp.bfloat16),
        jax.ShapeDtypeStruct((features, classes), jnp.bfloat16),
    ]
    for loss in (scalar(member), per_example(member)):

        def total(*arrays, loss=loss):
            return jnp.sum(loss(*arrays))

        _, slopes = jax.eval_shape(jax.value_and_grad(total, (1, 2)), *arrays)
        assert [x.shape for x in slopes] == [x.shape for x in arrays[1:]]


def of_shape(examples, features, classes, dtype="bfloat16"):
    inputs, kernel = jnp.zeros((examples, features), dtype), jnp.zeros((features, 1), dtype)
    return Operands(None, inputs, kernel, None, None), ClassCut(classes, 1, 4096)


@pytest.mark.usefixtures("usual_limits")
def test_blocks_of_classes_of_long_inputs_on_a_tpu():
    def width(*shape, **rest):
        given, cut = of_shape(*shape, **rest)
        return tpu._widened(cut, given).width

    assert width(8192, 2304, 256000) == 15360
    assert width(8192, 2047, 256000) == 4096  # not long
    assert width(8192, 1024, 256000, dtype="float32") == 15360
    assert width(8192, 2304, 10000) == 10000
    assert width(16384, 2304, 256000) == 8192  # 2^27 logits
    assert width(65536, 2304, 256000) == 4096
    given, cut = of_shape(8192, 2304, 256000)
    assert tpu._widened(cut._replace(runs=16), given).width == 4096  # split over chips
    wide = cut._replace(width=20480)
    assert tpu._widened(wide, given) == wide


@pytest.mark.usefixtures("usual_limits")
@pytest.mark.parametrize("reduction", ["none", "weighted_mean"])
@pytest.mark.one_in(2)
def test_no_examples_and_any_number_of_them_on_a_tpu(reduction):
    """Of as large a kernel as is cut into wide blocks of classes, for a number of examples."""

    def loss(*arrays):
        return jnp.sum(SOFTMAX(*arrays, reduction=reduction))

    (symbol,) = jax.export.symbolic_shape("examples")
    for examples in (0, symbol, 8192):
        shapes = ((examples,), jnp.int32), ((examples, 2304), jnp.bfloat16)
        arrays = [jax.ShapeDtypeStruct(*s) for s in (*shapes, ((2304, 256000), jnp.bfloat16))]
        program = jax.export.export(jax.jit(jax.grad(loss, (1, 2))), platforms=["tpu"])(*arrays)
        assert [x.shape for x in program.out_avals] == [x.shape for x in arrays[1:]]


@pytest.mark.usefixtures("usual_limits")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
def test_inputs_that_are_kept_near_are_the_same(dtype):
    odd = jnp.array([0.0, -0.0, inf, -inf, nan, 1.5, *np.sqrt(np.arange(2, 60))], dtype)
    for features, copied in ((64, False), (4096, True)):
        inputs = jnp.tile(odd, features // 64)[None]
        given, _ = of_shape(1, features, 8, dtype)
        given = given._replace(inputs=inputs)
        kept = jax.jit(tpu._kept_near)(given).inputs
        kept, wanted = (np.asarray(x, np.float64) for x in (kept, inputs))
        np.testing.assert_array_equal(kept, wanted)
        np.testing.assert_array_equal(np.signbit(kept), np.signbit(wanted))
        assert (tpu._kept_near(given).inputs is inputs) != copied


@pytest.mark.usefixtures("usual_limits")
@pytest.mark.parametrize(("count", "in_one_block"), [(3, True), (12, True), (13, False)])
@pytest.mark.one_in(3)
def test_the_value_of_lists_on_a_tpu(count, in_one_block):
    """Fused with the product, but for lists so long that their mask would be stored."""
    rng = np.random.default_rng(0)
    _, inputs, kernel = operands("sparse_sigmoid", examples=6, classes=40)
    labels = rng.integers(-1, 40, (6, count))
    labels[1:3, 0] = 40
    inputs = inputs.at[3, 0].set(nan)
    weights = jnp.array([1.0, 2.0, 0.0, 0.0, -1.0, 1.0])
    f = partial(
        scalar("sparse_sigmoid"), labels, weights=weights, class_block_size=4, reduction="none"
    )
    wanted = f(inputs, kernel)
    np.testing.assert_array_equal(np.isnan(wanted), [0, 1, 0, 0, 0, 0])
    with jxent.assume_platform("tpu"):
        np.testing.assert_allclose(f(inputs, kernel), wanted, rtol=1e-6)
        text = str(jax.make_jaxpr(f)(inputs, kernel))
    assert ("f32[6,40]" in text) == in_one_block
    assert ("f32[6,4]" in text) != in_one_block


def test_examples_a_block_on_gpus():
    """None is filled up where that can be, and no block is larger than it must be."""
    for examples, size, fewest, wanted in (
        (8192, 1024, 1200, (4, 2048)),
        (10000, 256, 1200, (8, 1250)),
        (8191, 256, 1200, (6, 1366)),
        (1000, 128, 1200, (1, 1000)),
        (8192, 2048, 1200, (4, 2048)),
        (32768, 128, 512, (64, 512)),
    ):
        cut = Cut(-(-examples // size), size)
        assert blocking.enlarged(cut, examples, fewest) == wanted


def test_blocks_of_classes_pay_where_the_kernel_is_passed_over_often():
    def pay(examples, features, classes, dtype=jnp.bfloat16, products=1):
        inputs = jax.ShapeDtypeStruct((examples, features), dtype)
        kernel = jax.ShapeDtypeStruct((features, classes), dtype)
        choice = blocking.Choice(
            blocking.cut(examples, kernel.shape, None),
            blocking.class_cut(examples, kernel.shape, 1, None),
        )
        return blocking.classes_pay(tpu.V5E, choice, inputs, kernel, products)

    assert pay(8192, 256, 65536)
    assert pay(8192, 1024, 131072)
    assert pay(8192, 2304, 256000)
    assert not pay(8192, 16384, 32768)  # products are all that counts
    assert not pay(8192, 4096, 32768)
    assert pay(8192, 4096, 32768, products=0)  # one loss an example has four in any case


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
@pytest.mark.parametrize("classes", [20, 12, 8])
@pytest.mark.one_in(3)
def test_classes_split_over_some_of_the_chips(classes):
    """20 in 4 runs of 5 over 8 chips: no kernel is gathered."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    labels, inputs, kernel = operands("sparse_sigmoid", examples=4, classes=classes)
    f = jax.value_and_grad(partial(scalar("sparse_sigmoid"), class_block_size=4), (1, 2))
    wanted = f(labels, inputs, kernel)
    split = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in ((labels, P("data")), (inputs, P("data")), (kernel, P(None, "model")))
    ]
    program = jax.jit(f).lower(*split).compile()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), program(*split), wanted)
    assert {c.kind for c in collectives(program.as_text())} <= {"all-reduce"}


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
def test_classes_that_are_split_explicitly_are_not_cut():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    labels, inputs, kernel = operands("sparse_sigmoid", examples=4, classes=20)
    f = scalar("sparse_sigmoid")
    wanted = f(labels, inputs, kernel)
    split = jax.device_put(kernel, NamedSharding(mesh, P(None, "model")))
    inputs = jax.device_put(inputs, NamedSharding(mesh, P("data", None)))
    labels = jax.device_put(labels, NamedSharding(mesh, P("data", None)))
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(jax.jit(f)(labels, inputs, split), wanted, rtol=1e-6)
        with pytest.raises(ValueError, match="class_block_size must be None where"):
            jax.jit(partial(f, class_block_size=4))(labels, inputs, split)
