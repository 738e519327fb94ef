"""What XLA:GPU wants spelled otherwise: each way with its reason."""

from typing import Any

import jax
from jaxtyping import Array

from jxent import _logsumexp, _projection, _sigmoid
from jxent._dispatch import way
from jxent._logsumexp import LabelNormalizer, LabelsStatistics
from jxent._mesh import Classes
from jxent.platforms import _one_pass

# Passes over 4096 x 32768 bfloat16 logits as compiled for an H100, value and gradient: ids 3.05
# instead of 4.06, smoothed 3.08 instead of 5.10, dense labels 5.06 instead of 6.08. Joining slices
# of the rows before they are reduced would read dense labels twice and move logits where a mesh
# splits the classes.


# On another axis than the last one XLA:GPU transposes all operands: 15 passes instead of 4.
def _are_last(classes: Classes, *_: Any) -> bool:
    return classes.axis == -1


@way(_logsumexp.pair_of_rows, "cuda", applies=_are_last)
@way(_logsumexp.pair_of_rows, "rocm", applies=_are_last)
def _pair_in_one_pass(classes: Classes, x: Array) -> tuple[Array, Array]:
    return _one_pass.pair_of_rows(classes, x)


@way(_logsumexp.label_statistics, "cuda", applies=_are_last)
@way(_logsumexp.label_statistics, "rocm", applies=_are_last)
def _label_statistics_in_one_pass(
    classes: Classes, smoothing: float, x: Array, ids: Array
) -> LabelNormalizer:
    return _one_pass.label_statistics(classes, smoothing, x, ids)


@way(_logsumexp.labels_statistics, "cuda", applies=_are_last)
@way(_logsumexp.labels_statistics, "rocm", applies=_are_last)
def _labels_statistics_in_one_pass(
    classes: Classes, smoothing: float, x: Array, z: Array
) -> LabelsStatistics:
    return _one_pass.labels_statistics(classes, smoothing, x, z)


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
