"""Tables of results as text and JSON, under a header with the versions and the machine."""

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import jax
from tabulate import tabulate

PACKAGES = (
    "jxent", "jax", "jaxlib", "numpy", "optax", "torch", "tensorflow", "tensorflow-cpu", "libtpu",
    "jax-cuda12-plugin", "tokamax", "liger-kernel", "cut-cross-entropy",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows of one table, each a dictionary from column to value, and a note under it."""

    title: str
    rows: list[dict]
    note: str = ""


def header() -> dict[str, str]:
    """What the figures depend on: the day, versions of the libraries installed, and the machine."""
    return {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "versions": ", ".join(f"{name} {version}" for name, version in _versions()),
        "Python": platform.python_version(),
        "backend": f"{jax.default_backend()} ({jax.devices()[0].device_kind})",
        "machine": f"{_processor()}, {_cores()} cores, {platform.system()} {platform.machine()}",
    }


def _versions() -> Iterable[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or "processor unknown"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def text(top: dict[str, str], tables: Iterable[Table]) -> str:
    """Header and tables in Markdown."""
    parts = ["\n".join(f"* {name}: {value}" for name, value in top.items())]
    for table in tables:
        shown = tabulate(table.rows, headers="keys", floatfmt=".3g", tablefmt="github")
        parts += [f"## {table.title}", shown or "Nothing to show."]
        if table.note:
            parts.append(table.note)
    return "\n\n".join(parts) + "\n"


def write_json(path: Path, top: dict[str, str], tables: Iterable[Table]) -> None:
    """The same as JSON."""
    content = {"header": top, "tables": [asdict(table) for table in tables]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=float) + "\n", encoding="utf-8")


def write_text(path: Path, title: str, top: dict[str, str], tables: Iterable[Table]) -> None:
    """The text, with a title, into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {title}\n\n{text(top, tables)}", encoding="utf-8")
