"""The expected results of a call of `tests/combinations/arrays.py`: plain formulas, in float64.

One call at a time, chip by chip: what is mapped or split is a loop here. A class at -inf is left
out, and rows that are broken and weigh 0 are replaced and masked.
"""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests import reference
from tests.combinations.arrays import COTANGENT, MODEL, Arrays, Call, kept
from tests.combinations.table import BESIDE_THE_LOSS, PASSED

KEPT = "kept"


class Expected:
    """The numbers that `Call.run` is expected to give, of all that is mapped and all chips."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.fixed = {name: _wide(x) for name, x in call.clean.items()}
        self.tags = dict(call.tags)
        is_masked = call.row.get("mask") == "array"
        if is_masked or call.row["data"] in ("padding", "NaN"):
            mask = kept(call)
            self.fixed[KEPT] = mask.astype(np.float64)
            self.tags[KEPT] = call.tags["mask" if is_masked else "weights"][: mask.ndim]

    def totals(self, differentiated: Arrays) -> tuple[Any, Any]:
        arrays = self.fixed | differentiated
        call, row = self.call, self.call.row
        chips = 2 if row["mesh"] == "varying" else 1
        maps = 1 if row["mesh"] is None or row["mapped"] == "none" else 2
        rows = 2 if call.is_shard_map and "n" in call.splits else 1
        parts = 2 if MODEL in call.summed_over else 1
        total, beside = jnp.zeros(()), jnp.zeros(())
        for chip, place, n, c in product(*map(range, (chips, maps, rows, parts))):
            own = {}
            split = ((rows, n, "n"), (parts, c, "c"))
            own = {name: self.chosen(name, x, chip, place, split) for name, x in arrays.items()}
            masked = row["data"] == "masked class" and (parts == 1 or c == 1)
            more, other = self.one(own, masked)
            total, beside = total + more, beside + other
        return total, beside

    def chosen(self, name: str, x: Any, chip: int, place: int, split: Any) -> Any:
        """The part of an array that one call on one chip has."""
        if name != KEPT and self.call.varies(name):
            x = x[chip]
        if name != KEPT and self.call.mapped(name):
            x = x[place]
        for parts, part, tag in split:
            if parts == 2 and tag in self.tags[name]:
                halves = np.split if isinstance(x, np.ndarray) else jnp.split
                x = halves(x, 2, self.tags[name].index(tag))[part]
        return x

    def one(self, arrays: Arrays, masked: bool) -> tuple[Any, Any]:
        """Of one call on one chip."""
        row, function = self.call.row, self.call.function
        labels, x = self.labels_and_logits(arrays)
        options: dict[str, Any] = {
            name: row[name] for name in PASSED if name in row and name not in BESIDE_THE_LOSS
        }
        for name, number in (("pos_weight", 1.8), ("temperature", 1.7)):
            if row.get(name, "one") != "one":
                options[name] = arrays.get(name, number)
        lists = ("label_weights", "excluded")
        options |= {name: arrays[name] for name in lists if name in arrays}
        weights = arrays.get("weights", 0.7 if row.get("weights") == "number" else 1.0)
        cotangent = arrays.get(COTANGENT, jnp.ones(()))
        if COTANGENT in arrays and function.per_class and function.data == "logits":
            cotangent = jnp.moveaxis(cotangent, row.get("axis", -1), -1)
        if masked:
            x = x[..., :-1]
            if function.labels in ("dense", "teacher"):
                labels = labels[..., :-1]
            if row.get("pos_weight") == "array":
                options["pos_weight"] = options["pos_weight"][..., :-1]
        each = function.plain(labels, x, **options)
        if masked and function.per_class:
            each = jnp.concatenate([each, jnp.zeros_like(each[..., :1])], -1)
        if KEPT in arrays:
            mask = arrays[KEPT]
            each = each * (mask[..., None] if mask.ndim < each.ndim else mask)
        if row.get("has_aux"):
            own = (labels, x, options, arrays.get(KEPT, 1.0))
            return _reduced(each, weights, row["reduction"]), self.aux(own, each, weights, arrays)
        if function.is_reduced:
            counts_classes = "mean_over" in row and not function.per_class
            classes = _classes(x, masked) if counts_classes else None
            each = _reduced(each, weights, row["reduction"], row.get("mean_over"), classes)
        beside = jnp.zeros(())
        if "statistics" in function.name:
            prediction = jnp.where(arrays.get(KEPT, 1.0) != 0, _predicted(x, arrays), -1)
            beside = jnp.sum(cotangent * prediction.astype(jnp.float64))
            each = each @ jnp.array([float(row["listed"] != "no labels"), 0.7, 0.3])
        return jnp.sum(cotangent * each), beside

    def labels_and_logits(self, arrays: Arrays) -> tuple[Any, Any]:
        row, function = self.call.row, self.call.function
        labels: Any = arrays.get("labels")
        x = arrays[function.data]
        if function.data == "inputs":
            x = _project(x, arrays["kernel"], arrays.get("bias"), row["kernel"])
            if function.labels == "teacher":
                labels = _project(
                    labels, arrays["teacher_kernel"], arrays.get("teacher_bias"),
                    row["teacher_kernel"],
                )  # fmt: skip
        elif function.data == "logits":
            x = jnp.moveaxis(x, row.get("axis", -1), -1)
            if function.labels in ("dense", "teacher"):
                labels = jnp.moveaxis(labels, row.get("axis", -1), -1)
        if function.labels in ("dense", "teacher"):
            labels = labels.astype(jnp.float64)
        return labels, x

    def aux(self, own: tuple[Any, ...], each: Any, weights: Any, arrays: Arrays) -> Any:
        row, function = self.call.row, self.call.function
        labels, x, options, mask = own
        w = jnp.broadcast_to(_row_weights(weights, each.ndim), each.shape)
        if function.name == "losses.blockwise":
            return jnp.sum(w * mask * jnp.sum(arrays["inputs"], -1))
        z_loss = options.pop("z_loss")
        entropy = _reduced(function.plain(labels, x, **options) * mask, weights, row["reduction"])
        whole = _reduced(each, weights, row["reduction"])
        options["z_loss"] = z_loss
        predicted = _predicted(x, arrays)
        if function.labels == "ids" and "label_weights" not in arrays:
            right = predicted == np.asarray(labels, np.int64)
        else:
            if "label_weights" in arrays:
                labels = reference.dense_labels(labels, arrays["label_weights"], x)
            of_predicted = jnp.take_along_axis(labels, predicted[..., None], -1)[..., 0]
            right = of_predicted == jnp.max(labels, -1)
        accuracy = _reduced(right.astype(jnp.float64), weights, "weighted_mean")
        denominator = {
            "weighted_sum": 1.0, "weighted_mean": jnp.sum(w),
            "weighted_sum_over_batch_size": float(each.size),
            "weighted_sum_by_nonzero_weights": jnp.sum(w != 0).astype(jnp.float64),
        }[row["reduction"]]  # fmt: skip
        parts = (entropy, whole - entropy, accuracy, jnp.sum(w), denominator)
        return jax.lax.stop_gradient(sum((k + 1) * part for k, part in enumerate(parts)))


def _predicted(x: Any, arrays: Arrays) -> Any:
    return jnp.argmax(jnp.where(reference.are_left(arrays.get("excluded"), x), x, -jnp.inf), -1)


def _wide(x: np.ndarray) -> Any:
    """In float64 where it is floating, or a mask."""
    if x.dtype == bool or jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.asarray(np.asarray(x, np.float64))
    return x


def _project(x: Any, kernel: Any, bias: Any, level: str) -> Any:
    logits = x @ (kernel.T if "table" in level else kernel)
    return logits if bias is None else logits + jnp.broadcast_to(bias, logits.shape)


def _row_weights(weights: Any, rank: int) -> Any:
    weights = jnp.asarray(weights, jnp.float64)
    return weights[..., 0] if weights.ndim > rank else weights


def _classes(x: Any, masked: bool) -> int:
    """All classes, the masked one too."""
    classes: int = x.shape[-1] + masked
    return classes


def _reduced(
    each: Any,
    weights: Any,
    reduction: str,
    mean_over: str | None = None,
    classes: int | None = None,
) -> Any:
    """As `reference.reduced`; 0 where nothing is counted."""
    if reduction != "none" and not each.size:
        return jnp.zeros(())
    weights = jnp.asarray(weights, jnp.float64)
    return reference.reduced(each, weights, reduction, mean_over, classes)
