"""Public functions, their options and the contexts they are called in: one table.

`run.py` makes combinations of it: of every two levels of two factors, and of every three. A factor
is an option, what an argument is, or what stands around the call; a new function, option or context
is entered here, and nowhere else.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

import jxent
from jxent import losses
from tests import reference
from tests.combinations.plain import given, statistics

Level = Any
Row = dict[str, Level]

# Two chips divide examples and classes; some block size divides neither all examples nor those of
# one chip: blocks are balanced, so that of 6 examples every size makes whole blocks.
EXAMPLES, CLASSES, FEATURES, IDS = 10, 6, 3, 4

# Levels of what a public function takes, by the name of its parameter. The first is the default.
OPTIONS: dict[str, tuple[Level, ...]] = {
    "label_smoothing": (0.0, 0.2),
    "z_loss": (0.0, 0.3),
    "logit_softcap": (None, 2.5),
    "teacher_logit_softcap": (None, 4.0),
    "focusing": (0.0, 1.5),
    "negative_focusing": (None, 2.0),
    "has_aux": (False, True),
    "axis": (-1, 0, 1),
    "reduction": (
        "weighted_sum_by_nonzero_weights", "weighted_sum", "weighted_mean",
        "weighted_sum_over_batch_size", "none",
    ),
    "mean_over": ("elements", "examples"),
    "name": (None, "head"),
    "scope": (None, "head"),
    # Arrays: "traced" is one number, "column" one a row, `[*batch, 1]`.
    "bias": ("none", "array"),
    "teacher_bias": ("none", "array"),
    "label_weights": ("none", "array"),
    "excluded": ("none", "array"),
    "weights": ("none", "number", "traced", "array", "bool", "column"),
    "mask": ("none", "array"),
    "pos_weight": ("one", "number", "traced", "array"),
    "temperature": ("one", "number", "traced"),
    "kernel": ("same", "float32", "table", "float32 table"),
    "teacher_kernel": ("same", "table"),
}  # fmt: skip
# Levels of these are what is passed; of the last ones a loss knows nothing. All else are arrays.
PASSED = (*OPTIONS,)[: [*OPTIONS].index("bias")]
BESIDE_THE_LOSS = ("has_aux", "axis", "reduction", "mean_over", "name", "scope")
ID_DTYPES = ("int32", "int8", "uint8", "int64")
# Which parameters are no factor by themselves: what they are follows from the others.
OTHERS = {
    "logits", "losses", "inputs", "teacher_inputs", "labels", "multi_class_labels",
    "onehot_labels", "teacher_logits", "block_size", "class_block_size", "axis_name",
}  # fmt: skip

CONTEXTS: dict[str, tuple[Level, ...]] = {
    # As on this platform alone, wherever it runs; None: whatever platform it is compiled for.
    "platform": (None, "cpu", "tpu", "cuda", "reference"),
    "dtype": ("float32", "bfloat16", "float16", "float64"),
    # Batches [10], [2, 5] and [], of one example and of none.
    "batch": ("N", "NM", "", "one", "empty"),
    # "padding" and "NaN" stand where the weight is 0 or the mask False; a class is at -inf.
    "data": ("plain", "padding", "NaN", "masked class"),
    "call": ("jit", "eager", "checkpoint", "donated"),
    # "some": the `operand` alone has an axis that is mapped, or all but it.
    "mapped": ("none", "all", "some", "scan"),
    # "varying": the `operand` alone varies over a mesh axis of `shard_map`, or all but it.
    "mesh": ("none", "shard_map", "varying", "auto", "explicit"),
    "split": ("nothing", "examples", "classes", "both"),
    "but": (False, True),
    "check_vma": (True, False),
    # Where derivatives are taken: inside of what maps and of `shard_map`.
    "inside": (False, True),
    "what": ("first", "forward over reverse", "reverse over reverse"),
    # With respect to what: all, what the classes are computed from, all else.
    "by": ("all", "data", "others"),
}


@dataclass(frozen=True)
class Function:
    """A public function: what its labels are, and its formula with the classes last."""

    name: str
    labels: str  # "dense", "ids", "lists" of ids, "teacher", or "none"
    plain: Callable[..., Any]
    per_class: bool = False  # one result per class and example

    def __str__(self) -> str:
        return self.name

    @cached_property
    def call(self) -> Callable[..., Any]:
        if self.name == "losses.blockwise":
            return blockwise
        module, _, name = self.name.rpartition(".")
        function: Callable[..., Any] = getattr(losses if module else jxent, name)
        return function

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.call).parameters)

    def takes(self, name: str) -> bool:
        return name in self.parameters

    @property
    def data(self) -> str:
        """The name of the array that the classes are computed from."""
        return next(name for name in ("inputs", "logits", "losses") if self.takes(name))

    @property
    def labels_name(self) -> str | None:
        if self.labels == "none":
            return None
        return next(name for name in self.parameters if name in OTHERS)

    @property
    def is_reduced(self) -> bool:
        return self.takes("reduction")

    @property
    def has_classes(self) -> bool:
        return self.name not in ("losses.compute_weighted_loss", "losses.blockwise")

    def operands(self) -> tuple[str, ...]:
        """Names of all arrays that it may be given, labels under one name."""
        names = ("kernel", "bias", "label_weights", "excluded", "pos_weight", "weights", "mask",
                 "temperature", "teacher_kernel", "teacher_bias")  # fmt: skip
        first = (self.data, "labels") if self.labels != "none" else (self.data,)
        return (*first, *(name for name in names if self.takes(name)))

    def factors(self) -> dict[str, tuple[Level, ...]]:
        """Levels by factor."""
        levels = {name: OPTIONS[name] for name in self.parameters if name in OPTIONS}
        if self.labels in ("ids", "lists"):
            levels["labels"] = ID_DTYPES
            if "statistics" in self.name:
                levels["listed"] = ("one", "list", "no labels")
        elif self.labels == "dense" and self.is_reduced and not self.takes("kernel"):
            levels["labels"] = ("same", "float32", "int32")
        elif self.labels in ("dense", "teacher"):
            levels["labels"] = ("same", "float32")
        if self.takes("block_size"):
            levels["blocks"] = ("none", "examples", "classes")[: 2 + self.takes("class_block_size")]
            levels["fit"] = ("divides", "ragged", "exceeds")
        if self.name == "losses.blockwise":
            levels["blocks"] = ("examples",)
        levels |= CONTEXTS
        if not self.has_classes:
            levels["split"] = ("nothing", "examples")
        if not self.takes("weights") and not self.takes("mask"):
            levels["data"] = ("plain", "masked class")
        if self.name in ("losses.compute_weighted_loss", "linear_logits"):
            levels["data"] = tuple(x for x in levels["data"] if x in ("plain", "NaN"))
        if self.name == "losses.blockwise":
            levels["batch"] = ("N", "one", "empty")
        return levels | {"operand": ("none", *self.operands())}


def blockwise(
    labels, inputs, kernel, *, block_size, bias=None, weights=1.0, has_aux=False, scope=None,
    reduction="weighted_sum_by_nonzero_weights",
):  # fmt: skip
    """A head whose losses a user writes."""

    def loss_fn(params, block):
        x, ids = block["x"], block["y"]
        logits = jxent.linear_logits(inputs=x, **params)
        each = jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=logits)
        return (each, {"inputs": jnp.sum(x, -1)}) if has_aux else each

    params = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
    return losses.blockwise(
        loss_fn, params, {"x": inputs, "y": labels}, block_size=block_size, weights=weights,
        has_aux=has_aux, scope=scope, reduction=reduction,
    )  # fmt: skip


IDS_OF, LISTS, DENSE, TEACHER = "ids", "lists", "dense", "teacher"
FUNCTIONS = tuple(
    Function(*entry)
    for entry in (
        ("sigmoid_cross_entropy_with_logits", DENSE, reference.sigmoid, True),
        ("weighted_cross_entropy_with_logits", DENSE, reference.sigmoid, True),
        ("softmax_cross_entropy_with_logits", DENSE, reference.softmax),
        ("sparse_softmax_cross_entropy_with_logits", IDS_OF, reference.sparse_softmax),
        ("sparse_sigmoid_cross_entropy_with_logits", LISTS, reference.sparse_sigmoid),
        ("sparse_softmax_statistics_with_logits", IDS_OF, statistics),
        ("softmax_kl_divergence_with_logits", TEACHER, reference.kl_divergence),
        ("linear_logits", "none", given, True),
        ("linear_sigmoid_cross_entropy", DENSE, reference.sigmoid_sum),
        ("linear_softmax_cross_entropy", DENSE, reference.softmax),
        ("linear_sparse_softmax_cross_entropy", IDS_OF, reference.sparse_softmax),
        ("linear_sparse_sigmoid_cross_entropy", LISTS, reference.sparse_sigmoid),
        ("linear_sparse_softmax_statistics", IDS_OF, statistics),
        ("linear_softmax_kl_divergence", TEACHER, reference.kl_divergence),
        ("losses.sigmoid_cross_entropy", DENSE, reference.sigmoid, True),
        ("losses.softmax_cross_entropy", DENSE, reference.softmax),
        ("losses.sparse_softmax_cross_entropy", IDS_OF, reference.sparse_softmax),
        ("losses.sparse_sigmoid_cross_entropy", LISTS, reference.sparse_sigmoid),
        ("losses.softmax_kl_divergence", TEACHER, reference.kl_divergence),
        ("losses.linear_sigmoid_cross_entropy", DENSE, reference.sigmoid_sum),
        ("losses.linear_softmax_cross_entropy", DENSE, reference.softmax),
        ("losses.linear_sparse_softmax_cross_entropy", IDS_OF, reference.sparse_softmax),
        ("losses.linear_sparse_sigmoid_cross_entropy", LISTS, reference.sparse_sigmoid),
        ("losses.linear_softmax_kl_divergence", TEACHER, reference.kl_divergence),
        ("losses.compute_weighted_loss", "none", given),
        ("losses.blockwise", IDS_OF, reference.sparse_softmax),
    )
)
BY_NAME = {function.name: function for function in FUNCTIONS}


# What is never called.


class But(tuple[Level, ...]):
    """All levels but these."""


def but(*levels: Level) -> But:
    return But(levels)


@dataclass(frozen=True)
class Never:
    """Levels of some factors that do not go together, and the error that says so, if one does."""

    levels: dict[str, tuple[Level, ...] | Level]
    error: str | None = None  # the beginning of a documented ValueError

    def applies(self, function: Function) -> bool:
        factors = function.factors()
        return all(
            any(_is_one_of(level, levels) for level in factors.get(factor, ()))
            for factor, levels in self.levels.items()
        )

    def as_bits(self, factors: dict[str, tuple[Level, ...]]) -> list[tuple[int, int]]:
        """The number of each factor, and its levels as bits."""
        numbers = {name: number for number, name in enumerate(factors)}
        return [
            (numbers[name], sum(_is_one_of(x, levels) << k for k, x in enumerate(factors[name])))
            for name, levels in self.levels.items()
        ]

    def holds(self, row: Row) -> bool:
        return all(_is_one_of(row[factor], levels) for factor, levels in self.levels.items())


def _is_one_of(level: Level, levels: tuple[Level, ...] | Level) -> bool:
    if isinstance(levels, But):
        return level not in levels
    return level in levels if isinstance(levels, tuple) else level == levels


SHARD_MAP = ("shard_map", "varying")
NEVER = [
    # Documented refusals.
    Never({"has_aux": True, "reduction": "none"}, "has_aux must be False for Reduction.NONE"),
    Never({"mesh": "explicit", "split": ("classes", "both"), "blocks": "classes"},
          "class_block_size must be None where the classes are split explicitly"),
    # What says nothing new, or can not be.
    Never({"mesh": "none", "split": but("nothing")}),
    Never({"mesh": "varying", "split": but("nothing")}),
    Never({"mesh": but("none", "varying"), "split": "nothing"}),
    Never({"mapped": but("some"), "mesh": but("varying"), "operand": but("none")}),
    Never({"mapped": "some", "operand": "none"}),
    Never({"mesh": "varying", "operand": "none"}),
    Never({"operand": "none", "but": True}),
    Never({"check_vma": False, "mesh": but(*SHARD_MAP)}),
    Never({"inside": True, "mesh": but(*SHARD_MAP), "mapped": "none"}),
    Never({"batch": ("", "one", "empty"), "split": ("examples", "both")}),
    # To JAX `jnp.where` of an empty array is a constant, which `vmap` does not batch: there a
    # plain `custom_jvp` function with one in it has no second derivatives, either.
    Never({"batch": "empty", "mapped": ("all", "some")}),
    # jax 0.10 compiles no `shard_map` whose arrays are all empty.
    Never({"batch": "empty", "mesh": SHARD_MAP}),
    Never({"axis": 1, "batch": ""}),
    # jax 0.10 cannot read an empty array that is split and was made outside of `jit`.
    Never({"call": "eager", "batch": "empty", "mesh": but("none")}),
    # Each operation is compiled by itself.
    Never({"call": "eager", "mesh": SHARD_MAP}),
    Never({"call": "eager", "what": but("first")}),
    Never({"call": "eager", "mapped": but("none")}),
    Never({"blocks": "none", "fit": but("divides")}),
    Never({"dtype": ("float32", "float64"), "kernel": ("float32", "float32 table")}),
    Never({"data": ("padding", "NaN"), "weights": ("none", "number", "traced")}),
    Never({"data": ("padding", "NaN"), "mask": "none"}),
    Never({"data": ("padding", "NaN"), "batch": ("", "one", "empty")}),
    Never({"data": "masked class", "bias": "none"}),
    Never({"data": "masked class", "teacher_bias": "none"}),
    # Gradients taken inside need `check_vma=True`.
    Never({"check_vma": False, "inside": True}),
    *(
        Never({"operand": name, name: missing})
        for name, missing in (
            ("bias", "none"), ("teacher_bias", "none"), ("label_weights", "none"),
            ("excluded", "none"), ("pos_weight", ("one", "number")),
            ("weights", ("none", "number")), ("mask", "none"), ("temperature", ("one", "number")),
        )
    ),
]  # fmt: skip
# What JAX 0.9 itself does not do, see `docs/inside/versions.md`.
BEFORE_0_10 = [
    Never({"mapped": "some", "mesh": "explicit", "split": "both"}),
    Never({"mapped": "some", "mesh": "auto", "batch": "", "operand": "weights"}),
]
OF_SOFTMAX = [
    Never({"focusing": but(0.0), "label_smoothing": but(0.0)}, "focusing must be 0 where labels"),
    Never({"focusing": but(0.0), "label_weights": "array"},
          "focusing must be 0 with label_weights"),
]  # fmt: skip
OF_SIGMOID = [Never({"data": "masked class", "label_smoothing": but(0.0)})]  # infinite losses
OF_PER_CLASS = [
    Never({"mean_over": "examples", "weights": ("array", "bool")},
          "weights must be a number or have a last dimension of 1"),
]  # fmt: skip
OF_FLOAT_LABELS = [
    Never({"dtype": ("float32", "float64"), "labels": "float32"}),
    Never({"labels": "int32", "data": "padding"}),  # NaN
]
OF_LOSSES = [Never({"weights": "column", "batch": ""})]


def never(function: Function) -> list[Never]:
    """The exclusions that a function has."""
    rules = [*NEVER, *(BEFORE_0_10 if jax.__version_info__ < (0, 10) else [])]
    rules += OF_SIGMOID if "sigmoid" in function.name or function.per_class else OF_SOFTMAX
    if function.per_class:
        rules += OF_PER_CLASS
    if function.labels in (DENSE, TEACHER):
        rules += OF_FLOAT_LABELS
    if function.data == "losses":
        rules += OF_LOSSES
    return [rule for rule in rules if rule.applies(function)]


def each_operand(function: Function) -> list[Row]:
    """Each array in turn is mapped, or varies over a mesh axis: it alone, and all but it."""
    levels = function.factors()
    arrays = {"bias": "array", "teacher_bias": "array", "pos_weight": "array", "weights": "array",
              "mask": "array", "temperature": "traced", "data": "plain"}  # fmt: skip
    base = {factor: arrays.get(factor, levels[factor][0]) for factor in levels}
    contexts = product(
        ({"mapped": "some"}, {"mesh": "varying"}), CONTEXTS["but"], CONTEXTS["inside"],
        CONTEXTS["what"],
    )  # fmt: skip
    found = []
    for around, exclude, inside, what in contexts:
        for operand in function.operands():
            row = base | around | {"but": exclude, "inside": inside, "what": what}
            lists = {operand: "array"} if operand in ("label_weights", "excluded") else {}
            found.append(row | lists | {"operand": operand})
    assert not any(rule.holds(row) for row in found for rule in never(function))
    return found


def refusals() -> list[tuple[Function, Row, str]]:
    """A call of each documented error, all other factors at their first level that may be."""
    found = []
    for function in FUNCTIONS:
        rules = never(function)
        for rule in rules:
            if rule.error is None:
                continue
            factors = function.factors()
            row = {factor: levels[0] for factor, levels in factors.items()}
            others = [other for other in rules if other is not rule]
            names = list(rule.levels)
            for levels in product(*(factors[name] for name in names)):
                tried = row | dict(zip(names, levels, strict=True))
                if rule.holds(tried) and not any(other.holds(tried) for other in others):
                    found.append((function, tried, rule.error))
                    break
            else:
                raise AssertionError(f"{function} has no row for {rule.error!r}")
    return found
