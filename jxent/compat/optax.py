"""The losses of classification under optax's names, with its arguments, defaults and meaning.

Change an import, and get the digits and the memory of jxent. optax itself need not be installed.

>>> from jxent.compat.optax import softmax_cross_entropy_with_integer_labels
>>> import jax.numpy as jnp
>>> softmax_cross_entropy_with_integer_labels(jnp.array([20.0, 0.0]), jnp.array(0)) > 0
Array(True, dtype=bool)
"""

from jxent._src.api.compat.optax_divergences import (
    convex_kl_divergence,
    generalized_kl_divergence,
    kl_divergence,
    kl_divergence_with_log_targets,
)
from jxent._src.api.compat.optax_sigmoid import (
    sigmoid_binary_cross_entropy,
    sigmoid_focal_loss,
)
from jxent._src.api.compat.optax_softmax import (
    poly_loss_cross_entropy,
    safe_softmax_cross_entropy,
    smooth_labels,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)

__all__ = [
    "convex_kl_divergence",
    "generalized_kl_divergence",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "poly_loss_cross_entropy",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
]
