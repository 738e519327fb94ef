"""A training step returns its loss, and writes the new logits over the old ones."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jxent
from jxent import losses
from jxent._src.core import hints
from tests.platforms.common import rarely

pytestmark = pytest.mark.optimized


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
    """Neither the old logits nor what loss and gradient share: see `hints.ordering_zero`."""
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
    monkeypatch.setattr(hints, "ordering_zero", jnp.zeros_like)
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


@pytest.mark.parametrize("nonfinite", [0.0, -0.0, np.inf, -np.inf, np.nan])
def test_the_zero_of_the_dependency(nonfinite):
    """Added to a logit it changes nothing, whatever the loss is."""
    zero = jax.jit(hints.ordering_zero)(jnp.float32(nonfinite))
    logits = np.float32([1e-30, -80, np.inf])
    np.testing.assert_array_equal(logits + np.asarray(zero), logits)
    assert zero == (np.finfo(np.float32).tiny if nonfinite == -np.inf else 0)
