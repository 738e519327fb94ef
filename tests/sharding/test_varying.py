"""Operands that vary over different axes of a mesh, or of `vmap`: the answer of one device."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import jxent
from jxent import losses
from tests.compile_options import quick
from tests.reference import tolerance

DATA, MODEL = "data", "model"
EXAMPLES, FEATURES, CLASSES = 7, 3, 8  # 7 are no whole blocks of 4
BLOCKS = {"block_size": 4}
BY_CLASSES = {"class_block_size": 3}


@cache
def arrays():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "ids": rng.integers(CLASSES, size=EXAMPLES).astype(np.int32),
        "lists": rng.integers(-1, CLASSES, size=(EXAMPLES, 3)).astype(np.int32),
        "dense": rng.uniform(0, 1, (EXAMPLES, CLASSES)).astype(np.float32),
        "shares": rng.uniform(0, 1, (EXAMPLES, 3)).astype(np.float32),
        "inputs": normal(EXAMPLES, FEATURES),
        "kernel": normal(FEATURES, CLASSES),
        "bias": normal(CLASSES),
        "q": rng.uniform(0.5, 2, CLASSES).astype(np.float32),
        "one_q": np.float32(1.7),
        "temperature": np.float32(1.3),
        "teacher": normal(EXAMPLES, 2),
        "teacher_kernel": normal(2, CLASSES),
        "logits": 2 * normal(EXAMPLES, CLASSES),
        "teacher_logits": 2 * normal(EXAMPLES, CLASSES),
        "weights": rng.uniform(0.5, 2, EXAMPLES).astype(np.float32),
    }


# How classes are split, where they are.
OF_CLASSES = {
    "dense": P(None, MODEL), "kernel": P(None, MODEL), "bias": P(MODEL), "q": P(MODEL),
    "teacher_kernel": P(None, MODEL), "logits": P(None, MODEL), "teacher_logits": P(None, MODEL),
}  # fmt: skip
INTEGERS = ("ids", "lists")


def _ids(f, x, **where):
    return f(x["ids"], x["inputs"], x["kernel"], bias=x["bias"], **BLOCKS, **where)


def _listed(f, x, **where):
    weights = {"label_weights": x["shares"]}
    return f(x["lists"], x["inputs"], x["kernel"], **weights, **BLOCKS, **where)


def _dense(f, x, **where):
    return f(x["dense"], x["inputs"], x["kernel"], **where)


def _lists(f, x, **where):
    return f(x["lists"], x["inputs"], x["kernel"], **where)


def _kl(f, x, **where):
    teacher = (x["teacher"], x["teacher_kernel"])
    return f(*teacher, x["inputs"], x["kernel"], temperature=x["temperature"], **BLOCKS, **where)


# What a weighted sum of losses is a function of, and how it is computed.
SCALARS: dict[str, tuple[tuple[str, ...], Any, Any]] = {
    "ids": (("ids", "inputs", "kernel", "bias"), losses.linear_sparse_softmax_cross_entropy, _ids),
    "listed": (
        ("lists", "shares", "inputs", "kernel"),
        losses.linear_sparse_softmax_cross_entropy,
        _listed,
    ),
    "dense": (
        ("dense", "inputs", "kernel"),
        losses.linear_softmax_cross_entropy,
        partial(_dense, **BLOCKS),
    ),
    "sigmoid": (
        ("dense", "inputs", "kernel", "q"),
        losses.linear_sigmoid_cross_entropy,
        lambda f, x, **where: _dense(f, x, pos_weight=x["q"], **BLOCKS, **where),
    ),
    "sigmoid by classes": (
        ("dense", "inputs", "kernel", "one_q"),
        losses.linear_sigmoid_cross_entropy,
        lambda f, x, **where: _dense(f, x, pos_weight=x["one_q"], **BY_CLASSES, **where),
    ),
    "lists": (
        ("lists", "inputs", "kernel", "one_q"),
        losses.linear_sparse_sigmoid_cross_entropy,
        lambda f, x, **where: _lists(f, x, pos_weight=x["one_q"], **BLOCKS, **where),
    ),
    "KL": (
        ("teacher", "teacher_kernel", "inputs", "kernel", "temperature"),
        losses.linear_softmax_kl_divergence,
        _kl,
    ),
}


def _per_example(name, labels):
    def f(x, **where):
        function = getattr(jxent, f"linear_{name}_cross_entropy")
        given = {"labels": x[labels], "inputs": x["inputs"], "kernel": x["kernel"]}
        return jnp.sum(function(**given, **BLOCKS, **where))

    return (labels, "inputs", "kernel"), f


def _scalar(name):
    takes, function, call = SCALARS[name]
    return takes, lambda x, **where: call(function, x, reduction="weighted_sum", **where)


def _statistics(x, **where):
    found = jxent.linear_sparse_softmax_statistics(
        labels=x["ids"], inputs=x["inputs"], kernel=x["kernel"], temperature=x["temperature"],
        **BLOCKS, **where,
    )  # fmt: skip
    return jnp.sum(found.entropy) + jnp.sum(found.log_prob)


def _kl_of_logits(x, **where):
    each = jxent.softmax_kl_divergence_with_logits(
        teacher_logits=x["teacher_logits"], logits=x["logits"], temperature=x["temperature"],
        **where,
    )  # fmt: skip
    return jnp.sum(each)


def _statistics_of_logits(x, **where):
    found = jxent.sparse_softmax_statistics_with_logits(
        labels=x["ids"], logits=x["logits"], **where
    )
    return jnp.sum(found.entropy) + jnp.sum(found.log_prob)


def _of_logits(name, labels, *more):
    def f(x, **where):
        function = getattr(jxent, name)
        named = {"label_weights": x["shares"]} if "shares" in more else {}
        return jnp.sum(function(labels=x[labels], logits=x["logits"], **named, **where))

    return (labels, "logits", *more), f


def _weighted(function, labels):
    """Of logits where there is a kernel, or of its projection."""

    def f(x, **where):
        data = [x[k] for k in ("logits", "inputs", "kernel") if k in x]
        options = {"reduction": "weighted_mean", "weights": x["weights"], **where}
        return function(x[labels], *data, **options)

    return f


def _blockwise(x, **where):
    def each(kernel, row):
        return jxent.linear_sparse_softmax_cross_entropy(
            labels=row["ids"], inputs=row["inputs"], kernel=kernel, **where
        )

    rows = {"ids": x["ids"], "inputs": x["inputs"]}
    return losses.blockwise(
        each, x["kernel"], rows, weights=x["weights"], reduction="weighted_sum", **BLOCKS
    )


FUNCTIONS = {
    **{name: _scalar(name) for name in SCALARS},
    "ids, weighted": (
        ("ids", "inputs", "kernel", "weights"),
        _weighted(losses.linear_sparse_softmax_cross_entropy, "ids"),
    ),
    "logits, ids, weighted": (
        ("ids", "logits", "weights"),
        _weighted(losses.sparse_softmax_cross_entropy, "ids"),
    ),
    "logits, dense, weighted": (
        ("dense", "logits", "weights"),
        _weighted(losses.softmax_cross_entropy, "dense"),
    ),
    "each of ids": _per_example("sparse_softmax", "ids"),
    "each of dense": _per_example("softmax", "dense"),
    "each of lists": _per_example("sparse_sigmoid", "lists"),
    "each of sigmoid": _per_example("sigmoid", "dense"),
    "statistics": (("ids", "inputs", "kernel", "temperature"), _statistics),
    "logits, ids": _of_logits("sparse_softmax_cross_entropy_with_logits", "ids"),
    "logits, listed": _of_logits("sparse_softmax_cross_entropy_with_logits", "lists", "shares"),
    "logits, dense": _of_logits("softmax_cross_entropy_with_logits", "dense"),
    "logits, lists": _of_logits("sparse_sigmoid_cross_entropy_with_logits", "lists"),
    "logits, KL": (("teacher_logits", "logits", "temperature"), _kl_of_logits),
    "logits, statistics": (("ids", "logits"), _statistics_of_logits),
    "blockwise": (("ids", "inputs", "kernel", "weights"), _blockwise),
}


def taken(name):
    return {k: arrays()[k] for k in FUNCTIONS[name][0]}


def split(x):
    """What is differentiated, and the rest."""
    return {k: v for k, v in x.items() if k not in INTEGERS}, {
        k: v for k, v in x.items() if k in INTEGERS
    }


def derivatives(f):
    """Value, gradient, and the gradient's tangent along the arguments and along their negative."""

    def of(differentiated, fixed):
        g = jax.grad(lambda m: f({**m, **fixed}))
        value, gradients = jax.value_and_grad(lambda m: f({**m, **fixed}))(differentiated)
        forward = jax.jvp(g, (differentiated,), (differentiated,))[1]
        backward = jax.vjp(g, differentiated)[1](differentiated)[0]
        along = jax.jvp(lambda m: f({**m, **fixed}), (differentiated,), (differentiated,))[1]
        return value, gradients, forward, backward, along

    return of


