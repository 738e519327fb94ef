"""One loss per example from the output projection, without materializing the logits."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from jxent._src.checks import check, check_labels, check_weights
from jxent._src.core.elementary import Bias, Ids, Numbers
from jxent._src.core.kernel import Transposed
from jxent._src.loss_fns import sigmoid, softmax
from jxent._src.loss_fns.excluded import with_excluded
from jxent._src.projection.matmuls import Operands
from jxent._src.run import entry
from jxent._src.sharding.class_axis import ClassAxis


def linear_sparse_softmax_cross_entropy(
    *,
    labels: Ids,
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    bias: Bias | None = None,
    label_weights: Numbers | None = None,
    excluded: Ids | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    block_size: int | None = None,
    class_block_size: int | None = None,
    axis_name: str | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""Softmax cross-entropy of class ids per example, in nats, from the output projection.

    $$\ell = \mathrm{logsumexp}(x) - \sum_j z_j x_j + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z_j = (1 - s)\,[j = y] + s / C$$

    with class $y$, $\zeta$ = `z_loss`, $s$ = `label_smoothing`, for the logits
    $x$ = `inputs @ kernel + bias`, which never exist as a whole.

    Args:
      labels: Class ids in [0, classes), `[*batch]`, or `[*batch, ids]` with `label_weights`. Any
        other id makes its example's loss and gradient NaN.
      inputs: What the projection is applied to, features last.
      kernel: The output projection, in the inputs' dtype, or in float32 beside narrower inputs.
        A table `[classes, features]`, as of an embedding, is `jxent.Transposed(table)`.
        Products are in the inputs' dtype, accumulated in float32 at least; the gradient of a
        float32 kernel is rounded to that dtype once per block.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
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
      class_block_size: Classes per block, in place of examples: the kernel's gradient is written
        once. None, where `block_size` is None too, leaves it to shapes and platform.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        None: the classes are whole, or split by `jit` alone.
      mask: Which examples take part, `[*batch]`; None for all. Where it is False the loss is
        exactly 0 and has no derivative, whatever stands in the arrays.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, `[*batch]`, in float32 at least. Reverse mode computes each block of
      logits a second time; `jxent.losses.linear_sparse_softmax_cross_entropy` does not.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes do not fit, `labels` is not
        integer, `mask` is not boolean, or an option is not a Python value.
      ValueError: A required array is None, the shapes do not fit together as above, `labels` is not
        `[*batch]`, or `[*batch, ids]` as `label_weights` are, `mask` does not fit, or an option is
        out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> linear_sparse_softmax_cross_entropy(
      ...     labels=[1, 0],
      ...     inputs=jnp.ones((2, 3)), kernel=jnp.zeros((3, 4)))
      Array([1.3862944, 1.3862944], dtype=float32)

    References:
      Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024, for the problem;
      blocks of examples rather than tiles of classes: PyTorch, `linear_cross_entropy`.
    """
    inputs, kernel, bias, shape = check.projection(inputs, kernel, bias)
    targets = check_labels.class_labels(labels, label_weights, shape, len(shape) - 1, inputs.dtype)
    loss_fn = softmax.of_ids(
        targets,
        classes=ClassAxis(-1, check.axis_name(axis_name)),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        focusing=focusing,
    )
    sizes = check.block_sizes(block_size, class_block_size)
    out = check_labels.excluded(excluded, shape, len(shape) - 1)
    data = Operands(with_excluded(targets, out), inputs, kernel, bias)
    chosen = check_weights.mask(mask, shape[:-1])
    with check.scope(name, "linear_sparse_softmax_cross_entropy"):
        return entry.each(loss_fn, data, sizes, chosen)


