"""What differs between the versions of JAX that are supported, in one place."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

Result = TypeVar("Result")

# Before 0.10 second derivatives by blocks of exclusive classes are wrong, under `vmap` above all:
# the tangents of the statistics of all blocks are lost. There both orders take blocks of examples.
SECOND_ORDER_BY_CLASSES = jax.__version_info__ >= (0, 10)


def varying_axes(x: Array) -> frozenset[Any]:
    """The axes of a surrounding `shard_map` that an array varies over."""
    kind = jax.typeof(x)
    axes: frozenset[Any] = (
        kind.vma if jax.__version_info__ < (0, 10) else kind.manual_axis_type.varying
    )
    return axes


def linear(function: Callable[..., Result], *tangents: Any) -> Result:
    """`function(*tangents)`, which is linear, with its scans in a form that JAX can transpose.

    Before 0.10 JAX transposes a scan under `jax.checkpoint` only where the scan is a tangent of
    another one: it reads which inputs are linear from marks that differentiation sets. So there
    the function is written as its own tangent; compilers remove the value.
    """
    if jax.__version_info__ >= (0, 10):
        return function(*tangents)
    result: Result = jax.jvp(function, jax.tree.map(jnp.zeros_like, tangents), tangents)[1]
    return result
