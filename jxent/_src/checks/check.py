"""What goes in, checked before anything is computed: shapes, dtypes and options.

Shapes raise ValueError and dtypes TypeError, naming the argument, what came and what would be
right: both are asserted by chex, in `require`. Types and ranges of options are compared plainly.
"""

import inspect
import numbers
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from enum import Enum
from functools import cache
from itertools import chain
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from jxent._src.core.blocks import BlockSizes
from jxent._src.core.elementary import computing_dtype
from jxent._src.core.kernel import Kernel, Transposed
from jxent._src.core.options import require_static, short_repr

Kind = TypeVar("Kind", bound=Enum)


def require(name: str, x: Array | Kernel, expected: Any, message: str, **words: Any) -> None:
    """Refuses an array that chex's `assert_shape` or `assert_type` refuses, in our words alone.

    `expected` is a shape, with None for any size, a set of sizes and `...`, or a dtype. `message`
    is what `name` must be; it is formatted with `x`, `expected` and `words` where it is raised.
    """
    is_shape = isinstance(expected, tuple)
    # Our own comparison takes a quarter of the time, and is enough for most calls.
    fits = x.shape == expected if is_shape else jnp.issubdtype(x.dtype, expected)
    if fits:
        return
    assert_shape, assert_type = _assertions()
    try:
        (assert_shape if is_shape else assert_type)(x, expected)
    except AssertionError:
        said = message.format(x=x, expected=expected, **words)
        raise (ValueError if is_shape else TypeError)(f"{name} must {said}") from None


@cache
def _assertions() -> tuple[Callable[..., None], Callable[..., None]]:
    """Those of chex without the wrapper that `chex.disable_asserts()` switches off.

    What they refuse would otherwise broadcast, or give a plausible number.
    """
    # With its test variants, and so `unittest`, its import takes as long as that of all the rest.
    import chex  # noqa: PLC0415

    return inspect.unwrap(chex.assert_shape), inspect.unwrap(chex.assert_type)


def array(name: str, value: ArrayLike, dtype: DTypeLike | None = None) -> Array:
    """`value` as an array; what has no dtype of its own (a list, a number) takes `dtype`."""
    value = converted(name, value)
    if hasattr(value, "dtype"):
        dtype = None
    elif kinds(value) - _NUMBERS:
        # Before anything is cast: NumPy would take "1" for a number.
        raise TypeError(f"{name} must be an array of real numbers, got {short_repr(value)}")
    try:
        return jnp.asarray(value, dtype)
    except OverflowError as error:
        raise ValueError(f"{name} must hold numbers in range, got {short_repr(value)}") from error
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {short_repr(value)}") from error


