"""The abstract loss, and the one derivative rule of all losses per example.

A loss is a frozen dataclass of its options (`sigmoid.Sigmoid`, `softmax.Softmax`, ...) with

    losses(*data)                             -> losses, statistics
    gradient(data, statistics)                -> d losses / d logits
    local_tangent(data, statistics, tangents) -> the tangent of the losses

`data` is (labels, logits, parameters) as the caller gave them, parameters being a loss's own, such
as a `pos_weight`; `statistics` is what is small and expensive, one normalizer per example.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool

from jxent._src.core import hints
from jxent._src.core.blocks import Block
from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import zero_safe_multiply
from jxent._src.core.options import Options
from jxent._src.sharding import explicit
from jxent._src.sharding.class_axis import ClassAxis

# Labels, an array or a tree of them; logits; and a loss's own, if it has any.
Data = tuple[Any, Array, Any]
Tangents = Sequence[Any]  # of the data, None where they are zero
Kind = TypeVar("Kind", bound="OfLogits")


@dataclass(frozen=True)
class OfLogits(Options):
    """What is computed from logits: where their classes are, and how a projection may cut them."""

    classes: ClassAxis
    logit_softcap: float | None = None
    # Whether blocks of classes will do once the statistics are known, and whether each class has
    # its loss from its own logit alone, so that no statistics are needed.
    has_class_blocks: ClassVar[bool] = False
    classwise: ClassVar[bool] = False
    # Whether labels and parameters are made from a teacher's inputs, kernel and bias.
    has_teacher: ClassVar[bool] = False

    @property
    def axis(self) -> int | tuple[int, ...] | None:
        """The axis of the classes; None where each class has a result of its own."""
        return self.classes.axis

    @property
    def unsharded(self: Kind) -> Kind:
        """The same of classes that are all on this device, or of a block of them."""
        return replace(self, classes=ClassAxis(-1))

    def labels_of(self, block: Block, labels: Any) -> Any:
        """The labels of a block of classes; here of class ids."""
        return self.classes.local_ids(block, labels)

    def of_operands(self, labels: Any, parameters: Any) -> tuple[Any, Any]:
        """Labels and parameters of a block of logits, of what a projection has in their place."""
        return labels, parameters


class LossComponents(NamedTuple):
    """The terms of a loss and whether the prediction is correct, one number per example."""

    cross_entropy: Array
    z_loss: Array
    correct: Array  # 1 where it is, else 0


@dataclass(frozen=True)
class Loss(OfLogits, ABC):
    """A loss per example, or per class where `axis` is None."""

    @property
    def returns_components(self) -> bool:
        """Whether the caller asks for the components beside the loss."""
        return False

    @property
    def second_order_by_class_block(self) -> bool:
        """Whether a block of classes has second derivatives from itself and `tangent_mean`."""
        return False

    @abstractmethod
    def losses(self, labels: Any, logits: Array, parameters: Any) -> tuple[Array, Any]:
        """The losses, and statistics from which the derivatives are computed."""

    @abstractmethod
    def gradient(self, data: Data, statistics: Any) -> Array:
        """The derivative of each loss by its logits."""

    @abstractmethod
    def local_tangent(self, data: Data, statistics: Any, tangents: Tangents) -> Array:
        """The tangent over the classes that this device holds."""

    def tangent(self, data: Data, statistics: Any, tangents: Tangents) -> Array:
        """The tangent of the losses."""
        return self.classes.psum(self.local_tangent(data, statistics, tangents))

    def are_in_range(self, labels: Any, logits: Array) -> Array | None:
        """Whether each example's class ids are; None for labels that are no ids."""
        return None

    def components(self, statistics: Any) -> LossComponents:
        """The terms that the losses are sums of."""
        raise NotImplementedError

    def tangent_mean_of_block(
        self, logits: Array, dlogits: Array, statistics: Any, origin: Array | None
    ) -> Array:
        """What a block of classes adds to what the second derivatives of the others need."""
        raise NotImplementedError


def components(loss_fn: Loss, statistics: Any) -> LossComponents | None:
    """Those of the losses, where they are asked for."""
    return loss_fn.components(statistics) if loss_fn.returns_components else None


class Residuals(NamedTuple):
    """What the rule needs of the losses' computation."""

    statistics: Any  # the loss_fn's
    # Which examples are not dropped: those that weigh 0 and are inf or NaN are. None: all are kept.
    keep_mask: Bool[Array, "..."] | None


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def losses(
    loss_fn: Loss, in_order: bool, weights: Array | None, *data: Any
) -> tuple[Array, Residuals]:
    """The losses, unweighted, in the computing dtype, and their residuals.

    Where a weight is 0 and the loss is inf or NaN, the example is dropped: its loss and its
    statistics are 0 and nothing is passed back. All other values are as without weights.
    `in_order`: the gradient is computed after the loss, see `ordering_zero`.
    """
    if weights is None:
        values, statistics = loss_fn.losses(*cast(Data, data))
        return values, Residuals(statistics, None)
    labels, logits, parameters = cast(Data, data)
    keep_mask = weights != 0
    in_range: bool | Array | None = loss_fn.are_in_range(labels, logits)
    if in_range is None:
        in_range = True
    else:
        # Padding: an id out of range would make a NaN, which tools that look for it would report.
        labels = without_dropped(loss_fn, keep_mask | in_range)(labels)
    values, statistics = loss_fn.losses(labels, logits, parameters)
    keep_mask |= in_range & jnp.isfinite(values)
    values, statistics = without_dropped(loss_fn, keep_mask)((values, statistics))
    return values, Residuals(statistics, keep_mask)


