"""One derivative rule for every loss per example.

A member of the family is a frozen dataclass of its options (`sigmoid.Sigmoid`,
`softmax.Softmax`, ...) with three methods:

    losses(*data)                       -> losses, statistics
    gradient(data, statistics)          -> d losses / d logits
    tangent(data, statistics, tangents) -> the tangent of the losses

`data` is (labels, logits, parameters) as the caller gave them, parameters being a loss's own, such
as a `pos_weight`; `statistics` is what is small and dear, one normaliser an example.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from jxent._src.core.blocking import Block
from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import zero_times
from jxent._src.sharding import class_axis
from jxent._src.sharding.class_axis import Classes

# Labels, an array or a tree of them; logits; and a loss's own, if it has any.
Data = tuple[Any, Array, Array | None]
Tangents = Sequence[Any]  # of the data, None where they are zero


@runtime_checkable
class Member(Protocol):
    """What the rule below asks of a loss."""

    @property
    def axis(self) -> int | tuple[int, ...] | None:
        """That of the classes, where a loss sums over them."""

    def losses(
        self, labels: Any, logits: Array, parameters: Array | None, /
    ) -> tuple[Array, Any]: ...

    def gradient(self, data: Data, statistics: Any) -> Array: ...

    def tangent(self, data: Data, statistics: Any, tangents: Tangents) -> Array: ...


@runtime_checkable
class OfIds(Member, Protocol):
    """A loss whose labels are class ids."""

    def are_in_range(self, labels: Any, logits: Array) -> Array:
        """Whether each example's ids are."""


@runtime_checkable
class Capped(Protocol):
    """What asks for logits that may be capped."""

    @property
    def logit_softcap(self) -> float | None: ...


@runtime_checkable
class Summed(Member, Capped, Protocol):
    """A loss that sums over the classes, as the projection in `per_example` asks."""

    @property
    def axis(self) -> int | tuple[int, ...]: ...

    @property
    def classes(self) -> Classes: ...

    def local_tangent(self, data: Data, statistics: Any, tangents: Tangents) -> Array: ...


class OverClasses:
    """A loss that sums over the classes, of which this chip may hold a part."""

    classes: Classes

    def tangent(self, data: Data, statistics: Any, tangents: Tangents) -> Array:
        return self.classes.across(self.local_tangent(data, statistics, tangents))

    def local_tangent(self, data: Data, statistics: Any, tangents: Tangents) -> Array:
        """The tangent over the classes that this chip holds."""
        raise NotImplementedError


@runtime_checkable
class Taught(Summed, Protocol):
    """A loss whose labels in a block are made from what the projection has in their place."""

    def of_operands(self, labels: Array, parameters: Any) -> tuple[Array, Any]:
        """Labels and parameters as `losses` takes them."""


@runtime_checkable
class CutByClasses(Capped, Protocol):
    """What has its gradient, once its statistics are known, by blocks of classes too."""

    @property
    def axis(self) -> int | tuple[int, ...]: ...

    @property
    def classes(self) -> Classes: ...

    @property
    def whole(self) -> Any:
        """The same of classes that are not split."""

    @property
    def independent(self) -> bool:
        """Whether each class has its loss too from its own logit alone."""

    def labels_of(self, block: Block, labels: Array) -> Array:
        """The labels of a block of classes."""


@runtime_checkable
class ByClasses(Summed, CutByClasses, Protocol):
    """A loss whose gradient, once its statistics are known, may be taken by blocks of classes."""

    @property
    def whole(self) -> Summed: ...

    @property
    def curves_by_classes(self) -> bool:
        """Whether a block's second derivatives can be told from it and the `moment`."""


@runtime_checkable
class Exclusive(ByClasses, Protocol):
    """One whose classes are not independent: a block's second derivative needs all of them."""

    def moment_of_block(
        self, logits: Array, dlogits: Array, statistics: Any, origin: Array | None
    ) -> Array: ...


class Parts(NamedTuple):
    """What a loss is made of, one number an example."""

    cross_entropy: Array
    z_loss: Array
    right: Array  # 1 where the prediction is, else 0


@runtime_checkable
class InParts(Summed, Protocol):
    """A loss that may be asked for its parts."""

    @property
    def has_aux(self) -> bool: ...

    def parts(self, statistics: Any, /) -> Parts: ...


