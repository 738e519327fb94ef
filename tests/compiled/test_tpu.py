"""What the TPU's compiler plans for one chip and for 16: bytes moved and held, without a TPU.

Needs the extra `tpu-compile` (Linux x86-64) and a jax that bounds were measured with.
"""

import platform
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from benchmarks import scaling, tpu
from benchmarks.compiled import bounds
from benchmarks.compiled.cases import EXCLUDED, Case, programs
from benchmarks.compiled.programs import compiled, excess
from benchmarks.lib.programs import SCALARS
from benchmarks.scaling import LOGITS, PROJECTION, WIDEST, topology_mesh
from jxent._src.platforms.tpu import V5E
from jxent._src.projection import plan

if not (tpu.is_available() and bounds.ARE_OF_THIS_JAX and platform.machine() == "x86_64"):
    pytest.skip("needs the extra tpu-compile and its jax", allow_module_level=True)

# One process at a time may hold the compiler.
pytestmark = [
    pytest.mark.xdist_group("tpu"), pytest.mark.long, pytest.mark.usefixtures("usual_limits"),
]  # fmt: skip


# They take the compiler longest, and others are like them; the table that is kept has them too.
SLOW = (
    "KL 4096 x 32768 bfloat16",
    "sigmoid ids 4096 x 131072 bfloat16, 8 ids",
    "sigmoid ids 4096 x 131072 bfloat16, 64 ids",
    "softmax ids 4096 x 32768 bfloat16, logit_softcap",
    "softmax ids 4096 x 32768 bfloat16, label_smoothing",
    "projection, softmax 8192 x 2304 x 256000 bfloat16, value",
    "projection, sigmoid 8192 x 2304 x 256000 bfloat16, value",
    "projection, sigmoid ids 8192 x 2304 x 256000 bfloat16, 8 ids, value",
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16, each",
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16",
    "projection, softmax ids 8192 x 1024 x 131072 bfloat16",
    "projection, softmax ids 8192 x 256 x 65536 bfloat16",
    "projection, softmax ids 8192 x 256 x 65536 bfloat16, has_aux",
    "projection, sigmoid ids 8192 x 1024 x 131072 bfloat16, 8 ids",
    "projection, sigmoid ids 8192 x 2304 x 262144 bfloat16, 8 ids",
    "projection, sigmoid ids 8192 x 256 x 1048576 bfloat16, 8 ids",
)


@pytest.fixture(scope="module")
def chip():
    return tpu.one_chip()


@pytest.mark.parametrize(
    "case", [c for c in tpu.CASES if c.name not in SLOW], ids=lambda case: case.name
)
def test_bounds(chip, case):
    """On one chip; the table of `python -m benchmarks.tpu` says it of the rest too."""
    assert excess(chip, case, bounds.TPU) == ""


@pytest.mark.parametrize("sizes", [(4096, 32768, None), (8192, 65536, 256)], ids=str)
def test_excluded_classes_are_compared_where_logits_are_read(chip, sizes):
    """They are stored nowhere."""
    kind = "softmax ids" if sizes[2] is None else "projection, softmax ids"
    plain = Case(kind, *sizes)
    excluding = replace(plain, option=EXCLUDED)
    without, found = (compiled(chip, case, programs(case)["jxent"]) for case in (plain, excluding))
    assert without is not None
    assert found is not None
    assert found.cost.bytes <= 1.01 * without.cost.bytes
    assert found.held <= without.held + 1e6


MODELLED = [
    (8192, 256, 65536, {}),
    (8192, 256, 65536, {"block_size": 512}),
    (4096, 512, 131072, {"block_size": 256}),
    (2048, 1024, 32000, {"block_size": 2048}),
    (8192, 2304, 32000, {"class_block_size": 8192}),
]


@pytest.mark.parametrize(("examples", "features", "classes", "sizes"), MODELLED)
def test_the_bytes_by_which_blocks_are_chosen(
    chip, monkeypatch, examples, features, classes, sizes
):
    """Within 15 % of what the compiler's program moves."""
    loss = "projection, softmax ids"
    monkeypatch.setitem(SCALARS, loss, partial(SCALARS[loss], **sizes))
    case = Case(loss, examples, classes, features)
    inputs = jax.ShapeDtypeStruct((examples, features), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((features, classes), jnp.bfloat16)
    found = compiled(chip, case, programs(case)["jxent"])
    assert found is not None
    if "block_size" in sizes:
        cut = plan.cut(examples, kernel.shape, sizes["block_size"])
        model = plan.bytes_by_examples(V5E, cut, inputs, kernel)
    else:
        width = sizes.get("class_block_size")
        by_classes = plan.class_blocks(examples, kernel.shape, 1, width)
        model = plan.bytes_by_classes(V5E, by_classes, inputs, kernel)
    assert model == pytest.approx(found.cost.bytes, rel=0.15)


@pytest.fixture(scope="module")
def mesh():
    return topology_mesh("v5e:4x4", (4, 4))


@pytest.mark.parametrize("loss", ["softmax ids", "softmax", "sigmoid ids", "sigmoid"])
def test_logits_in_memory(mesh, loss):
    """Statistics cross the chips, nothing of the logits' size is held beside them."""
    p = scaling.plan(mesh, replace(LOGITS, loss=loss))
    # Where one pass gives all of a row's statistics, each chip's are gathered.
    assert {c.kind for c in p.collectives} <= {"all-reduce", "all-gather"}
    assert 0 < p.moved <= (1e6 if loss == "sigmoid" else 64 * 4 * p.examples)
    assert p.temporaries <= 1.1 * p.logits


@pytest.mark.parametrize("reduce", [True, False], ids=["scalar", "per example"])
@pytest.mark.parametrize("loss", ["softmax ids", "sigmoid ids"])
def test_projection(mesh, loss, reduce):
    """d/d inputs crosses "model" and d/d kernel "data", once each."""
    p = scaling.plan(mesh, replace(PROJECTION, loss=f"projection, {loss}", reduce=reduce))
    assert {c.kind for c in p.collectives} <= {"all-reduce", "all-gather", "reduce-scatter"}
    gathered = sum(c.bytes for c in p.collectives if c.kind == "all-gather")
    assert gathered <= 64 * 4 * p.examples
    # d/d kernel may cross as bfloat16: the compiler moves the last rounding before the sum.
    assert (p.inputs + p.kernel) / 2 <= p.moved <= 1.5 * (p.inputs + p.kernel)
    # In blocks of classes it is written in bfloat16.
    assert p.temporaries <= 0.53 * p.kernel


def test_ten_million_classes(mesh):
    """The kernel split over all chips: only d/d inputs and statistics cross."""
    p = scaling.plan(mesh, WIDEST)
    assert {c.kind for c in p.collectives} <= {"all-reduce", "reduce-scatter"}
    assert 0 < p.moved <= 1.5 * p.inputs + 64 * 4 * p.examples
    assert p.temporaries <= 1e6
