"""Divergences of probabilities as they are given: optax's names."""

import warnings

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jxent._src.checks import check, check_broadcast
from jxent._src.core.elementary import computing_dtype
from jxent._src.loss_fns.given_divergence import (
    GeneralizedRelativeEntropy,
    GivenDivergence,
    RelativeEntropy,
    RelativeEntropyOfLogs,
)
from jxent._src.run import compat, entry
from jxent._src.run.entry import Logits
from jxent._src.sharding.class_axis import ClassAxis


def kl_divergence(
    log_predictions: Float[ArrayLike, "..."],
    targets: Float[ArrayLike, "..."],
    axis: int | tuple[int, ...] | None = -1,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Kullback-Leibler divergence, in nats, of log-probabilities as given, as optax has it.

    $$\mathrm{KL} = \sum_j t_j (\log t_j - \log p_j)$$

    Nothing is normalised, and the digits are those of the arguments: what rounding the logarithms
    has lost is lost. From logits, `jxent.softmax_kl_divergence_with_logits` keeps all digits.

    Args:
      log_predictions: The predictions' log-probabilities.
      targets: The targets' probabilities; 0 adds 0, whatever is predicted, and has no derivative.
        Both broadcast to one shape.
      axis: The axis that is summed over, several of them, or None for all.
      where: Which elements take part, in a shape that broadcasts to that of the arguments; True
        for all where it is None. Others add exactly 0 and no derivative, even if they are NaN.

    Returns:
      The divergences, in the dtype that both arguments promote to: their shape without `axis`.
      bfloat16 and float16 are computed in float32 and rounded once.

    Raises:
      TypeError: `log_predictions` or `targets` are not floating, `where` is not boolean, or `axis`
        is neither an integer nor a tuple of them nor None.
      ValueError: The arguments do not broadcast to one shape, or `axis` does not fit them.

    Examples:
      >>> import jax.numpy as jnp
      >>> kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.25, 0.75])).round(4)
      Array(0.1308, dtype=float32)

    See Also:
      jxent.softmax_kl_divergence_with_logits: of two softmaxes, from their logits.

    References:
      Kullback and Leibler, On Information and Sufficiency, 1951.
    """
    return _summed(
        "kl_divergence", RelativeEntropy, log_predictions, "targets", targets, axis, where
    )


def kl_divergence_with_log_targets(
    log_predictions: Float[ArrayLike, "..."],
    log_targets: Float[ArrayLike, "..."],
    axis: int | tuple[int, ...] | None = -1,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Kullback-Leibler divergence, in nats, of two log-probabilities, as optax has it.

    $$\mathrm{KL} = \sum_j t_j (\log t_j - \log p_j)$$

    Nothing is normalised: the digits are those of the arguments.

    Args:
      log_predictions: The predictions' log-probabilities.
      log_targets: The targets' log-probabilities; -inf adds 0, whatever is predicted. Both
        broadcast to one shape.
      axis: The axis that is summed over, several of them, or None for all.
      where: Which elements take part, in a shape that broadcasts to that of the arguments; True
        for all where it is None. Others add exactly 0 and no derivative, even if they are NaN.

    Returns:
      The divergences, in the dtype that both arguments promote to: their shape without `axis`.
      bfloat16 and float16 are computed in float32 and rounded once.

    Raises:
      TypeError: `log_predictions` or `log_targets` are not floating, `where` is not boolean, or
        `axis` is neither an integer nor a tuple of them nor None.
      ValueError: The arguments do not broadcast to one shape, or `axis` does not fit them.

    Examples:
      >>> import jax.numpy as jnp
      >>> log_targets = jnp.log(jnp.array([0.25, 0.75]))
      >>> kl_divergence_with_log_targets(jnp.log(jnp.array([0.5, 0.5])), log_targets).round(4)
      Array(0.1308, dtype=float32)

    See Also:
      jxent.softmax_kl_divergence_with_logits: of two softmaxes, from their logits.
    """
    name, kind = "kl_divergence_with_log_targets", RelativeEntropyOfLogs
    return _summed(name, kind, log_predictions, "log_targets", log_targets, axis, where)


