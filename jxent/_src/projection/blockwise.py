"""A user's own losses, a block of rows at a time: value and gradients in one sweep.

As `reduced` does it for projections: the loss is a scalar, so what a block adds to its gradients is
known as soon as its losses are. Of the intermediates of all rows, one block's are alive.

A row that does not count, because it weighs 0 or fills the last block up, becomes a copy of one
that does: whatever is wrong with it (x / |x| of zeros is NaN, and so is a row of NaN) would reach
the gradients of what all rows share, as 0 times NaN. With learned weights, where gradients are
differentiated and for one loss a row, a row of weight 0 counts as long as its loss is finite: its
own slope is what its weight multiplies.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jxent._src.core.blocks import ExampleBlocks
from jxent._src.core.elementary import upcast
from jxent._src.loss_fns import base
from jxent._src.projection.reduced import inner
from jxent._src.sharding import explicit, varying

# Of what rows share and of a block of them: its losses, and what else is to be added up.
Function = Callable[[Any, Any], tuple[Array, Any]]
CheckpointBlock = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class BlockwiseSpec:
    """What is known before any number is."""

    function: Function
    blocks: ExampleBlocks
    masks: bool  # whether a weight of 0 was meant to drop its row, or came from a plain number
    learned: bool  # whether the weights may be differentiated: no booleans, no integers

    def counting(self, weights: Array, losses: Array | None = None) -> Array | None:
        """Which rows count, None if all do. `losses` of rows as they are: those that are finite."""
        if not self.masks:
            is_ragged = self.blocks.is_ragged(weights.shape[0])
            return jnp.ones_like(weights, dtype=bool) if is_ragged else None
        counts = weights != 0
        return counts if losses is None else counts | jnp.isfinite(losses)

    def counting_in_derivatives(self, weights: Array, given: "BlockwiseInputs") -> Array | None:
        """The same for what JAX differentiates itself: learned weights have a slope at 0 too."""
        if self.masks and self.learned:
            return self.counting(weights, losses_as_they_are(self, weights, given))
        return self.counting(weights)


class BlockwiseInputs(NamedTuple):
    """What a user's losses are computed from."""

    shared: Any
    rows: Any

    @property
    def number(self) -> int:
        """That of the rows."""
        number: int = jax.tree.leaves(self.rows)[0].shape[0]
        return number


class _DifferentiableLeaves:
    """The leaves of a tree that are differentiated."""

    def __init__(self, tree: Any, which: tuple[bool, ...]):
        self._leaves, self._tree = jax.tree.flatten(tree)
        self._which = which

    @property
    def leaves(self) -> list[Array]:
        """Those."""
        return [x for x, moves in zip(self._leaves, self._which, strict=True) if moves]

    def replaced_by(self, leaves: list[Array]) -> Any:
        """The tree with these in their place."""
        own = iter(leaves)
        pairs = zip(self._leaves, self._which, strict=True)
        return jax.tree.unflatten(self._tree, [next(own) if moves else x for x, moves in pairs])


class _RowMask:
    """Which rows count; those that do not are replaced by one that does."""

    def __init__(self, counts: Array | None, given: BlockwiseInputs):
        self.counts = counts
        if counts is not None:
            one = jax.tree.map(partial(explicit.row, jnp.argmax(counts)), given.rows)
            self._one = jax.lax.stop_gradient(one)

    def replaced(self, counts: Array | None, rows: Any) -> Any:
        """A block of rows."""
        if counts is None:
            return rows
        return jax.tree.map(
            lambda x, one: jnp.where(_along(counts, x), x, one[None]), rows, self._one
        )

    def of_rows(self, x: Array) -> Array:
        """`x`, and 0 for a row that does not count."""
        return x if self.counts is None else jnp.where(_along(self.counts, x), x, 0)

    def of_all(self, x: Array) -> Array:
        """`x`, and 0 where no row counts."""
        return x if self.counts is None else jnp.where(jnp.any(self.counts), x, 0)


def _along(counts: Array, x: Array) -> Array:
    return jnp.expand_dims(counts, tuple(range(1, x.ndim)))


