"""What the GPU's compiler makes of the losses for an H100: bytes moved and held, without a GPU.

Needs the extra `gpu-compile` (Linux x86-64) and a jax that bounds were measured with.
"""

import platform
from functools import partial

import jax
import pytest

import jxent
from benchmarks.compiled import bounds, h100
from benchmarks.compiled.cases import EXCLUDED, Case, programs
from benchmarks.compiled.programs import compiled, excess
from jxent._src.projection import plan

if not (h100.is_available() and bounds.ARE_OF_THIS_JAX and platform.machine() == "x86_64"):
    pytest.skip("needs the extra gpu-compile and its jax", allow_module_level=True)

# One process compiles, beside the one that compiles for the TPU.
pytestmark = [pytest.mark.xdist_group("gpu_compile"), pytest.mark.long]


@pytest.fixture(scope="module")
def chip():
    return h100.one_chip()


def moved(chip, function, case, **sizes):
    """Bytes, of one number an example and both gradients."""

    def total(labels, inputs, kernel, _):
        return function(labels=labels, inputs=inputs, kernel=kernel, **sizes).sum()

    found = compiled(chip, case, jax.value_and_grad(total, (1, 2)))
    assert found is not None
    return found.cost.bytes


def entropy(**arguments):
    return jxent.linear_sparse_softmax_statistics(**arguments).entropy


@pytest.mark.parametrize(
    "function", [jxent.linear_sparse_softmax_cross_entropy, entropy], ids=["loss", "entropy"]
)
@pytest.mark.parametrize(
    ("examples", "classes", "features"),
    [
        (8192, 131072, 1024), (8192, 65536, 256), (4096, 32000, 4096), (16384, 50304, 768),
        (2048, 128256, 4096), (1024, 32000, 1024), (8192, 32768, 1024),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_blocks_are_chosen_that_move_least(chip, function, examples, classes, features, dtype):
    case = Case("projection, softmax ids", examples, classes, features, dtype=dtype)
    bytes_of = partial(moved, chip, function, case)
    width = plan.class_blocks(examples, (features, classes), 1, None).width
    size = plan.cut(examples, (features, classes), None).size
    best = min(bytes_of(block_size=size), bytes_of(class_block_size=width))
    # On jax 0.12 one shape in float32 moves 1.067 times the least.
    assert bytes_of() <= (1.07 if jax.__version_info__ >= (0, 12) else 1.06) * best


def test_excluded_classes_of_a_projection_are_a_mask_of_a_block(chip):
    """A byte a logit, written once and read twice."""
    plain, excluding = (
        Case("projection, softmax ids", 8192, 131072, 1024, option=option)
        for option in ("", EXCLUDED)
    )
    without, found = (compiled(chip, case, programs(case)["jxent"]) for case in (plain, excluding))
    assert without is not None
    assert found is not None
    assert found.cost.bytes <= without.cost.bytes + 3.1 * 8192 * 131072
    assert found.held <= 1.01 * without.held


@pytest.mark.parametrize("case", h100.CASES, ids=lambda case: case.name)
def test_bounds(chip, case):
    assert excess(chip, case, bounds.H100) == ""
