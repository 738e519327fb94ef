"""What holds for every function of the family, checked against the plain formula in float64.

All that is asked of a case is made by one program or two, and its expected result once: nearly all
of the time is the compiler's. The fast suite has the case of each public function that has most
options (of each loss, for second order); the full suite has all cases and dtypes, and each
nesting in full, as users write it.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.catalog import CASES, Case
from tests.compile_options import OPTIONS, quick
from tests.reference import tolerance


def options_of(case: Case) -> int:
    arrays = (case.bias, case.pos_weight is not None, case.weights is not None)
    return len(case.options) + sum(arrays)


# The case with most options of each public function, and of each loss.
MOST_OPTIONS = {c.function: c for c in sorted(CASES, key=options_of)}
ONE_A_LOSS = {c for name, c in MOST_OPTIONS.items() if name.startswith("jxent.")}


def param(case: Case, *values, default=True):
    # A case's tests share what is cached, so that one process has all of them.
    marks = [pytest.mark.xdist_group(str(case)), *([] if default else [pytest.mark.long])]
    return pytest.param(case, *values, id="-".join([str(case), *values]), marks=marks)


each_case = pytest.mark.parametrize("case", [param(c) for c in CASES])
each_function = pytest.mark.parametrize(
    "case", [param(c, default=c is MOST_OPTIONS[c.function]) for c in CASES]
)
each_loss_with_logits = pytest.mark.parametrize(
    "case", [param(c, default=c in ONE_A_LOSS and c.features is None) for c in CASES]
)
each_loss = pytest.mark.parametrize("case", [param(c, default=c in ONE_A_LOSS) for c in CASES])


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
    return lambda differentiated: function(**fixed, **differentiated), {
        k: jnp.asarray(arrays[k]) for k in names
    }


def scalar(case: Case, function, seed=3):
    """A scalar of the losses that weighs each differently: the cotangents are uneven."""

    def total(differentiated):
        out = function(differentiated)
        cotangent = np.random.default_rng(seed).uniform(0.5, 2, out.shape)
        return jnp.sum(out * jnp.asarray(cotangent, out.dtype))

    return total


def directions(case: Case, seed=1):
    return split(case, case.arrays(seed=seed))[1]


def _value_and_gradient(function, differentiated):
    """The losses, and their derivative for uneven cotangents that every dtype holds exactly."""
    value, pullback = jax.vjp(function, differentiated)
    cotangent = 0.5 + np.arange(value.size).reshape(value.shape) % 7 / 8
    return value, pullback(jnp.asarray(cotangent, value.dtype))[0]


value_and_gradient = jax.jit(_value_and_gradient, static_argnums=0)


@cache
def expected_value_and_gradient(case: Case):
    """One program for all dtypes: what does not move in a case is the same for all of them."""
    g, _ = split(case, widened(case.arrays()), plain=True)
    return quick(partial(_value_and_gradient, g))


@cache
def expected_at(case: Case):
    """A program of the formula at a point: losses, gradient and Hessian of their scalar."""
    g, _ = split(case, case.arrays(), plain=True)
    total = scalar(case, g)
    return quick(
        lambda differentiated: (
            g(differentiated),
            jax.grad(total)(differentiated),
            jax.hessian(total)(differentiated),
        )
    )


@cache
def expected(case: Case):
    """The same where nearly all tests look at a case."""
    return jax.tree.map(np.asarray, expected_at(case)(split(case, case.arrays())[1]))


def times(hessian, direction):
    """The Hessian, a tree of trees, by a direction: a tree."""
    return {
        k: sum(np.tensordot(block, direction[j], np.ndim(direction[j])) for j, block in row.items())
        for k, row in hessian.items()
    }


def inner(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return sum(jnp.vdot(a, b) for a, b in leaves)


def close(got, expected, dtype, terms):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float64),
            np.asarray(b, np.float64),
            rtol=tolerance(dtype, terms),
            atol=tolerance(dtype, terms) * max(1, float(np.max(np.abs(b), initial=0))),
        ),
        got,
        expected,
    )


SPREAD = {"float64": 0.01, "float32": 4.0, "bfloat16": 0.01, "float16": 4.0}


def is_short(case, dtype):
    """In the fast suite: the half precisions by turns, and every axis."""
    turn = ("bfloat16", "float16")[CASES.index(case) % 2]
    if dtype == "float32":
        return case is MOST_OPTIONS[case.function] or case.axis not in (None, -1)
    return dtype == turn and case in ONE_A_LOSS


@pytest.mark.parametrize(
    ("case", "dtype"),
    [param(case, dtype, default=is_short(case, dtype)) for case in CASES for dtype in SPREAD],
)
@pytest.mark.one_in(7)
def test_value_and_gradient(case, dtype):
    arrays = case.arrays(jnp.dtype(dtype), SPREAD[dtype])
    f, differentiated = split(case, arrays)
    _, wide = split(case, widened(arrays))
    value, gradient = value_and_gradient(f, differentiated)
    close((value, gradient), expected_value_and_gradient(case)(wide), dtype, case.terms)
    narrow = not (case.features or case.is_wide) or jnp.finfo(dtype).bits >= 32
    assert value.dtype == (jnp.dtype(dtype) if narrow else jnp.float32)
    assert jax.tree.map(lambda a: a.dtype, gradient) == jax.tree.map(
        lambda a: a.dtype, differentiated
    )


@each_function
@pytest.mark.one_in(4)
def test_first_order(case):
    """Both modes, each the other's transpose; checkpoint, linearize, and scan over the loss."""
    f, differentiated = split(case, case.arrays())
    g, _ = split(case, case.arrays(), plain=True)
    tangents = directions(case)
    total = scalar(case, f)
    value, gradient, _ = expected(case)

    def scanned(differentiated):
        return jax.lax.scan(lambda c, _: (c + total(differentiated), None), 0.0, length=3)[0]

    @quick
    def program(differentiated, tangents, cotangent):
        out, change = jax.jvp(f, (differentiated,), (tangents,))
        (pulled,) = jax.vjp(f, differentiated)[1](cotangent)
        at, push = jax.linearize(total, differentiated)
        return {
            "value": out, "jvp": change, "vjp": pulled, "grad": jax.grad(total)(differentiated),
            "checkpoint": jax.grad(jax.checkpoint(total))(differentiated),
            "linearize": (at, push(tangents)),
            "scan": jax.value_and_grad(scanned)(differentiated),
        }  # fmt: skip

    cotangent = np.random.default_rng(5).standard_normal(value.shape)
    got = program(differentiated, tangents, jnp.asarray(cotangent))
    change = quick(lambda m, t: jax.jvp(g, (m,), (t,))[1])(differentiated, tangents)
    close((got["value"], got["jvp"]), (value, change), "float64", case.terms)
    np.testing.assert_allclose(
        inner(got["vjp"], tangents), np.vdot(cotangent, got["jvp"]), rtol=1e-11, atol=1e-11
    )
    close(got["grad"], gradient, "float64", case.terms)
    close(got["checkpoint"], got["grad"], "float64", case.terms)
    sum_ = scalar(case, lambda _: jnp.asarray(value))(None)
    wanted = sum_, inner(gradient, tangents)
    for a, b in zip(got["linearize"], wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(got["scan"][0], 3 * sum_, rtol=1e-12)
    tripled = jax.tree.map(lambda a: 3 * a, gradient)
    close(got["scan"][1], tripled, "float64", case.terms)


@each_loss
@pytest.mark.one_in(7)
def test_second_order(case):
    """The whole Hessian one way, its products with a direction the other three."""
    f, differentiated = split(case, case.arrays())
    total, line = scalar(case, f), directions(case)

    @quick
    def program(differentiated, line):
        def along(differentiated):
            return jax.jvp(total, (differentiated,), (line,))[1]

        return {
            "forward over reverse": jax.hessian(total)(differentiated),
            "reverse over reverse": jax.vjp(jax.grad(total), differentiated)[1](line)[0],
            "reverse over forward": jax.grad(along)(differentiated),
            "forward over forward": jax.jacfwd(along)(differentiated),
        }

    got = program(differentiated, line)
    *_, hessian = expected(case)
    close(got.pop("forward over reverse"), hessian, "float64", case.terms)
    product = times(hessian, line)
    for product_of in got.values():
        close(product_of, product, "float64", case.terms)


@each_loss_with_logits
@pytest.mark.one_in(6)
def test_third_order(case):
    """At logits of 0 too, where |x| has its corner: a rule that differentiates it goes wrong."""
    f, _ = split(case, case.arrays())
    g, _ = split(case, case.arrays(), plain=True)
    line = directions(case)
    # JAX forgets custom rules inside a scan that is transposed and then differentiated.
    orders = {
        "forward": (jax.jacfwd,) * 3,
        "reverse": (jax.grad,) * 3,
        "reverse between": (jax.jacfwd, jax.grad, jax.jacfwd),
    }

    def derivative(function, order, differentiated):
        def along(t):
            return scalar(case, function)(
                jax.tree.map(lambda a, b: a + t * b, differentiated, line)
            )

        first, second, third = orders[order]
        return third(second(first(along)))(0.0)

    right = quick(partial(derivative, g, "forward"))
    program = quick(lambda differentiated: {k: derivative(f, k, differentiated) for k in orders})
    for scale in (2.0, 0.0):
        _, differentiated = split(case, case.arrays(scale=scale))
        wanted, got = right(differentiated), program(differentiated)
        np.testing.assert_allclose(got["forward"], wanted, rtol=1e-10, atol=1e-10)
        if scale:
            for order in ("reverse", "reverse between"):
                np.testing.assert_allclose(got[order], wanted, rtol=1e-10, atol=1e-10)


@each_loss
@pytest.mark.one_in(8)
def test_second_order_through_a_scan_of_the_user(case):
    """As the README says to write it: the body and the whole scan under `jax.checkpoint`."""
    f, differentiated = split(case, case.arrays())
    line, total = directions(case), scalar(case, f)
    factors = jnp.array([0.5, 1.0])

    def scaled(factor, differentiated):
        return total(jax.tree.map(lambda x: factor * x, differentiated))

    def scanned(differentiated):
        def step(sum_, factor):
            return sum_ + jax.checkpoint(scaled)(factor, differentiated), None

        return jax.lax.scan(step, jnp.zeros(()), factors)[0]

    def unrolled(differentiated):
        return sum(scaled(factor, differentiated) for factor in factors)

    @quick
    def program(differentiated):
        gradients = (jax.grad(f) for f in (jax.checkpoint(scanned), unrolled))
        return [jax.jvp(slope, (differentiated,), (line,))[1] for slope in gradients]

    got, wanted = program(differentiated)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), got, wanted)


