"""What the TPU's compiler makes of the losses: traffic and memory, without a TPU.

    python -m pip install -e '.[bench,tpu-compile]'     # Linux x86-64
    python -m benchmarks.tpu [--tiny] [--results DIR] [--json DIR]

Compiled for one chip of a v5e, nothing is run. Without libtpu it says so.
"""

import importlib.util
import os
from collections.abc import Sequence

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
    MASTER,
    OPTIONS,
    STATISTICS,
    TIED,
    TIED_BLOCKWISE,
    WEIGHTS,
    Case,
)
from benchmarks.compiled.programs import NOTE, Chip, rows, tiny, use_no_chip
from benchmarks.lib import command
from benchmarks.lib.command import Options
from benchmarks.lib.report import Table

# libtpu asks the machine it is on what it is, unless it is told; and it locks the chips, of which
# there are none, against a second process.
TOLD = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
TOPOLOGY = "v5e:2x2"
MISSING = "libtpu is not installed: python -m pip install -e '.[tpu-compile]', on Linux x86-64"

ESTIMATE = """

Est. Mcycles are the compiler's own estimate, in millions, at 1.5 GHz: within 2 % of the peak for \
large products, pessimistic for elementwise passes; nothing was run."""


CASES = (
    Case("sigmoid", 4096, 32768),
    Case("sigmoid", 4096, 32768, value_only=True),
    Case("softmax", 4096, 32768),
    Case("softmax", 4096, 32768, value_only=True),
    Case("KL", 4096, 32768),
    Case("softmax ids", 4096, 32768),
    Case("softmax ids", 4096, 32768, value_only=True),
    Case("softmax ids", 4096, 32768, form="each"),
    Case("softmax ids", 4096, 32768, form="each", value_only=True),
    Case("softmax ids", 4096, 32768, form="vmap"),
    Case("softmax ids", 4096, 32768, form="axis 0"),
    *(Case("softmax ids", 4096, 32768, option=name) for name in (*OPTIONS, WEIGHTS, HAS_AUX)),
    Case("softmax", 4096, 32768, option=HAS_AUX),
    Case("softmax ids", 4096, 32768, option=STATISTICS),
    Case("softmax ids", 4096, 32768, option=LISTS),
    Case("softmax ids", 4096, 32768, option=STATISTICS, value_only=True),
    Case("softmax ids", 4096, 50257),  # GPT-2's vocabulary, which no tile divides
    Case("softmax ids", 4096, 50257, value_only=True),
    *(Case("sigmoid ids", 4096, 131072, ids=n) for n in (8, 24, 64)),
    *(
        Case(f"projection, {loss}", *GEMMA, value_only=True)
        for loss in ("softmax ids", "softmax", "sigmoid ids", "sigmoid")
    ),
    Case("projection, softmax ids", *GEMMA, form="each"),
    Case("projection, softmax ids", *GEMMA),
    Case("projection, softmax ids", 8192, 131072, 1024),
    Case("projection, softmax ids", 8192, 65536, 256),
    Case("projection, softmax ids", 8192, 65536, 256, option=HAS_AUX),
    Case("projection, softmax ids", 8192, 131072, 1024, option=MASTER),
    Case("projection, softmax ids", 8192, 131072, 1024, option=STATISTICS),
    Case("projection, softmax ids", *GEMMA, option=STATISTICS, value_only=True),
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


def is_available() -> bool:
    """Is the TPU's compiler installed?"""
    return importlib.util.find_spec("libtpu") is not None


def one_chip() -> Chip:
    """Everything on one chip of the topology."""
    for name, value in TOLD.items():
        os.environ.setdefault(name, value)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY)
    mesh = Mesh(np.array(topology.devices[:1]), ("chip",))
    return Chip(NamedSharding(mesh, PartitionSpec()), estimates=True)


def tables(options: Options) -> list[Table]:
    """All compilations."""
    title = "Compiled for TPU"
    if not is_available():
        return [Table(title, [], MISSING)]
    lines = list(rows(one_chip(), tiny(CASES) if options.tiny else CASES, bounds.TPU))
    jax.clear_caches()
    return [Table(f"{title}, one chip of {TOPOLOGY}", lines, NOTE + ESTIMATE)]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    use_no_chip()
    command.main("tpu", tables, __doc__ or "", argv)


if __name__ == "__main__":
    main()
