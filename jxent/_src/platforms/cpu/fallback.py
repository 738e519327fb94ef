"""A fast path first, and the exact one only where that fails.

On CPU the arithmetic of a loss is expensive, not the memory, and most of it is for rare values.
Beside `with_fallback`, what keeps both paths from storing arrays there.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core import hints


def with_fallback(
    fast: Callable[..., tuple[Any, Any]], exact: Callable[..., Any]
) -> Callable[..., Any]:
    """A function of arrays: `fast`'s result where it calls that usable, else `exact`'s.

    `fast` returns (usable, result), `usable` in the shape of each array of the result. Element by
    element, so that no example's answer depends on what else is in its batch; `exact` is run if
    any element needs it. Both work on any number of leading axes, so that `vmap` can add one: with
    a condition per example, both paths would be computed.
    """

    @jax.custom_batching.custom_vmap
    def tried(*arrays: Any) -> Any:
        usable, result = fast(*arrays)

        def repaired(usable: Array, result: Any, arrays: Any) -> Any:
            return jax.tree.map(partial(jnp.where, usable), result, exact(*arrays))

        def as_it_is(usable: Array, result: Any, arrays: Any) -> Any:
            return result

        return jax.lax.cond(jnp.all(usable), as_it_is, repaired, usable, result, arrays)

    @tried.def_vmap
    def _with_one_more_axis(size: int, batched: Sequence[Any], *arrays: Any) -> tuple[Any, Any]:
        result = with_fallback(fast, exact)(*_with_axis(size, batched, arrays))
        return result, jax.tree.map(lambda _: True, result)

    return tried


def unwatched(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays, whose NaN `with_fallback` detects: `checkify` does not look into it.

    It does not look into any call of `custom_vmap`, such as those of `with_fallback`. Such a NaN
    says that a fast form does not do, where the data may have none. The function works on any
    number of leading axes.
    """

    @jax.custom_batching.custom_vmap
    def called(*arrays: Any) -> Any:
        return function(*arrays)

    @called.def_vmap
    def _with_one_more_axis(size: int, batched: Sequence[Any], *arrays: Any) -> tuple[Any, Any]:
        result = unwatched(function)(*_with_axis(size, batched, arrays))
        return result, jax.tree.map(lambda _: True, result)

    return called


def _with_axis(size: int, batched: Sequence[Any], arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arrays, of which those that are not batched get the axis that `vmap` has added."""

    def with_axis(x: Array, is_batched: bool) -> Array:
        return x if is_batched else jnp.broadcast_to(x[None], (size, *x.shape))

    return cast(tuple[Any, ...], jax.tree.map(with_axis, arrays, tuple(batched)))


def is_unsharded(x: Array) -> bool:
    """Whether `x` is known to be split over no mesh, so that its rows may be cut.

    No logit is to cross from one device to another. What `jit(in_shardings=...)` alone splits does
    not show here: there pieces may move where the classes are split, which costs time, not digits.
    """
    whole: bool = jax.typeof(x).sharding.mesh.empty
    return whole


def moved(function: Callable[[Array], Array], x: Array) -> Array:
    """`function` of an array, which moves some of its elements and computes nothing.

    Of the bits of narrow floats: XLA:CPU would move them in float32, and widen the whole array.
    """
    bits = 8 * x.dtype.itemsize
    if bits >= 32 or not jnp.issubdtype(x.dtype, jnp.floating):
        return function(x)
    kept = function(jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}")))
    return jax.lax.bitcast_convert_type(kept, x.dtype)


def gathered(x: Array, places: Array, axis: int) -> Array:
    """The elements in these places, which are in bounds, along the axis."""
    taken = partial(jnp.take_along_axis, indices=places, axis=axis, mode="promise_in_bounds")
    return moved(taken, x)


# Elements of a block of rows: as many as stay in a core's own cache, with what is made of them.
_BLOCK = 2**16


def map_row_blocks(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function of arrays `[*batch, n]` that gives `[*batch, 1]`, a block of rows at a time.

    For the exact paths, which run rarely and whose memory is always allocated: what they store is
    then of a block's size. Arrays may have 1 in place of axes of the first one's batch. Where rows
    may be split over devices they stay as they are.
    """

    def in_blocks(*arrays: Array | None) -> Array:
        given = jax.tree.leaves(arrays)  # all but None
        batch = given[0].shape[:-1]
        rows = math.prod(batch)
        if not isinstance(rows, int) or not all(map(is_unsharded, given)):
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
                if x.shape[0] == 1:
                    return x
                return moved(lambda x: jax.lax.dynamic_slice_in_dim(x, start, block), x)

            own, start = hints.unshared_in_loop(flattened, start)
            return function(*jax.tree.map(cut, own))

        def step(k: int | Array, result: Array) -> Array:
            # The last block starts earlier than it would, so that all are of one size.
            start = jnp.minimum(k * block, rows - block)
            return jax.lax.dynamic_update_slice_in_dim(result, of_block(start), start, 0)

        result = jnp.zeros((rows, 1), jax.eval_shape(of_block, 0).dtype)
        result = jax.lax.fori_loop(0, -(-rows // block), step, result)
        return cast(Array, result).reshape(*batch, 1)

    return in_blocks


def written(x: Array, axis: int, ids: Array, values: Array) -> Array:
    """`x` with the values in the places of the ids; rows are told apart, as a mesh may split them.

    Padding is written beyond the end, which drops it.
    """
    axis %= x.ndim
    rows = tuple(a for a in range(x.ndim) if a != axis)
    places = jnp.where(ids < 0, x.shape[axis], ids)
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(),
        inserted_window_dims=(axis,),
        scatter_dims_to_operand_dims=(axis,),
        operand_batching_dims=rows,
        scatter_indices_batching_dims=rows,
    )
    changed: Array = jax.lax.scatter(x, places[..., None], values, numbers, mode="drop")
    return changed
