"""What is measured, in JAX: the losses of jxent and optax, and what is made of them."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

import jxent
from jxent import losses

# This library's functions: labels, and logits or inputs and kernel.

OVER_EXAMPLES: Literal["examples"] = "examples"  # as peers sum the classes of an example
SCALARS: dict[str, Callable] = {
    "sigmoid": losses.sigmoid_cross_entropy,
    "softmax": losses.softmax_cross_entropy,
    "KL": losses.softmax_kl_divergence,  # the teacher's logits in the labels' place
    "sigmoid ids": partial(losses.sparse_sigmoid_cross_entropy, mean_over=OVER_EXAMPLES),
    "softmax ids": losses.sparse_softmax_cross_entropy,
    "projection, sigmoid": partial(losses.linear_sigmoid_cross_entropy, mean_over=OVER_EXAMPLES),
    "projection, softmax": losses.linear_softmax_cross_entropy,
    "projection, sigmoid ids": partial(
        losses.linear_sparse_sigmoid_cross_entropy, mean_over=OVER_EXAMPLES
    ),
    "projection, softmax ids": losses.linear_sparse_softmax_cross_entropy,
}
EACH: dict[str, Callable] = {
    "softmax ids": jxent.sparse_softmax_cross_entropy_with_logits,
    "projection, sigmoid ids": jxent.linear_sparse_sigmoid_cross_entropy,
    "projection, softmax ids": jxent.linear_sparse_softmax_cross_entropy,
}


def mean_of_each(loss: str, labels, *operands, **options):
    """One loss per example, reduced by the caller."""
    names = ("inputs", "kernel") if loss.startswith("projection") else ("logits",)
    named = dict(zip(names, operands, strict=True))
    return EACH[loss](labels=labels, **named, **options).mean()


BONUS = 0.01  # on the entropy


def policy_loss(labels, *operands):
    """Minus the log-probability with a bonus on the entropy, and the predictions beside it."""
    if len(operands) == 1:
        found = jxent.sparse_softmax_statistics_with_logits(labels=labels, logits=operands[0])
    else:
        inputs, kernel = operands
        found = jxent.linear_sparse_softmax_statistics(labels=labels, inputs=inputs, kernel=kernel)
    return (-found.log_prob - BONUS * found.entropy).mean(), found.prediction


def by_blocks(is_tied, labels, inputs, kernel):
    """The head in a user's function; blocks of 512 rows."""

    def loss_fn(kernel, row):
        table = kernel.T if is_tied else kernel
        logits = jxent.linear_logits(inputs=row["x"], kernel=table)
        return jxent.sparse_softmax_cross_entropy_with_logits(labels=row["y"], logits=logits)

    return losses.blockwise(loss_fn, kernel, {"x": inputs, "y": labels}, block_size=512)


# With logits: (logits, labels) -> the mean loss.


def jxent_mean(kind: str, smoothing: float = 0.0) -> Callable:
    """This library's scalar."""
    if kind == "statistics":
        return lambda logits, labels: policy_loss(labels, logits)[0]
    options = {"label_smoothing": smoothing} if smoothing else {}
    return lambda logits, labels: SCALARS[kind](labels, logits, **options)


def jxent_mean_of_each(kind: str) -> Callable:
    """This library's losses, one a class or one an example, reduced by the caller."""
    functions: dict[str, Callable] = {
        "sigmoid": jxent.sigmoid_cross_entropy_with_logits,
        "softmax ids": jxent.sparse_softmax_cross_entropy_with_logits,
        "softmax": jxent.softmax_cross_entropy_with_logits,
    }
    return lambda logits, labels: functions[kind](labels=labels, logits=logits).mean()


def optax_mean(kind: str, *, each: bool = False, smoothing: float = 0.0) -> Callable:
    """The mean of optax's losses, or each of them; labels made as its users make them."""
    functions: dict[str, Callable] = {
        "sigmoid": optax.sigmoid_binary_cross_entropy,
        "sigmoid ids": of_label_ids,
        "softmax ids": optax.softmax_cross_entropy_with_integer_labels,
        "softmax": optax.softmax_cross_entropy,
        "KL": lambda logits, teacher: optax.losses.kl_divergence(
            jax.nn.log_softmax(logits), jax.nn.softmax(teacher)
        ),
    }
    function = functions[kind]
    if smoothing and kind == "softmax ids":

        def function(logits, labels):
            dense = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
            return optax.softmax_cross_entropy(logits, dense)
    elif smoothing:

        def function(logits, labels):
            dense = labels * (1 - smoothing) + smoothing / 2
            return optax.sigmoid_binary_cross_entropy(logits, dense)

    return function if each else lambda logits, labels: function(logits, labels).mean()


