"""Reduced sigmoid cross-entropy from the output projection."""

from typing import Literal

from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jxent._src.checks import check, check_labels, check_weights
from jxent._src.core.elementary import Bias, Dense, Numbers
from jxent._src.core.kernel import Transposed
from jxent._src.loss_fns import sigmoid
from jxent._src.projection.matmuls import Operands
from jxent._src.run import entry
from jxent._src.run.reduction import Reduction
from jxent._src.sharding.class_axis import ClassAxis


def linear_sparse_sigmoid_cross_entropy(
    labels: Integer[ArrayLike, "*batch ids"],
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    *,
    bias: Bias | None = None,
    weights: Numbers = 1.0,
    label_smoothing: float = 0.0,
    pos_weight: Numbers = 1.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    negative_focusing: float | None = None,
    block_size: int | None = None,
    class_block_size: int | None = None,
    axis_name: str | None = None,
    mean_over: Literal["elements", "examples"] = "elements",
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
        an id that appears twice counts once, and one that is too large makes its example's loss and
        gradient NaN.
      inputs: What the projection is applied to, features last.
      kernel: The output projection, in the inputs' dtype, or in float32 beside narrower inputs.
        A table `[classes, features]`, as of an embedding, is `jxent.Transposed(table)`.
        Products are in the inputs' dtype, accumulated in float32 at least, and so are the
        gradients, which come back in the operands' dtypes: that of a float32 kernel unrounded, but
        for `Reduction.NONE`, where it is rounded to the inputs' dtype once per block.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1 or
        equal to the losses', or that with a trailing 1. Where it is 0 the example takes no part.
        Differentiable.
      label_smoothing: The share s, in [0, 1], by which labels move towards 1/2.
      pos_weight: The factor q on positive labels: a number, or `[classes]` for one a class.
        Differentiable.
      logit_softcap: A positive number c: the logits become c tanh(logits / c), after the bias.
      focusing: A power g >= 0: each label's term is multiplied by (1 - p)^g, p the probability that
        is given to what the label says, so that well classified ones count little.
      negative_focusing: Another power for the term of negative labels, 1 - z; None for that of
        `focusing`.
      block_size: Examples per block. Smaller blocks hold fewer logits, larger ones make faster
        products. None takes 2^25 / classes, and at least features / 2: adding to the kernel's
        gradient passes over it once per block. Under automatic sharding the shapes seen are the
        global ones; pass it there.
      class_block_size: Classes per block, in place of examples. None, where `block_size` is None
        too, takes 4 a feature and at least 1024, if there are more classes than examples: each
        block then has its losses and its gradients at once, and the kernel's gradient is written
        once.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        The reduction is over this chip's examples: for a mean over all of them take `Reduction.SUM`
        and divide by a `psum` of the count. None: the classes are whole, or split by `jit` alone.
      mean_over: What a mean counts. "elements": every class of every example, as in
        `sigmoid_cross_entropy` of dense labels. "examples": every example, whose classes are
        summed. A sum is over both.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction`, its value, or `"mean"` or `"sum"`. `NONE` costs one product more
        in reverse mode.

    Returns:
      A scalar, or for `Reduction.NONE` an array `[*batch]`, in float32 at least.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes do not fit, `labels` is not
        integer, `weights` or `pos_weight` are not real, or an option is not a Python value.
      ValueError: A required array is None, the shapes do not fit together as above, `labels` is not
        `[*batch, ids]`, `weights` do not fit the losses or are None, `pos_weight` is neither a
        number nor `[classes]`, an option is out of its range, or `reduction` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> linear_sparse_sigmoid_cross_entropy(
      ...     [[3, 1], [2, -1]], jnp.ones((2, 3)), jnp.zeros((3, 5)))
      Array(0.6931472, dtype=float32)

    References:
      `jxent.linear_sparse_sigmoid_cross_entropy`.
    """
    inputs, kernel, bias, shape = check.projection(inputs, kernel, bias)
    labels = check_labels.id_lists(labels, shape, "inputs")
    factor = check.class_weight(pos_weight, shape, inputs.dtype)
    loss_fn = sigmoid.SparseSigmoid(
        classes=ClassAxis(-1, check.axis_name(axis_name)),
        label_smoothing=label_smoothing,
        logit_softcap=logit_softcap,
        focusing=focusing,
        negative_focusing=negative_focusing,
    )
    data = Operands(labels, inputs, kernel, bias, factor)
    sizes = check.block_sizes(block_size, class_block_size)
    over = check_weights.mean_over(mean_over)
    with check.scope(scope, "linear_sparse_sigmoid_cross_entropy", argument="scope"):
        return entry.reduced(loss_fn, weights, reduction, data, sizes, over)


def linear_sigmoid_cross_entropy(
    labels: Dense,
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    *,
    bias: Bias | None = None,
    weights: Numbers = 1.0,
    label_smoothing: float = 0.0,
    pos_weight: Numbers = 1.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    negative_focusing: float | None = None,
    block_size: int | None = None,
    class_block_size: int | None = None,
    axis_name: str | None = None,
    mean_over: Literal["elements", "examples"] = "elements",
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
      kernel: The output projection, in the inputs' dtype, or in float32 beside narrower inputs.
        A table `[classes, features]`, as of an embedding, is `jxent.Transposed(table)`.
        Products are in the inputs' dtype, accumulated in float32 at least, and so are the
        gradients, which come back in the operands' dtypes: that of a float32 kernel unrounded, but
        for `Reduction.NONE`, where it is rounded to the inputs' dtype once per block.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1 or
        equal to the losses', or that with a trailing 1. Where it is 0 the example takes no part.
        Differentiable.
      label_smoothing: The share s, in [0, 1], by which labels move towards 1/2.
      pos_weight: The factor q on positive labels: a number, or `[classes]` for one a class.
        Differentiable.
      logit_softcap: A positive number c: the logits become c tanh(logits / c), after the bias.
      focusing: A power g >= 0: each label's term is multiplied by (1 - p)^g, p the probability that
        is given to what the label says, so that well classified ones count little.
      negative_focusing: Another power for the term of negative labels, 1 - z; None for that of
        `focusing`.
      block_size: Examples per block. Smaller blocks hold fewer logits, larger ones make faster
        products. None takes 2^25 / classes, and at least features / 2: adding to the kernel's
        gradient passes over it once per block. Under automatic sharding the shapes seen are the
        global ones; pass it there.
      class_block_size: Classes per block, in place of examples. None, where `block_size` is None
        too, takes 4 a feature and at least 1024, if there are more classes than examples: each
        block then has its losses and its gradients at once, and the kernel's gradient is written
        once.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; labels are split like the logits. Gradients taken inside need shard_map's default
        `check_vma=True`. The reduction is over this chip's examples: for a mean over all of them
        take `Reduction.SUM` and divide by a `psum` of the count. None: the classes are whole, or
        split by `jit` alone.
      mean_over: What a mean counts. "elements": every class of every example, as in
        `sigmoid_cross_entropy` of dense labels. "examples": every example, whose classes are
        summed. A sum is over both.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction`, its value, or `"mean"` or `"sum"`. `NONE` costs one product more
        in reverse mode.

    Returns:
      A scalar, or for `Reduction.NONE` an array `[*batch]`, in float32 at least.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes do not fit, `labels` is not
        real, `weights` or `pos_weight` are not real, or an option is not a Python value.
      ValueError: A required array is None, the shapes do not fit together as above, `labels` is not
        `[*batch, classes]`, `weights` do not fit the losses or are None, `pos_weight` is neither a
        number nor `[classes]`, an option is out of its range, or `reduction` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> linear_sigmoid_cross_entropy(
      ...     jnp.zeros((2, 5)), jnp.ones((2, 3)), jnp.zeros((3, 5)))
      Array(0.6931472, dtype=float32)

    References:
      `jxent.linear_sigmoid_cross_entropy`.
    """
    inputs, kernel, bias, shape = check.projection(inputs, kernel, bias)
    labels = check_labels.castable_labels("labels", labels, shape, inputs.dtype)
    factor = check.class_weight(pos_weight, shape, inputs.dtype)
    loss_fn = sigmoid.Sigmoid(
        classes=ClassAxis(-1, check.axis_name(axis_name)),
        label_smoothing=label_smoothing,
        logit_softcap=logit_softcap,
        focusing=focusing,
        negative_focusing=negative_focusing,
    )
    data = Operands(labels, inputs, kernel, bias, factor)
    sizes = check.block_sizes(block_size, class_block_size)
    over = check_weights.mean_over(mean_over)
    with check.scope(scope, "linear_sigmoid_cross_entropy", argument="scope"):
        return entry.reduced(loss_fn, weights, reduction, data, sizes, over)
