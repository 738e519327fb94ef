"""Independent classes: optax's names for their losses."""

import math
from typing import Any

from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from jxent._src.checks import check, check_broadcast
from jxent._src.core.elementary import Numbers, computing_dtype
from jxent._src.loss_fns.sigmoid import Sigmoid
from jxent._src.run import compat, entry
from jxent._src.run.entry import Logits
from jxent._src.sharding.class_axis import ClassAxis


def sigmoid_binary_cross_entropy(
    logits: Float[ArrayLike, "..."], labels: Numbers
) -> Float[Array, "..."]:
    r"""Sigmoid cross-entropy per class, in nats, as optax has it.

    $$\ell = (1 - z)\,\mathrm{softplus}(x) + z\,\mathrm{softplus}(-x)$$

    with labels $z$ and logits $x$.

    Args:
      logits: Log-odds. At +-inf the loss is the limit: 0 where the label agrees, else inf.
      labels: Probability that the class is present, of any real dtype; usually 0 or 1. Labels and
        logits broadcast to one shape.

    Returns:
      One loss per class and example, in the logits' dtype. bfloat16 and float16 are computed in
      float32 and rounded once, from labels as they are given.

    Raises:
      TypeError: `logits` is not floating, or `labels` are not real.
      ValueError: `logits` and `labels` do not broadcast to one shape.

    Examples:
      >>> sigmoid_binary_cross_entropy([0.0, 2.0], [1.0, 0.0])
      Array([0.6931472, 2.126928 ], dtype=float32)

    See Also:
      jxent.sigmoid_cross_entropy_with_logits: the same with `logit_softcap` and focusing.
      jxent.losses.sigmoid_cross_entropy: the weighted and reduced scalar.
    """
    x = check.floating("logits", logits)
    z = check_broadcast.real("labels", labels, computing_dtype(x.dtype))
    shape = check_broadcast.shape(logits=x.shape, labels=z.shape)
    dtype = x.dtype
    x, z = (check_broadcast.broadcast(a, shape) for a in (x, z))
    with check.scope(None, "sigmoid_binary_cross_entropy"):
        return entry.each(Sigmoid(ClassAxis(None)), Logits(z, x), dtype=dtype)


def sigmoid_focal_loss(
    logits: Float[ArrayLike, "..."],
    labels: Numbers,
    *,
    alpha: Numbers | None = None,
    gamma: Numbers = 2.0,
) -> Float[Array, "..."]:
    r"""Sigmoid focal loss per class, in nats, as optax has it.

    $$\ell = \alpha_z\,\big((1 - z)\,p + z\,(1 - p)\big)^\gamma\,\big((1 - z)\,\mathrm{softplus}(x)
    + z\,\mathrm{softplus}(-x)\big), \qquad \alpha_z = \alpha z + (1 - \alpha)(1 - z)$$

    with labels $z$, logits $x$ and $p$ = sigmoid(x). A soft label mixes the probabilities before
    the power is taken: `focusing` of jxent's own losses takes it of each term of the label, which
    for labels of 0 and 1 is the same.

    Args:
      logits: Log-odds. At +-inf the loss is the limit: 0 where the label agrees, else inf.
      labels: Probability that the class is present, of any real dtype; usually 0 or 1.
      alpha: The weight of positive labels, 1 - alpha being that of negative ones: a number or an
        array, differentiable; None for none.
      gamma: The power: a number or an array, which may be traced and is differentiable. What is a
        whole number of Python's keeps most digits. All four arguments broadcast to one shape.

    Returns:
      One loss per class and example, in the dtype that logits, `alpha` and `gamma` promote to.
      bfloat16 and float16 are computed in float32 and rounded once.

    Raises:
      TypeError: `logits` is not floating, or another argument is not real.
      ValueError: The arguments do not broadcast to one shape.

    Examples:
      >>> sigmoid_focal_loss([0.0, 2.0], [1.0, 0.3]).round(4)
      Array([0.1733, 0.6497], dtype=float32)

    See Also:
      jxent.weighted_cross_entropy_with_logits: `focusing`, with `pos_weight`.
      jxent.losses.sigmoid_cross_entropy: the same, weighted and reduced.

    References:
      Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    x = check.floating("logits", logits)
    z = check_broadcast.real("labels", labels, computing_dtype(x.dtype))
    given: dict[str, Array] = {"logits": x, "labels": z}
    whole, rest = _power(gamma, x.dtype)
    if isinstance(rest, Array):
        given["gamma"] = rest
    if alpha is not None:
        given["alpha"] = check_broadcast.real("alpha", alpha, x.dtype)
    shape = check_broadcast.shape(**{name: a.shape for name, a in given.items()})
    factors = {name: given[name] for name in ("gamma", "alpha") if name in given}
    dtype = check_broadcast.promoted(x.dtype, *factors.values())
    computing = computing_dtype(dtype)
    for name, factor in factors.items():
        given[name] = factor.astype(computing)
    if computing_dtype(x.dtype) != computing:
        given["logits"] = x.astype(computing)
    arrays: dict[str, Any] = {
        name: check_broadcast.broadcast(a, shape) for name, a in given.items()
    }
    power, balance = arrays.get("gamma", rest), arrays.get("alpha")
    with check.scope(None, "sigmoid_focal_loss"):
        return compat.focal(whole, dtype, power, balance, arrays["labels"], arrays["logits"])


def _power(gamma: Any, dtype: DTypeLike) -> tuple[int, Any]:
    """A power as a whole number that is compiled in, and the rest: None, a number or an array."""
    if type(gamma) not in (int, float) or not math.isfinite(gamma):  # NumPy's promote the result
        return 0, check_broadcast.real("gamma", gamma, dtype)
    power = float(gamma)
    whole = int(power) if 0 <= power <= 16 else 0
    return whole, None if power == whole else power - whole
