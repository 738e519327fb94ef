"""Labels that go in, checked as in `check`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from jxent._src.checks import check
from jxent._src.core.elementary import WeightedIds, computing_dtype
from jxent._src.core.options import short_repr


def dense_labels(
    value: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike, of: str = "logits"
) -> Array:
    """Labels of the logits' shape, in the dtype of the logits or inputs, or in float32."""
    labels = check.array("labels", value, dtype if of == "logits" else computing_dtype(dtype))
    check.same_shape("labels", labels, shape)
    message = (
        "have the dtype of {of}, {dtype}, or float32, got {x.dtype}; class ids go to the sparse_ "
        "functions"
    )
    wanted = jnp.float32 if labels.dtype == jnp.float32 else dtype
    check.require("labels", labels, wanted, message, dtype=dtype, of=of)
    return labels


def castable_labels(name: str, value: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Labels of the logits' shape, of any real dtype."""
    labels = check.array(name, value, computing_dtype(dtype))
    check.same_shape(name, labels, shape)
    check.real(name, labels)
    return labels


def integers(value: ArrayLike, name: str = "labels") -> Array:
    """Class ids of any integer dtype; where JAX is set to 32 bits, wider ones stay out of range."""
    if not isinstance(value, jax.Array):
        value = check.converted(name, value)
        if not isinstance(value, jax.Array):
            value = _read_ids(value, name)
    ids = check.array(name, value)
    check.require(name, ids, jnp.integer, "be integer class ids, got {x.dtype}")
    return ids


def _read_ids(value: Any, name: str) -> Any:
    """Ids as an array of NumPy, or as they are where arrays of JAX are in their lists.

    Their kind is looked at before anything is cast: 1.7 is not class 1.
    """
    if not hasattr(value, "dtype"):
        if wrong := check.kinds(value) - {"integer"}:
            kinds = ", ".join(sorted(wrong))
            raise TypeError(f"{name} must be integer class ids, got {short_repr(value)} of {kinds}")
        if _holds_jax_arrays(value):
            return value
    try:
        ids = np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{name} must be ids, or lists of ids of one length, got {short_repr(value)}"
        ) from error
    if ids.dtype == object:
        if hasattr(value, "dtype"):
            raise TypeError(f"{name} must be integer class ids, got an array of objects")
        raise ValueError(f"{name} must be class ids that int64 holds, got {short_repr(value)}")
    if ids.size == 0 and not hasattr(value, "dtype"):
        ids = ids.astype(np.int32)  # an empty list has no kind
    if ids.dtype in (np.int64, np.uint64) and not jax.config.read("jax_enable_x64"):
        # JAX would take 2^32 + 1 for 1. No logits have 2^31 classes.
        info = np.iinfo(np.int32)
        lowest = 0 if ids.dtype == np.uint64 else info.min
        ids = np.clip(ids, lowest, info.max).astype(np.int32)
    return ids


def _holds_jax_arrays(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return set(map(type, value)) != {int} and any(map(_holds_jax_arrays, value))
    return isinstance(value, jax.Array)


def class_labels(
    value: ArrayLike,
    label_weights: ArrayLike | None,
    shape: tuple[int, ...],
    axis: int,
    dtype: DTypeLike,
    *,
    trailing_one: bool = False,
) -> Array | WeightedIds:
    """Integer ids, one for each example of logits of the given shape; or lists of weighted ones.

    Lists `[*batch, ids]` come back along the axis of the classes.
    """
    if label_weights is None:
        return class_ids(value, shape, axis, trailing_one=trailing_one)
    ids = integers(value)
    message = (
        "with label_weights be lists of ids, [*batch, ids] with batch {batch}, got shape {x.shape} "
        "for logits of shape {shape}"
    )
    batch = batch_shape(shape, axis)
    check.require("labels", ids, (*batch, None), message, batch=batch, shape=shape)
    weights = check.array("label_weights", label_weights, computing_dtype(dtype))
    check.real("label_weights", weights)
    message = "have the shape of labels, {expected}, got {x.shape}"
    check.require("label_weights", weights, ids.shape, message)
    listed = WeightedIds(ids, weights.astype(computing_dtype(dtype)))
    return WeightedIds(*(jnp.moveaxis(x, -1, axis) for x in listed))


def ids_or_lists(value: ArrayLike, shape: tuple[int, ...], axis: int) -> Array:
    """Integer ids, one for each example, or lists `[*batch, ids]`, along the classes' axis."""
    ids = integers(value)
    if ids.ndim != len(shape):
        return class_ids(ids, shape, axis)
    return _lists("labels", ids, shape, axis, "ids [*batch] or lists of ids [*batch, ids]")


def excluded(value: ArrayLike | None, shape: tuple[int, ...], axis: int) -> Array | None:
    """Lists `[*batch, ids]` of integer class ids, along the axis of the classes; or None."""
    if value is None:
        return None
    ids = integers(value, "excluded")
    return _lists("excluded", ids, shape, axis, "lists of ids, [*batch, ids]")


def _lists(name: str, ids: Array, shape: tuple[int, ...], axis: int, form: str) -> Array:
    """Lists `[*batch, ids]` of logits of this shape, along the axis of the classes."""
    message = "be {form} with batch {batch}, got shape {x.shape} for logits of shape {shape}"
    batch = batch_shape(shape, axis)
    check.require(name, ids, (*batch, None), message, form=form, batch=batch, shape=shape)
    return jnp.moveaxis(ids, -1, axis)


def class_ids(
    value: ArrayLike, shape: tuple[int, ...], axis: int, *, trailing_one: bool = False
) -> Array:
    """Integer ids, one for each example of logits of the given shape.

    With `trailing_one`, ids `[*batch, 1]` are taken as `[*batch]`, as `tf.losses` does.
    """
    ids = integers(value)
    batch = batch_shape(shape, axis)
    if trailing_one and ids.shape == (*batch, 1):
        ids = ids.reshape(batch)
    message = (
        "have the shape of logits without axis {axis}, {expected}, got {x.shape} for logits of "
        "shape {shape}"
    )
    check.require("labels", ids, batch, message, axis=axis % len(shape), shape=shape)
    return ids


def batch_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """A shape without the axis of the classes."""
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def id_lists(value: ArrayLike, shape: tuple[int, ...], what: str) -> Array:
    """Lists of integer ids `[*batch, ids]` for `what`, an array of the given shape."""
    ids = integers(value)
    message = (
        "be lists of ids, [*batch, ids] with batch {batch} as {what} has it, got shape {x.shape}"
    )
    batch = shape[:-1]
    check.require("labels", ids, (*batch, None), message, batch=batch, what=what)
    return ids