def parts(member: Member, statistics: Any) -> Parts | None:
    """Those of the losses, where they are asked for."""
    return member.parts(statistics) if isinstance(member, InParts) and member.has_aux else None


@runtime_checkable
class Total(Summed, Protocol):
    """A sum over classes and examples, whose `each` gives the losses."""

    @property
    def each(self) -> Member: ...

    def losses(
        self,
        labels: Array,
        logits: Array,
        parameters: Array | None,
        weights: Array | None = None,
        /,
    ) -> tuple[Array, Any]: ...


@runtime_checkable
class PerClass(Member, Protocol):
    """A loss that does not sum over the classes, whose `total` is the member that does."""

    def total(self, ndim: int) -> Total: ...


class Known(NamedTuple):
    """What the rule needs of the losses' computation."""

    statistics: Any  # the member's
    # Which examples are not dropped: those that weigh 0 and are inf or NaN are. None: all are kept.
    kept: Bool[Array, "..."] | None


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def losses(
    member: Member, in_order: bool, weights: Array | None, *data: Any
) -> tuple[Array, Known]:
    """The member's losses, unweighted, in the computing dtype, and what is known of them.

    Where a weight is 0 and the loss is inf or NaN, the example is dropped: its loss and its
    statistics are 0 and nothing is passed back. All other values are as without weights.
    `in_order`: the gradient is computed after the loss, see `zero_known_from`.
    """
    if weights is None:
        values, statistics = member.losses(*cast(Data, data))
        return values, Known(statistics, None)
    labels, logits, parameters = cast(Data, data)
    kept = weights != 0
    in_range: bool | Array = True
    if isinstance(member, OfIds):
        # Padding: an id out of range would make a NaN, which tools that look for it would report.
        in_range = member.are_in_range(labels, logits)
        labels = without_dropped(member, kept | in_range)(labels)
    values, statistics = member.losses(labels, logits, parameters)
    kept |= in_range & jnp.isfinite(values)
    values, statistics = without_dropped(member, kept)((values, statistics))
    return values, Known(statistics, kept)


# The tangent is recomputed from the data as given and one normaliser an example: under
# `jax.checkpoint` reverse mode saves these and no second array of the logits' size, neither a
# float32 copy of bfloat16 logits nor smoothed labels nor capped logits.
#
# A dropped example is cut out of the *factors* (its data and statistics become 0), because zero
# times NaN is NaN, and out of its own tangent, which may come from the same broken computation.
# Where the loss is finite its factors are finite too, and multiplying by the weight is exact.
#
# The statistics are a cache. Whoever takes them differentiates with respect to the logits as a
# whole, so their own tangents are 0.
def _losses_jvp(
    member: Member, in_order: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[Array, Known], tuple[Array, Any]]:
    weights, *data = primals
    values, known = losses(member, in_order, weights, *data)
    moving = present(tangents[1:])

    @partial(jax.checkpoint, prevent_cse=False)
    def tangent(known: Known, data: Any, moving: Any, zero: Array | None) -> Array:
        data, statistics = after(zero, data, known.statistics)
        if known.kept is not None:
            data, moving = without_dropped(member, known.kept)((data, moving))
        change = member.tangent(data, statistics, moving)
        if known.kept is None or moving[-1] is None:
            return change
        # Parameters that examples share move the losses of cleaned data too. Of what is dropped
        # nothing may be left for the derivative to the weight.
        return jnp.where(known.kept, change, 0)

    if not jax.tree.leaves(moving):
        change = jnp.zeros_like(values)
    else:
        zero = None
        if in_order and member.axis is None:
            zero = zero_known_from(jnp.sum(values))
        elif in_order:
            last = values
            found = parts(member, known.statistics)
            if found is not None:  # of another pass over the logits, maybe
                last += zero_known_from(found.right)
            zero = jnp.expand_dims(zero_known_from(last), cast(int, member.axis))
        change = tangent(known, data, moving, zero)
    return (values, known), (change, jax.tree.map(no_tangent, known))


losses.defjvp(_losses_jvp, symbolic_zeros=True)


def present(tangents: Any) -> Any:
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


