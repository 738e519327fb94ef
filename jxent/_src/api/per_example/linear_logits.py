"""The logits of a projection, for heads that are more than it."""

from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jxent._src.checks import check
from jxent._src.core.elementary import Bias
from jxent._src.core.kernel import Transposed
from jxent._src.projection import matmuls
from jxent._src.sharding import class_axis


def linear_logits(
    *,
    inputs: Float[ArrayLike, "*batch features"],
    kernel: Float[ArrayLike, "features classes"] | Transposed,
    bias: Bias | None = None,
    name: str | None = None,
) -> Float[Array, "*batch classes"]:
    r"""`inputs @ kernel + bias` as the `linear_` functions compute it, for `losses.blockwise`.

    $$x = \mathrm{inputs} \cdot \mathrm{kernel} + \mathrm{bias}$$

    Operands of bfloat16 are multiplied as they are and accumulated in float32; so are those of the
    gradients, whose cotangent is rounded to their dtype. (As JAX differentiates such a product,
    both gradients are products of float32 operands, several times as slow.)

    Args:
      inputs: What the projection is applied to, features last.
      kernel: The output projection, in the inputs' dtype, or in float32 beside narrower inputs.
        A table `[classes, features]`, as of an embedding, is `jxent.Transposed(table)`.
        Its gradient is rounded to the inputs' dtype, once per block of `losses.blockwise`.
      bias: Added to the logits, in any real dtype. -inf rules a class out.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      The logits `[*batch, classes]`, in float32 at least.

    Raises:
      TypeError: `inputs` or `kernel` is not floating, or their dtypes do not fit.
      ValueError: A required array is None, or the shapes do not fit together as above.

    Examples:
      >>> import jax.numpy as jnp
      >>> linear_logits(inputs=jnp.ones((1, 3)), kernel=jnp.ones((3, 2)), bias=[0.0, 1.0])
      Array([[3., 4.]], dtype=float32)

    References:
      `jxent.losses.blockwise`.
    """
    inputs, kernel, bias, shape = check.projection(inputs, kernel, bias)
    with check.scope(name, "linear_logits"):
        rows = inputs.reshape(-1, inputs.shape[-1])
        logits = matmuls.logits(*class_axis.match_all_varying(None, (rows, kernel, bias)))
        return logits.reshape(shape)
