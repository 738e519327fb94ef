"""Reduced softmax cross-entropy from logits in memory."""

from typing import Literal, Unpack, overload

from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jxent._src.api.reduced.overload_options import SoftmaxOptions, SparseSoftmaxOptions
from jxent._src.checks import check, check_labels
from jxent._src.core.elementary import Dense, Ids, Numbers
from jxent._src.loss_fns import softmax
from jxent._src.loss_fns.excluded import with_excluded
from jxent._src.run import entry
from jxent._src.run.entry import Logits
from jxent._src.run.reduction import Reduction, SoftmaxAux
from jxent._src.sharding.class_axis import ClassAxis


@overload
def softmax_cross_entropy(
    onehot_labels: Dense,
    logits: Float[ArrayLike, "..."],
    weights: Numbers = ...,
    label_smoothing: float = ...,
    *,
    has_aux: Literal[False] = ...,
    **options: Unpack[SoftmaxOptions],
) -> Float[Array, "..."]: ...


@overload
def softmax_cross_entropy(
    onehot_labels: Dense,
    logits: Float[ArrayLike, "..."],
    weights: Numbers = ...,
    label_smoothing: float = ...,
    *,
    has_aux: Literal[True],
    **options: Unpack[SoftmaxOptions],
) -> tuple[Float[Array, ""], SoftmaxAux]: ...


