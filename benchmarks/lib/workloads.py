"""The workloads that are run: one table, with the reason for each, and the data for them."""

from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
import numpy as np

Loss = Literal["sigmoid", "sigmoid ids", "softmax ids", "softmax", "KL", "statistics", "projection"]
Platform = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Workload:
    """Shapes of one measurement.

    `features` is what a projection sums over, `ids` how many an example has in its list, else None.
    """

    platform: Platform
    loss: Loss
    examples: int
    classes: int
    dtype: str
    reason: str
    features: int | None = None
    ids: int | None = None
    smoothing: float = 0.0

    @property
    def name(self) -> str:
        """Loss, shape, dtype and option."""
        sizes = [self.examples, self.features, self.classes]
        shape = " x ".join(str(size) for size in sizes if size is not None)
        count = "" if self.ids is None else f", {self.ids} ids"
        return f"{self.loss} {shape} {self.dtype}{count}{', smoothed' if self.smoothing else ''}"

    @property
    def logits_bytes(self) -> int:
        """Size of an array of the logits' shape and dtype."""
        return self.examples * self.classes * jnp.dtype(self.dtype).itemsize


WORKLOADS = (
    Workload(
        "cpu", "sigmoid", 4096, 4096, "float32",
        "A multi-label batch that no cache holds: every pass over the logits is paid for.",
    ),
    Workload(
        "cpu", "softmax ids", 2048, 32768, "float32",
        "Few long rows: the vocabulary of a language model.",
    ),
    Workload(
        "cpu", "softmax ids", 32768, 1000, "float32",
        "Many short rows: the classes of ImageNet, where the work per row shows.",
    ),
    Workload(
        "cpu", "softmax", 32768, 1000, "float32",
        "Soft labels for the same: a teacher's, or of mixed images.",
    ),
    Workload(
        "cpu", "projection", 4096, 65536, "float32",
        "A language model's head, whose logits are a hundred times the size of its inputs.", 256,
    ),
    Workload(
        "gpu", "sigmoid", 16384, 32768, "bfloat16",
        "One GiB of logits, so that no cache helps and the launch does not count.",
    ),
    Workload(
        "gpu", "softmax ids", 8192, 128256, "bfloat16",
        "The logits of Llama 3's vocabulary, which other libraries publish figures for.",
    ),
    Workload(
        "gpu", "projection", 8192, 256000, "bfloat16",
        "The head of Gemma 2 2B, the shape of the published figures of cut-cross-entropy.", 2304,
    ),
    Workload(
        "gpu", "projection", 8192, 128256, "bfloat16",
        "The head of Llama 3 8B on a batch of 8192 tokens.", 4096,
    ),
    Workload(
        "gpu", "projection", 32768, 128256, "bfloat16",
        "The same head on a batch whose logits alone take 8 GB.", 4096,
    ),
)  # fmt: skip


def _more(loss: Loss, examples: int, classes: int, reason: str, **rest) -> Workload:
    return Workload("cpu", loss, examples, classes, rest.pop("dtype", "float32"), reason, **rest)


# As many elements as 2048 x 32768 have.
_VOCABULARIES = {
    32001: "A vocabulary of Llama 2 with one more token: an odd length.",
    32003: "A prime.",
    50261: "A prime beyond 2^15, from where rows have to be cut.",
    50265: "RoBERTa's vocabulary.",
    100277: "The vocabulary of cl100k.",
    151936: "Qwen's vocabulary.",
}

