"""Softmax cross-entropy per example, from logits in memory."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from jxent._src.checks import check, check_labels, check_weights
from jxent._src.core.elementary import Ids, Numbers
from jxent._src.loss_fns import softmax
from jxent._src.loss_fns.excluded import with_excluded
from jxent._src.run import entry
from jxent._src.run.entry import Logits
from jxent._src.sharding.class_axis import ClassAxis


def softmax_cross_entropy_with_logits(
    *,
    labels: Float[ArrayLike, "*shape"],
    logits: Float[ArrayLike, "*shape"],
    axis: int = -1,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    axis_name: str | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    name: str | None = None,
) -> Float[Array, "..."]:
    r"""Softmax cross-entropy of dense labels per example, in nats.

    $$\ell = \sum_j z'_j (\mathrm{logsumexp}(x) - x_j) + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z'_j = z_j (1 - s) + s / C$$

    with labels $z$, logits $x$, $\zeta$ = `z_loss`, $s$ = `label_smoothing`.

    Args:
      labels: A weight for every class, in the logits' shape, and their dtype or float32; usually a
        distribution, but nothing has to sum to 1. Differentiable. A label of 0 costs nothing, even
        where the logit is -inf.
      logits: Unnormalised log-probabilities. -inf rules a class out; several +inf share the
        probability equally. A row without a class left is NaN.
      axis: The axis of `logits` that holds the classes.
      label_smoothing: The share s of the labels, in [0, 1], that is spread evenly over the C
        classes that are not at -inf.
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c). A class at -inf
        stays ruled out.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; labels are split like the logits. Gradients taken inside need shard_map's default
        `check_vma=True`. None: the classes are whole, or split by `jit` alone.
      mask: Which examples take part, `[*batch]`; None for all. Where it is False the loss is
        exactly 0 and has no derivative, whatever stands in the arrays.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, in the logits' dtype: their shape without `axis`. bfloat16 and
      float16 are computed in float32 and rounded once.

    Raises:
      TypeError: `logits` is not floating, `labels` has another dtype, `mask` is not boolean, or an
        option is not a Python value.
      ValueError: A required array is None, the shapes differ, `axis` is not an axis of `logits`,
        `mask` does not fit, or an option is out of its range.

    Examples:
      >>> softmax_cross_entropy_with_logits(labels=[0.5, 0.5], logits=[0.0, 0.0])
      Array(0.6931472, dtype=float32)

    References:
      TensorFlow, `tf.nn.softmax_cross_entropy_with_logits`. z-loss: Chowdhery et al., PaLM,
      2022, section 5.
    """
    logits = check.floating("logits", logits)
    labels = check_labels.dense_labels(labels, logits.shape, logits.dtype)
    axis = check.axis(axis, logits)
    loss_fn = softmax.Softmax(
        classes=ClassAxis(axis, check.axis_name(axis_name)),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
    )
    chosen = check_weights.mask(mask, check_labels.batch_shape(logits.shape, axis))
    with check.scope(name, "softmax_cross_entropy_with_logits"):
        return entry.each(loss_fn, Logits(labels, logits), mask=chosen)


def sparse_softmax_cross_entropy_with_logits(
    *,
    labels: Integer[ArrayLike, "..."],
    logits: Float[ArrayLike, "..."],
    axis: int = -1,
    label_weights: Numbers | None = None,
    excluded: Ids | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    axis_name: str | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    name: str | None = None,
) -> Float[Array, "..."]:
    r"""Softmax cross-entropy of class ids per example, in nats.

    $$\ell = \mathrm{logsumexp}(x) - \sum_j z_j x_j + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z_j = (1 - s)\,[j = y] + s / C$$

    with class $y$, logits $x$, $s$ = `label_smoothing`, $\zeta$ = `z_loss`. No array of one-hot
    labels is built.

    Args:
      labels: Class ids in [0, classes), one an example, or lists of them with `label_weights`. Any
        other id makes its example's loss and gradient NaN: `mask=labels >= 0` ignores padding.
      logits: Unnormalised log-probabilities. -inf rules a class out; several +inf share the
        probability equally. A row without a class left is NaN.
      axis: The axis of `logits` that holds the classes.
      label_weights: A weight for each of several ids per example, with labels `[*batch, ids]`: the
        loss is that of dense labels with these weights, which need not sum to 1. A negative id is
        padding, one that appears twice adds up. Differentiable. Not with `focusing`.
      excluded: Lists `[*batch, ids]` of classes that take no part in that example, as at -inf:
        accidental hits, known positives. A negative id is padding, one that appears twice counts
        once, one that is too large makes its example NaN. The loss of an excluded label is inf.
      label_smoothing: The share s of the labels, in [0, 1], that is spread evenly over the C
        classes that are not at -inf.
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c). A class at -inf
        stays ruled out.
      focusing: A power g >= 0: the cross-entropy is multiplied by (1 - p)^g, p the probability of
        the label, so that well classified examples count little; z-loss is not. Not with
        `label_smoothing`.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        None: the classes are whole, or split by `jit` alone.
      mask: Which examples take part, `[*batch]`; None for all. Where it is False the loss is
        exactly 0 and has no derivative, whatever stands in the arrays.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, in the logits' dtype. bfloat16 and float16 are computed in float32
      and rounded once.

    Raises:
      TypeError: `labels` is not integer, `logits` is not floating, `mask` is not boolean, or an
        option is not a Python value.
      ValueError: A required array is None, `labels.shape` is not that of `logits` without `axis`,
        followed by the length of the lists with `label_weights`, these have another shape, `axis`
        is not an axis of `logits`, `mask` does not fit, or an option is out of its range.

    Examples:
      >>> sparse_softmax_cross_entropy_with_logits(labels=1, logits=[0.0, 0.0])
      Array(0.6931472, dtype=float32)
      >>> sparse_softmax_cross_entropy_with_logits(
      ...     labels=[1, 0, -1], label_weights=[0.9, 0.1, 0.0], logits=[0.0, 0.0])
      Array(0.6931472, dtype=float32)

    References:
      TensorFlow, `tf.nn.sparse_softmax_cross_entropy_with_logits`. Smoothing: Szegedy et al.,
      Rethinking the Inception Architecture, 2016, section 7.
      Focusing: Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    logits = check.floating("logits", logits)
    axis = check.axis(axis, logits)
    targets = check_labels.class_labels(labels, label_weights, logits.shape, axis, logits.dtype)
    loss_fn = softmax.of_ids(
        targets,
        classes=ClassAxis(axis, check.axis_name(axis_name)),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        focusing=focusing,
    )
    out = check_labels.excluded(excluded, logits.shape, axis)
    chosen = check_weights.mask(mask, check_labels.batch_shape(logits.shape, axis))
    with check.scope(name, "sparse_softmax_cross_entropy_with_logits"):
        return entry.each(loss_fn, Logits(with_excluded(targets, out), logits), mask=chosen)
