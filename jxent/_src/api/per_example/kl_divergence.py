"""The divergence of a student's softmax from its teacher's: distillation."""

from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jxent._src.checks import check, check_labels, check_weights
from jxent._src.core.elementary import Bias, Numbers
from jxent._src.core.kernel import Transposed
from jxent._src.loss_fns.kl_divergence import Divergence
from jxent._src.projection.matmuls import Operands
from jxent._src.projection.teacher import ProjectedDivergence
from jxent._src.run import entry
from jxent._src.run.entry import Logits
from jxent._src.sharding.class_axis import ClassAxis


def softmax_kl_divergence_with_logits(
    *,
    teacher_logits: Float[ArrayLike, "*shape"],
    logits: Float[ArrayLike, "*shape"],
    axis: int = -1,
    temperature: Numbers = 1.0,
    teacher_logit_softcap: float | None = None,
    logit_softcap: float | None = None,
    axis_name: str | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    name: str | None = None,
) -> Float[Array, "..."]:
    r"""Kullback-Leibler divergence, in nats, of the teacher's softmax from the student's.

    $$\mathrm{KL} = \sum_j p_j (\log p_j - \log q_j)$$

    with $p$ the softmax of the teacher's logits over the `temperature`, $q$ that of the student's.
    A student that agrees with its teacher keeps the digits of value and gradient, q - p. Forward:
    for the reverse divergence swap the two.

    Args:
      teacher_logits: The teacher's unnormalised log-probabilities, in the shape of `logits` and any
        floating dtype; differentiable, so stop their gradient where the teacher is fixed and not an
        argument.
      logits: Those of the student. A class that the student alone rules out, by -inf, makes the
        loss inf; one that both rule out takes no part. A row without a class left is NaN.
      axis: The axis of `logits` that holds the classes.
      temperature: A positive number, which may be traced: divides both logits in float32, after the
        caps. Differentiable; NaN comes of one that is not positive. The loss is not multiplied by
        its square.
      teacher_logit_softcap: The same of the teacher's logits.
      logit_softcap: A positive number c: the logits become c tanh(logits / c). A class at -inf
        stays ruled out.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; labels are split like the logits. Gradients taken inside need shard_map's default
        `check_vma=True`. None: the classes are whole, or split by `jit` alone.
      mask: Which examples take part, `[*batch]`; None for all. Where it is False the loss is
        exactly 0 and has no derivative, whatever stands in the arrays.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One divergence per example, in the logits' dtype: their shape without `axis`. bfloat16 and
      float16 are computed in float32 and rounded once.

    Raises:
      TypeError: `logits` or `teacher_logits` is not floating, `temperature` is not real, `mask` is
        not boolean, or an option is not a Python value.
      ValueError: A required array is None, the shapes differ, `axis` is not an axis of `logits`,
        `temperature` is not one positive number, `mask` does not fit, or an option is out of its
        range.

    Examples:
      >>> softmax_kl_divergence_with_logits(teacher_logits=[0.0, 2.0], logits=[0.0, 0.0]).round(4)
      Array(0.3278, dtype=float32)

    References:
      Kullback and Leibler, On Information and Sufficiency, 1951. Hinton et al., Distilling the
      Knowledge in a Neural Network, 2015, who multiply by the temperature squared.
    """
    logits = check.floating("logits", logits)
    teacher = check.teacher(teacher_logits, logits)
    axis = check.axis(axis, logits)
    divisor = check.temperature(temperature, logits.dtype)
    loss_fn = Divergence(
        classes=ClassAxis(axis, check.axis_name(axis_name)),
        teacher_logit_softcap=teacher_logit_softcap,
        logit_softcap=logit_softcap,
    )
    chosen = check_weights.mask(mask, check_labels.batch_shape(logits.shape, axis))
    with check.scope(name, "softmax_kl_divergence_with_logits"):
        return entry.each(loss_fn, Logits(teacher, logits, divisor), mask=chosen)


