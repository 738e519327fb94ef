"""Each option once: its default and its range.

An option is a Python value that is compiled in. Those of a loss are fields of its dataclass, which
are checked when it is made.
"""

import math
import numbers
import reprlib
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jxent._src.core.elementary import computing_dtype


class Option(NamedTuple):
    """A number that a loss has as an option, or None where that is its default."""

    default: float | None
    least: float
    most: float
    range: str

    def checked(self, name: str, value: Any) -> float | None:
        """The value as a Python float, or what is wrong with it."""
        if value is None and self.default is None:
            return None
        require_static(name, value, "number")
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a Python number, got {short_repr(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not self.least <= number <= self.most:
            raise ValueError(f"{name} must be in {self.range}, got {short_repr(value)}")
        return number


_LARGEST = float(np.finfo(np.float64).max)
OPTIONS = {
    "label_smoothing": Option(0.0, 0, 1, "[0, 1]"),
    "z_loss": Option(0.0, 0, _LARGEST, "[0, inf)"),
    "focusing": Option(0.0, 0, _LARGEST, "[0, inf)"),
    "negative_focusing": Option(None, 0, _LARGEST, "[0, inf), or None for that of `focusing`"),
    "teacher_logit_softcap": Option(
        None, 1 / _LARGEST, _LARGEST, "(0, inf), a positive number, or None for no cap"
    ),
    "logit_softcap": Option(
        None, 1 / _LARGEST, _LARGEST, "(0, inf), a positive number, or None for no cap"
    ),
}


class Options:
    """The base of a dataclass of a loss: its fields that are in the table are checked."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            if field.name in OPTIONS:
                value = OPTIONS[field.name].checked(field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, value)


def in_dtype(loss: Any, dtype: DTypeLike) -> None:
    """Refuses options of a loss that logits of this dtype cannot be computed with."""
    info = jnp.finfo(computing_dtype(dtype))
    # Up to the root of the largest number the quotients of ordinary logits are not flushed to 0.
    least, most = float(info.tiny), math.sqrt(1 / float(info.tiny))
    for name in ("logit_softcap", "teacher_logit_softcap"):
        cap = getattr(loss, name, None)
        if cap is None or least <= cap <= most:
            continue
        raise ValueError(
            f"{name} must be in [{least:.3g}, {most:.3g}], where it and what it "
            f"divides are normal numbers of {info.dtype}, got {cap}"
        )


def require_static(name: str, value: Any, kind: str) -> None:
    """Refuses a tracer where a Python value is asked for."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        raise TypeError(
            f"{name} is an option, compiled in: it must be a Python {kind}, got a traced value; "
            "close over it, or name it in static_argnames"
        )


def short_repr(value: Any) -> str:
    """A value in an error message, shortened."""
    return reprlib.repr(value)