def converted(name: str, value: Any) -> Any:
    """`value` with the arrays of other libraries as NumPy's, in lists too, and ranges as lists.

    NumPy drops the mask of a masked array, and JAX that of one in a list: an error here.
    """
    if type(value) is np.ndarray or isinstance(value, (int, float, jax.Array)):
        return value
    if value is None:
        raise ValueError(f"{name} must be a number or an array, got None")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must not be a masked array, whose mask would be lost: fill it with "
            "`.filled(...)`, and take what is masked out with weights of 0"
        )
    if isinstance(value, (list, tuple, range)):
        if _types(value) <= _KINDS.keys():
            return list(value) if isinstance(value, range) else value
        return [x if x is None else converted(name, x) for x in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return value
    is_array = hasattr(value, "__jax_array__") or hasattr(value, "__array__")
    return _read(name, value) if is_array else value


def _read(name: str, value: Any) -> Any:
    """An array of another library as NumPy's, or as JAX's where it says how."""
    if hasattr(value, "__jax_array__"):
        return value.__jax_array__()
    try:
        return np.asarray(value)
    except Exception as error:  # each library has errors of its own
        raise TypeError(
            f"{name} must be an array that NumPy can read, got {type(value).__name__}: {error}"
        ) from error


_NUMBERS = {"bool", "integer", "floating"}
_KINDS = {bool: "bool", int: "integer", float: "floating"}


def kinds(value: Any) -> set[str]:
    """What is in a list, a tuple or a number: kinds of numbers, or names of types."""
    if not isinstance(value, (list, tuple)):
        return {_kind(value)}
    types = _types(value)
    if types <= _KINDS.keys():
        return {_KINDS[t] for t in types}
    return set().union(*map(kinds, value))


def _types(value: Iterable[Any]) -> set[type]:
    """Those of what is in a list, or of what is in its lists; long ones take no loop of Python."""
    types = set(map(type, value))
    if types and types <= {list, tuple}:
        return _types(list(chain.from_iterable(value)))
    return types


def _kind(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    for kind, scalar, python in (
        ("bool", np.bool_, bool),
        ("integer", jnp.integer, int),
        ("floating", jnp.floating, float),
    ):
        if isinstance(leaf, python) if dtype is None else jnp.issubdtype(dtype, scalar):
            return kind
    return type(leaf).__name__


def floating(name: str, value: ArrayLike) -> Array:
    """`value` as an array of a floating dtype."""
    x = array(name, value)
    require(name, x, jnp.floating, "be floating, got {x.dtype}")
    return x


def real(name: str, x: Array) -> None:
    """Refuses what is neither floating nor integers nor bools."""
    if x.dtype != bool and not jnp.issubdtype(x.dtype, jnp.integer):
        require(name, x, jnp.floating, "be real, got {x.dtype}")


def same_shape(name: str, x: Array, shape: tuple[int, ...]) -> None:
    """Refuses another shape than that of the logits."""
    message = "have the shape of logits, {expected}, got {x.shape}; nothing is broadcast"
    require(name, x, shape, message)


def pos_weight(value: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike) -> Array | None:
    """A scalar, or an array of the rank of the logits that broadcasts to their shape.

    None for the number 1, which costs nothing.
    """
    if isinstance(value, numbers.Real) and value == 1:
        return None
    dtype = computing_dtype(dtype)
    q = array("pos_weight", value, dtype)
    real("pos_weight", q)
    fits = tuple({1, n} for n in shape[max(len(shape) - q.ndim, 0) :])
    message = (
        "be a number or broadcast to logits, e.g. one a class, got shape {x.shape} for logits of "
        "shape {shape}"
    )
    require("pos_weight", q, fits, message, shape=shape)
    if q.ndim:
        q = q.reshape((1,) * (len(shape) - q.ndim) + q.shape)
    return q.astype(dtype)


def temperature(value: ArrayLike, dtype: DTypeLike) -> Array | None:
    """A positive number, which may be traced, in the computing dtype; None for the number 1."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"temperature must be a number, got {short_repr(value)}")
    if isinstance(value, numbers.Real):
        if not 0 < value < np.inf:
            raise ValueError(f"temperature must be in (0, inf), got {short_repr(value)}")
        if value == 1:
            return None
    dtype = computing_dtype(dtype)
    t = array("temperature", value, dtype)
    real("temperature", t)
    if t.dtype == bool:
        raise TypeError(f"temperature must be a number, got {t.dtype}")
    require("temperature", t, (), "be one positive number, got shape {x.shape}")
    return t.astype(dtype)


def class_weight(value: ArrayLike, shape: tuple[int, ...], dtype: DTypeLike) -> Array | None:
    """`pos_weight` of a projection: a scalar, or one a class as `[1, classes]`."""
    if not isinstance(value, numbers.Real):
        value = array("pos_weight", value)
        if value.ndim:
            message = "be a number or one a class, shape {expected}, got {x.shape}"
            require("pos_weight", value, shape[-1:], message)
    return pos_weight(value, (1, shape[-1]), dtype)


def weights(
    value: ArrayLike, losses: tuple[int, ...], dtype: DTypeLike, *, per_example: bool
) -> Array:
    """A scalar, or an array of the losses' rank with each dimension 1 or equal to theirs.

    Where a loss is one number an example, a trailing dimension of 1 is dropped, as TensorFlow
    does: `[batch, 1]` weighs losses of shape `[batch]`.
    """
    w = array("weights", value, dtype)
    real("weights", w)
    trailing = per_example and w.ndim == len(losses) + 1
    if w.ndim:
        message = (
            "be a number, or have the rank of the losses with each dimension 1 or equal to "
            "theirs, got shape {x.shape} for losses of shape {losses}"
        )
        fits = (*({1, n} for n in losses), *[1] * trailing)
        require("weights", w, fits, message, losses=losses)
    return w.reshape(w.shape[:-1] if trailing else w.shape).astype(dtype)


def projection(
    inputs: ArrayLike, kernel: ArrayLike | Transposed, bias: ArrayLike | None, of: str = ""
) -> tuple[Array, Kernel, Array | None, tuple[int, ...]]:
    """The three arrays of a projection, and the shape of its logits. `of`: before their names."""
    x = floating(f"{of}inputs", inputs)
    w: Kernel
    if isinstance(kernel, Transposed):
        w = Transposed(floating(f"{of}kernel.table", kernel.table))
        message = "be [classes, features], got shape {x.shape}"
        require(f"{of}kernel.table", w.table, (None, None), message)
    else:
        w = floating(f"{of}kernel", kernel)
        message = "be [features, classes], got shape {x.shape}"
        require(f"{of}kernel", w, (None, None), message)
    wide = computing_dtype(x.dtype)
    or_wide = "" if x.dtype == wide else f", or {wide}"
    message = "have the dtype of {of}inputs, {expected}{or_wide}, got {x.dtype}"
    wanted = wide if w.dtype == wide else x.dtype
    require(f"{of}kernel", w, wanted, message, of=of, or_wide=or_wide)
    message = "be [*batch, features] and [features, classes], got shapes {x.shape} and {kernel}"
    both, fits = f"{of}inputs and {of}kernel", (*x.shape[:-1], w.shape[0])
    require(both, x, fits, message, kernel=_short_repr(w))
    if w.shape[1] == 0:
        raise ValueError(f"{of}kernel must have at least one class, got shape {_short_repr(w)}")
    _static(f"{of}kernel", w.shape)
    if bias is not None:
        bias = array(f"{of}bias", bias, computing_dtype(x.dtype))
        real(f"{of}bias", bias)
        message = "have one number a class, shape {expected}, got {x.shape}"
        require(f"{of}bias", bias, w.shape[1:], message)
        bias = bias.astype(computing_dtype(x.dtype))
    return x, w, bias, (*x.shape[:-1], w.shape[1])


def _short_repr(kernel: Kernel) -> str:
    """The shape of a kernel in a message."""
    if isinstance(kernel, Transposed):
        return f"{kernel.shape}, of a table {kernel.table.shape}"
    return str(kernel.shape)


def teacher(logits: ArrayLike, like: Array) -> Array:
    """A teacher's logits, of the shape of the student's; of any floating dtype."""
    x = floating("teacher_logits", logits)
    same_shape("teacher_logits", x, like.shape)
    return x


def teacher_projection(inputs: Array, kernel: Kernel, shape: tuple[int, ...]) -> None:
    """Refuses a teacher whose logits have another shape than the student's."""
    message = "have the batch of inputs, {batch}, got shape {x.shape}"
    require("teacher_inputs", inputs, (*shape[:-1], None), message, batch=shape[:-1])
    message = "have the classes of kernel, {expected[1]}, got shape {x.shape}"
    require("teacher_kernel", kernel, (None, shape[-1]), message)


def block_sizes(block_size: int | None, class_block_size: int | None = None) -> BlockSizes:
    """The block sizes that the caller asks for, of examples or of classes."""
    examples = _block_size("block_size", block_size)
    classes = _block_size("class_block_size", class_block_size)
    if examples is not None and classes is not None:
        raise ValueError(
            "class_block_size must be None where block_size is given: a block is one of examples "
            f"or one of classes, got {classes} and {examples}"
        )
    return BlockSizes(examples, classes)


def rows_per_block(value: int) -> int:
    """A block size that must be given."""
    _integer("block_size", value)
    size = _block_size("block_size", value)
    assert size is not None
    return size


def _block_size(name: str, value: int | None) -> int | None:
    if value is None:
        return None
    size = _integer(name, value, " or None")
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {short_repr(value)}")
    return size


def _integer(name: str, value: int, also: str = "") -> int:
    require_static(name, value, "integer")
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a Python integer{also}, got {short_repr(value)}")
    return int(value)


def axis(value: int, logits: Array) -> int:
    """The axis of the classes, counted from the end."""
    index = _integer("axis", value)
    require("logits", logits, (None, ...), "have an axis of classes, got shape ()")
    if not -logits.ndim <= index < logits.ndim:
        raise ValueError(
            f"axis must be one of the {logits.ndim} axes of logits, got {short_repr(value)} "
            f"for shape {logits.shape}"
        )
    if logits.shape[index] == 0:
        raise ValueError(f"logits must have at least one class, got shape {logits.shape}")
    _static("logits", logits.shape[index : index + 1 or None])
    return index % logits.ndim - logits.ndim


def _static(name: str, sizes: Iterable[int]) -> None:
    """Only the batch may have symbolic sizes, see `jax.export`."""
    if not all(isinstance(n, int) for n in sizes):
        raise ValueError(f"{name} must have classes and features of known number, got {sizes}")


def flag(name: str, value: bool) -> bool:
    """A Python bool."""
    require_static(name, value, "bool")
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {short_repr(value)}")
    return bool(value)


def axis_name(value: Hashable | None) -> Hashable | None:
    """A mesh axis that a surrounding `shard_map` binds."""
    if value is not None:
        require_static("axis_name", value, "string")
        try:
            if value == () or not isinstance(value, Hashable):
                raise ValueError("no axis is named")
            jax.lax.axis_size(value)
        except (NameError, TypeError, ValueError) as error:
            raise ValueError(
                "axis_name must name an axis of the mesh of a surrounding shard_map, over which "
                f"the classes are split, got {short_repr(value)}"
            ) from error
    return value


def reduction(value: Enum | str, kinds: type[Kind]) -> Kind:
    """The reduction that is meant."""
    require_static("reduction", value, "string")
    try:
        return kinds(value)
    except (TypeError, ValueError):
        known = ", ".join(repr(kind.value) for kind in kinds) + ", 'mean', 'sum'"
        raise ValueError(f"reduction must be one of {known}, got {short_repr(value)}") from None


def scope(
    value: str | None, default: str, *, argument: str = "name"
) -> AbstractContextManager[None]:
    """The named scope of a call."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{argument} must be a string, got {short_repr(value)}")
    return jax.named_scope(value or default)
