"""Tools that look for NaN report none on data without NaN, and one where the result is NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jxent
from jxent import losses
from tests.api.test_properties import scalar, split
from tests.catalog import CASES
from tests.compile_options import quick

inf, nan = np.inf, np.nan

# What is put in place of the first classes' logits; of a projection in its bias.
PLACES = {
    "ordinary": [],
    "masked": [-inf],
    "all but one masked": [-inf] * 4,
    "at inf": [inf],
    "several at inf": [inf, inf],
    "at both ends": [inf, -inf, -inf],
}
IDS = ("ids", "lists", "weighted")


def with_values(x, axis, values):
    """The array with these values in the first places of an axis, but never in all of them."""
    x = np.moveaxis(x.copy(), axis, 0)
    for place, value in enumerate(values[: len(x) - 1]):
        x[place] = value
    return np.moveaxis(x, 0, axis)


def padded(case, arrays):
    """With ids out of range in the last example, whose weight is 0."""
    labels, weights = arrays["labels"].copy(), arrays["weights"].copy()
    weights[-1], labels[-1] = 0, case.shape[-1] + 2
    return {**arrays, "labels": labels, "weights": weights}


def data(case):
    """The case's arrays without NaN, by name; labels are random, so that some are at infinities."""
    arrays = case.arrays(np.float32)
    axis = -1 if case.axis is None else case.axis
    if case.excluded:  # the last class is left where all others are masked
        out = arrays["excluded"]
        arrays["excluded"] = np.where(out == case.shape[axis] - 1, -1, out)
    logits = next((name for name in ("logits", "bias") if name in arrays), None)
    along = axis if logits == "logits" else -1
    for name, values in PLACES.items():
        if values and logits is None:
            continue
        given = dict(arrays)
        if values:
            given[logits] = with_values(arrays[logits], along, values)
        yield name, given
        if "weights" in arrays and case.labels in IDS:
            yield f"{name}, padded", padded(case, given)
        if case.labels_name == "teacher_logits" and values:
            teacher = with_values(arrays["labels"], axis, values)
            yield f"{name} for the teacher", {**arrays, "labels": teacher}
            yield f"{name} for both", {**given, "labels": teacher}
        elif case.labels == "dense" and case.taught is None:
            labels = np.moveaxis(np.zeros_like(arrays["labels"]), axis, -1)
            labels[..., -1] = 1
            yield f"{name}, one-hot", {**given, "labels": np.moveaxis(labels, -1, axis)}


def tangents_of(case):
    return split(case, case.arrays(np.float32, seed=1))[1]


def transforms(case, arrays):
    """The value, the gradient and the tangent, each to be computed on its own."""
    f, differentiated = split(case, arrays)
    tangents = tangents_of(case)
    return {
        "value": lambda: f(differentiated),
        "gradient": lambda: jax.grad(scalar(case, f))(differentiated),
        "tangent": lambda: jax.jvp(f, (differentiated,), (tangents,)),
    }


def has_nan(tree):
    return any(np.isnan(leaf).any() for leaf in jax.tree.leaves(tree))


def check_by_checkify(case):
    names = case.differentiable()

    def every(arrays, tangents):
        differentiated = {name: arrays[name] for name in names}
        fixed = {name: x for name, x in arrays.items() if name not in names}

        def loss(differentiated):
            return case.loss(**fixed, **differentiated)

        gradient = jax.grad(scalar(case, loss))(differentiated)
        return loss(differentiated), gradient, jax.jvp(loss, (differentiated,), (tangents,))

    checked = quick(checkify.checkify(every, errors=checkify.nan_checks))
    for name, arrays in data(case):
        error, result = checked(arrays, tangents_of(case))
        assert error.get() is None, name
        assert not has_nan(result), name


def each_case(*fast):
    """The cases of these names are in the fast suite."""
    params = [
        pytest.param(case, id=str(case), marks=[] if str(case) in fast else [pytest.mark.long])
        for case in CASES
    ]
    return pytest.mark.parametrize("case", params)


@each_case("softmax axis 0")
def test_checkify(case):
    check_by_checkify(case)


@each_case()
def test_checkify_on_other_platforms(case, lowered_for):
    check_by_checkify(case)


@each_case("sparse")
def test_debug_nans_without_jit(case):
    for name, arrays in data(case):
        for of, transform in transforms(case, arrays).items():
            with jax.debug_nans(True), jax.disable_jit():
                assert not has_nan(transform()), (name, of)


@each_case()
def test_debug_nans_with_jit(case):
    """It looks at what a function saves for its gradient, too."""
    for name, arrays in data(case):
        for of, transform in transforms(case, arrays).items():
            with jax.debug_nans(True):
                assert not has_nan(transform()), (name, of)


def sparse(label=0, row=(0.5, -1.0, 2.0), temperature=1.0):
    return jxent.sparse_softmax_statistics_with_logits(
        labels=jnp.array([label]), logits=jnp.array([row]), temperature=temperature
    ).log_prob


INVALID = {
    "id out of range": lambda: losses.sparse_softmax_cross_entropy([5], [[0.5, -1.0, 2.0]]),
    "listed id out of range": lambda: losses.sparse_sigmoid_cross_entropy([[5]], [[0.5, -1.0]]),
    "NaN among dense labels": lambda: losses.softmax_cross_entropy([[1.0, nan]], [[0.5, -1.0]]),
    "NaN among logits": lambda: sparse(row=(0.5, nan, 2.0)),
    "no class left": lambda: sparse(row=(-inf, -inf, -inf)),
    "temperature of 0": lambda: sparse(temperature=jnp.zeros(())),
}


@pytest.mark.parametrize("call", INVALID.values(), ids=INVALID)
@pytest.mark.one_in(6)
def test_what_is_invalid_is_reported(call):
    assert has_nan(call())
    error, _ = checkify.checkify(call, errors=checkify.nan_checks)()
    assert "nan generated" in str(error.get())
    with jax.debug_nans(True):
        with pytest.raises(FloatingPointError):
            call()
        with jax.disable_jit(), pytest.raises(FloatingPointError):
            call()


def test_nothing_is_cached_across_disable_jit():
    """Implementations for platforms are in what is compiled, before and after, and only there."""

    def program():
        x = jnp.zeros((2, 40))
        loss = jax.value_and_grad(lambda x: losses.softmax_cross_entropy(jnp.ones((2, 40)), x))
        return str(jax.make_jaxpr(loss)(x))

    before = program()
    with jax.disable_jit():
        within = program()
    assert "custom_vmap_call" in before
    assert "custom_vmap_call" not in within
    assert program() == before
