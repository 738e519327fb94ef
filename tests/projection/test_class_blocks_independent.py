"""Blocks of independent classes: three matrix products, for sigmoid losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lib import programs as projection
from jxent import losses
from tests.compile_options import quick
from tests.projection.members import operands, per_example, products, scalar

inf, nan = np.inf, np.nan
INDEPENDENT = ("sparse_sigmoid", "sigmoid")
independent = pytest.mark.parametrize("loss_name", INDEPENDENT)


@independent
def test_there_are_blocks_of_what_there_is_more_of(loss_name):
    def shape_of_block(examples, classes, **sizes):
        labels, inputs, kernel = operands(loss_name, examples=examples, classes=classes)
        jaxpr = jax.make_jaxpr(partial(scalar(loss_name), **sizes))(labels, inputs, kernel)
        text = str(jaxpr)
        return {s for s in ("f32[40,6]", "f32[6,40]", "f32[4,6]", "f32[6,4]") if s in text}

    assert shape_of_block(6, 40, class_block_size=4) >= {"f32[6,4]"}
    assert shape_of_block(40, 6, block_size=4) >= {"f32[4,6]"}
    labels, inputs, kernel = operands(loss_name, examples=6, classes=40)
    with pytest.raises(ValueError, match="class_block_size must be None where block_size is"):
        scalar(loss_name)(labels, inputs, kernel, block_size=2, class_block_size=2)


@independent
@pytest.mark.one_in(2)
def test_every_width_gives_the_same_as_blocks_of_examples(loss_name):
    """In float64, to rounding: value, every gradient, and the loss of each example."""
    with jax.enable_x64(True):
        labels, inputs, kernel = operands(loss_name, examples=5, classes=13, dtype=np.float64)
        rng = np.random.default_rng(1)
        bias, q = rng.standard_normal(13), rng.uniform(0.5, 2, 13)
        weights = np.array([1, 0.5, 0, 2, 3])
        differentiated = {"inputs": inputs, "kernel": kernel, "bias": bias, "pos_weight": q}
        if loss_name == "sigmoid":
            labels = labels.astype(np.float64)
            differentiated["labels"] = labels

        @partial(quick, static_argnums=2)
        def both(differentiated, weights, sizes):
            options = {"label_smoothing": 0.1, "logit_softcap": 4.0, **dict(sizes)}

            def total(differentiated, weights):
                data = {"labels": labels, **differentiated}
                first = [data.pop(k) for k in ("labels", "inputs", "kernel")]
                return scalar(loss_name)(*first, weights=weights, **data, **options)

            def each(differentiated):
                return jnp.vdot(
                    weights,
                    per_example(loss_name)(**{"labels": labels, **differentiated}, **options),
                )

            return jax.value_and_grad(total, (0, 1))(differentiated, weights), jax.value_and_grad(
                each
            )(differentiated)

        wanted = both(differentiated, weights, (("block_size", 5),))
        for width in (1, 4, 13, 50):
            got = both(differentiated, weights, (("class_block_size", width),))
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), got, wanted)


@independent
@pytest.mark.parametrize("nonfinite", [nan, inf, -inf, 3e38])
@pytest.mark.one_in(8)
def test_an_example_of_weight_0_takes_no_part(loss_name, nonfinite):
    """Not in one block, and not in the others."""
    labels, inputs, kernel = operands(loss_name, examples=4, classes=7)
    weights = jnp.array([1.0, 0.0, 2.0, 0.0])
    f = jax.value_and_grad(partial(scalar(loss_name), class_block_size=3), (1, 2))

    def of(weights, labels, inputs):
        value, gradients = f(labels, inputs, kernel, weights=weights, reduction="weighted_sum")
        return value, *gradients

    wanted = of(weights, labels, inputs)
    broken = inputs.at[1, 0].set(nonfinite)
    invalid = labels.copy()
    invalid[3, 0] = 7 if loss_name == "sparse_sigmoid" else nan
    got = of(weights, invalid, broken)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    gradient = jax.grad(lambda w: of(w, invalid, broken)[0])(weights)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[np.array([1, 3])], 0)


def test_an_id_out_of_range_is_nan_for_its_example_alone():
    labels, inputs, kernel = operands("sparse_sigmoid", examples=4, classes=7)

    def of(invalid, inputs):
        return per_example("sparse_sigmoid")(invalid, inputs, kernel, class_block_size=3)

    for nonfinite, dtype in ((7, np.int32), (2**31 - 1, np.int32), (2**32 - 1, np.uint32)):
        invalid = np.where(labels < 0, 0, labels).astype(dtype)
        invalid[2, 1] = nonfinite
        values, pull = jax.vjp(partial(of, invalid), inputs)
        np.testing.assert_array_equal(np.isnan(values), [0, 0, 1, 0])
        (gradient,) = pull(jnp.ones(4))
        np.testing.assert_array_equal(np.isnan(gradient).any(1), [0, 0, 1, 0])


@independent
@pytest.mark.one_in(2)
def test_a_class_at_minus_infinity_costs_nothing_without_a_label(loss_name):
    labels, inputs, kernel = operands(loss_name, examples=4, classes=7)
    bias = np.zeros(7, np.float32)
    bias[5] = -inf
    if loss_name == "sparse_sigmoid":
        labels = np.where(labels == 5, -1, labels)
    else:
        labels[:, 5] = 0

    def f(kernel, bias, labels):
        return scalar(loss_name)(
            labels, inputs, kernel, bias=bias, class_block_size=3, mean_over="examples"
        )

    value, gradient = jax.value_and_grad(f)(kernel, bias, labels)
    keep = np.array([0, 1, 2, 3, 4, 6])
    ids = loss_name == "sparse_sigmoid"
    labels = np.where(labels == 6, 5, labels) if ids else labels[:, keep]
    wanted, gradients = jax.value_and_grad(f)(kernel[:, keep], bias[keep], labels)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, keep], gradients, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[:, 5], 0)


@independent
def test_three_products_and_four_for_one_loss_an_example(loss_name):
    labels, inputs, kernel = operands(loss_name, classes=12)
    f = partial(scalar(loss_name), class_block_size=4)

    def each(*arguments):
        return per_example(loss_name)(*arguments, class_block_size=4).sum()

    counts = {None: 1, 1: 2, 2: 2, (1, 2): 3}
    for differentiated, count in counts.items():
        g = f if differentiated is None else jax.value_and_grad(f, differentiated)
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
