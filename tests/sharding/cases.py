"""Losses as functions of arrays that are split over a mesh, and their answers on one device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jxent
from jxent import losses
from tests.compile_options import quick
from tests.reference import tolerance

MESHES = [(8, 1), (1, 8), (2, 4), (4, 2)]
EXAMPLES, FEATURES, CLASSES = 16, 6, 40
DATA, MODEL = "data", "model"
ALL = {"label_smoothing": 0.1, "z_loss": 0.01, "logit_softcap": 5.0}
SPLITS = {
    "ids": P(DATA), "lists": P(DATA, None), "dense": P(DATA, MODEL), "logits": P(DATA, MODEL),
    "inputs": P(DATA, None), "kernel": P(None, MODEL), "bias": P(MODEL), "q": P(MODEL),
    "one_q": P(), "weights": P(DATA), "shares": P(DATA, None),
}  # fmt: skip


@cache
def arrays(examples=EXAMPLES, features=FEATURES, classes=CLASSES):
    """Arguments by the names of `SPLITS`."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "ids": rng.integers(classes, size=examples).astype(np.int32),
        "lists": rng.integers(-1, classes, size=(examples, 3)).astype(np.int32),
        "dense": rng.uniform(0, 1, (examples, classes)).astype(np.float32),
        "logits": 3 * normal(examples, classes),
        "inputs": normal(examples, features),
        "kernel": normal(features, classes),
        "bias": normal(classes),
        "q": rng.uniform(0.5, 2, classes).astype(np.float32),
        "one_q": np.float32(1.7),
        "weights": rng.uniform(0.5, 2, examples).astype(np.float32),
        "shares": rng.uniform(0, 1, (examples, 3)).astype(np.float32),
    }  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A weighted sum of losses as a function of its arguments."""

    name: str
    takes: tuple[str, ...]
    total: Callable
    needs_name: bool  # under shard_map, of the axis that splits the classes

    def __str__(self):
        return f"{self.name} of {' '.join(self.takes)}"

    @property
    def differentiated(self):
        return tuple(i for i, name in enumerate(self.takes) if name not in ("ids", "lists"))


# Labels and positive weights by the names that the functions give them.
KEYWORDS = dict.fromkeys(("ids", "lists", "dense"), "labels") | dict.fromkeys(
    ("q", "one_q"), "pos_weight"
)
KEYWORDS["shares"] = "label_weights"
# One loss a class: nothing is reduced over the classes or named by id.
ELEMENTWISE = ("weighted_cross_entropy_with_logits", "sigmoid_cross_entropy")


def each(name, *takes, **options):
    """One loss per example, or per class, with a weight each."""
    function = getattr(jxent, name)

    def total(*arguments, **where):
        *data, weights = arguments
        named = {KEYWORDS.get(k, k): v for k, v in zip(takes, data, strict=True)}
        values = function(**named, **options, **where)
        if name in ELEMENTWISE:
            values = jnp.sum(values, 1)
        return jnp.sum(values * weights)

    return Case(name + _marks(takes, options), (*takes, "weights"), total, name not in ELEMENTWISE)


def reduced(name, *takes, **options):
    """The scalar of `jxent.losses`, summed."""
    function = getattr(losses, name)

    def total(*arguments, **where):
        *data, weights = arguments
        named = {KEYWORDS.get(k, k): v for k, v in zip(takes, data, strict=True)}
        first = [named.pop(k) for k in ("labels", "logits", "inputs", "kernel") if k in named]
        if name in ELEMENTWISE:
            weights = weights[:, None]
        return function(
            *first, weights=weights, reduction="weighted_sum", **named, **options, **where
        )

    title = f"losses.{name}" + _marks(takes, options)
    return Case(title, (*takes, "weights"), total, name not in ELEMENTWISE)


def _marks(takes, options):
    if "shares" in takes:
        return " weighted"
    return " all" if "z_loss" in options else BY_CLASSES * ("class_block_size" in options)


BY_CLASSES = " by classes"
BLOCK, CLASS_BLOCK = {"block_size": 8}, {"class_block_size": 8}
CASES = [
    each("weighted_cross_entropy_with_logits", "dense", "logits", "q"),
    each("softmax_cross_entropy_with_logits", "dense", "logits", z_loss=0.1),
    each("sparse_softmax_cross_entropy_with_logits", "ids", "logits"),
    each("sparse_softmax_cross_entropy_with_logits", "ids", "logits", **ALL),
    each("sparse_sigmoid_cross_entropy_with_logits", "lists", "logits", "one_q"),
    each("linear_sparse_softmax_cross_entropy", "ids", "inputs", "kernel", "bias", **BLOCK),
    each("linear_sigmoid_cross_entropy", "dense", "inputs", "kernel", "one_q", **BLOCK),
    reduced("sigmoid_cross_entropy", "dense", "logits", "q"),
    reduced("softmax_cross_entropy", "dense", "logits", **ALL),
    reduced("sparse_softmax_cross_entropy", "ids", "logits"),
    reduced("sparse_sigmoid_cross_entropy", "lists", "logits", "q"),
    each("sparse_softmax_cross_entropy_with_logits", "lists", "logits", "shares", **ALL),
    each("linear_sparse_softmax_cross_entropy", "lists", "inputs", "kernel", "shares", **BLOCK),
    reduced("linear_sparse_softmax_cross_entropy", "lists", "inputs", "kernel", "bias", "shares",
            **BLOCK, **ALL),
    reduced("linear_sparse_softmax_cross_entropy", "ids", "inputs", "kernel", "bias", **BLOCK),
    reduced("linear_softmax_cross_entropy", "dense", "inputs", "kernel", **BLOCK, **ALL),
    reduced("linear_sparse_sigmoid_cross_entropy", "lists", "inputs", "kernel", "q", **BLOCK),
    reduced("linear_sigmoid_cross_entropy", "dense", "inputs", "kernel", "one_q", "bias", **BLOCK),
    each("linear_sparse_sigmoid_cross_entropy", "lists", "inputs", "kernel", "q", **CLASS_BLOCK),
    each("linear_sigmoid_cross_entropy", "dense", "inputs", "kernel", "one_q", **CLASS_BLOCK),
    reduced("linear_sparse_sigmoid_cross_entropy", "lists", "inputs", "kernel", "one_q", "bias",
            **CLASS_BLOCK),
    reduced("linear_sigmoid_cross_entropy", "dense", "inputs", "kernel", "q", **CLASS_BLOCK),
    each("linear_sparse_softmax_cross_entropy", "ids", "inputs", "kernel", "bias", **CLASS_BLOCK),
    reduced("linear_sparse_softmax_cross_entropy", "ids", "inputs", "kernel", **CLASS_BLOCK),
]  # fmt: skip


def mesh_of(shape, kind=AxisType.Auto):
    return jax.make_mesh(shape, (DATA, MODEL), axis_types=(kind, kind))


def everything(case: Case, total, *, second=True):
    """Value, gradient and a Hessian-vector product in both nestings, as one program."""

    def program(*arguments):
        differentiated = tuple(arguments[i] for i in case.differentiated)

        def of(*differentiated):
            whole = list(arguments)
            for i, x in zip(case.differentiated, differentiated, strict=True):
                whole[i] = x
            return total(*whole)

        gradients = jax.grad(of, tuple(range(len(differentiated))))
        value, gradient = of(*differentiated), gradients(*differentiated)
        if not second:
            return value, gradient
        forward = jax.jvp(gradients, differentiated, differentiated)[1]
        backward = jax.vjp(gradients, *differentiated)[1](differentiated)
        return value, gradient, forward, backward

    return program


@cache
def on_one_device(case: Case, second=False):
    arguments = [arrays()[name] for name in case.takes]
    return jax.tree.map(np.asarray, quick(everything(case, case.total, second=second))(*arguments))


def same(got, wanted):
    def close(a, b):
        size = max(1e-3, float(np.max(np.abs(b), initial=0)))
        # Sums over examples and classes, twice in second order.
        allowed = 4 * tolerance(jnp.float32, EXAMPLES * CLASSES)
        np.testing.assert_allclose(a, b, rtol=allowed, atol=allowed * size)

    jax.tree.map(close, got, wanted)


def placed(case: Case, mesh):
    return [
        jax.device_put(arrays()[name], NamedSharding(mesh, SPLITS[name])) for name in case.takes
    ]
