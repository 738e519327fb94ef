"""Implementations for XLA:CPU of two softmaxes, each with its reason."""

from functools import partial
from math import factorial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core import hints
from jxent._src.core.dispatch import implements
from jxent._src.core.elementary import exp, of_rank
from jxent._src.loss_fns import kl_divergence
from jxent._src.loss_fns.kl_divergence import DivergenceResiduals
from jxent._src.platforms.cpu.fallback import map_row_blocks, with_fallback
from jxent._src.platforms.cpu.softmax import has_fast_rows
from jxent._src.sharding.class_axis import ClassAxis


def _of_finite(
    x_t: Array, x_s: Array, temperature: Array | None, rows: DivergenceResiduals
) -> tuple[Array, Array]:
    """What p_t is times 1 + sumexp_rest, and a: inf or NaN where a logit is infinite or NaN."""
    apart = x_s - x_t
    back = apart - x_s
    lost = (x_s - (apart - back)) - (x_t + back)
    a = (apart - rows.shift) + (lost - rows.shift_lost)
    if temperature is not None:
        temperature = hints.materialize(temperature)
        x_t, a = x_t / temperature, a / temperature
    return exp(x_t - rows.teacher[0]), a


def _is_positive(temperature: Array | None) -> Any:
    return True if temperature is None else temperature > 0


@implements(kl_divergence.sum_logit_differences, "cpu", applies=has_fast_rows)
def _sum_logit_differences_on_cpu(
    classes: ClassAxis, x_t: Array, x_s: Array, temperature: Array | None, rows: DivergenceResiduals
) -> Array:
    """Selects would be stored."""

    def of_finite(
        x_t: Array, x_s: Array, temperature: Array | None, rows: DivergenceResiduals
    ) -> Any:
        odds, a = _of_finite(x_t, x_s, temperature, rows)
        total = classes.sum(odds * a)
        return jnp.isfinite(total) & _is_positive(temperature), total

    exact = map_row_blocks(partial(kl_divergence.sum_logit_differences.reference, classes))
    total: Array = with_fallback(of_finite, exact)(x_t, x_s, of_rank(x_t.ndim, temperature), rows)
    return total


# With c = b brought into [-1, 1], where the series is right,
#
#     e^b - 1 - b = (e^c - 1 - c) + (e^b - e^c) - (b - c)
#
# whose differences are exactly 0 where b is in that range. Elsewhere nothing cancels: above it
# e^b - e^c is more than e (b - c), below it (c - b) is more than e times the other. No term is
# flushed: odds are at least tiny, or the row is not usable; where e^b overflows the sum does.
@implements(kl_divergence.sum_expm1_residuals, "cpu", applies=has_fast_rows)
def _sum_expm1_residuals_on_cpu(
    classes: ClassAxis,
    x_t: Array,
    x_s: Array,
    temperature: Array | None,
    rows: DivergenceResiduals,
    offset: Array,
) -> Array:
    def of_finite(
        x_t: Array, x_s: Array, temperature: Array | None, rows: DivergenceResiduals, _: Array
    ) -> Any:
        # Read again, or what both sums are made of is stored.
        x_t, x_s, rows = hints.materialize((x_t, x_s, rows))
        odds, a = _of_finite(x_t, x_s, temperature, rows)
        b = a - rows.mean
        # Of their own: the gradient does not share them.
        terms = 12 if jnp.finfo(x_t.dtype).bits <= 32 else 19
        one, *coefficients = hints.unshared_constants(
            x_t.dtype, 1.0, *(1 / factorial(n) for n in range(terms, 1, -1))
        )
        c = jnp.maximum(jnp.minimum(b, one), -one)
        series = coefficients[0]
        for coefficient in coefficients[1:]:
            series = coefficient + c * series
        total = classes.sum(odds * (c * c * series + ((exp(b) - exp(c)) - (b - c))))
        least = jnp.min(x_t, -1, keepdims=True)
        if temperature is not None:
            least = least / temperature
        flushed = exp(least - rows.teacher[0]) < 2 * jnp.finfo(x_t.dtype).tiny
        usable = jnp.isfinite(total) & ~flushed & _is_positive(temperature)
        return usable, total

    exact = map_row_blocks(partial(kl_divergence.sum_expm1_residuals.reference, classes))
    arguments = (x_t, x_s, of_rank(x_t.ndim, temperature), rows, offset)
    total: Array = with_fallback(of_finite, exact)(*arguments)
    return total
