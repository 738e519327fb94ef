"""The mean loss of logits and a training step on them, as each library does it on CPU.

A competitor is made by a function of (workload, labels, logits) that returns None where its library
is not installed or has no such loss. Each has its own copy of the logits and changes it in place,
as a training step does; a fresh output each time measures the allocator, too.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib.programs import BONUS, jxent_mean, jxent_mean_of_each, optax_mean, plain_mean
from benchmarks.lib.workloads import Workload


@dataclass(frozen=True)
class Competitor:
    """One library's programs on its own copy of the logits; each is ready when it returns."""

    name: str
    loss: Callable[[], float]
    step: Callable[[float], float]  # logits -= rate * gradient; the loss before it
    put: Callable[[np.ndarray], None]
    logits: Callable[[], np.ndarray]  # a copy
    alone: Callable[[float], object] | None = None  # the step without its loss
    fresh: Callable[[], object] | None = None  # loss and gradient, in an array of its own


Make = Callable[[Workload, np.ndarray, np.ndarray], Competitor | None]


def _of_jax(name, mean, labels, logits) -> Competitor:
    evaluate = jax.jit(mean)

    @partial(jax.jit, donate_argnums=0)
    def descend(x, z, rate):
        value, gradient = jax.value_and_grad(mean)(x, z)
        return value, x - rate * gradient

    @partial(jax.jit, donate_argnums=0)
    def descend_alone(x, z, rate):
        return x - rate * jax.grad(mean)(x, z)

    both = jax.jit(jax.value_and_grad(mean))
    labels = jnp.array(labels)
    held = {}

    def put(x):
        held["x"] = jnp.array(x)  # a copy: the step gives it away

    def step(rate):
        x = held.pop("x")
        value, held["x"] = jax.block_until_ready(descend(x, labels, np.asarray(rate, x.dtype)))
        return float(value)

    def alone(rate):
        x = held.pop("x")
        held["x"] = jax.block_until_ready(descend_alone(x, labels, np.asarray(rate, x.dtype)))

    put(logits)
    return Competitor(
        name,
        lambda: float(evaluate(held["x"], labels)),
        step,
        put,
        lambda: np.array(held["x"]),
        alone,
        lambda: both(held["x"], labels),
    )


def of_jxent(workload, labels, logits) -> Competitor:
    """This library."""
    mean = jxent_mean(workload.loss, workload.smoothing)
    return _of_jax("jxent", mean, labels, logits)


def of_jxent_each(workload, labels, logits) -> Competitor:
    """This library's losses, reduced by the caller."""
    return _of_jax("jxent, mean of each", jxent_mean_of_each(workload.loss), labels, logits)


def of_optax(workload, labels, logits) -> Competitor | None:
    """DeepMind's optax."""
    if workload.loss == "statistics":
        return None
    mean = optax_mean(workload.loss, smoothing=workload.smoothing)
    return _of_jax("optax", mean, labels, logits)


def of_plain(workload, labels, logits) -> Competitor:
    """A user's own formula."""
    return _of_jax("jax.nn", plain_mean(workload.loss, workload.smoothing), labels, logits)


def _torch_mean(torch, workload: Workload) -> Callable:
    """(logits, labels) -> the mean loss."""
    functional, smoothing = torch.nn.functional, workload.smoothing

    def sigmoid(x, z):
        z = z * (1 - smoothing) + smoothing / 2 if smoothing else z
        return functional.binary_cross_entropy_with_logits(x, z)

    def sigmoid_ids(x, ids):
        z = torch.zeros_like(x).scatter_(1, ids, 1.0)
        each = functional.binary_cross_entropy_with_logits(x, z, reduction="none")
        return each.sum(-1).mean()

    def divergence(x, teacher):
        logs, teacher = functional.log_softmax(x, -1), functional.log_softmax(teacher, -1)
        return functional.kl_div(logs, teacher, reduction="batchmean", log_target=True)

    def policy(x, ids):
        logs = functional.log_softmax(x, -1)
        own = logs.gather(-1, ids[:, None])[:, 0]
        return (BONUS * (logs.exp() * logs).sum(-1) - own).mean()

    return {
        "sigmoid": sigmoid,
        "sigmoid ids": sigmoid_ids,
        "softmax ids": partial(functional.cross_entropy, label_smoothing=smoothing),
        "softmax": functional.cross_entropy,
        "KL": divergence,
        "statistics": policy,
    }[workload.loss]


def _of_torch(name, workload, labels, logits, transform) -> Competitor | None:
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        return None
    mean = transform(torch, _torch_mean(torch, workload))
    dtype = getattr(torch, workload.dtype)

    def given(x):
        is_floating = jnp.issubdtype(x.dtype, jnp.floating)
        x = torch.tensor(np.asarray(x, np.float32) if is_floating else x)
        return x.to(dtype) if is_floating else x.long()

    z, x = given(labels), given(logits).requires_grad_()

    def loss():
        with torch.no_grad():
            return float(mean(x, z))

    def step(rate):
        value = mean(x, z)
        value.backward()
        with torch.no_grad():
            assert x.grad is not None
            x.sub_(x.grad, alpha=rate)
        x.grad = None
        return float(value.detach())

    def fresh():
        value = mean(x, z)
        return value, torch.autograd.grad(value, x)

    def put(new):
        with torch.no_grad():
            x.copy_(given(new))

    def copied():
        return x.detach().float().numpy().astype(workload.dtype)

    return Competitor(name, loss, step, put, copied, fresh=fresh)