@each_loss
@pytest.mark.one_in(4)
def test_vmap_is_a_loop(case):
    batches = [case.arrays(seed=s) for s in range(3)]
    f, _ = split(case, batches[0])
    fixed = {k: v for k, v in batches[0].items() if k not in case.differentiable()}
    differentiated = [split(case, {**b, **fixed})[1] for b in batches]
    lines = [directions(case, seed=s) for s in range(3, 6)]
    total = scalar(case, f)

    @quick
    @jax.vmap
    def program(differentiated, line):
        gradient, curve = jax.jvp(jax.grad(total), (differentiated,), (line,))
        return f(differentiated), gradient, curve

    def stacked(trees):
        return jax.tree.map(lambda *a: np.stack(a), *trees)

    loop = []
    for m, line in zip(differentiated, lines, strict=True):
        value, gradient, hessian = jax.tree.map(np.asarray, expected_at(case)(m))
        loop.append((value, gradient, times(hessian, line)))
    close(program(stacked(differentiated), stacked(lines)), stacked(loop), "float64", case.terms)


@each_loss_with_logits
@pytest.mark.one_in(4)
def test_eager_jit_and_gradient_give_the_same_value(case):
    f, differentiated = split(case, case.arrays(jnp.float32))
    eager = f(differentiated)
    # A scalar's last bit depends on how the compiler splits the sum.
    close(jax.jit(f)(differentiated), eager, "float32", case.terms)
    value, _ = jax.value_and_grad(scalar(case, f))(differentiated)
    close(value, scalar(case, lambda _: eager)(differentiated), "float32", case.terms)


