"""Programs compiled for a chip that is not here: what they move and hold, without running them."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import jax
from jax.sharding import NamedSharding

from benchmarks.compiled.bounds import Bound
from benchmarks.compiled.cases import OPTIONS, Case, programs, shapes, shrunk
from benchmarks.compiled.traffic import Cost, traffic

NOTE = f"""\
The mean loss and its gradients by the logits, or by inputs and kernel; "value": no gradients, \
"each": one loss per example, averaged by the caller. Options: \
{", ".join(f"{name} {value:g}" for name, value in OPTIONS.items())}, one weight an example. What \
optax has no function for is the plain formula around it, with a scatter into dense labels for \
lists of ids.

GB moved are read off the compiled program, instruction by instruction: what each reads of its \
operands and writes of its result in the chip's main memory. The body of a loop counts as often as \
it runs, of a condition the branch that moves most, an operand that is only sliced as the slice, \
an array updated in place as the update. Passes are GB moved over the size of the logits, of a \
projection those that would be stored; least GB is operands and dense labels read once and \
gradients written once. Held GB are the compiler's temporaries, arguments and results not counted. \
Trace s is the time to trace and lower on this machine, the better of two. Bounds are those of \
`benchmarks/compiled/bounds.py`."""
DOES_NOT_FIT = "does not fit"
KEPT, EXCEEDED = "within its bound", "beyond its bound"


@dataclass(frozen=True)
class Chip:
    """Where a program would run, and how it is compiled for there."""

    sharding: NamedSharding
    options: Mapping[str, bool] = field(default_factory=dict)
    estimates: bool = False  # does the compiler note the cycles that it expects?
    memory: float = math.inf  # bytes, where the compiler does not refuse what is larger


@dataclass(frozen=True)
class Compiled:
    """What one program moves, holds, and takes to trace."""

    cost: Cost
    held: int
    trace: float


def compiled(chip: Chip, case: Case, function: Callable) -> Compiled | None:
    """The program's figures; None if it does not fit into the chip's memory."""
    trace, lowered = traced(chip, case, function)
    try:
        program = lowered.compile(compiler_options=dict(chip.options))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    sizes, text = program.memory_analysis(), program.as_text()
    assert sizes is not None  # both compilers tell
    assert text is not None
    held = sizes.temp_size_in_bytes
    if held + sizes.argument_size_in_bytes + sizes.output_size_in_bytes > chip.memory:
        return None
    return Compiled(traffic(text), held, trace)


def traced(chip: Chip, case: Case, function: Callable) -> tuple[float, jax.stages.Lowered]:
    """The seconds that it takes to trace and lower, and what comes of it."""
    operands = [
        jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=chip.sharding) for s in shapes(case)
    ]
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*operands)
    return time.perf_counter() - start, lowered


def excess(chip: Chip, case: Case, bounds: Mapping[str, Bound]) -> str:
    """What this library's program moves, holds and takes, if beyond its bound, else nothing."""
    found = compiled(chip, case, programs(case)["jxent"])
    if found is None:
        return DOES_NOT_FIT
    if _within(found, case, bounds[case.name]):
        return ""
    gb, passes = found.cost.bytes / 1e9, found.cost.bytes / case.logits_bytes
    held, mcycles = found.held / 1e9, found.cost.cycles / 1e6
    return f"moves {gb:.3g} GB, {passes:.3g} passes, holds {held:.3g} GB, {mcycles:.3g} Mcycles"


def _within(found: Compiled, case: Case, bound: Bound) -> bool:
    return bound.holds(found.cost.bytes, case.logits_bytes, found.held, found.cost.cycles)


def rows(chip: Chip, cases: Iterable[Case], bounds: Mapping[str, Bound]) -> Iterator[dict]:
    """One line a program."""
    for case in cases:
        for name, function in programs(case).items():
            found = compiled(chip, case, function)
            line: dict = {"workload": case.name, "program": name}
            if found is None:
                yield line | {"remark": DOES_NOT_FIT}
                continue
            line |= {
                "GB moved": found.cost.bytes / 1e9,
                "passes": found.cost.bytes / case.logits_bytes,
                "least GB": case.least_bytes / 1e9,
            }
            if chip.estimates:
                line["est. Mcycles"] = found.cost.cycles / 1e6
            trace = min(found.trace, traced(chip, case, function)[0])
            line |= {"held GB": found.held / 1e9, "trace s": trace}
            if name == "jxent" and case.name in bounds:
                line["remark"] = KEPT if _within(found, case, bounds[case.name]) else EXCEEDED
            yield line


def tiny(cases: Iterable[Case]) -> list[Case]:
    """One case of each loss, at a size for tests."""
    return list({case.loss: shrunk(case) for case in cases if not case.value_only}.values())


def use_no_chip() -> None:
    """Keeps JAX from looking for a chip, unless it is told to: a compiler is all that is here."""
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
