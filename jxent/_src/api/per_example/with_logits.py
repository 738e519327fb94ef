"""One loss per example, per class for sigmoid, from logits in memory."""

from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jxent._src.checks import check, check_labels
from jxent._src.core.elementary import Numbers
from jxent._src.loss_fns import sigmoid, softmax
from jxent._src.run import entry
from jxent._src.run.entry import Logits
from jxent._src.sharding.class_axis import ClassAxis


def sigmoid_cross_entropy_with_logits(
    *,
    labels: Float[ArrayLike, "*shape"],
    logits: Float[ArrayLike, "*shape"],
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    negative_focusing: float | None = None,
    name: str | None = None,
) -> Float[Array, "*shape"]:
    r"""Sigmoid cross-entropy per class, in nats: classes are independent.

    $$\ell = (1 - z)\,\mathrm{softplus}(x) + z\,\mathrm{softplus}(-x)$$

    with labels $z$ and logits $x$: equal in algebra to TensorFlow's `max(x, 0) - x z +
    log1p(exp(-|x|))`, but made of terms that do not cancel.

    Args:
      labels: Probability that the class is present, in the logits' shape and dtype; usually 0 or 1.
        Values outside [0, 1] are computed as the formula says.
      logits: Log-odds. At +-inf the loss is the limit: 0 where the label agrees, else inf.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      focusing: A power g >= 0: each label's term is multiplied by (1 - p)^g, p the probability that
        is given to what the label says, so that well classified ones count little.
      negative_focusing: Another power for the term of negative labels, 1 - z; None for that of
        `focusing`.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per class and example, in the logits' shape and dtype. bfloat16 and float16 are
      computed in float32 and rounded once.

    Raises:
      TypeError: `logits` is not floating, `labels` has another dtype, or an option is not a
        Python value.
      ValueError: The shapes differ, or an option is out of its range.

    Examples:
      >>> sigmoid_cross_entropy_with_logits(labels=[1.0, 0.0], logits=[0.0, 2.0])
      Array([0.6931472, 2.126928 ], dtype=float32)

    References:
      TensorFlow, `tf.nn.sigmoid_cross_entropy_with_logits`.
      Focusing: Lin et al., Focal Loss for Dense Object Detection, 2017; Ridnik et al., Asymmetric
      Loss for Multi-Label Classification, 2021.
    """
    logits = check.floating("logits", logits)
    labels = check_labels.dense_labels(labels, logits)
    loss_fn = sigmoid.Sigmoid(
        classes=ClassAxis(None),
        logit_softcap=logit_softcap,
        focusing=focusing,
        negative_focusing=negative_focusing,
    )
    with check.scope(name, "sigmoid_cross_entropy_with_logits"):
        return entry.each(loss_fn, Logits(labels, logits))


def weighted_cross_entropy_with_logits(
    *,
    labels: Float[ArrayLike, "*shape"],
    logits: Float[ArrayLike, "*shape"],
    pos_weight: Numbers,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    negative_focusing: float | None = None,
    name: str | None = None,
) -> Float[Array, "*shape"]:
    r"""Sigmoid cross-entropy per class, in nats, with positive labels weighted by `pos_weight`.

    $$\ell = (1 - z)\,\mathrm{softplus}(x) + q z\,\mathrm{softplus}(-x)$$

    A weight $q > 1$ makes missed positives expensive and raises recall; $q < 1$ raises precision.

    Args:
      labels: Probability that the class is present, in the logits' shape and dtype; usually 0 or 1.
        Values outside [0, 1] are computed as the formula says.
      logits: Log-odds. At +-inf the loss is the limit: 0 where the label agrees, else inf.
      pos_weight: The factor q on positive labels: a number, or an array that broadcasts to the
        logits, `[classes]` for one a class. Differentiable. A negative one is computed as the
        formula says.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      focusing: A power g >= 0: each label's term is multiplied by (1 - p)^g, p the probability that
        is given to what the label says, so that well classified ones count little.
      negative_focusing: Another power for the term of negative labels, 1 - z; None for that of
        `focusing`.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per class and example, in the logits' shape and dtype. bfloat16 and float16 are
      computed in float32 and rounded once.

    Raises:
      TypeError: `logits` is not floating, `labels` has another dtype, `pos_weight` is not
        real, or an option is not a Python value.
      ValueError: The shapes of `labels` and `logits` differ, `pos_weight` does not broadcast
        to them, or an option is out of its range.

    Examples:
      >>> weighted_cross_entropy_with_logits(
      ...     labels=[1.0, 0.0], logits=[0.0, 2.0], pos_weight=3.0)
      Array([2.0794415, 2.126928 ], dtype=float32)

    References:
      TensorFlow, `tf.nn.weighted_cross_entropy_with_logits`.
      Focusing: Lin et al., Focal Loss for Dense Object Detection, 2017; Ridnik et al., Asymmetric
      Loss for Multi-Label Classification, 2021.
    """
    logits = check.floating("logits", logits)
    labels = check_labels.dense_labels(labels, logits)
    factor = check.pos_weight(pos_weight, logits.shape, logits.dtype)
    loss_fn = sigmoid.Sigmoid(
        classes=ClassAxis(None),
        logit_softcap=logit_softcap,
        focusing=focusing,
        negative_focusing=negative_focusing,
    )
    with check.scope(name, "weighted_cross_entropy_with_logits"):
        return entry.each(loss_fn, Logits(labels, logits, factor))


