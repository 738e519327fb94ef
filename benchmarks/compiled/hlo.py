"""Compiled programs as XLA prints them: computations of instructions, and how often loops run."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Buffer:
    """One array of a result. Its layout names a memory space where it is not in main memory."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool

    @property
    def bytes(self) -> int:
        """Its size, without what tiles fill up."""
        bits = 8 if self.dtype == "pred" else int(re.findall(r"\d+", self.dtype)[0])
        return -(-math.prod(self.shape) * bits // 8)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation; `rest` is what stands behind its operands."""

    name: str
    is_root: bool
    result: tuple[Buffer, ...]
    operation: str
    operands: tuple[str, ...]
    number: int | None  # of a parameter
    rest: str

    @property
    def bytes(self) -> int:
        """Size of the result."""
        return sum(b.bytes for b in self.result)

    def called(self, key: str) -> str:
        """The computation that this attribute names, or an empty string."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @property
    def branches(self) -> list[str]:
        """The computations that a conditional chooses from."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        if listed:
            return re.findall(r"[\w.\-]+", listed[1])
        both = (self.called("true_computation"), self.called("false_computation"))
        return [name for name in both if name]


Computation = Mapping[str, Instruction]  # in the order of their execution


@dataclass(frozen=True)
class Module:
    """A whole program."""

    computations: Mapping[str, Computation]
    entry: str

    def rounds(self, loop: Instruction) -> int:
        """How often it runs: as the compiler notes it, or from its condition, `i < constant`."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known[1])
        condition = self._with_fused(loop.called("condition"))
        bounds = [
            int(i.rest)
            for i in condition
            if i.operation == "constant" and [(b.dtype, b.shape) for b in i.result] == [("s32", ())]
        ]
        if len(bounds) != 1 or not any("direction=LT" in i.rest for i in condition):
            raise ValueError(f"cannot tell how often this loop runs: {loop.name}")
        return bounds[0]

    def _with_fused(self, name: str) -> list[Instruction]:
        """The instructions of a computation and of its fusions."""
        own = list(self.computations[name].values())
        return own + [j for i in own if (f := i.called("calls")) for j in self._with_fused(f)]


def parse(text: str) -> Module:
    """The program that `Compiled.as_text` prints."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if start:
            current = computations[start[2]] = {}
            entry = start[2] if start[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)", line)
    if not found:
        return None
    root, name, result, operation, behind = found.groups()
    inside, _, rest = behind.partition(")")
    return Instruction(
        name, root is not None, _buffers(result), operation,
        tuple(re.findall(r"%([\w.\-]+)", inside)),
        int(inside) if operation == "parameter" else None,
        inside if operation == "constant" else rest,
    )  # fmt: skip


def _buffers(text: str) -> tuple[Buffer, ...]:
    return tuple(
        Buffer(dtype, tuple(int(n) for n in shape.split(",") if n), "S(" in layout)
        for dtype, shape, layout in re.findall(
            r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?", text
        )
    )