def generalized_kl_divergence(
    log_predictions: Float[ArrayLike, "..."],
    targets: Float[ArrayLike, "..."],
    axis: int | tuple[int, ...] | None = -1,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Generalized Kullback-Leibler divergence, of what need not sum to 1, as optax has it.

    $$\mathrm{KL} = \sum_j t_j (\log t_j - \log p_j) + p_j - t_j$$

    No term is negative. Where predictions and targets are near, each is computed from the
    difference of their logarithms, and so is the gradient, p - t.

    Args:
      log_predictions: The predictions' logarithms.
      targets: The targets; 0 adds the prediction. Both broadcast to one shape.
      axis: The axis that is summed over, several of them, or None for all.
      where: Which elements take part, in a shape that broadcasts to that of the arguments; True
        for all where it is None. Others add exactly 0 and no derivative, even if they are NaN.

    Returns:
      The divergences, in the dtype that both arguments promote to: their shape without `axis`.
      bfloat16 and float16 are computed in float32 and rounded once.

    Raises:
      TypeError: `log_predictions` or `targets` are not floating, `where` is not boolean, or `axis`
        is neither an integer nor a tuple of them nor None.
      ValueError: The arguments do not broadcast to one shape, or `axis` does not fit them.

    Examples:
      >>> import jax.numpy as jnp
      >>> generalized_kl_divergence(jnp.array([0.0, 0.5]), jnp.array([1.0, 2.0])).round(4)
      Array(0.035, dtype=float32)

    See Also:
      jxent.compat.optax.kl_divergence: without p - t.

    References:
      Boyd and Vandenberghe, Convex Optimization, 2004, page 90.
    """
    name = "generalized_kl_divergence"
    return _summed(
        name, GeneralizedRelativeEntropy, log_predictions, "targets", targets, axis, where
    )


def convex_kl_divergence(
    log_predictions: Float[ArrayLike, "..."],
    targets: Float[ArrayLike, "..."],
    axis: int | tuple[int, ...] | None = -1,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""The former name of `generalized_kl_divergence`, deprecated as in optax.

    $$\mathrm{KL} = \sum_j t_j (\log t_j - \log p_j) + p_j - t_j$$

    Args:
      log_predictions: As of `generalized_kl_divergence`.
      targets: As of `generalized_kl_divergence`.
      axis: As of `generalized_kl_divergence`.
      where: As of `generalized_kl_divergence`.

    Returns:
      What `generalized_kl_divergence` returns.

    Raises:
      TypeError: As `generalized_kl_divergence`.
      ValueError: As `generalized_kl_divergence`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import warnings
      >>> with warnings.catch_warnings(action="ignore"):
      ...     convex_kl_divergence(jnp.array([0.0, 0.5]), jnp.array([1.0, 2.0])).round(4)
      Array(0.035, dtype=float32)

    See Also:
      jxent.compat.optax.generalized_kl_divergence: its present name.
    """
    warnings.warn(
        "convex_kl_divergence is deprecated, as in optax: use generalized_kl_divergence instead.",
        DeprecationWarning,
        stacklevel=2,
    )
    return generalized_kl_divergence(log_predictions, targets, axis, where)


def _summed(
    name: str,
    kind: type[GivenDivergence],
    log_predictions: ArrayLike,
    of_targets: str,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None,
    where: ArrayLike | None,
) -> Array:
    p, t = check.floating("log_predictions", log_predictions), check.floating(of_targets, targets)
    shape = check_broadcast.shape(**{"log_predictions": p.shape, of_targets: t.shape})
    dtype = check_broadcast.promoted(p.dtype, t)
    axes = check_broadcast.axes(axis, len(shape))
    mask = check_broadcast.where(where, shape)
    if computing_dtype(dtype) != computing_dtype(p.dtype):
        p = p.astype(dtype)
    p, t = (check_broadcast.broadcast(x, shape) for x in (p, t))
    p, t, mask = (check_broadcast.one_axis(axes, x) for x in (p, t, mask))
    loss_fn = kind(ClassAxis(axes[0] if len(axes) == 1 else -1))
    with check.scope(None, name):
        if mask is None:
            return entry.each(loss_fn, Logits(t, p), dtype=dtype)
        return compat.divergence(loss_fn, dtype, t, p, mask)
