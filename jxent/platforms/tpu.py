"""What XLA:TPU wants spelled otherwise: each way with its reason."""


from jaxtyping import Array

from jxent import _logsumexp
from jxent._dispatch import way
from jxent._logsumexp import LabelNormalizer, LabelsStatistics
from jxent._mesh import Classes
from jxent.platforms import _one_pass


@way(_logsumexp.pair_of_rows, "tpu")
def _pair_in_one_pass(classes: Classes, x: Array) -> tuple[Array, Array]:
    return _one_pass.pair_of_rows(_one_pass.reduced, classes, x)


@way(_logsumexp.label_statistics, "tpu")
def _label_statistics_in_one_pass(
    classes: Classes, smoothing: float, x: Array, ids: Array
) -> LabelNormalizer:
    return _one_pass.label_statistics(_one_pass.reduced, classes, smoothing, x, ids)


@way(_logsumexp.labels_statistics, "tpu")
def _labels_statistics_in_one_pass(
    classes: Classes, smoothing: float, x: Array, z: Array
) -> LabelsStatistics:
    return _one_pass.labels_statistics(_one_pass.reduced, classes, smoothing, x, z)