MORE = (
    _more("sigmoid", 4096, 4096, "Smoothed labels.", smoothing=0.1),
    _more("sigmoid", 4096, 4096, "Narrow logits.", dtype="bfloat16"),
    _more("softmax ids", 2048, 32768, "Narrow logits.", dtype="bfloat16"),
    _more("softmax ids", 32768, 1000, "Smoothed labels.", smoothing=0.1),
    _more("softmax ids", 1024, 32768, "The same in few long rows.", smoothing=0.1),
    _more("softmax ids", 2**24 // 10, 10, "Rows of ten classes."),
    _more("softmax", 2**24 // 10, 10, "The same with dense labels."),
    _more("softmax ids", 2**24 // 100, 100, "Rows of a hundred."),
    *(_more("softmax ids", 2**26 // c, c, reason) for c, reason in _VOCABULARIES.items()),
    _more("softmax", 1024, 32768, "Soft labels of a vocabulary."),
    *(
        _more("sigmoid ids", 128, 10_000, "Lists beside a scatter into dense labels.", ids=count)
        for count in (8, 64, 256, 1000)
    ),
    _more("KL", 32768, 1000, "Distillation, the teacher's logits at hand."),
    _more("statistics", 32768, 1000, "Log-probability and entropy, for a policy's gradient."),
)

SMALL = tuple(
    _more(loss, examples, classes, "What is tried first.")
    for loss in ("sigmoid", "softmax ids", "softmax")
    for examples, classes in ((32, 10), (128, 10), (256, 100), (1024, 1000))
)


def workloads(platform: Platform, *losses: Loss, tiny: bool = False) -> list[Workload]:
    """The workloads of a platform, of these losses or all; shrunk if `tiny`."""
    chosen = [w for w in WORKLOADS if w.platform == platform and (not losses or w.loss in losses)]
    return [shrunk(w) for w in chosen] if tiny else chosen


def shrunk(workload: Workload) -> Workload:
    """The workload at a size for tests: which dimension is the longest stays as it was."""
    return replace(
        workload,
        examples=max(8, min(32, workload.examples // 512)),
        classes=max(16, min(256, workload.classes // 128)),
        features=None if workload.features is None else 8,
    )


Variant = Literal["random", "confident"]


def variants(workload: Workload) -> tuple[Variant, ...]:
    """The kinds of data a workload is measured on.

    Softmax on confident rows too: a shortcut that depends on the data must not flatter anyone.
    """
    both = workload.loss == "softmax ids" and workload not in (*MORE, *SMALL)
    return ("random", "confident") if both else ("random",)


def labels_and_logits(workload: Workload, variant: Variant = "random", seed: int = 0):
    """Labels and logits as NumPy arrays.

    Random logits are standard normal. Confident: in 9 rows of 10 the label's logit leads the
    largest other one by 10 to 20. Sigmoid labels are 0 and, with probability 0.1, 1. Softmax labels
    without ids are the softmax of standard normal numbers, a teacher's logits such numbers.
    """
    if workload.loss == "projection":
        raise ValueError(f"workload must have logits; {workload.name!r} is a projection")
    rng = np.random.default_rng(seed)
    shape = (workload.examples, workload.classes)
    logits = rng.standard_normal(shape, np.float32)
    if workload.loss == "sigmoid":
        labels = (rng.random(shape, np.float32) < 0.1).astype(workload.dtype)
        return labels, logits.astype(workload.dtype)
    if workload.loss == "KL":
        teacher = rng.standard_normal(shape, np.float32)
        return teacher.astype(workload.dtype), logits.astype(workload.dtype)
    if workload.ids is not None:
        lists = rng.integers(workload.classes, size=(workload.examples, workload.ids))
        return lists.astype(np.int32), logits.astype(workload.dtype)
    if workload.loss == "softmax":
        odds = np.exp(rng.standard_normal(shape, np.float32))
        labels = odds / odds.sum(1, keepdims=True)
        return labels.astype(workload.dtype), logits.astype(workload.dtype)
    ids = rng.integers(workload.classes, size=workload.examples).astype(np.int32)
    if variant == "confident":
        rows = np.flatnonzero(rng.random(workload.examples) < 0.9)
        lead = rng.uniform(10, 20, rows.size)
        logits[rows, ids[rows]] = logits[rows].max(1) + lead
    return ids, logits.astype(workload.dtype)


def projection_operands(workload: Workload, seed: int = 0):
    """Labels, inputs and kernel as NumPy arrays; the logits are about standard normal."""
    if workload.features is None:
        raise ValueError(f"workload must be a projection; {workload.name!r} has logits")
    rng = np.random.default_rng(seed)
    labels = rng.integers(workload.classes, size=workload.examples).astype(np.int32)
    inputs = rng.standard_normal((workload.examples, workload.features), np.float32)
    kernel = rng.standard_normal((workload.features, workload.classes), np.float32)
    kernel /= np.float32(workload.features**0.5)
    return labels, inputs.astype(workload.dtype), kernel.astype(workload.dtype)
