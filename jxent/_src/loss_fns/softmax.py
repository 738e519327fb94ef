"""Exclusive classes: the losses and their mathematics.

Each example has one class, or a distribution over the classes: a weight for each, or for some.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jxent._src.core import hints
from jxent._src.core.blocks import Block
from jxent._src.core.elementary import WeightedIds, log1p, nan_unless, upcast
from jxent._src.core.versions import SECOND_ORDER_BY_CLASSES
from jxent._src.loss_fns import label_lists
from jxent._src.loss_fns.base import Data, Loss, LossComponents, Tangents
from jxent._src.numerics import logsumexp, softmax_rows
from jxent._src.numerics.focal import focused, focused_grad
from jxent._src.numerics.logsumexp import SparseLabelResiduals, TangentMean
from jxent._src.numerics.softcap import softcap, softcap_grad
from jxent._src.numerics.softmax_rows import DenseLabelResiduals


@dataclass(frozen=True)
class _Exclusive(Loss):
    """What dense labels and ids share: the options, and everything about the normaliser."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    has_aux: bool = False
    _has_ids: ClassVar[bool] = False

    @property
    def returns_components(self) -> bool:
        return self.has_aux

    def _of_statistics(self, logits: Array) -> Array:
        """What statistics take: the logits as they are given, where they are not capped."""
        return logits if self.logit_softcap is None else self._capped(logits)

    def _capped(self, logits: Array) -> Array:
        x = softcap(upcast(logits), self.logit_softcap)
        if self.logit_softcap is None:
            return x
        return hints.materialize_capped(self._has_ids, x)

    def _components(
        self, loss: Array, log_normalizer: Array, correct: Array | None
    ) -> LossComponents:
        z_loss = jnp.zeros_like(loss)
        if self.z_loss:
            z_loss = self.z_loss * jnp.square(log_normalizer)
        every = (loss, z_loss, cast(Array, correct))
        return LossComponents(*(jnp.squeeze(x, self.axis) for x in every))

    def _z_loss_grad(
        self, x: Array, p: Array, log_normalizer: Array, tangent_mean: TangentMean | None = None
    ) -> Array:
        """d/dx of z_loss * logsumexp^2; a logsumexp of inf has no slope worth following."""
        log_normalizer = logsumexp.log_normalizer(x, log_normalizer, self.classes, tangent_mean)
        return 2 * self.z_loss * jnp.where(jnp.isinf(log_normalizer), 0, log_normalizer) * p


@dataclass(frozen=True)
class Softmax(_Exclusive):
    """Exclusive classes, dense labels."""

    def losses(
        self, labels: Any, logits: Array, parameters: Array | None
    ) -> tuple[Array, DenseLabelResiduals]:
        residuals = self._statistics(self._of_statistics(logits), labels)
        loss = residuals.loss
        if self.z_loss:
            loss += self.z_loss * jnp.square(residuals.row_max + log1p(residuals.sumexp_rest))
        return jnp.squeeze(loss, self.axis), residuals

    def _statistics(self, x: Array, labels: Any) -> DenseLabelResiduals:
        statistics = softmax_rows.dense_label_residuals
        if self.has_aux:
            statistics = softmax_rows.dense_label_residuals_and_prediction
        residuals = statistics(self.classes, self.label_smoothing, x, labels)
        return self._with_smoothed_total(residuals)

    def _with_smoothed_total(self, residuals: DenseLabelResiduals) -> DenseLabelResiduals:
        if residuals.uniform_mass is None:
            return residuals
        total = (1 - self.label_smoothing) * residuals.total + self.label_smoothing
        return residuals._replace(total=total)

    def components(self, residuals: DenseLabelResiduals) -> LossComponents:
        return self._components(
            residuals.loss, residuals.row_max + log1p(residuals.sumexp_rest), residuals.correct
        )

    def gradient(self, data: Data, statistics: DenseLabelResiduals) -> Array:
        labels, logits, _ = data
        row_max, sumexp_rest, *_ = statistics
        x = self._capped(logits)
        grad = self._grads(x, labels, statistics)
        if self.z_loss:
            p, _ = logsumexp.probability_and_complement(x, row_max, sumexp_rest, self.classes)
            grad += self._z_loss_grad(x, p, row_max + log1p(sumexp_rest))
        return grad * softcap_grad(upcast(logits), self.logit_softcap)

    def _grads(self, x: Array, labels: Any, statistics: DenseLabelResiduals) -> Array:
        given = labels.astype(x.dtype)
        return softmax_rows.grads_of_labels(
            self.classes, self.label_smoothing, x, given, statistics
        )

    def local_tangent(
        self, data: Data, statistics: DenseLabelResiduals, tangents: Tangents
    ) -> Array:
        dlabels, dlogits, _ = tangents
        tangent_out = jnp.zeros_like(jnp.squeeze(statistics.sumexp_rest, self.axis))
        if dlogits is not None:
            grad = self.gradient(data, statistics)
            tangent_out += jnp.sum(grad * upcast(dlogits), self.axis)
        if jax.tree.leaves(dlabels):
            tangent_out += self._tangent_of_labels(data, statistics, dlabels)
        return tangent_out

    def _tangent_of_labels(
        self, data: Data, statistics: DenseLabelResiduals, dlabels: Any
    ) -> Array:
        row_max, sumexp_rest, *_ = statistics
        grad = logsumexp.neg_log_probs(self._capped(data[1]), row_max, sumexp_rest, self.classes)
        grad = (1 - self.label_smoothing) * grad
        return jnp.sum(grad * upcast(dlabels), self.axis)


