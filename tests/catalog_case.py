"""A case of the catalog: a public function with its options, its plain formula and arrays."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Case:
    """A function of the family with its options, its plain formula, and arrays to call it on."""

    name: str
    function: str  # the public one's name, with its module's
    loss: Callable[..., Any]  # of keyword arrays
    plain: Callable[..., Any]  # of the same
    shape: tuple[int, ...]  # of the logits
    axis: int | None = -1  # of the classes, if the loss sums over them
    labels: str = "dense"  # or "ids", "lists" (of ids), "hard" (integers that losses.* casts)
    features: int | None = None  # of a projection; then there are no logits to pass
    excluded: bool = False  # whether classes are, by lists of ids
    bias: bool = False
    pos_weight: tuple[int, ...] | None = None  # its shape
    weights: tuple[int, ...] | None = None
    options: dict = field(default_factory=dict, hash=False)
    passed: dict = field(default_factory=dict, hash=False)  # all that `loss` passes beside arrays
    labels_name: str = "labels"
    pick: Callable[[Any], Any] = lambda result: result  # of several results the one that is meant
    is_wide: bool = False  # in float32 at least, whatever the dtype
    taught: Callable[[Any], dict] | None = None  # what a teacher's inputs are passed as
    tied: bool = False  # the kernel is passed as a table

    def __str__(self):
        return self.name

    def of(self, function) -> Callable[..., Any]:
        """The loss by this function, which another copy of the package may have."""

        def loss(*, labels, **arrays):
            given = self.taught(labels) if self.taught else {self.labels_name: labels}
            return self.pick(function(**given, **passed_of(self.tied, arrays), **self.passed))

        return loss

    def arrays(self, dtype=np.float64, scale=2.0, seed=0) -> dict[str, np.ndarray]:
        """Arguments: logits of the given spread; labels that do not sum to 1; one weight of 0."""
        rng = np.random.default_rng([seed, len(self.name)])
        wide = dtype if jnp.finfo(dtype).bits >= 32 else np.float32
        arrays: dict[str, Any] = {}
        if self.features is None:
            arrays["logits"] = jnp.asarray(scale * rng.standard_normal(self.shape), dtype)
        else:
            *batch, classes = self.shape
            inputs = rng.standard_normal((*batch, self.features))
            kernel = scale * rng.standard_normal((self.features, classes)) / self.features**0.5
            arrays["inputs"] = jnp.asarray(inputs, dtype)
            arrays["kernel"] = jnp.asarray(kernel, dtype)
            if self.bias:
                arrays["bias"] = jnp.asarray(scale * rng.standard_normal(classes), wide)
        if self.labels == "ids":
            examples = list(self.shape)
            classes = examples.pop(self.axis or 0)
            arrays["labels"] = rng.integers(classes, size=examples)
        elif self.labels == "lists":
            lists = rng.integers(-2, self.shape[-1], size=(*self.shape[:-1], 4))
            lists[..., -1] = lists[..., 0]  # an id twice counts once
            arrays["labels"] = lists
        elif self.labels == "weighted":
            # Three ids per example, of which one may be padding, and one appears twice.
            examples = list(self.shape)
            classes = examples.pop(self.axis or 0)
            lists = rng.integers(-1, classes, size=(*examples, 4))
            lists[..., -1] = lists[..., 0]
            arrays["labels"] = lists
            arrays["label_weights"] = jnp.asarray(rng.uniform(0, 0.9, lists.shape), wide)
        elif self.labels == "hard":
            arrays["labels"] = rng.integers(2, size=self.shape)
        else:
            arrays["labels"] = jnp.asarray(rng.uniform(0, 0.9, self.shape), dtype)
        if self.excluded:
            labels = arrays["labels"]
            labels = labels if self.labels == "weighted" else labels[..., None]
            lists = rng.integers(-1, self.shape[self.axis or 0], size=(*labels.shape[:-1], 3))
            are_labels = np.any(lists[..., None] == labels[..., None, :], -1)
            arrays["excluded"] = np.where(are_labels, -1, lists)
        for name in ("pos_weight", "weights"):
            shape = getattr(self, name)
            if shape is not None:
                value = rng.uniform(0.3, 3, shape)
                if name == "weights":
                    value.flat[-1] = 0
                arrays[name] = jnp.asarray(value, wide)
        return {name: np.asarray(value) for name, value in arrays.items()}

    def differentiable(self) -> tuple[str, ...]:
        names: tuple[str, ...] = ("logits",) if self.features is None else ("inputs", "kernel")
        names += ("bias",) if self.bias else ()
        names += ("labels",) if self.labels == "dense" else ()
        names += ("label_weights",) if self.labels == "weighted" else ()
        return names + tuple(n for n in ("pos_weight", "weights") if getattr(self, n) is not None)

    @property
    def terms(self) -> int:
        return int(np.prod(self.shape))


def as_table(kernel):
    """The same kernel the other way round, in the type of the package that is imported now."""
    return import_module("jxent").Transposed(kernel.T)


def passed_of(tied, arrays):
    """The arrays, the kernel as a table if it is tied."""
    return {**arrays, "kernel": as_table(arrays["kernel"])} if tied else arrays
