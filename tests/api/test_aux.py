"""What softmax losses report beside the loss: its parts, the accuracy, and what adds them up."""

import contextlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jxent
from jxent import losses
from jxent.losses import Reduction, SoftmaxAux
from tests.compile_options import quick
from tests.projection.members import products

inf, nan = np.inf, np.nan
FORMS = ("sparse", "dense", "linear sparse", "linear sparse by classes", "linear dense")
REDUCED = [kind for kind in Reduction if kind is not Reduction.NONE]
OPTIONS: dict[str, Any] = {"label_smoothing": 0.2, "z_loss": 0.3, "logit_softcap": 2.5}


def function(form):
    """Of labels, and of logits or a projection's operands."""
    name = {"sparse": "sparse_softmax", "dense": "softmax"}[form.split()[form.startswith("linear")]]
    loss = getattr(losses, ("linear_" if "linear" in form else "") + name + "_cross_entropy")
    if "linear" not in form:
        return loss
    return partial(loss, **{"class_block_size" if "classes" in form else "block_size": 2})


def example(form, dtype=np.float32, examples=7, classes=5, seed=0):
    """Labels, operands, and logits in the dtype that they are computed in; some rows have ties."""
    rng = np.random.default_rng(seed)
    operands: tuple[jax.Array, ...]
    if "linear" in form:
        inputs = jnp.asarray(rng.integers(-2, 3, (examples, 3)), dtype)
        kernel = jnp.asarray(rng.integers(-2, 3, (3, classes)) / 2, dtype)
        operands = (inputs, kernel)
        logits = np.asarray(inputs, np.float64) @ np.asarray(kernel, np.float64)
    else:
        operands = (jnp.asarray(rng.integers(-3, 4, (examples, classes)) / 2, dtype),)
        logits = np.asarray(operands[0], np.float64)
    if "sparse" in form:
        labels = np.where(rng.uniform(size=examples) < 0.5, logits.argmax(-1), 1)
    else:
        labels = rng.integers(3, size=(examples, classes)) / 2
    return labels, operands, logits


