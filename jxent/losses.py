"""The scalar that a training step differentiates: weighted, smoothed, reduced.

These are the losses of TensorFlow 1's `tf.losses` (`tf.compat.v1.losses`), under their names
and with their meaning, as pure functions. TensorFlow's `loss_collection` is missing on purpose:
it adds the loss to a global list, and a pure function has none. Add the losses up where they
are computed; `scope` names the computation in profiles (`jax.named_scope`).

A weight of 0 takes an element out altogether. It adds exactly 0 to the loss and to every
derivative, even where its own loss is inf or NaN, so `weights=labels >= 0` ignores padding:

>>> labels = jnp.array([2, 0, -1])  # the last is padding
>>> logits = jnp.zeros((3, 4))
>>> sparse_softmax_cross_entropy(labels, logits, weights=labels >= 0)
Array(1.3862944, dtype=float32)
"""

from enum import Enum
from functools import partial, reduce
from math import prod
from numbers import Real

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jxent import _blocks, _checks, _derivative
from jxent._attempt import own_constants
from jxent._sigmoid import Sigmoid, SigmoidSum, SparseSigmoid
from jxent._softmax import Softmax, SparseSoftmax
from jxent._widen import computing_dtype, widen


class Reduction(str, Enum):  # noqa: UP042 - as TensorFlow users know it, str() included
    """What becomes of the losses l and their weights w, broadcast to l. No elements give 0."""

    NONE = "none"
    """w l: nothing is reduced."""

    SUM = "weighted_sum"
    """sum(w l)."""

    MEAN = "weighted_mean"
    """sum(w l) / sum(w)."""

    SUM_OVER_BATCH_SIZE = "weighted_sum_over_batch_size"
    """sum(w l) / number of elements of l."""

    SUM_BY_NONZERO_WEIGHTS = "weighted_sum_by_nonzero_weights"
    """sum(w l) / number of elements with w != 0."""

    SUM_OVER_NONZERO_WEIGHTS = SUM_BY_NONZERO_WEIGHTS
    """TensorFlow's older name of the same."""


