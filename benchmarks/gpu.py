"""One NVIDIA GPU: losses against the copy bandwidth, the projection against its bare products.

    python -m benchmarks.gpu [--minutes 7] [--rounds 7] [--results DIR] [--json DIR]
    python -m benchmarks.gpu --compile     # no GPU is needed: see gpu_compile.py

Every peer that is installed takes part, each checked against jxent before it is timed. Without a
GPU the same programs run at tiny sizes on the CPU, and the figures mean nothing.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compiled import h100
from benchmarks.compiled.programs import use_no_chip
from benchmarks.lib import command
from benchmarks.lib.command import Options
from benchmarks.lib.gpu_peers import BARE, PEERS, Make, Operands, Peer
from benchmarks.lib.programs import jxent_mean, optax_mean
from benchmarks.lib.report import Table
from benchmarks.lib.timing import Program, ratio, side_by_side
from benchmarks.lib.workloads import Workload, workloads

NO_GPU = "no GPU: tiny sizes on CPU, figures mean nothing"
OUT_OF_MEMORY = "out of memory"
LARGEST_ERROR = 0.05  # of a value, and of a gradient in the 2-norm, in bfloat16; relative


def has_gpu() -> bool:
    """Is JAX's default device a GPU?"""
    return jax.default_backend() == "gpu"


@dataclass
class Budget:
    """Minutes that all measurements may take together."""

    minutes: float
    deadline: float = field(init=False)

    def __post_init__(self):
        self.deadline = time.monotonic() + 60 * self.minutes

    @property
    def is_spent(self) -> bool:
        """Are they over?"""
        return time.monotonic() > self.deadline

    @property
    def remark(self) -> str:
        """What is said of an entry that was left out."""
        return f"skipped: {self.minutes:g} minutes are over"


def failure(error: Exception) -> str:
    """One cell of a table for a peer that raised."""
    message = str(error)
    if "out of memory" in message.lower() or "RESOURCE_EXHAUSTED" in message:
        return OUT_OF_MEMORY
    first = (message.strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:80]}"


def free_memory() -> None:
    """Gives back what a failed peer held."""
    gc.collect()
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# Losses of logits in memory.


def results_of(program: Program) -> tuple:
    """Value and gradient."""
    result = program.run()
    assert isinstance(result, tuple)
    return result


def loss_programs(workload: Workload) -> Iterator[tuple[str, Callable[[], Program | None]]]:
    """Value and gradient of each library on data of its own."""

    @jax.jit
    def draw(key):
        shape, dtype = (workload.examples, workload.classes), workload.dtype
        one, two = jax.random.split(key)
        logits = jax.random.normal(one, shape, dtype)
        if workload.loss == "sigmoid":
            return logits, (jax.random.uniform(two, shape) < 0.1).astype(dtype)
        return logits, jax.random.randint(two, shape[:1], 0, workload.classes, jnp.int32)

    logits, labels = draw(jax.random.key(0))

    def of_jax(mean):
        return Program(partial(jax.jit(jax.value_and_grad(mean)), logits, labels))

    def of_torch(compiled):
        try:
            import torch  # noqa: PLC0415
            from torch.nn import functional  # noqa: PLC0415
        except ImportError:
            return None
        x = torch.from_dlpack(logits).clone().requires_grad_()
        z = torch.from_dlpack(labels).clone()
        ids = workload.loss == "softmax ids"
        z = z.long() if ids else z

        def plain(x, z):
            if ids:
                return functional.cross_entropy(x, z)
            return functional.binary_cross_entropy_with_logits(x, z)

        mean = torch.compile(plain, dynamic=False) if compiled else plain

        def call():
            value = mean(x, z)
            return value.detach(), *torch.autograd.grad(value, x)

        def wait(result):
            if x.is_cuda:
                torch.cuda.synchronize()

        return Program(call, wait)

    yield "jxent", partial(of_jax, jxent_mean(workload.loss))
    yield "optax", partial(of_jax, optax_mean(workload.loss))
    yield "PyTorch", partial(of_torch, False)
    yield "PyTorch, compiled", partial(of_torch, True)


def passes(workload: Workload) -> int:
    """Least number of passes over an array of the logits' size, for value and gradient."""
    return 3 if workload.loss == "sigmoid" else 2


def losses(workload: Workload, rounds: int, budget: Budget, compiled: bool) -> list[dict]:
    """Value and gradient as a share of the copy bandwidth of the same run."""
    size = workload.logits_bytes
    source = jnp.ones((workload.examples, workload.classes), workload.dtype)
    copy = jax.jit(lambda x: x + jnp.ones((), x.dtype))  # reads and writes it once
    ready: dict[str, Program] = {"copy": Program(partial(copy, source))}
    remarks: dict[str, str] = {}
    expected = None
    for name, make in loss_programs(workload):
        if name == "PyTorch, compiled" and not compiled:
            continue
        if budget.is_spent:
            remarks[name] = budget.remark
            continue
        try:
            if (program := make()) is None:
                continue
            value, gradient = results_of(program)
        except Exception as error:  # whatever a peer raises is an entry of the table
            remarks[name] = failure(error)
            free_memory()
            continue
        got = float(value), np.asarray(_on_host(gradient[:64]), np.float32)
        expected = expected or got
        if wrong := difference(got, expected):
            remarks[name] = wrong
        else:
            ready[name] = program
    ready["copy"].run()
    times = side_by_side(ready, rounds, workload.name, budget.deadline)
    bandwidth = 2 * size / times["copy"]
    rows = []
    for name, taken in times.items():
        moved = (2 if name == "copy" else passes(workload)) * size
        share = moved / taken / bandwidth
        rows.append({
            "workload": workload.name, "program": name, "ms": float(np.median(taken)) * 1e3,
            "GB / s": float(np.median(moved / taken)) / 1e9,
            "share of copy": float(np.median(share)),
            "spread": "{:.2f} to {:.2f}".format(*np.quantile(share, (0.1, 0.9))),
        })  # fmt: skip
    return rows + [
        {"workload": workload.name, "program": name, "remark": remark}
        for name, remark in remarks.items()
    ]


