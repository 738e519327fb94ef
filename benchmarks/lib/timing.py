"""Times of several programs, side by side: in one process, in turn, blocked until ready."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from tqdm import tqdm

# A sample shorter than this repeats its program: the clock and the dispatch must not show.
SHORTEST = 0.01
# Programs shorter than this run once untimed before each sample, so that neither the caches nor
# the other libraries' threads, which keep spinning for a moment, are charged to them.
WARMED = 0.5


@dataclass(frozen=True)
class Program:
    """Something to time: `call` starts the work, `wait` blocks until its result is ready."""

    call: Callable[[], object]
    wait: Callable[[object], object] = jax.block_until_ready

    def run(self) -> object:
        """The result, ready."""
        result = self.call()
        self.wait(result)
        return result


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios, and the quantiles at 10 and 90 %."""

    median: float
    low: float
    high: float


def side_by_side(
    programs: Mapping[str, Program],
    rounds: int,
    label: str = "timing",
    deadline: float = math.inf,
) -> dict[str, np.ndarray]:
    """Seconds a call, one sample a round: entry k of every array comes from the same round.

    Args:
      programs: What to time, compiled already. Each round starts with another one of them.
      rounds: Samples of each; at least 1.
      label: Shown beside the progress bar.
      deadline: When `time.monotonic()` passes it, the rounds end; the first is always finished.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1; it is {rounds}")
    if not programs:
        raise ValueError("programs must not be empty")
    names = list(programs)
    calls = {name: _seconds(programs[name], 1) for name in names}  # the first is a guess only
    times: dict[str, list[float]] = {name: [] for name in names}
    for k in tqdm(range(rounds), desc=label, unit="round", leave=False, disable=None):
        if k and time.monotonic() > deadline:
            break
        for name in names[k % len(names) :] + names[: k % len(names)]:
            if calls[name] < WARMED:
                calls[name] = _seconds(programs[name], 1)
            repeats = max(1, math.ceil(SHORTEST / max(calls[name], 1e-7)))
            times[name].append(_seconds(programs[name], min(repeats, 1000)))
    return {name: np.array(taken) for name, taken in times.items()}


def _seconds(program: Program, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        result = program.call()
    program.wait(result)
    return (time.perf_counter() - start) / repeats


def ratio(times: Mapping[str, np.ndarray], name: str, to: str) -> Ratio:
    """Time of `name` in units of the time of `to`, paired by round."""
    return Ratio(*(float(q) for q in np.quantile(times[name] / times[to], (0.5, 0.1, 0.9))))
