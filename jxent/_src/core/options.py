"""Each option once: its default, its range, and what docstrings say of it.

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


_SPLIT = (
    "Under `shard_map`, the mesh axis that the classes are split over, in parts of equal width; "
    "{} Gradients taken inside need shard_map's default `check_vma=True`."
)
_LABELS, _IDS = "labels are split like the logits.", "ids stay global."
_REDUCED = (
    " The reduction is over this chip's examples: for a mean over all of them take "
    "`Reduction.SUM` and divide by a `psum` of the count."
)
_WHOLE = " None: the classes are whole, or split by `jit` alone."
_NAMES = "Names the computation in profiles (`jax.named_scope`)."

# What the docstrings say of an argument: one of these, word for word.
OPTION_DOCS: dict[str, tuple[str, ...]] = {
    "label_smoothing": (
        "The share s, in [0, 1], by which labels move towards 1/2.",
        "The share s of the labels, in [0, 1], that is spread evenly over the C classes that are "
        "not at -inf.",
    ),
    "z_loss": ("The factor on logsumexp squared, which keeps logits from drifting; >= 0.",),
    "logit_softcap": (
        "A positive number c: the logits become c tanh(logits / c).",
        "A positive number c: the logits become c tanh(logits / c). A class at -inf stays ruled "
        "out.",
        "A positive number c: the logits become c tanh(logits / c), after the bias.",
        "A positive number c: the logits become c tanh(logits / c), after the bias. A class at "
        "-inf stays ruled out.",
    ),
    "focusing": (
        "A power g >= 0: each label's term is multiplied by (1 - p)^g, p the probability that is "
        "given to what the label says, so that well classified ones count little.",
        "A power g >= 0: the cross-entropy is multiplied by (1 - p)^g, p the probability of the "
        "label, so that well classified examples count little; z-loss is not. Not with "
        "`label_smoothing`.",
    ),
    "negative_focusing": (
        "Another power for the term of negative labels, 1 - z; None for that of `focusing`.",
    ),
    "pos_weight": (
        "The factor q on positive labels: a number, or an array that broadcasts to the logits, "
        "`[classes]` for one a class. Differentiable.",
        "The factor q on positive labels: a number, or an array that broadcasts to the logits, "
        "`[classes]` for one a class. Differentiable. A negative one is computed as the formula "
        "says.",
        "The factor q on positive labels: a number, or `[classes]` for one a class. "
        "Differentiable.",
    ),
    "weights": (
        "A number, or an array of one weight an example: `[*batch]` with each dimension 1 or "
        "equal to the losses', or that with a trailing 1. Where it is 0 the example takes no "
        "part. Differentiable.",
        "A number, or an array of the logits' rank with each dimension 1 or equal to theirs. "
        "Where it is 0 the element takes no part. Differentiable.",
        "A number, or an array of the losses' rank with each dimension 1 or equal to theirs; "
        "`[batch, 1]` for losses of shape `[batch]` too. Differentiable.",
    ),
    "axis": ("The axis of `logits` that holds the classes.",),
    "axis_name": tuple(
        _SPLIT.format(labels) + reduced + _WHOLE
        for labels in (_LABELS, _IDS)
        for reduced in ("", _REDUCED)
    ),
    "block_size": (
        "Examples a block. Smaller blocks hold fewer logits, larger ones make faster products. "
        "None takes 2^25 / classes, and at least features / 2: adding to the kernel's gradient "
        "passes over it once a block. Under automatic sharding the shapes seen are the global "
        "ones; pass it there.",
        "Examples a block. Smaller blocks hold fewer logits, larger ones make faster products. "
        "None takes 2^24 / classes, and at least features / 2: adding to the kernel's gradient "
        "passes over it once a block. Under automatic sharding the shapes seen are the global "
        "ones; pass it there.",
        "Rows a block. Smaller blocks hold less, larger ones make faster products.",
    ),
    "class_block_size": (
        "Classes a block, in place of examples. None, where `block_size` is None too, takes 4 a "
        "feature and at least 1024, if there are more classes than examples: each block then has "
        "its losses and its gradients at once, and the kernel's gradient is written once.",
        "Classes a block, in place of examples: after the losses each block has its gradients, a "
        "product more, but the kernel's gradient is written once. None, where `block_size` is None "
        "too, leaves it to shapes and platform.",
        "Classes a block, in place of examples: the kernel's gradient is written once. None, where "
        "`block_size` is None too, leaves it to shapes and platform.",
    ),
    "label_weights": tuple(
        "A weight for each of several ids an example, with labels `[*batch, ids]`: the loss is "
        "that of dense labels with these weights, which need not sum to 1. A negative id is "
        f"padding, one that appears twice adds up. Differentiable. Not with `focusing`{more}."
        for more in ("", " or `class_block_size`")
    ),
    "reduction": (
        'A `Reduction` or its value, e.g. `"weighted_mean"`.',
        'A `Reduction` or its value, e.g. `"weighted_mean"`. `NONE` costs one product more in '
        "reverse mode.",
        'A `Reduction` or its value, e.g. `"weighted_mean"`. `NONE` computes each block once more '
        "in reverse mode.",
    ),
    "teacher_logit_softcap": ("The same of the teacher's logits.",),
    "temperature": (
        "A positive number, which may be traced: divides the float32 logits, after the cap. "
        "Differentiable; NaN comes of one that is not positive.",
        "A positive number, which may be traced: divides both logits in float32, after the caps. "
        "Differentiable; NaN comes of one that is not positive. The loss is not multiplied by its "
        "square.",
    ),
    "has_aux": (
        "True returns `(loss, SoftmaxAux)`: beside the loss its parts and the accuracy, as "
        "`jax.value_and_grad(loss_fn, has_aux=True)` takes them. Not with `Reduction.NONE`.",
        "True returns `(loss, sums)`: of each array in `more` the sum over the rows, each times "
        "its weight, in float32 at least; constants to differentiation. Not with `Reduction.NONE`.",
    ),
    "name": (_NAMES,),
    "scope": (_NAMES,),
}