def sparse_sigmoid_cross_entropy_with_logits(
    *,
    labels: Integer[ArrayLike, "*batch ids"],
    logits: Float[ArrayLike, "*batch classes"],
    pos_weight: Numbers = 1.0,
    label_smoothing: float = 0.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    negative_focusing: float | None = None,
    axis_name: str | None = None,
    name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""Sigmoid cross-entropy of lists of class ids per example, in nats, summed over the classes.

    $$\ell = \sum_j (1 - z_j)\,\mathrm{softplus}(x_j) + q_j z_j\,\mathrm{softplus}(-x_j)$$

    where $z_j$ is 1 for the classes that are listed and 0 for all others, then smoothed. No array
    of dense labels is built: item 7 has labels 3 and 90,210, and that is what is passed.

    Args:
      labels: Ids of the positive classes, in [0, classes), in any order. A negative id is padding,
        an id that appears twice counts once, and one that is too large makes its example's loss and
        gradient NaN.
      logits: Log-odds, classes last. At +-inf the loss is the limit: 0 where the label agrees, else
        inf.
      pos_weight: The factor q on positive labels: a number, or an array that broadcasts to the
        logits, `[classes]` for one a class. Differentiable.
      label_smoothing: The share s, in [0, 1], by which labels move towards 1/2.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      focusing: A power g >= 0: each label's term is multiplied by (1 - p)^g, p the probability that
        is given to what the label says, so that well classified ones count little.
      negative_focusing: Another power for the term of negative labels, 1 - z; None for that of
        `focusing`.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        None: the classes are whole, or split by `jit` alone.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, the sum over its classes, in the logits' dtype. bfloat16 and float16
      are computed in float32 and rounded once.

    Raises:
      TypeError: `labels` is not integer, `logits` is not floating, `pos_weight` is not real, or
        an option is not a Python value.
      ValueError: `labels` is not `[*batch, ids]` for logits `[*batch, classes]`, `pos_weight`
        does not broadcast to the logits, or an option is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> sparse_sigmoid_cross_entropy_with_logits(
      ...     labels=[[3, 1], [2, -1]], logits=jnp.zeros((2, 5)))
      Array([3.465736, 3.465736], dtype=float32)

    References:
      TensorFlow, `tf.nn.weighted_cross_entropy_with_logits`, of the dense labels.
      Focusing: Lin et al., Focal Loss for Dense Object Detection, 2017; Ridnik et al., Asymmetric
      Loss for Multi-Label Classification, 2021.
    """
    logits = check.floating("logits", logits)
    axis = check.axis(-1, logits)
    labels = check_labels.id_lists(labels, logits.shape, "logits")
    factor = check.pos_weight(pos_weight, logits.shape, logits.dtype)
    loss_fn = sigmoid.SparseSigmoid(
        classes=ClassAxis(axis, check.axis_name(axis_name)),
        label_smoothing=label_smoothing,
        logit_softcap=logit_softcap,
        focusing=focusing,
        negative_focusing=negative_focusing,
    )
    with check.scope(name, "sparse_sigmoid_cross_entropy_with_logits"):
        return entry.each(loss_fn, Logits(labels, logits, factor))


def softmax_cross_entropy_with_logits(
    *,
    labels: Float[ArrayLike, "*shape"],
    logits: Float[ArrayLike, "*shape"],
    axis: int = -1,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    axis_name: str | None = None,
    name: str | None = None,
) -> Float[Array, "..."]:
    r"""Softmax cross-entropy of dense labels per example, in nats.

    $$\ell = \sum_j z_j (\mathrm{logsumexp}(x) - x_j) + \zeta\,\mathrm{logsumexp}(x)^2$$

    with labels $z$, logits $x$ and $\zeta$ = `z_loss`.

    Args:
      labels: A weight for every class, in the logits' shape and dtype; usually a distribution, but
        nothing has to sum to 1. Differentiable. A label of 0 costs nothing, even where the logit is
        -inf.
      logits: Unnormalised log-probabilities. -inf rules a class out; several +inf share the
        probability equally. A row without a class left is NaN.
      axis: The axis of `logits` that holds the classes.
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c). A class at -inf
        stays ruled out.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; labels are split like the logits. Gradients taken inside need shard_map's default
        `check_vma=True`. None: the classes are whole, or split by `jit` alone.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, in the logits' dtype: their shape without `axis`. bfloat16 and
      float16 are computed in float32 and rounded once.

    Raises:
      TypeError: `logits` is not floating, `labels` has another dtype, or an option is not a
        Python value.
      ValueError: The shapes differ, `axis` is not an axis of `logits`, or an option is out of
        its range.

    Examples:
      >>> softmax_cross_entropy_with_logits(labels=[0.5, 0.5], logits=[0.0, 0.0])
      Array(0.6931472, dtype=float32)

    References:
      TensorFlow, `tf.nn.softmax_cross_entropy_with_logits`. z-loss: Chowdhery et al., PaLM,
      2022, section 5.
    """
    logits = check.floating("logits", logits)
    labels = check_labels.dense_labels(labels, logits)
    loss_fn = softmax.Softmax(
        classes=ClassAxis(check.axis(axis, logits), check.axis_name(axis_name)),
        z_loss=z_loss,
        logit_softcap=logit_softcap,
    )
    with check.scope(name, "softmax_cross_entropy_with_logits"):
        return entry.each(loss_fn, Logits(labels, logits))


def sparse_softmax_cross_entropy_with_logits(
    *,
    labels: Integer[ArrayLike, "..."],
    logits: Float[ArrayLike, "..."],
    axis: int = -1,
    label_weights: Numbers | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    axis_name: str | None = None,
    name: str | None = None,
) -> Float[Array, "..."]:
    r"""Softmax cross-entropy of class ids per example, in nats.

    $$\ell = \mathrm{logsumexp}(x) - \sum_j z_j x_j + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z_j = (1 - s)\,[j = y] + s / C$$

    with class $y$, logits $x$, $s$ = `label_smoothing`, $\zeta$ = `z_loss`. No array of one-hot
    labels is built.

    Args:
      labels: Class ids in [0, classes), one an example, or lists of them with `label_weights`. Any
        other id makes its example's loss and gradient NaN. To ignore padding, use `jxent.losses`
        with `weights=labels >= 0`, or replace bad ids before this call and mask the losses after
        it.
      logits: Unnormalised log-probabilities. -inf rules a class out; several +inf share the
        probability equally. A row without a class left is NaN.
      axis: The axis of `logits` that holds the classes.
      label_weights: A weight for each of several ids an example, with labels `[*batch, ids]`: the
        loss is that of dense labels with these weights, which need not sum to 1. A negative id is
        padding, one that appears twice adds up. Differentiable. Not with `focusing`.
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
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, in the logits' dtype. bfloat16 and float16 are computed in float32
      and rounded once.

    Raises:
      TypeError: `labels` is not integer, `logits` is not floating, or an option is not a
        Python value.
      ValueError: `labels.shape` is not that of `logits` without `axis`, followed by the length of
        the lists with `label_weights`, these have another shape, `axis` is not an axis of
        `logits`, or an option is out of its range.

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
    with check.scope(name, "sparse_softmax_cross_entropy_with_logits"):
        return entry.each(loss_fn, Logits(targets, logits))
