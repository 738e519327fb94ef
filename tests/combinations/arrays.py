"""What a row of `table.py` is called with, and the float64 result that is expected."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any
from zlib import crc32

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

import jxent
from tests.combinations.plain import one_per_example
from tests.combinations.table import CLASSES, EXAMPLES, FEATURES, IDS, PASSED, Function, Row

DATA, MODEL = "data", "model"  # the mesh axes, of two chips each
BATCHES: dict[str, tuple[int, ...]] = {
    "N": (EXAMPLES,), "NM": (2, EXAMPLES // 2), "": (), "one": (1,), "empty": (0,),
}  # fmt: skip
Arrays = dict[str, Any]
COTANGENT = "cotangent"
MASKED = ("logits", "labels", "bias", "teacher_bias")  # where a class may be at -inf
AUX = ("cross_entropy", "z_loss", "accuracy", "weight_sum", "denominator")


@dataclass(frozen=True)
class Call:
    """A function, the levels of its factors, and what follows from them."""

    function: Function
    row: Row

    def level(self, factor: str, default: Any = None) -> Any:
        return self.row.get(factor, default)

    @property
    def dtype(self):
        return jnp.dtype(self.row["dtype"])

    @property
    def x64(self) -> bool:
        return self.row["dtype"] == "float64" or self.level("labels") == "int64"

    @property
    def wide(self):
        return jnp.float64 if self.dtype == jnp.float64 else jnp.float32

    @property
    def batch(self) -> tuple[int, ...]:
        return BATCHES[self.row["batch"]]

    @property
    def has_lists(self) -> bool:
        """Whether labels are lists of ids."""
        listed = self.row.get("label_weights") == "array" or self.row.get("listed") == "list"
        return self.function.labels == "lists" or listed

    # Which axes are split.

    @property
    def splits(self) -> tuple[str, ...]:
        """Tags of axes that are split: "n" of examples, "c" of classes."""
        split = {"nothing": "", "examples": "n", "classes": "c", "both": "nc"}
        return tuple(split[self.row["split"]])

    @property
    def is_shard_map(self) -> bool:
        return self.row["mesh"] in ("shard_map", "varying")

    @property
    def axis_name(self) -> str | None:
        named = self.function.takes("axis_name") and self.row["mesh"] == "shard_map"
        return MODEL if named and "c" in self.splits else None

    @property
    def summed_over(self) -> tuple[str, ...]:
        """Mesh axes over which chips have different results."""
        if self.row["mesh"] == "varying":
            return (DATA,)
        if self.row["mesh"] != "shard_map":
            return ()
        classes = "c" in self.splits and self.axis_name is None
        return (DATA,) * ("n" in self.splits) + (MODEL,) * classes

    @cached_property
    def tags(self) -> dict[str, tuple[str, ...]]:
        """What each axis of each array is: "n", "c", or neither."""
        function, row = self.function, self.row
        batch = "n-"[: len(self.batch)] if row["batch"] in ("N", "NM") else "-" * len(self.batch)
        logits = _inserted(batch, "c", row.get("axis", -1))
        per_class = function.per_class and function.is_reduced
        tags = {function.data: {"logits": logits, "losses": batch}.get(function.data, batch + "-")}
        if function.labels != "none":
            dense = logits if function.data == "logits" else batch + "c"
            if function.labels == "teacher" and function.takes("kernel"):
                dense = batch + "-"
            ids = batch + "-" * self.has_lists
            tags["labels"] = ids if function.labels in ("ids", "lists") else dense
        for kernel in ("kernel", "teacher_kernel"):
            if function.takes(kernel):
                tags[kernel] = "c-" if "table" in row[kernel] else "-c"
        arrays = {
            "bias": "c", "teacher_bias": "c", "label_weights": batch + "-", "excluded": batch + "-",
            "pos_weight": "c",
            "weights": batch + "c" * per_class, "mask": batch, "temperature": "",
        }  # fmt: skip
        for name, tag in arrays.items():
            level = row.get(name)
            if level in ("array", "bool"):
                tags[name] = tag
            elif level == "traced":
                tags[name] = ""
            elif level == "column":
                tags[name] = batch + "1"
                if function.data == "losses" and len(batch) > 1:
                    tags[name] = batch[:-1] + "1"
        shape = logits if function.per_class and function.data == "logits" else batch
        if function.per_class and function.data == "inputs":
            shape = batch + "c"
        if not function.is_reduced or row["reduction"] == "none":
            tags[COTANGENT] = shape
        return {name: tuple(tag) for name, tag in tags.items()}

    def sizes(self, name: str) -> tuple[int, ...]:
        """The shape of an array without the axes that are mapped."""
        tags, batch = self.tags[name], list(self.batch)
        lengths = {"inputs": FEATURES, "labels": IDS, "label_weights": IDS, "excluded": IDS,
                   "kernel": FEATURES, "teacher_kernel": FEATURES - 1}  # fmt: skip
        last = lengths.get(name, 0)
        if name == "labels" and self.function.labels == "teacher":
            last = FEATURES - 1
        if name in ("kernel", "teacher_kernel"):
            batch = []
        shape = []
        for tag in tags:
            if tag in ("c", "1"):
                shape.append(CLASSES if tag == "c" else 1)
            else:
                shape.append(batch.pop(0) if batch else last)
        return tuple(shape)

    def chosen(self, name: str) -> bool:
        """Whether it is the operand that is mapped alone, or one of the others."""
        operand = self.row["operand"]
        group = {"label_weights": ("label_weights",)}.get(name, (name,))
        return (operand in group) != self.row["but"]

    def mapped(self, name: str) -> bool:
        mapped = self.row["mapped"]
        return mapped in ("all", "scan") or (mapped == "some" and self.chosen(name))

    def varies(self, name: str) -> bool:
        return self.row["mesh"] == "varying" and self.chosen(name)

    def leading_axes(self, name: str) -> tuple[int, ...]:
        return (2,) * self.varies(name) + (2,) * self.mapped(name)

    def spec(self, name: str) -> PartitionSpec:
        names = {tag: axis for tag, axis in (("n", DATA), ("c", MODEL)) if tag in self.splits}
        first = (DATA,) * self.varies(name) + (None,) * self.mapped(name)
        return PartitionSpec(*first, *(names.get(tag) for tag in self.tags[name]))

    # Arrays and options.

    @cached_property
    def arrays(self) -> Arrays:
        return Drawn(self).given

    @cached_property
    def clean(self) -> Arrays:
        """Those of which the expected results are computed: no NaN, no id out of range."""
        return Drawn(self).clean

    @cached_property
    def directions(self) -> Arrays:
        """One for each array that is differentiated by; 0 where a class is at -inf."""
        rng = np.random.default_rng(1)
        found = {}
        for name in self.differentiable():
            x = np.asarray(rng.standard_normal(self.arrays[name].shape))
            if self.row["data"] == "masked class" and name in MASKED and "c" in self.tags[name]:
                self.of_last_class(name, x)[...] = 0
            found[name] = np.asarray(jnp.asarray(x, self.arrays[name].dtype))
        return found

    def of_last_class(self, name: str, x: np.ndarray) -> np.ndarray:
        """A view of the elements of the class that may be masked."""
        tags = self.tags[name]
        view: np.ndarray = np.moveaxis(x, x.ndim - len(tags) + tags.index("c"), -1)[..., -1]
        return view

    def differentiable(self) -> tuple[str, ...]:
        names = tuple(
            name for name, x in self.arrays.items()
            if name != COTANGENT and jnp.issubdtype(x.dtype, jnp.floating)
        )  # fmt: skip
        data = tuple(name for name in names if name == self.function.data)
        others = tuple(name for name in names if name not in data)
        return {"all": names, "data": data, "others": others or names}[self.row["by"]]

    def options(self) -> dict[str, Any]:
        """All that is passed beside arrays."""
        row = self.row
        options = {name: row[name] for name in PASSED if name in row}
        numbers = {"weights": 0.7, "pos_weight": 1.8, "temperature": 1.7}
        for name, number in numbers.items():
            if row.get(name) in ("one", "number"):
                options[name] = number if row[name] == "number" else 1
        if row.get("blocks", "none") != "none":
            classes = row["blocks"] == "classes"
            options["class_block_size" if classes else "block_size"] = self.block(classes)
        if self.axis_name:
            options["axis_name"] = self.axis_name
        return options

    def block(self, classes: bool) -> int:
        """The size of a block, from those of one chip."""
        size = CLASSES if classes else prod(self.batch)
        if self.row["mesh"] == "shard_map" and ("c" if classes else "n") in self.splits:
            size //= 2
        divides = next(n for n in range(size // 2, 0, -1) if size % n == 0) if size > 1 else 1
        # Of 10 and of 5 examples blocks of at most 4 are 4 and 3: some places stay empty.
        return {"divides": divides, "ragged": 4 if size > 4 else 2, "exceeds": size + 2}[
            self.row["fit"]
        ]

    def run(self, arrays: Arrays) -> tuple[Any, Any]:
        """One number of all results, and another of those that are not differentiable."""
        arrays = dict(arrays)
        cotangent = arrays.pop(COTANGENT, None)
        for name in ("kernel", "teacher_kernel"):
            if name in arrays and "table" in self.row[name]:
                arrays[name] = jxent.Transposed(arrays[name])
        if "labels" in arrays:
            labels = arrays.pop("labels")
            if self.function.labels == "teacher" and self.function.takes("kernel"):
                arrays["teacher_inputs"] = labels
            else:
                assert self.function.labels_name is not None
                none = self.row.get("listed") == "no labels"
                arrays[self.function.labels_name] = None if none else labels
        result = self.function.call(**arrays, **self.options())
        return self.totals(result, cotangent)

    def totals(self, result: Any, cotangent: Any) -> tuple[Any, Any]:
        wide, beside = self.wide, jnp.zeros((), self.wide)
        if isinstance(result, jxent.SoftmaxStatistics):
            beside = jnp.sum(cotangent * result.prediction.astype(wide))
            log_prob = jnp.zeros((), wide)
            if self.row["listed"] != "no labels":
                log_prob = one_per_example(result.log_prob, result.entropy)
            result = log_prob + 0.7 * result.entropy + 0.3 * result.log_normalizer
        elif isinstance(result, tuple):
            result, aux = result
            if isinstance(aux, dict):
                beside = aux["inputs"].astype(wide)
            else:
                beside = sum((k + 1) * getattr(aux, a).astype(wide) for k, a in enumerate(AUX))
        result = result.astype(wide)
        return jnp.sum(result if cotangent is None else cotangent * result), beside


def _inserted(batch: str, tag: str, axis: int) -> str:
    at = axis % (len(batch) + 1)
    return batch[:at] + tag + batch[at:]


class Drawn:
    """The arrays of a call, drawn from its function's name and its levels."""

    def __init__(self, call: Call) -> None:
        self.call, row = call, call.row
        self.rng = np.random.default_rng(crc32(repr((call.function.name, row)).encode()))
        self.given: Arrays = {}
        self.clean: Arrays = {}
        for name in call.tags:
            value = self.draw(name, call.leading_axes(name) + call.sizes(name))
            self.given[name] = self.clean[name] = value
        if row["data"] == "masked class":
            self.mask_a_class()
        elif row["data"] in ("padding", "NaN"):
            self.break_rows(row["data"])

    def draw(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        call, rng = self.call, self.rng
        function, row = call.function, call.row
        dtype: Any = call.wide
        x = rng.uniform(0.3, 2, shape)
        if name in ("logits", "losses", "inputs"):
            dtype, x = call.dtype, rng.standard_normal(shape) * (1 if name == "inputs" else 2)
        elif name in ("kernel", "teacher_kernel"):
            x = rng.standard_normal(shape)
            # In the products' dtype, whatever it is passed in.
            x = np.asarray(jnp.asarray(x, call.dtype))
            is_wide = "float32" in row[name]
            if name == "teacher_kernel":
                is_wide = row["labels"] == "float32"
            dtype = call.wide if is_wide else call.dtype
        elif name in ("bias", "teacher_bias"):
            x = rng.standard_normal(shape)
        elif name == "labels" and function.labels in ("ids", "lists"):
            # Class C - 1 is left for the one that may be masked; -1 is padding of lists.
            listed = shape[-1:] == (IDS,) and call.tags["labels"][-1:] == ("-",)
            low = -1 if listed and row["labels"] != "uint8" else 0
            # Those that may be excluded are no labels.
            high = CLASSES - 3 if row.get("excluded") == "array" else CLASSES - 1
            ids = rng.integers(low, high, size=shape)
            if listed and function.labels != "none":
                ids[..., -1] = ids[..., 0]  # an id twice
            return ids.astype(row["labels"])
        elif name == "excluded":
            padding = CLASSES - 3 if row["labels"] == "uint8" else -1
            return rng.choice([padding, CLASSES - 3, CLASSES - 2], shape).astype(row["labels"])
        elif name == "labels":
            dtype = row.get("labels", "same")
            x = rng.uniform(0, 0.9, shape)
            if function.labels == "teacher":
                x = 2 * rng.standard_normal(shape)
            if dtype == "int32":
                return (x > 0.5).astype(np.int32)
            x = np.asarray(jnp.asarray(x, call.dtype))
            dtype = call.dtype if dtype == "same" else dtype
        elif name == "mask":
            return ~self.left_out(name, shape)
        elif name == "weights":
            x = np.where(self.left_out(name, shape), 0, x)
            dtype = bool if row["weights"] == "bool" else dtype
        return np.asarray(jnp.asarray(x, dtype))

    def left_out(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Every third weight or element of the mask, if there are several."""
        own = shape[len(self.call.leading_axes(name)) :]
        places = np.arange(prod(own)).reshape(own) % 3 == 1
        return np.broadcast_to(places, shape)

    def mask_a_class(self) -> None:
        """The last class is at -inf, and no label says that it is there."""
        call = self.call
        for name in self.masked_arrays():
            x = self.given[name].copy()
            call.of_last_class(name, x)[...] = -np.inf
            self.given[name] = x
        if call.function.labels == "dense":
            labels = self.given["labels"].copy()
            call.of_last_class("labels", labels)[...] = 0
            self.given["labels"] = self.clean["labels"] = labels

    def masked_arrays(self) -> tuple[str, ...]:
        if self.call.function.takes("bias"):
            return tuple(name for name in ("bias", "teacher_bias") if name in self.given)
        return ("logits", "labels") if self.call.function.labels == "teacher" else ("logits",)

    def break_rows(self, how: str) -> None:
        """NaN, or an id that is none, where the weight is 0."""
        call = self.call
        name = call.function.data if how == "NaN" or call.function.labels == "none" else "labels"
        x = self.given[name].copy()
        own = call.sizes(name)
        places = kept(call)
        if places.ndim < len(own):
            tags = call.tags[name]
            places = np.expand_dims(places, tags.index("c") if "c" in tags else -1)
        places = np.broadcast_to(~places, x.shape)
        if np.issubdtype(x.dtype, np.integer):
            x[places] = 255 if x.dtype == np.uint8 else -1
            if call.has_lists:
                x[places] = 100  # negative ones are padding anywhere
        else:
            x[places] = np.nan
        self.given[name] = x


def kept(call: Call) -> np.ndarray:
    """Which losses count, in the losses' shape, or with a last axis of 1 or without it."""
    shape = call.sizes("mask" if call.row.get("mask") == "array" else "weights")
    kept = np.arange(prod(shape)).reshape(shape) % 3 != 1
    losses = len(call.batch) + (call.function.per_class and call.function.is_reduced)
    if kept.ndim > losses:
        kept = kept[..., 0]
    return kept
