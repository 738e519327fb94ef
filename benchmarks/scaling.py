"""What each chip of a pod moves and holds, as the TPU's compiler plans it, without a TPU.

    python -m pip install -e '.[bench,tpu-compile]'     # Linux x86-64
    python -m benchmarks.scaling [--tiny] [--results DIR] [--json DIR]

Compiled for whole slices, examples split over "data" and classes over "model"; nothing is run.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from benchmarks.compiled.collectives import Collective, collectives
from benchmarks.compiled.programs import use_no_chip
from benchmarks.lib import command
from benchmarks.lib.command import Options
from benchmarks.lib.programs import SCALARS, mean_of_each
from benchmarks.lib.report import Table
from benchmarks.tpu import MISSING, TOLD, is_available

DATA, MODEL = "data", "model"

NOTE = """\
Per chip: bytes of the results of all collectives, each run of a loop counted; the compiler's \
temporaries; and the sizes that the mathematics asks for: the chip's part of the logits in \
bfloat16, of d/d inputs and d/d kernel in float32."""


@dataclass(frozen=True)
class Program:
    """Value and gradients of a loss on a mesh."""

    loss: str
    examples: int
    classes: int
    features: int | None = None
    reduce: bool = True  # one number, or one loss per example
    block_size: int | None = None
    classes_over: str | tuple[str, ...] = MODEL
    examples_over: str | None = DATA
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """Loss, form and shape."""
        sizes = [self.examples, self.features, self.classes]
        form = "" if self.reduce else ", one loss per example"
        return f"{self.loss}{form}, " + " x ".join(str(n) for n in sizes if n is not None)


IDS = 8  # positive classes an example

LOGITS = Program("sigmoid", 8192, 131072)
PROJECTION = Program("projection, softmax ids", 8192, 131072, 1024)
WIDEST = Program(
    "projection, sigmoid ids", 2048, 10_000_384, 128,
    classes_over=(DATA, MODEL), examples_over=None,
)  # fmt: skip


def topology_mesh(topology: str, shape: tuple[int, int]) -> Mesh:
    """The chips of a slice as ("data", "model")."""
    for name, value in TOLD.items():
        os.environ.setdefault(name, value)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return Mesh(np.array(devices).reshape(shape), (DATA, MODEL))


def compiled_on(mesh: Mesh, program: Program):
    """Value and gradients of the program, compiled."""

    def array(shape, dtype, *split):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*split)))

    n, c, d = program.examples, program.classes, program.features
    rows, columns = program.examples_over, program.classes_over
    labels = {
        "sigmoid ids": lambda: array((n, IDS), jnp.int32, rows),
        "softmax ids": lambda: array((n,), jnp.int32, rows),
    }.get(program.loss.split(", ")[-1], lambda: array((n, c), program.dtype, rows, columns))()
    options = {} if d is None else {"block_size": program.block_size}
    if d is None:
        operands = [array((n, c), program.dtype, rows, columns)]
    else:
        operands = [
            array((n, d), program.dtype, rows), array((d, c), program.dtype, None, columns)
        ]  # fmt: skip
    mean = SCALARS[program.loss] if program.reduce else partial(mean_of_each, program.loss)

    def loss(labels, *operands):
        return mean(labels, *operands, **options)

    step = jax.value_and_grad(loss, tuple(range(1, 1 + len(operands))))
    kept = tuple(x.sharding for x in operands)
    whole = NamedSharding(mesh, P())
    return jax.jit(step, out_shardings=(whole, kept)).lower(labels, *operands).compile()


@dataclass(frozen=True)
class ChipPlan:
    """What one chip moves and holds, in bytes."""

    collectives: list[Collective]
    temporaries: int
    examples: int  # of this chip
    logits: int  # of this chip, in the operands' dtype
    inputs: int  # of this chip, in float32
    kernel: int

    @property
    def moved(self) -> int:
        """Bytes of the results of all collectives."""
        return sum(c.bytes for c in self.collectives)


def plan(mesh: Mesh, program: Program) -> ChipPlan:
    """Compiles the program and reads it."""
    compiled = compiled_on(mesh, program)
    sizes = dict(mesh.shape)
    rows = sizes[DATA] if program.examples_over else 1
    over = program.classes_over if isinstance(program.classes_over, tuple) else (MODEL,)
    columns = int(np.prod([sizes[axis] for axis in over]))
    n, c, d = program.examples // rows, program.classes // columns, program.features or 0
    return ChipPlan(
        collectives(compiled.as_text()), compiled.memory_analysis().temp_size_in_bytes,
        n, n * c * jnp.dtype(program.dtype).itemsize, 4 * n * d, 4 * d * c,
    )  # fmt: skip


# Slices and their meshes; the larger side holds the classes, whose gradient is the larger.
SLICES = {
    "v5e:2x2": (2, 2), "v5e:4x4": (4, 4), "v5e:8x8": (8, 8), "v5e:16x16": (16, 16),
    "v6e:16x16": (16, 16), "v5p:4x4x4": (8, 8), "v5p:8x8x8": (16, 32),
}  # fmt: skip


def rows() -> list[dict]:
    """One line a slice and program."""
    lines = []
    for topology, shape in SLICES.items():
        mesh = topology_mesh(topology, shape)
        for reduce in (True, False):
            program = replace(PROJECTION, reduce=reduce)
            p = plan(mesh, program)
            lines.append({
                "slice": topology, "mesh": f"{shape[0]} x {shape[1]}",
                "form": "scalar" if reduce else "per example",
                "moved MB": p.moved / 1e6, "d/d inputs MB": p.inputs / 1e6,
                "d/d kernel MB": p.kernel / 1e6, "temporaries MB": p.temporaries / 1e6,
                "logits MB": p.logits / 1e6,
            })  # fmt: skip
    return lines


def tables(options: Options) -> list[Table]:
    """All compilations; tiny: none."""
    if not is_available():
        return [Table("Compiled for slices of TPUs", [], MISSING)]
    lines = [] if options.tiny else rows()
    return [Table(f"{PROJECTION.name}, compiled for slices of TPUs, per chip", lines, NOTE)]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    use_no_chip()
    command.main("scaling", tables, __doc__ or "", argv)


if __name__ == "__main__":
    main()