def of_torch(workload, labels, logits) -> Competitor | None:
    """PyTorch, eager."""
    return _of_torch("PyTorch", workload, labels, logits, lambda torch, f: f)


def of_torch_compiled(workload, labels, logits) -> Competitor | None:
    """PyTorch, the loss through torch.compile."""

    def compiled(torch, f):
        def mean(x, z):  # its own function: a library's may be skipped by the compiler
            return f(x, z)

        torch.compiler.reset()  # or after some shapes it is run eagerly, see its recompile limit
        return torch.compile(mean, dynamic=False)

    return _of_torch("PyTorch, compiled", workload, labels, logits, compiled)


def _of_tensorflow(name, workload, labels, logits, xla) -> Competitor | None:
    if workload.loss not in ("sigmoid", "softmax ids", "softmax") or workload.smoothing:
        return None
    try:
        import tensorflow as tf  # noqa: PLC0415
    except ImportError:
        return None
    losses = {
        "sigmoid": tf.nn.sigmoid_cross_entropy_with_logits,
        "softmax ids": tf.nn.sparse_softmax_cross_entropy_with_logits,
        "softmax": tf.nn.softmax_cross_entropy_with_logits,
    }[workload.loss]
    with tf.device("/CPU:0"):
        x, z = tf.Variable(logits), tf.constant(labels)

    @tf.function(jit_compile=xla)
    def mean():
        return tf.reduce_mean(losses(labels=z, logits=x))

    @tf.function(jit_compile=xla)
    def descend(rate):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(losses(labels=z, logits=x))
        x.assign_sub(rate * tape.gradient(value, x))
        return value

    def step(rate):
        with tf.device("/CPU:0"):
            return float(descend(tf.constant(rate, x.dtype)))

    def loss():
        with tf.device("/CPU:0"):
            return float(mean())

    return Competitor(name, loss, step, x.assign, lambda: np.array(x.numpy()))


def of_tensorflow(workload, labels, logits) -> Competitor | None:
    """TensorFlow as a graph."""
    return _of_tensorflow("TensorFlow, graph", workload, labels, logits, False)


def of_tensorflow_xla(workload, labels, logits) -> Competitor | None:
    """TensorFlow through XLA."""
    return _of_tensorflow("TensorFlow, XLA", workload, labels, logits, True)


COMPETITORS: tuple[Make, ...] = (
    of_jxent,
    of_optax,
    of_plain,
    of_torch,
    of_torch_compiled,
    of_tensorflow,
    of_tensorflow_xla,
)


# So large a step that the slope of one class among thousands shows in what it changes.
LARGE = 100.0


def losses_in_mean(workload: Workload) -> int:
    """How many losses the mean is taken over."""
    return workload.examples * (workload.classes if workload.loss == "sigmoid" else 1)


def check_against_each_other(
    competitors: Iterable[Competitor], workload: Workload, logits: np.ndarray
) -> None:
    """Compares loss and step of all; leaves the logits as given.

    Of bfloat16, in which some compute, what its digits allow.

    Raises:
      AssertionError: The one that differs from the first is named.
    """
    first, *others = competitors
    rate = LARGE * losses_in_mean(workload)
    narrow = workload.dtype != "float32"
    close, whole = (3e-2, 0.1) if narrow else (1e-4, 1e-3)
    value, with_step, moved = _loss_and_move(first, logits, rate)
    for other in others:
        what = f"{other.name} against {first.name}: "
        got_value, got_with_step, got_moved = _loss_and_move(other, logits, rate)
        np.testing.assert_allclose(got_value, value, rtol=close, err_msg=what + "loss")
        np.testing.assert_allclose(
            got_with_step, with_step, rtol=close, err_msg=what + "loss of the step"
        )
        # PyTorch's sum over 32768 classes is right to 1e-5: at a confident label that is 5 % of
        # the slope, p - 1. As a whole the gradients agree far better.
        if not narrow:
            np.testing.assert_allclose(
                got_moved, moved, rtol=1e-3, atol=1e-4, err_msg=what + "gradient"
            )
        apart = np.linalg.norm(got_moved - moved) / np.linalg.norm(moved)
        np.testing.assert_array_less(apart, whole, err_msg=what + "gradient as a whole")


def _loss_and_move(competitor, logits, rate):
    competitor.put(logits)
    value = competitor.loss()
    with_step = competitor.step(rate)
    moved = (logits.astype(np.float32) - competitor.logits().astype(np.float32)) / LARGE
    competitor.put(logits)
    return value, with_step, moved
