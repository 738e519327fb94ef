"""Arrays split over a mesh: the answer of one device, and little moved between the chips."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jxent
from benchmarks.compiled.collectives import collectives
from jxent import losses
from tests.compile_options import OPTIONS, quick
from tests.reference import tolerance

pytestmark = [pytest.mark.eight_devices, pytest.mark.xdist_group("eight devices")]

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
    def moving(self):
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
        moving = tuple(arguments[i] for i in case.moving)

        def of(*moving):
            whole = list(arguments)
            for i, x in zip(case.moving, moving, strict=True):
                whole[i] = x
            return total(*whole)

        slopes = jax.grad(of, tuple(range(len(moving))))
        value, gradient = of(*moving), slopes(*moving)
        if not second:
            return value, gradient
        forward = jax.jvp(slopes, moving, moving)[1]
        backward = jax.vjp(slopes, *moving)[1](moving)
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


def is_split_like(x, mesh, spec):
    return x.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.ndim)


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
KINDS = [(AUTO, shape) for shape in MESHES] + [(EXPLICIT, (2, 4)), (EXPLICIT, (1, 8))]
BOTH = (2, 4)  # both axes are split


# One a loss: these alone in second order in the default lane.
FEW = ("weighted", "softmax", "sparse_sigmoid", "linear_sparse_softmax")
FEW_NAMES = tuple(f"{n}_cross_entropy" + "_with_logits" * ("linear" not in n) for n in FEW)


def is_one_of_few(case):
    return case.name.removesuffix(" all") in FEW_NAMES


def lanes(parameters, is_short):
    """Parameters by lane."""
    return [
        pytest.param(*p, id="-".join(getattr(x, "name", str(x)) for x in p),
                     marks=[] if is_short(*p) else [pytest.mark.long])
        for p in parameters
    ]  # fmt: skip


def jit_is_short(case, kind, shape, second):
    """Explicit sharding of one loss an example, automatic sharding of all."""
    if second:
        return kind is AUTO and is_one_of_few(case)
    return shape == BOTH and (kind is AUTO or not case.name.startswith("losses"))


@pytest.mark.parametrize(
    ("case", "kind", "shape", "second"),
    lanes(
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
    for i, slope in zip(case.moving, got[1], strict=True):
        if kind is AxisType.Explicit:
            assert is_split_like(slope, mesh, SPLITS[case.takes[i]]), case.takes[i]


@pytest.mark.parametrize(
    ("case", "shape", "second"),
    lanes(
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
    slopes = tuple(specs[i] for i in case.moving)
    inside = jax.shard_map(
        jax.grad(local, case.moving), mesh=mesh, in_specs=specs, out_specs=slopes
    )

    @quick
    def program(*arguments):
        found = everything(case, outside, second=second)(*arguments)
        return found, inside(*arguments)

    got, got_inside = program(*placed(case, mesh))
    same(got, on_one_device(case, second))
    same(got_inside, on_one_device(case)[1])


@pytest.mark.parametrize("case", lanes([(c,) for c in CASES], is_one_of_few))
@pytest.mark.one_in(2)
def test_examples_alone_split_need_no_name(case):
    mesh = mesh_of((8, 1))
    specs = tuple(P(*(a if a == DATA else None for a in SPLITS[name])) for name in case.takes)

    def local(*arguments):
        return jax.lax.psum(case.total(*arguments), DATA)

    slopes = tuple(specs[i] for i in case.moving)
    inside = jax.shard_map(
        jax.value_and_grad(local, case.moving), mesh=mesh, in_specs=specs, out_specs=(P(), slopes)
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
        assert is_split_like(got[1][case.moving.index(i)], mesh, split)


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
        value, slopes = loss_and_slopes(jnp.asarray(sample.labels, jnp.int32), sample.logits)
        truths = [
            reference.wide_softmax_of_class(y, x)
            for y, x in zip(sample.labels, sample.logits, strict=True)
        ]
        truth = np.array([t[0] for t in truths])
        own = (np.arange(len(truth)), sample.labels)
        size = np.abs(np.log(np.maximum(np.float64(truth), 1e-38)))
        assert np.all(reference.ulps(value, truth, np.float32) <= 8 + size)
        slope = np.array([t[1] for t in truths])[own]
        assert np.all(reference.ulps(np.asarray(slopes)[own], slope, np.float32) <= 8 + size)


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


# Bytes between the chips.


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
    """Once a sum over blocks; under automatic sharding XLA:CPU, unlike XLA:TPU, once a block."""
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
