"""What a compiled program reads and writes in main memory, counted instruction by instruction.

The body of a loop counts as often as it runs; of a condition the dearer branch. A fusion reads of
an operand what it slices, and writes of an array that it updates in place the update. What is kept
on the chip costs nothing.
"""

import re
from dataclasses import dataclass

from benchmarks.compiled.hlo import Buffer, Computation, Instruction, Module, parse

# They name, order or hand on what is there. Of asynchronous operations the start counts.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier",
    "partition-id", "async-update",
}  # fmt: skip
SLICES = ("slice", "dynamic-slice", "gather")  # read of their first operand what they return
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place, by the operand of this number
SAME_ELEMENTS = ("bitcast", "copy", "reshape")
NO_TRAFFIC = "AllocateBuffer"  # a custom call that only asks for room


@dataclass(frozen=True)
class Cost:
    """Bytes read and written, and the compiler's estimate of cycles where it makes one."""

    bytes: int = 0
    cycles: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.bytes + other.bytes, self.cycles + other.cycles)

    def times(self, rounds: int) -> "Cost":
        """Of a loop with this body."""
        return Cost(self.bytes * rounds, self.cycles * rounds)


def traffic(text: str) -> Cost:
    """Of the program that `Compiled.as_text` prints."""
    module = parse(text)
    return _of_computation(module, module.entry)


def _of_computation(module: Module, name: str) -> Cost:
    computation = module.computations[name]
    return sum((_of(module, computation, i) for i in computation.values()), Cost())


def _of(module: Module, inside: Computation, i: Instruction) -> Cost:
    if i.operation == "while":
        return _of_computation(module, i.called("body")).times(module.rounds(i))
    if i.operation == "conditional":
        costs = [_of_computation(module, name) for name in i.branches]
        return max(costs, key=lambda cost: (cost.bytes, cost.cycles))
    if i.operation == "call":
        return _of_computation(module, i.called("to_apply"))
    if i.operation == "async-start":
        return _of_computation(module, i.called("calls"))
    if i.operation in FREE or i.operation.endswith("-done") or NO_TRAFFIC in i.rest:
        return Cost()
    cycles = re.search(r'estimated_cycles":"(\d+)"', i.rest)
    moved = _read(module, inside, i) + _written(module, inside, i)
    return Cost(moved, int(cycles[1]) if cycles else 0)


def _read(module: Module, inside: Computation, i: Instruction) -> int:
    """Bytes of its operands, as far as they are in main memory."""
    return sum(
        min(
            sum(b.bytes for b in inside[name].result if not b.on_chip),
            _read_of(module, inside, i, position),
        )
        for position, name in enumerate(i.operands)
    )


def _read_of(module: Module, inside: Computation, i: Instruction, position: int) -> int:
    """Bytes that an instruction reads of one operand."""
    whole = inside[i.operands[position]].bytes
    if i.operation in UPDATES and position == 0:
        return 0
    if i.operation.removesuffix("-start") in SLICES and position == 0:
        return min(sum(b.bytes for b in _own_result(i)), whole)
    if i.operation == "fusion":
        fused = module.computations[i.called("calls")]
        parameter = next(p for p in fused.values() if p.number == position)
        return min(_read_by_users(module, fused, parameter), whole)
    return whole


def _read_by_users(module: Module, inside: Computation, value: Instruction) -> int:
    """Bytes that the instructions of a fusion read of one of its values."""
    if value.is_root:
        return value.bytes
    read = 0
    for user in inside.values():
        for position, name in enumerate(user.operands):
            if name == value.name and user.operation in SAME_ELEMENTS:
                read += _read_by_users(module, inside, user)
            elif name == value.name:
                read += _read_of(module, inside, user, position)
    return read


def _written(module: Module, inside: Computation, i: Instruction) -> int:
    """Bytes of its result, as far as they are written and in main memory."""
    result = _own_result(i)
    updated = [b.bytes for b in result] if result != i.result else _updated(module, inside, i)
    return sum(min(b.bytes, n) for b, n in zip(result, updated, strict=True) if not b.on_chip)


def _own_result(i: Instruction) -> tuple[Buffer, ...]:
    """Its result, without what stands beside it in the tuple."""
    if i.operation == "copy-start":  # (the copy, what is copied, a mark of its end)
        return i.result[:1]
    if i.operation.endswith("-start"):  # ((operands), result, a mark of its end)
        return i.result[len(i.operands) :][:1]
    if i.operation == "custom-call" and len(i.result) > 1:  # a library's room to work in
        return tuple(b for b in i.result if b.dtype != "s8")
    return i.result


def _updated(module: Module, inside: Computation, i: Instruction) -> list[int]:
    """Bytes that are written of each array of a result: all, or the update."""
    if i.operation in UPDATES:
        return [inside[i.operands[UPDATES[i.operation]]].bytes]
    if i.operation == "fusion":
        fused = module.computations[i.called("calls")]
        return _updated(module, fused, next(j for j in fused.values() if j.is_root))
    if i.operation in SAME_ELEMENTS and i.operation != "copy":
        return _updated(module, inside, inside[i.operands[0]])
    if i.operation == "tuple":
        return [n for name in i.operands for n in _updated(module, inside, inside[name])]
    return [b.bytes for b in i.result]
