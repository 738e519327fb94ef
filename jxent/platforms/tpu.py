"""What XLA:TPU wants spelled otherwise: each way with its reason."""

from jaxtyping import Array

from jxent import _logsumexp, _softmax
from jxent._dispatch import way
from jxent._logsumexp import LabelNormalizer, LabelsStatistics
from jxent._mesh import Classes
from jxent.platforms import _one_pass

# Passes over 4096 x 32768 bfloat16 logits as compiled for a v5e, value and gradient: ids 3.00
# instead of 4.00, smoothed 3.00 instead of 4.00 to 5.00, dense labels 5.00 instead of 7.00; on any
# axis. A product that makes the logits is fused with the reduction.


@way(_logsumexp.pair_of_rows, "tpu")
def _pair_in_one_pass(classes: Classes, x: Array) -> tuple[Array, Array]:
    return _one_pass.pair_of_rows(classes, x)


@way(_logsumexp.label_statistics, "tpu")
def _label_statistics_in_one_pass(
    classes: Classes, smoothing: float, x: Array, ids: Array
) -> LabelNormalizer:
    return _one_pass.label_statistics(classes, smoothing, x, ids)


@way(_logsumexp.labels_statistics, "tpu")
def _labels_statistics_in_one_pass(
    classes: Classes, smoothing: float, x: Array, z: Array
) -> LabelsStatistics:
    return _one_pass.labels_statistics(classes, smoothing, x, z)


@way(_softmax.stored, "tpu", applies=lambda has_ids, _: has_ids)
def _capped_in_each_pass(_: bool, x: Array) -> Array:
    """The maximum and the label's logit are of one reduction: 3 passes; stored it would be 9."""
    return x