def _tangent(function: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    """The tangent of a function along the tangents that are there."""
    leaves = jax.tree.leaves(tangents, is_leaf=lambda t: t is None)
    which = tuple(t is not None for t in leaves)

    # As a whole: else a third derivative misses the rules of what a block calls.
    @jax.checkpoint
    def along(primals: Any, moved: list[Array]) -> Any:
        nonzero_tangents = _DifferentiableLeaves(primals, which)

        def at(leaves: list[Array]) -> Any:
            return function(*nonzero_tangents.replaced_by(leaves))

        return jax.jvp(at, (nonzero_tangents.leaves,), (moved,))[1]

    return along(primals, [t for t in leaves if t is not None])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def weighted_losses(
    plan: BlockwiseSpec, weights: Float[Array, "rows"], given: BlockwiseInputs
) -> Array:
    """The losses, each times its weight; reverse mode computes each block a second time."""
    return weights * _losses(plan, plan.counting(weights), given)


def _weighted_losses_jvp(plan: BlockwiseSpec, primals: Any, tangents: Any) -> tuple[Array, Array]:
    counts = plan.counting_in_derivatives(*primals)

    def weighted(weights: Array, given: BlockwiseInputs) -> Array:
        return weights * _losses(plan, counts, given)

    tangent_out = _tangent(weighted, primals, base.none_for_zeros(tangents))
    return weighted_losses(plan, *primals), tangent_out


weighted_losses.defjvp(_weighted_losses_jvp, symbolic_zeros=True)


def losses_as_they_are(plan: BlockwiseSpec, weights: Array, given: BlockwiseInputs) -> Array:
    """The losses of all rows, also of those that weigh 0. They have no derivative."""
    plan = _of_all_rows(plan)
    return _losses(plan, plan.counting(weights), jax.lax.stop_gradient(given))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def finite_losses(plan: BlockwiseSpec, ones: Float[Array, "rows"], given: BlockwiseInputs) -> Array:
    """The losses of all rows, and 0 where they are not finite: what the weights multiply."""
    losses = _losses(plan, _of_all_rows(plan).counting(ones), given)
    return jnp.where(jnp.isfinite(losses), losses, 0)


# A cotangent of 0 that reaches a loss of NaN makes NaN of it: such rows are replaced here too.
def _finite_losses_jvp(plan: BlockwiseSpec, primals: Any, tangents: Any) -> tuple[Array, Array]:
    ones, given = primals
    counts = jnp.isfinite(losses_as_they_are(plan, ones, given))
    tangent_out = _tangent(
        partial(_losses, plan, counts), (given,), (base.none_for_zeros(tangents[1]),)
    )
    return finite_losses(plan, *primals), tangent_out


finite_losses.defjvp(_finite_losses_jvp, symbolic_zeros=True)


def _of_all_rows(plan: BlockwiseSpec) -> BlockwiseSpec:
    """The same where no weight drops a row."""
    return BlockwiseSpec(plan.function, plan.blocks, masks=False, learned=False)


def _losses(plan: BlockwiseSpec, counts: Array | None, given: BlockwiseInputs) -> Array:
    """The losses of rows that count, 0 for the others."""
    rows = _RowMask(counts, given)

    @jax.checkpoint
    def block(counts: Array | None, own: Any, shared: Any) -> Array:
        return upcast(plan.function(shared, rows.replaced(counts, own))[0])

    @jax.checkpoint
    def all_blocks(cut: Any, shared: Any) -> Array:
        losses: Array = plan.blocks.each(lambda cut: block(*cut, shared), given.number, cut)
        return losses

    shared = given.shared
    if counts is not None:
        shared = _passed_where(jnp.any(counts), shared)
    return rows.of_rows(all_blocks((counts, given.rows), shared))


@jax.custom_jvp
def _passed_where(some: Array, shared: Any) -> Any:
    """What is shared, of which no derivative is passed on where no row counts."""
    # A select between equals, since the value must depend on what its tangent depends on: where
    # `vmap` batches the weights alone, derivatives taken outside of it would fail.
    return jax.tree.map(lambda x: jnp.where(some, x, x) if _is_floating(x) else x, shared)


def _is_floating(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


@partial(_passed_where.defjvp, symbolic_zeros=True)
def _passed_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    some, shared = primals

    def passed(x: Array, t: Array | None) -> Any:
        return base.no_tangent(x) if t is None else jnp.where(some, t, 0)

    return shared, jax.tree.map(passed, shared, base.none_for_zeros(tangents[1]))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def total(
    plan: BlockwiseSpec,
    weights: Float[Array, "rows"],
    each: Float[Array, "rows"],
    given: BlockwiseInputs,
) -> tuple[Float[Array, ""], Any]:
    """sum(weights * losses), and the sums of what else there is, weighed by `each`."""
    wanted = (False,) * len(jax.tree.leaves(given))
    value, sums, _ = _fused_values_and_gradients(plan, wanted, weights, each, given)
    return value, sums


# As `reduced`'s; a function that adds its losses up over an axis of a mesh adds their tangents too.
def _total_jvp(plan: BlockwiseSpec, primals: Any, tangents: Any) -> Any:
    weights, each, given = primals
    dweights, _, nonzero_tangents = base.none_for_zeros(tangents)
    leaves = jax.tree.leaves(nonzero_tangents, is_leaf=lambda t: t is None)
    wanted = tuple(t is not None for t in leaves)
    value, sums, grads = _fused_values_and_gradients(plan, wanted, weights, each, given)
    tangent_out = jnp.zeros_like(value)
    for grad, t in zip(grads, (t for t in leaves if t is not None), strict=True):
        if jnp.issubdtype(t.dtype, jnp.complexfloating):
            along = jnp.sum(jnp.real(grad * t)).astype(value.dtype)
        else:
            along = inner(grad, t, value.dtype)
        tangent_out += varying.sum_to_varying_of(value, along)
    if dweights is not None:
        tangent_out += jnp.sum(finite_losses(plan, jnp.ones_like(weights), given) * dweights)
    return (value, sums), (tangent_out, jax.tree.map(jnp.zeros_like, sums))


total.defjvp(_total_jvp, symbolic_zeros=True)


class _ValueAndGrads(NamedTuple):
    value: Array
    sums: Any
    grads: list[Array]  # of the value, by each leaf of what is given that is wanted


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _fused_values_and_gradients(
    plan: BlockwiseSpec,
    wanted: tuple[bool, ...],
    weights: Array,
    each: Array,
    given: BlockwiseInputs,
) -> _ValueAndGrads:
    counts = plan.counting(weights)
    return _total_and_gradients(plan, wanted, lambda block: block, counts, weights, each, given)


def _fused_values_and_gradients_jvp(
    plan: BlockwiseSpec, wanted: tuple[bool, ...], primals: Any, tangents: Any
) -> tuple[_ValueAndGrads, _ValueAndGrads]:
    weights, _, given = primals
    counts = plan.counting_in_derivatives(weights, given)
    value_and_grads = partial(_total_and_gradients, plan, wanted, jax.checkpoint, counts)
    result = _fused_values_and_gradients(plan, wanted, *primals)
    tangent_out = _tangent(value_and_grads, primals, base.none_for_zeros(tangents))
    return result, tangent_out._replace(sums=jax.tree.map(jnp.zeros_like, result.sums))


_fused_values_and_gradients.defjvp(_fused_values_and_gradients_jvp, symbolic_zeros=True)


def _total_and_gradients(
    plan: BlockwiseSpec,
    wanted: tuple[bool, ...],
    checkpoint_block: CheckpointBlock,
    counts: Array | None,
    weights: Array,
    each: Array,
    given: BlockwiseInputs,
) -> _ValueAndGrads:
    """The total and its gradients by the leaves that are wanted; and the sums."""
    rows = _RowMask(counts, given)
    number = len(jax.tree.leaves(given.shared))
    shared = _DifferentiableLeaves(given.shared, wanted[:number]).leaves

    @checkpoint_block
    def block(counts: Array | None, weights: Array, each: Array, own: Any, of_all: Any) -> Any:
        nonzero_tangents = _DifferentiableLeaves(
            BlockwiseInputs(of_all, rows.replaced(counts, own)), wanted
        )
        if counts is not None:
            weights = jnp.where(counts, weights, 0)

        def losses(leaves: list[Array]) -> tuple[Array, Any]:
            values, more = plan.function(*nonzero_tangents.replaced_by(leaves))
            return upcast(values), more

        if nonzero_tangents.leaves:
            values, pull, more = jax.vjp(losses, nonzero_tangents.leaves, has_aux=True)
            # The sum has the type of the values, on every mesh.
            (grads,) = pull(weights + jnp.zeros_like(values))
        else:
            (values, more), grads = losses([]), []
        if counts is not None:
            values = jnp.where(counts, values, 0)
        sums = jax.tree.map(partial(_weighted_row_sum, each), jax.lax.stop_gradient(more))
        return grads[len(shared) :], (jnp.sum(weights * values), sums), grads[: len(shared)]

    start = [jnp.zeros_like(upcast(x)) for x in shared]
    cut = (counts, weights, each, given.rows)
    map_row_blocks, (value, sums), by_shared = plan.blocks.over(
        lambda cut: block(*cut, given.shared), given.number, cut, start
    )
    return _ValueAndGrads(
        value, sums, [*map(rows.of_all, by_shared), *map(rows.of_rows, map_row_blocks)]
    )


def _weighted_row_sum(weights: Array, x: Array) -> Array:
    wider = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > weights.dtype.itemsize
    dtype = x.dtype if wider else weights.dtype
    return jnp.sum(base.apply_weights(_along(weights.astype(dtype), x), x.astype(dtype)), 0)