def softmax_cross_entropy(
    onehot_labels: Dense,
    logits: Float[ArrayLike, "..."],
    weights: Numbers = 1.0,
    label_smoothing: float = 0.0,
    *,
    axis: int = -1,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."] | tuple[Float[Array, ""], SoftmaxAux]:
    r"""Softmax cross-entropy, in nats, of exclusive classes, weighted and reduced.

    $$\ell = \sum_j z'_j (\mathrm{logsumexp}(x) - x_j) + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z'_j = z_j (1 - s) + s / C$$

    for every example, with labels $z$, logits $x$, $\zeta$ = `z_loss`, $s$ =
    `label_smoothing`; then multiplied by `weights` and reduced.

    Args:
      onehot_labels: A weight for every class, in the logits' shape and any real dtype; usually a
        distribution, but nothing has to sum to 1.
      logits: Unnormalised log-probabilities. -inf rules a class out; several +inf
        share the probability equally. A row without a class left is NaN.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1 or
        equal to the losses', or that with a trailing 1. Where it is 0 the example takes no part.
        Differentiable.
      label_smoothing: The share s of the labels, in [0, 1], that is spread evenly over the C
        classes that are not at -inf.
      axis: The axis of `logits` that holds the classes.
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c). A class at -inf
        stays ruled out.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; labels are split like the logits. Gradients taken inside need shard_map's default
        `check_vma=True`. The reduction is over this chip's examples: for a mean over all of them
        take `Reduction.SUM` and divide by a `psum` of the count. None: the classes are whole, or
        split by `jit` alone.
      has_aux: True returns `(loss, SoftmaxAux)`: beside the loss its parts and the accuracy, as
        `jax.value_and_grad(loss_fn, has_aux=True)` takes them. Not with `Reduction.NONE`.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction`, its value, or `"mean"` or `"sum"`.

    Returns:
      A scalar, or for `Reduction.NONE` an array `[*batch]`, in float32 at least.

    Raises:
      TypeError: `logits` is not floating, labels or `weights` are not real, or an option is not a
        Python value.
      ValueError: A required array is None, the shapes of labels and logits differ, `weights` do not
        fit the losses or are None, `axis` is not an axis of `logits`, an option is out of its
        range, or `reduction` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> softmax_cross_entropy([[0, 1]], jnp.array([[0.0, 2.0]]))
      Array(0.126928, dtype=float32)

    References:
      TensorFlow, `tf.compat.v1.losses.softmax_cross_entropy`.
    """
    logits = check.floating("logits", logits)
    axis = check.axis(axis, logits)
    labels = check_labels.castable_labels(
        "onehot_labels", onehot_labels, logits.shape, logits.dtype
    )
    loss_fn = softmax.Softmax(
        classes=ClassAxis(axis, check.axis_name(axis_name)),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        has_aux=check.flag("has_aux", has_aux),
    )
    with check.scope(scope, "softmax_cross_entropy", argument="scope"):
        return entry.reduced(loss_fn, weights, reduction, Logits(labels, logits))


@overload
def sparse_softmax_cross_entropy(
    labels: Ids,
    logits: Float[ArrayLike, "..."],
    weights: Numbers = ...,
    label_smoothing: float = ...,
    *,
    has_aux: Literal[False] = ...,
    **options: Unpack[SparseSoftmaxOptions],
) -> Float[Array, "..."]: ...


@overload
def sparse_softmax_cross_entropy(
    labels: Ids,
    logits: Float[ArrayLike, "..."],
    weights: Numbers = ...,
    label_smoothing: float = ...,
    *,
    has_aux: Literal[True],
    **options: Unpack[SparseSoftmaxOptions],
) -> tuple[Float[Array, ""], SoftmaxAux]: ...


def sparse_softmax_cross_entropy(
    labels: Ids,
    logits: Float[ArrayLike, "..."],
    weights: Numbers = 1.0,
    label_smoothing: float = 0.0,
    *,
    axis: int = -1,
    label_weights: Numbers | None = None,
    excluded: Ids | None = None,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    axis_name: str | None = None,
    has_aux: bool = False,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."] | tuple[Float[Array, ""], SoftmaxAux]:
    r"""Softmax cross-entropy, in nats, of class ids, weighted and reduced.

    $$\ell = \mathrm{logsumexp}(x) - \sum_j z_j x_j + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z_j = (1 - s)\,[j = y] + s / C$$

    for every example, with class $y$, logits $x$, $\zeta$ = `z_loss`, $s$ =
    `label_smoothing`; then multiplied by `weights` and reduced. No one-hot labels are built.

    Args:
      labels: Class ids in [0, classes), `[*batch]` or, as TensorFlow takes them, `[*batch, 1]`;
        `[*batch, ids]` with `label_weights`. Any other id makes its example NaN unless its weight
        is 0: `weights=labels >= 0` ignores padding.
      logits: Unnormalised log-probabilities. -inf rules a class out; several +inf
        share the probability equally. A row without a class left is NaN.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1 or
        equal to the losses', or that with a trailing 1. Where it is 0 the example takes no part.
        Differentiable.
      label_smoothing: The share s of the labels, in [0, 1], that is spread evenly over the C
        classes that are not at -inf.
      axis: The axis of `logits` that holds the classes.
      label_weights: A weight for each of several ids per example, with labels `[*batch, ids]`: the
        loss is that of dense labels with these weights, which need not sum to 1. A negative id is
        padding, one that appears twice adds up. Differentiable. Not with `focusing`.
      excluded: Lists `[*batch, ids]` of classes that take no part in that example, as at -inf:
        accidental hits, known positives. A negative id is padding, one that appears twice counts
        once, one that is too large makes its example NaN. The loss of an excluded label is inf.
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c). A class at -inf
        stays ruled out.
      focusing: A power g >= 0: the cross-entropy is multiplied by (1 - p)^g, p the probability of
        the label, so that well classified examples count little; z-loss is not. Not with
        `label_smoothing`.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        The reduction is over this chip's examples: for a mean over all of them take `Reduction.SUM`
        and divide by a `psum` of the count. None: the classes are whole, or split by `jit` alone.
      has_aux: True returns `(loss, SoftmaxAux)`: beside the loss its parts and the accuracy, as
        `jax.value_and_grad(loss_fn, has_aux=True)` takes them. Not with `Reduction.NONE`.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction`, its value, or `"mean"` or `"sum"`.

    Returns:
      A scalar, or for `Reduction.NONE` an array `[*batch]`, in float32 at least.

    Raises:
      TypeError: `labels` is not integer, `logits` is not floating, `weights` are not real, or an
        option is not a Python value.
      ValueError: A required array is None, `labels` is not `[*batch]`, or `[*batch, ids]` as
        `label_weights` are, `weights` do not fit the losses or are None, `axis` is not an axis of
        `logits`, an option is out of its range, or `reduction` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> sparse_softmax_cross_entropy([1, 0], jnp.zeros((2, 4)))
      Array(1.3862944, dtype=float32)

    References:
      TensorFlow, `tf.compat.v1.losses.sparse_softmax_cross_entropy`, which has no smoothing.
    """
    logits = check.floating("logits", logits)
    axis = check.axis(axis, logits)
    targets = check_labels.class_labels(
        labels, label_weights, logits.shape, axis, logits.dtype, trailing_one=True
    )
    out = check_labels.excluded(excluded, logits.shape, axis)
    loss_fn = softmax.of_ids(
        targets,
        classes=ClassAxis(axis, check.axis_name(axis_name)),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        focusing=focusing,
        has_aux=check.flag("has_aux", has_aux),
    )
    with check.scope(scope, "sparse_softmax_cross_entropy", argument="scope"):
        data = Logits(with_excluded(targets, out), logits)
        return entry.reduced(loss_fn, weights, reduction, data)
