"""Pictures of the results, with the data behind each stored as JSON beside it.

    python -m benchmarks.plots [DIR]

draws them anew from the data in DIR (benchmarks/results) and measures nothing.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks import speed as steps
from benchmarks.accuracy import all_digits
from benchmarks.goals import GRADIENTS, STEP
from benchmarks.lib.peers import Peer
from tests import reference

# Okabe and Ito's, told apart by those who see no red or green, too; no line or marker twice, so
# that no color is needed.
COLORS = {
    "jxent": "#0072B2", "optax": "#E69F00", "jax.nn": "#666666", "PyTorch": "#CC79A7",
    "TensorFlow": "#009E73",
}  # fmt: skip
LINES = {"jxent": "-", "optax": "-", "PyTorch": "--", "TensorFlow": ":"}
MARKERS = {"optax": "o", "jax.nn": "s", "PyTorch": "^", "PyTorch, compiled": "D"}

# A phone shows a picture 380 pixels wide: text of 12 points stays legible at this width.
WIDTH = 5.2
LEGIBLE = mpl.rc_context({
    "font.size": 12, "axes.titlesize": 12, "axes.labelsize": 12, "legend.fontsize": 12,
    "xtick.labelsize": 12, "ytick.labelsize": 12, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
})  # fmt: skip


def _color(name: str) -> str:
    return next((color for key, color in COLORS.items() if name.startswith(key)), "#999999")


def _save_data(data, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(data, indent=1, default=float) + "\n"
    (folder / f"{name}.json").write_text(content, encoding="utf-8")


def _save(figure: Figure, folder: Path, name: str) -> None:
    figure.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})


def errors_over_logit(peers: list[Peer], points: int) -> dict:
    """Errors in ulp, float32, over a logit from -80 to 80.

    Sigmoid: label 1. Softmax: two classes, the other logit 0, of the first class.
    """
    logits = np.linspace(-80, 80, points, dtype=np.float32)
    ones = np.ones_like(logits)
    value, gradient, _, _ = reference.wide_sigmoid(ones, logits)
    rows = np.stack([logits, np.zeros_like(logits)], axis=1)
    ids = np.zeros(points, np.int64)
    wide = [reference.wide_softmax_of_class(0, row) for row in rows]
    truths = {
        "sigmoid, value": value,
        "sigmoid, gradient": gradient,
        "softmax, value": np.array([t[0] for t in wide]),
        "softmax, gradient": np.array([t[1][0] for t in wide]),
    }
    found: dict = {"logit": logits.tolist(), "ulp": {name: {} for name in truths}}
    for peer in peers:
        of_sigmoid = peer.sigmoid(ones, logits, np.float32(1))
        of_softmax = peer.softmax(ids, rows)
        results = (*of_sigmoid[:2], of_softmax[0], of_softmax[1][:, 0])
        for (name, expected), got in zip(truths.items(), results, strict=True):
            ulps = reference.ulps(got, expected, jnp.float32)
            found["ulp"][name][peer.name] = np.round(ulps, 3).tolist()
    return found


# Of sigmoid's loss nobody loses digits; below -10 and above 40 all goes on as at the ends.
PANELS = {
    "softmax, value": "Softmax loss",
    "softmax, gradient": "Softmax gradient",
    "sigmoid, gradient": "Sigmoid gradient",
}
SHOWN = (-10, 40)


@LEGIBLE
def draw_accuracy(data: dict) -> Figure:
    """The largest error in ulp around each whole logit; the top line is a loss of all digits."""
    figure = Figure(figsize=(WIDTH, 7), layout="constrained")
    panels = figure.subplots(len(PANELS), sharex=True, sharey=True)
    lost = all_digits(jnp.float32)
    whole = np.round(data["logit"])
    shown = [x for x in np.unique(whole) if SHOWN[0] <= x <= SHOWN[1]]
    for panel, (key, title) in zip(panels, PANELS.items(), strict=True):
        panel.axhline(lost, color="black", lw=1)
        losers = set()
        for name, ulps in data["ulp"][key].items():
            largest = np.array([np.max(ulps, where=whole == x, initial=0) for x in shown])
            if largest.max() >= lost:
                losers.add(name)
            ours = name == "jxent"
            panel.plot(
                shown, np.clip(largest, 0.1, lost), LINES[name], color=_color(name), label=name,
                lw=4 if ours else 2.5, zorder=4 if ours else 3,
            )  # fmt: skip
        peers = data["ulp"][key].keys() - {"jxent"}
        who = "all but jxent" if losers == peers else ", ".join(sorted(losers)) or "nobody"
        panel.set_title(f"{title}: lost by {who}", loc="left")
        panel.set(yscale="log", ylim=(0.03, 4 * lost))
        panel.set_yticks([1, 1e3, lost], ["1", "1000", "all digits"])
        panel.minorticks_off()
    panels[1].set_ylabel("largest error, ulp")
    panels[-1].set_xlabel("logit of the right class")
    figure.suptitle("Digits of float32 lost\nas a model gets confident")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def accuracy(peers: list[Peer], folder: Path, points: int = 641) -> None:
    """Measures and draws the errors over the logit."""
    data = errors_over_logit(peers, points)
    _save_data(data, folder, "error_over_logit")
    _save(draw_accuracy(data), folder, "error_over_logit")


def _size(megabytes: float) -> str:
    number, unit = megabytes * 1e6, "B"
    for unit in ("B", "kB", "MB", "GB"):  # noqa: B007
        if number < 999.5:
            break
        number /= 1e3
    return f"{float(f'{number:.2g}'):g} {unit}"


@LEGIBLE
def draw_memory(rows: list[dict]) -> Figure:
    """Temporaries of value and gradients over the number of classes, beside the logits' size."""
    kinds = list(dict.fromkeys(row["loss"] for row in rows))
    most = max(row["classes"] for row in rows)
    figure = Figure(figsize=(WIDTH, 7), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(kinds), sharex=True, sharey=True))
    for panel, kind in zip(panels, kinds, strict=True):
        chosen = [row for row in rows if row["loss"] == kind]
        classes = [row["classes"] for row in chosen]
        drawn: dict[str, dict] = {
            "jxent": {"color": COLORS["jxent"], "lw": 4, "zorder": 4},
            "optax": {"color": COLORS["optax"], "lw": 2.5, "marker": MARKERS["optax"]},
            "logits": {"color": "#666666", "lw": 2, "ls": ":", "label": "size of the logits"},
        }
        for name, style in drawn.items():
            # A program without temporaries stands at the bottom, one byte.
            panel.plot(
                classes, [max(row[name], 1e-6) for row in chosen], **{"label": name, **style}
            )
        last = next(row for row in chosen if row["classes"] == most)
        title = f"{kind}: jxent {_size(last['jxent'])}, optax {_size(last['optax'])}"
        panel.set_title(title, loc="left")
        panel.set(xscale="log", yscale="log")
        panel.set_yticks([1e-3, 1, 1e3], ["1 kB", "1 MB", "1 GB"])
        panel.minorticks_off()
    panels[-1].set_xlabel("classes")
    figure.suptitle(f"Temporary memory of loss and gradient,\nnumbers for {most:,} classes")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def memory(rows: list[dict], folder: Path) -> None:
    """Draws the temporaries."""
    _save_data(rows, folder, "temporaries_over_classes")
    _save(draw_memory(rows), folder, "temporaries_over_classes")


