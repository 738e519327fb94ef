"""What is measured, in JAX: the losses of jxent and optax, and what is made of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import jxent
from jxent import losses

# With logits: (logits, labels) -> the mean loss.


def jxent_mean(kind: str) -> Callable:
    """This library's scalar."""
    functions: dict[str, Callable] = {
        "sigmoid": losses.sigmoid_cross_entropy,
        "softmax ids": losses.sparse_softmax_cross_entropy,
        "softmax": losses.softmax_cross_entropy,
    }
    function = functions[kind]
    return lambda logits, labels: function(labels, logits)


def optax_mean(kind: str, *, each: bool = False) -> Callable:
    """The mean of optax's losses, or each of them."""
    functions: dict[str, Callable] = {
        "sigmoid": optax.sigmoid_binary_cross_entropy,
        "softmax ids": optax.softmax_cross_entropy_with_integer_labels,
        "softmax": optax.softmax_cross_entropy,
    }
    function = functions[kind]
    return function if each else lambda logits, labels: function(logits, labels).mean()


# The projection: (inputs, kernel, labels) -> the mean loss.


def of_optax(inputs, kernel, labels):
    """Logits in memory."""
    return optax.softmax_cross_entropy_with_integer_labels(inputs @ kernel, labels).mean()


def scalar(block_size, inputs, kernel, labels):
    """The loss that a training step differentiates."""
    return losses.linear_sparse_softmax_cross_entropy(labels, inputs, kernel, block_size=block_size)


def per_example(inputs, kernel, labels):
    """One loss an example, reduced by the caller."""
    return jxent.linear_sparse_softmax_cross_entropy(
        labels=labels, inputs=inputs, kernel=kernel
    ).mean()


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
