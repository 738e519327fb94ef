"""Arguments, transforms and annotations of the losses under optax's names."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent.compat import optax as compat
from tests.compile_options import quick
from tools import docstrings

RNG = np.random.default_rng(7)
X = RNG.normal(size=(3, 4)).astype(np.float32)
Z = RNG.dirichlet(np.ones(4), size=3).astype(np.float32)
IDS = np.array([3, 0, 2])
WHERE = np.ones((3, 4), bool)
ALL = [name for name in compat.__all__ if "convex" not in name]
WITH_AXES = [name for name in ALL if "axis" in inspect.signature(getattr(compat, name)).parameters]
SOFTMAX = [name for name in ALL if "softmax" in name or "poly" in name]


def arguments(name):
    """Every required argument, by its name."""
    if name == "smooth_labels":
        return {"labels": Z, "alpha": 0.1}
    if "kl" in name:
        return {"log_predictions": X, "log_targets" if "log_targets" in name else "targets": Z}
    return {"logits": X, "labels": IDS if "integer" in name else Z}


# The functions, what is wrong, and the error that names it.
WRONG = [
    (ALL, lambda a: {next(iter(a)): np.zeros((3, 4), int)}, TypeError, "{first} must be floating"),
    (ALL, lambda a: {next(iter(a)): None}, ValueError, "{first} must be"),
    (ALL, lambda a: {list(a)[1]: "text"}, TypeError, "{second} must be"),
    (ALL, lambda a: {list(a)[1]: np.ones((3, 4), complex)}, TypeError, "{second} must be"),
    (ALL, lambda a: {list(a)[1]: np.zeros((2, 2), type(np.ravel(list(a.values())[1])[0]))},
     ValueError, "{second}"),
    (WITH_AXES, lambda a: {"axis": 2}, ValueError, "axis must name axes of 2, got 2"),
    (WITH_AXES, lambda a: {"axis": (-1, 1)}, ValueError, "axis must name each axis once"),
    (WITH_AXES, lambda a: {"axis": 1.0}, TypeError, "axis must be an integer"),
    (WITH_AXES, lambda a: {"axis": [0]}, TypeError, "axis must be an integer"),
    (WITH_AXES, lambda a: {"axis": True}, TypeError, "axis must be an integer"),
    (WITH_AXES, lambda a: {"where": np.ones((3, 4))}, TypeError, "where must be boolean"),
    (WITH_AXES, lambda a: {"where": "text"}, TypeError, "where must be"),
    (WITH_AXES, lambda a: {"where": np.ones((3, 3), bool)}, ValueError, "where must broadcast"),
    (WITH_AXES, lambda a: {"where": np.ones((1, 3, 4), bool)}, ValueError, "where must"),
    (["softmax_cross_entropy_with_integer_labels"], lambda a: {"labels": Z}, TypeError,
     "labels must be integer class ids"),
    (["softmax_cross_entropy_with_integer_labels"], lambda a: {"labels": IDS[:, None]}, ValueError,
     "labels must have the rank of logits without axis"),
    (["softmax_cross_entropy_with_integer_labels"], lambda a: {"axis": None}, TypeError, "axis"),
    (["softmax_cross_entropy_with_integer_labels"], lambda a: {"logits": X[:, :0]}, ValueError,
     "logits must have at least one class"),
    (["softmax_cross_entropy", "poly_loss_cross_entropy"], lambda a: {"logits": X[:, :1]},
     ValueError, "logits must have all classes"),
    (["softmax_cross_entropy", "poly_loss_cross_entropy"], lambda a: {"logits": X[0], "axis": 0},
     ValueError, "logits must have all classes"),
    (["poly_loss_cross_entropy", "smooth_labels"], lambda a: {"labels": IDS}, TypeError,
     "labels must be floating"),
    (["poly_loss_cross_entropy"], lambda a: {"epsilon": np.ones(2)}, ValueError, "epsilon"),
    (["poly_loss_cross_entropy"], lambda a: {"epsilon": None}, ValueError, "epsilon must be"),
    (["sigmoid_focal_loss"], lambda a: {"gamma": np.ones(2)}, ValueError, "gamma"),
    (["sigmoid_focal_loss"], lambda a: {"gamma": 1j}, TypeError, "gamma must be"),
    (["sigmoid_focal_loss"], lambda a: {"alpha": np.ones(2)}, ValueError, "alpha"),
    (["sigmoid_focal_loss"], lambda a: {"alpha": "text"}, TypeError, "alpha must be"),
    (["smooth_labels"], lambda a: {"alpha": np.ones(3)}, ValueError, "alpha"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wrong", "error", "message"),
    [(name, *rest) for names, *rest in WRONG for name in names],
)
def test_wrong_arguments(name, wrong, error, message):
    given = arguments(name)
    first, second = list(given)[:2]
    with pytest.raises(error, match=message.format(first=first, second=second)):
        getattr(compat, name)(**{**given, **wrong(given)})


def test_an_axis_is_static():
    with pytest.raises(TypeError, match="axis is an option, compiled in"):
        jax.jit(lambda axis: compat.softmax_cross_entropy(X, Z, axis))(1)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.one_in(4)
def test_lists_are_taken(name):
    given = arguments(name)
    lists = {key: np.asarray(x).tolist() for key, x in given.items()}
    np.testing.assert_allclose(
        getattr(compat, name)(**lists), getattr(compat, name)(**given), rtol=1e-6
    )


@pytest.mark.parametrize("name", compat.__all__)
def test_docstrings_name_the_arguments(name):
    function = getattr(compat, name)
    said = [entry.name for entry in docstrings.entries(function)]
    assert said == list(inspect.signature(function).parameters)
    for part in ("Returns:", "Raises:", "Examples:", "See Also:", "$$"):
        assert part in function.__doc__


# Transforms.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.one_in(6)
def test_vmap_and_jit(name, masked):
    """As one call, value and gradients, whichever arguments are batched."""
    function = getattr(compat, name)
    named = arguments(name)
    options = {"where": np.array([True, False, True, True])} if masked else {}
    if masked and "where" not in inspect.signature(function).parameters:
        return

    def row(*data):
        return jnp.sum(function(*data, **options))

    data = [jnp.asarray(x) for x in named.values()]
    axes = [0 if x.ndim else None for x in data]
    by = 0 if "integer" in name else (0, 1)
    got = quick(jax.vmap(jax.value_and_grad(row, by), axes))(*data)
    rows = [[x[n] if x.ndim else x for x in data] for n in range(3)]
    wanted = jax.tree.map(lambda *x: jnp.stack(x), *[jax.value_and_grad(row, by)(*r) for r in rows])
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6)
    fixed = [x if n == 1 else x[0] for n, x in enumerate(data)]
    if data[1].ndim:
        batched = jax.vmap(row, (None, 0))(*fixed)
        np.testing.assert_allclose(batched, [row(fixed[0], x) for x in data[1]], rtol=2e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.one_in(6)
def test_forward_and_reverse_agree(name):
    function = getattr(compat, name)
    first, *rest = arguments(name).values()
    tangent = RNG.normal(size=first.shape).astype(np.float32)

    def f(x):
        return function(x, *rest)

    value, forward = jax.jvp(f, (first,), (tangent,))
    cotangent = RNG.normal(size=value.shape).astype(np.float32)
    (backward,) = jax.vjp(f, first)[1](cotangent)
    np.testing.assert_allclose(
        np.vdot(forward, cotangent), np.vdot(backward, tangent), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.one_in(4)
def test_no_nan_is_made_of_data_without_nan(name):
    """Tools that look for NaN find none, with masks and infinities."""
    given = arguments(name)
    first = next(iter(given))
    if first == "logits":
        given[first] = np.where(Z < 0.05, -np.inf, X).astype(np.float32)
    function = getattr(compat, name)
    with jax.debug_nans(True):
        data = given.pop(first)
        jax.value_and_grad(lambda x: jnp.sum(function(x, **given)))(data)


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.one_in(2)
def test_what_is_saved(name):
    """For the gradient the logits, and of each example some numbers; no array of probabilities."""
    function = getattr(compat, name)
    x = jnp.zeros((8, 4096), jnp.bfloat16)
    labels = jnp.zeros(8, int) if "integer" in name else jnp.zeros((8, 4096), jnp.bfloat16)
    _, pullback = jax.vjp(lambda x: function(x, labels), x)
    saved = sum(leaf.nbytes for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "nbytes"))
    given = x.nbytes + (0 if "integer" in name else labels.nbytes)
    assert saved <= given + 8 * 64


# Annotations.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.one_in(4)
def test_annotations_are_true(checked, name):
    function = getattr(importlib.import_module("jxent.compat.optax"), name)
    assert hasattr(function, "__wrapped__")
    first, *rest = arguments(name).values()
    options: dict = {"where": WHERE[:, 0]} if "softmax_cross_entropy_with" in name else {}
    if name in WITH_AXES and not options:
        options = {"where": WHERE, "axis": (0, 1)}

    def total(x):
        return jnp.sum(function(x, *rest, **options))

    jax.eval_shape(jax.value_and_grad(total), first)
    jax.eval_shape(jax.hessian(total), first)
    if name == "sigmoid_focal_loss":
        jax.eval_shape(lambda: function(first, *rest, gamma=np.ones(4), alpha=1))


# Split examples.


@pytest.mark.parametrize("name", [name for name in ALL if name != "smooth_labels"])
@pytest.mark.parametrize("kind", ["auto", "explicit", "shard_map"])
@pytest.mark.eight_devices
@pytest.mark.one_in(9)
def test_split_examples(name, kind):
    """Each device has its examples, with a mask and with labels that are the same on all."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 16)).astype(np.float32)
    labels = np.full(8, 3)
    if "integer" not in name:
        labels = np.broadcast_to(np.linspace(0, 0.1, 16), (8, 16)).astype(np.float32)
    where = {"where": rng.uniform(size=8 if name in SOFTMAX else (8, 16)) < 0.7}
    options = where if "where" in inspect.signature(getattr(compat, name)).parameters else {}

    def step(x, labels, options):
        return jax.value_and_grad(lambda x: getattr(compat, name)(x, labels, **options).sum())(x)

    def shard(x, options):
        value, gradient = step(x, jnp.asarray(labels[:1]), options)
        return jax.lax.psum(value, "chips"), gradient

    explicit = kind == "explicit"
    axis_type = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((8,), ("chips",), axis_types=(axis_type,))
    rows = jax.NamedSharding(mesh, jax.P("chips"))
    wanted = step(x, labels, options)
    if kind == "shard_map":
        specs = (jax.P("chips"), dict.fromkeys(options, jax.P("chips")))
        program = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=(jax.P(), specs[0]))
        got = jax.jit(program)(x, options)
    else:
        with jax.set_mesh(mesh):
            got = jax.jit(step)(*jax.device_put((x, labels, options), rows))
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
