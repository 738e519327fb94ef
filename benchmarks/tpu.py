"""What the TPU's compiler makes of value and gradients: traffic and memory, without a TPU.

    python -m pip install 'libtpu==0.0.42.*'     # beside jax 0.10.2; Linux x86-64
    python -m benchmarks.tpu [--tiny] [--results DIR] [--json DIR]

Compiled for one chip of a v5e, nothing is run. Without libtpu it says so.
"""

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import command
from benchmarks.command import Options
from benchmarks.programs import (
    chained_products,
    jxent_mean,
    of_optax,
    operand_shapes,
    optax_mean,
    per_example,
    scalar,
    value_and_gradients,
)
from benchmarks.report import Table
from benchmarks.workloads import Workload, workloads

# libtpu asks the machine it is on what it is, unless it is told; and it locks the chips, of which
# there are none, against a second process.
TOLD = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
TOPOLOGY = "v5e:2x2"
MISSING = "libtpu is not installed: python -m pip install 'libtpu==0.0.42.*' beside jax 0.10.2"

NOTE = """\
Bytes accessed are the compiler's count of what its instructions read and write, each block of a \
loop included. It counts the body of a loop once: what one body takes is the difference to the \
same program with the loop unrolled by two. Passes are bytes accessed over the size of the \
logits; the projection's logits are those that would be stored.

Floors: sigmoid, value and gradient: read the logits, read the labels, write the gradient: 3 \
passes. Softmax with ids: read the logits, write the gradient: 2. Projection of N examples, D \
features, C classes, each product reading two operands and writing its result: 3 (N D + D C + N C) \
numbers. With no logits in memory: operands read and gradients written once, 2 (N D + D C) \
numbers, which only a chip that holds a whole operand could reach."""


def is_available() -> bool:
    """Is the TPU's compiler installed?"""
    return importlib.util.find_spec("libtpu") is not None


def one_chip() -> NamedSharding:
    """Everything on one chip of the topology."""
    for name, value in TOLD.items():
        os.environ.setdefault(name, value)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY)
    return NamedSharding(Mesh(np.array(topology.devices[:1]), ("chip",)), PartitionSpec())


def floor_bytes(workload: Workload) -> int:
    """See `NOTE`."""
    n, c, d = workload.examples, workload.classes, workload.features
    if workload.loss == "sigmoid":
        return 3 * workload.logits_bytes
    if workload.loss == "softmax ids":
        return 2 * workload.logits_bytes
    assert d is not None
    return 3 * (n * d + d * c + n * c) * workload.logits_bytes // (n * c)


def programs(workload: Workload) -> dict[str, Callable]:
    """Value and gradients in each library's form."""
    if workload.loss != "projection":
        return {
            "jxent": jax.value_and_grad(jxent_mean(workload.loss)),
            "optax": jax.value_and_grad(optax_mean(workload.loss)),
        }
    return {
        "jxent": value_and_gradients(partial(scalar, None)),
        "jxent, per example": value_and_gradients(per_example),
        "optax": value_and_gradients(of_optax),
        "three bare products": lambda inputs, kernel, labels: chained_products(inputs, kernel),
    }


class Scans:
    """`jax.lax.scan`, unrolled, and how many rounds its loops have."""

    def __init__(self, unroll: int):
        self.unroll, self._scan = unroll, jax.lax.scan
        self.rounds: set[int] = set()

    def __call__(self, f, init, xs=None, length=None, **options):
        """As `jax.lax.scan`."""
        self.rounds.add(length if length is not None else jax.tree.leaves(xs)[0].shape[0])
        return self._scan(f, init, xs, length, **{**options, "unroll": self.unroll})


def compiled_for(chip: NamedSharding, workload: Workload, function: Callable, unroll: int = 1):
    """The compiled program, its scans unrolled, and the numbers of rounds that its scans have."""
    shapes = [
        jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=chip) for s in operand_shapes(workload)
    ]
    scans = Scans(unroll)
    jax.clear_caches()  # of traces that hold the scan as it was
    with mock.patch.object(jax.lax, "scan", scans):
        program = jax.jit(function).lower(*shapes).compile()
    return program, scans.rounds


def bytes_accessed(chip, workload: Workload, function: Callable, program, rounds: set) -> float:
    """All rounds of the loops included; NaN where their number cannot be told."""
    once = program.cost_analysis()["bytes accessed"]
    if re.search(r" while\(", program.as_text()) is None:
        return once
    if len(rounds) != 1:
        return float("nan")
    (n,) = rounds
    twice = compiled_for(chip, workload, function, unroll=2)[0].cost_analysis()["bytes accessed"]
    # A round left over by an odd number stands beside the loop: one body more is counted.
    bodies = 1 + n % 2
    return once + (n - 1) * (twice - once) / bodies


def row(chip: NamedSharding, workload: Workload, name: str, function: Callable) -> dict:
    """One line: traffic and temporaries of one program."""
    line = {"workload": workload.name, "program": name}
    try:
        program, rounds = compiled_for(chip, workload, function)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return line | {"GB accessed": "does not fit"}
    moved = bytes_accessed(chip, workload, function, program, rounds)
    return line | {
        "GB accessed": moved / 1e9,
        "passes": moved / workload.logits_bytes,
        "/ floor": moved / floor_bytes(workload),
        "temporaries GB": program.memory_analysis().temp_size_in_bytes / 1e9,
    }


def tables(options: Options) -> list[Table]:
    """All compilations."""
    if not is_available():
        return [Table("Compiled for TPU", [], MISSING)]
    chip = one_chip()
    rows = []
    for workload in workloads("tpu", tiny=options.tiny):
        for name, function in programs(workload).items():
            rows.append(row(chip, workload, name, function))
        least = floor_bytes(workload)
        rows.append({
            "workload": workload.name, "program": "floor", "GB accessed": least / 1e9,
            "passes": least / workload.logits_bytes, "/ floor": 1.0, "temporaries GB": 0.0,
        })  # fmt: skip
        if workload.features is not None:
            n, d, c = workload.examples, workload.features, workload.classes
            size = workload.logits_bytes // (n * c)
            bare = 2 * (n * d + d * c) * size
            rows.append({
                "workload": workload.name, "program": "floor without logits",
                "GB accessed": bare / 1e9, "passes": bare / workload.logits_bytes,
                "/ floor": bare / least, "temporaries GB": 0.0,
            })  # fmt: skip
    jax.clear_caches()
    return [Table(f"Compiled for TPU, one chip of {TOPOLOGY}", rows, NOTE)]


def use_no_chip() -> None:
    """Keeps JAX from looking for a TPU, unless it is told to: libtpu is here to compile."""
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    use_no_chip()
    command.main("tpu", tables, __doc__ or "", argv)


if __name__ == "__main__":
    main()
