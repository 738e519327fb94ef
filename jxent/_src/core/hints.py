"""What exists for compilers alone: the identity in mathematics, each with its reason.

`materialize` and what is made of it keep a compiler from computing an array again, from sharing one
that would then be stored, or from reordering a step. Where only some platforms need it the function
is `per_platform`, and its reference does nothing.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import computing_dtype

Tree = TypeVar("Tree")


def materialize(arrays: Tree) -> Tree:
    """Arrays of their own: computed once, and optimized apart from what comes before and after."""
    own: Tree = jax.lax.optimization_barrier(arrays)
    return own


# A cap is computed again in every fusion that reads it, in some of them as a fused multiply-add:
# without the barrier a row's maximum would equal none of its elements to the last bit.
@per_platform(statics=1)
def materialize_capped(has_ids: bool, x: Array) -> Array:
    """Capped logits. `has_ids`: in first order only statistics are compared with one another."""
    return materialize(x)


@per_platform()
def materialize_before_cap(x: Array) -> Array:
    """The logits of a block of a projection, which are capped next."""
    return x


@per_platform(statics=1)
def materialize_before_lists(number: int, x: Array) -> Array:
    """The logits of a block of classes, which lists of so many ids are compared with next."""
    return x


@per_platform()
def materialize_grad(grad: Array) -> Array:
    """The gradient by the logits of a block of classes, which two matrix products read."""
    return grad


@per_platform()
def transpose(inputs: Array) -> Array:
    """inputs.T, for d/d kernel = inputs.T @ gradient."""
    return jnp.transpose(inputs)


@per_platform()
def reload(arrays: Any) -> Any:
    """Arrays that another pass over the classes reads, and a compiler should read again there.

    Ids, or a teacher's and a student's logits: what both passes compute of them is not stored.
    """
    return arrays


# A training step returns its loss and writes the new logits over the old ones. A compiler that does
# not compute the loss first copies the logits for it, and stores what loss and gradient share.
# There the gradient reads logits to which a 0 was added that depends on the loss. Where one pass
# gives both, the dependency would make it two.
@per_platform()
def ordering_zero(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exactly 0, known only after `values`.

    At -inf, where no compiler can tell that it is 0, it is the smallest normal number.
    """
    return jnp.zeros_like(values)


def add_dependency(
    zero: Array | None, data: Sequence[Any], statistics: Any = None
) -> tuple[tuple[Any, Array, Any], Any]:
    """Labels, logits, parameters; logits and statistics are known only after the 0 is."""

    def later(x: Array) -> Array:
        return x if zero is None else x + zero.astype(x.dtype)

    labels, logits, parameters = data
    return (labels, later(logits), parameters), jax.tree.map(later, statistics)


def unshared_constants(dtype: DTypeLike, *numbers: Any) -> list[Array]:
    """Constants for a sum on CPU that no other computation shares.

    XLA:CPU stores what a sum and the gradient share, even the number 1 in the logits' shape.
    """
    return materialize([jnp.asarray(x, dtype) for x in numbers])


def unshared_upcast(x: Array, after: Array, dtype: DTypeLike | None = None) -> Array:
    """The array in the computing dtype, or this one, for one sum, which waits for `after`.

    One upcast array for several sums, or for one and the gradient, would be stored.
    """
    dtype = computing_dtype(x.dtype) if dtype is None else dtype
    if x.dtype == dtype:
        return x
    x, _ = materialize((x, after))
    return x.astype(dtype)


def unshared_in_loop(arrays: Any, number: Any) -> tuple[Any, Any]:
    """Arrays that a loop reads, and the number of its iteration.

    The compiler would take what is made of whole arrays out of the loop, and store it.
    """
    return materialize((arrays, number))
