"""The mean loss of logits and a training step on them, as each library does it on CPU.

A competitor is made by a function of (kind, labels, logits) that returns None where its library
is not installed. Each has its own copy of the logits and changes it in place, as a training step
does; a fresh output each time would measure the allocator.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.programs import jxent_mean, optax_mean


@dataclass(frozen=True)
class Competitor:
    """One library's programs on its own copy of the logits; each is ready when it returns."""

    name: str
    loss: Callable[[], float]
    step: Callable[[float], float]  # logits -= rate * gradient; the loss before it
    put: Callable[[np.ndarray], None]
    logits: Callable[[], np.ndarray]  # a copy


Make = Callable[[str, np.ndarray, np.ndarray], Competitor | None]


def _of_jax(name, mean, labels, logits) -> Competitor:
    evaluate = jax.jit(mean)

    @partial(jax.jit, donate_argnums=0)
    def descend(x, z, rate):
        value, gradient = jax.value_and_grad(mean)(x, z)
        return value, x - rate * gradient

    labels = jnp.array(labels)
    held = {}

    def put(x):
        held["x"] = jnp.array(x)  # a copy: the step gives it away

    def step(rate):
        x = held.pop("x")
        value, held["x"] = jax.block_until_ready(descend(x, labels, np.asarray(rate, x.dtype)))
        return float(value)

    put(logits)
    return Competitor(
        name,
        lambda: float(evaluate(held["x"], labels)),
        step,
        put,
        lambda: np.array(held["x"]),
    )


def of_jxent(kind, labels, logits) -> Competitor:
    """This library."""
    return _of_jax("jxent", jxent_mean(kind), labels, logits)


def of_optax(kind, labels, logits) -> Competitor:
    """DeepMind's optax."""
    return _of_jax("optax", optax_mean(kind), labels, logits)


def _of_torch(name, kind, labels, logits, transform) -> Competitor | None:
    try:
        import torch  # noqa: PLC0415
        from torch.nn import functional  # noqa: PLC0415
    except ImportError:
        return None
    plain = {
        "sigmoid": functional.binary_cross_entropy_with_logits,
        "softmax ids": functional.cross_entropy,
        "softmax": functional.cross_entropy,
    }[kind]
    mean = transform(torch, plain)
    z = torch.tensor(labels)
    z = z.long() if kind == "softmax ids" else z
    x = torch.tensor(logits).requires_grad_()

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

    def put(new):
        with torch.no_grad():
            x.copy_(torch.tensor(new))

    return Competitor(name, loss, step, put, lambda: x.detach().numpy().copy())


def of_torch(kind, labels, logits) -> Competitor | None:
    """PyTorch, eager."""
    return _of_torch("PyTorch", kind, labels, logits, lambda torch, f: f)


def of_torch_compiled(kind, labels, logits) -> Competitor | None:
    """PyTorch, the loss through torch.compile."""

    def compiled(torch, f):
        def mean(x, z):  # its own function: a library's may be skipped by the compiler
            return f(x, z)

        return torch.compile(mean, dynamic=False)

    return _of_torch("PyTorch, compiled", kind, labels, logits, compiled)


def _of_tensorflow(name, kind, labels, logits, xla) -> Competitor | None:
    try:
        import tensorflow as tf  # noqa: PLC0415
    except ImportError:
        return None
    losses = {
        "sigmoid": tf.nn.sigmoid_cross_entropy_with_logits,
        "softmax ids": tf.nn.sparse_softmax_cross_entropy_with_logits,
        "softmax": tf.nn.softmax_cross_entropy_with_logits,
    }[kind]
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


def of_tensorflow(kind, labels, logits) -> Competitor | None:
    """TensorFlow as a graph."""
    return _of_tensorflow("TensorFlow, graph", kind, labels, logits, False)


def of_tensorflow_xla(kind, labels, logits) -> Competitor | None:
    """TensorFlow through XLA."""
    return _of_tensorflow("TensorFlow, XLA", kind, labels, logits, True)


COMPETITORS: tuple[Make, ...] = (
    of_jxent,
    of_optax,
    of_torch,
    of_torch_compiled,
    of_tensorflow,
    of_tensorflow_xla,
)


# So large a step that the slope of one class among thousands shows in what it changes.
LARGE = 100.0


def losses_in_mean(kind: str, logits: np.ndarray) -> int:
    """How many losses the mean is taken over."""
    return logits.size if kind == "sigmoid" else logits.shape[0]


def check_against_each_other(
    competitors: Iterable[Competitor], kind: str, logits: np.ndarray
) -> None:
    """Compares loss and step of all; leaves the logits as given.

    Raises:
      AssertionError: The one that differs from the first is named.
    """
    first, *others = competitors
    rate = LARGE * losses_in_mean(kind, logits)
    value, with_step, moved = _loss_and_move(first, logits, rate)
    for other in others:
        what = f"{other.name} against {first.name}: "
        got_value, got_with_step, got_moved = _loss_and_move(other, logits, rate)
        np.testing.assert_allclose(got_value, value, rtol=1e-4, err_msg=what + "loss")
        np.testing.assert_allclose(
            got_with_step, with_step, rtol=1e-4, err_msg=what + "loss of the step"
        )
        # PyTorch's sum over 32768 classes is right to 1e-5: at a confident label that is 5 % of
        # the slope, p - 1. As a whole the gradients agree far better.
        np.testing.assert_allclose(
            got_moved, moved, rtol=1e-3, atol=1e-4, err_msg=what + "gradient"
        )
        apart = np.linalg.norm(got_moved - moved) / np.linalg.norm(moved)
        np.testing.assert_array_less(apart, 1e-3, err_msg=what + "gradient as a whole")


def _loss_and_move(competitor, logits, rate):
    competitor.put(logits)
    value = competitor.loss()
    with_step = competitor.step(rate)
    moved = (logits - competitor.logits()) / LARGE
    competitor.put(logits)
    return value, with_step, moved
