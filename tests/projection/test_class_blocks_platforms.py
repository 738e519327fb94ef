"""Blocks of classes and of examples that a platform chooses by itself: TPU, GPU, any."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent._src.core.blocks import BlockCandidates, ClassBlocks, ExampleBlocks
from jxent._src.platforms import tpu
from jxent._src.projection import plan
from jxent._src.projection.matmuls import Operands
from tests.compile_options import quick
from tests.projection.members import LOSSES, SOFTMAX, operands, per_example, scalar

inf, nan = np.inf, np.nan


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.usefixtures("lowered_for")
@pytest.mark.long
def test_default_blocks_that_are_filled_up(loss_name, monkeypatch):
    """13 examples in blocks of 8 at most, where a kernel of 24 classes is as large as a model's."""
    monkeypatch.setattr(plan, "_MAX_LOGITS", 64)
    with jax.enable_x64(True):
        labels, inputs, kernel = operands(loss_name, examples=13, classes=24, dtype=np.float64)
        labels = labels if labels.dtype == np.int64 else labels.astype(np.float64)
        differentiated = (inputs, kernel)

        @partial(quick, static_argnums=(1, 2))
        def both(differentiated, loss, block_size):
            def total(differentiated):
                return jnp.sum(loss(labels, *differentiated, block_size=block_size) ** 2)

            gradient = jax.grad(total)
            return jax.value_and_grad(total)(differentiated), jax.jvp(
                gradient, (differentiated,), (differentiated,)
            )[1]

        for loss in (scalar(loss_name), per_example(loss_name)):
            wanted, got = both(differentiated, loss, 13), both(differentiated, loss, None)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), got, wanted)


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize(
    ("examples", "features", "classes"), [(4096, 4, 50304), (1000, 4, 32000), (5, 4096, 128256)]
)
@pytest.mark.one_in(3)
def test_every_platform_has_models_of_usual_sizes(loss_name, examples, features, classes):
    """One program holds all ways, which must return the same however they cut."""
    ids = {"sparse_softmax": ((examples,), jnp.int32), "sparse_sigmoid": ((examples, 8), jnp.int32)}
    labels = ids.get(loss_name, ((examples, classes), jnp.float32))
    arrays = [
        jax.ShapeDtypeStruct(*labels),
        jax.ShapeDtypeStruct((examples, features), jnp.bfloat16),
        jax.ShapeDtypeStruct((features, classes), jnp.bfloat16),
    ]
    for loss in (scalar(loss_name), per_example(loss_name)):

        def total(*arrays, loss=loss):
            return jnp.sum(loss(*arrays))

        _, gradients = jax.eval_shape(jax.value_and_grad(total, (1, 2)), *arrays)
        assert [x.shape for x in gradients] == [x.shape for x in arrays[1:]]


def of_shape(examples, features, classes, dtype="bfloat16"):
    inputs, kernel = jnp.zeros((examples, features), dtype), jnp.zeros((features, 1), dtype)
    return Operands(None, inputs, kernel, None, None), ClassBlocks(classes, 1, 4096)


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
def test_inputs_kept_in_fast_memory_are_the_same(dtype):
    nonfinite = jnp.array([0.0, -0.0, inf, -inf, nan, 1.5, *np.sqrt(np.arange(2, 60))], dtype)
    for features, copied in ((64, False), (4096, True)):
        inputs = jnp.tile(nonfinite, features // 64)[None]
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
        cut = ExampleBlocks(-(-examples // size), size)
        assert plan.grown(cut, examples, fewest) == wanted


def test_blocks_of_classes_pay_where_the_kernel_is_passed_over_often():
    def pay(examples, features, classes, dtype=jnp.bfloat16, products=1):
        inputs = jax.ShapeDtypeStruct((examples, features), dtype)
        kernel = jax.ShapeDtypeStruct((features, classes), dtype)
        choice = BlockCandidates(
            plan.cut(examples, kernel.shape, None),
            plan.class_blocks(examples, kernel.shape, 1, None),
        )
        return plan.prefer_class_blocks(tpu.V5E, choice, inputs, kernel, products)

    assert pay(8192, 256, 65536)
    assert pay(8192, 1024, 131072)
    assert pay(8192, 2304, 256000)
    assert not pay(8192, 16384, 32768)  # products are all that counts
    assert not pay(8192, 4096, 32768)
    assert pay(8192, 4096, 32768, products=0)  # one loss per example has four in any case
