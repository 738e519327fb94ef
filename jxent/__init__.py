"""Cross-entropy for JAX: right to the last digits, small, fast, and open to every transform.

`jxent.*_with_logits` give one loss per example (per class for sigmoid), `jxent.linear_*` the same
straight from the output projection, and `jxent.losses` the weighted and reduced scalar that a
training step differentiates. `jxent.*_statistics` tell what a softmax predicts.
"""

from importlib.metadata import version as _version

from jxent import _dispatch
from jxent import losses as losses
from jxent import platforms as _platforms  # noqa: F401 - each platform's ways are registered
from jxent._assumed_platform import assume_platform as assume_platform
from jxent._kernel import Transposed as Transposed
from jxent._kl_divergence import (
    linear_softmax_kl_divergence as linear_softmax_kl_divergence,
)
from jxent._kl_divergence import (
    softmax_kl_divergence_with_logits as softmax_kl_divergence_with_logits,
)
from jxent._linear import (
    linear_sigmoid_cross_entropy as linear_sigmoid_cross_entropy,
)
from jxent._linear import (
    linear_softmax_cross_entropy as linear_softmax_cross_entropy,
)
from jxent._linear import (
    linear_sparse_sigmoid_cross_entropy as linear_sparse_sigmoid_cross_entropy,
)
from jxent._linear import (
    linear_sparse_softmax_cross_entropy as linear_sparse_softmax_cross_entropy,
)
from jxent._linear_logits import (
    linear_logits as linear_logits,
)
from jxent._prediction import SoftmaxStatistics as SoftmaxStatistics
from jxent._softmax_statistics import (
    linear_sparse_softmax_statistics as linear_sparse_softmax_statistics,
)
from jxent._softmax_statistics import (
    sparse_softmax_statistics_with_logits as sparse_softmax_statistics_with_logits,
)
from jxent._with_logits import (
    sigmoid_cross_entropy_with_logits as sigmoid_cross_entropy_with_logits,
)
from jxent._with_logits import (
    softmax_cross_entropy_with_logits as softmax_cross_entropy_with_logits,
)
from jxent._with_logits import (
    sparse_sigmoid_cross_entropy_with_logits as sparse_sigmoid_cross_entropy_with_logits,
)
from jxent._with_logits import (
    sparse_softmax_cross_entropy_with_logits as sparse_softmax_cross_entropy_with_logits,
)
from jxent._with_logits import (
    weighted_cross_entropy_with_logits as weighted_cross_entropy_with_logits,
)

__version__ = _version("jxent")
_dispatch.close()