def linear_softmax_kl_divergence(
    *,
    teacher_inputs: Float[ArrayLike, "*batch teacher_features"],
    teacher_kernel: Float[ArrayLike, "teacher_features classes"] | Transposed,
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    teacher_bias: Bias | None = None,
    bias: Bias | None = None,
    temperature: Numbers = 1.0,
    teacher_logit_softcap: float | None = None,
    logit_softcap: float | None = None,
    block_size: int | None = None,
    axis_name: str | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""`softmax_kl_divergence_with_logits` of two projections, without their logits.

    $$\mathrm{KL} = \sum_j p_j (\log p_j - \log q_j)$$

    with $p$ the softmax of the teacher's logits over the `temperature`, $q$ that of the student's.
    A student that agrees with its teacher keeps the digits of value and gradient, q - p. Forward:
    for the reverse divergence swap the two.

    Args:
      teacher_inputs: What the teacher's projection is applied to, `[*batch, teacher features]`, in
        any floating dtype.
      teacher_kernel: The teacher's output projection, in the dtype of `teacher_inputs` or in
        float32 beside narrower ones.
      inputs: What the student's projection is applied to, features last.
      kernel: The output projection, in the inputs' dtype, or in float32 beside narrower inputs.
        A table `[classes, features]`, as of an embedding, is `jxent.Transposed(table)`.
        Products are in the inputs' dtype, accumulated in float32 at least; the gradient of a
        float32 kernel is rounded to that dtype once per block.
      teacher_bias: Added to the teacher's logits.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
      temperature: A positive number, which may be traced: divides both logits in float32, after the
        caps. Differentiable; NaN comes of one that is not positive. The loss is not multiplied by
        its square.
      teacher_logit_softcap: The same of the teacher's logits.
      logit_softcap: A positive number c: the logits become c tanh(logits / c), after the bias. A
        class at -inf stays ruled out.
      block_size: Examples per block. Smaller blocks hold fewer logits, larger ones make faster
        products. None takes 2^24 / classes, and at least features / 2: adding to the kernel's
        gradient passes over it once per block. Under automatic sharding the shapes seen are the
        global ones; pass it there.
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; labels are split like the logits. Gradients taken inside need shard_map's default
        `check_vma=True`. None: the classes are whole, or split by `jit` alone.
      mask: Which examples take part, `[*batch]`; None for all. Where it is False the loss is
        exactly 0 and has no derivative, whatever stands in the arrays.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One divergence per example, `[*batch]`, in float32 at least. Reverse mode computes each block
      of logits a second time; `jxent.losses.linear_softmax_kl_divergence` does not.

    Raises:
      TypeError: Inputs or kernels are not floating, their dtypes do not fit, `temperature` is not
        real, `mask` is not boolean, or an option is not a Python value.
      ValueError: A required array is None, the shapes do not fit together as above, `temperature`
        is not one positive number, `mask` does not fit, or an option is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> linear_softmax_kl_divergence(
      ...     teacher_inputs=jnp.ones((2, 1)), teacher_kernel=jnp.array([[0.0, 2.0]]),
      ...     inputs=jnp.ones((2, 3)), kernel=jnp.zeros((3, 2))).round(4)
      Array([0.3278, 0.3278], dtype=float32)

    References:
      Kullback and Leibler, On Information and Sufficiency, 1951. Hinton et al., Distilling the
      Knowledge in a Neural Network, 2015, who multiply by the temperature squared.
    """
    teacher, teacher_kernel, teacher_bias, _ = check.projection(
        teacher_inputs, teacher_kernel, teacher_bias, of="teacher_"
    )
    inputs, kernel, bias, shape = check.projection(inputs, kernel, bias)
    check.teacher_projection(teacher, teacher_kernel, shape)
    divisor = check.temperature(temperature, inputs.dtype)
    loss_fn = ProjectedDivergence(
        classes=ClassAxis(-1, check.axis_name(axis_name)),
        teacher_logit_softcap=teacher_logit_softcap,
        logit_softcap=logit_softcap,
    )
    sizes, parameters = check.block_sizes(block_size), (divisor, teacher_kernel, teacher_bias)
    data = Operands(teacher, inputs, kernel, bias, parameters)
    chosen = check_weights.mask(mask, inputs.shape[:-1])
    with check.scope(name, "linear_softmax_kl_divergence"):
        return entry.each(loss_fn, data, sizes, chosen)
