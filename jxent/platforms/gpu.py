"""What XLA:GPU wants spelled otherwise: each way with its reason."""

from typing import Any

import jax
from jaxtyping import Array

from jxent import _projection, _sigmoid
from jxent._dispatch import way
from jxent._mesh import Classes
from jxent.platforms import _one_pass

# Passes over 4096 x 32768 bfloat16 logits as compiled for an H100, value and gradient: ids 3.05
# instead of 4.06, smoothed 3.08 instead of 5.10, dense labels 5.06 instead of 6.08. Joining slices
# of the rows before they are reduced would read dense labels twice and move logits where a mesh
# splits the classes.


# On another axis than the last one XLA:GPU transposes all operands: 15 passes instead of 4.
def _are_last(classes: Classes, *_: Any) -> bool:
    return classes.axis == -1


for function, in_one_pass in _one_pass.WAYS.items():
    for platform in ("cuda", "rocm"):
        way(function, platform, applies=_are_last)(in_one_pass)


@way(_projection.once, "cuda")
@way(_projection.once, "rocm")
def _stored_slope(slope: Array) -> Array:
    """Else it is stored once for each of the two products."""
    stored: Array = jax.lax.optimization_barrier(slope)
    return stored


@way(_sigmoid.read_again, "cuda")
@way(_sigmoid.read_again, "rocm")
def _of_their_own(ids: Array) -> Array:
    """Else loss and gradient share the mask of the listed classes, and store it."""
    own: Array = jax.lax.optimization_barrier(ids)
    return own
