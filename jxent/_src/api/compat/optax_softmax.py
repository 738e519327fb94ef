"""Exclusive classes: optax's names for their losses."""

from math import prod
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from jxent._src.checks import check, check_broadcast, check_labels
from jxent._src.core.elementary import Numbers, computing_dtype
from jxent._src.loss_fns.softmax import Softmax, SparseSoftmax
from jxent._src.run import compat, entry
from jxent._src.run.entry import Logits
from jxent._src.sharding.class_axis import ClassAxis


def softmax_cross_entropy(
    logits: Float[ArrayLike, "..."],
    labels: Numbers,
    axis: int | tuple[int, ...] | None = -1,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Softmax cross-entropy of dense labels per example, in nats, as optax has it.

    $$\ell = \sum_j z_j (\mathrm{logsumexp}(x) - x_j)$$

    with labels $z$ and logits $x$.

    Args:
      logits: Unnormalised log-probabilities. -inf rules a class out; several +inf share the
        probability equally. A row without a class left is NaN.
      labels: A weight for every class, of any real dtype, which need not sum to 1. Labels and
        logits broadcast to one shape, but the logits not along `axis`. A label of 0 costs nothing,
        even where the logit is -inf.
      axis: The axis of the classes; several of them, which are one together, or None for all.
      where: Which elements take part, in the shape of the logits or without `axis`; True for all
        where it is None. The others are in no sum, and have no derivative, even if they are NaN;
        an example of which nothing is left has a loss of 0.

    Returns:
      One loss per example, in the dtype that logits and labels promote to. bfloat16 and float16 are
      computed in float32 and rounded once.

    Raises:
      TypeError: `logits` is not floating, `labels` are not real, `where` is not boolean, or `axis`
        is neither an integer nor a tuple of them nor None.
      ValueError: The arguments do not broadcast to one shape, or `axis` does not fit them.

    Examples:
      >>> softmax_cross_entropy([0.0, 0.0], [0.5, 0.5])
      Array(0.6931472, dtype=float32)

    See Also:
      jxent.softmax_cross_entropy_with_logits: the same with z-loss, `logit_softcap`, split classes.
      jxent.linear_softmax_cross_entropy: from the output projection, without the logits.
      jxent.losses.softmax_cross_entropy: the weighted and reduced scalar.
    """
    rows = _dense_rows(logits, labels, axis, where)
    with check.scope(None, "softmax_cross_entropy"):
        return _dense(rows)


def safe_softmax_cross_entropy(
    logits: Float[ArrayLike, "... classes"], labels: Numbers
) -> Float[Array, "..."]:
    r"""Softmax cross-entropy with 0 log 0 = 0, as optax has it: here `softmax_cross_entropy`.

    $$\ell = \sum_j z_j (\mathrm{logsumexp}(x) - x_j)$$

    Args:
      logits: Unnormalised log-probabilities, classes last. -inf rules a class out; several +inf
        share the probability equally. A row without a class left is NaN.
      labels: A weight for every class, of any real dtype, which need not sum to 1. Labels and
        logits broadcast to one shape, but the logits not along the classes. A label of 0 costs
        nothing, even where the logit is -inf.

    Returns:
      One loss per example, in the dtype that logits and labels promote to. bfloat16 and float16 are
      computed in float32 and rounded once.

    Raises:
      TypeError: `logits` is not floating, or `labels` are not real.
      ValueError: The arguments do not broadcast to one shape.

    Examples:
      >>> from math import inf
      >>> safe_softmax_cross_entropy([0.0, 0.0, -inf], [0.5, 0.5, 0.0])
      Array(0.6931472, dtype=float32)

    See Also:
      jxent.compat.optax.softmax_cross_entropy: with `axis` and `where`.
    """
    rows = _dense_rows(logits, labels, -1, None)
    with check.scope(None, "safe_softmax_cross_entropy"):
        return _dense(rows)


def softmax_cross_entropy_with_integer_labels(
    logits: Float[ArrayLike, "..."],
    labels: Integer[ArrayLike, "..."],
    axis: int | tuple[int, ...] = -1,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Softmax cross-entropy of class ids per example, in nats, as optax has it.

    $$\ell = \mathrm{logsumexp}(x) - x_y$$

    with class $y$ and logits $x$.

    Args:
      logits: Unnormalised log-probabilities. -inf rules a class out; several +inf share the
        probability equally. A row without a class left is NaN.
      labels: Class ids, in the shape of the logits without `axis`, where either may have a size of
        1. From -1 to -classes they count from the end, as in NumPy. Any other id outside
        [0, classes) makes its example's loss NaN, and its gradient 0, so that it can be masked.
      axis: The axis of the classes; of several, the id is that of a class in their flattened array,
        in the order that they are given.
      where: Which elements take part, in the shape of the logits or without `axis`; True for all
        where it is None. The others are not in logsumexp, and have no derivative, even if they are
        NaN. The label's logit is taken even where it is left out; an example of which nothing is
        left has a loss of 0.

    Returns:
      One loss per example, in the logits' dtype. bfloat16 and float16 are computed in float32 and
      rounded once.

    Raises:
      TypeError: `labels` is not integer, `logits` is not floating, `where` is not boolean, or
        `axis` is neither an integer nor a tuple of them.
      ValueError: The shapes do not fit, there is no class, or `axis` does not fit the logits.

    Examples:
      >>> softmax_cross_entropy_with_integer_labels([0.0, 0.0], 1)
      Array(0.6931472, dtype=float32)

    See Also:
      jxent.sparse_softmax_cross_entropy_with_logits: with smoothing and z-loss; -1 is NaN there.
      jxent.linear_sparse_softmax_cross_entropy: from the output projection, without the logits.
      jxent.losses.sparse_softmax_cross_entropy: the weighted and reduced scalar.
    """
    if axis is None:
        raise TypeError("axis must be an integer or a tuple of them, got None")
    x = check.floating("logits", logits)
    ids = check_labels.integers(labels)
    dtype, axes = x.dtype, check_broadcast.axes(axis, x.ndim)
    mask = check_broadcast.where(where, x.shape, axes, x.ndim)
    x, mask = (check_broadcast.one_axis(axes, a) for a in (x, mask))
    classes = axes[0] if len(axes) == 1 else -1
    check.axis(classes, x)
    at = classes % x.ndim
    batch = (*x.shape[:at], *x.shape[at + 1 :])
    if ids.ndim != len(batch):
        raise ValueError(
            f"labels must have the rank of logits without axis, got {ids.shape} for {batch}"
        )
    batch = check_broadcast.shape(labels=ids.shape, logits_without_axis=batch)
    ids = jnp.broadcast_to(ids, batch)
    x = check_broadcast.broadcast(x, (*batch[:at], x.shape[at], *batch[at:]))
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*batch[:at], mask.shape[at], *batch[at:]))
    with check.scope(None, "softmax_cross_entropy_with_integer_labels"):
        loss = compat.of_ids(SparseSoftmax(ClassAxis(classes)), ids, x, mask)
    return loss.astype(dtype)


