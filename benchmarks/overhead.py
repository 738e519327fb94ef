"""What a loss costs beside its arithmetic: import, tracing, compiling, an eager call, a small step.

    python -m benchmarks.overhead [--tiny] [--rounds N] [--results DIR] [--json DIR]

Each beside optax, in turn in one process, with nothing cached where something is traced.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jxent
from benchmarks.lib import command
from benchmarks.lib.command import Options
from benchmarks.lib.programs import jxent_mean, of_optax, optax_mean, scalar, value_and_gradients
from benchmarks.lib.report import Table
from benchmarks.lib.timing import Program, ratio, side_by_side

EXAMPLES, CLASSES = 128, 10
PROJECTION = (128, 16, 1000)  # examples, features, classes

NOTE = """\
Trace and lower, and compile: value and gradient of the mean loss. Eager: losses of floor 1 \
outside `jit` (of the projection the mean). Small step: value and gradient, compiled. Logits are \
128 x 10, the projection 128 x 16 x 1000. "cpu", "tpu", "reference": the same ratio inside of \
`jxent.assume_platform`; of a TPU's programs only lowering is shown."""
ASSUMED = {
    "cpu": partial(jxent.assume_platform, "cpu"),
    "tpu": partial(jxent.assume_platform, "tpu"),
    "reference": partial(jxent.assume_platform, "reference"),
}


@dataclass(frozen=True)
class Row:
    """A loss as jxent and optax have it: its mean, its gradient, and a call outside `jit`."""

    name: str
    arrays: tuple[jax.Array, ...]
    means: dict[str, Callable[..., Any]]
    eager: dict[str, Callable[..., Any]]
    gradient: Callable[[Callable[..., Any]], Callable[..., Any]] = jax.value_and_grad


def rows() -> list[Row]:
    """The losses that are compared."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((EXAMPLES, CLASSES)), jnp.float32)
    ids = jnp.asarray(rng.integers(CLASSES, size=EXAMPLES), jnp.int32)
    dense = jnp.asarray(rng.dirichlet(np.ones(CLASSES), EXAMPLES), jnp.float32)
    examples, features, classes = PROJECTION
    inputs = jnp.asarray(rng.standard_normal((examples, features)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((features, classes)), jnp.float32)
    labels = jnp.asarray(rng.integers(classes, size=examples), jnp.int32)
    found = []
    for kind, function, targets in (
        ("sigmoid", jxent.sigmoid_cross_entropy_with_logits, dense),
        ("softmax", jxent.softmax_cross_entropy_with_logits, dense),
        ("softmax ids", jxent.sparse_softmax_cross_entropy_with_logits, ids),
    ):
        eager = {
            "jxent": lambda x, z, f=function: f(labels=z, logits=x),
            "optax": optax_mean(kind, each=True),
        }
        means = {"jxent": jxent_mean(kind), "optax": optax_mean(kind)}
        found.append(Row(kind, (logits, targets), means, eager))
    means = {"jxent": partial(scalar, None), "optax": of_optax}
    found.append(Row("projection", (inputs, kernel, labels), means, means, value_and_gradients))
    return found


def cold(row: Row, rounds: int) -> dict[str, dict[str, np.ndarray]]:
    """Seconds to trace and lower, and to compile, with nothing cached."""
    names = ("jxent", *ASSUMED, "optax")
    lowering: dict[str, list[float]] = {name: [] for name in names}
    compiling: dict[str, list[float]] = {name: [] for name in names}
    for k in tqdm(range(rounds + 1), desc=row.name, unit="round", leave=False, disable=None):
        for name in names if k % 2 else reversed(names):
            function = row.gradient(row.means["optax" if name == "optax" else "jxent"])
            jax.clear_caches()
            with ASSUMED.get(name, contextlib.nullcontext)():
                start = time.perf_counter()
                lowered = jax.jit(lambda *a, f=function: f(*a)).lower(*row.arrays)
                middle = time.perf_counter()
                lowered.compile()
                end = time.perf_counter()
            if k:  # the first round imports what JAX imports late
                lowering[name].append(middle - start)
                compiling[name].append(end - middle)
    del compiling["tpu"]  # CPU's compiler is not the one that such a program is for
    taken = {"trace and lower": lowering, "compile": compiling}
    return {what: {n: np.array(t) for n, t in by.items()} for what, by in taken.items()}


def warm(row: Row, rounds: int) -> dict[str, dict[str, np.ndarray]]:
    """Seconds of an eager call and of a small compiled step."""
    eager = {n: Program(partial(f, *row.arrays)) for n, f in row.eager.items()}
    steps = {
        n: Program(partial(jax.jit(row.gradient(f)), *row.arrays)) for n, f in row.means.items()
    }
    return {
        "eager call": side_by_side(eager, rounds, f"{row.name}, eager"),
        "small step": side_by_side(steps, rounds, f"{row.name}, step"),
    }


def imports(rounds: int) -> dict[str, np.ndarray]:
    """Seconds that an import takes in a fresh process, beyond that of jax."""
    code = (
        "import time, jax, jax.numpy; start = time.perf_counter(); import {}; "
        "print(time.perf_counter() - start)"
    )
    taken: dict[str, list[float]] = {"jxent": [], "optax": []}
    for _ in range(rounds):
        for name, times in taken.items():
            run = [sys.executable, "-c", code.format(name)]
            times.append(float(subprocess.run(run, check=True, capture_output=True).stdout))
    return {name: np.array(times) for name, times in taken.items()}


def tables(options: Options) -> list[Table]:
    """All measurements of overhead."""
    rounds = options.rounds or 9

    def line(what: str, loss: str, times: dict[str, np.ndarray]) -> dict:
        measured = ratio(times, "jxent", "optax")
        return {
            "what": what, "loss": loss, "jxent ms": 1e3 * float(np.median(times["jxent"])),
            "optax ms": 1e3 * float(np.median(times["optax"])),
            "jxent / optax": measured.median, "10 %": measured.low, "90 %": measured.high,
        } | {
            name: ratio(times, name, "optax").median if name in times else None for name in ASSUMED
        }  # fmt: skip

    with jax.default_device(jax.devices("cpu")[0]):
        found = [line("import", "", imports(1 if options.tiny else rounds))]
        for row in rows():
            measured = cold(row, rounds) | warm(row, rounds)
            found += [line(what, row.name, times) for what, times in measured.items()]
    order = list(dict.fromkeys(row["what"] for row in found))
    found.sort(key=lambda row: order.index(row["what"]))
    return [Table("Overhead beside optax: ratios below 1 are faster", found, NOTE)]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    command.main("overhead", tables, __doc__ or "", argv)


if __name__ == "__main__":
    main()
