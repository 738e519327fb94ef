"""What is compiled for chips that are not here: losses, their shapes, and who computes them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

import jxent
from benchmarks.lib.programs import (
    BONUS,
    EACH,
    SCALARS,
    by_blocks,
    chained_products,
    mean_of_each,
    of_label_ids,
    policy_loss,
)

BARE = "three bare products"
OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-4, "logit_softcap": 30.0}
WEIGHTS = "weights"  # the one option that is an array
HAS_AUX = "has_aux"  # beside the loss its parts, and whether the prediction is right
STATISTICS = "statistics"  # log-probability, entropy and prediction: a policy gradient with a bonus
MASTER = "float32 kernel"  # beside narrower inputs
LISTS = "label_weights"  # several ids an example, with a weight each
EXCLUDED = "excluded"  # several classes of an example that take no part
LISTED = (LISTS, EXCLUDED)
BLOCKWISE = "blockwise"  # a head in a user's function
TIED = "tied table"  # of an embedding `[classes, features]`
TIED_BLOCKWISE = "blockwise, tied table"
GEMMA = (8192, 256000, 2304)  # tokens, vocabulary and features of the head of Gemma 2 2B


@dataclass(frozen=True)
class Case:
    """One loss at one shape: its value, or its value and the gradients of what is no label."""

    loss: str  # a name in `SCALARS`
    examples: int
    classes: int
    features: int | None = None  # of a projection
    dtype: str = "bfloat16"
    form: Literal["scalar", "each", "vmap", "axis 0"] = "scalar"
    option: str = ""
    value_only: bool = False
    ids: int = 8  # positive classes an example, where they are listed

    @property
    def name(self) -> str:
        """Loss, shape and dtype, and what else is not usual."""
        sizes = [self.examples, self.features, self.classes]
        shape = " x ".join(str(n) for n in sizes if n is not None)
        return ", ".join([
            f"{self.loss} {shape} {self.dtype}",
            *[f"{self.ids} ids"] * (self.loss.endswith("sigmoid ids") or self.option in LISTED),
            *[self.form] * (self.form != "scalar"),
            *[self.option] * bool(self.option),
            *["value"] * self.value_only,
        ])  # fmt: skip

    @property
    def logits_bytes(self) -> int:
        """Size of the logits, stored or not: one pass over them."""
        return self.examples * self.classes * jnp.dtype(self.dtype).itemsize

    @property
    def least_bytes(self) -> int:
        """Operands and dense labels read once, gradients written once, logits of none stored."""
        labels, *operands, _ = (math.prod(s.shape) * s.dtype.itemsize for s in shapes(self))
        return labels + sum(operands) * (1 if self.value_only else 2)


def shrunk(case: Case) -> Case:
    """At a size for tests."""
    return replace(
        case, examples=32, classes=256, features=None if case.features is None else 16
    )  # fmt: skip


def shapes(case: Case) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Of labels, of logits or inputs and kernel, and of weights of examples or of labels."""
    n, c, d = case.examples, case.classes, case.features
    logits = (c, n) if case.form == "axis 0" else (n, c)
    ids = {"softmax ids": (n,), "sigmoid ids": (n, case.ids)}.get(case.loss.split(", ")[-1])
    lists = (n, case.ids)
    kernel = (c, d) if case.option in (TIED, TIED_BLOCKWISE) else (d, c)
    operands = (logits,) if d is None else ((n, d), kernel)
    weights = {WEIGHTS: (n,), LISTS: lists, EXCLUDED: lists}.get(case.option, (0,))
    ids = lists if case.option == LISTS else ids
    dtype = jnp.dtype(case.dtype)
    dtypes = (dtype, jnp.float32 if case.option == MASTER else dtype)
    return (
        jax.ShapeDtypeStruct(ids, jnp.int32) if ids else jax.ShapeDtypeStruct((n, c), dtype),
        *map(jax.ShapeDtypeStruct, operands, dtypes),
        jax.ShapeDtypeStruct(weights, jnp.int32 if case.option == EXCLUDED else jnp.float32),
    )


def programs(case: Case) -> dict[str, Callable]:
    """By name, functions of arrays of the `shapes`, jxent first."""
    found = {"jxent": differentiated(case, partial(_jxent, case))}
    if case.form != "each":
        found["optax"] = differentiated(case, partial(_optax, case))
        if case.features is not None and not case.value_only:
            found[BARE] = partial(_bare, case)
    return found