def without_dropped(member: Member, kept: Array) -> Callable[[Any], Any]:
    """Puts 0 in place of examples that are not kept in a tree of arrays."""

    def clean(x: Array) -> Array:
        along = kept
        if x.ndim > kept.ndim:
            assert member.axis is not None
            along = jnp.expand_dims(kept, member.axis)
        if x.ndim == 0 or any(m == 1 != n for m, n in zip(x.shape, along.shape, strict=True)):
            return x  # parameters that all examples share
        return jnp.where(class_axis.filled(along, x), x, jnp.zeros_like(x))

    return partial(jax.tree.map, clean)


# A training step returns its loss and writes the new logits over the old ones. A compiler that does
# not compute the loss first copies the logits for it, and stores what loss and gradient share.
# There the gradient reads logits to which a 0 was added that only the loss tells. Where one pass
# gives both, the dependency would make it two.
@per_platform()
def zero_known_from(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exactly 0, known only after `values`.

    At -inf, where no compiler can tell that it is 0, it is the smallest normal number.
    """
    return jnp.zeros_like(values)


def after(zero: Array | None, data: Sequence[Any], statistics: Any = None) -> tuple[Data, Any]:
    """Data and statistics of which the logits and statistics are known only after the 0 is."""

    def later(x: Array) -> Array:
        return x if zero is None else x + zero.astype(x.dtype)

    labels, logits, parameters = data
    return (labels, later(logits), parameters), jax.tree.map(later, statistics)


def weighted_losses(member: Member, weights: Array, *data: Any) -> Array:
    """The member's losses times their weights; exactly 0 where a weight is 0."""

    def weighted(weights: Array, *data: Any) -> Array:
        values, _ = losses(member, True, weights, *data)
        return weigh(weights, values)

    if member.axis is None:
        # The losses are of the logits' size: compute them again rather than save them.
        weighted = jax.checkpoint(weighted)
    result: Array = weighted(weights, *data)
    return result


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def weighted_total(member: Total, weights: Array, *data: Array | None) -> Float[Array, ""]:
    """sum(weights * losses) of a sum over classes and examples, whose `each` gives the losses."""
    return member.losses(*cast(Data, data), weights)[0]


# As the sum of the weighted losses, but known before the gradient is computed, see above, and
# without storing the losses. What is dropped is told from the data: an infinite loss of finite
# data has a finite gradient, which a weight of 0 makes 0.
def _weighted_total_jvp(
    member: Total, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    total = weighted_total(member, *primals)
    dweights, *moving = present(tangents)

    @partial(jax.checkpoint, prevent_cse=False)
    def tangent(
        weights: Array, data: Any, dweights: Array | None, moving: Any, zero: Array
    ) -> Array:
        data, _ = after(zero, data)
        change = jnp.zeros_like(total)
        if jax.tree.leaves(moving):
            size = reduce(jnp.add, (x.astype(total.dtype) for x in data if x is not None))
            kept = (weights != 0) | jnp.isfinite(size)
            clean = without_dropped(member.each, kept)
            each = member.each.tangent(clean(data), None, clean(moving))
            if moving[-1] is not None:  # as in `losses`
                each = jnp.where(kept, each, 0)
            change += member.classes.total(weights * each)
        if dweights is not None:
            values, _ = losses(member.each, False, weights, *data)
            change += member.classes.total(jnp.where(jnp.isfinite(values), values, 0) * dweights)
        return change

    weights, *data = primals
    return total, tangent(weights, data, dweights, moving, zero_known_from(total))


weighted_total.defjvp(_weighted_total_jvp, symbolic_zeros=True)


@per_platform()
def nonzero(weights: Array) -> Array:
    """1 where a weight is not 0."""
    return (weights != 0).astype(weights.dtype)


@jax.custom_jvp
def weigh(weights: Array, values: Array) -> Array:
    """Weights * values, and 0 where the weight is 0, even for a value of inf or NaN."""
    return zero_times(weights, values)


# To the weight the derivative is the loss, also at weight 0 where learned weights start. Where
# that loss is not finite it is 0: an infinite factor times the tangent 0 would be NaN.
@weigh.defjvp
def _weigh_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (weights, values), (dweights, dvalues) = primals, tangents
    slope = jnp.where(jnp.isfinite(values), values, 0)
    return weigh(weights, values), dweights * slope + weights * dvalues
