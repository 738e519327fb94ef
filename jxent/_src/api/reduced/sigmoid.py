"""Reduced sigmoid cross-entropy from logits in memory."""

from typing import Literal

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Real

from jxent._src.checks import check, check_labels, check_weights
from jxent._src.core.elementary import Numbers
from jxent._src.loss_fns import sigmoid
from jxent._src.run import entry
from jxent._src.run.entry import Logits
from jxent._src.run.reduction import Reduction
from jxent._src.sharding.class_axis import ClassAxis


def sigmoid_cross_entropy(
    multi_class_labels: Real[ArrayLike, "*shape"] | Bool[ArrayLike, "*shape"],
    logits: Float[ArrayLike, "*shape"],
    weights: Numbers = 1.0,
    label_smoothing: float = 0.0,
    *,
    pos_weight: Numbers = 1.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    negative_focusing: float | None = None,
    mean_over: Literal["elements", "examples"] = "elements",
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."]:
    r"""Sigmoid cross-entropy, in nats, of independent classes, weighted and reduced.

    $$\ell = (1 - z')\,\mathrm{softplus}(x) + q z'\,\mathrm{softplus}(-x), \qquad
    z' = z (1 - s) + s / 2$$

    for every class and example, with labels $z$, logits $x$, $q$ = `pos_weight`, $s$ =
    `label_smoothing`; then multiplied by `weights` and reduced.

    Args:
      multi_class_labels: Probability that the class is present, in the logits' shape and any real
        dtype; usually 0 or 1.
      logits: Log-odds. At +-inf the loss is the limit: 0 where the label agrees, else inf.
      weights: A number, or an array of the logits' rank with each dimension 1 or equal to theirs.
        Where it is 0 the element takes no part. Differentiable.
      label_smoothing: The share s, in [0, 1], by which labels move towards 1/2.
      pos_weight: The factor q on positive labels: a number, or an array that broadcasts to the
        logits, `[classes]` for one a class. Differentiable.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      focusing: A power g >= 0: each label's term is multiplied by (1 - p)^g, p the probability that
        is given to what the label says, so that well classified ones count little.
      negative_focusing: Another power for the term of negative labels, 1 - z; None for that of
        `focusing`.
      mean_over: What a mean counts. "elements": every class of every example, as TensorFlow
        does. "examples": every example, whose classes are summed; the last axis of the logits is
        that of the classes, and weights have one dimension of 1 there. A sum is over both.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction`, its value, or `"mean"` or `"sum"`.

    Returns:
      A scalar, or for `Reduction.NONE` an array of the logits' shape, in float32 at least.

    Raises:
      TypeError: `logits` is not floating, labels, `weights` or `pos_weight` are not real, or
        an option is not a Python value.
      ValueError: A required array is None, the shapes of labels and logits differ, `weights` or
        `pos_weight` do not fit them or are None, an option is out of its range, or `reduction` is
        unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> sigmoid_cross_entropy([[1, 0]], jnp.array([[0.0, 2.0]]))
      Array(1.4100376, dtype=float32)

    References:
      TensorFlow, `tf.compat.v1.losses.sigmoid_cross_entropy`.
    """
    logits = check.floating("logits", logits)
    labels = check_labels.castable_labels(
        "multi_class_labels", multi_class_labels, logits.shape, logits.dtype
    )
    factor = check.pos_weight(pos_weight, logits.shape, logits.dtype)
    loss_fn = sigmoid.Sigmoid(
        classes=ClassAxis(None),
        label_smoothing=label_smoothing,
        logit_softcap=logit_softcap,
        focusing=focusing,
        negative_focusing=negative_focusing,
    )
    over = check_weights.mean_over(mean_over)
    data = Logits(labels, logits, factor)
    with check.scope(scope, "sigmoid_cross_entropy", argument="scope"):
        return entry.reduced(loss_fn, weights, reduction, data, mean_over=over)


def sparse_sigmoid_cross_entropy(
    labels: Integer[ArrayLike, "*batch ids"],
    logits: Float[ArrayLike, "*batch classes"],
    weights: Numbers = 1.0,
    label_smoothing: float = 0.0,
    *,
    pos_weight: Numbers = 1.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    negative_focusing: float | None = None,
    axis_name: str | None = None,
    mean_over: Literal["elements", "examples"] = "elements",
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."]:
    r"""Sigmoid cross-entropy, in nats, from ids of the positive classes, weighted and reduced.

    $$\ell = \sum_j (1 - z_j)\,\mathrm{softplus}(x_j) + q_j z_j\,\mathrm{softplus}(-x_j)$$

    for every example, summed over its classes, where $z_j$ is 1 for the classes that are listed and
    0 for all others, moved towards 1/2 by `label_smoothing`, and $q$ = `pos_weight`; then
    multiplied by `weights` and reduced. No array of dense labels is built.

    Args:
      labels: Ids of the positive classes, in [0, classes), in any order. A negative id is padding,
        an id that appears twice counts once, and one that is too large makes its example NaN unless
        its weight is 0.
      logits: Log-odds, classes last. At +-inf the loss is the limit: 0 where the label agrees, else
        inf.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1 or
        equal to the losses', or that with a trailing 1. Where it is 0 the example takes no part.
        Differentiable.
      label_smoothing: The share s, in [0, 1], by which labels move towards 1/2.
      pos_weight: The factor q on positive labels: a number, or an array that broadcasts to the
        logits, `[classes]` for one a class. Differentiable.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      focusing: A power g >= 0: each label's term is multiplied by (1 - p)^g, p the probability that
        is given to what the label says, so that well classified ones count little.
      negative_focusing: Another power for the term of negative labels, 1 - z; None for that of
        `focusing`.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        The reduction is over this chip's examples: for a mean over all of them take `Reduction.SUM`
        and divide by a `psum` of the count. None: the classes are whole, or split by `jit` alone.
      mean_over: What a mean counts. "elements": every class of every example, as in
        `sigmoid_cross_entropy` of dense labels. "examples": every example, whose classes are
        summed. A sum is over both.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction`, its value, or `"mean"` or `"sum"`.

    Returns:
      A scalar, or for `Reduction.NONE` an array `[*batch]`, in float32 at least.

    Raises:
      TypeError: `labels` is not integer, `logits` is not floating, `weights` or `pos_weight` are
        not real, or an option is not a Python value.
      ValueError: A required array is None, `labels` is not `[*batch, ids]`, `weights` or
        `pos_weight` do not fit or are None, an option is out of its range, or `reduction` is
        unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> sparse_sigmoid_cross_entropy([[3, 1], [2, -1]], jnp.zeros((2, 5)))
      Array(0.6931472, dtype=float32)

    References:
      `jxent.sparse_sigmoid_cross_entropy_with_logits`.
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
    over = check_weights.mean_over(mean_over)
    data = Logits(labels, logits, factor)
    with check.scope(scope, "sparse_sigmoid_cross_entropy", argument="scope"):
        return entry.reduced(loss_fn, weights, reduction, data, mean_over=over)
