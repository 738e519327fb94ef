"""The losses of a projection by name, operands for them, and what their programs multiply."""

import re

import jax
import jax.numpy as jnp
import numpy as np

import jxent
from jxent import losses

LOSSES = ("sparse_softmax", "softmax", "sparse_sigmoid", "sigmoid")


def operands(loss_name, examples=7, features=3, classes=5, dtype=np.float32, seed=0):
    """Labels, inputs and kernel."""
    rng = np.random.default_rng(seed)
    labels = {
        "sparse_softmax": rng.integers(classes, size=examples),
        "sparse_sigmoid": rng.integers(-1, classes, size=(examples, 3)),
    }.get(loss_name, rng.uniform(0, 1, (examples, classes)).astype(np.float32))
    inputs = rng.standard_normal((examples, features))
    kernel = rng.standard_normal((features, classes))
    return labels, jnp.asarray(inputs, dtype), jnp.asarray(kernel, dtype)


def scalar(loss_name):
    return getattr(losses, f"linear_{loss_name}_cross_entropy")


SOFTMAX = scalar("sparse_softmax")


def per_example(loss_name):
    function = getattr(jxent, f"linear_{loss_name}_cross_entropy")

    def by_position(labels, inputs, kernel, **options):
        return function(labels=labels, inputs=inputs, kernel=kernel, **options)

    return by_position


def products(function, *arguments) -> list[tuple[str, str]]:
    """The dtypes of the operands of every matrix product."""
    text = jax.jit(function).lower(*arguments).as_text()
    found = re.findall(r"stablehlo\.dot_general.*: \(tensor<(\S+)>, tensor<(\S+)>\)", text)
    return [(a.split("x")[-1], b.split("x")[-1]) for a, b in found]
