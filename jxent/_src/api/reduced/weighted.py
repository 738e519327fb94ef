"""Weighting and reduction of losses computed elsewhere."""

from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jxent._src.checks import check
from jxent._src.core.elementary import Numbers
from jxent._src.run import entry
from jxent._src.run.reduction import Reduction


def compute_weighted_loss(
    losses: Float[ArrayLike, "..."],
    weights: Numbers = 1.0,
    *,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."]:
    """Losses computed elsewhere, weighted and reduced.

    A weight of 0 drops the value, inf and NaN too. It cannot clean a NaN gradient that arises
    outside: 0 is passed back to such a loss, and whatever made it multiplies that 0 by NaN. The
    other functions of this module take the weights inside and have no such trap.

    Args:
      losses: Losses, of any floating dtype and shape.
      weights: A number, or an array of the losses' rank with each dimension 1 or equal to theirs;
        `[batch, 1]` for losses of shape `[batch]` too. Differentiable.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction`, its value, or `"mean"` or `"sum"`.

    Returns:
      A scalar, or for `Reduction.NONE` an array of the losses' shape, in float32 at least.

    Raises:
      TypeError: `losses` is not floating or `weights` are not real.
      ValueError: A required array is None, `weights` do not fit the losses or are None, or
        `reduction` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> compute_weighted_loss(jnp.array([1.0, jnp.inf, 3.0]), jnp.array([1.0, 0.0, 2.0]))
      Array(3.5, dtype=float32)

    References:
      TensorFlow, `tf.compat.v1.losses.compute_weighted_loss`.
    """
    values = check.floating("losses", losses)
    with check.scope(scope, "compute_weighted_loss", argument="scope"):
        return entry.reduced_losses(weights, reduction, values)
