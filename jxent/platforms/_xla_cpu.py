"""A fast way first, and the exact one only where it does not do.

On CPU the arithmetic of a loss is dear, not the memory, and most of the care is for rare values.
Beside `attempt`, what keeps both ways from storing arrays there: `by_rows` and `own_constants`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array


def attempt(fast: Callable[..., tuple[Any, Any]], exact: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays: `fast`'s result where it calls that usable, else `exact`'s.

    `fast` returns (usable, result), `usable` in the shape of each array of the result. Element by
    element, so that no example's answer depends on what else is in its batch; `exact` is run if
    any element needs it. Both work on any number of leading axes, so that `vmap` can add one: with
    a condition for each example, both ways would be computed.
    """

    @jax.custom_batching.custom_vmap
    def tried(*arrays: Any) -> Any:
        usable, result = fast(*arrays)

        def mended(usable: Array, result: Any, arrays: Any) -> Any:
            return jax.tree.map(partial(jnp.where, usable), result, exact(*arrays))

        def as_it_is(usable: Array, result: Any, arrays: Any) -> Any:
            return result

        return jax.lax.cond(jnp.all(usable), as_it_is, mended, usable, result, arrays)

    @tried.def_vmap
    def _with_one_more_axis(size: int, batched: Sequence[Any], *arrays: Any) -> tuple[Any, Any]:
        def widened(x: Array, is_batched: bool) -> Array:
            return x if is_batched else jnp.broadcast_to(x[None], (size, *x.shape))

        result = attempt(fast, exact)(*jax.tree.map(widened, arrays, tuple(batched)))
        return result, jax.tree.map(lambda _: True, result)

    return tried


def own_constants(dtype: DTypeLike, *numbers: Any) -> list[Array]:
    """Constants for a sum on CPU that no other computation shares.

    XLA:CPU stores what a sum and the gradient share, be it the number 1 in the logits' shape.
    """
    own: list[Array] = jax.lax.optimization_barrier([jnp.asarray(x, dtype) for x in numbers])
    return own


def are_whole(x: Array) -> bool:
    """Whether `x` is known to be split over no mesh, so that its rows may be cut.

    No logit is to cross from one device to another. What `jit(in_shardings=...)` alone splits does
    not show here: there pieces may move where the classes are split, which costs time, not digits.
    """
    whole: bool = jax.typeof(x).sharding.mesh.empty
    return whole


# Elements of a block of rows: as many as stay in a core's own cache, with what is made of them.
_BLOCK = 2**16


def by_rows(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function of arrays `[*batch, n]` that gives `[*batch, 1]`, a block of rows at a time.

    For the exact ways, which are run rarely and whose memory is there always: what they store is
    then of a block's size. Arrays may have 1 in place of axes of the first one's batch. Where rows
    may be split over devices they stay as they are.
    """

    def in_blocks(*arrays: Array | None) -> Array:
        given = jax.tree.leaves(arrays)  # all but None
        batch = given[0].shape[:-1]
        rows = math.prod(batch)
        if not isinstance(rows, int) or not all(map(are_whole, given)):
            return function(*arrays)
        block = max(1, _BLOCK // max(1, *(x.shape[-1] for x in given)))
        if rows <= block:
            return function(*arrays)

        def flat(x: Array) -> Array:
            same = x.shape[:-1] == batch or math.prod(x.shape[:-1]) == 1
            x = x if same else jnp.broadcast_to(x, (*batch, x.shape[-1]))
            return x.reshape(-1, x.shape[-1])

        flattened = jax.tree.map(flat, arrays)

        def of_block(start: int | Array) -> Array:
            def cut(x: Array) -> Array:
                return x if x.shape[0] == 1 else jax.lax.dynamic_slice_in_dim(x, start, block)

            return function(*jax.tree.map(cut, flattened))

        def step(k: int | Array, result: Array) -> Array:
            # The last block starts earlier than it would, so that all are of one size.
            start = jnp.minimum(k * block, rows - block)
            return jax.lax.dynamic_update_slice_in_dim(result, of_block(start), start, 0)

        result = jnp.zeros((rows, 1), jax.eval_shape(of_block, 0).dtype)
        result = jax.lax.fori_loop(0, -(-rows // block), step, result)
        return cast(Array, result).reshape(*batch, 1)

    return in_blocks


def piece_length(x: Array) -> int | None:
    """The length to cut rows into on CPU: a divisor of their width, near what its caches like.

    None for short rows, where a piece would be a large part of the row, and for those which have
    no such divisor. In rows of more than 2^15 any division is worth it: whole, XLA:CPU takes about
    ten times as long for them. None, too, where the rows may be split.
    """
    classes = x.shape[-1]
    if not are_whole(x):
        return None
    longest = classes // 10 if classes <= 2**15 else 2**15
    lengths = (n for n in range(2**6, longest + 1) if classes % n == 0)
    return min(lengths, key=lambda n: (max(n, 2**9), -n), default=None)


def in_pieces(x: Array, piece: int) -> Array:
    """`[..., classes]` as `[..., pieces, piece]`, which the barrier keeps XLA from joining again.

    XLA:CPU works on whole rows, whose intermediate results then leave the cache: sums of pieces
    were measured 2 to 9 times as fast on long rows. And a sum that leaves one class out needs to
    look for it in one piece only.
    """
    split = (*x.shape[:-1], x.shape[-1] // piece, piece)  # no -1: there may be no examples
    pieces: Array = jax.lax.optimization_barrier(x.reshape(split))
    return pieces


def piece_at(pieces: Array, which: Array) -> Array:
    """The piece number `which` `[..., 1]` of every row."""
    return jnp.take_along_axis(pieces, which[..., None], -2, mode="promise_in_bounds")[..., 0, :]


def sum_without(x: Array, which: Array) -> Array:
    """The sum along the last axis without element `which` `[..., 1]`."""
    numbers = jax.lax.broadcasted_iota(which.dtype, x.shape, x.ndim - 1)
    return jnp.sum(jnp.where(numbers == which, 0, x), -1, keepdims=True)


def first_place(x: Array, value: Array) -> Array:
    """The number `[..., 1]` of the first element of each row that equals `value`."""
    last = x.shape[-1] - 1
    numbers = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.min(jnp.where(x == value, numbers, last), -1, keepdims=True)
