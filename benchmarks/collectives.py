"""What a compiled program moves between chips, read from its text."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}


@dataclass(frozen=True)
class Collective:
    """One instruction that moves data: its result on one chip, and how often it runs."""

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    times: int

    @property
    def bytes(self) -> int:
        """Bytes of the results on one chip, over all runs."""
        return self.times * sum(BYTES[dtype] * math.prod(shape) for dtype, shape in self.shapes)


def collectives(text: str) -> list[Collective]:
    """Those of a whole program. Of the branches of a condition, all are listed."""
    computations = dict(_computations(text))
    entry = next(name for name in computations if name.startswith("ENTRY "))
    return list(_of_computation(computations, entry, 1))


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if start and not line.startswith(" "):
            name, lines = (start[1] or "") + start[2], []
        elif line.startswith("}") and name:
            yield name, lines
            name = None
        elif name:
            lines.append(line)


def _of_computation(computations, name: str, times: int) -> Iterator[Collective]:
    for line in computations[name]:
        found = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(", line)
        if not found:
            continue
        result, operation = found.groups()
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            shapes = tuple(
                (dtype, tuple(int(n) for n in dims.split(",") if n))
                for dtype, dims in re.findall(r"\b([a-z]+\d+|pred)\[([\d,]*)\]", result)
            )
            yield Collective(kind, shapes, times)
        inner = times
        if operation == "while":
            inner *= _trips(computations, line)
        called = re.findall(
            r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", line
        )
        branches = re.search(r"branch_computations=\{([^}]*)\}", line)
        if branches:
            called += [b.strip().lstrip("%") for b in branches[1].split(",")]
        for other in called:
            if other in computations:
                yield from _of_computation(computations, other, inner)


def _trips(computations, line: str) -> int:
    """How often a loop runs: as the compiler notes it, or from its condition, `i < constant`."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    text = "\n".join(computations[condition[1]]) if condition else ""
    bounds = re.findall(r" s32\[\]\S* constant\((\d+)\)", text)
    if len(bounds) != 1 or "direction=LT" not in text:
        raise ValueError(f"cannot tell how often this loop runs: {line.strip()[:200]}")
    return int(bounds[0])
