"""The command line that all modules share: options, printing, and files of results."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib import report
from benchmarks.lib.report import Table

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """What to run, and how much of it."""

    tiny: bool = False  # sizes for a test: the figures mean nothing
    rounds: int | None = None  # of timing; None: each module's own number
    minutes: float = 7  # after which the GPU's remaining entries are skipped
    compile: bool = False  # the GPU's module: what the compiler makes of it, no GPU needed
    dtypes: tuple[str, ...] = ("float32",)  # of accuracy
    summary: bool = False  # accuracy: only the largest errors
    plots: Path | None = None  # where pictures and their data go
    json: Path | None = None
    results: Path | None = None  # where text and JSON go


Measurement = Callable[[Options], list[Table]]


def parser(description: str, *, only: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The options; with `only`, a choice of modules too."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--tiny", action="store_true", help="tiny sizes: a test, not a measurement")
    made.add_argument("--rounds", type=_at_least_one, help="rounds of timing")
    made.add_argument("--minutes", type=float, default=7, help="budget of the GPU's module")
    made.add_argument("--compile", action="store_true", help="gpu: compile only, without a GPU")
    made.add_argument("--dtype", action="append", choices=DTYPES, help="of accuracy; repeatable")
    made.add_argument("--summary", action="store_true", help="accuracy: only the largest errors")
    made.add_argument("--plots", type=Path, metavar="DIR", help="write pictures and their data")
    made.add_argument("--json", type=Path, metavar="DIR", help="write the tables as JSON")
    made.add_argument("--results", type=Path, metavar="DIR", help="write tables as text and JSON")
    if only:
        made.add_argument("--only", nargs="+", choices=only, metavar="NAME", help=", ".join(only))
    return made


def _at_least_one(string: str) -> int:
    if (number := int(string)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; it is {number}")
    return number


def options_of(arguments: argparse.Namespace, dtypes: tuple[str, ...]) -> Options:
    """The options as parsed; `dtypes` where none was named."""
    return Options(
        tiny=arguments.tiny,
        rounds=arguments.rounds,
        minutes=arguments.minutes,
        compile=arguments.compile,
        dtypes=tuple(arguments.dtype or dtypes),
        summary=arguments.summary,
        plots=arguments.plots,
        json=arguments.json,
        results=arguments.results,
    )


def run(measurements: Mapping[str, Measurement], options: Options) -> dict[str, list[Table]]:
    """Measures, prints, and writes what was asked for, one module after the other."""
    found = {}
    for name, measure in measurements.items():
        tables = measure(options)
        top = report.header()
        if options.tiny:
            top["sizes"] = "tiny: a test of the programs, the figures mean nothing"
        print(f"# {name}\n\n{report.text(top, tables)}", flush=True)
        if options.results:
            report.write_text(options.results / f"{name}.md", name, top, tables)
        for folder in {options.results, options.json} - {None}:
            assert folder is not None  # for the type checker
            report.write_json(folder / f"{name}.json", top, tables)
        found[name] = tables
    return found


def main(
    name: str, measure: Measurement, description: str, argv: Sequence[str] | None = None
) -> dict[str, list[Table]]:
    """One module alone."""
    arguments = parser(description.splitlines()[0]).parse_args(argv)
    return run({name: measure}, options_of(arguments, ("float32",)))