def linear_softmax_cross_entropy(
    *,
    labels: Float[ArrayLike, "*batch classes"],
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    bias: Bias | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    block_size: int | None = None,
    axis_name: str | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""Softmax cross-entropy of dense labels per example, in nats, from the output projection.

    $$\ell = \sum_j z'_j (\mathrm{logsumexp}(x) - x_j) + \zeta\,\mathrm{logsumexp}(x)^2, \qquad
    z'_j = z_j (1 - s) + s / C$$

    with labels $z$, $\zeta$ = `z_loss`, $s$ = `label_smoothing`, for the logits
    $x$ = `inputs @ kernel + bias`, which never exist as a whole.

    Args:
      labels: A weight for every class, in the inputs' dtype or float32; usually a distribution, but
        nothing has to sum to 1. Differentiable.
      inputs: What the projection is applied to, features last.
      kernel: The output projection, in the inputs' dtype, or in float32 beside narrower inputs.
        A table `[classes, features]`, as of an embedding, is `jxent.Transposed(table)`.
        Products are in the inputs' dtype, accumulated in float32 at least; the gradient of a
        float32 kernel is rounded to that dtype once per block.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
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
        `check_vma=True`. None: the classes are whole, or split by `jit` alone.
      mask: Which examples take part, `[*batch]`; None for all. Where it is False the loss is
        exactly 0 and has no derivative, whatever stands in the arrays.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, `[*batch]`, in float32 at least. Reverse mode computes each block of
      logits a second time; `jxent.losses.linear_softmax_cross_entropy` does not.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes do not fit, `labels` has another
        dtype than `inputs` and is not float32, `mask` is not boolean, or an option is not a Python
        value.
      ValueError: A required array is None, the shapes do not fit together as above, `labels` is not
        `[*batch, classes]`, `mask` does not fit, or an option is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> linear_softmax_cross_entropy(
      ...     labels=jnp.full((2, 4), 0.25),
      ...     inputs=jnp.ones((2, 3)), kernel=jnp.zeros((3, 4)))
      Array([1.3862944, 1.3862944], dtype=float32)

    References:
      Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024, for the problem;
      blocks of examples rather than tiles of classes: PyTorch, `linear_cross_entropy`.
    """
    inputs, kernel, bias, shape = check.projection(inputs, kernel, bias)
    labels = check_labels.dense_labels(labels, shape, inputs.dtype, "inputs")
    loss_fn = softmax.Softmax(
        classes=ClassAxis(-1, check.axis_name(axis_name)),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
    )
    sizes = check.block_sizes(block_size)
    data = Operands(labels, inputs, kernel, bias)
    chosen = check_weights.mask(mask, shape[:-1])
    with check.scope(name, "linear_softmax_cross_entropy"):
        return entry.each(loss_fn, data, sizes, chosen)


def linear_sparse_sigmoid_cross_entropy(
    *,
    labels: Integer[ArrayLike, "*batch ids"],
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    bias: Bias | None = None,
    pos_weight: Numbers = 1.0,
    label_smoothing: float = 0.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    negative_focusing: float | None = None,
    block_size: int | None = None,
    class_block_size: int | None = None,
    axis_name: str | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""Sigmoid cross-entropy of lists of class ids per example, in nats, from a projection.

    $$\ell = \sum_j (1 - z_j)\,\mathrm{softplus}(x_j) + q_j z_j\,\mathrm{softplus}(-x_j)$$

    where $z_j$ is 1 for the classes that are listed and 0 for all others, moved towards 1/2 by
    `label_smoothing`, and $q$ = `pos_weight`, for the logits
    $x$ = `inputs @ kernel + bias`, which never exist as a whole.

    Args:
      labels: Ids of the positive classes, in [0, classes), in any order. A negative id is padding,
        an id that appears twice counts once, and one that is too large makes its example's loss and
        gradient NaN.
      inputs: What the projection is applied to, features last.
      kernel: The output projection, in the inputs' dtype, or in float32 beside narrower inputs.
        A table `[classes, features]`, as of an embedding, is `jxent.Transposed(table)`.
        Products are in the inputs' dtype, accumulated in float32 at least; the gradient of a
        float32 kernel is rounded to that dtype once per block.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
      pos_weight: The factor q on positive labels: a number, or `[classes]` for one a class.
        Differentiable.
      label_smoothing: The share s, in [0, 1], by which labels move towards 1/2.
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
        None: the classes are whole, or split by `jit` alone.
      mask: Which examples take part, `[*batch]`; None for all. Where it is False the loss is
        exactly 0 and has no derivative, whatever stands in the arrays.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, `[*batch]`, in float32 at least. Reverse mode computes each block of
      logits a second time; `jxent.losses.linear_sparse_sigmoid_cross_entropy` does not.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes do not fit, `labels` is not
        integer, `pos_weight` is not real, `mask` is not boolean, or an option is not a Python
        value.
      ValueError: A required array is None, the shapes do not fit together as above, `labels` is not
        `[*batch, ids]`, `pos_weight` is neither a number nor `[classes]`, `mask` does not fit, or
        an option is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> linear_sparse_sigmoid_cross_entropy(
      ...     labels=[[3, 1], [2, -1]],
      ...     inputs=jnp.ones((2, 3)), kernel=jnp.zeros((3, 5)))
      Array([3.465736, 3.465736], dtype=float32)

    References:
      Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024, for the problem;
      blocks of examples rather than tiles of classes: PyTorch, `linear_cross_entropy`.
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
    sizes = check.block_sizes(block_size, class_block_size)
    data = Operands(labels, inputs, kernel, bias, factor)
    chosen = check_weights.mask(mask, shape[:-1])
    with check.scope(name, "linear_sparse_sigmoid_cross_entropy"):
        return entry.each(loss_fn, data, sizes, chosen)


def linear_sigmoid_cross_entropy(
    *,
    labels: Float[ArrayLike, "*batch classes"],
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    bias: Bias | None = None,
    pos_weight: Numbers = 1.0,
    label_smoothing: float = 0.0,
    logit_softcap: float | None = None,
    focusing: float = 0.0,
    negative_focusing: float | None = None,
    block_size: int | None = None,
    class_block_size: int | None = None,
    axis_name: str | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""Sigmoid cross-entropy per example, in nats, summed over classes, from the output projection.

    $$\ell = \sum_j (1 - z_j)\,\mathrm{softplus}(x_j) + q_j z_j\,\mathrm{softplus}(-x_j)$$

    with labels $z$, moved towards 1/2 by `label_smoothing`, and $q$ = `pos_weight`, for the logits
    $x$ = `inputs @ kernel + bias`, which never exist as a whole.

    Args:
      labels: Probability that the class is present, in the inputs' dtype or float32; usually 0 or
        1. Differentiable.
      inputs: What the projection is applied to, features last.
      kernel: The output projection, in the inputs' dtype, or in float32 beside narrower inputs.
        A table `[classes, features]`, as of an embedding, is `jxent.Transposed(table)`.
        Products are in the inputs' dtype, accumulated in float32 at least; the gradient of a
        float32 kernel is rounded to that dtype once per block.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
      pos_weight: The factor q on positive labels: a number, or `[classes]` for one a class.
        Differentiable.
      label_smoothing: The share s, in [0, 1], by which labels move towards 1/2.
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
        `check_vma=True`. None: the classes are whole, or split by `jit` alone.
      mask: Which examples take part, `[*batch]`; None for all. Where it is False the loss is
        exactly 0 and has no derivative, whatever stands in the arrays.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, `[*batch]`, in float32 at least. Reverse mode computes each block of
      logits a second time; `jxent.losses.linear_sigmoid_cross_entropy` does not.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes do not fit, `labels` has another
        dtype than `inputs` and is not float32, `pos_weight` is not real, `mask` is not boolean, or
        an option is not a Python value.
      ValueError: A required array is None, the shapes do not fit together as above, `labels` is not
        `[*batch, classes]`, `pos_weight` is neither a number nor `[classes]`, `mask` does not fit,
        or an option is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> linear_sigmoid_cross_entropy(
      ...     labels=jnp.zeros((2, 5)),
      ...     inputs=jnp.ones((2, 3)), kernel=jnp.zeros((3, 5)))
      Array([3.465736, 3.465736], dtype=float32)

    References:
      Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024, for the problem;
      blocks of examples rather than tiles of classes: PyTorch, `linear_cross_entropy`.
    """
    inputs, kernel, bias, shape = check.projection(inputs, kernel, bias)
    labels = check_labels.dense_labels(labels, shape, inputs.dtype, "inputs")
    factor = check.class_weight(pos_weight, shape, inputs.dtype)
    loss_fn = sigmoid.Sigmoid(
        classes=ClassAxis(-1, check.axis_name(axis_name)),
        label_smoothing=label_smoothing,
        logit_softcap=logit_softcap,
        focusing=focusing,
        negative_focusing=negative_focusing,
    )
    sizes = check.block_sizes(block_size, class_block_size)
    data = Operands(labels, inputs, kernel, bias, factor)
    chosen = check_weights.mask(mask, shape[:-1])
    with check.scope(name, "linear_sigmoid_cross_entropy"):
        return entry.each(loss_fn, data, sizes, chosen)
