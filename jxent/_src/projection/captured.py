"""A user's own losses and what they are computed from, checked as in `check`."""

import math
from collections.abc import Callable, Set
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jxent._src.checks import check
from jxent._src.core.blocks import ExampleBlocks
from jxent._src.core.elementary import computing_dtype
from jxent._src.core.options import short_repr
from jxent._src.projection.blockwise import BlockwiseInputs, Function
from jxent._src.projection.plan import balanced, chips_of
from jxent._src.sharding import varying


class Checked(NamedTuple):
    """What a sweep over blocks of rows is given."""

    function: Function  # of what it is given, with all that the user's function closes over
    given: BlockwiseInputs
    blocks: ExampleBlocks
    dtype: DTypeLike  # that the losses are computed in
    crosses_unchecked: bool  # whether it computes across chips where nothing checks what varies


def rows(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    rows: Any,
    block_size: int,
    has_aux: bool,
    weights: Any,
) -> Checked:
    """The user's function and what it is computed from. `weights`: as they were given."""
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn must be a function of params and a block, got {short_repr(loss_fn)}"
        )
    params, of_params = jax.tree.flatten(jax.tree.map(partial(_array, "params"), params))
    rows, of_rows = jax.tree.flatten(_rows(rows))

    def of_leaves(params: list[Any], block: list[Any]) -> tuple[Any, Any]:
        found = loss_fn(jax.tree.unflatten(of_params, params), jax.tree.unflatten(of_rows, block))
        return _losses_and_more(found, has_aux)

    weights = [w for w in jax.tree.leaves(weights) if isinstance(w, jax.Array)]
    axes = {axis for x in (*params, *rows, *weights) for axis in varying.varying_axes_of(x)}
    params, rows = varying.varying_over((params, rows), axes)
    blocks = balanced(rows[0].shape[0], block_size, math.lcm(*map(chips_of, rows)))

    # All that it closes over becomes an argument: integers and keys too, which may be tracers of a
    # program that is gone when the derivative is taken.
    def traced(params: list[Any], rows: list[Any]) -> tuple[Any, Any]:
        block = [blocks.to_blocks(x)[0] for x in rows]
        return jax.make_jaxpr(of_leaves, return_shape=True)(params, block)

    program, found = traced(params, rows)
    # Integers and booleans vary as the rest does, but over axes that the function computes across:
    # ids are the same on all chips that split the classes, and so is their loss.
    crossed = _axes_crossed(program)
    varied = varying.varying_over((params, rows), axes - crossed, (jnp.integer, jnp.bool_))
    if any(map(varying.varies_otherwise, (*params, *rows), (*varied[0], *varied[1]))):
        params, rows = varied
        program, found = traced(params, rows)
    jaxpr, structure = program.jaxpr, jax.tree.structure(found)
    # Numbers of Python and NumPy are constants of a trace too, in JAX's own types for them.
    closed_over = [
        _with_methods(x if isinstance(x, jax.Array) else jnp.asarray(x, var.aval.dtype))
        for var, x in zip(jaxpr.constvars, program.consts, strict=True)
    ]
    _check_closed_over(closed_over, axes)

    # Without constants, which may be tracers: JAX keeps what a rule's function refers to. From jax
    # 0.12 on they belong to the program itself.
    if hasattr(jaxpr, "consts"):
        jaxpr = jaxpr.replace(consts=[])

    def function(shared: Any, block: Any) -> Any:
        params, closed_over = shared
        leaves = jax.core.eval_jaxpr(jaxpr, closed_over, *params, *block)
        return jax.tree.unflatten(structure, leaves)

    losses, more = found
    _check_losses(losses, blocks.size)
    _check_more(more, blocks.size)
    given = BlockwiseInputs((params, closed_over), rows)
    unchecked = any(map(varying.is_unchecked, crossed))
    return Checked(function, given, blocks, computing_dtype(losses.dtype), unchecked)


def _axes_crossed(program: Any) -> set[Any]:
    """The axes of a mesh, or of `vmap`, that a program's collectives name."""
    names = (getattr(effect, "name", None) for effect in program.effects)
    return {name for name in names if name is not None}


def _losses_and_more(found: Any, has_aux: bool) -> tuple[Any, Any]:
    if has_aux and not (isinstance(found, tuple) and len(found) == 2):
        raise TypeError(f"loss_fn must with has_aux give a tuple of losses and more, got {found!r}")
    losses, more = found if has_aux else (found, None)
    if not hasattr(losses, "dtype"):
        raise TypeError(f"loss_fn must give an array of losses, got {type(losses).__name__}")
    for x in jax.tree.leaves(more):
        if not hasattr(x, "dtype"):
            kind = type(x).__name__
            raise TypeError(f"loss_fn must with has_aux give a tree of arrays, got a leaf {kind}")
    return losses, more


def _check_closed_over(arrays: list[Any], axes: Set[Any]) -> None:
    for x in arrays:
        missing = axes - varying.varying_axes_of(x) if isinstance(x, jax.core.Tracer) else None
        if missing and jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"loss_fn must not close over a floating array, of shape {x.shape}, that is the "
                f"same along mesh axes {sorted(map(str, missing))} where rows or params are not: "
                "its gradient would be multiplied by their size; pass it in params"
            )


def _check_more(more: Any, size: int) -> None:
    for x in jax.tree.leaves(more):
        if not x.ndim or x.shape[0] != size:
            raise ValueError(
                "loss_fn must with has_aux give arrays with an entry for each row of a block, "
                f"first axis {size}, got shape {x.shape}"
            )
        kinds = (jnp.floating, jnp.integer, jnp.bool_)
        if not any(jnp.issubdtype(x.dtype, kind) for kind in kinds):
            raise TypeError(f"loss_fn must with has_aux give real arrays, got {x.dtype}")


def _check_losses(losses: Any, size: int) -> None:
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise TypeError(f"loss_fn must give floating losses, got {losses.dtype}")
    if losses.shape != (size,):
        raise ValueError(
            f"loss_fn must give one loss for each row of a block, shape ({size},), got "
            f"{losses.shape}"
        )


def _with_methods(x: Array) -> Array:
    """`x`, of which an eager derivative sees an array where it was called with a Python number."""
    is_number = isinstance(x, jax.core.Tracer) and x.ndim == 0 and jax.typeof(x).weak_type
    return jnp.array(x) if is_number else x  # a copy, which compiled programs do without


def _array(name: str, x: Any) -> Array:
    x = check.converted(name, x)
    try:
        array = jnp.asarray(x)
    except TypeError:
        raise TypeError(
            f"{name} must be a pytree of arrays, got a leaf {short_repr(x)}; loss_fn may close "
            "over "
            "what is none"
        ) from None
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real, got a leaf of {array.dtype}")
    return _with_methods(array)


def _rows(rows: Any) -> Any:
    rows = jax.tree.map(partial(_array, "rows"), rows)
    shapes = [x.shape for x in jax.tree.leaves(rows)]
    if not shapes:
        raise ValueError(f"rows must have an array at least, got {short_repr(rows)}")
    if not all(shapes) or any(shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"rows must be arrays that share their first axis, got shapes {shapes}")
    return rows