def expected(
    labels, logits, weights, reduction, label_smoothing=0.0, z_loss=0.0, logit_softcap=None
):
    """By NumPy, in float64."""
    if logit_softcap is not None:
        logits = logit_softcap * np.tanh(logits / logit_softcap)
    dense = labels if np.ndim(labels) == 2 else np.eye(logits.shape[1])[labels]
    z = dense * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    log_normalizer = np.log(np.exp(logits).sum(-1))
    cross_entropy = (z * (log_normalizer[:, None] - logits)).sum(-1)
    of_predicted = np.take_along_axis(dense, logits.argmax(-1)[:, None], -1)[:, 0]
    w = np.broadcast_to(weights, len(logits)).astype(np.float64)
    denominator = {
        "weighted_sum": 1, "weighted_mean": w.sum(),
        "weighted_sum_over_batch_size": len(w),
        "weighted_sum_by_nonzero_weights": np.count_nonzero(w),
    }[Reduction(reduction).value]  # fmt: skip
    right = of_predicted == dense.max(-1)
    return SoftmaxAux(
        *(np.sum(w * x) / denominator for x in (cross_entropy, z_loss * log_normalizer**2)),
        np.sum(w * right) / w.sum(), w.sum(), denominator,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("platform", [None, "tpu", "cuda"])
@pytest.mark.one_in(18)
def test_parts_and_accuracy_are_those_of_the_formulas(form, platform):
    """With ties, of which the lowest id is the prediction."""
    f = function(form)
    weights = {"array": np.array([1, 0.5, 0, 2, 3, 0.25, 1], np.float32), "number": 2.0}
    for seed, kind in enumerate(REDUCED):
        labels, operands, logits = example(form, seed=seed)
        options = OPTIONS if seed % 2 else {}

        @quick
        def program(operands, labels=labels, kind=kind, options=options):
            call = partial(f, labels, *operands, reduction=kind, **options)
            return {
                name: (*call(weights=w, has_aux=True), call(weights=w))
                for name, w in weights.items()
            }

        with jxent.assume_platform(platform) if platform else contextlib.nullcontext():
            found = program(operands)
        for name, (loss, aux, alone) in found.items():
            wanted = expected(labels, logits, weights[name], kind, **options)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=3e-6), aux, wanted)
            np.testing.assert_allclose(loss, aux.cross_entropy + aux.z_loss, rtol=1e-6)
            np.testing.assert_allclose(loss, alone, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(6)
def test_low_precision_is_reported_in_float32(form, dtype):
    labels, operands, logits = example(form, dtype)
    loss, aux = function(form)(labels, *operands, has_aux=True, z_loss=0.3)
    assert loss.dtype == jnp.float32
    wanted = expected(labels, logits, 1.0, Reduction.SUM_BY_NONZERO_WEIGHTS, z_loss=0.3)
    for got, value in zip(aux, wanted, strict=True):
        assert got.dtype == jnp.float32
        assert got.shape == ()
        np.testing.assert_allclose(got, value, rtol=3e-6)


def rows(form, nonfinite):
    """Labels and operands of two sound examples, and of broken ones."""
    sound = np.array([[1, 0, 0], [0, 0, 2]], np.float32)
    x = np.concatenate([sound, np.asarray(nonfinite, np.float32)])
    ids = np.concatenate([[0, 1], np.zeros(len(nonfinite), int)])
    labels = ids if "sparse" in form else np.eye(3, dtype=np.float32)[ids]
    return labels, (x, np.eye(3, dtype=np.float32)) if "linear" in form else (x,)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
@pytest.mark.one_in(6)
def test_nonfinite_examples(form, platform):
    """Of weight 0 they take no part; else the loss is NaN, and they are wrong, not right."""
    nonfinite = [[nan, 1, 2], [-inf, -inf, -inf]]
    labels, operands = rows(form, nonfinite)
    if "sparse" in form:
        labels[3] = -1
    f = partial(
        function(form), labels, *operands, z_loss=0.1, has_aux=True, reduction="weighted_sum"
    )
    with jxent.assume_platform(platform):
        loss, aux = f(weights=np.array([1, 3, 0, 0], np.float32))
        assert np.isfinite(loss)
        assert tuple(aux[2:]) == (0.25, 4, 1)
        loss, aux = f(weights=np.array([1, 3, 1, 0], np.float32))
        assert np.isnan(loss)
        assert np.isnan(aux.cross_entropy)
        np.testing.assert_allclose(aux[2:], (0.2, 5, 1))
        loss, aux = f(weights=np.zeros(4, np.float32))
        assert (loss, *aux) == (0, 0, 0, 0, 0, 1)


@pytest.mark.parametrize("form", ["sparse", "linear sparse"])
def test_an_id_out_of_range_is_incorrect(form):
    labels, operands = rows(form, [[3, 0, 0]])
    for wrong in (-1, 3):
        labels[-1] = wrong
        loss, aux = function(form)(labels, *operands, has_aux=True)
        assert np.isnan(loss)
        np.testing.assert_allclose(aux.accuracy, 1 / 3)


def test_infinite_logits():
    """The first of several +inf is the prediction; a class ruled out is none."""
    x = np.array([[0, inf, inf], [-inf, 0, -1]], np.float32)
    for labels, right in (([1, 1], 1.0), ([2, 1], 0.5), ([1, 0], 0.5)):
        _, aux = losses.sparse_softmax_cross_entropy(labels, x, has_aux=True)
        assert aux.accuracy == right


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.one_in(6)
def test_it_is_constant_to_differentiation_and_the_loss_is_not(form):
    """Gradients, the weights' too, Hessians and `vmap` are those of the loss alone."""
    labels, operands, _ = example(form)
    f = partial(function(form), labels, z_loss=0.1)
    weights = jnp.linspace(0.0, 2.0, 7)

    def alone(operands, weights):
        return f(*operands, weights=weights)

    def both(operands, weights):
        return f(*operands, weights=weights, has_aux=True)

    @quick
    def program(operands, weights):
        gradient, aux = jax.grad(both, (0, 1), has_aux=True)(operands, weights)
        return {
            "gradient": (gradient, jax.grad(alone, (0, 1))(operands, weights)),
            "hessian": (
                jax.hessian(both, has_aux=True)(operands, weights)[0],
                jax.hessian(alone)(operands, weights),
            ),
            "aux": (aux, alone(operands, weights)),
            "of aux": jax.jacrev(lambda *a: both(*a)[1], (0, 1))(operands, weights),
            "forward": jax.jvp(lambda *a: both(*a)[1], (operands, weights), (operands, weights))[1],
        }

    found = program(operands, weights)
    for name in ("gradient", "hessian"):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *found[name])
    aux, loss = found["aux"]
    np.testing.assert_allclose(aux.cross_entropy + aux.z_loss, loss, rtol=1e-6)
    for leaf in jax.tree.leaves((found["of aux"], found["forward"])):
        np.testing.assert_array_equal(leaf, 0)

    stacked = jax.tree.map(lambda x: jnp.stack([x, -x]), operands)
    _, many = quick(jax.vmap(both, (0, None)))(stacked, weights)
    for k in range(2):
        _, one = quick(both)(jax.tree.map(lambda x, k=k: x[k], stacked), weights)
        jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=1e-6), many, one)