@cache
def on_one_device(name):
    result = quick(derivatives(FUNCTIONS[name][1]))(*split(taken(name)))
    return jax.tree.map(np.asarray, result)


def same(got, wanted):
    """Each of several trees, relative to the largest number in any of them.

    A divergence does not change where logits and temperature grow alike, so some derivatives are 0
    but for rounding.
    """
    allowed = 8 * tolerance(jnp.float32, EXAMPLES * CLASSES)
    size = max(float(np.max(np.abs(x), initial=0)) for x in jax.tree.leaves(wanted))
    for a, b in zip(got, wanted, strict=True):
        close = partial(np.testing.assert_allclose, rtol=allowed, atol=allowed * size)
        jax.tree.map(close, a, b)


def check(f, name):
    """Value and gradient are right, and second derivatives can be traced."""
    given = split(taken(name))
    jax.eval_shape(derivatives(f), *given)
    first = quick(
        lambda differentiated, fixed: jax.value_and_grad(lambda m: f({**m, **fixed}))(
            differentiated
        )
    )
    same(first(*given), on_one_device(name)[:2])


def mesh_of(*sizes):
    return jax.make_mesh(sizes, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.one_in(50)
@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
def test_classes_split_differentiated_from_outside(name, checked):
    """The number of examples is none that the blocks divide, and weights are a plain number."""
    takes, function = FUNCTIONS[name]
    specs = {k: OF_CLASSES.get(k, P()) for k in takes}
    f = jax.shard_map(
        lambda x: function(x, axis_name=MODEL), mesh=mesh_of(1, 2), in_specs=(specs,),
        out_specs=P(), check_vma=checked,
    )  # fmt: skip
    same(quick(derivatives(f))(*split(taken(name))), on_one_device(name))


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "all but one"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.one_in(50)
@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
def test_one_operand_varies(name, alone):
    """Over a mesh axis that splits nothing else: the chips have the same arrays, in other types."""
    takes, function = FUNCTIONS[name]
    mesh = mesh_of(2, 1)
    for one in takes:
        varying = {k for k in takes if (k == one) == alone}

        def local(x, varying=varying):
            x = {k: jax.lax.pcast(v, DATA, to="varying") if k in varying else v
                 for k, v in x.items()}  # fmt: skip
            return jax.lax.pmean(function(x), DATA)

        check(jax.shard_map(local, mesh=mesh, in_specs=(P(),), out_specs=P()), name)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.long
def test_one_operand_is_batched(name):
    """Derivatives taken outside of a `vmap` over one operand, and over all but one."""
    takes, function = FUNCTIONS[name]
    for one in takes:
        for batched in ({one}, set(takes) - {one}):
            axes = {k: 0 if k in batched else None for k in takes}

            def f(x, batched=batched, axes=axes):
                stacked = {k: jnp.stack([v, v]) if k in batched else v for k, v in x.items()}
                return jnp.sum(jax.vmap(function, (axes,))(stacked)) / 2

            check(f, name)
