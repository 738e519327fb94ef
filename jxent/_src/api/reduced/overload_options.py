"""The options of the softmax losses that return a tuple with `has_aux`, for type checkers.

An overload for each return type repeats the signature: they take what is the same from here.
`tests/test_layout.py` compares it with the signatures.
"""

from typing import TypedDict

from jxent._src.core.elementary import Bias, Ids, Numbers
from jxent._src.run.reduction import Reduction


class _AnySoftmaxOptions(TypedDict, total=False):
    z_loss: float
    logit_softcap: float | None
    axis_name: str | None
    scope: str | None
    reduction: Reduction | str


class SoftmaxOptions(_AnySoftmaxOptions, total=False):
    """Of dense labels and logits."""

    axis: int


class SparseSoftmaxOptions(SoftmaxOptions, total=False):
    """Of class ids and logits."""

    label_weights: Numbers | None
    excluded: Ids | None
    focusing: float


class LinearSoftmaxOptions(_AnySoftmaxOptions, total=False):
    """Of dense labels and a projection."""

    bias: Bias | None
    weights: Numbers
    label_smoothing: float
    block_size: int | None


class LinearSparseSoftmaxOptions(LinearSoftmaxOptions, total=False):
    """Of class ids and a projection."""

    label_weights: Numbers | None
    excluded: Ids | None
    focusing: float
    class_block_size: int | None
