"""A user's own losses and what they are computed from, checked as in `_checks`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jxent import _mesh
from jxent._arithmetic import computing_dtype
from jxent._blocks import evened
from jxent._blockwise import Function, Given
from jxent._options import shown


def rows(
    loss_fn: Callable[[Any, Any], Any], params: Any, rows: Any, block_size: int, has_aux: bool
) -> tuple[Function, Given, DTypeLike]:
    """The function of what it is given, with all that it closes over, and its losses' dtype."""
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of params and a block, got {shown(loss_fn)}")
    params, rows = jax.tree.map(partial(_array, "params"), params), _rows(rows)

    # Not the user's function: what JAX traces of one it keeps, as if it could not change.
    def of_block(params: Any, block: Any) -> tuple[Any, Any]:
        found = loss_fn(params, block)
        if not has_aux:
            return found, None
        if not (isinstance(found, tuple) and len(found) == 2):
            raise TypeError(
                f"loss_fn must with has_aux give a tuple of losses and more, got {shown(found)}"
            )
        return found

    axes = {axis for x in jax.tree.leaves((params, rows)) for axis in _mesh.varies_over(x)}
    params, rows = _mesh.varying((params, rows), axes)
    number = jax.tree.leaves(rows)[0].shape[0]
    blocks = evened(number, block_size)
    block = jax.tree.map(lambda x: blocks.to_blocks(x)[0], rows)
    converted, closed_over = jax.closure_convert(of_block, params, block)
    for x in closed_over:
        missing = axes - _mesh.varies_over(x)
        if missing:
            raise ValueError(
                f"loss_fn must not close over a floating array, of shape {x.shape}, that is the "
                f"same along mesh axes {sorted(map(str, missing))} where rows or params are not: "
                "its gradient would be multiplied by their size; pass it in params"
            )

    def function(shared: Any, block: Any) -> Any:
        params, closed_over = shared
        return converted(params, block, *closed_over)

    given = Given((params, closed_over), rows)
    losses, more = jax.eval_shape(function, given.shared, block)
    _check_losses(losses, blocks.size)
    for x in jax.tree.leaves(more):
        if not x.ndim or x.shape[0] != blocks.size:
            raise ValueError(
                "loss_fn must with has_aux give arrays with an entry for each row of a block, "
                f"first axis {blocks.size}, got shape {x.shape}"
            )
        if not (
            jnp.issubdtype(x.dtype, jnp.floating)
            or jnp.issubdtype(x.dtype, jnp.integer)
            or x.dtype == bool
        ):
            raise TypeError(f"loss_fn must with has_aux give real arrays, got {x.dtype}")
    return function, given, computing_dtype(losses.dtype)


def _check_losses(losses: Any, size: int) -> None:
    if not hasattr(losses, "dtype"):
        raise TypeError(f"loss_fn must give an array of losses, got {shown(losses)}")
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise TypeError(f"loss_fn must give floating losses, got {losses.dtype}")
    if losses.shape != (size,):
        raise ValueError(
            f"loss_fn must give one loss for each row of a block, shape ({size},), got "
            f"{losses.shape}"
        )


def _array(name: str, x: Any) -> Array:
    try:
        return jnp.asarray(x)
    except TypeError:
        raise TypeError(
            f"{name} must be a pytree of arrays, got a leaf {shown(x)}; loss_fn may close over "
            "what is none"
        ) from None


def _rows(rows: Any) -> Any:
    rows = jax.tree.map(partial(_array, "rows"), rows)
    shapes = [x.shape for x in jax.tree.leaves(rows)]
    if not shapes:
        raise ValueError(f"rows must have an array at least, got {shown(rows)}")
    if not all(shapes) or any(shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"rows must be arrays that share their first axis, got shapes {shapes}")
    return rows
