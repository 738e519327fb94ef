"""The scalar that a training step differentiates: weighted, smoothed, reduced.

These are the losses of TensorFlow 1's `tf.losses` (`tf.compat.v1.losses`), under their names
and with their meaning, as pure functions. TensorFlow's `loss_collection` is missing on purpose:
it adds the loss to a global list, and a pure function has none. Add the losses up where they
are computed; `scope` names the computation in profiles (`jax.named_scope`).

A weight of 0 takes an element out altogether. It adds exactly 0 to the loss and to every
derivative, even where its own loss is inf or NaN, so `weights=labels >= 0` ignores padding:

>>> import jax.numpy as jnp
>>> labels = jnp.array([2, 0, -1])  # the last is padding
>>> logits = jnp.zeros((3, 4))
>>> sparse_softmax_cross_entropy(labels, logits, weights=labels >= 0)
Array(1.3862944, dtype=float32)
"""

from jxent._src.api.reduced.blockwise import blockwise
from jxent._src.api.reduced.kl_divergence import (
    linear_softmax_kl_divergence,
    softmax_kl_divergence,
)
from jxent._src.api.reduced.linear_sigmoid import (
    linear_sigmoid_cross_entropy,
    linear_sparse_sigmoid_cross_entropy,
)
from jxent._src.api.reduced.linear_softmax import (
    linear_softmax_cross_entropy,
    linear_sparse_softmax_cross_entropy,
)
from jxent._src.api.reduced.sigmoid import (
    sigmoid_cross_entropy,
    sparse_sigmoid_cross_entropy,
)
from jxent._src.api.reduced.softmax import (
    softmax_cross_entropy,
    sparse_softmax_cross_entropy,
)
from jxent._src.api.reduced.weighted import compute_weighted_loss
from jxent._src.run.reduction import Reduction, SoftmaxAux

__all__ = [
    "Reduction",
    "SoftmaxAux",
    "blockwise",
    "compute_weighted_loss",
    "linear_sigmoid_cross_entropy",
    "linear_softmax_cross_entropy",
    "linear_softmax_kl_divergence",
    "linear_sparse_sigmoid_cross_entropy",
    "linear_sparse_softmax_cross_entropy",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
    "softmax_kl_divergence",
    "sparse_sigmoid_cross_entropy",
    "sparse_softmax_cross_entropy",
]

# Their place in pickles, in messages and for doctest, wherever they are defined.
for _name in __all__:
    globals()[_name].__module__ = __name__