@LEGIBLE
def draw_speed(rows: list[dict]) -> Figure:
    """Time of a step over jxent's, a line a workload; right of 1 a program is slower."""
    shown = [
        {**row, "program": row["program"].replace(" linear_cross_entropy", "")}
        for row in rows
        if row["quantity"] in (STEP, GRADIENTS) and row["data"] == "random"
    ]
    quantities = {row["workload"]: row["quantity"] for row in shown}
    names = list(quantities)
    figure = Figure(figsize=(WIDTH, 0.9 * len(names) + 2), layout="constrained")
    panel = figure.subplots()
    ratios: list[float] = []
    for k, (program, marker) in enumerate(MARKERS.items()):
        found = {row["workload"]: row["ratio"] for row in shown if row["program"] == program}
        if not found:
            continue
        places = [names.index(name) + 0.2 * (k - 1.5) for name in found]  # none hides another
        color = _color(program)
        panel.plot(
            [*found.values()], places, marker, ms=8, mew=1.5, color=color, label=program, zorder=3,
            mfc="white" if program.endswith("compiled") else color,
        )  # fmt: skip
        ratios += found.values()
    panel.axvline(1, color=COLORS["jxent"], lw=4)
    panel.text(1.07, -0.65, "jxent", color=COLORS["jxent"], va="center", weight="bold")
    for k in range(1, len(names)):
        panel.axhline(k - 0.5, color="#cccccc", lw=0.8)
    labels = [
        re.sub(r" (?=\d)", ", gradients\n" if quantity == GRADIENTS else "\n", name, count=1)
        for name, quantity in quantities.items()
    ]
    panel.set_yticks(range(len(names)), [label.removesuffix(" float32") for label in labels])
    low, high = min(ratios, default=1), max(ratios, default=1)
    left, right = 0.8 * min(low, 1), 1.3 * max(high, 1)
    panel.set(xscale="log", xlim=(left, right), xlabel="time over jxent's")
    panel.set_ylim(len(names) - 0.5, -0.9)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if left < tick < right]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.tick_params(axis="y", length=0)
    panel.grid(visible=False, axis="y")
    figure.suptitle(f"A training step on CPU takes others\n{low:.2g} to {high:.2g} times as long")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def speed(rows: list[dict], folder: Path) -> None:
    """Draws the times of steps."""
    _save_data(rows, folder, "speed")
    _save(draw_speed(rows), folder, "speed")


def redraw(folder: Path) -> None:
    """The pictures again, from the data that is kept."""

    def kept(name):
        return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))

    _save(draw_accuracy(kept("error_over_logit")), folder, "error_over_logit")
    _save(draw_memory(kept("temporaries_over_classes")), folder, "temporaries_over_classes")
    times = kept("speed")
    if not isinstance(times, list):  # `--results` has put all tables in the place of the picture's
        tables = {table["title"]: table["rows"] for table in times["tables"]}
        times = tables[steps.WITH_LOGITS] + tables[steps.PROJECTED]
    _save(draw_speed(times), folder, "speed")


def main(argv: Sequence[str] | None = None) -> None:
    """Redraws."""
    parser = argparse.ArgumentParser(description="Draws the pictures anew from the data kept.")
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("benchmarks/results"), metavar="DIR"
    )
    redraw(parser.parse_args(argv).folder)


if __name__ == "__main__":
    main()
