"""Reduced losses that a user writes, one block of rows at a time."""

from collections.abc import Callable
from typing import Any, Literal, overload

from jaxtyping import Array, Float

from jxent._src.checks import check
from jxent._src.core.elementary import Numbers
from jxent._src.projection import captured
from jxent._src.run import entry
from jxent._src.run.reduction import Reduction


@overload
def blockwise(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    rows: Any,
    *,
    block_size: int,
    weights: Numbers = ...,
    has_aux: Literal[False] = ...,
    scope: str | None = ...,
    reduction: Reduction | str = ...,
) -> Float[Array, "..."]: ...


@overload
def blockwise(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    rows: Any,
    *,
    block_size: int,
    weights: Numbers = ...,
    has_aux: Literal[True],
    scope: str | None = ...,
    reduction: Reduction | str = ...,
) -> tuple[Float[Array, ""], Any]: ...


def blockwise(
    loss_fn: Callable[[Any, Any], Any],
    params: Any,
    rows: Any,
    *,
    block_size: int,
    weights: Numbers = 1.0,
    has_aux: bool = False,
    scope: str | None = None,
    reduction: Reduction | str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Float[Array, "..."] | tuple[Float[Array, ""], Any]:
    """Losses of any head, of a block of rows at a time, weighted and reduced.

    What `linear_...` does for one matrix: of all intermediates, logits among them, those of one
    block are alive, and the gradients to `params` and `rows` are computed in the sweep that
    computes the loss. A norm before the head, adapters, a quantised or tied table, the difference
    of two heads: all that is written in `loss_fn`. `jxent.linear_logits` is a projection whose
    derivatives have products in the operands' dtype.

    A row of weight 0 may hold anything, if the weights are booleans or integers. Learned weights,
    floating arrays of JAX, have a slope there too: with `NONE`, and where gradients are
    differentiated, such a row is left out only where its loss is inf or NaN, so one whose loss is
    finite and whose slope is not (the norm of zeros) makes these NaN.

    Args:
      loss_fn: `loss_fn(params, block)` gives one loss a row, `[block_size]`, in any floating dtype;
        `block` has the structure of `rows`. A pure function, each loss of which depends on its own
        row alone: rows that do not count are replaced by one that does. With `has_aux` it gives
        `(losses, more)`, `more` a pytree of arrays `[block_size, ...]` with an entry a row.
      params: What all rows share: a pytree of arrays. Floating ones are differentiable. Under
        `shard_map` all floating arrays that depend on what is differentiated belong here, where
        `loss_fn` closing over one would be an error.
      rows: A pytree of arrays that share their first axis, that of the rows. Floating ones are
        differentiable.
      block_size: Rows per block. Smaller blocks hold less, larger ones make faster products.
      weights: A number, or an array of one weight an example: `[*batch]` with each dimension 1 or
        equal to the losses', or that with a trailing 1. Where it is 0 the example takes no part.
        Differentiable.
      has_aux: True returns `(loss, sums)`: of each array in `more` the sum over the rows, each
        times its weight, in float32 at least; constants to differentiation. Not with
        `Reduction.NONE`.
      scope: Names the computation in profiles (`jax.named_scope`).
      reduction: A `Reduction`, its value, or `"mean"` or `"sum"`. `NONE` computes each block
        once more in reverse mode.

    Returns:
      A scalar in float32 at least, or for `Reduction.NONE` an array of one a row. Gradients of
      `params` are added up in float32 at least. Call it under `jax.jit`: `loss_fn` is traced anew
      by every call.

    Raises:
      TypeError: `loss_fn` is not callable or its losses are not floating, a leaf is not an array,
        `weights` are not real, or an option is not a Python value.
      ValueError: The first axes of `rows` differ, `loss_fn` does not give one loss a row,
        `weights` do not fit the losses or are None, an option is out of its range, `reduction` is
        unknown, or under `shard_map` `loss_fn` closes over a floating array that varies over fewer
        mesh axes than `rows` and `params`: its gradient would be a multiple of the true one.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jxent
      >>> def loss_fn(table, row):  # a tied table, behind a norm
      ...     x = row["x"] / jnp.linalg.norm(row["x"], axis=-1, keepdims=True)
      ...     logits = jxent.linear_logits(inputs=x, kernel=table.T)
      ...     return jxent.sparse_softmax_cross_entropy_with_logits(labels=row["y"], logits=logits)
      >>> rows = {"x": jnp.ones((6, 3)), "y": jnp.array([0, 1, 2, 3, 0, -1])}
      >>> blockwise(loss_fn, jnp.zeros((4, 3)), rows, block_size=4, weights=rows["y"] >= 0)
      Array(1.3862944, dtype=float32)

    References:
      `jxent.losses.linear_sparse_softmax_cross_entropy`.
    """
    size = check.rows_per_block(block_size)
    asks = check.flag("has_aux", has_aux)
    with check.scope(scope, "blockwise", argument="scope"):
        checked = captured.rows(loss_fn, params, rows, size, asks, weights)
        return entry.reduced_rows(checked, weights, reduction, asks)
