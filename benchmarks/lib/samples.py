"""The logits and labels on which accuracy is measured, here and in the tests."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

POINTS = 20_000  # logits of a sample
ROWS = 200  # rows of a sample


@dataclass(frozen=True)
class SigmoidSample:
    """Elementwise labels and logits in the dtype measured, and a positive weight in float32 up."""

    kind: str
    labels: np.ndarray
    logits: np.ndarray
    pos_weight: np.floating


def _rounded(x, dtype) -> np.ndarray:
    return np.asarray(jnp.asarray(x, dtype))


def sigmoid_samples(dtype, points: int = POINTS) -> Iterator[SigmoidSample]:
    """Logits from near 0 to where the loss leaves the dtype's normal numbers."""
    rng = np.random.default_rng(1)
    reach = {"float16": 10, "bfloat16": 80, "float32": 80, "float64": 600}[np.dtype(dtype).name]
    sizes = np.concatenate([np.geomspace(1e-6, 1, points // 4), np.linspace(0, reach, points // 4)])
    logits = _rounded(np.concatenate([sizes, -sizes]), dtype)

    def labels(z):
        return _rounded(np.broadcast_to(z, logits.shape), dtype)

    wide = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    for q in (wide(1), wide(0.1), wide(30)):
        yield SigmoidSample("labels 0", labels(0.0), logits, q)
        yield SigmoidSample("labels 1", labels(1.0), logits, q)
        soft = labels(rng.uniform(0, 0.9, logits.shape))
        yield SigmoidSample("labels in [0, 0.9]", soft, logits, q)
    yield SigmoidSample(
        "labels within 1e-5 of 1", labels(1 - rng.uniform(0, 1e-5, logits.shape)), logits, wide(1)
    )


def focal_samples(dtype, points: int = POINTS) -> Iterator[SigmoidSample]:
    """Hard labels, on the same logits."""
    for sample in sigmoid_samples(dtype, points):
        if sample.pos_weight == 1 and sample.kind in ("labels 0", "labels 1"):
            yield sample


@dataclass(frozen=True)
class SoftmaxSample:
    """Rows of logits with one class id each."""

    kind: str
    labels: np.ndarray
    logits: np.ndarray


def softmax_samples(dtype, rows: int = ROWS) -> Iterator[SoftmaxSample]:
    """Rows from undecided to so confident that the loss is the smallest normal number."""
    rng = np.random.default_rng(2)
    reach = {"float16": 8, "bfloat16": 80, "float32": 80, "float64": 600}[np.dtype(dtype).name]
    for classes in (2, 10, 1000):
        ids = rng.integers(classes, size=rows)
        noise = rng.standard_normal((rows, classes))
        lead = np.linspace(0, reach, rows)[:, None] * (np.arange(classes) == ids[:, None])
        yield SoftmaxSample(f"{classes} classes, right", ids, _rounded(noise + lead, dtype))
        wrong = (ids + 1) % classes
        yield SoftmaxSample(f"{classes} classes, wrong", wrong, _rounded(noise + lead, dtype))
        yield SoftmaxSample(f"{classes} classes, undecided", ids, _rounded(noise * 0.1, dtype))


@dataclass(frozen=True)
class DivergenceSample:
    """Rows of a teacher's logits and a student's."""

    kind: str
    lead: float  # of the teacher's first class
    teacher: np.ndarray
    student: np.ndarray


def divergence_samples(dtype, rows: int = ROWS) -> Iterator[DivergenceSample]:
    """Students that agree with their teacher, who is undecided or confident, and such as do not."""
    rng = np.random.default_rng(3)
    for classes in (10, 1000):
        for lead in (0, 8, 60):
            for apart in (1e-3, 1.0):
                if np.dtype(dtype) == np.float16 and lead > 8:
                    continue
                teacher = 2 * rng.standard_normal((rows, classes))
                teacher[:, 0] += lead
                student = teacher + apart * rng.standard_normal((rows, classes))
                kind = f"{classes} classes, lead {lead}, {apart:g} apart"
                yield DivergenceSample(
                    kind, lead, _rounded(teacher, dtype), _rounded(student, dtype)
                )
