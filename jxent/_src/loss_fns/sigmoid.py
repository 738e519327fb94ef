"""Independent classes: the losses and their mathematics.

Each class is a yes-or-no question of its own: a picture may show a dog and an elephant.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from jxent._src.core import hints
from jxent._src.core.blocks import Block
from jxent._src.core.dispatch import per_platform
from jxent._src.core.elementary import (
    largest_id,
    nan_unless,
    of_rank,
    upcast,
    zero_safe_multiply,
)
from jxent._src.loss_fns import base
from jxent._src.loss_fns.base import Data, Loss, Tangents
from jxent._src.numerics.sigmoid import (
    class_losses,
    focused_losses,
    label_grad,
    logits_grad,
    weighted_term,
)
from jxent._src.numerics.sigmoid_terms import (
    finite,
    finite_term,
    focal_term,
    focal_term_grad,
)
from jxent._src.numerics.softcap import softcap, softcap_grad
from jxent._src.sharding import explicit
from jxent._src.sharding.class_axis import ClassAxis


@dataclass(frozen=True)
class _Independent(Loss):
    """Each class is a yes-or-no question of its own."""

    label_smoothing: float = 0.0
    focusing: float = 0.0
    negative_focusing: float | None = None
    has_class_blocks = True
    classwise = True

    @property
    def second_order_by_class_block(self) -> bool:
        return True

    @property
    def gammas(self) -> tuple[float, float]:
        """The powers that focus the terms of present and of absent classes."""
        absent = self.focusing if self.negative_focusing is None else self.negative_focusing
        return self.focusing, absent


@dataclass(frozen=True)
class Sigmoid(_Independent):
    """Dense labels: a loss per class where the classes have no axis, else the sum over them."""

    @property
    def per_class(self) -> "Sigmoid":
        """The same per class."""
        return replace(self, classes=ClassAxis(None))

    def total_of(self, ndim: int) -> "Sigmoid":
        """The sum over all axes of logits of this rank."""
        axes = tuple(range(-ndim, 0))  # from the end: vmap adds axes in front
        return replace(self, classes=ClassAxis(axes))

    def labels_of(self, block: Block, labels: Array) -> Array:
        own: Array = block.of(labels)
        return own

    def losses(self, labels: Array, logits: Array, pos_weight: Array | None) -> tuple[Array, None]:
        if self.axis is not None:
            return self.weighted_sum(labels, logits, pos_weight, None), None
        x = softcap(upcast(logits), self.logit_softcap)
        z = self.smoothed(labels, x.dtype)
        if any(self.gammas):
            return focused_losses(self.gammas, z, pos_weight, x), None
        return class_losses(z, pos_weight, x), None

    def weighted_sum(
        self, labels: Array, logits: Array, pos_weight: Array | None, weights: Array | None
    ) -> Array:
        """The sum over the classes of the losses times their weights."""
        # Of the logits' rank, which `vmap` may add to.
        factors = (of_rank(logits.ndim, x) for x in (pos_weight, weights))
        return summed_losses(self, labels, logits, *factors)

    def gradient(self, data: Data, statistics: None) -> Array:
        labels, logits, pos_weight = data
        x = upcast(logits)
        z = self.smoothed(labels, x.dtype)
        positive = z if pos_weight is None else finite(pos_weight) * z
        capped = softcap(x, self.logit_softcap)
        if any(self.gammas):
            present, absent = self.gammas
            grad = (1 - z) * focal_term_grad(absent, capped) - positive * focal_term_grad(
                present, -capped
            )
        else:
            grad = logits_grad(1 - z, positive, capped)
        return grad * softcap_grad(x, self.logit_softcap)

    def local_tangent(self, data: Data, statistics: None, tangents: Tangents) -> Array:
        labels, logits, pos_weight = data
        dlabels, dlogits, dpos_weight = tangents
        x = softcap(upcast(logits), self.logit_softcap)
        q = jnp.ones_like(x, shape=()) if pos_weight is None else pos_weight
        tangent_out = jnp.zeros_like(x)
        if dlogits is not None:
            tangent_out += self.gradient(data, statistics) * upcast(dlogits)
        if dlabels is not None:
            grad = label_grad(x, q)
            if any(self.gammas):
                present, absent = self.gammas
                grad = finite(q) * finite_term(present, -x) - finite_term(absent, x)
                grad = jnp.where(jnp.isinf(q), 0, grad)
            tangent_out += (1 - self.label_smoothing) * grad * upcast(dlabels)
        if dpos_weight is not None:
            z = self.smoothed(labels, x.dtype)
            tangent_out += z * finite_term(self.focusing, -x) * dpos_weight
        return tangent_out if self.axis is None else jnp.sum(tangent_out, self.axis)

    def smoothed(self, labels: Array, dtype: DTypeLike) -> Array:
        z = labels.astype(dtype)
        if self.label_smoothing:
            z = z * (1 - self.label_smoothing) + self.label_smoothing / 2
        return z


@per_platform(statics=1)
def summed_losses(
    loss_fn: Sigmoid,
    labels: Array,
    logits: Array,
    pos_weight: Array | None,
    weights: Array | None,
) -> Array:
    """The sum over the classes of the losses times their weights."""
    return loss_fn.classes.total(
        weighted_class_losses(loss_fn, labels, logits, pos_weight, weights)
    )


def weighted_class_losses(
    loss_fn: Sigmoid,
    labels: Array,
    logits: Array,
    pos_weight: Array | None,
    weights: Array | None,
) -> Array:
    """The losses of all classes times their weights."""
    x = softcap(upcast(logits), loss_fn.logit_softcap)
    z = loss_fn.smoothed(labels, x.dtype)
    if any(loss_fn.gammas):
        each = focused_losses(loss_fn.gammas, z, pos_weight, x)
    else:
        each = class_losses.reference(z, pos_weight, x)
    return each if weights is None else base.apply_weights(weights, each)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def weighted_total(loss_fn: Sigmoid, weights: Array, *data: Array | None) -> Float[Array, ""]:
    """sum(weights * losses) over classes and examples."""
    return loss_fn.weighted_sum(*cast(Data, data), weights)


# As the sum of the weighted losses, but known before the gradient is computed, see
# `hints.ordering_zero`, and without storing the losses. What is dropped is told from the data: an
# infinite loss of finite data has a finite gradient, which a weight of 0 makes 0.
def _weighted_total_jvp(
    loss_fn: Sigmoid, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    total = weighted_total(loss_fn, *primals)
    dweights, *nonzero_tangents = base.none_for_zeros(tangents)

    @partial(jax.checkpoint, prevent_cse=False)
    def tangent(
        weights: Array, data: Any, dweights: Array | None, nonzero_tangents: Any, zero: Array
    ) -> Array:
        data, _ = hints.add_dependency(zero, data)
        tangent_out = jnp.zeros_like(total)
        if jax.tree.leaves(nonzero_tangents):
            size = reduce(jnp.add, (x.astype(total.dtype) for x in data if x is not None))
            keep_mask = (weights != 0) | jnp.isfinite(size)
            clean = base.without_dropped(loss_fn.per_class, keep_mask)
            each = loss_fn.per_class.tangent(clean(data), None, clean(nonzero_tangents))
            if nonzero_tangents[-1] is not None:  # as in `losses`
                each = jnp.where(keep_mask, each, 0)
            tangent_out += loss_fn.classes.total(weights * each)
        if dweights is not None:
            values, _ = base.losses(loss_fn.per_class, False, weights, *data)
            tangent_out += loss_fn.classes.total(
                jnp.where(jnp.isfinite(values), values, 0) * dweights
            )
        return tangent_out

    weights, *data = primals
    return total, tangent(weights, data, dweights, nonzero_tangents, hints.ordering_zero(total))


weighted_total.defjvp(_weighted_total_jvp, symbolic_zeros=True)


@dataclass(frozen=True)
class SparseSigmoid(_Independent):
    """The same from lists of ids, `[*batch, ids]`; the classes are the last axis.

    In terms of v, which is -x for the listed classes and x for the others, every class has the
    loss `a softplus(v) + b softplus(-v)`. Without smoothing b is 0, without `pos_weight` a is 1:
    v is then all that is looked at, and a compiler that stores it stores nothing else.
    """

    def losses(self, labels: Array, logits: Array, pos_weight: Array | None) -> tuple[Array, None]:
        pos_weight = of_rank(logits.ndim, pos_weight)
        total = summed_losses_of_ids(self, labels, logits, pos_weight)
        return nan_unless(self.are_in_range(labels, logits), total), None

    def class_losses(self, labels: Array, logits: Array, pos_weight: Array | None) -> Array:
        """The losses of all classes; of ids out of range as if they were not there."""
        x = softcap(upcast(logits), self.logit_softcap)
        listed = multi_hot_mask(self.classes, labels, x)
        a, b = self._factors(listed, x, pos_weight)
        v = jnp.where(listed, -x, x)
        own = self._by_label(focal_term, listed, v)
        product = zero_safe_multiply if pos_weight is None else weighted_term
        losses = own if a is None else product(a, own)
        if b is not None:
            losses += product(b, self._by_label(focal_term, ~listed, -v))
        return losses

    def gradient(self, data: Data, statistics: None) -> Array:
        labels, logits, pos_weight = data
        x = upcast(logits)
        capped = softcap(x, self.logit_softcap)
        listed = multi_hot_mask(self.classes, hints.reload(labels), x)
        a, b = self._factors(listed, x, None if pos_weight is None else finite(pos_weight))
        v = jnp.where(listed, -capped, capped)
        if a is None:
            grad = self._by_label(focal_term_grad, listed, v)
        elif b is None:
            grad = a * self._by_label(focal_term_grad, listed, v)
        elif any(self.gammas):
            grad = a * self._by_label(focal_term_grad, listed, v)
            grad -= b * self._by_label(focal_term_grad, ~listed, -v)
        else:
            grad = logits_grad(a, b, v)
        # A product: in a select between the two, compilers store the slope.
        grad *= jnp.where(listed, -jnp.ones_like(x, shape=()), 1)
        grad *= softcap_grad(x, self.logit_softcap)
        # A product, so that the derivatives of the gradient are NaN too.
        factor = nan_unless(self.are_in_range(labels, x), jnp.ones_like(x, shape=()))
        return grad * explicit.broadcast_like(factor[..., None], x)

    def local_tangent(self, data: Data, statistics: None, tangents: Tangents) -> Array:
        labels, logits, _ = data
        _, dlogits, dpos_weight = tangents
        x = softcap(upcast(logits), self.logit_softcap)
        tangent_out = jnp.zeros_like(x)
        if dlogits is not None:
            tangent_out += self.gradient(data, statistics) * upcast(dlogits)
        if dpos_weight is not None:
            smoothed_zero = self.label_smoothing / 2
            positive = jnp.where(
                multi_hot_mask(self.classes, labels, x), 1 - smoothed_zero, smoothed_zero
            ).astype(x.dtype)
            in_range = explicit.broadcast_like(self.are_in_range(labels, x)[..., None], x)
            positive = nan_unless(in_range, positive)
            tangent_out += positive * finite_term(self.focusing, -x) * dpos_weight
        return jnp.sum(tangent_out, self.axis)

    def _by_label(
        self, function: Callable[[float, Array], Array], listed: Array, v: Array
    ) -> Array:
        """A function of a power and `v`, with the power of listed classes and of the others."""
        present, absent = self.gammas
        if present == absent:
            return function(present, v)
        return jnp.where(listed, function(present, v), function(absent, v))

    def _factors(
        self, listed: Array, x: Array, pos_weight: Array | None
    ) -> tuple[Array | None, Array | None]:
        """The factors a and b above; None for 1 and 0."""
        smoothed_zero = self.label_smoothing / 2
        if pos_weight is None:
            one = jnp.ones_like(x, shape=())
            return (
                ((1 - smoothed_zero) * one, smoothed_zero * one) if smoothed_zero else (None, None)
            )
        a = (1 - smoothed_zero) * jnp.where(listed, pos_weight, 1)
        return a, smoothed_zero * jnp.where(listed, 1, pos_weight) if smoothed_zero else None

    def are_in_range(self, labels: Array, logits: Array) -> Array:
        # In the ids' own dtype: a cast to int32 first would fold large ids into the range.
        return jnp.all(labels <= largest_id(labels.dtype, self.classes.count(logits)), axis=-1)


@per_platform(statics=1)
def summed_losses_of_ids(
    loss_fn: SparseSigmoid, labels: Array, logits: Array, pos_weight: Array | None
) -> Array:
    """The sum over the classes of the losses."""
    return loss_fn.classes.total(loss_fn.class_losses(labels, logits, pos_weight))


@per_platform(statics=1)
def multi_hot_mask(classes: ClassAxis, ids: Integer[Array, "..."], x: Array) -> Array:
    """Which classes are listed, as booleans of the shape of `x` that need not be stored.

    The ids lie along the axis of the classes.

    One comparison an id, unrolled: reducing over an axis of ids would store the mask, and a
    scatter is slower still where the classes are split or the chip is wide. Long lists take a
    loop, which keeps the program small.
    """
    numbers = classes.iota(x)
    # An id out of range may wrap here; its example is NaN in any case.
    ids = jnp.where(ids < 0, -1, ids).astype(jnp.int32)

    def with_id(k: int | Array, listed: Array) -> Array:
        is_id: Array = numbers == jax.lax.dynamic_index_in_dim(ids, k, axis=classes.index)
        return listed | is_id

    listed = jnp.zeros_like(numbers, dtype=bool)
    count = ids.shape[classes.index]
    if count > 64:
        every: Array = jax.lax.fori_loop(1, count, with_id, with_id(0, listed))
        return every
    for k in range(count):
        listed = with_id(k, listed)
    return listed
