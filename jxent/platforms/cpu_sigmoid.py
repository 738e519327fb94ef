"""What XLA:CPU wants spelled otherwise of independent classes: each way with its reason."""

from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent import _mesh, _sigmoid
from jxent._arithmetic import exp, log1p, widen
from jxent._dispatch import way
from jxent._sigmoid import SigmoidSum
from jxent._softcap import tanh
from jxent._terms import whole_part
from jxent.platforms._xla_cpu import (
    attempt,
    by_rows,
    own_constants,
)


def _is_whole(member: SigmoidSum, _: Array, logits: Array, *__: Array | None) -> bool:
    return member.classes.name is None and not _mesh.is_split(logits)


@way(_sigmoid.summed_losses, "cpu", applies=_is_whole)
def _total_on_cpu(member: SigmoidSum, *data: Array | None) -> Array:
    logits = cast(Array, data[1])

    # From the arrays as they were given: a condition stores what it is handed.
    def exact_total(*data: Array | None) -> Array:
        exact: Callable[..., Array] = partial(_sigmoid.weighted_class_losses, member)
        sums = by_rows(lambda *data: jnp.sum(exact(*data), -1, keepdims=True))
        return member.classes.total(sums(*data) if logits.ndim else exact(*data))

    # Infinite logits are rare, and without care for them 0 * inf makes the sum NaN.
    def of_finite(
        labels: Array, logits: Array, pos_weight: Array | None, weights: Array | None
    ) -> tuple[Array, Array]:
        x = _softcap_of_finite(widen(logits), member.logit_softcap)
        z = labels.astype(x.dtype)
        if member.label_smoothing:
            smoothing = (1 - member.label_smoothing, member.label_smoothing / 2)
            kept, added = own_constants(x.dtype, *smoothing)
            z = kept * z + added
        if any(member.powers):
            losses = _focused_loss_of_finite(member.powers, z, pos_weight, x)
        else:
            losses = _loss_of_finite(z, pos_weight, x)
        total = member.classes.total(losses if weights is None else weights * losses)
        return jnp.isfinite(total), total

    loss: Array = attempt(of_finite, exact_total)(*data)
    return loss


# For XLA:CPU's fusions, which end at a select and at a clamp: infinite logits are brought down to
# the largest number, since 0 * inf is NaN, and the factor `infinite`, 1 for all others, makes the
# product overflow again where the label does not agree. (Not for a sum that may meet both inf and
# -inf: fused with its addition, the product does not overflow.) NaN, which minima drop, is in the
# logarithm.
@way(_sigmoid.class_losses, "cpu")
def _loss_without_selects(z: Array, q: Array | None, x: Array) -> Array:
    positive = z if q is None else jax.lax.optimization_barrier(q) * z
    most = float(jnp.finfo(x.dtype).max)
    zero, one = own_constants(x.dtype, 0.0, 1.0)
    above = jnp.maximum(-jnp.maximum(-x, -most), zero)
    below = jnp.maximum(-jnp.maximum(x, -most), zero)
    infinite = one + jnp.minimum(jnp.abs(x) - jnp.minimum(jnp.abs(x), most), most)
    linear = ((one - z) * above + positive * below) * infinite
    return linear + (one - z + positive) * log1p(exp(-jnp.abs(x)))


def _loss_of_finite(z: Array, q: Array | None, x: Array) -> Array:
    """The same in fewer operations: inf or NaN if a logit is infinite."""
    rest = log1p(exp(-jnp.abs(x)))
    if q is None:  # (1 - z) x >= -z x exactly where x >= 0, for every z
        return rest - jnp.minimum((z - 1) * x, z * x)
    zero, one = own_constants(x.dtype, 0.0, 1.0)
    positive: Array = jax.lax.optimization_barrier(q) * z
    linear = (one - z) * jnp.maximum(x, zero) - positive * jnp.minimum(x, zero)
    return linear + (one - z + positive) * rest


def _focused_loss_of_finite(
    powers: tuple[float, float], z: Array, q: Array | None, x: Array
) -> Array:
    """As `_sigmoid.focused_losses`, with constants that the gradient does not share.

    Of finite logits: exp(-x) may overflow, its quotient is then 0, as the power is to rounding.
    """
    zero, one = own_constants(x.dtype, 0.0, 1.0)

    def softplus(x: Array) -> Array:
        return jnp.maximum(x, zero) + log1p(exp(-jnp.abs(x)))

    def term(g: float, x: Array) -> Array:
        whole = whole_part(g)
        (rest,) = own_constants(x.dtype, whole - g)
        loss = jax.lax.integer_pow(one / (one + exp(-x)), whole) * softplus(x)
        return loss if g == whole else loss * exp(rest * softplus(-x))

    present, absent = powers
    positive: Array = z if q is None else jax.lax.optimization_barrier(q) * z
    return (one - z) * term(absent, x) + positive * term(present, -x)


def _softcap_of_finite(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """The same without a select, which would end XLA:CPU's fusions: NaN at an infinite logit."""
    if cap is None:
        return x
    c, zero = own_constants(x.dtype, cap, 0.0)
    return c * tanh(x / c) + zero * x