def _on_host(part) -> np.ndarray:
    """Of JAX or of PyTorch, in whose bfloat16 NumPy does not read."""
    if isinstance(part, jax.Array):
        return np.asarray(part).astype(np.float32)
    return part.float().cpu().numpy()


# The projection.


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """In the 2-norm."""
    return float(np.linalg.norm(got - expected) / max(float(np.linalg.norm(expected)), 1e-30))


def difference(got, expected, approximates: bool = False) -> str:
    """What is wrong with (value, gradients...), or nothing."""
    if not math.isclose(got[0], expected[0], rel_tol=LARGEST_ERROR):
        return f"wrong: value {got[0]:.5g}, not {expected[0]:.5g}"
    error = max(relative_error(g, t) for g, t in zip(got[1:], expected[1:], strict=True))
    return (
        "" if approximates or error <= LARGEST_ERROR else f"wrong: gradients differ by {error:.0%}"
    )


def projection(
    workload: Workload, rounds: int, budget: Budget, peers: Mapping[str, Make] = PEERS
) -> list[dict]:
    """Time and memory of value and both gradients, beside the bare products."""
    operands = Operands(workload)
    ready: dict[str, Peer] = {}
    lines: dict[str, dict] = {}
    expected = None
    for name, make in peers.items():
        line = {"workload": workload.name, "program": name}
        if budget.is_spent:
            lines[name] = line | {"remark": budget.remark}
            continue
        try:
            if (peer := make(operands)) is None:
                continue
            got = peer.outputs(peer.program.run())
            gigabytes = peer.memory() / 1e9
        except Exception as error:  # whatever a peer raises is an entry of the table
            lines[name] = line | {"remark": failure(error)}
            free_memory()
            continue
        lines[name] = line | {"GB beyond operands": gigabytes}
        if name == BARE:
            ready[name] = peer
            continue
        expected = expected or got
        errors = [relative_error(g, t) for g, t in zip(got[1:], expected[1:], strict=True)]
        lines[name]["value differs by"] = abs(got[0] / expected[0] - 1)
        lines[name]["gradients differ by"] = max(errors)
        if wrong := difference(got, expected, peer.approximates):
            lines[name]["remark"] = wrong
        else:
            ready[name] = peer
    programs = {name: peer.program for name, peer in ready.items()}
    for name, taken in _timed(programs, rounds, workload.name, budget, lines).items():
        lines[name] |= taken
    return list(lines.values())


def _timed(programs, rounds, label, budget, lines) -> dict[str, dict]:
    """Times of all; whoever runs out of memory beside the others is left out."""
    while programs:
        try:
            times = side_by_side(programs, rounds, label, budget.deadline)
        except Exception as error:  # whoever comes last makes room
            last = list(programs)[-1]
            lines[last]["remark"] = f"beside the others: {failure(error)}"
            programs = {name: p for name, p in programs.items() if name != last}
            free_memory()
            continue
        found: dict[str, dict] = {}
        for name, taken in times.items():
            found[name] = {"ms": float(np.median(taken)) * 1e3}
            if BARE in times:
                r = ratio(times, name, BARE)
                found[name] |= {"/ products": r.median, "spread": f"{r.low:.2f} to {r.high:.2f}"}
        return found
    return {}


NOTE = f"""\
Ratios are medians of ratios paired by round. Memory is what a program takes at its peak beyond \
its operands, its outputs included: of JAX as the compiler counts it, of PyTorch as its allocator \
does. Peers that are not installed are left out. Whose value or gradients (2-norm of a slice) \
differ by more than {LARGEST_ERROR:.0%} from jxent's is not timed, unless it approximates by \
design."""


def tables(options: Options, peers: Mapping[str, Make] = PEERS) -> list[Table]:
    """All measurements on the GPU, or a test of them."""
    tiny = options.tiny or not has_gpu()
    budget = Budget(options.minutes)
    rounds = options.rounds or 7
    if not has_gpu():
        print(f"{'*' * 60}\n{NO_GPU}\n{'*' * 60}", flush=True)
    remark = "" if has_gpu() else f"{NO_GPU}.\n\n"
    compiled = any("compiled" in name for name in peers)
    with_logits = [
        row
        for workload in workloads("gpu", "sigmoid", "softmax ids", tiny=tiny)
        for row in losses(workload, rounds, budget, compiled)
    ]
    projected = []
    for workload in workloads("gpu", "projection", tiny=tiny):
        projected += projection(workload, rounds, budget, peers)
        free_memory()
    copied = (
        "Share: bytes of the least number of passes over the logits (sigmoid 3, softmax 2) by the "
        "time, over the same of a copy in the same round."
    )
    return [
        Table("Value and gradient, as a share of the copy bandwidth", with_logits, remark + copied),
        Table("Projection, value and gradients", projected, remark + NOTE),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables, or what the compiler makes of the programs."""
    arguments = command.parser((__doc__ or "").splitlines()[0]).parse_args(argv)
    options = command.options_of(arguments, ("float32",))
    if options.compile:
        use_no_chip()
        command.run({"gpu_compile": h100.tables}, options)
    else:
        command.run({"gpu": tables}, options)


if __name__ == "__main__":
    main()
