"""The measured pages: the tables of `benchmarks/results/`, from the JSON, with machine and date."""

import json
from pathlib import Path

from sphinx.application import Sphinx
from tabulate import tabulate

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PAGES = {  # of what is under docs/measured/*.md: which file, what it says, the command
    "accuracy": ("accuracy.json", "python -m benchmarks --only accuracy --summary"),
    "speed": ("speed.json", "python -m benchmarks.speed --rounds 7"),
    "memory": ("memory.json", "python -m benchmarks.memory"),
    "overhead": ("overhead.json", "python -m benchmarks.overhead"),
    "tpu": ("tpu.json", "python -m benchmarks.tpu"),
    "tpu_newest": ("newest/tpu.json", "python -m benchmarks.tpu"),
    "gpu": ("gpu_compile.json", "python -m benchmarks.gpu --compile"),
    "gpu_newest": ("newest/gpu_compile.json", "python -m benchmarks.gpu --compile"),
    "scaling": ("scaling.json", "python -m benchmarks.scaling"),
}
PLACE = ("workload", "data", "quantity")  # what the rows of one comparison share


def compared(rows: list[dict]) -> list[dict]:
    """A line a workload, in place of one a program: jxent's time, and how much slower each is."""
    lines: dict[tuple, dict] = {}
    for row in rows:
        place = {key: row[key] for key in PLACE}
        line = lines.setdefault(tuple(place.values()), place)
        if row["program"] == "jxent":
            line["jxent, ms"] = row["ms"]
        else:
            line[row["program"]] = row["ratio"]
    columns = dict.fromkeys(key for line in lines.values() for key in line)
    return [{key: line.get(key, "") for key in columns} for line in lines.values()]


def tables(name: str) -> str:
    """Markdown of one page's tables."""
    file, command = PAGES[name]
    content = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    parts = [f"`{command}`", "\n".join(f"* {k}: {v}" for k, v in content["header"].items())]
    for table in content["tables"]:
        rows = table["rows"]
        if rows and {*PLACE, "program", "ratio"} <= rows[0].keys():
            rows = compared(rows)
        shown = tabulate(rows, headers="keys", floatfmt=".3g", tablefmt="github")
        parts += [f"## {table['title']}", shown, table["note"]]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(app: Sphinx) -> None:
    """Each page's tables beside it, as `_name.md`, which it includes."""
    folder = Path(app.srcdir) / "measured"
    for name in PAGES:
        path, text = folder / f"_{name}.md", tables(name)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects it to the start of a build."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
