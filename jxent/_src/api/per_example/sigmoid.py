"""Sigmoid cross-entropy per class or per example, from logits in memory."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from jxent._src.checks import check, check_labels, check_weights
from jxent._src.core.elementary import Numbers
from jxent._src.loss_fns import sigmoid
from jxent._src.run import entry
from jxent._src.run.entry import Logits
from jxent._src.sharding.class_axis import ClassAxis


def sigmoid_cross_entropy_with_logits(
    *,
    labels: Float[ArrayLike, "*shape"],
    logits: Float[ArrayLike, "*shape"],
    pos_weight: Numbers = 1.0,
    label_smoothing: float = 0.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    negative_focusing: float | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    name: str | None = None,
) -> Float[Array, "*shape"]:
    r"""Sigmoid cross-entropy per class, in nats: classes are independent.

    $$\ell = (1 - z')\,\mathrm{softplus}(x) + q z'\,\mathrm{softplus}(-x), \qquad
    z' = z (1 - s) + s / 2$$

    with labels $z$, logits $x$, $q$ = `pos_weight`, $s$ = `label_smoothing`: with their defaults
    equal in algebra to TensorFlow's `max(x, 0) - x z + log1p(exp(-|x|))`, but made of terms that do
    not cancel.

    Args:
      labels: Probability that the class is present, in the logits' shape, and their dtype or
        float32; usually 0 or 1. Values outside [0, 1] are computed as the formula says.
      logits: Log-odds. At +-inf the loss is the limit: 0 where the label agrees, else inf.
      pos_weight: The factor q on positive labels: a number, or an array that broadcasts to the
        logits, `[classes]` for one a class. Differentiable.
      label_smoothing: The share s, in [0, 1], by which labels move towards 1/2.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      focusing: A power g >= 0: each label's term is multiplied by (1 - p)^g, p the probability that
        is given to what the label says, so that well classified ones count little.
      negative_focusing: Another power for the term of negative labels, 1 - z; None for that of
        `focusing`.
      mask: Which examples take part, `[*batch]`, or which elements, in the logits' shape; None for
        all. Where it is False the loss is exactly 0 and has no derivative, whatever stands in
        logits and labels.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per class and example, in the logits' shape and dtype. bfloat16 and float16 are
      computed in float32 and rounded once.

    Raises:
      TypeError: `logits` is not floating, `labels` has another dtype, `pos_weight` is not real,
        `mask` is not boolean, or an option is not a Python value.
      ValueError: A required array is None, the shapes differ, `pos_weight` does not fit, `mask`
        does not fit, or an option is out of its range.

    Examples:
      >>> sigmoid_cross_entropy_with_logits(labels=[1.0, 0.0], logits=[0.0, 2.0])
      Array([0.6931472, 2.126928 ], dtype=float32)

    References:
      TensorFlow, `tf.nn.sigmoid_cross_entropy_with_logits`.
      Focusing: Lin et al., Focal Loss for Dense Object Detection, 2017; Ridnik et al., Asymmetric
      Loss for Multi-Label Classification, 2021.
    """
    logits = check.floating("logits", logits)
    labels = check_labels.dense_labels(labels, logits.shape, logits.dtype)
    factor = check.pos_weight(pos_weight, logits.shape, logits.dtype)
    loss_fn = sigmoid.Sigmoid(
        classes=ClassAxis(None),
        label_smoothing=label_smoothing,
        logit_softcap=logit_softcap,
        focusing=focusing,
        negative_focusing=negative_focusing,
    )
    chosen = check_weights.mask(mask, logits.shape, logits.shape[:-1])
    with check.scope(name, "sigmoid_cross_entropy_with_logits"):
        return entry.each(loss_fn, Logits(labels, logits, factor), mask=chosen)


def weighted_cross_entropy_with_logits(
    *,
    labels: Float[ArrayLike, "*shape"],
    logits: Float[ArrayLike, "*shape"],
    pos_weight: Numbers,
    label_smoothing: float = 0.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    negative_focusing: float | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    name: str | None = None,
) -> Float[Array, "*shape"]:
    r"""Sigmoid cross-entropy per class, in nats, with positive labels weighted by `pos_weight`.

    $$\ell = (1 - z')\,\mathrm{softplus}(x) + q z'\,\mathrm{softplus}(-x), \qquad
    z' = z (1 - s) + s / 2$$

    with labels $z$, logits $x$, $q$ = `pos_weight`, $s$ = `label_smoothing`.

    A weight $q > 1$ makes missed positives expensive and raises recall; $q < 1$ raises precision.

    Args:
      labels: Probability that the class is present, in the logits' shape, and their dtype or
        float32; usually 0 or 1. Values outside [0, 1] are computed as the formula says.
      logits: Log-odds. At +-inf the loss is the limit: 0 where the label agrees, else inf.
      pos_weight: The factor q on positive labels: a number, or an array that broadcasts to the
        logits, `[classes]` for one a class. Differentiable. A negative one is computed as the
        formula says.
      label_smoothing: The share s, in [0, 1], by which labels move towards 1/2.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      focusing: A power g >= 0: each label's term is multiplied by (1 - p)^g, p the probability that
        is given to what the label says, so that well classified ones count little.
      negative_focusing: Another power for the term of negative labels, 1 - z; None for that of
        `focusing`.
      mask: Which examples take part, `[*batch]`, or which elements, in the logits' shape; None for
        all. Where it is False the loss is exactly 0 and has no derivative, whatever stands in
        logits and labels.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per class and example, in the logits' shape and dtype. bfloat16 and float16 are
      computed in float32 and rounded once.

    Raises:
      TypeError: `logits` is not floating, `labels` has another dtype, `pos_weight` is not real,
        `mask` is not boolean, or an option is not a Python value.
      ValueError: A required array is None, the shapes of `labels` and `logits` differ, `pos_weight`
        does not broadcast to them, `mask` does not fit, or an option is out of its range.

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
    labels = check_labels.dense_labels(labels, logits.shape, logits.dtype)
    factor = check.pos_weight(pos_weight, logits.shape, logits.dtype)
    loss_fn = sigmoid.Sigmoid(
        classes=ClassAxis(None),
        label_smoothing=label_smoothing,
        logit_softcap=logit_softcap,
        focusing=focusing,
        negative_focusing=negative_focusing,
    )
    chosen = check_weights.mask(mask, logits.shape, logits.shape[:-1])
    with check.scope(name, "weighted_cross_entropy_with_logits"):
        return entry.each(loss_fn, Logits(labels, logits, factor), mask=chosen)


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
    mask: Bool[ArrayLike, "..."] | None = None,
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
      mask: Which examples take part, `[*batch]`; None for all. Where it is False the loss is
        exactly 0 and has no derivative, whatever stands in the arrays.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, the sum over its classes, in the logits' dtype. bfloat16 and float16
      are computed in float32 and rounded once.

    Raises:
      TypeError: `labels` is not integer, `logits` is not floating, `pos_weight` is not real, `mask`
        is not boolean, or an option is not a Python value.
      ValueError: A required array is None, `labels` is not `[*batch, ids]` for logits `[*batch,
        classes]`, `pos_weight` does not broadcast to the logits, `mask` does not fit, or an option
        is out of its range.

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
    chosen = check_weights.mask(mask, logits.shape[:-1])
    with check.scope(name, "sparse_sigmoid_cross_entropy_with_logits"):
        return entry.each(loss_fn, Logits(labels, logits, factor), mask=chosen)
