"""A user's program that calls every public function: strict type checkers know all its types.

`tests/api/test_type_checkers.py` checks it; nothing runs it.
"""

from collections.abc import Callable

import jax

import jxent
from jxent import losses
from jxent.compat import optax


def per_example(x: jax.Array, w: jax.Array, y: jax.Array, mask: jax.Array) -> list[jax.Array]:
    found = jxent.sparse_softmax_statistics_with_logits(labels=y, logits=x, mask=mask)
    linear = jxent.linear_sparse_softmax_statistics(labels=y, inputs=x, kernel=w, temperature=0.7)
    return [
        jxent.sigmoid_cross_entropy_with_logits(labels=x, logits=x, mask=mask),
        jxent.weighted_cross_entropy_with_logits(labels=x, logits=x, pos_weight=2.0),
        jxent.sparse_sigmoid_cross_entropy_with_logits(labels=y, logits=x, label_smoothing=0.1),
        jxent.softmax_cross_entropy_with_logits(labels=x, logits=x, axis=0),
        jxent.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x, label_weights=x),
        jxent.softmax_kl_divergence_with_logits(teacher_logits=x, logits=x, temperature=2.0),
        jxent.linear_logits(inputs=x, kernel=w),
        jxent.linear_sigmoid_cross_entropy(labels=x, inputs=x, kernel=w),
        jxent.linear_sparse_sigmoid_cross_entropy(labels=y, inputs=x, kernel=w),
        jxent.linear_softmax_cross_entropy(labels=x, inputs=x, kernel=jxent.Transposed(w)),
        jxent.linear_sparse_softmax_cross_entropy(
            labels=y, inputs=x, kernel=w, excluded=y[:, None]
        ),
        jxent.linear_softmax_kl_divergence(
            teacher_inputs=x, teacher_kernel=w, inputs=x, kernel=w, mask=mask
        ),
        found.log_prob + linear.entropy,
    ]


def reduced(x: jax.Array, w: jax.Array, y: jax.Array) -> list[jax.Array]:
    loss, aux = losses.softmax_cross_entropy(x, x, has_aux=True, z_loss=1e-4)
    more, of_ids = losses.sparse_softmax_cross_entropy(y, x, y >= 0, has_aux=True, axis=0)
    dense, parts = losses.linear_softmax_cross_entropy(x, x, w, has_aux=True)
    ids, of_projection = losses.linear_sparse_softmax_cross_entropy(
        y, x, w, class_block_size=128, has_aux=True
    )
    auxes: list[losses.SoftmaxAux] = [aux, of_ids, parts, of_projection]
    loss_fn: Callable[[jax.Array, jax.Array], jax.Array] = lambda w, x: x @ w  # noqa: E731
    return [
        *(aux.accuracy for aux in auxes),
        loss + more + dense + ids,
        losses.softmax_cross_entropy(x, x, reduction="mean"),
        losses.sparse_softmax_cross_entropy(y, x, reduction=losses.Reduction.SUM),
        losses.linear_softmax_cross_entropy(x, x, w),
        losses.linear_sparse_softmax_cross_entropy(y, x, w, bias=x[0]),
        losses.sigmoid_cross_entropy(x, x, mean_over="examples"),
        losses.sparse_sigmoid_cross_entropy(y, x),
        losses.linear_sigmoid_cross_entropy(x, x, w, pos_weight=2.0),
        losses.linear_sparse_sigmoid_cross_entropy(y, x, w),
        losses.softmax_kl_divergence(x, x),
        losses.linear_softmax_kl_divergence(x, w, x, w),
        losses.compute_weighted_loss(x, 2.0),
        losses.blockwise(loss_fn, w, x, block_size=2),
    ]


@jxent.assume_platform("cpu")
def as_in_optax(x: jax.Array, y: jax.Array) -> list[jax.Array]:
    return [
        optax.sigmoid_binary_cross_entropy(x, x),
        optax.softmax_cross_entropy(x, x, axis=0),
        optax.softmax_cross_entropy_with_integer_labels(x, y),
        optax.safe_softmax_cross_entropy(x, x),
        optax.sigmoid_focal_loss(x, x, alpha=0.25),
        optax.kl_divergence(x, x),
        optax.kl_divergence_with_log_targets(x, x),
        optax.convex_kl_divergence(x, x),
        optax.generalized_kl_divergence(x, x),
        optax.smooth_labels(x, 0.1),
        optax.poly_loss_cross_entropy(x, x, epsilon=1.0),
    ]
