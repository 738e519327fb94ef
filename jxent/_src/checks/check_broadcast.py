"""Arguments that broadcast, with any axes and a mask, checked as in `check`: for `jxent.compat`."""

import operator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool

from jxent._src.checks import check
from jxent._src.core.elementary import computing_dtype
from jxent._src.core.options import require_static, short_repr

Axes = int | tuple[int, ...] | None


def real(name: str, value: ArrayLike, dtype: DTypeLike) -> Array:
    """`value` as an array of real numbers; what has no dtype of its own takes `dtype`."""
    x = check.array(name, value, dtype)
    check.real(name, x)
    return x


def promoted(floating: jnp.dtype, *arrays: Array) -> jnp.dtype:
    """The dtype of a result of a floating dtype and these arrays.

    Where a user has made dtype promotion strict, too: what is called by another library's names has
    the results' dtypes of that library.
    """
    dtypes = {x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)}
    if dtypes <= {floating}:
        return floating
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(jnp.result_type(floating, *dtypes))


def axes(value: Axes, ndim: int) -> tuple[int, ...]:
    """The axes that are meant, counted from the end, in the order they are given; None for all."""
    if value is None:
        return tuple(range(-ndim, 0))
    require_static("axis", value, "integer")
    found = []
    for axis in value if isinstance(value, tuple) else (value,):
        try:
            if isinstance(axis, bool):
                raise TypeError("not an axis")
            number = operator.index(axis)
        except TypeError:
            raise TypeError(
                f"axis must be an integer, a tuple of them or None, got {short_repr(value)}"
            ) from None
        if not -ndim <= number < ndim:
            raise ValueError(f"axis must name axes of {ndim}, got {short_repr(value)}")
        found.append(number % ndim - ndim)
    if len({*found}) < len(found):
        raise ValueError(f"axis must name each axis once, got {short_repr(value)}")
    return tuple(found)


def shape(**shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that arrays of these names and shapes broadcast to."""
    first, *others = shapes.values()
    if all(other == first for other in others):
        return first
    try:
        return tuple(jnp.broadcast_shapes(first, *others))
    except ValueError:
        names, listed = " and ".join(shapes), " and ".join(map(str, shapes.values()))
        raise ValueError(f"{names} must broadcast to one shape, got {listed}") from None


def broadcast(x: Array, to: tuple[int, ...]) -> Array:
    """`x` in a shape that it broadcasts to.

    In the computing dtype where that is not its own, so that its derivative, a sum over what it was
    broadcast to, is added up there.
    """
    if x.shape == to:
        return x
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(computing_dtype(x.dtype))
    return jnp.broadcast_to(x, to)


def where(
    value: ArrayLike | None,
    to: tuple[int, ...],
    without: tuple[int, ...] = (),
    ndim: int | None = None,
) -> Bool[Array, "..."] | None:
    """A mask in a shape that it broadcasts to; of size 1 along `without` where it is so there.

    It may lack these axes, all of them, where it has not the rank `ndim`.
    """
    if value is None:
        return None
    mask = check.array("where", value)
    if mask.dtype != bool:
        raise TypeError(f"where must be boolean, got {mask.dtype}")
    given = mask.shape
    if ndim is not None and mask.ndim not in (0, ndim, len(to)):
        if mask.ndim != len(to) - len(without):
            raise ValueError(f"where must have the rank of logits or of the losses, got {given}")
        mask = jnp.expand_dims(mask, without)
    ends = zip(reversed(mask.shape), reversed(to), strict=False)
    if mask.ndim > len(to) or not all(m in (1, n) for m, n in ends):
        rows = f", or without the axes {without}" if ndim is not None else ""
        raise ValueError(f"where must broadcast to the shape {to}{rows}, got {given}")
    mask = mask.reshape((1,) * (len(to) - mask.ndim) + mask.shape)
    if without and all(mask.shape[axis] == 1 for axis in without):
        to = tuple(1 if axis in without else n for axis, n in enumerate(to, -len(to)))
    return jnp.broadcast_to(mask, to)


def one_axis(axes: tuple[int, ...], x: Any) -> Any:
    """An array, or None, with several axes made one, the last, in the order they are given."""
    if x is None or len(axes) == 1:
        return x
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    batch = x.ndim - len(axes)
    return x.reshape((*x.shape[:batch], prod(x.shape[batch:])))
