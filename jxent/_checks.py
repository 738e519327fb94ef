"""What goes in, checked before anything is computed: shapes, dtypes and options.

Shapes raise ValueError and dtypes TypeError, naming the argument and what would be right. What
JAX itself would refuse later is left to chex; what would broadcast, or give a plausible number,
is raised by our own `if`, since `chex.disable_asserts()` must not disarm it.
"""

import math
import numbers

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jxent._widen import computing_dtype


def array(name: str, value: ArrayLike, dtype=None) -> Array:
    """`value` as an array; what has no dtype of its own (a list, a number) takes `dtype`."""
    try:
        return jnp.asarray(value, None if hasattr(value, "dtype") else dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {value!r}") from error


def floating(name: str, value: ArrayLike) -> Array:
    """`value` as an array of a floating dtype."""
    x = array(name, value)
    chex.assert_type(
        x,
        float,
        exception_type=TypeError,
        custom_message=f"{name} must be floating, got {x.dtype}",
    )
    return x


def dense_labels(value: ArrayLike, logits: Array) -> Array:
    """Labels of the logits' shape and dtype."""
    labels = array("labels", value, logits.dtype)
    _same_shape("labels", labels, logits)
    if labels.dtype != logits.dtype:
        raise TypeError(
            f"labels must have the dtype of logits, {logits.dtype}, got {labels.dtype}; class "
            "ids go to the sparse_ functions"
        )
    return labels


def castable_labels(name: str, value: ArrayLike, logits: Array) -> Array:
    """Labels of the logits' shape, of any real dtype."""
    labels = array(name, value, computing_dtype(logits.dtype))
    _same_shape(name, labels, logits)
    _real(name, labels)
    return labels


def _same_shape(name: str, labels: Array, logits: Array) -> None:
    if labels.shape != logits.shape:
        raise ValueError(
            f"{name} must have the shape of logits, {logits.shape}, got {labels.shape}; nothing "
            "is broadcast"
        )


def _real(name: str, x: Array) -> None:
    if not (
        jnp.issubdtype(x.dtype, jnp.floating)
        or jnp.issubdtype(x.dtype, jnp.integer)
        or x.dtype == bool
    ):
        raise TypeError(f"{name} must be real, got {x.dtype}")


def class_ids(value: ArrayLike, logits: Array, axis: int, *, trailing_one: bool = False) -> Array:
    """Integer ids, one for each example of the logits.

    With `trailing_one`, ids `[*batch, 1]` are taken as `[*batch]`, as `tf.losses` does.
    """
    ids = array("labels", value, jnp.int32)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"labels must be integer class ids, got {ids.dtype}")
    shape = list(logits.shape)
    del shape[axis]
    if trailing_one and ids.shape == (*shape, 1):
        ids = ids.reshape(shape)
    if ids.shape != tuple(shape):
        raise ValueError(
            f"labels must have the shape of logits without axis {axis}, {tuple(shape)}, got "
            f"{ids.shape} for logits of shape {logits.shape}"
        )
    return ids


def pos_weight(value: ArrayLike, logits: Array) -> Array:
    """A scalar, or an array of the logits' rank that broadcasts to them, in their wide dtype."""
    dtype = computing_dtype(logits.dtype)
    q = array("pos_weight", value, dtype)
    _real("pos_weight", q)
    try:
        fits = np.broadcast_shapes(q.shape, logits.shape) == logits.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            "pos_weight must be a number or broadcast to logits, e.g. one a class, got shape "
            f"{q.shape} for logits of shape {logits.shape}"
        )
    if q.ndim:
        q = q.reshape((1,) * (logits.ndim - q.ndim) + q.shape)
    return q.astype(dtype)


def weights(value: ArrayLike, losses: tuple[int, ...], dtype, *, per_example: bool) -> Array:
    """A scalar, or an array of the losses' rank with each dimension 1 or equal to theirs.

    Where a loss is one number an example, a trailing dimension of 1 is dropped, as TensorFlow
    does: `[batch, 1]` weighs losses of shape `[batch]`.
    """
    if value is None:
        raise ValueError("weights must be a number or an array, got None; 1.0 weighs all alike")
    w = array("weights", value, dtype)
    _real("weights", w)
    shape = w.shape
    if per_example and len(shape) == len(losses) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    fits = len(shape) == len(losses) and all(
        a in (1, b) for a, b in zip(shape, losses, strict=True)
    )
    if shape and not fits:
        raise ValueError(
            "weights must be a number, or have the rank of the losses with each dimension 1 or "
            f"equal to theirs, got shape {w.shape} for losses of shape {losses}"
        )
    return w.reshape(shape).astype(dtype)


def axis(value: int, logits: Array) -> int:
    """The axis of the classes, counted from the front."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"axis must be a Python integer, got {value!r}")
    if not -logits.ndim <= value < logits.ndim:
        raise ValueError(
            f"axis must be one of the {logits.ndim} axes of logits, got {value} for shape "
            f"{logits.shape}"
        )
    return int(value) % logits.ndim


def label_smoothing(value: float) -> float:
    return _number("label_smoothing", value, 0 <= _python("label_smoothing", value) <= 1, "[0, 1]")


def z_loss(value: float) -> float:
    return _number("z_loss", value, 0 <= _python("z_loss", value) < math.inf, "[0, inf)")


def logit_softcap(value: float | None) -> float | None:
    if value is None:
        return None
    in_range = 0 < _python("logit_softcap", value) < math.inf
    return _number("logit_softcap", value, in_range, "(0, inf), or None for no cap")


def _python(name: str, value) -> float:
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} is an option, compiled in: it must be a Python number, got a traced value; "
            "close over it, or name it in static_argnames"
        )
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a Python number, got {value!r}")
    return float(value)


def _number(name: str, value, in_range: bool, wanted: str) -> float:
    if not in_range:
        raise ValueError(f"{name} must be in {wanted}, got {value!r}")
    return float(value)


def scope(value: str | None, default: str, *, argument: str = "name"):
    """The named scope of a call."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{argument} must be a string, got {value!r}")
    return jax.named_scope(value or default)
