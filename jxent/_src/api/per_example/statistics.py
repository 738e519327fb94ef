"""What a softmax predicts of each example: what policy gradients, DPO and evaluation take."""

from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from jxent._src.checks import check, check_labels, check_weights
from jxent._src.core.elementary import Bias, Ids, Numbers
from jxent._src.core.kernel import Transposed
from jxent._src.loss_fns.excluded import with_excluded
from jxent._src.loss_fns.statistics import Predictor, SoftmaxStatistics
from jxent._src.projection.matmuls import Operands
from jxent._src.run import entry
from jxent._src.run.entry import Logits
from jxent._src.sharding.class_axis import ClassAxis


def sparse_softmax_statistics_with_logits(
    *,
    labels: Ids | None = None,
    logits: Float[ArrayLike, "..."],
    axis: int = -1,
    excluded: Ids | None = None,
    temperature: Numbers = 1.0,
    logit_softcap: float | None = None,
    axis_name: str | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    name: str | None = None,
) -> SoftmaxStatistics:
    r"""Log-probability of each example's class, entropy, normaliser and likeliest class, in nats.

    $$\log p_y, \qquad H = -\sum_j p_j \log p_j, \qquad \log \sum_j e^{y_j}, \qquad
    \mathrm{argmax}_j\, y_j$$

    with $y$ = `logits / temperature` and $p$ their softmax. Of each field that is not used, neither
    the value nor the gradient is computed under `jit`.

    Args:
      labels: Class ids in [0, classes), one per example: any other id makes its `log_prob` NaN, and
        its gradient; the other fields stay. Or lists `[*batch, K]`, and `log_prob` has one
        number per id: 0 for a negative one, which is padding, NaN for one that is too large.
        None: `log_prob` is None.
      logits: Unnormalised log-probabilities. -inf rules a class out; several +inf share the
        probability equally. A row without a class left is NaN.
      axis: The axis of `logits` that holds the classes.
      excluded: Lists `[*batch, ids]` of classes that take no part in that example, as at -inf. A
        negative id is padding, one that appears twice counts once, one that is too large makes its
        example NaN. The log-probability of an excluded label is -inf.
      temperature: A positive number, which may be traced: divides the float32 logits, after the
        cap. Differentiable; NaN comes of one that is not positive.
      logit_softcap: A positive number c: the logits become c tanh(logits / c). A class at -inf
        stays ruled out.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        None: the classes are whole, or split by `jit` alone.
      mask: Which examples take part, `[*batch]`; None for all. Where it is False every field is
        exactly 0, `prediction` -1, and nothing has a derivative, whatever stands in the arrays.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      `SoftmaxStatistics`, one of each per example, in float32 at least whatever the logits' dtype;
      `prediction` in int32. All but `prediction` are differentiable, in any combination.

    Raises:
      TypeError: `labels` is not integer, `logits` is not floating, `temperature` is not real,
        `mask` is not boolean, or an option is not a Python value.
      ValueError: A required array is None, `labels` is not `[*batch]` or `[*batch, K]`, `axis` is
        not an axis of `logits`, `temperature` is not one positive number, `mask` does not fit, or
        an option is out of its range.

    Examples:
      >>> found = sparse_softmax_statistics_with_logits(labels=1, logits=[0.0, 0.0])
      >>> found.log_prob, found.entropy, found.prediction
      (Array(-0.6931472, dtype=float32), Array(0.6931472, dtype=float32), Array(0, dtype=int32))
      >>> sparse_softmax_statistics_with_logits(labels=[0, 1, -1], logits=[0.0, 0.0]).log_prob
      Array([-0.6931472, -0.6931472,  0.       ], dtype=float32)

    References:
      Shannon, A Mathematical Theory of Communication, 1948, section 6.
    """
    logits = check.floating("logits", logits)
    axis = check.axis(axis, logits)
    ids = None if labels is None else check_labels.ids_or_lists(labels, logits.shape, axis)
    divisor = check.temperature(temperature, logits.dtype)
    out = check_labels.excluded(excluded, logits.shape, axis)
    predictor = Predictor(ClassAxis(axis, check.axis_name(axis_name)), logit_softcap)
    chosen = check_weights.mask(mask, check_labels.batch_shape(logits.shape, axis))
    with check.scope(name, "sparse_softmax_statistics_with_logits"):
        data = Logits(with_excluded(ids, out), logits, divisor)
        return entry.predicted(predictor, data, mask=chosen)


