"""What the GPU's compiler makes of the losses for an H100: bytes moved and held, without a GPU.

Needs the extra `gpu-compile` (Linux x86-64, jax 0.10.2); skipped elsewhere.
"""

import platform

import pytest

from benchmarks import bounds, gpu_compile
from benchmarks.compiled import excess

if not gpu_compile.is_available() or platform.machine() != "x86_64":
    pytest.skip("needs the extra gpu-compile beside jax 0.10.2", allow_module_level=True)

# One process compiles, beside the one that compiles for the TPU.
pytestmark = [pytest.mark.xdist_group("gpu_compile"), pytest.mark.long]


@pytest.fixture(scope="module")
def chip():
    return gpu_compile.one_chip()


@pytest.mark.parametrize("case", gpu_compile.CASES, ids=lambda case: case.name)
def test_bounds(chip, case):
    assert excess(chip, case, bounds.H100) == ""