@pytest.mark.parametrize("form", [form for form in FORMS if "linear" in form])
def test_all_parts_take_no_product_more(form):
    labels, operands, _ = example(form)
    f = partial(function(form), labels)
    more = partial(f, has_aux=True)
    gradients = partial(jax.value_and_grad, argnums=(0, 1))
    alone = len(products(f, *operands)), len(products(gradients(f), *operands))
    beside = products(more, *operands), products(gradients(more, has_aux=True), *operands)
    assert tuple(map(len, beside)) == alone
    if "classes" not in form:  # there the last block, narrower, is outside the loop
        assert alone == (1, 3)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("shape", [(512, 32768), (2048, 1000), (64, 50257)], ids=str)
@pytest.mark.one_in(6)
@pytest.mark.optimized
@pytest.mark.since("0.10.2")
def test_a_step_holds_no_second_array_of_logits(dense, shape):
    """It writes the new logits over the old ones, whose prediction is found before."""
    logits = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = logits if dense else jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    f = losses.softmax_cross_entropy if dense else losses.sparse_softmax_cross_entropy

    def step(logits, labels):
        (loss, aux), slope = jax.value_and_grad(lambda x: f(labels, x, has_aux=True), has_aux=True)(
            logits
        )
        return logits - 0.1 * slope, loss, aux

    compiled = jax.jit(step, donate_argnums=0).lower(logits, labels).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes <= 0.35 * 4 * shape[0] * shape[1]


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["shard_map", "automatic", "explicit"])
@pytest.mark.one_in(15)
def test_on_a_mesh(form, kind):
    """Classes split over one axis, examples over the other: the same numbers as on one device."""
    labels, operands, _ = example(form, examples=8, classes=12)
    weights = np.linspace(0, 2, 8, dtype=np.float32)
    explicit = kind == "explicit"
    mesh = jax.make_mesh(
        (2, 4),
        ("data", "model"),
        axis_types=(AxisType.Explicit if explicit else AxisType.Auto,) * 2,
    )
    if explicit and "classes" in form:
        pytest.skip("classes that are split explicitly are not cut in blocks")
    f = partial(function(form), reduction="weighted_sum", z_loss=0.1, has_aux=True)
    wanted = jax.value_and_grad(
        lambda operands: f(labels, *operands, weights=weights), has_aux=True
    )(operands)
    of_labels = P("data", "model") if "dense" in form else P("data")
    specs = (P("data", None), P(None, "model")) if "linear" in form else (P("data", "model"),)

    def program(labels, operands, weights, **options):
        return jax.value_and_grad(
            lambda operands: f(labels, *operands, weights=weights, **options), has_aux=True
        )(operands)

    if kind == "shard_map":

        def shard(labels, operands, weights):
            def mean(operands):
                loss, aux = f(labels, *operands, weights=weights, axis_name="model")
                return jax.lax.psum(loss, "data"), aux

            (loss, aux), gradient = jax.value_and_grad(mean, has_aux=True)(operands)
            cross, z, accuracy, weight_sum, denominator = aux
            total = jax.lax.psum(weight_sum, "data")
            accuracy = jax.lax.psum(accuracy * weight_sum, "data") / total
            cross, z = jax.lax.psum((cross, z), "data")
            denominator = jax.lax.pmean(denominator, "data")
            return (loss, SoftmaxAux(cross, z, accuracy, total, denominator)), gradient

        out = ((P(), SoftmaxAux(*[P()] * 5)), specs)
        split = jax.shard_map(
            shard, mesh=mesh, in_specs=(of_labels, specs, P("data")), out_specs=out
        )
        got = jax.jit(split)(labels, operands, weights)
    else:
        placed = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip(
                (labels, *operands, weights), (of_labels, *specs, P("data")), strict=True
            )
        ]
        with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
            got = jax.jit(program)(placed[0], tuple(placed[1:-1]), placed[-1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=2e-6, atol=1e-6), got, wanted
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.one_in(2)
def test_no_examples(form):
    """All parts are 0, and so is every gradient."""
    labels, operands, _ = example(form, examples=0)
    f = partial(function(form), labels, z_loss=0.1, has_aux=True)
    gradient, aux = jax.grad(lambda operands: f(*operands), has_aux=True)(operands)
    np.testing.assert_array_equal(aux, 0)
    for slope in gradient:
        np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("form", FORMS)
def test_wrong_arguments(form):
    labels, operands, _ = example(form)
    f = partial(function(form), labels, *operands)
    with pytest.raises(ValueError, match=r"has_aux must be False for Reduction\.NONE"):
        f(has_aux=True, reduction="none")
    with pytest.raises(TypeError, match="has_aux must be True or False, got 1"):
        f(has_aux=1)
    with pytest.raises(TypeError, match="has_aux is an option, compiled in"):
        jax.jit(lambda flag: f(has_aux=flag))(True)