@each_case
@pytest.mark.one_in(4)
def test_reverse_mode_saves_no_second_array_of_logits(case):
    """In bfloat16, so that a float32 copy would show; only what the caller gave may be saved."""
    arrays = case.arrays(jnp.bfloat16)
    f, differentiated = split(case, arrays)
    pullback = jax.eval_shape(lambda differentiated: jax.vjp(f, differentiated)[1], differentiated)
    given = [(a.size, a.dtype) for a in arrays.values()]  # one axis of examples, maybe
    if "kernel" in arrays:  # its gradient, a sum over the examples, is rounded last
        given.append((arrays["kernel"].size, jnp.dtype(jnp.float32)))
    size = np.prod(case.shape)
    for saved in jax.tree.leaves(pullback):
        if np.size(saved) >= size:
            assert (saved.size, saved.dtype) in given
            given.remove((saved.size, saved.dtype))


@each_function
@pytest.mark.one_in(3)
def test_a_huge_shape_traces_without_memory(case):
    def grown(a):
        return jax.ShapeDtypeStruct(tuple(n if n == 1 else n * 10**5 for n in a.shape), a.dtype)

    arrays = {k: grown(v) for k, v in case.arrays(jnp.float32).items()}
    differentiated = {k: arrays.pop(k) for k in case.differentiable()}
    gradient = jax.grad(lambda differentiated, rest: jnp.sum(case.loss(**differentiated, **rest)))
    assert jax.eval_shape(gradient, differentiated, arrays) == differentiated


@each_loss
@pytest.mark.one_in(6)
def test_frozen_arguments_cost_nothing(case):
    """Their tangents are symbolic zeros: the gradient of one argument computes no other's."""
    f, differentiated = split(case, case.arrays(jnp.float32))

    def flops(argument):
        def total(part):
            return jnp.sum(f({**differentiated, **part}))

        part = {k: differentiated[k] for k in argument}
        cost = jax.jit(jax.grad(total)).lower(part).compile(OPTIONS).cost_analysis()
        assert cost is not None
        return cost["flops"] + cost.get("transcendentals", 0)

    first = next(iter(differentiated))
    if len(differentiated) > 1:
        assert flops([first]) < flops(differentiated)