def sigmoid_cross_entropy(
    multi_class_labels: Float[ArrayLike, "*batch classes"],
    logits: Float[ArrayLike, "*batch classes"],
    weights: Float[ArrayLike, "..."] = 1.0,
    label_smoothing: float = 0.0,
    *,
    pos_weight: Float[ArrayLike, "..."] = 1.0,
    logit_softcap: float | None = None,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."]:
    r"""Sigmoid cross-entropy, in nats, of independent classes, weighted and reduced.

    $$\ell = (1 - z')\,\mathrm{softplus}(x) + q z'\,\mathrm{softplus}(-x), \qquad
    z' = z (1 - s) + s / 2$$

    for every class and example, with labels $z$, logits $x$, $q$ = `pos_weight`, $s$ =
    `label_smoothing`; then multiplied by `weights` and reduced.

    Args:
      multi_class_labels: Probability that the class is present, in the logits' shape and any
        real dtype; usually 0 or 1.
      logits: Log-odds. At +-inf the loss is the limit: 0 where the label agrees, else inf.
      weights: A number, or an array of the logits' rank with each dimension 1 or equal to
        theirs. Where it is 0 the element takes no part. Differentiable.
      label_smoothing: The share s, in [0, 1], by which labels move towards 1/2.
      pos_weight: The factor q on positive labels: a number, or an array that broadcasts to the
        logits, `[classes]` for one a class. Differentiable.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction` or its value, e.g. `"weighted_mean"`.

    Returns:
      A scalar in the logits' dtype, or for `Reduction.NONE` an array of their shape. Losses,
      weights and reduction are float32 at least, rounded once at the end.

    Raises:
      TypeError: `logits` is not floating, labels, `weights` or `pos_weight` are not real, or
        an option is not a Python value.
      ValueError: The shapes of labels and logits differ, `weights` or `pos_weight` do not fit
        them, `weights` is None, `label_smoothing` or `logit_softcap` is out of its range, or
        `reduction` is unknown.

    Examples:
      >>> sigmoid_cross_entropy([[1, 0]], jnp.array([[0.0, 2.0]]))
      Array(1.4100376, dtype=float32)

    References:
      TensorFlow, `tf.compat.v1.losses.sigmoid_cross_entropy`.
    """
    logits = _checks.floating("logits", logits)
    labels = _checks.castable_labels(
        "multi_class_labels", multi_class_labels, logits.shape, logits.dtype
    )
    factor = _checks.pos_weight(pos_weight, logits.shape, logits.dtype)
    member = Sigmoid(
        label_smoothing=_checks.label_smoothing(label_smoothing),
        logit_softcap=_checks.logit_softcap(logit_softcap, logits.dtype),
    )
    with _checks.scope(scope, "sigmoid_cross_entropy", argument="scope"):
        return _checked_and_reduced(member, weights, reduction, labels, logits, factor)


def softmax_cross_entropy(
    onehot_labels: Float[ArrayLike, "*batch classes"],
    logits: Float[ArrayLike, "*batch classes"],
    weights: Float[ArrayLike, "..."] = 1.0,
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    axis_name: str | None = None,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."]:
    r"""Softmax cross-entropy, in nats, of exclusive classes, weighted and reduced.

    $$\ell = \sum_j z'_j (\mathrm{logsumexp}(x) - x_j) + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z'_j = z_j (1 - s) + s / C$$

    for every example, with labels $z$, logits $x$, $\zeta$ = `z_loss`, $s$ =
    `label_smoothing`; then multiplied by `weights` and reduced.

    Args:
      onehot_labels: A weight for every class, in the logits' shape and any real dtype; usually
        a distribution, but nothing has to sum to 1.
      logits: Unnormalised log-probabilities, classes last. -inf rules a class out; several
        +inf share the probability equally. A row without a class left is NaN.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1
        or equal to the losses', or that with a trailing 1. Where it is 0 the example takes no
        part. Differentiable.
      label_smoothing: The share s of the labels, in [0, 1], that is spread evenly over the C
        classes that are not at -inf.
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; labels are split like the logits. Gradients taken inside need shard_map's default
        `check_vma=True`.
        The reduction is over this chip's examples: for a mean over all of them take
        `Reduction.SUM` and divide by a `psum` of the count.
        None: the classes are whole, or split by `jit` alone.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction` or its value, e.g. `"weighted_mean"`.

    Returns:
      A scalar in the logits' dtype, or for `Reduction.NONE` an array `[*batch]`. Losses,
      weights and reduction are float32 at least, rounded once at the end.

    Raises:
      TypeError: `logits` is not floating, labels or `weights` are not real, or an option is
        not a Python value.
      ValueError: The shapes of labels and logits differ, `weights` do not fit the losses or
        are None, an option is out of its range, or `reduction` is unknown.

    Examples:
      >>> softmax_cross_entropy([[0, 1]], jnp.array([[0.0, 2.0]]))
      Array(0.126928, dtype=float32)

    References:
      TensorFlow, `tf.compat.v1.losses.softmax_cross_entropy`.
    """
    logits = _checks.floating("logits", logits)
    axis = _checks.axis(-1, logits)
    labels = _checks.castable_labels("onehot_labels", onehot_labels, logits.shape, logits.dtype)
    member = Softmax(
        classes=_checks.classes(axis, axis_name),
        label_smoothing=_checks.label_smoothing(label_smoothing),
        z_loss=_checks.z_loss(z_loss),
        logit_softcap=_checks.logit_softcap(logit_softcap, logits.dtype),
    )
    with _checks.scope(scope, "softmax_cross_entropy", argument="scope"):
        return _checked_and_reduced(member, weights, reduction, labels, logits)


def sparse_softmax_cross_entropy(
    labels: Integer[ArrayLike, "*batch"],
    logits: Float[ArrayLike, "*batch classes"],
    weights: Float[ArrayLike, "..."] = 1.0,
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    axis_name: str | None = None,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."]:
    r"""Softmax cross-entropy, in nats, of class ids, weighted and reduced.

    $$\ell = \mathrm{logsumexp}(x) - \sum_j z_j x_j + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z_j = (1 - s)\,[j = y] + s / C$$

    for every example, with class $y$, logits $x$, $\zeta$ = `z_loss`, $s$ =
    `label_smoothing`; then multiplied by `weights` and reduced. No one-hot labels are built.

    Args:
      labels: Class ids in [0, classes), `[*batch]` or, as TensorFlow takes them, `[*batch, 1]`.
        Any other id makes its example NaN unless its weight is 0: `weights=labels >= 0`
        ignores padding.
      logits: Unnormalised log-probabilities, classes last. -inf rules a class out; several
        +inf share the probability equally. A row without a class left is NaN.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1
        or equal to the losses', or that with a trailing 1. Where it is 0 the example takes no
        part. Differentiable.
      label_smoothing: The share s of the label, in [0, 1], that is spread evenly over the C
        classes that are not at -inf. (TensorFlow's function of this name has no smoothing.)
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        The reduction is over this chip's examples: for a mean over all of them take
        `Reduction.SUM` and divide by a `psum` of the count.
        None: the classes are whole, or split by `jit` alone.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction` or its value, e.g. `"weighted_mean"`.

    Returns:
      A scalar in the logits' dtype, or for `Reduction.NONE` an array `[*batch]`. Losses,
      weights and reduction are float32 at least, rounded once at the end.

    Raises:
      TypeError: `labels` is not integer, `logits` is not floating, `weights` are not real, or
        an option is not a Python value.
      ValueError: `labels.shape` is not that of `logits` without the classes, `weights` do not
        fit the losses or are None, an option is out of its range, or `reduction` is unknown.

    Examples:
      >>> sparse_softmax_cross_entropy([1, 0], jnp.zeros((2, 4)))
      Array(1.3862944, dtype=float32)

    References:
      TensorFlow, `tf.compat.v1.losses.sparse_softmax_cross_entropy`.
    """
    logits = _checks.floating("logits", logits)
    axis = _checks.axis(-1, logits)
    labels = _checks.class_ids(labels, logits.shape, axis, trailing_one=True)
    member = SparseSoftmax(
        classes=_checks.classes(axis, axis_name),
        label_smoothing=_checks.label_smoothing(label_smoothing),
        z_loss=_checks.z_loss(z_loss),
        logit_softcap=_checks.logit_softcap(logit_softcap, logits.dtype),
    )
    with _checks.scope(scope, "sparse_softmax_cross_entropy", argument="scope"):
        return _checked_and_reduced(member, weights, reduction, labels, logits)


def sparse_sigmoid_cross_entropy(
    labels: Integer[ArrayLike, "*batch ids"],
    logits: Float[ArrayLike, "*batch classes"],
    weights: Float[ArrayLike, "..."] = 1.0,
    label_smoothing: float = 0.0,
    *,
    pos_weight: Float[ArrayLike, "..."] = 1.0,
    logit_softcap: float | None = None,
    axis_name: str | None = None,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."]:
    r"""Sigmoid cross-entropy, in nats, from ids of the positive classes, weighted and reduced.

    $$\ell = \sum_j (1 - z_j)\,\mathrm{softplus}(x_j) + q_j z_j\,\mathrm{softplus}(-x_j)$$

    for every example, summed over its classes, where $z_j$ is 1 for the classes that are listed and
    0 for all others, moved towards 1/2 by `label_smoothing`, and $q$ = `pos_weight`; then
    multiplied by `weights` and reduced. No array of dense labels is built.

    Args:
      labels: Ids of the positive classes, in [0, classes), in any order. A negative id is
        padding, an id that appears twice counts once, and one that is too large makes its
        example NaN unless its weight is 0.
      logits: Log-odds, classes last. At +-inf the loss is the limit: 0 where the label agrees,
        else inf.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1
        or equal to the losses', or that with a trailing 1. Where it is 0 the example takes no
        part. Differentiable.
      label_smoothing: The share, in [0, 1], by which labels move towards 1/2.
      pos_weight: The factor q on positive labels: a number, or an array that broadcasts to the
        logits, `[classes]` for one a class. Differentiable.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        The reduction is over this chip's examples: for a mean over all of them take
        `Reduction.SUM` and divide by a `psum` of the count.
        None: the classes are whole, or split by `jit` alone.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction` or its value, e.g. `"weighted_mean"`.

    Returns:
      A scalar in the logits' dtype, or for `Reduction.NONE` an array `[*batch]`. Losses,
      weights and reduction are float32 at least, rounded once at the end.

    Raises:
      TypeError: `labels` is not integer, `logits` is not floating, `weights` or `pos_weight` are
        not real, or an option is not a Python value.
      ValueError: `labels` is not `[*batch, ids]`, `weights` or `pos_weight` do not fit, `weights`
        is None, an option is out of its range, or `reduction` is unknown.

    Examples:
      >>> sparse_sigmoid_cross_entropy([[3, 1], [2, -1]], jnp.zeros((2, 5)))
      Array(3.465736, dtype=float32)

    References:
      `jxent.sparse_sigmoid_cross_entropy_with_logits`.
    """
    logits = _checks.floating("logits", logits)
    axis = _checks.axis(-1, logits)
    labels = _checks.id_lists(labels, logits.shape, "logits")
    factor = _checks.pos_weight(pos_weight, logits.shape, logits.dtype)
    member = SparseSigmoid(
        classes=_checks.classes(axis, axis_name),
        label_smoothing=_checks.label_smoothing(label_smoothing),
        logit_softcap=_checks.logit_softcap(logit_softcap, logits.dtype),
    )
    with _checks.scope(scope, "sparse_sigmoid_cross_entropy", argument="scope"):
        return _checked_and_reduced(member, weights, reduction, labels, logits, factor)


def linear_sparse_softmax_cross_entropy(
    labels: Integer[ArrayLike, "*batch"],
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"],
    *,
    bias: Float[ArrayLike, "classes"] | None = None,
    weights: Float[ArrayLike, "..."] = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    block_size: int | None = None,
    axis_name: str | None = None,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."]:
    r"""`sparse_softmax_cross_entropy` of `inputs @ kernel + bias`, without these logits.

    $$\ell = \mathrm{logsumexp}(x) - \sum_j z_j x_j + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z_j = (1 - s)\,[j = y] + s / C$$

    with class $y$, $\zeta$ = `z_loss`, $s$ = `label_smoothing`, for the logits
    $x$; one number an example, multiplied by `weights` and reduced. Value and both gradients
    take three matrix products, the value alone one, and two where `kernel` or `inputs` is frozen.

    Args:
      labels: Class ids in [0, classes), `[*batch]` or `[*batch, 1]`. Any other id makes its
        example NaN unless its weight is 0: `weights=labels >= 0` ignores padding.
      inputs: What the projection is applied to, features last.
      kernel: The output projection, in the inputs' dtype. Products are accumulated in float32
        at least, and so are the gradients, which come back in the operands' dtype.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1
        or equal to the losses', or that with a trailing 1. Where it is 0 the example takes no
        part. Differentiable.
      label_smoothing: The share s of the labels, in [0, 1], that is spread evenly over the C
        classes that are not at -inf.
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c), after the bias.
      block_size: Examples a block. Smaller blocks hold fewer logits, larger ones make faster
        products. None takes 2^25 / classes, and at least features / 2: adding to the kernel's
        gradient passes over it once a block. Under automatic sharding the shapes seen are the
        global ones; pass it there.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        The reduction is over this chip's examples: for a mean over all of them take
        `Reduction.SUM` and divide by a `psum` of the count.
        None: the classes are whole, or split by `jit` alone.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction` or its value, e.g. `"weighted_mean"`. `NONE` costs one product
        more in reverse mode.

    Returns:
      A scalar in float32 at least, or for `Reduction.NONE` an array `[*batch]`.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes differ, `labels` is not integer,
        `weights` are not real, or an option is not a Python value.
      ValueError: The shapes do not fit together as above, `labels` is not `[*batch]`, `weights` do
        not fit the losses or are None, an option is out of its range, or `reduction` is unknown.

    Examples:
      >>> linear_sparse_softmax_cross_entropy(
      ...     [1, 0], jnp.ones((2, 3)), jnp.zeros((3, 4)))
      Array(1.3862944, dtype=float32)

    References:
      `jxent.linear_sparse_softmax_cross_entropy`.
    """
    inputs, kernel, bias, shape = _checks.projection(inputs, kernel, bias)
    labels = _checks.class_ids(labels, shape, len(shape) - 1, trailing_one=True)
    member = SparseSoftmax(
        classes=_checks.classes(-1, axis_name),
        label_smoothing=_checks.label_smoothing(label_smoothing),
        z_loss=_checks.z_loss(z_loss),
        logit_softcap=_checks.logit_softcap(logit_softcap, inputs.dtype),
    )
    with _checks.scope(scope, "linear_sparse_softmax_cross_entropy", argument="scope"):
        return _checked_and_reduced_projection(
            member,
            weights,
            reduction,
            block_size,
            labels,
            inputs,
            kernel,
            bias,
        )


def linear_softmax_cross_entropy(
    labels: Float[ArrayLike, "*batch classes"],
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"],
    *,
    bias: Float[ArrayLike, "classes"] | None = None,
    weights: Float[ArrayLike, "..."] = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    block_size: int | None = None,
    axis_name: str | None = None,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."]:
    r"""`softmax_cross_entropy` of `inputs @ kernel + bias`, without these logits.

    $$\ell = \sum_j z'_j (\mathrm{logsumexp}(x) - x_j) + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z'_j = z_j (1 - s) + s / C$$

    with labels $z$, $\zeta$ = `z_loss`, $s$ = `label_smoothing`, for the logits
    $x$; one number an example, multiplied by `weights` and reduced. Value and both gradients
    take three matrix products, the value alone one, and two where `kernel` or `inputs` is frozen.

    Args:
      labels: A weight for every class, in any real dtype; usually a distribution, but nothing
        has to sum to 1. Differentiable.
      inputs: What the projection is applied to, features last.
      kernel: The output projection, in the inputs' dtype. Products are accumulated in float32
        at least, and so are the gradients, which come back in the operands' dtype.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1
        or equal to the losses', or that with a trailing 1. Where it is 0 the example takes no
        part. Differentiable.
      label_smoothing: The share s of the labels, in [0, 1], that is spread evenly over the C
        classes that are not at -inf.
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c), after the bias.
      block_size: Examples a block. Smaller blocks hold fewer logits, larger ones make faster
        products. None takes 2^25 / classes, and at least features / 2: adding to the kernel's
        gradient passes over it once a block. Under automatic sharding the shapes seen are the
        global ones; pass it there.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; labels are split like the logits. Gradients taken inside need shard_map's default
        `check_vma=True`.
        The reduction is over this chip's examples: for a mean over all of them take
        `Reduction.SUM` and divide by a `psum` of the count.
        None: the classes are whole, or split by `jit` alone.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction` or its value, e.g. `"weighted_mean"`. `NONE` costs one product
        more in reverse mode.

    Returns:
      A scalar in float32 at least, or for `Reduction.NONE` an array `[*batch]`.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes differ, `labels` is not real,
        `weights` are not real, or an option is not a Python value.
      ValueError: The shapes do not fit together as above, `labels` is not `[*batch, classes]`,
        `weights` do not fit the losses or are None, an option is out of its range, or `reduction`
        is unknown.

    Examples:
      >>> linear_softmax_cross_entropy(
      ...     jnp.full((2, 4), 0.25), jnp.ones((2, 3)), jnp.zeros((3, 4)))
      Array(1.3862944, dtype=float32)

    References:
      `jxent.linear_softmax_cross_entropy`.
    """
    inputs, kernel, bias, shape = _checks.projection(inputs, kernel, bias)
    labels = _checks.castable_labels("labels", labels, shape, inputs.dtype)
    member = Softmax(
        classes=_checks.classes(-1, axis_name),
        label_smoothing=_checks.label_smoothing(label_smoothing),
        z_loss=_checks.z_loss(z_loss),
        logit_softcap=_checks.logit_softcap(logit_softcap, inputs.dtype),
    )
    with _checks.scope(scope, "linear_softmax_cross_entropy", argument="scope"):
        return _checked_and_reduced_projection(
            member,
            weights,
            reduction,
            block_size,
            labels,
            inputs,
            kernel,
            bias,
        )


def linear_sparse_sigmoid_cross_entropy(
    labels: Integer[ArrayLike, "*batch ids"],
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"],
    *,
    bias: Float[ArrayLike, "classes"] | None = None,
    weights: Float[ArrayLike, "..."] = 1.0,
    label_smoothing: float = 0.0,
    pos_weight: Float[ArrayLike, "..."] = 1.0,
    logit_softcap: float | None = None,
    block_size: int | None = None,
    axis_name: str | None = None,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."]:
    r"""`sparse_sigmoid_cross_entropy` of `inputs @ kernel + bias`, without these logits.

    $$\ell = \sum_j (1 - z_j)\,\mathrm{softplus}(x_j) + q_j z_j\,\mathrm{softplus}(-x_j)$$

    where $z_j$ is 1 for the classes that are listed and 0 for all others, moved towards 1/2 by
    `label_smoothing`, and $q$ = `pos_weight`, for the logits
    $x$; one number an example, the sum over its classes, multiplied by `weights` and reduced. Value
    and both gradients take three matrix products, the value alone one, and two where `kernel` or
    `inputs` is frozen.

    Args:
      labels: Ids of the positive classes, in [0, classes), in any order. A negative id is padding,
        an id that appears twice counts once, and one that is too large makes its example's
        loss and gradient NaN.
      inputs: What the projection is applied to, features last.
      kernel: The output projection, in the inputs' dtype. Products are accumulated in float32
        at least, and so are the gradients, which come back in the operands' dtype.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1
        or equal to the losses', or that with a trailing 1. Where it is 0 the example takes no
        part. Differentiable.
      label_smoothing: The share, in [0, 1], by which labels move towards 1/2.
      pos_weight: The factor q on positive labels: a number, or `[classes]` for one a class.
        Differentiable.
      logit_softcap: A positive number c: the logits become c tanh(logits / c), after the bias.
      block_size: Examples a block. Smaller blocks hold fewer logits, larger ones make faster
        products. None takes 2^25 / classes, and at least features / 2: adding to the kernel's
        gradient passes over it once a block. Under automatic sharding the shapes seen are the
        global ones; pass it there.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        The reduction is over this chip's examples: for a mean over all of them take
        `Reduction.SUM` and divide by a `psum` of the count.
        None: the classes are whole, or split by `jit` alone.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction` or its value, e.g. `"weighted_mean"`. `NONE` costs one product
        more in reverse mode.

    Returns:
      A scalar in float32 at least, or for `Reduction.NONE` an array `[*batch]`.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes differ, `labels` is not integer,
        `weights` or `pos_weight` are not real, or an option is not a Python value.
      ValueError: The shapes do not fit together as above, `labels` is not `[*batch, ids]`,
        `weights` do not fit the losses or are None, `pos_weight` is neither a number nor
        `[classes]`, an option is out of its range, or `reduction` is unknown.

    Examples:
      >>> linear_sparse_sigmoid_cross_entropy(
      ...     [[3, 1], [2, -1]], jnp.ones((2, 3)), jnp.zeros((3, 5)))
      Array(3.465736, dtype=float32)

    References:
      `jxent.linear_sparse_sigmoid_cross_entropy`.
    """
    inputs, kernel, bias, shape = _checks.projection(inputs, kernel, bias)
    labels = _checks.id_lists(labels, shape, "inputs")
    factor = _checks.class_weight(pos_weight, shape, inputs.dtype)
    member = SparseSigmoid(
        classes=_checks.classes(-1, axis_name),
        label_smoothing=_checks.label_smoothing(label_smoothing),
        logit_softcap=_checks.logit_softcap(logit_softcap, inputs.dtype),
    )
    with _checks.scope(scope, "linear_sparse_sigmoid_cross_entropy", argument="scope"):
        return _checked_and_reduced_projection(
            member,
            weights,
            reduction,
            block_size,
            labels,
            inputs,
            kernel,
            bias,
            factor,
        )


def linear_sigmoid_cross_entropy(
    labels: Float[ArrayLike, "*batch classes"],
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"],
    *,
    bias: Float[ArrayLike, "classes"] | None = None,
    weights: Float[ArrayLike, "..."] = 1.0,
    label_smoothing: float = 0.0,
    pos_weight: Float[ArrayLike, "..."] = 1.0,
    logit_softcap: float | None = None,
    block_size: int | None = None,
    axis_name: str | None = None,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."]:
    r"""`sigmoid_cross_entropy` of `inputs @ kernel + bias`, without these logits.

    $$\ell = \sum_j (1 - z_j)\,\mathrm{softplus}(x_j) + q_j z_j\,\mathrm{softplus}(-x_j)$$

    with labels $z$, moved towards 1/2 by `label_smoothing`, and $q$ = `pos_weight`, for the logits
    $x$; one number an example, the sum over its classes, multiplied by `weights` and reduced. Value
    and both gradients take three matrix products, the value alone one, and two where `kernel` or
    `inputs` is frozen.

    Args:
      labels: Probability that the class is present, in any real dtype; usually 0 or 1.
        Differentiable.
      inputs: What the projection is applied to, features last.
      kernel: The output projection, in the inputs' dtype. Products are accumulated in float32
        at least, and so are the gradients, which come back in the operands' dtype.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1
        or equal to the losses', or that with a trailing 1. Where it is 0 the example takes no
        part. Differentiable.
      label_smoothing: The share, in [0, 1], by which labels move towards 1/2.
      pos_weight: The factor q on positive labels: a number, or `[classes]` for one a class.
        Differentiable.
      logit_softcap: A positive number c: the logits become c tanh(logits / c), after the bias.
      block_size: Examples a block. Smaller blocks hold fewer logits, larger ones make faster
        products. None takes 2^25 / classes, and at least features / 2: adding to the kernel's
        gradient passes over it once a block. Under automatic sharding the shapes seen are the
        global ones; pass it there.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; labels are split like the logits. Gradients taken inside need shard_map's default
        `check_vma=True`.
        The reduction is over this chip's examples: for a mean over all of them take
        `Reduction.SUM` and divide by a `psum` of the count.
        None: the classes are whole, or split by `jit` alone.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction` or its value, e.g. `"weighted_mean"`. `NONE` costs one product
        more in reverse mode.

    Returns:
      A scalar in float32 at least, or for `Reduction.NONE` an array `[*batch]`.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes differ, `labels` is not real,
        `weights` or `pos_weight` are not real, or an option is not a Python value.
      ValueError: The shapes do not fit together as above, `labels` is not `[*batch, classes]`,
        `weights` do not fit the losses or are None, `pos_weight` is neither a number nor
        `[classes]`, an option is out of its range, or `reduction` is unknown.

    Examples:
      >>> linear_sigmoid_cross_entropy(
      ...     jnp.zeros((2, 5)), jnp.ones((2, 3)), jnp.zeros((3, 5)))
      Array(3.465736, dtype=float32)

    References:
      `jxent.linear_sigmoid_cross_entropy`.
    """
    inputs, kernel, bias, shape = _checks.projection(inputs, kernel, bias)
    labels = _checks.castable_labels("labels", labels, shape, inputs.dtype)
    factor = _checks.class_weight(pos_weight, shape, inputs.dtype)
    member = SigmoidSum(
        classes=_checks.classes(-1, axis_name),
        label_smoothing=_checks.label_smoothing(label_smoothing),
        logit_softcap=_checks.logit_softcap(logit_softcap, inputs.dtype),
    )
    with _checks.scope(scope, "linear_sigmoid_cross_entropy", argument="scope"):
        return _checked_and_reduced_projection(
            member,
            weights,
            reduction,
            block_size,
            labels,
            inputs,
            kernel,
            bias,
            factor,
        )


def compute_weighted_loss(
    losses: Float[ArrayLike, "..."],
    weights: Float[ArrayLike, "..."] = 1.0,
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
      weights: A number, or an array of the losses' rank with each dimension 1 or equal to
        theirs; `[batch, 1]` for losses of shape `[batch]` too. Differentiable.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction` or its value, e.g. `"weighted_mean"`.

    Returns:
      A scalar in the losses' dtype, or for `Reduction.NONE` an array of their shape. Computed
      in float32 at least, rounded once.

    Raises:
      TypeError: `losses` is not floating or `weights` are not real.
      ValueError: `weights` do not fit the losses or are None, or `reduction` is unknown.

    Examples:
      >>> compute_weighted_loss(jnp.array([1.0, jnp.inf, 3.0]), jnp.array([1.0, 0.0, 2.0]))
      Array(3.5, dtype=float32)

    References:
      TensorFlow, `tf.compat.v1.losses.compute_weighted_loss`.
    """
    values = _checks.floating("losses", losses)
    masks, weights = _checked_weights(
        weights, values.shape, values.dtype, per_example=values.ndim == 1
    )
    with _checks.scope(scope, "compute_weighted_loss", argument="scope"):
        return _weighted_loss(masks, _checks.reduction(reduction, Reduction), weights, values)


def _checked_and_reduced(member, weights, reduction, labels, logits, pos_weight=None):
    per_example = member.axis is not None
    shape = logits.shape[:-1] if per_example else logits.shape
    masks, weights = _checked_weights(weights, shape, logits.dtype, per_example=per_example)
    reduction = _checks.reduction(reduction, Reduction)
    return _loss(member, masks, reduction, weights, labels, logits, pos_weight)


def _checked_and_reduced_projection(
    member, weights, reduction, block_size, labels, inputs, kernel, bias, pos_weight=None
):
    batch = inputs.shape[:-1]
    masks, weights = _checked_weights(weights, batch, inputs.dtype, per_example=True)
    reduction = _checks.reduction(reduction, Reduction)
    blocks = _blocks.cut(prod(batch), kernel.shape, _checks.block_size(block_size))
    return _projected_loss(
        member, masks, reduction, blocks, weights, labels, inputs, kernel, bias, pos_weight
    )


def _checked_weights(weights, shape, dtype, *, per_example):
    """Whether the weights can mask, and the weights: a nonzero Python number costs no mask."""
    masks = not (isinstance(weights, Real) and weights != 0)
    dtype = computing_dtype(dtype)
    return masks, _checks.weights(weights, shape, dtype, per_example=per_example)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _loss(member, masks, reduction, weights, labels, logits, pos_weight):
    data = (labels, logits, pos_weight)
    shape = logits.shape if member.axis is None else logits.shape[:-1]
    if member.axis is None and reduction is not Reduction.NONE:
        member = member.total(logits.ndim)
        if masks:
            total = _derivative.weighted_total(member, weights, *data)
        else:
            total = weights * _derivative.losses(member, True, None, *data)[0]
        return _divided(total, _count(reduction, weights, shape)).astype(logits.dtype)
    if masks:
        weighted = _derivative.weighted_losses(member, weights, *data)
    else:
        weighted = weights * _derivative.losses(member, True, None, *data)[0]
    return _reduced(reduction, weights, weighted, shape).astype(logits.dtype)


@partial(jax.jit, static_argnums=(0, 1))
def _weighted_loss(masks, reduction, weights, losses):
    values = widen(losses)
    weighted = _derivative.weigh(weights, values) if masks else weights * values
    return _reduced(reduction, weights, weighted, weighted.shape).astype(losses.dtype)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _projected_loss(
    member, masks, reduction, blocks, weights, labels, inputs, kernel, bias, pos_weight
):
    batch = inputs.shape[:-1]
    each = jnp.broadcast_to(weights, batch).reshape(-1)
    labels, inputs = _blocks.flat(labels, inputs)
    if masks:
        each, inputs = _blocks.without_broken(each, inputs)
    projection = (labels, inputs, kernel, bias, pos_weight)
    if reduction is Reduction.NONE:
        mask = each if masks else None
        values, _ = _blocks.per_example(member, blocks, mask, *projection)
        return _derivative.weigh(each, values).reshape(batch)
    # The denominator goes into the weights: dividing the loss afterwards would cost another pass
    # over the kernel's gradient.
    each = _divided(each, _count(reduction, weights, batch))
    return _blocks.total(member, blocks, masks, each, *projection)


def _reduced(reduction, weights, weighted, shape):
    if reduction is Reduction.NONE:
        return weighted
    return _divided(jnp.sum(weighted), _count(reduction, weights, shape))


def _count(reduction, weights, shape):
    """What the sum is divided by, for weights that are broadcast to losses of this shape."""
    if reduction is Reduction.SUM:
        return jnp.ones_like(weights, shape=())
    if reduction is Reduction.SUM_OVER_BATCH_SIZE:
        return _product(shape, weights)
    total = weights if reduction is Reduction.MEAN else _nonzero(weights)
    sizes = weights.shape or (1,) * len(shape)
    # Not `m == 1`, which is unknown for the symbolic dimensions of an export.
    repeated = [n for n, m in zip(shape, sizes, strict=True) if isinstance(m, int) and m == 1]
    return jnp.sum(total) * _product(repeated, weights)


def _nonzero(weights):
    """1 where a weight is not 0. A comparison would be stored by XLA:CPU before it is summed."""
    weights = jax.lax.stop_gradient(weights)  # a step function has none
    inverse, one = own_constants(weights.dtype, 1 / jnp.finfo(weights.dtype).tiny, 1.0)
    return jnp.minimum(jnp.abs(weights) * inverse, one)


def _product(sizes, like):
    """The product of sizes, in the dtype of `like`: int32 would wrap at 2^31 elements."""
    known = float(prod(n for n in sizes if isinstance(n, int)))
    symbolic = (jnp.asarray(n).astype(like.dtype) for n in sizes if not isinstance(n, int))
    return reduce(jnp.multiply, symbolic, jnp.full_like(like, known, shape=()))


def _divided(x, count):
    """The quotient, and 0 where nothing was counted."""
    return jnp.where(count == 0, 0, x / jnp.where(count == 0, 1, count))
