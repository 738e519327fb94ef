"""Formulas of what has no loss per example: statistics, and logits as they are."""

import jax.numpy as jnp
import numpy as np

from tests import reference


def statistics(labels, logits, **options):
    """The three statistics, each along a last axis of its own; of lists of ids a weighted sum."""
    fields = ("log_prob", "entropy", "log_normalizer")
    found = [reference.statistics(field, labels, logits, **options) for field in fields]
    return jnp.stack([one_per_example(found[0], found[1]), *found[1:]], -1)


def one_per_example(log_prob, like):
    if log_prob.ndim == like.ndim:
        return log_prob
    factors = 1 / (1 + np.arange(log_prob.shape[-1]))
    return jnp.sum(log_prob * np.broadcast_to(factors, log_prob.shape).astype(log_prob.dtype), -1)


def given(labels, logits):
    return logits