@dataclass(frozen=True)
class ListedSoftmax(Softmax):
    """Exclusive classes, lists of weighted ids."""

    focusing: float = 0.0
    has_class_blocks = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.focusing:
            raise ValueError(f"focusing must be 0 with label_weights, got {self.focusing}")

    def labels_of(self, block: Block, labels: WeightedIds) -> WeightedIds:
        """With ids beyond the block's classes for entries of other blocks, whose weights count."""
        places = self.classes.local_ids(block, labels.ids)
        elsewhere = jnp.where(places < 0, block.size, places)
        return labels._replace(ids=jnp.where(labels.ids < 0, -1, elsewhere))

    def _statistics(self, x: Array, labels: WeightedIds) -> DenseLabelResiduals:
        labels, in_range = label_lists.canonicalize_ids(self.classes, labels, x)
        residuals = label_lists.statistics(
            self.classes, self.label_smoothing, self.has_aux, x, labels
        )
        loss, sumexp_rest = (
            nan_unless(in_range, a) for a in (residuals.loss, residuals.sumexp_rest)
        )
        correct = None if residuals.correct is None else jnp.where(in_range, residuals.correct, 0)
        return self._with_smoothed_total(
            residuals._replace(loss=loss, sumexp_rest=sumexp_rest, correct=correct)
        )

    def are_in_range(self, labels: WeightedIds, logits: Array) -> Array:
        _, in_range = label_lists.canonicalize_ids(self.classes, labels, logits)
        return jnp.squeeze(in_range, self.axis)

    def _grads(self, x: Array, labels: WeightedIds, statistics: DenseLabelResiduals) -> Array:
        labels, _ = label_lists.canonicalize_ids(self.classes, labels, x)
        return label_lists.grads(self.classes, self.label_smoothing, x, labels, statistics)

    # Every chip has all entries of a list: nothing of theirs is added up across the chips.
    def tangent(self, data: Data, statistics: DenseLabelResiduals, tangents: Tangents) -> Array:
        dlabels, dlogits, _ = tangents
        tangent_out = jnp.zeros_like(jnp.squeeze(statistics.sumexp_rest, self.axis))
        if dlogits is not None:
            tangent_out = super().tangent(data, statistics, (None, dlogits, None))
        if jax.tree.leaves(dlabels):
            tangent_out += self._tangent_of_labels(data, statistics, dlabels)
        return tangent_out

    def _tangent_of_labels(
        self, data: Data, statistics: DenseLabelResiduals, dlabels: WeightedIds
    ) -> Array:
        x = self._capped(data[1])
        labels, _ = label_lists.canonicalize_ids(self.classes, data[0], x)
        row_max, sumexp_rest, *_ = statistics
        grad = label_lists.neg_log_probs(self.classes, x, labels.ids, row_max, sumexp_rest)
        grad = (1 - self.label_smoothing) * grad
        return jnp.sum(grad * dlabels.weights, self.axis)