# The tangent is recomputed from the data as given and one normaliser an example: under
# `jax.checkpoint` reverse mode saves these and no second array of the logits' size, neither a
# float32 copy of bfloat16 logits nor smoothed labels nor capped logits.
#
# A dropped example is cut out of the *factors* (its data and statistics become 0), because zero
# times NaN is NaN, and out of its own tangent, which may come from the same broken computation.
# Where the loss is finite its factors are finite too, and multiplying by the weight is exact.
#
# The statistics are a cache: a rule that reads them has the whole derivative by the logits in its
# own tangent, so that theirs are 0.
def _losses_jvp(
    loss_fn: Loss, in_order: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[Array, Residuals], tuple[Array, Any]]:
    weights, *data = primals
    values, residuals = losses(loss_fn, in_order, weights, *data)
    nonzero_tangents = none_for_zeros(tangents[1:])

    @partial(jax.checkpoint, prevent_cse=False)
    def tangent(
        residuals: Residuals, data: Any, nonzero_tangents: Any, zero: Array | None
    ) -> Array:
        data, statistics = hints.add_dependency(zero, data, residuals.statistics)
        if residuals.keep_mask is not None:
            data, nonzero_tangents = without_dropped(loss_fn, residuals.keep_mask)(
                (data, nonzero_tangents)
            )
        tangent_out = loss_fn.tangent(data, statistics, nonzero_tangents)
        if residuals.keep_mask is None or nonzero_tangents[-1] is None:
            return tangent_out
        # Parameters that examples share move the losses of cleaned data too. Of what is dropped
        # nothing may be left for the derivative to the weight.
        return jnp.where(residuals.keep_mask, tangent_out, 0)

    if not jax.tree.leaves(nonzero_tangents):
        tangent_out = jnp.zeros_like(values)
    else:
        zero = None
        if in_order and loss_fn.axis is None:
            zero = hints.ordering_zero(jnp.sum(values))
        elif in_order:
            last = values
            found = components(loss_fn, residuals.statistics)
            if found is not None:  # of another pass over the logits, maybe
                last += hints.ordering_zero(found.correct)
            zero = loss_fn.classes.expand(hints.ordering_zero(last))
        tangent_out = tangent(residuals, data, nonzero_tangents, zero)
    return (values, residuals), (tangent_out, jax.tree.map(no_tangent, residuals))


losses.defjvp(_losses_jvp, symbolic_zeros=True)


def none_for_zeros(tangents: Any) -> Any:
    """The tangents, None for those that are zero."""
    return jax.tree.map(
        lambda t: None if isinstance(t, SymbolicZero) else t,
        tangents,
        is_leaf=lambda t: isinstance(t, SymbolicZero),
    )


def no_tangent(x: Array) -> Any:
    """The zero tangent of an array; that of booleans has a dtype of its own."""
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jax.dtypes.float0
    return jnp.zeros_like(x, dtype=dtype)


def without_dropped(loss_fn: Loss, keep_mask: Array) -> Callable[[Any], Any]:
    """Puts 0 in place of examples that are not kept in a tree of arrays."""

    def clean(x: Array) -> Array:
        along = keep_mask
        if x.ndim > keep_mask.ndim:
            assert loss_fn.axis is not None
            along = jnp.expand_dims(keep_mask, loss_fn.axis)
        if x.ndim == 0 or any(m == 1 != n for m, n in zip(x.shape, along.shape, strict=True)):
            return x  # parameters that all examples share
        return jnp.where(explicit.broadcast_like(along, x), x, jnp.zeros_like(x))

    return partial(jax.tree.map, clean)


def weighted_losses(loss_fn: Loss, weights: Array, *data: Any) -> Array:
    """The losses times their weights; exactly 0 where a weight is 0."""

    def weighted(weights: Array, *data: Any) -> Array:
        values, _ = losses(loss_fn, True, weights, *data)
        return apply_weights(weights, values)

    if loss_fn.axis is None:
        # The losses are of the logits' size: compute them again rather than save them.
        weighted = jax.checkpoint(weighted)
    result: Array = weighted(weights, *data)
    return result


@per_platform()
def nonzero(weights: Array) -> Array:
    """1 where a weight is not 0."""
    return (weights != 0).astype(weights.dtype)


@jax.custom_jvp
def apply_weights(weights: Array, values: Array) -> Array:
    """Weights * values, and 0 where the weight is 0, even for a value of inf or NaN."""
    return zero_safe_multiply(weights, values)


# To the weight the derivative is the loss, also at weight 0 where learned weights start. Where
# that loss is not finite it is 0: an infinite factor times the tangent 0 would be NaN.
@apply_weights.defjvp
def _apply_weights_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (weights, values), (dweights, dvalues) = primals, tangents
    grad = jnp.where(jnp.isfinite(values), values, 0)
    return apply_weights(weights, values), dweights * grad + weights * dvalues
