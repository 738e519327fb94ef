"""Cross-entropy for JAX: right to the last digits, small, fast, and open to every transform.

`jxent.*_with_logits` give one loss per example (per class for sigmoid), `jxent.linear_*` the same
straight from the output projection, and `jxent.losses` the weighted and reduced scalar that a
training step differentiates. `jxent.*_statistics` tell what a softmax predicts.
"""

from importlib.metadata import version as _version

from jxent import losses
from jxent._src import platforms as _platforms  # noqa: F401 - registers each platform's implementations
from jxent._src.api.per_example.kl_divergence import (
    linear_softmax_kl_divergence,
    softmax_kl_divergence_with_logits,
)
from jxent._src.api.per_example.linear import (
    linear_sigmoid_cross_entropy,
    linear_softmax_cross_entropy,
    linear_sparse_sigmoid_cross_entropy,
    linear_sparse_softmax_cross_entropy,
)
from jxent._src.api.per_example.linear_logits import linear_logits
from jxent._src.api.per_example.sigmoid import (
    sigmoid_cross_entropy_with_logits,
    sparse_sigmoid_cross_entropy_with_logits,
    weighted_cross_entropy_with_logits,
)
from jxent._src.api.per_example.softmax import (
    softmax_cross_entropy_with_logits,
    sparse_softmax_cross_entropy_with_logits,
)
from jxent._src.api.per_example.statistics import (
    linear_sparse_softmax_statistics,
    sparse_softmax_statistics_with_logits,
)
from jxent._src.core import dispatch as _dispatch
from jxent._src.core.assumed_platform import assume_platform
from jxent._src.core.kernel import Transposed
from jxent._src.loss_fns.statistics import SoftmaxStatistics

__all__ = [
    "SoftmaxStatistics",
    "Transposed",
    "assume_platform",
    "linear_logits",
    "linear_sigmoid_cross_entropy",
    "linear_softmax_cross_entropy",
    "linear_softmax_kl_divergence",
    "linear_sparse_sigmoid_cross_entropy",
    "linear_sparse_softmax_cross_entropy",
    "linear_sparse_softmax_statistics",
    "losses",
    "sigmoid_cross_entropy_with_logits",
    "softmax_cross_entropy_with_logits",
    "softmax_kl_divergence_with_logits",
    "sparse_sigmoid_cross_entropy_with_logits",
    "sparse_softmax_cross_entropy_with_logits",
    "sparse_softmax_statistics_with_logits",
    "weighted_cross_entropy_with_logits",
]

# Their place in pickles, in messages and for doctest, wherever they are defined.
for _name in __all__:
    if _name != "losses":
        globals()[_name].__module__ = __name__
__version__ = _version("jxent")
_dispatch.freeze_registry()
