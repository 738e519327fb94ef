"""What a compiled program moves between chips, read from its text."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.compiled.hlo import Buffer, Module, parse

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@dataclass(frozen=True)
class Collective:
    """One instruction that moves data: its result on one chip, and how often it runs."""

    kind: str
    result: tuple[Buffer, ...]
    times: int

    @property
    def bytes(self) -> int:
        """Bytes of the results on one chip, over all runs."""
        return self.times * sum(b.bytes for b in self.result)


def collectives(text: str) -> list[Collective]:
    """Those of a whole program. Of the branches of a condition, all are listed."""
    module = parse(text)
    return list(_of_computation(module, module.entry, 1))


def _of_computation(module: Module, name: str, times: int) -> Iterator[Collective]:
    for i in module.computations[name].values():
        kind = i.operation.removesuffix("-start")
        if kind in KINDS:
            yield Collective(kind, i.result, times)
        inner = times * module.rounds(i) if i.operation == "while" else times
        for other in (i.called("body"), i.called("calls"), i.called("to_apply"), *i.branches):
            if other:
                yield from _of_computation(module, other, inner)
