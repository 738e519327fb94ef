"""Labels that go in, checked as in `_checks`."""

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from jxent import _checks
from jxent._arithmetic import Listed, computing_dtype


def class_labels(
    value: ArrayLike,
    label_weights: ArrayLike | None,
    shape: tuple[int, ...],
    axis: int,
    dtype: DTypeLike,
    *,
    trailing_one: bool = False,
) -> Array | Listed:
    """Integer ids, one for each example of logits of the given shape; or lists of weighted ones.

    Lists `[*batch, ids]` come back along the axis of the classes.
    """
    if label_weights is None:
        return _checks.class_ids(value, shape, axis, trailing_one=trailing_one)
    ids = _checks.integers(value)
    before = axis % len(shape)
    batch = shape[:before] + shape[before + 1 :]
    if ids.ndim != len(shape) or ids.shape[:-1] != batch:
        raise ValueError(
            f"labels must with label_weights be lists of ids, [*batch, ids] with batch {batch}, "
            f"got shape {ids.shape} for logits of shape {shape}"
        )
    weights = _checks.array("label_weights", label_weights, computing_dtype(dtype))
    _checks.real("label_weights", weights)
    if weights.shape != ids.shape:
        raise ValueError(
            f"label_weights must have the shape of labels, {ids.shape}, got {weights.shape}"
        )
    listed = Listed(ids, weights.astype(computing_dtype(dtype)))
    return Listed(*(jnp.moveaxis(x, -1, axis) for x in listed))
