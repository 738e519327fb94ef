"""Reduced softmax cross-entropy from the output projection."""

from typing import Literal, Unpack, overload

from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jxent._src.api.reduced.overload_options import LinearSoftmaxOptions, LinearSparseSoftmaxOptions
from jxent._src.checks import check, check_labels
from jxent._src.core.elementary import Bias, Dense, Ids, Numbers
from jxent._src.core.kernel import Transposed
from jxent._src.loss_fns import softmax
from jxent._src.loss_fns.excluded import with_excluded
from jxent._src.projection.matmuls import Operands
from jxent._src.run import entry
from jxent._src.run.reduction import Reduction, SoftmaxAux
from jxent._src.sharding.class_axis import ClassAxis


@overload
def linear_sparse_softmax_cross_entropy(
    labels: Ids,
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    *,
    has_aux: Literal[False] = ...,
    **options: Unpack[LinearSparseSoftmaxOptions],
) -> Float[Array, "..."]: ...


@overload
def linear_sparse_softmax_cross_entropy(
    labels: Ids,
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    *,
    has_aux: Literal[True],
    **options: Unpack[LinearSparseSoftmaxOptions],
) -> tuple[Float[Array, ""], SoftmaxAux]: ...


def linear_sparse_softmax_cross_entropy(
    labels: Ids,
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    *,
    bias: Bias | None = None,
    weights: Numbers = 1.0,
    label_weights: Numbers | None = None,
    excluded: Ids | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    block_size: int | None = None,
    class_block_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."] | tuple[Float[Array, ""], SoftmaxAux]:
    r"""`sparse_softmax_cross_entropy` of `inputs @ kernel + bias`, without these logits.

    $$\ell = \mathrm{logsumexp}(x) - \sum_j z_j x_j + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z_j = (1 - s)\,[j = y] + s / C$$

    with class $y$, $\zeta$ = `z_loss`, $s$ = `label_smoothing`, for the logits
    $x$; one number an example, multiplied by `weights` and reduced. Value and both gradients
    take three matrix products, the value alone one, and two where `kernel` or `inputs` is frozen.

    Args:
      labels: Class ids in [0, classes), `[*batch]` or `[*batch, 1]`; `[*batch, ids]` with
        `label_weights`. Any other id makes its example NaN unless its weight is 0:
        `weights=labels >= 0` ignores padding.
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
      label_weights: A weight for each of several ids per example, with labels `[*batch, ids]`: the
        loss is that of dense labels with these weights, which need not sum to 1. A negative id is
        padding, one that appears twice adds up. Differentiable. Not with `focusing`.
      excluded: Lists `[*batch, ids]` of classes that take no part in that example, as at -inf:
        accidental hits, known positives. A negative id is padding, one that appears twice counts
        once, one that is too large makes its example NaN. The loss of an excluded label is inf.
      label_smoothing: The share s of the labels, in [0, 1], that is spread evenly over the C
        classes that are not at -inf.
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c), after the bias. A
        class at -inf stays ruled out.
      focusing: A power g >= 0: the cross-entropy is multiplied by (1 - p)^g, p the probability of
        the label, so that well classified examples count little; z-loss is not. Not with
        `label_smoothing`.
      block_size: Examples per block. Smaller blocks hold fewer logits, larger ones make faster
        products. None takes 2^25 / classes, and at least features / 2: adding to the kernel's
        gradient passes over it once per block. Under automatic sharding the shapes seen are the
        global ones; pass it there.
      class_block_size: Classes per block, in place of examples: after the losses each block has its
        gradients, a product more, but the kernel's gradient is written once. None, where
        `block_size` is None too, leaves it to shapes and platform.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        The reduction is over this chip's examples: for a mean over all of them take `Reduction.SUM`
        and divide by a `psum` of the count. None: the classes are whole, or split by `jit` alone.
      has_aux: True returns `(loss, SoftmaxAux)`: beside the loss its parts and the accuracy, as
        `jax.value_and_grad(loss_fn, has_aux=True)` takes them. Not with `Reduction.NONE`.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction`, its value, or `"mean"` or `"sum"`. `NONE` costs one product more
        in reverse mode.

    Returns:
      A scalar, or for `Reduction.NONE` an array `[*batch]`, in float32 at least.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes do not fit, `labels` is not
        integer, `weights` are not real, or an option is not a Python value.
      ValueError: A required array is None, the shapes do not fit together as above, `labels` is not
        `[*batch]`, or `[*batch, ids]` as `label_weights` are, `weights` do not fit the losses or
        are None, an option is out of its range, or `reduction` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> linear_sparse_softmax_cross_entropy(
      ...     [1, 0], jnp.ones((2, 3)), jnp.zeros((3, 4)))
      Array(1.3862944, dtype=float32)

    References:
      `jxent.linear_sparse_softmax_cross_entropy`.
    """
    inputs, kernel, bias, shape = check.projection(inputs, kernel, bias)
    targets = check_labels.class_labels(
        labels, label_weights, shape, len(shape) - 1, inputs.dtype, trailing_one=True
    )
    loss_fn = softmax.of_ids(
        targets,
        classes=ClassAxis(-1, check.axis_name(axis_name)),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        focusing=focusing,
        has_aux=check.flag("has_aux", has_aux),
    )
    out = check_labels.excluded(excluded, shape, len(shape) - 1)
    data = Operands(with_excluded(targets, out), inputs, kernel, bias)
    sizes = check.block_sizes(block_size, class_block_size)
    with check.scope(scope, "linear_sparse_softmax_cross_entropy", argument="scope"):
        return entry.reduced(loss_fn, weights, reduction, data, sizes)


@overload
def linear_softmax_cross_entropy(
    labels: Dense,
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    *,
    has_aux: Literal[False] = ...,
    **options: Unpack[LinearSoftmaxOptions],
) -> Float[Array, "..."]: ...


@overload
def linear_softmax_cross_entropy(
    labels: Dense,
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    *,
    has_aux: Literal[True],
    **options: Unpack[LinearSoftmaxOptions],
) -> tuple[Float[Array, ""], SoftmaxAux]: ...


def linear_softmax_cross_entropy(
    labels: Dense,
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    *,
    bias: Bias | None = None,
    weights: Numbers = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    block_size: int | None = None,
    axis_name: str | None = None,
    has_aux: bool = False,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."] | tuple[Float[Array, ""], SoftmaxAux]:
    r"""`softmax_cross_entropy` of `inputs @ kernel + bias`, without these logits.

    $$\ell = \sum_j z'_j (\mathrm{logsumexp}(x) - x_j) + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z'_j = z_j (1 - s) + s / C$$

    with labels $z$, $\zeta$ = `z_loss`, $s$ = `label_smoothing`, for the logits
    $x$; one number an example, multiplied by `weights` and reduced. Value and both gradients
    take three matrix products, the value alone one, and two where `kernel` or `inputs` is frozen.

    Args:
      labels: A weight for every class, in any real dtype; usually a distribution, but nothing has
        to sum to 1. Differentiable.
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
      label_smoothing: The share s of the labels, in [0, 1], that is spread evenly over the C
        classes that are not at -inf.
      z_loss: The factor on logsumexp squared, which keeps logits from drifting; >= 0.
      logit_softcap: A positive number c: the logits become c tanh(logits / c), after the bias. A
        class at -inf stays ruled out.
      block_size: Examples per block. Smaller blocks hold fewer logits, larger ones make faster
        products. None takes 2^25 / classes, and at least features / 2: adding to the kernel's
        gradient passes over it once per block. Under automatic sharding the shapes seen are the
        global ones; pass it there.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; labels are split like the logits. Gradients taken inside need shard_map's default
        `check_vma=True`. The reduction is over this chip's examples: for a mean over all of them
        take `Reduction.SUM` and divide by a `psum` of the count. None: the classes are whole, or
        split by `jit` alone.
      has_aux: True returns `(loss, SoftmaxAux)`: beside the loss its parts and the accuracy, as
        `jax.value_and_grad(loss_fn, has_aux=True)` takes them. Not with `Reduction.NONE`.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction`, its value, or `"mean"` or `"sum"`. `NONE` costs one product more
        in reverse mode.

    Returns:
      A scalar, or for `Reduction.NONE` an array `[*batch]`, in float32 at least.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes do not fit, `labels` is not
        real, `weights` are not real, or an option is not a Python value.
      ValueError: A required array is None, the shapes do not fit together as above, `labels` is not
        `[*batch, classes]`, `weights` do not fit the losses or are None, an option is out of its
        range, or `reduction` is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> linear_softmax_cross_entropy(
      ...     jnp.full((2, 4), 0.25), jnp.ones((2, 3)), jnp.zeros((3, 4)))
      Array(1.3862944, dtype=float32)

    References:
      `jxent.linear_softmax_cross_entropy`.
    """
    inputs, kernel, bias, shape = check.projection(inputs, kernel, bias)
    labels = check_labels.castable_labels("labels", labels, shape, inputs.dtype)
    loss_fn = softmax.Softmax(
        classes=ClassAxis(-1, check.axis_name(axis_name)),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        has_aux=check.flag("has_aux", has_aux),
    )
    data = Operands(labels, inputs, kernel, bias)
    sizes = check.block_sizes(block_size)
    with check.scope(scope, "linear_softmax_cross_entropy", argument="scope"):
        return entry.reduced(loss_fn, weights, reduction, data, sizes)