@dataclass(frozen=True)
class SparseSoftmax(_Exclusive):
    """Exclusive classes, ids."""

    focusing: float = 0.0
    _has_ids = True
    has_class_blocks = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.focusing and self.label_smoothing:
            raise ValueError(
                "focusing must be 0 where labels are smoothed, got "
                f"{self.focusing} with label_smoothing={self.label_smoothing}"
            )

    @property
    def second_order_by_class_block(self) -> bool:
        """A focused slope depends on its example's loss, so on all blocks."""
        return not self.focusing and SECOND_ORDER_BY_CLASSES

    def are_in_range(self, labels: Array, logits: Array) -> Array:
        return jnp.squeeze(self.classes.contains(labels, logits), self.axis)

    def losses(
        self, labels: Array, logits: Array, parameters: Array | None
    ) -> tuple[Array, SparseLabelResiduals]:
        x = self._of_statistics(logits)
        ids = self.classes.ids(labels, x)
        statistics = softmax_rows.sparse_label_residuals
        if self.has_aux:
            statistics = softmax_rows.sparse_label_residuals_and_prediction
        normalizer = statistics(self.classes, self.label_smoothing, x, ids)
        loss = normalizer.loss
        if self.focusing:
            loss = focused(self.focusing, loss)
        if self.z_loss:
            loss += self.z_loss * jnp.square(normalizer.log_normalizer)
        in_range = self.classes.contains(labels, x)

        valid = partial(nan_unless, in_range)
        scale, complement = normalizer.scale, normalizer.complement
        scale, complement = map(valid, (scale, complement))
        if self.has_aux or self.focusing:
            normalizer = normalizer._replace(loss=valid(normalizer.loss))
        if normalizer.correct is not None:
            normalizer = normalizer._replace(correct=jnp.where(in_range, normalizer.correct, 0))
        normalizer = normalizer._replace(scale=scale, complement=complement)
        # Without the axis first: some compilers compute arrays of one class a row number by number.
        loss, in_range = (jnp.squeeze(a, self.axis) for a in (loss, in_range))
        return nan_unless(in_range, loss), normalizer

    def components(self, normalizer: SparseLabelResiduals) -> LossComponents:
        loss = normalizer.loss
        if self.focusing:
            loss = focused(self.focusing, loss)
        return self._components(loss, normalizer.log_normalizer, normalizer.correct)

    def gradient(self, data: Data, statistics: SparseLabelResiduals) -> Array:
        labels, logits, _ = data
        x = self._capped(logits)
        # None is out of range where the normaliser is not NaN, but for other classes of a block.
        ids = self.classes.expand(jnp.where(labels < 0, -1, labels).astype(jnp.int32))
        grad = logsumexp.label_grads(self.classes, self.label_smoothing, x, ids, statistics)
        if self.focusing:
            loss = logsumexp.label_loss(self.classes, x, ids, statistics)
            grad *= focused_grad(self.focusing, loss)
        if self.z_loss:
            p = logsumexp.probabilities(x, statistics, self.classes)
            grad += self._z_loss_grad(x, p, statistics.log_normalizer, statistics.tangent_mean)
        return grad * softcap_grad(upcast(logits), self.logit_softcap)

    def local_tangent(
        self, data: Data, statistics: SparseLabelResiduals, tangents: Tangents
    ) -> Array:
        dlogits = cast(Array, tangents[1])  # of ids there is none
        grad = self.gradient(data, statistics)
        return jnp.sum(grad * upcast(dlogits), self.axis)

    def tangent_mean_of_block(
        self, logits: Array, dlogits: Array, statistics: SparseLabelResiduals, origin: Array | None
    ) -> Array:
        """What a block of classes adds to the origin of `TangentMean`, or with it to the mean."""
        x, dx = jax.jvp(self._capped, (logits,), (dlogits,))
        p = logsumexp.probabilities(x, statistics, self.classes)
        if origin is None:
            return logsumexp.origin_of(p, dx, self.classes)
        return logsumexp.mean_of(p, dx, origin, self.classes)


def of_ids(labels: Array | WeightedIds, **options: Any) -> SparseSoftmax | ListedSoftmax:
    """The loss that takes one id per example, or a list of weighted ones."""
    loss_fn = ListedSoftmax if isinstance(labels, WeightedIds) else SparseSoftmax
    return loss_fn(**options)
