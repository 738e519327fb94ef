"""Cross-entropy over classes that are independent, from logits in memory.

Each class is a yes-or-no question of its own: a picture may show a dog and an elephant.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from jxent import _checks, _derivative, _explicit
from jxent._attempt import attempt, by_rows, own_constants
from jxent._classes import Classes
from jxent._normalizer import zero_times
from jxent._softcap import softcap, softcap_of_finite, softcap_slope
from jxent._widen import largest_id, widen


def sigmoid_cross_entropy_with_logits(
    *,
    labels: Float[ArrayLike, "*batch classes"],
    logits: Float[ArrayLike, "*batch classes"],
    logit_softcap: float | None = None,
    name: str | None = None,
) -> Float[Array, "*batch classes"]:
    r"""Surprise, in nats, of each label under the sigmoid of its logit: independent classes.

    $$\ell = (1 - z)\,\mathrm{softplus}(x) + z\,\mathrm{softplus}(-x)$$

    with labels $z$ and logits $x$: equal in algebra to TensorFlow's `max(x, 0) - x z +
    log1p(exp(-|x|))`, but made of terms that do not cancel.

    Args:
      labels: Probability that the class is present, in the logits' shape and dtype; usually
        0 or 1. Values outside [0, 1] are computed as the formula says.
      logits: Log-odds. At +-inf the loss is the limit: 0 where the label agrees, else inf.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per class and example, in the logits' shape and dtype. bfloat16 and float16 are
      computed in float32 and rounded once.

    Raises:
      TypeError: `logits` is not floating, `labels` has another dtype, or an option is not a
        Python value.
      ValueError: The shapes differ, or `logit_softcap` is not positive.

    Examples:
      >>> sigmoid_cross_entropy_with_logits(labels=[1.0, 0.0], logits=[0.0, 2.0])
      Array([0.6931472, 2.126928 ], dtype=float32)

    References:
      TensorFlow, `tf.nn.sigmoid_cross_entropy_with_logits`.
    """
    logits = _checks.floating("logits", logits)
    labels = _checks.dense_labels(labels, logits)
    member = Sigmoid(logit_softcap=_checks.logit_softcap(logit_softcap, logits.dtype))
    with _checks.scope(name, "sigmoid_cross_entropy_with_logits"):
        return _jitted(member, labels, logits)


def weighted_cross_entropy_with_logits(
    *,
    labels: Float[ArrayLike, "*batch classes"],
    logits: Float[ArrayLike, "*batch classes"],
    pos_weight: Float[ArrayLike, "..."],
    logit_softcap: float | None = None,
    name: str | None = None,
) -> Float[Array, "*batch classes"]:
    r"""Sigmoid cross-entropy, in nats, whose positive labels count `pos_weight` times.

    $$\ell = (1 - z)\,\mathrm{softplus}(x) + q z\,\mathrm{softplus}(-x)$$

    A weight $q > 1$ makes missed positives dear and raises recall; $q < 1$ raises precision.

    Args:
      labels: Probability that the class is present, in the logits' shape and dtype; usually
        0 or 1. Values outside [0, 1] are computed as the formula says.
      logits: Log-odds. At +-inf the loss is the limit: 0 where the label agrees, else inf.
      pos_weight: The factor q on positive labels: a number, or an array that broadcasts to the
        logits, `[classes]` for one a class. Differentiable. A negative one is computed as the
        formula says.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per class and example, in the logits' shape and dtype. bfloat16 and float16 are
      computed in float32 and rounded once.

    Raises:
      TypeError: `logits` is not floating, `labels` has another dtype, `pos_weight` is not
        real, or an option is not a Python value.
      ValueError: The shapes of `labels` and `logits` differ, `pos_weight` does not broadcast
        to them, or `logit_softcap` is not positive.

    Examples:
      >>> weighted_cross_entropy_with_logits(
      ...     labels=[1.0, 0.0], logits=[0.0, 2.0], pos_weight=3.0)
      Array([2.0794415, 2.126928 ], dtype=float32)

    References:
      TensorFlow, `tf.nn.weighted_cross_entropy_with_logits`.
    """
    logits = _checks.floating("logits", logits)
    labels = _checks.dense_labels(labels, logits)
    factor = _checks.pos_weight(pos_weight, logits.shape, logits.dtype)
    member = Sigmoid(logit_softcap=_checks.logit_softcap(logit_softcap, logits.dtype))
    with _checks.scope(name, "weighted_cross_entropy_with_logits"):
        return _jitted(member, labels, logits, factor)


def sparse_sigmoid_cross_entropy_with_logits(
    *,
    labels: Integer[ArrayLike, "*batch ids"],
    logits: Float[ArrayLike, "*batch classes"],
    pos_weight: Float[ArrayLike, "..."] = 1.0,
    label_smoothing: float = 0.0,
    logit_softcap: float | None = None,
    axis_name: str | None = None,
    name: str | None = None,
) -> Float[Array, "*batch"]:
    r"""Sigmoid cross-entropy, in nats, summed over the classes, from the ids of the positive ones.

    $$\ell = \sum_j (1 - z_j)\,\mathrm{softplus}(x_j) + q_j z_j\,\mathrm{softplus}(-x_j)$$

    where $z_j$ is 1 for the classes that are listed and 0 for all others, then smoothed. No array
    of dense labels is built: item 7 has labels 3 and 90,210, and that is what is passed.

    Args:
      labels: Ids of the positive classes, in [0, classes), in any order. A negative id is
        padding, an id that appears twice counts once, and one that is too large makes its
        example's loss and gradient NaN.
      logits: Log-odds, classes last. At +-inf the loss is the limit: 0 where the label agrees,
        else inf.
      pos_weight: The factor q on positive labels: a number, or an array that broadcasts to the
        logits, `[classes]` for one a class. Differentiable.
      label_smoothing: The share s, in [0, 1], by which labels move towards 1/2.
      logit_softcap: A positive number c: the logits become c tanh(logits / c).
      axis_name: Under `shard_map`, the mesh axis that the classes are split over, in parts of equal
        width; ids stay global. Gradients taken inside need shard_map's default `check_vma=True`.
        None: the classes are whole, or split by `jit` alone.
      name: Names the computation in profiles (`jax.named_scope`).

    Returns:
      One loss per example, the sum over its classes, in the logits' dtype. bfloat16 and float16
      are computed in float32 and rounded once.

    Raises:
      TypeError: `labels` is not integer, `logits` is not floating, `pos_weight` is not real, or
        an option is not a Python value.
      ValueError: `labels` is not `[*batch, ids]` for logits `[*batch, classes]`, `pos_weight`
        does not broadcast to the logits, or an option is out of its range.

    Examples:
      >>> sparse_sigmoid_cross_entropy_with_logits(
      ...     labels=[[3, 1], [2, -1]], logits=jnp.zeros((2, 5)))
      Array([3.465736, 3.465736], dtype=float32)

    References:
      TensorFlow, `tf.nn.weighted_cross_entropy_with_logits`, of the dense labels.
    """
    logits = _checks.floating("logits", logits)
    axis = _checks.axis(-1, logits)
    labels = _checks.id_lists(labels, logits.shape, "logits")
    factor = _checks.pos_weight(pos_weight, logits.shape, logits.dtype)
    member = SparseSigmoid(
        classes=_checks.classes(axis, axis_name),
        label_smoothing=_checks.label_smoothing(label_smoothing),
        logit_softcap=_checks.logit_softcap(logit_softcap, logits.dtype),
    )
    with _checks.scope(name, "sparse_sigmoid_cross_entropy_with_logits"):
        return _jitted(member, labels, logits, factor)


@partial(jax.jit, static_argnums=0)
def _jitted(member, labels, logits, pos_weight=None):
    losses, _ = _derivative.losses(member, True, None, labels, logits, pos_weight)
    return losses.astype(logits.dtype)


@dataclass(frozen=True)
class Sigmoid:
    """Independent classes, dense labels: the member that `_derivative` differentiates."""

    label_smoothing: float = 0.0
    logit_softcap: float | None = None
    axis = None

    def losses(self, labels, logits, pos_weight):
        x = softcap(widen(logits), self.logit_softcap)
        return _loss(self._smoothed(labels, x.dtype), pos_weight, x), None

    def total(self, ndim: int) -> "SigmoidSum":
        """The member that gives the sum of all these losses."""
        axes = tuple(range(-ndim, 0))  # from the end: vmap adds axes in front
        return SigmoidSum(Classes(axes), self.label_smoothing, self.logit_softcap)

    def gradient(self, data, statistics):
        labels, logits, pos_weight = data
        x = widen(logits)
        z = self._smoothed(labels, x.dtype)
        positive = z if pos_weight is None else pos_weight * z
        capped = softcap(x, self.logit_softcap)
        return _slope(1 - z, positive, capped) * softcap_slope(x, self.logit_softcap)

    def tangent(self, data, statistics, tangents):
        labels, logits, pos_weight = data
        dlabels, dlogits, dpos_weight = tangents
        x = softcap(widen(logits), self.logit_softcap)
        q = jnp.ones_like(x, shape=()) if pos_weight is None else pos_weight
        change = jnp.zeros_like(x)
        if dlogits is not None:
            change += self.gradient(data, statistics) * widen(dlogits)
        if dlabels is not None:
            change += (1 - self.label_smoothing) * _label_slope(x, q) * widen(dlabels)
        if dpos_weight is not None:
            z = self._smoothed(labels, x.dtype)
            change += z * _finite_softplus(-x) * dpos_weight
        return change

    def _smoothed(self, labels, dtype):
        z = labels.astype(dtype)
        if self.label_smoothing:
            z = z * (1 - self.label_smoothing) + self.label_smoothing / 2
        return z


@dataclass(frozen=True)
class SigmoidSum:
    """The sum over independent classes, dense labels: a member of one loss an example."""

    classes: Classes
    label_smoothing: float = 0.0
    logit_softcap: float | None = None

    @property
    def axis(self):
        return self.classes.axis

    @property
    def each(self) -> Sigmoid:
        """The member of one loss a class."""
        return Sigmoid(self.label_smoothing, self.logit_softcap)

    def losses(self, labels, logits, pos_weight, weights=None):
        # Of the logits' rank, which `vmap` may add to.
        data = [labels, logits] + [
            None if x is None else x.reshape((1,) * (logits.ndim - x.ndim) + x.shape)
            for x in (pos_weight, weights)
        ]

        # From the arrays as they were given: a condition stores what it is handed.
        def careful(labels, logits, pos_weight, weights):
            x = softcap(widen(logits), self.logit_softcap)
            losses = _plain_loss(self.each._smoothed(labels, x.dtype), pos_weight, x)
            return losses if weights is None else _derivative.weigh(weights, losses)

        def careful_in_total(*data):
            sums = by_rows(lambda *data: jnp.sum(careful(*data), -1, keepdims=True))
            return self.classes.total(sums(*data) if logits.ndim else careful(*data))

        # Infinite logits are rare, and without care for them 0 * inf makes the sum NaN.
        def of_finite(labels, logits, pos_weight, weights):
            x = softcap_of_finite(widen(logits), self.logit_softcap)
            z = labels.astype(x.dtype)
            if self.label_smoothing:
                smoothing = (1 - self.label_smoothing, self.label_smoothing / 2)
                kept, added = own_constants(x.dtype, *smoothing)
                z = kept * z + added
            losses = _loss_of_finite(z, pos_weight, x)
            total = self.classes.total(losses if weights is None else weights * losses)
            return jnp.isfinite(total), total

        def everywhere(*data):
            return self.classes.total(careful(*data))

        if self.classes.name is not None or _explicit.is_split(logits):
            return everywhere(*data), None
        cheap = attempt(of_finite, careful_in_total)
        return jax.lax.platform_dependent(*data, cpu=cheap, default=everywhere), None

    def gradient(self, data, statistics):
        return self.each.gradient(data, statistics)

    def tangent(self, data, statistics, tangents):
        return self.classes.total(self.each.tangent(data, statistics, tangents))


@dataclass(frozen=True)
class SparseSigmoid:
    """The same from lists of ids, `[*batch, ids]`; the classes are the last axis.

    In terms of v, which is -x for the listed classes and x for the others, every class has the
    loss `a softplus(v) + b softplus(-v)`. Without smoothing b is 0, without `pos_weight` a is 1:
    v is then all that is looked at, and XLA:CPU, which stores it, stores nothing else.
    """

    classes: Classes
    label_smoothing: float = 0.0
    logit_softcap: float | None = None

    @property
    def axis(self):
        return self.classes.axis

    def losses(self, labels, logits, pos_weight):
        x = softcap(widen(logits), self.logit_softcap)
        listed = self._listed(labels, x)
        a, b = self._factors(listed, x, pos_weight)
        v = jnp.where(listed, -x, x)
        losses = _softplus(v) if a is None else zero_times(a, _softplus(v))
        if b is not None:
            losses += zero_times(b, _softplus(-v))
        total = self.classes.total(losses)
        return jnp.where(self._in_range(labels, x), total, jnp.nan), None

    def gradient(self, data, statistics):
        labels, logits, pos_weight = data
        x = widen(logits)
        capped = softcap(x, self.logit_softcap)
        listed = self._listed(labels, x)
        a, b = self._factors(listed, x, pos_weight)
        v = jnp.where(listed, -capped, capped)
        if a is None:
            slope = _sigmoid(v)
        elif b is None:
            slope = a * _sigmoid(v)
        else:
            slope = _slope(a, b, v)
        slope = jnp.where(listed, -slope, slope) * softcap_slope(x, self.logit_softcap)
        # A product, so that the derivatives of the gradient are NaN too.
        known = jnp.where(self._in_range(labels, x), jnp.ones_like(x, shape=()), jnp.nan)
        return slope * _explicit.filled(known[..., None], x)

    def tangent(self, data, statistics, tangents):
        labels, logits, _ = data
        _, dlogits, dpos_weight = tangents
        x = softcap(widen(logits), self.logit_softcap)
        change = jnp.zeros_like(x)
        if dlogits is not None:
            change += self.gradient(data, statistics) * widen(dlogits)
        if dpos_weight is not None:
            share = self.label_smoothing / 2
            positive = jnp.where(self._listed(labels, x), 1 - share, share).astype(x.dtype)
            in_range = _explicit.filled(self._in_range(labels, x)[..., None], x)
            positive = jnp.where(in_range, positive, jnp.nan)
            change += positive * _finite_softplus(-x) * dpos_weight
        return self.classes.total(change)

    def _factors(self, listed, x, pos_weight):
        """The factors a and b above; None for 1 and 0."""
        share = self.label_smoothing / 2
        if pos_weight is None:
            one = jnp.ones_like(x, shape=())
            return ((1 - share) * one, share * one) if share else (None, None)
        a = (1 - share) * jnp.where(listed, pos_weight, 1)
        return a, share * jnp.where(listed, 1, pos_weight) if share else None

    def _in_range(self, labels, x):
        # In the ids' own dtype: a cast to int32 first would fold large ids into the range.
        return jnp.all(labels <= largest_id(labels.dtype, self.classes.count(x)), axis=-1)

    def _listed(self, labels, x):
        return _listed(labels, self.classes.numbers(x))


def _listed(ids: Integer[Array, "*batch ids"], numbers: Integer[Array, "..."]) -> Array:
    """Which classes are listed, as booleans `[*batch, classes]` that XLA need not store.

    One comparison an id, unrolled: reducing over an axis of ids would store the mask, and a
    scatter is slower still where the classes are split or the processor is no CPU. Long lists
    take a loop, which keeps the program small.
    """
    # An id out of range may wrap here; its example is NaN in any case.
    ids = jnp.where(ids < 0, -1, ids).astype(jnp.int32)

    def with_id(k, listed):
        return listed | (numbers == jax.lax.dynamic_index_in_dim(ids, k, axis=-1))

    listed = jnp.zeros_like(numbers, dtype=bool)
    count = ids.shape[-1]
    if count > 64:
        return jax.lax.fori_loop(1, count, with_id, with_id(0, listed))
    for k in range(count):
        listed = with_id(k, listed)
    return listed


def _loss(z: Array, q: Array | None, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """(1 - z) softplus(x) + q z softplus(-x), in terms that do not cancel for z in [0, 1]."""
    return jax.lax.platform_dependent(z, q, x, cpu=_loss_without_selects, default=_plain_loss)


def _plain_loss(z, q, x):
    positive = z if q is None else q * z
    loss = zero_times(1 - z, _softplus(x)) + zero_times(positive, _softplus(-x))
    return jnp.where(jnp.isnan(x), x, loss)


# For XLA:CPU's fusions, which end at a select and at a clamp: infinite logits are brought down to
# the largest number, since 0 * inf is NaN, and the factor `infinite`, 1 for all others, makes the
# product overflow again where the label does not agree. (Not for a sum that may meet both inf and
# -inf: fused with its addition, the product does not overflow.) NaN, which minima drop, is in the
# logarithm.
def _loss_without_selects(z, q, x):
    positive = z if q is None else jax.lax.optimization_barrier(q) * z
    most = float(jnp.finfo(x.dtype).max)
    zero, one = own_constants(x.dtype, 0.0, 1.0)
    above = jnp.maximum(-jnp.maximum(-x, -most), zero)
    below = jnp.maximum(-jnp.maximum(x, -most), zero)
    infinite = one + jnp.minimum(jnp.abs(x) - jnp.minimum(jnp.abs(x), most), most)
    linear = ((one - z) * above + positive * below) * infinite
    return linear + (one - z + positive) * jnp.log1p(jnp.exp(-jnp.abs(x)))


def _loss_of_finite(z: Array, q: Array | None, x: Array) -> Array:
    """The same in fewer operations: inf or NaN if a logit is infinite."""
    rest = jnp.log1p(jnp.exp(-jnp.abs(x)))
    if q is None:  # (1 - z) x >= -z x exactly where x >= 0, for every z
        return rest - jnp.minimum((z - 1) * x, z * x)
    zero, one = own_constants(x.dtype, 0.0, 1.0)
    positive = jax.lax.optimization_barrier(q) * z
    linear = (one - z) * jnp.maximum(x, zero) - positive * jnp.minimum(x, zero)
    return linear + (one - z + positive) * rest


@jax.custom_jvp
def _sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return 1 / (1 + jnp.exp(-x))


# sigmoid(x) sigmoid(-x), never sigmoid(x) (1 - sigmoid(x)).
@_sigmoid.defjvp
def _sigmoid_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    value = _sigmoid(x)
    return value, value * _sigmoid(-x) * t


@jax.custom_jvp
def _slope(negative: Array, positive: Array, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """D loss / dx = negative sigmoid(x) - positive sigmoid(-x), for weights 1 - z and q z.

    Not sigmoid(x) - z: that is 0 for z = 1 and x > 17 in float32, where the truth is
    -sigmoid(-x). Both sigmoids from one exponential: 1 / (1 + e) and e / (1 + e).
    """
    e = jnp.exp(-jnp.abs(x))
    up = jnp.where(x < 0, e, 1)
    down = jnp.where(x < 0, 1, e)
    return (negative * up - positive * down) / (1 + e)


# The weights are added first: times sigmoid(x) sigmoid(-x), the smaller could fall below the
# smallest normal number and be flushed to 0 while the sum is normal.
@_slope.defjvp
def _slope_jvp(primals, tangents):
    (negative, positive, x), (dnegative, dpositive, dx) = primals, tangents
    change = (negative + positive) * (_sigmoid(x) * _sigmoid(-x)) * dx
    change += dnegative * _sigmoid(x) - dpositive * _sigmoid(-x)
    return _slope(negative, positive, x), change


def _softplus(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@jax.custom_jvp
def _finite_softplus(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """softplus(x), and 0 where that is infinite: a factor of tangents, which may be 0."""
    return jnp.where(jnp.isinf(x), 0, _softplus(x))


@_finite_softplus.defjvp
def _finite_softplus_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return _finite_softplus(x), _sigmoid(x) * t


@jax.custom_jvp
def _label_slope(x: Float[Array, "..."], q: Array) -> Float[Array, "..."]:
    """D loss / d label = q softplus(-x) - softplus(x), 0 where infinite; exactly -x for q = 1."""
    linear = q * jnp.maximum(-x, 0) - jnp.maximum(x, 0)
    return jnp.where(jnp.isinf(x), 0, linear + (q - 1) * jnp.log1p(jnp.exp(-jnp.abs(x))))


@_label_slope.defjvp
def _label_slope_jvp(primals, tangents):
    (x, q), (dx, dq) = primals, tangents
    change = dq * _finite_softplus(-x) - (q * _sigmoid(-x) + _sigmoid(x)) * dx
    return _label_slope(x, q), change