def poly_loss_cross_entropy(
    logits: Float[ArrayLike, "..."],
    labels: Float[ArrayLike, "..."],
    *,
    epsilon: Numbers = 2.0,
    axis: int | tuple[int, ...] | None = -1,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""PolyLoss per example, in nats, as optax has it: cross-entropy with one more term.

    $$\ell = \sum_j z_j (\mathrm{logsumexp}(x) - x_j) + \epsilon \sum_j z_j (1 - p_j)$$

    with labels $z$, logits $x$ and $p$ their softmax.

    Args:
      logits: Unnormalised log-probabilities. -inf rules a class out; several +inf share the
        probability equally. A row without a class left is NaN.
      labels: A weight for every class, floating, which need not sum to 1. Labels and logits
        broadcast to one shape, but the logits not along `axis`. A label of 0 costs nothing, even
        where the logit is -inf.
      epsilon: The factor on the labels' probability that is missed: a number, or an array. It
        and the losses broadcast to one shape. Differentiable.
      axis: The axis of the classes; several of them, which are one together, or None for all.
      where: Which elements take part, in the shape of the logits or without `axis`; True for all
        where it is None. The others are in no sum, and have no derivative, even if they are NaN;
        an example of which nothing is left has a loss of 0.

    Returns:
      One loss per example, in the dtype that logits, labels and `epsilon` promote to. bfloat16 and
      float16 are computed in float32 and rounded once.

    Raises:
      TypeError: `logits` or `labels` are not floating, `epsilon` is not real, `where` is not
        boolean, or `axis` is neither an integer nor a tuple of them nor None.
      ValueError: The arguments do not broadcast to one shape, or `axis` does not fit them.

    Examples:
      >>> poly_loss_cross_entropy([0.0, 0.0], [1.0, 0.0])
      Array(1.6931472, dtype=float32)

    See Also:
      jxent.compat.optax.softmax_cross_entropy: without the second term.

    References:
      Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions,
      2022.
    """
    rows = _dense_rows(logits, check.floating("labels", labels), axis, where)
    factor = check_broadcast.real("epsilon", epsilon, rows.dtype)
    dtype = check_broadcast.promoted(rows.dtype, factor)
    shape = check_broadcast.shape(losses=rows.batch, epsilon=factor.shape)
    factor = check_broadcast.broadcast(factor, shape)
    if not rows.has_classes:
        return jnp.zeros(shape, dtype)
    with check.scope(None, "poly_loss_cross_entropy"):
        return compat.poly(rows.loss_fn, dtype, factor, rows.labels, rows.logits, rows.where)


def smooth_labels(
    labels: Float[ArrayLike, "..."],
    alpha: Numbers,
    *,
    axis: int | tuple[int, ...] | None = -1,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Label smoothing, as optax has it: labels mixed with the uniform distribution.

    $$z'_j = (1 - \alpha)\,z_j + \alpha / C$$

    Args:
      labels: A weight for every class, floating.
      alpha: The share that is spread evenly: a number, or an array. It and the labels broadcast to
        one shape. Differentiable.
      axis: The axis of the classes; several of them, which are one together, or None for all.
      where: Which classes are counted in $C$, in a shape that broadcasts to that of the labels; all
        where it is None. The others get their share, too, as in optax: the loss has a `where` of
        its own. A row of which nothing is left counts as one of one class.

    Returns:
      The labels, in the dtype that they and `alpha` promote to. bfloat16 and float16 are computed
      in float32 and rounded once.

    Raises:
      TypeError: `labels` are not floating, `alpha` is not real, `where` is not boolean, or `axis`
        is neither an integer nor a tuple of them nor None.
      ValueError: The arguments do not broadcast to one shape, or `axis` does not fit the labels.

    Examples:
      >>> smooth_labels([0.0, 1.0], 0.5)
      Array([0.25, 0.75], dtype=float32)

    See Also:
      jxent.losses.sparse_softmax_cross_entropy: `label_smoothing` of ids, without dense labels.
      jxent.losses.softmax_cross_entropy: `label_smoothing` of dense labels.
    """
    z = check.floating("labels", labels)
    smoothing = check_broadcast.real("alpha", alpha, z.dtype)
    dtype = check_broadcast.promoted(z.dtype, smoothing)
    ndim = len(check_broadcast.shape(labels=z.shape, alpha=smoothing.shape))
    axes = check_broadcast.axes(axis, z.ndim)
    mask = check_broadcast.where(where, z.shape)
    computing = computing_dtype(dtype)
    with check.scope(None, "smooth_labels"):
        count = jnp.full((), prod(z.shape[a] for a in axes), computing)
        if mask is not None:
            count = jnp.sum(mask.astype(computing), axes, keepdims=True)
        z, smoothing, count = (
            x.reshape((1,) * (ndim - x.ndim) + x.shape).astype(computing)
            for x in (z, smoothing, jnp.maximum(count, 1))
        )
        return ((1 - smoothing) * z + smoothing / count).astype(dtype)


class _Rows(NamedTuple):
    """Logits, labels and a mask of one shape, and where their classes are."""

    loss_fn: Softmax
    dtype: jnp.dtype  # of the losses
    labels: Array
    logits: Array
    where: Array | None

    @property
    def batch(self) -> tuple[int, ...]:
        """The losses' shape."""
        shape = list(self.logits.shape)
        del shape[self.loss_fn.classes.index]
        return tuple(shape)

    @property
    def has_classes(self) -> bool:
        """Without a class a loss is an empty sum, 0."""
        return self.logits.shape[self.loss_fn.classes.index] != 0


def _dense_rows(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] | None,
    where: ArrayLike | None,
) -> _Rows:
    x = check.floating("logits", logits)
    z = check_broadcast.real("labels", labels, x.dtype)
    dtype = check_broadcast.promoted(x.dtype, z)
    shape = check_broadcast.shape(logits=x.shape, labels=z.shape)
    axes = check_broadcast.axes(axis, len(shape))
    own = (1,) * (len(shape) - x.ndim) + x.shape
    if any(own[a] != shape[a] for a in axes) or (len(shape) > x.ndim and _from_front(axis)):
        raise ValueError(
            f"logits must have all classes of labels, whose axis is {axis}, got shape {x.shape} "
            f"for labels of shape {z.shape}; logits are not broadcast along it, and it is counted "
            "from the end where they have fewer axes"
        )
    mask = check_broadcast.where(where, shape, axes, x.ndim)
    if computing_dtype(dtype) != computing_dtype(x.dtype):
        x = x.astype(dtype)
    x, z = (check_broadcast.broadcast(a, shape) for a in (x, z))
    x, z, mask = (check_broadcast.one_axis(axes, a) for a in (x, z, mask))
    classes = ClassAxis(axes[0] if len(axes) == 1 else -1)
    return _Rows(Softmax(classes), dtype, z, x, mask)


def _from_front(axis: int | tuple[int, ...] | None) -> bool:
    """Whether some axis is not counted from the end."""
    return axis is not None and any(a >= 0 for a in (axis if isinstance(axis, tuple) else (axis,)))


def _dense(rows: _Rows) -> Array:
    if not rows.has_classes:
        return jnp.zeros(rows.batch, rows.dtype)
    if rows.where is None:
        return entry.each(rows.loss_fn, Logits(rows.labels, rows.logits), dtype=rows.dtype)
    return compat.dense(rows.loss_fn, rows.dtype, rows.labels, rows.logits, rows.where)