def _bare(case: Case, labels, inputs, kernel, weights):
    return chained_products(inputs, kernel.T if case.option in (TIED, TIED_BLOCKWISE) else kernel)


def differentiated(case: Case, mean: Callable) -> Callable:
    """The mean, or the mean and its gradients."""
    if case.value_only:
        return mean
    moving = (1,) if case.features is None else (1, 2)
    return jax.value_and_grad(mean, moving, has_aux=case.option in (HAS_AUX, STATISTICS))


def _jxent(case: Case, labels, *operands_and_weights):
    *operands, weights = operands_and_weights
    named = OPTIONS | {HAS_AUX: True, WEIGHTS: weights, LISTS: weights, EXCLUDED: weights}
    options = {case.option: named[case.option]} if case.option in named else {}
    if case.form == "each":
        return mean_of_each(case.loss, labels, *operands)
    if case.form == "axis 0":
        return mean_of_each(case.loss, labels, *operands, axis=0)
    if case.form == "vmap":
        one = EACH[case.loss]
        return jax.vmap(lambda y, x: one(labels=y, logits=x))(labels, *operands).mean()
    if case.option == STATISTICS:
        return policy_loss(labels, *operands)
    if case.option in (BLOCKWISE, TIED_BLOCKWISE):
        return by_blocks(case.option == TIED_BLOCKWISE, labels, *operands)
    if case.option == TIED:
        inputs, table = operands
        operands = [inputs, jxent.Transposed(table)]
    return SCALARS[case.loss](labels, *operands, **options)


# What a user of optax writes.


def _optax(case: Case, labels, *operands_and_weights):
    *operands, weights = operands_and_weights
    logits = operands[0]
    if case.features is not None:
        inputs, kernel = operands
        kernel = kernel.T if case.option in (TIED, TIED_BLOCKWISE) else kernel
        logits = inputs @ kernel.astype(inputs.dtype)
    if case.option == "logit_softcap":
        logits = OPTIONS[case.option] * jnp.tanh(logits / OPTIONS[case.option])
    if case.option == STATISTICS:
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        log_prob = jnp.take_along_axis(log_p, labels[:, None], -1)[:, 0]
        entropy = -(jnp.exp(log_p) * log_p).sum(-1)
        return (-log_prob - BONUS * entropy).mean(), logits.argmax(-1)
    if case.loss == "KL":
        log_s, log_t = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (logits, labels))
        return optax.losses.kl_divergence_with_log_targets(log_s, log_t).mean()
    if case.option == EXCLUDED:
        rows = jnp.arange(case.examples)[:, None]
        logits = logits.at[rows, weights].set(-jnp.inf)
    if case.option == LISTS:  # fewer cycles on a TPU than a scatter into dense labels
        x = logits.astype(jnp.float32)
        listed = (weights * jnp.take_along_axis(x, labels, -1)).sum(-1)
        return (weights.sum(-1) * jax.nn.logsumexp(x, -1) - listed).mean()
    losses = _optax_each(case, labels, logits)
    if case.option == "z_loss":
        losses += OPTIONS[case.option] * jax.nn.logsumexp(logits, -1) ** 2
    if case.option == WEIGHTS:
        return (weights * losses).sum() / (weights != 0).sum()
    if case.option == HAS_AUX:
        right = labels if case.loss.endswith("ids") else labels.argmax(-1)
        return losses.mean(), (logits.argmax(-1) == right).mean()
    return losses.mean()


def _optax_each(case: Case, labels, logits):
    kind = case.loss.split(", ")[-1]
    if kind == "sigmoid":
        losses = optax.sigmoid_binary_cross_entropy(logits, labels)
        return losses if case.features is None else losses.sum(-1)
    if kind == "sigmoid ids":
        return of_label_ids(logits, labels)
    if kind == "softmax":
        return optax.softmax_cross_entropy(logits, labels)
    if case.option == "label_smoothing":
        dense = jax.nn.one_hot(labels, case.classes, dtype=logits.dtype)
        smooth = optax.smooth_labels(dense, OPTIONS[case.option])
        return optax.softmax_cross_entropy(logits, smooth)
    with_ids = optax.softmax_cross_entropy_with_integer_labels
    if case.form == "vmap":
        return jax.vmap(with_ids)(logits, labels)
    return with_ids(logits, labels, axis=0 if case.form == "axis 0" else -1)
