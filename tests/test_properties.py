"""What holds for every function of the family, checked against the plain formula in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.family import CASES, Case
from tests.reference import tolerance

each_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def widened(arrays):
    return {
        k: v if np.issubdtype(v.dtype, np.integer) else np.asarray(v, np.float64)
        for k, v in arrays.items()
    }


def split(case: Case, arrays, plain=False):
    """The case as a function of its differentiable arrays, and these arrays."""
    names = case.differentiable()
    fixed = {k: v for k, v in arrays.items() if k not in names}
    function = case.plain if plain else case.loss
    return lambda moving: function(**fixed, **moving), {k: jnp.asarray(arrays[k]) for k in names}


def scalar(case: Case, function, seed=3):
    """A scalar of the losses that weighs each differently: the cotangents are uneven."""

    def total(moving):
        out = function(moving)
        cotangent = np.random.default_rng(seed).uniform(0.5, 2, out.shape)
        return jnp.sum(out * jnp.asarray(cotangent, out.dtype))

    return total


@partial(jax.jit, static_argnums=0)
def value_and_gradient(function, moving):
    """The losses, and their derivative for uneven cotangents that every dtype holds exactly."""
    value, pullback = jax.vjp(function, moving)
    cotangent = 0.5 + np.arange(value.size).reshape(value.shape) % 7 / 8
    return value, pullback(jnp.asarray(cotangent, value.dtype))[0]


def close(got, truth, dtype, terms):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float64),
            np.asarray(b, np.float64),
            rtol=tolerance(dtype, terms),
            atol=tolerance(dtype, terms) * max(1, float(np.max(np.abs(b), initial=0))),
        ),
        got,
        truth,
    )


@each_case
@pytest.mark.parametrize(
    ("dtype", "scale"), [("float64", 0.01), ("float32", 4.0), ("bfloat16", 0.01), ("float16", 4.0)]
)
def test_value_and_gradient(case, dtype, scale):
    arrays = case.arrays(jnp.dtype(dtype), scale)
    f, moving = split(case, arrays)
    g, wide = split(case, widened(arrays), plain=True)
    value, gradient = value_and_gradient(f, moving)
    close((value, gradient), value_and_gradient(g, wide), dtype, case.terms)
    narrow = case.features is None or jnp.finfo(dtype).bits >= 32
    assert value.dtype == (jnp.dtype(dtype) if narrow else jnp.float32)
    assert jax.tree.map(lambda a: a.dtype, gradient) == jax.tree.map(lambda a: a.dtype, moving)


@each_case
def test_forward_mode_is_the_transpose_of_reverse_mode(case):
    f, moving = split(case, case.arrays())
    g, _ = split(case, case.arrays(), plain=True)
    tangents = split(case, case.arrays(seed=1))[1]
    value, change = jax.jvp(f, (moving,), (tangents,))
    close(change, jax.jvp(g, (moving,), (tangents,))[1], "float64", case.terms)
    cotangent = np.random.default_rng(5).standard_normal(value.shape)
    (pulled,) = jax.vjp(f, moving)[1](jnp.asarray(cotangent))
    inner = sum(jnp.vdot(a, b) for a, b in zip(
        jax.tree.leaves(pulled), jax.tree.leaves(tangents), strict=True))  # fmt: skip
    np.testing.assert_allclose(inner, np.vdot(cotangent, change), rtol=1e-11, atol=1e-11)


SECOND_ORDER = {
    "forward over reverse": lambda f: jax.jacfwd(jax.grad(f)),
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(f)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f)),
}


@each_case
@pytest.mark.parametrize("order", SECOND_ORDER)
def test_second_order(case, order):
    arrays = case.arrays()
    f, moving = split(case, arrays)
    g, _ = split(case, arrays, plain=True)
    truth = jax.jit(jax.hessian(scalar(case, g)))(moving)
    close(jax.jit(SECOND_ORDER[order](scalar(case, f)))(moving), truth, "float64", case.terms)


@each_case
@pytest.mark.parametrize("scale", [2.0, 0.0])
def test_third_order(case, scale):
    """At logits of 0 too, where |x| has its corner: a rule that differentiates it goes wrong."""
    f, moving = split(case, case.arrays(scale=scale))
    g, _ = split(case, case.arrays(), plain=True)
    line = split(case, case.arrays(seed=1))[1]

    def along(function, t):
        return scalar(case, function)(jax.tree.map(lambda a, b: a + t * b, moving, line))

    truth = jax.jit(jax.grad(jax.grad(jax.grad(partial(along, g)))))(0.0)
    orders = [(jax.jacfwd,) * 3]
    if scale:
        # jax 0.10 forgets custom rules inside a scan in the third nested reverse mode.
        in_scan = case.features is not None and jax.__version_info__ < (0, 12)
        orders.append((jax.grad, jax.jacfwd, jax.jacfwd) if in_scan else (jax.grad,) * 3)
    for first, second, third in orders:
        got = jax.jit(third(second(first(partial(along, f)))))(0.0)
        np.testing.assert_allclose(got, truth, rtol=1e-10, atol=1e-10)


@each_case
def test_eager_jit_and_gradient_give_the_same_value(case):
    f, moving = split(case, case.arrays(jnp.float32))
    # A scalar's last bit depends on how the compiler splits the sum.
    close(jax.jit(f)(moving), f(moving), "float32", case.terms)
    value, _ = jax.value_and_grad(scalar(case, f))(moving)
    close(value, scalar(case, f)(moving), "float32", case.terms)


@each_case
def test_vmap_is_a_loop(case):
    batches = [case.arrays(seed=s) for s in range(3)]
    f, _ = split(case, batches[0])
    fixed = {k: v for k, v in batches[0].items() if k not in case.differentiable()}
    moving = [split(case, {**b, **fixed})[1] for b in batches]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *moving)
    for function in (f, jax.grad(scalar(case, f)), jax.jacfwd(jax.grad(scalar(case, f)))):
        one = jax.jit(function)
        loop = jax.tree.map(lambda *a: jnp.stack(a), *[one(m) for m in moving])
        close(jax.jit(jax.vmap(function))(stacked), loop, "float64", case.terms)


@each_case
def test_scan_checkpoint_and_linearize(case):
    f, moving = split(case, case.arrays())
    f = scalar(case, f)
    gradient = jax.jit(jax.grad(f))(moving)
    close(jax.jit(jax.grad(jax.checkpoint(f)))(moving), gradient, "float64", case.terms)
    value, push = jax.linearize(f, moving)
    np.testing.assert_allclose(
        push(gradient), sum(jnp.sum(a * a) for a in jax.tree.leaves(gradient)), rtol=1e-12
    )

    def scanned(moving):
        return jax.lax.scan(lambda c, _: (c + f(moving), None), 0.0, length=3)[0]

    np.testing.assert_allclose(scanned(moving), 3 * value, rtol=1e-12)
    tripled = jax.tree.map(lambda a: 3 * a, gradient)
    close(jax.jit(jax.grad(scanned))(moving), tripled, "float64", case.terms)


@each_case
def test_reverse_mode_saves_no_second_array_of_logits(case):
    """In bfloat16, so that a float32 copy would show; only what the caller gave may be saved."""
    arrays = case.arrays(jnp.bfloat16)
    f, moving = split(case, arrays)
    _, pullback = jax.vjp(f, moving)
    given = [(a.size, a.dtype) for a in arrays.values()]  # one axis of examples, maybe
    size = np.prod(case.shape)
    for saved in jax.tree.leaves(pullback):
        if np.size(saved) >= size:
            assert (saved.size, saved.dtype) in given
            given.remove((saved.size, saved.dtype))


@each_case
def test_a_huge_shape_traces_without_memory(case):
    def grown(a):
        return jax.ShapeDtypeStruct(tuple(n if n == 1 else n * 10**5 for n in a.shape), a.dtype)

    arrays = {k: grown(v) for k, v in case.arrays(jnp.float32).items()}
    moving = {k: arrays.pop(k) for k in case.differentiable()}
    gradient = jax.grad(lambda moving, rest: jnp.sum(case.loss(**moving, **rest)))
    assert jax.eval_shape(gradient, moving, arrays) == moving


@each_case
def test_frozen_arguments_cost_nothing(case):
    """Their tangents are symbolic zeros: the gradient of one argument computes no other's."""
    f, moving = split(case, case.arrays(jnp.float32))

    def flops(argument):
        def total(part):
            return jnp.sum(f({**moving, **part}))

        part = {k: moving[k] for k in argument}
        cost = jax.jit(jax.grad(total)).lower(part).compile().cost_analysis()
        return cost["flops"] + cost.get("transcendentals", 0)

    first = next(iter(moving))
    if len(moving) > 1:
        assert flops([first]) < flops(moving)
