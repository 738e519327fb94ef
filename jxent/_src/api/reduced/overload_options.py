"""The options of the softmax losses that return a tuple with `has_aux`, for type checkers.

An overload for each return type repeats the signature: they take what is the same from here.
`tests/test_layout.py` compares it with the signatures.
"""

from typing import TypedDict

from jxent._src.core.elementary import Bias, Numbers
from jxent._src.run.reduction import Reduction


class SoftmaxOptions(TypedDict, total=False):
    """Of dense labels and logits."""

    z_loss: float
    logit_softcap: float | None
    axis_name: str | None
    scope: str | None
    reduction: Reduction | str


class SparseSoftmaxOptions(SoftmaxOptions, total=False):
    """Of class ids."""

    label_weights: Numbers | None
    focusing: float


class LinearSoftmaxOptions(SoftmaxOptions, total=False):
    """Of a projection."""

    bias: Bias | None
    weights: Numbers
    label_smoothing: float
    block_size: int | None


class LinearSparseSoftmaxOptions(LinearSoftmaxOptions, SparseSoftmaxOptions, total=False):
    """Of class ids and a projection."""

    class_block_size: int | None
