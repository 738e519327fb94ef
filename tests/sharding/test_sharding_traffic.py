"""Arrays split over a mesh: little is moved between the chips."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from benchmarks.compiled.collectives import collectives
from jxent import losses
from tests.sharding.cases import (
    CASES,
    DATA,
    FEATURES,
    MODEL,
    SPLITS,
    arrays,
    each,
    mesh_of,
    reduced,
    same,
)

pytestmark = [pytest.mark.eight_devices, pytest.mark.xdist_group("eight devices")]


@pytest.mark.parametrize(
    "name",
    [
        f"losses.{n}"
        for n in (
            "sigmoid_cross_entropy",
            "softmax_cross_entropy all",
            "sparse_softmax_cross_entropy",
            "sparse_sigmoid_cross_entropy",
        )
    ],
)
@pytest.mark.one_in(2)
def test_logits_in_memory_move_statistics_only(name):
    case = next(c for c in CASES if c.name == name)
    mesh = mesh_of((2, 4))
    examples, classes = 64, 1024
    shapes = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, SPLITS[k]))
        for k in case.takes
        for x in [arrays(examples, FEATURES, classes)[k]]
    ]
    i = case.takes.index("logits")
    compiled = jax.jit(jax.value_and_grad(case.total, i)).lower(*shapes).compile()
    text = compiled.as_text()
    assert text is not None
    moved = sum(c.bytes for c in collectives(text))
    assert moved <= 64 * 4 * examples / 2


@pytest.mark.parametrize("reduce", [True, False], ids=["scalar", "per example"])
@pytest.mark.parametrize("manual", [True, False], ids=["shard_map", "auto"])
@pytest.mark.one_in(6)
def test_the_projection_moves_its_gradients_once(reduce, manual):
    """Once a sum over blocks; under automatic sharding XLA:CPU, unlike XLA:TPU, once per block."""
    mesh = mesh_of((2, 4))
    examples, features, classes = 64, 32, 1024
    name = "linear_sparse_softmax_cross_entropy"
    block = 8 if manual else 16
    case = (reduced if reduce else each)(name, "ids", "inputs", "kernel", block_size=block)
    shapes = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, SPLITS[k]))
        for k in case.takes
        for x in [arrays(examples, features, classes)[k]]
    ]
    total = case.total
    if manual:
        specs = tuple(SPLITS[k] for k in case.takes)
        total = jax.shard_map(
            lambda *a: jax.lax.psum(case.total(*a, axis_name=MODEL), DATA),
            mesh=mesh, in_specs=specs, out_specs=P(),
        )  # fmt: skip
    compiled = jax.jit(jax.value_and_grad(total, (1, 2))).lower(*shapes).compile()
    found = collectives(compiled.as_text())
    assert {c.kind for c in found} <= {"all-reduce"}
    inputs, kernel = 4 * examples // 2 * features, features * classes
    sums = 1 if manual else examples // block
    assert inputs + kernel <= sum(c.bytes for c in found) <= 1.5 * (inputs + sums * kernel)


@pytest.mark.parametrize("classes", [640, 4096])
@pytest.mark.parametrize("labels", ["ids", "dense"])
@pytest.mark.parametrize("spec", [P("data", None), P("data", "model"), P(None, "model")], ids=str)
@pytest.mark.one_in(12)
def test_arrays_that_only_jit_splits(spec, labels, classes):
    """`in_shardings` of arrays that are on no mesh does not show when a program is traced.

    There rows are cut as on a laptop: right wherever they are, and less than a sixteenth of the
    logits moves where only the examples are split. Where the classes are, pieces of rows may.
    """
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    examples = 16
    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, classes)).astype(np.float32)
    ids = rng.integers(classes, size=examples)
    dense = rng.dirichlet(np.ones(classes), examples).astype(np.float32)

    def step(x, z):
        if labels == "ids":
            return jax.value_and_grad(lambda x: losses.sparse_softmax_cross_entropy(z, x))(x)
        return jax.value_and_grad(lambda x: losses.softmax_cross_entropy(z, x))(x)

    z, of_labels = (ids, P(spec[0])) if labels == "ids" else (dense, spec)
    splits = NamedSharding(mesh, spec), NamedSharding(mesh, of_labels)
    compiled = jax.jit(step, in_shardings=splits).lower(x, z).compile()
    moved = np.sum([c.bytes for c in collectives(compiled.as_text())])
    same(compiled(*(jax.device_put(a, s) for a, s in zip((x, z), splits, strict=True))), step(x, z))
    most = 4 * x.size * (1 / 16 if spec[1] is None else 2)
    assert moved < most
