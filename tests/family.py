"""The family in one table: every property test runs over these cases."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

import jxent
from jxent import losses
from tests import reference


@dataclass(frozen=True)
class Case:
    """A function of the family with its options, its plain formula, and arrays to call it on."""

    name: str
    loss: Callable[..., Any]  # of keyword arrays
    plain: Callable[..., Any]  # of the same
    shape: tuple[int, ...]  # of the logits
    axis: int | None = -1  # of the classes, if the loss sums over them
    labels: str = "dense"  # or "ids", "hard" (integers that losses.* casts)
    pos_weight: tuple[int, ...] | None = None  # its shape
    weights: tuple[int, ...] | None = None
    options: dict = field(default_factory=dict, hash=False)

    def __str__(self):
        return self.name

    def arrays(self, dtype=np.float64, scale=2.0, seed=0) -> dict[str, np.ndarray]:
        """Arguments: logits of the given spread; labels that do not sum to 1; one weight of 0."""
        rng = np.random.default_rng([seed, len(self.name)])
        arrays: dict[str, Any] = {
            "logits": jnp.asarray(scale * rng.standard_normal(self.shape), dtype)
        }
        if self.labels == "ids":
            batch = list(self.shape)
            classes = batch.pop(self.axis)
            arrays["labels"] = rng.integers(classes, size=batch)
        elif self.labels == "hard":
            arrays["labels"] = rng.integers(2, size=self.shape)
        else:
            arrays["labels"] = jnp.asarray(rng.uniform(0, 0.9, self.shape), dtype)
        for name in ("pos_weight", "weights"):
            shape = getattr(self, name)
            if shape is not None:
                value = rng.uniform(0.3, 3, shape)
                if name == "weights":
                    value.flat[-1] = 0
                arrays[name] = jnp.asarray(value, dtype if jnp.finfo(dtype).bits >= 32 else "f4")
        return {name: np.asarray(value) for name, value in arrays.items()}

    def differentiable(self) -> tuple[str, ...]:
        names = ("logits", "labels") if self.labels == "dense" else ("logits",)
        return names + tuple(n for n in ("pos_weight", "weights") if getattr(self, n) is not None)

    @property
    def terms(self) -> int:
        return int(np.prod(self.shape))


def _floor_1(name, function, plain, shape, suffix="", **kwargs):
    options = kwargs.pop("options", {})
    axis = kwargs.get("axis", -1)
    placed = dict(options) if axis in (None, -1) else {**options, "axis": axis}

    def loss(**arrays):
        return function(**arrays, **placed)

    def truth(**arrays):
        return plain(**arrays, **placed)

    return Case(name + suffix, loss, truth, shape, options=options, **kwargs)


def _floor_3(name, function, plain, shape, labels_name, reduction, **kwargs):
    options = kwargs.pop("options", {})

    def loss(*, labels, **arrays):
        return function(**{labels_name: labels}, **arrays, **options, reduction=reduction)

    def truth(*, weights, labels, **arrays):
        if kwargs.get("labels") == "hard":
            labels = labels.astype(arrays["logits"].dtype)
        return reference.reduced(plain(labels=labels, **arrays, **options), weights, reduction)

    return Case(f"losses.{name} {reduction}", loss, truth, shape, options=options, **kwargs)


SIGMOID = (jxent.sigmoid_cross_entropy_with_logits, reference.sigmoid)
WEIGHTED = (jxent.weighted_cross_entropy_with_logits, reference.sigmoid)
SOFTMAX = (jxent.softmax_cross_entropy_with_logits, reference.softmax)
SPARSE = (jxent.sparse_softmax_cross_entropy_with_logits, reference.sparse_softmax)
CAP = {"logit_softcap": 2.5}
Z = {"z_loss": 0.3}
SMOOTH = {"label_smoothing": 0.2}

FLOOR_1 = (
    _floor_1("sigmoid", *SIGMOID, (3, 5), axis=None),
    _floor_1("sigmoid", *SIGMOID, (7,), " capped", axis=None, options=CAP),
    _floor_1("weighted", *WEIGHTED, (3, 5), axis=None, pos_weight=()),
    _floor_1("weighted", *WEIGHTED, (2, 1, 5), " a class", axis=None, pos_weight=(5,)),
    _floor_1("weighted", *WEIGHTED, (3, 5), " capped", axis=None, pos_weight=(5,), options=CAP),
    _floor_1("softmax", *SOFTMAX, (3, 5)),
    _floor_1("softmax", *SOFTMAX, (5, 3), " axis 0", axis=0),
    _floor_1("softmax", *SOFTMAX, (7,), " z_loss", options=Z),
    _floor_1("softmax", *SOFTMAX, (2, 5), " capped z_loss", options=CAP | Z),
    _floor_1("sparse", *SPARSE, (3, 5), labels="ids"),
    _floor_1("sparse", *SPARSE, (2, 5, 3), " axis 1", axis=1, labels="ids"),
    _floor_1("sparse", *SPARSE, (3, 5), " smoothed", labels="ids", options=SMOOTH),
    _floor_1("sparse", *SPARSE, (7,), " z_loss", labels="ids", options=Z),
    _floor_1("sparse", *SPARSE, (2, 5), " all", labels="ids", options=CAP | Z | SMOOTH),
)

FLOOR_3 = (
    _floor_3(
        "sigmoid", losses.sigmoid_cross_entropy, reference.sigmoid, (3, 5),
        "multi_class_labels", "none", axis=None, weights=(3, 5), pos_weight=(), options=SMOOTH,
    ),
    _floor_3(
        "sigmoid", losses.sigmoid_cross_entropy, reference.sigmoid, (3, 5),
        "multi_class_labels", "weighted_mean", axis=None, weights=(3, 1), pos_weight=(5,),
        options=CAP,
    ),
    _floor_3(
        "sigmoid", losses.sigmoid_cross_entropy, reference.sigmoid, (7, 2),
        "multi_class_labels", "weighted_sum_by_nonzero_weights", axis=None, labels="hard",
        weights=(1, 2),
    ),
    _floor_3(
        "softmax", losses.softmax_cross_entropy, reference.softmax, (3, 5),
        "onehot_labels", "weighted_sum", weights=(3,), options=SMOOTH,
    ),
    _floor_3(
        "softmax", losses.softmax_cross_entropy, reference.softmax, (3, 2, 5),
        "onehot_labels", "weighted_sum_over_batch_size", weights=(3, 1), options=CAP | Z | SMOOTH,
    ),
    _floor_3(
        "sparse", losses.sparse_softmax_cross_entropy, reference.sparse_softmax, (3, 5),
        "labels", "weighted_sum_by_nonzero_weights", labels="ids", weights=(3,),
    ),
    _floor_3(
        "sparse", losses.sparse_softmax_cross_entropy, reference.sparse_softmax, (3, 5),
        "labels", "weighted_mean", labels="ids", weights=(3,), options=CAP | Z | SMOOTH,
    ),
)  # fmt: skip

CASES = FLOOR_1 + FLOOR_3
