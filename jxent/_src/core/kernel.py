"""An output projection's kernel, and one that lies transposed in memory."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jxent._src.core.serialization import register_serialization


@register_serialization("jxent.Transposed")
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transposed:
    r"""A kernel `[features, classes]` in the form of a table `[classes, features]`.

    $$\mathrm{kernel} = \mathrm{table}^\top$$

    Every `kernel` of this library may be one: an embedding that is tied to the output, the weight
    of a `torch.nn.Linear`. The results are those of `kernel=table.T`, for which compilers copy the
    table as a whole, or its gradient; here a block at a time is multiplied as it lies.

    It is a pytree of one array, the table: a gradient by the table is an array of its shape, a
    gradient by a `Transposed` is a `Transposed`.

    Args:
      table: The kernel's transpose, in any dtype that a kernel may have.

    Raises:
      TypeError: By the function that is given it: `table` is not floating, or its dtype does not
        fit that of the inputs.
      ValueError: By the function that is given it: `table` is not `[classes, features]`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jxent import Transposed, linear_sparse_softmax_cross_entropy
      >>> embedding = jnp.zeros((5, 3))
      >>> linear_sparse_softmax_cross_entropy(
      ...     labels=[1, 4], inputs=jnp.ones((2, 3)), kernel=Transposed(embedding))
      Array([1.609438, 1.609438], dtype=float32)

    References:
      Press and Wolf, Using the Output Embedding to Improve Language Models, 2017.
    """

    table: Any  # an array; of a tangent None where it is zero

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's, `(features, classes)`."""
        shape: tuple[int, ...] = self.table.shape
        return shape[::-1]

    @property
    def ndim(self) -> int:
        """The number of its axes, 2."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of its elements."""
        size: int = self.table.size
        return size

    @property
    def dtype(self) -> jnp.dtype:
        """The table's."""
        dtype: jnp.dtype = self.table.dtype
        return dtype

    def astype(self, dtype: DTypeLike) -> "Transposed":
        """In another dtype."""
        return Transposed(self.table.astype(dtype))


Kernel = Float[Array, "features classes"] | Transposed


def matrix(kernel: Kernel) -> Float[Array, "features classes"]:
    """A kernel as the right operand of a product, into which a compiler takes the transpose."""
    if not isinstance(kernel, Transposed):
        return kernel
    columns: Array = kernel.table.T
    return columns
