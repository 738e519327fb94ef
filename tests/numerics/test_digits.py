"""XLA's approximations are asked for all their digits: on TPUs they have few otherwise."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.api.test_properties import each_loss, scalar, split
from tests.catalog import CASES

# What StableHLO has beside these is exact, or rounded once.
APPROXIMATED = {
    *("exponential", "exponential_minus_one", "log", "log_plus_one", "logistic", "tanh", "power"),
    *("rsqrt", "sqrt", "cbrt", "sine", "cosine", "tan", "atan2"),
}
OF_CHLO = {"square"}  # a product


def operations(operation: Any) -> Iterator[Any]:
    """An operation of MLIR and all that it holds."""
    yield operation
    for region in operation.regions:
        for block in region:
            for inner in block:
                yield from operations(inner.operation)


def approximations(lowered: jax.stages.Lowered) -> tuple[list[str], list[str]]:
    """What has all its digits, and what need not have them."""
    full, few = [], []
    module: Any = lowered.compiler_ir("stablehlo")
    for operation in operations(module.operation):
        dialect, _, name = operation.name.partition(".")
        if dialect == "chlo" and name not in OF_CHLO:
            few.append(operation.name)
        if dialect != "stablehlo" or name not in APPROXIMATED:
            continue
        attributes = operation.attributes
        if "result_accuracy" in attributes and "HIGHEST" in str(attributes["result_accuracy"]):
            full.append(operation.name)
        elif any(True for _ in operation.result.uses):
            few.append(operation.name)  # JAX lowers each of the others twice, and one is not used
    return full, few


@each_loss
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.one_in(9)
def test_every_approximation_asks_for_its_digits(case, dtype):
    """Value, gradient and second order, as they are lowered for a TPU."""
    f, differentiated = split(case, case.arrays(jnp.dtype(dtype)))
    gradient = jax.grad(scalar(case, f))
    traced = jax.jit(lambda m: (f(m), jax.jvp(gradient, (m,), (m,)))).trace(differentiated)
    full, few = approximations(traced.lower(lowering_platforms=("tpu",)))
    assert {"stablehlo.exponential", "stablehlo.log_plus_one"} <= set(full)
    assert few == []


def test_what_the_test_above_looks_for():
    def careless(x):
        return jnp.tanh(x) + jax.nn.sigmoid(x) + jnp.exp2(x) + jax.lax.erf_inv(x)

    _, few = approximations(jax.jit(careless).lower(jnp.zeros(3)))
    assert len(few) == 4
    assert len(CASES) > 30