def plain_mean(kind: str, smoothing: float = 0.0) -> Callable:
    """The mean as a user writes it with `jax.nn`."""

    def sigmoid(logits, labels):
        labels = labels * (1 - smoothing) + smoothing / 2 if smoothing else labels
        present, absent = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        return -(labels * present + (1 - labels) * absent)

    def of_label(logs, labels):
        return jnp.take_along_axis(logs, labels[:, None], -1)[:, 0]

    def softmax_ids(logits, labels):
        logs = jax.nn.log_softmax(logits)
        own = -of_label(logs, labels)
        return (1 - smoothing) * own - smoothing * logs.mean(-1) if smoothing else own

    def divergence(logits, teacher):
        logs = jax.nn.log_softmax(teacher)
        return (jnp.exp(logs) * (logs - jax.nn.log_softmax(logits))).sum(-1)

    def policy(logits, labels):
        logs = jax.nn.log_softmax(logits)
        return BONUS * (jnp.exp(logs) * logs).sum(-1) - of_label(logs, labels)

    functions: dict[str, Callable] = {
        "sigmoid": sigmoid,
        "sigmoid ids": lambda logits, ids: sigmoid(logits, scattered(logits, ids)).sum(-1),
        "softmax ids": softmax_ids,
        "softmax": lambda logits, labels: -(labels * jax.nn.log_softmax(logits)).sum(-1),
        "KL": divergence,
        "statistics": policy,
    }
    return lambda logits, labels: functions[kind](logits, labels).mean()


def scattered(logits, ids):
    """Dense labels of lists of ids."""
    return jnp.zeros_like(logits).at[jnp.arange(logits.shape[0])[:, None], ids].set(1)


def of_label_ids(logits, labels):
    """Each loss of lists of label ids as a user of optax writes it."""
    return optax.sigmoid_binary_cross_entropy(logits, scattered(logits, labels)).sum(-1)


# The projection: (inputs, kernel, labels) -> the mean loss.


def of_optax(inputs, kernel, labels):
    """Logits in memory."""
    return optax.softmax_cross_entropy_with_integer_labels(inputs @ kernel, labels).mean()


def scalar(block_size, inputs, kernel, labels):
    """The loss that a training step differentiates."""
    return losses.linear_sparse_softmax_cross_entropy(labels, inputs, kernel, block_size=block_size)


def per_example(inputs, kernel, labels):
    """One loss per example, reduced by the caller."""
    return mean_of_each("projection, softmax ids", labels, inputs, kernel)


def label_ids(inputs, kernel, labels):
    """Of several classes an example."""
    return SCALARS["projection, sigmoid ids"](labels, inputs, kernel)


def each_of_label_ids(inputs, kernel, labels):
    """One loss per example, reduced by the caller."""
    return mean_of_each("projection, sigmoid ids", labels, inputs, kernel)


def label_ids_of_optax(inputs, kernel, labels):
    """Logits and dense labels in memory."""
    return of_label_ids(inputs @ kernel, labels).mean()


def bare_products(inputs, kernel, slope):
    """What value and both gradients cannot do without."""
    return inputs @ kernel, slope @ kernel.T, inputs.T @ slope


def chained_products(inputs, kernel):
    """The same three products with the logits as their own slope: one large array, not two."""
    logits = inputs @ kernel
    return logits[0, 0], logits @ kernel.T, inputs.T @ logits


def blocked_products(block_size, inputs, kernel):
    """`chained_products` in blocks of examples: one block of logits, and d/d kernel added up."""
    examples, features = inputs.shape
    if examples % block_size:
        raise ValueError(f"block_size must divide the {examples} examples; it is {block_size}")

    def block(by_kernel, rows):
        logits = rows @ kernel
        return by_kernel + rows.T @ logits, (logits[0, 0], logits @ kernel.T)

    blocks = inputs.reshape(-1, block_size, features)
    by_kernel, (corner, by_inputs) = jax.lax.scan(block, jnp.zeros_like(kernel), blocks)
    return corner[0], by_inputs.reshape(inputs.shape), by_kernel


# Made of either.


def value_and_gradients(loss) -> Callable:
    """Value and d/d inputs, d/d kernel."""
    return jax.value_and_grad(loss, (0, 1))


def hessian_vector(loss, *, forward: bool):
    """A Hessian-vector product along the arguments themselves."""

    def product(inputs, kernel, labels):
        def gradient(a, b):
            return jax.grad(loss, (0, 1))(a, b, labels)

        if forward:
            return jax.jvp(gradient, (inputs, kernel), (inputs, kernel))[1]
        return jax.vjp(gradient, inputs, kernel)[1]((inputs, kernel))

    return product


def temporaries(function, *shapes) -> int:
    """Bytes of temporary memory of the compiled program."""
    analysis = jax.jit(function).lower(*shapes).compile().memory_analysis()
    assert analysis is not None  # every backend that this runs on has one
    return analysis.temp_size_in_bytes


def operand_shapes(workload) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of a workload's operands: (inputs, kernel, labels), or (logits, labels)."""
    dtype = jnp.dtype(workload.dtype)
    n, classes, features = workload.examples, workload.classes, workload.features
    ids = jax.ShapeDtypeStruct((n,), jnp.int32)
    logits = jax.ShapeDtypeStruct((n, classes), dtype)
    if workload.loss in ("sigmoid", "softmax"):
        return logits, logits
    if workload.loss == "softmax ids":
        return logits, ids
    return (
        jax.ShapeDtypeStruct((n, features), dtype),
        jax.ShapeDtypeStruct((features, classes), dtype),
        ids,
    )
