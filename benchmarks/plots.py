"""Pictures of the results, with the data behind each stored as JSON beside it."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks.goals import GRADIENTS, STEP
from benchmarks.peers import Peer
from tests import reference

COLORS = {
    "jxent": "#1b6ca8", "optax": "#e07b39", "jax.nn": "#555555", "PyTorch": "#7a5195",
    "TensorFlow": "#6aa84f",
}  # fmt: skip


def _color(name: str) -> str:
    return next((color for key, color in COLORS.items() if name.startswith(key)), "#888888")


def _save(figure: Figure, data, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
    content = json.dumps(data, indent=1, default=float) + "\n"
    (folder / f"{name}.json").write_text(content, encoding="utf-8")


def errors_over_logit(peers: list[Peer], points: int) -> dict:
    """Errors in ulp, float32, over a logit from -80 to 80.

    Sigmoid: label 1. Softmax: two classes, the other logit 0, of the first class.
    """
    logits = np.linspace(-80, 80, points, dtype=np.float32)
    ones = np.ones_like(logits)
    value, slope, _, _ = reference.wide_sigmoid(ones, logits)
    rows = np.stack([logits, np.zeros_like(logits)], axis=1)
    ids = np.zeros(points, np.int64)
    wide = [reference.wide_softmax_of_class(0, row) for row in rows]
    truths = {
        "sigmoid, value": value,
        "sigmoid, gradient": slope,
        "softmax, value": np.array([t[0] for t in wide]),
        "softmax, gradient": np.array([t[1][0] for t in wide]),
    }
    found: dict = {"logit": logits.tolist(), "ulp": {name: {} for name in truths}}
    for peer in peers:
        of_sigmoid = peer.sigmoid(ones, logits, np.float32(1))
        of_softmax = peer.softmax(ids, rows)
        results = (*of_sigmoid[:2], of_softmax[0], of_softmax[1][:, 0])
        for (name, truth), got in zip(truths.items(), results, strict=True):
            ulps = reference.ulps(got, truth, jnp.float32)
            found["ulp"][name][peer.name] = np.round(ulps, 3).tolist()
    return found


def accuracy(peers: list[Peer], folder: Path, points: int = 641) -> None:
    """Error in ulp over the logit; the top of each panel is a result without a right digit."""
    data = errors_over_logit(peers, points)
    figure = Figure(figsize=(8, 5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    lost = 1 / float(jnp.finfo(jnp.float32).eps)
    for panel, (title, lines) in zip(panels.flat, data["ulp"].items(), strict=True):
        # jxent last, on top, and each smaller than the one below: many errors are the same.
        drawn = sorted(lines.items(), key=lambda item: item[0] == "jxent")
        for size, (name, ulps) in zip(np.linspace(6, 2, len(drawn)), drawn, strict=True):
            shown = np.clip(ulps, 0.05, 2 * lost)
            panel.plot(data["logit"], shown, ".", ms=size, mew=0, color=_color(name), label=name)
        panel.axhline(lost, color="#999999", lw=0.8, ls="--")
        panel.set(title=title, yscale="log")
        panel.grid(alpha=0.3)
    for panel in panels[1]:
        panel.set_xlabel("logit of the label")
    for panel in panels[:, 0]:
        panel.set_ylabel("error, ulp")
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    figure.suptitle("float32; dashed: no digit is right")
    _save(figure, data, folder, "error_over_logit")


def memory(rows: list[dict], folder: Path) -> None:
    """Temporaries of value and gradients over the number of classes."""
    kinds = list(dict.fromkeys(row["loss"] for row in rows))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(kinds), sharey=True))
    styles = {
        "jxent": ("-", COLORS["jxent"]),
        "jxent, per example": (":", COLORS["jxent"]),
        "optax": ("-", COLORS["optax"]),
        "floor": ("--", "#555555"),
    }
    for panel, kind in zip(panels, kinds, strict=True):
        chosen = [row for row in rows if row["loss"] == kind]
        classes = [row["classes"] for row in chosen]
        for name, (line, color) in styles.items():
            if name in chosen[0]:
                # A program without temporaries stands at the bottom, one byte.
                megabytes = [max(row[name], 1e-6) for row in chosen]
                panel.plot(classes, megabytes, line, marker=".", color=color, label=name)
        panel.set(title=kind, xscale="log", yscale="log", xlabel="classes")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("temporaries, MB")
    handles, names = panels[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    _save(figure, rows, folder, "temporaries_over_classes")


MARKERS = {"optax": "o", "jax.nn": "s", "PyTorch": "^", "PyTorch, compiled": "D"}


def speed(rows: list[dict], folder: Path) -> None:
    """Time of a step over jxent's, a line a workload; right of 1 a program is slower."""
    shown = [
        {**row, "program": row["program"].replace(" linear_cross_entropy", "")}
        for row in rows
        if row["quantity"] in (STEP, GRADIENTS) and row["data"] == "random"
    ]
    names = list(dict.fromkeys(row["workload"] for row in shown))
    figure = Figure(figsize=(6.4, 0.5 * len(names) + 1.6), layout="constrained")
    panel = figure.subplots()
    for k, (program, marker) in enumerate(MARKERS.items()):
        found = {row["workload"]: row["ratio"] for row in shown if row["program"] == program}
        places = [names.index(name) + 0.14 * (k - 1.5) for name in found]  # none hides another
        color = _color(program)
        panel.plot([*found.values()], places, marker, ms=8, color=color, label=program, alpha=0.9)
    panel.axvline(1, color="#1b6ca8", lw=1.5)
    panel.text(1.03, -0.55, "jxent", color="#1b6ca8", va="center")
    labels = [re.sub(r" (?=\d)", "\n", n.removesuffix(" float32"), count=1) for n in names]
    panel.set_yticks(range(len(names)), labels)
    panel.set(xscale="log", ylim=(len(names) - 0.5, -0.8), xlabel="time of a step over jxent's")
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20) if tick < 1.5 * max(panel.get_xlim())]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4)
    _save(figure, rows, folder, "speed")
