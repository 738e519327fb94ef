"""Cross-entropy for JAX: right to the last digits, small, fast, and open to every transform.

`jxent.*_with_logits` give one loss per example (per class for sigmoid), `jxent.linear_*` the same
straight from the output projection, and `jxent.losses` the weighted and reduced scalar that a
training step differentiates. `jxent.*_statistics` tell what a softmax predicts.
"""

from importlib.metadata import version as _version

from jxent import losses as losses
from jxent._src import platforms as _platforms  # noqa: F401 - registers each platform's implementations
from jxent._src.api.per_example.kl_divergence import (
    linear_softmax_kl_divergence as linear_softmax_kl_divergence,
    softmax_kl_divergence_with_logits as softmax_kl_divergence_with_logits,
)
from jxent._src.api.per_example.linear import (
    linear_sigmoid_cross_entropy as linear_sigmoid_cross_entropy,
    linear_softmax_cross_entropy as linear_softmax_cross_entropy,
    linear_sparse_sigmoid_cross_entropy as linear_sparse_sigmoid_cross_entropy,
    linear_sparse_softmax_cross_entropy as linear_sparse_softmax_cross_entropy,
)
from jxent._src.api.per_example.linear_logits import linear_logits as linear_logits
from jxent._src.api.per_example.sigmoid import (
    sigmoid_cross_entropy_with_logits as sigmoid_cross_entropy_with_logits,
    sparse_sigmoid_cross_entropy_with_logits as sparse_sigmoid_cross_entropy_with_logits,
    weighted_cross_entropy_with_logits as weighted_cross_entropy_with_logits,
)
from jxent._src.api.per_example.softmax import (
    softmax_cross_entropy_with_logits as softmax_cross_entropy_with_logits,
    sparse_softmax_cross_entropy_with_logits as sparse_softmax_cross_entropy_with_logits,
)
from jxent._src.api.per_example.statistics import (
    linear_sparse_softmax_statistics as linear_sparse_softmax_statistics,
    sparse_softmax_statistics_with_logits as sparse_softmax_statistics_with_logits,
)
from jxent._src.core import dispatch as _dispatch
from jxent._src.core.assumed_platform import assume_platform as assume_platform
from jxent._src.core.kernel import Transposed as Transposed
from jxent._src.loss_fns.statistics import SoftmaxStatistics as SoftmaxStatistics

# Their place in pickles, wherever they are defined.
Transposed.__module__ = SoftmaxStatistics.__module__ = "jxent"
__version__ = _version("jxent")
_dispatch.freeze_registry()