def linear_sparse_softmax_statistics(
    *,
    labels: Ids | None = None,
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    bias: Bias | None = None,
    excluded: Ids | None = None,
    temperature: Numbers = 1.0,
    logit_softcap: float | None = None,
    block_size: int | None = None,
    class_block_size: int | None = None,
    axis_name: str | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    name: str | None = None,
) -> SoftmaxStatistics:
    r"""`sparse_softmax_statistics_with_logits` of `inputs @ kernel + bias`, without these logits.

    $$\log p_y, \qquad H = -\sum_j p_j \log p_j, \qquad \log \sum_j e^{y_j}, \qquad
    \mathrm{argmax}_j\, y_j$$

    with $y$ the logits, divided by `temperature`, and $p$ their softmax.

    Args:
      labels: Class ids in [0, classes), one per example: any other id makes its `log_prob` NaN, and
        its gradient; the other fields stay. Or lists `[*batch, K]`, and `log_prob` has one
        number per id: 0 for a negative one, which is padding, NaN for one that is too large.
        Their gradients take blocks of examples, with `class_block_size` too. None: `log_prob` is
        None.
      inputs: What the projection is applied to, features last.
      kernel: The output projection, in the inputs' dtype, or in float32 beside narrower inputs.
        A table `[classes, features]`, as of an embedding, is `jxent.Transposed(table)`.
        Products are in the inputs' dtype, accumulated in float32 at least; the gradient of a
        float32 kernel is rounded to that dtype once per block.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
      excluded: Lists `[*batch, ids]` of classes that take no part in that example, as at -inf. A
        negative id is padding, one that appears twice counts once, one that is too large makes its
        example NaN. The log-probability of an excluded label is -inf.
      temperature: A positive number, which may be traced: divides the float32 logits, after the
        cap. Differentiable; NaN comes of one that is not positive.
      logit_softcap: A positive number c: the logits become c tanh(logits / c), after the bias. A
        class at -inf stays ruled out.
      block_size: Examples per block. Smaller blocks hold fewer logits, larger ones make faster
        products. None takes 2^25 / classes, and at least features / 2: adding to the kernel's
        gradient passes over it once per block. Under automatic sharding the shapes seen are the
        global ones; pass it there.
      class_block_size: Classes per block, in place of examples: the kernel's gradient is written
        once. None, where `block_size` is None too, leaves it to shapes and platform.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        None: the classes are whole, or split by `jit` alone.
      mask: Which examples take part, `[*batch]`; None for all. Where it is False every field is
        exactly 0, `prediction` -1, and nothing has a derivative, whatever stands in the arrays.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      `SoftmaxStatistics`, `[*batch]` each, in float32 at least; `prediction` in int32. All but
      `prediction` are differentiable, in any combination, for four products in all.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, their dtypes do not fit, `labels` is not
        integer, `temperature` is not real, `mask` is not boolean, or an option is not a Python
        value.
      ValueError: A required array is None, the shapes do not fit together as above, `labels` is not
        `[*batch]` or `[*batch, K]`, `temperature` is not one positive number, `mask` does not fit,
        or an option is
        out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> found = linear_sparse_softmax_statistics(
      ...     labels=[1, 0], inputs=jnp.ones((2, 3)), kernel=jnp.zeros((3, 4)))
      >>> found.entropy
      Array([1.3862944, 1.3862944], dtype=float32)

    References:
      `jxent.sparse_softmax_statistics_with_logits`.
    """
    inputs, kernel, bias, shape = check.projection(inputs, kernel, bias)
    ids = None if labels is None else check_labels.ids_or_lists(labels, shape, len(shape) - 1)
    divisor = check.temperature(temperature, inputs.dtype)
    predictor = Predictor(ClassAxis(-1, check.axis_name(axis_name)), logit_softcap)
    sizes = check.block_sizes(block_size, class_block_size)
    out = check_labels.excluded(excluded, shape, len(shape) - 1)
    data = Operands(with_excluded(ids, out), inputs, kernel, bias, divisor)
    chosen = check_weights.mask(mask, shape[:-1])
    with check.scope(name, "linear_sparse_softmax_statistics"):
        return entry.predicted(predictor, data, sizes, chosen)
