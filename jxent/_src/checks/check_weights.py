"""Which examples and elements count, checked before anything is computed."""

from jax.typing import ArrayLike
from jaxtyping import Array

from jxent._src.checks import check
from jxent._src.core.options import require_static, short_repr


def mask(value: ArrayLike | None, *shapes: tuple[int, ...]) -> Array | None:
    """A boolean array in one of these shapes, or None."""
    if value is None:
        return None
    x = check.array("mask", value)
    if x.dtype != bool:
        raise TypeError(f"mask must be boolean, got {x.dtype}")
    if x.shape not in shapes:
        allowed = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ValueError(f"mask must have shape {allowed}, got {x.shape}")
    return x


def mean_over(value: str) -> str:
    """What a mean counts: "elements" or "examples"."""
    require_static("mean_over", value, "string")
    if not isinstance(value, str) or value not in ("elements", "examples"):
        raise ValueError(f"mean_over must be 'elements' or 'examples', got {short_repr(value)}")
    return value


def weights_of_examples(weights: Array, shape: tuple[int, ...]) -> None:
    """Weights of losses of this shape that weigh all classes of an example alike."""
    if not shape:
        raise ValueError("mean_over must be 'elements' for logits of rank 0: they have no classes")
    if weights.ndim and weights.shape[-1] != 1:
        raise ValueError(
            "weights must be a number or have a last dimension of 1 with mean_over='examples', "
            f"got shape {weights.shape} for logits of shape {shape}"
        )
