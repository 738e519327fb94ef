"""Arrays split over a mesh: the answer of one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jxent
from benchmarks.compiled.collectives import collectives
from tests.compile_options import OPTIONS, quick
from tests.sharding.cases import (
    BY_CLASSES,
    CASES,
    CLASSES,
    DATA,
    EXAMPLES,
    FEATURES,
    MESHES,
    MODEL,
    SPLITS,
    arrays,
    everything,
    mesh_of,
    on_one_device,
    placed,
    same,
)

pytestmark = [pytest.mark.eight_devices, pytest.mark.xdist_group("eight devices")]


def is_split_like(x, mesh, spec):
    return x.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.ndim)


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
KINDS = [(AUTO, shape) for shape in MESHES] + [(EXPLICIT, (2, 4)), (EXPLICIT, (1, 8))]
BOTH = (2, 4)  # both axes are split
# One a loss: these alone in second order in the fast suite.
FEW = ("weighted", "softmax", "sparse_sigmoid", "linear_sparse_softmax")
FEW_NAMES = tuple(f"{n}_cross_entropy" + "_with_logits" * ("linear" not in n) for n in FEW)


def is_one_of_few(case):
    return case.name.removesuffix(" all") in FEW_NAMES


def in_suites(parameters, is_short):
    """Parameters by suite."""
    return [
        pytest.param(*p, id="-".join(getattr(x, "name", str(x)) for x in p),
                     marks=[] if is_short(*p) else [pytest.mark.long])
        for p in parameters
    ]  # fmt: skip


def jit_is_short(case, kind, shape, second):
    """Explicit sharding of one loss per example, automatic sharding of all."""
    if second:
        return kind is AUTO and is_one_of_few(case)
    return shape == BOTH and (kind is AUTO or not case.name.startswith("losses"))


@pytest.mark.parametrize(
    ("case", "kind", "shape", "second"),
    in_suites(
        [
            (case, *k, second)
            for case in CASES
            for k in KINDS
            for second in ((False, True) if k[1] == BOTH else (False,))
            # No block is cut out of classes that are split explicitly.
            if k[0] is AUTO or BY_CLASSES not in case.name
        ],
        jit_is_short,
    ),
)
@pytest.mark.one_in(30)
def test_under_jit(case, kind, shape, second):
    mesh = mesh_of(shape, kind)
    with jax.set_mesh(mesh):
        arguments = placed(case, mesh)
        program = everything(case, case.total, second=second)
        compiled = jax.jit(program).lower(*arguments).compile(OPTIONS)
        got = compiled(*arguments)
    same(got, on_one_device(case, second))
    kinds = {c.kind for c in collectives(compiled.as_text())}
    assert kinds <= {"all-reduce"}
    for i, gradient in zip(case.differentiated, got[1], strict=True):
        if kind is AxisType.Explicit:
            assert is_split_like(gradient, mesh, SPLITS[case.takes[i]]), case.takes[i]


@pytest.mark.parametrize(
    ("case", "shape", "second"),
    in_suites(
        [
            (case, shape, second)
            for case in CASES
            for shape in MESHES
            for second in ((False, True) if shape == BOTH else (False,))
        ],
        lambda case, shape, second: shape == BOTH and (not second or is_one_of_few(case)),
    ),
)
@pytest.mark.one_in(21)
def test_under_shard_map(case, shape, second):
    """Classes split, ids global; differentiated from outside and from inside."""
    mesh = mesh_of(shape)
    where = {"axis_name": MODEL} if case.needs_name else {}
    specs = tuple(SPLITS[name] for name in case.takes)

    def local(*arguments):
        value = case.total(*arguments, **where)
        axes = DATA if where else (DATA, MODEL)
        return jax.lax.psum(value, axes)

    outside = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    gradients = tuple(specs[i] for i in case.differentiated)
    inside = jax.shard_map(
        jax.grad(local, case.differentiated), mesh=mesh, in_specs=specs, out_specs=gradients
    )

    @quick
    def program(*arguments):
        found = everything(case, outside, second=second)(*arguments)
        return found, inside(*arguments)

    got, got_inside = program(*placed(case, mesh))
    same(got, on_one_device(case, second))
    same(got_inside, on_one_device(case)[1])


@pytest.mark.parametrize("case", in_suites([(c,) for c in CASES], is_one_of_few))
@pytest.mark.one_in(2)
def test_examples_alone_split_need_no_name(case):
    mesh = mesh_of((8, 1))
    specs = tuple(P(*(a if a == DATA else None for a in SPLITS[name])) for name in case.takes)

    def local(*arguments):
        return jax.lax.psum(case.total(*arguments), DATA)

    gradients = tuple(specs[i] for i in case.differentiated)
    inside = jax.shard_map(
        jax.value_and_grad(local, case.differentiated),
        mesh=mesh,
        in_specs=specs,
        out_specs=(P(), gradients),
    )
    same(quick(inside)(*placed(case, mesh)), on_one_device(case)[:2])


@pytest.mark.parametrize("name", ["linear_sparse_softmax", "linear_sparse_sigmoid"])
@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=["auto", "explicit"])
@pytest.mark.one_in(5)
def test_a_kernel_split_both_ways(name, kind):
    """FSDP: the features of the kernel are split like the examples."""
    case = next(c for c in CASES if c.name == f"losses.{name}_cross_entropy")
    mesh = mesh_of((2, 4), kind)
    with jax.set_mesh(mesh):
        arguments = placed(case, mesh)
        i = case.takes.index("kernel")
        split = P(DATA, MODEL)
        arguments[i] = jax.device_put(arrays()["kernel"], NamedSharding(mesh, split))
        got = quick(everything(case, case.total))(*arguments)
    same(got, on_one_device(case, second=True))
    if kind is AxisType.Explicit:
        assert is_split_like(got[1][case.differentiated.index(i)], mesh, split)


@pytest.mark.parametrize("classes", [37, 8191])
@pytest.mark.one_in(2)
def test_classes_that_the_chips_do_not_divide(classes):
    """Such arrays exist inside of a program only, by a constraint."""
    mesh = mesh_of((2, 4))
    data = arrays(EXAMPLES, FEATURES, classes)

    def loss(inputs, kernel, ids, split):
        logits = inputs @ kernel
        if split:
            logits = jax.lax.with_sharding_constraint(logits, NamedSharding(mesh, P(DATA, MODEL)))
        values = jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=logits)
        return jnp.sum(values * data["weights"])

    arguments = data["inputs"], data["kernel"], data["ids"]
    one, eight = (
        jax.jit(jax.value_and_grad(partial(loss, split=split), (0, 1)))(*arguments)
        for split in (False, True)
    )
    same(eight, jax.tree.map(np.asarray, one))


def test_digits_survive_the_split():
    """The bounds of one device, where each shard sees a part of a confident row."""
    from benchmarks.lib.samples import softmax_samples  # noqa: PLC0415
    from tests import reference  # noqa: PLC0415

    mesh = mesh_of((1, 8))

    @jax.jit
    @partial(
        jax.shard_map, mesh=mesh, in_specs=(P(), P(None, MODEL)), out_specs=(P(), P(None, MODEL))
    )
    def loss_and_slopes(y, x):
        value, pull = jax.vjp(
            lambda x: jxent.sparse_softmax_cross_entropy_with_logits(
                labels=y, logits=x, axis_name=MODEL
            ), x,
        )  # fmt: skip
        return value, pull(jnp.ones_like(value))[0]

    samples = [s for s in softmax_samples(jnp.float32, rows=100) if s.logits.shape[1] == 1000]
    assert len(samples) == 3
    for sample in samples:
        value, gradients = loss_and_slopes(jnp.asarray(sample.labels, jnp.int32), sample.logits)
        truths = [
            reference.wide_softmax_of_class(y, x)
            for y, x in zip(sample.labels, sample.logits, strict=True)
        ]
        expected = np.array([t[0] for t in truths])
        own = (np.arange(len(expected)), sample.labels)
        size = np.abs(np.log(np.maximum(np.float64(expected), 1e-38)))
        assert np.all(reference.ulps(value, expected, np.float32) <= 8 + size)
        gradient = np.array([t[1] for t in truths])[own]
        assert np.all(reference.ulps(np.asarray(gradients)[own], gradient, np.float32) <= 8 + size)


def test_ids_out_of_range_are_nan_on_every_chip():
    mesh = mesh_of((1, 8))
    labels = jnp.array([-1, CLASSES, 3, 39], jnp.int32)
    logits = arrays()["logits"][:4]
    value = jax.shard_map(
        lambda y, x: jxent.sparse_softmax_cross_entropy_with_logits(
            labels=y, logits=x, axis_name=MODEL
        ),
        mesh=mesh, in_specs=(P(), P(None, MODEL)), out_specs=P(),
    )(labels, logits)  # fmt: skip
    np.testing.assert_array_equal(np.isnan(value), [True, True, False, False])


@pytest.mark.parametrize("name", ["nowhere", 3])
def test_an_axis_that_no_shard_map_binds(name):
    with pytest.raises(ValueError, match="axis_name must name an axis"):
        jxent.sparse_softmax_cross_entropy_with_logits(labels=0, logits=[0.0, 1.0], axis_name=name)
