"""The forms that one platform only uses: each is as right as the other."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from benchmarks.accuracy import measure
from benchmarks.compiled.cases import GEMMA, Case, shapes
from benchmarks.lib.peers import jxent_peer
from jxent import losses
from jxent._src.core import dispatch
from jxent._src.core.versions import SECOND_ORDER_BY_CLASSES
from jxent._src.platforms.cpu import softmax
from jxent._src.projection import per_example
from tests.api.test_properties import close, each_loss, expected_at, scalar, split, times
from tests.catalog import CASES
from tests.compile_options import quick
from tests.numerics.test_accuracy import BOUNDS
from tests.platforms.common import PLAIN

pytestmark = pytest.mark.optimized

# The platforms that have ways of their own, and any that has none.
REGISTERED = {
    implementation.platform: None
    for f in dispatch.PerPlatform.every
    for implementation in f.implementations
}


@pytest.fixture
def _platform(request):
    """Runs on CPU what is lowered for another platform, or for narrow rows."""
    if request.param == "narrow rows":
        request.getfixturevalue("narrow_rows")
        yield
        return
    with jxent.assume_platform(request.param):
        yield


as_on_others = pytest.mark.parametrize(
    "_platform", [PLAIN, "narrow rows", *(p for p in REGISTERED if p != "cpu")], indirect=True
)


@as_on_others
@pytest.mark.usefixtures("_platform")
@each_loss
@pytest.mark.one_in(45)
def test_other_platforms_get_the_same_value_gradient_and_second_order(case):
    with jax.enable_x64(True):
        arrays = case.arrays(jnp.dtype("float64"), 0.5)
        f, differentiated = split(case, arrays)
        slope = jax.grad(scalar(case, f))
        got = quick(lambda m: (f(m), jax.jvp(slope, (m,), (m,))))(differentiated)
        value, gradient, hessian = jax.tree.map(np.asarray, expected_at(case)(differentiated))
        close(got, (value, (gradient, times(hessian, differentiated))), "float64", case.terms)


def entropy(labels, inputs, kernel):
    found = jxent.linear_sparse_softmax_statistics(labels=labels, inputs=inputs, kernel=kernel)
    return jnp.sum(found.entropy)


@pytest.mark.parametrize("platform", REGISTERED)
@pytest.mark.long
def test_the_catalog_takes_every_implementation(platform, monkeypatch):
    """So that the tests of the catalog are tests of every registered implementation."""
    taken = dispatch.PerPlatform.select
    registered = {
        one.function
        for function in dispatch.PerPlatform.every
        for one in function.implementations
        if one.platform == platform
        and (SECOND_ORDER_BY_CLASSES or function is not per_example.tangent_of_losses)
    }
    assert registered
    seen = set()

    def recorded(self, where, *arguments):
        function = taken(self, where, *arguments)
        seen.add(function)
        return function

    monkeypatch.setattr(dispatch.PerPlatform, "select", recorded)
    jax.clear_caches()
    with jxent.assume_platform(platform):
        # Into how large blocks a projection is cut shows at the size of a model only.
        head = losses.linear_sparse_softmax_cross_entropy
        arrays = shapes(Case("projection, softmax ids", *GEMMA))[:3]
        jax.eval_shape(jax.grad(head, 2), *arrays)
        jax.eval_shape(jax.grad(lambda *a: jnp.sum(head(*a, reduction="none")), 2), *arrays)
        jax.eval_shape(jax.grad(entropy, 2), *arrays)
        for narrow, case in itertools.product((0, 32), CASES):
            if registered <= seen:
                break
            if narrow != softmax.NARROW:
                jax.clear_caches()
                monkeypatch.setattr(softmax, "NARROW", narrow)
            f, differentiated = split(case, case.arrays(jnp.dtype("float32")))
            slope = jax.grad(scalar(case, f))
            # Some stand in what is of second order only.
            jax.eval_shape(lambda m, slope=slope: jax.jvp(slope, (m,), (m,)), differentiated)
    assert registered <= seen
    jax.clear_caches()  # of NARROW


def test_what_an_implementation_calls_is_of_its_platform():
    """One decision on a path, and no platform's program in another's."""

    def loss(y, x):
        return jxent.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)

    traced = jax.jit(loss).trace(jnp.zeros(3, jnp.int32), jnp.zeros((3, 5)))
    assert decisions(traced.jaxpr.jaxpr) == 1


def decisions(jaxpr) -> int:
    """How many decisions between platforms lie on a path, at most."""
    most = 0
    for eqn in jaxpr.eqns:
        inner = [
            decisions(getattr(sub, "jaxpr", sub))
            for value in eqn.params.values()
            for sub in (value if isinstance(value, tuple) else (value,))
            if hasattr(getattr(sub, "jaxpr", sub), "eqns")
        ]
        most = max([most, *(n + (eqn.params.get("branches_platforms") is not None) for n in inner)])
    return most


@as_on_others
@pytest.mark.usefixtures("_platform")
@pytest.mark.one_in(5)
def test_other_platforms_keep_the_digits():
    for errors in measure(jnp.float32, [jxent_peer]):
        # XLA:CPU reduces tuples one after the other; no chip does: test_one_pass.py.
        order = 8 if errors.kind.startswith("1000 classes") else 0
        assert errors.excess.max() <= BOUNDS[errors.loss, errors.quantity] + order, errors.row()
        assert errors.zeros == 0, errors.row()


def test_cpu_and_accelerators_run_different_programs():
    """Otherwise the tests above compare a thing with itself."""

    def loss(y, x):
        return jxent.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)

    traced = jax.jit(loss).trace(jnp.zeros(3, jnp.int32), jnp.zeros((3, 5)))
    texts = [traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu", "cuda")]
    assert ["stablehlo.gather" in text for text in texts] == [True, False, False]


@pytest.mark.parametrize(("classes", "count"), [(2048, 13), (2048, 200), (2047, 13), (2048, 12)])
@pytest.mark.usefixtures("usual_limits")
@pytest.mark.one_in(2)
def test_long_lists_on_a_tpu_name_the_same_classes(classes, count):
    """Padding, twice, the ends of a tile, out of range."""
    rng = np.random.default_rng(0)
    ids = rng.integers(-3, classes, (6, count))
    ids[0, :8] = [0, 127, 128, 1023, 1024, classes - 1, classes - 1, -1]
    ids[1] = -1
    ids[2, 3] = classes
    logits = rng.standard_normal((6, classes)).astype(np.float32)

    def found(x, ids):
        loss = jxent.sparse_sigmoid_cross_entropy_with_logits
        value, pull = jax.vjp(lambda x: loss(labels=ids, logits=x), x)
        return value, pull(jnp.ones_like(value))[0]

    by_platform = []
    for platform in ("tpu", PLAIN):
        with jxent.assume_platform(platform):
            by_platform.append(jax.tree.map(np.asarray, jax.jit(found)(logits, ids)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), *by_platform)
    np.testing.assert_array_equal(np.isnan(by_platform[0][0]), [0, 0, 1, 0, 0, 0])
