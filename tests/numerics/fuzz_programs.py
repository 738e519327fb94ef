"""Draws programs of the fuzz: a public function with its options and shapes."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

LOGITS = ("sigmoid", "weighted", "softmax", "sparse_softmax", "sparse_sigmoid")
FUNCTIONS = {
    **{f"{name}_cross_entropy_with_logits": name for name in LOGITS},
    **{f"losses.{name}_cross_entropy": name for name in LOGITS if name != "weighted"},
    **{
        f"{module}linear_{name}_cross_entropy": name
        for module in ("", "losses.")
        for name in LOGITS
        if name != "weighted"
    },
}
SHAPES = (
    (), (1,), (0,), (3,), (2, 3), (1, 1), (5, 1, 2), (2, 0, 1), (16,), (16,), (70,), (70,),
)  # fmt: skip
CLASSES = (1, 2, 3, 7, 64, 130, 640, 1000)
DTYPES = ("float32", "float32", "float32", "float64", "bfloat16", "float16")
SMOOTHING = (0.0, 0.0, 0.0, 0.0, 0.1, 0.999, 1.0)
REDUCTIONS = (
    "none", "weighted_sum", "weighted_mean", "weighted_sum_over_batch_size",
    "weighted_sum_by_nonzero_weights",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A public function with its options and shapes."""

    function: str
    dtype: str
    batch: tuple[int, ...]
    classes: int
    options: dict = field(hash=False)
    axis: int = -1
    pos_weight: str | None = None  # "number" or "class"
    weights: str | None = None  # "number" or "example"
    reduction: str | None = None
    mean_over: str | None = None
    block_size: int | None = None
    class_block_size: int | None = None
    bias: bool = False
    features: int = 1
    ids: int = 0  # of a list; 0 of exclusive classes: one an example
    second_order: bool = True

    @property
    def kind(self) -> str:
        """Which loss it is."""
        return FUNCTIONS[self.function]

    @property
    def examples(self) -> int:
        return int(np.prod(self.batch, dtype=int))

    @property
    def wide(self):
        """The dtype of bias, weights and pos_weight."""
        return np.float64 if self.dtype == "float64" else np.float32

    @property
    def is_linear(self) -> bool:
        return "linear_" in self.function

    @property
    def is_scalar(self) -> bool:
        return self.function.startswith("losses.")

    @property
    def is_elementwise(self) -> bool:
        return self.kind in ("sigmoid", "weighted") and not self.is_linear


def some(data, choices, label):
    return data.draw(st.sampled_from(choices), label=label)


# Examples a block, or classes for the losses of independent ones.
BLOCKS = ((None, None), (1, None), (2, None), (5, None), (None, 1), (None, 3), (None, 8))


def draw_program(data, function: str) -> Program:
    kind = FUNCTIONS[function]
    exclusive = "softmax" in kind
    linear, scalar = "linear_" in function, function.startswith("losses.")
    smoothing = not function.endswith("_with_logits") or kind.startswith("sparse")
    options = {}
    if smoothing:
        options["label_smoothing"] = some(data, SMOOTHING, "label_smoothing")
    if exclusive:
        options["z_loss"] = some(data, (0.0, 0.0, 1e-4, 0.5), "z_loss")
    options["logit_softcap"] = some(data, (None, None, None, 0.7, 30.0), "logit_softcap")
    batch = some(data, SHAPES, "batch")
    weighted = kind == "weighted" or (not exclusive and (scalar or linear or smoothing))
    reduction = some(data, REDUCTIONS, "reduction") if scalar else None
    sums = scalar and not exclusive and (linear or kind.startswith("sparse"))
    mean_over = some(data, ("elements", "examples"), "mean_over") if sums else None
    lists = {"sparse_sigmoid": (0, 1, 3), "sparse_softmax": (0, 0, 0, 1, 3, 70)}
    ids = some(data, lists[kind], "ids") if kind in lists else 0
    by_classes = not exclusive or (
        scalar and kind.startswith("sparse") and reduction != "none" and not ids
    )
    return Program(
        function,
        some(data, DTYPES, "dtype"),
        batch,
        some(data, CLASSES, "classes"),
        options,
        some(data, (-1, -1, *range(-1 - len(batch), 1 + len(batch))), "axis")
        if function in ("softmax_cross_entropy_with_logits",
                        "sparse_softmax_cross_entropy_with_logits") else -1,
        some(data, ("number", "class") if kind == "weighted" else (None, "number", "class"), "q")
        if weighted else None,
        some(data, (None, "number", "example"), "weights") if scalar else None,
        reduction,
        mean_over,
        *(some(data, BLOCKS[: None if by_classes else 4], "blocks") if linear else (None, None)),
        data.draw(st.booleans(), label="bias") if linear else False,
        some(data, (1, 2, 5), "features") if linear else 1,
        ids,
        some(data, (True, False, False), "second order"),  # it doubles the time of compilation
    )  # fmt: skip
