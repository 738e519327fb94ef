"""All benchmarks, or those named.

python -m benchmarks [--only NAME ...] [--tiny] [--results DIR] [--json DIR] [--plots DIR]
"""

from collections.abc import Sequence

from benchmarks import accuracy, gpu, memory, overhead, speed, tpu
from benchmarks.compiled import h100
from benchmarks.lib import command
from benchmarks.lib.command import DTYPES, Measurement

MODULES: dict[str, Measurement] = {
    "accuracy": accuracy.tables,
    "speed": speed.tables,
    "memory": memory.tables,
    "overhead": overhead.tables,
    "tpu": tpu.tables,
    "gpu": gpu.tables,
    "gpu_compile": h100.tables,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs them one after the other."""
    parser = command.parser("Runs all benchmarks, or those named.", only=tuple(MODULES))
    arguments = parser.parse_args(argv)
    options = command.options_of(arguments, ("float32",) if arguments.tiny else DTYPES)
    command.run({name: MODULES[name] for name in arguments.only or MODULES}, options)


if __name__ == "__main__":
    main()
