"""What the GPU's compiler makes of the losses for an H100: traffic and memory, without a GPU.

    python -m pip install -e '.[bench,gpu-compile]'     # Linux x86-64
    python -m benchmarks.gpu --compile [--tiny] [--results DIR] [--json DIR]

Nothing is run. Without the compiler it says so.
"""

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.compiled import bounds
from benchmarks.compiled.cases import (
    BLOCKWISE,
    GEMMA,
    HAS_AUX,
    LISTS,
    STATISTICS,
    TIED,
    TIED_BLOCKWISE,
    Case,
)
from benchmarks.compiled.programs import NOTE, Chip, rows, tiny
from benchmarks.lib.command import Options
from benchmarks.lib.report import Table

TARGET = Path(__file__).with_name("h100.txtpb")  # what the compiler would ask the GPU for
COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}  # the other choice is the autotuner's
PRODUCTS = "\n\nProducts are calls of cuBLAS: nothing is tuned without a GPU."
MISSING = (
    "The GPU's compiler is not installed, or is not of this JAX's version: "
    "python -m pip install -e '.[gpu-compile]', on Linux x86-64"
)
IN_BFLOAT16 = (
    Case("sigmoid", 4096, 32768),
    Case("softmax", 4096, 32768),
    Case("KL", 4096, 32768),
    Case("softmax ids", 4096, 32768),
    Case("softmax ids", 4096, 32768, value_only=True),
    Case("softmax ids", 4096, 32768, option=HAS_AUX),
    Case("softmax ids", 4096, 32768, option=STATISTICS),
    Case("softmax ids", 4096, 32768, option=LISTS),
    Case("softmax ids", 8192, 128256),  # Llama 3's vocabulary
    Case("softmax ids", 8192, 128256, value_only=True),
    Case("softmax ids", 32768, 1000),  # ImageNet's classes
    Case("softmax ids", 32768, 1000, value_only=True),
    Case("sigmoid ids", 4096, 131072),
    Case("projection, softmax ids", *GEMMA, form="each"),
    Case("projection, softmax ids", *GEMMA),
    Case("projection, softmax ids", 8192, 131072, 1024, option=TIED),
    *(
        Case("projection, softmax ids", 8192, 131072, 1024, option=o)
        for o in (BLOCKWISE, TIED_BLOCKWISE)
    ),
    Case("projection, sigmoid ids", 8192, 131072, 1024),
    Case("projection, sigmoid ids", 8192, 131072, 1024, option=TIED),
    Case("projection, sigmoid ids", 8192, 1048576, 256),
    Case("projection, sigmoid ids", 8192, 262144, 2304),
)
CASES = tuple(
    replace(case, dtype=dtype) for dtype in ("bfloat16", "float32") for case in IN_BFLOAT16
)  # fmt: skip


def is_available() -> bool:
    """Is the GPU's compiler installed, and made for this JAX?"""
    try:
        version = metadata.version("jax-cuda12-plugin")
    except metadata.PackageNotFoundError:
        return False
    return version == jax.__version__


def one_chip() -> Chip:
    """Everything on one GPU as the target describes it."""
    target = TARGET.read_text(encoding="utf-8")
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", target_config=target, topology="1x1x1"
    )
    mesh = Mesh(np.array(topology.devices[:1]), ("chip",))
    memory = int(target.split("device_memory_size: ")[1].split()[0])
    return Chip(NamedSharding(mesh, PartitionSpec()), COMPILER_OPTIONS, memory=memory)


def tables(options: Options) -> list[Table]:
    """All compilations."""
    title = "Compiled for one H100"
    if not is_available():
        return [Table(title, [], MISSING)]
    lines = list(rows(one_chip(), tiny(CASES) if options.tiny else CASES, bounds.H100))
    jax.clear_caches()
    return [Table(title, lines, NOTE + PRODUCTS)]
