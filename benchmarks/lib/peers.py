"""Value, gradient and second derivative with respect to the logits, as each library gives them.

A peer is made by a function that returns None where its library is not installed. Each is called
on NumPy arrays and returns NumPy arrays: for sigmoid elementwise; for softmax the losses, their
gradients, and of the second derivative the label's own element of the diagonal; of all others value
and gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import jxent

FOCUS = 2.0  # Lin et al.'s gamma
Results = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Peer:
    """A library's losses, or what its users write in their place."""

    name: str
    sigmoid: Callable[[np.ndarray, np.ndarray, np.floating], Results]
    softmax: Callable[[np.ndarray, np.ndarray], Results]
    entropy: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    divergence: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]  # teacher, student
    focal: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]  # labels, logits
    has_pos_weight: bool


def _jax_peer(name, sigmoid, softmax, entropy, divergence, focal, has_pos_weight) -> Peer:
    @jax.jit
    def sigmoid_results(z, x, q):
        ones = jnp.ones_like(x)

        def slope(x):
            return jax.grad(lambda x: jnp.sum(sigmoid(z, x, q)))(x)

        return sigmoid(z, x, q), slope(x), jax.jvp(slope, (x,), (ones,))[1]

    @jax.jit
    def softmax_results(y, x):
        def of_row(y, x):
            slope = jax.grad(lambda x: softmax(y, x))
            along = jnp.zeros_like(x).at[y].set(1)
            return softmax(y, x), slope(x), jax.jvp(slope, (x,), (along,))[1][y]

        return jax.vmap(of_row)(y, x)

    def value_and_slope(function):
        @jax.jit
        def results(*args):
            *fixed, x = args
            return function(*fixed, x), jax.grad(lambda x: jnp.sum(function(*fixed, x)))(x)

        return results

    def to_numpy(function):
        return lambda *args: tuple(np.asarray(a) for a in function(*map(jnp.asarray, args)))

    return Peer(
        name,
        to_numpy(sigmoid_results),
        to_numpy(softmax_results),
        to_numpy(value_and_slope(entropy)),
        to_numpy(value_and_slope(divergence)),
        to_numpy(value_and_slope(focal)),
        has_pos_weight,
    )


def jxent_peer() -> Peer:
    """This library."""

    def sigmoid(z, x, q):
        return jxent.weighted_cross_entropy_with_logits(labels=z, logits=x, pos_weight=q)

    def softmax(y, x):
        return jxent.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)

    def entropy(x):
        labels = np.zeros(len(x), int)
        return jxent.sparse_softmax_statistics_with_logits(labels=labels, logits=x).entropy

    def divergence(teacher, x):
        return jxent.softmax_kl_divergence_with_logits(teacher_logits=teacher, logits=x)

    def focal(z, x):
        return jxent.sigmoid_cross_entropy_with_logits(labels=z, logits=x, focusing=FOCUS)

    return _jax_peer("jxent", sigmoid, softmax, entropy, divergence, focal, True)


def optax_peer() -> Peer | None:
    """DeepMind's optax."""
    try:
        import optax  # noqa: PLC0415
    except ImportError:
        return None

    def entropy(x):
        log_p = jax.nn.log_softmax(x)
        return -jnp.sum(jnp.exp(log_p) * log_p, -1)

    def divergence(teacher, x):
        log_s, log_t = jax.nn.log_softmax(x), jax.nn.log_softmax(teacher)
        return optax.losses.kl_divergence_with_log_targets(log_s, log_t)

    return _jax_peer(
        "optax",
        lambda z, x, q: optax.sigmoid_binary_cross_entropy(x, z),
        lambda y, x: optax.softmax_cross_entropy_with_integer_labels(x, y),
        entropy,
        divergence,
        lambda z, x: optax.sigmoid_focal_loss(x, z, gamma=FOCUS),
        False,
    )


def torch_peer() -> Peer | None:
    """PyTorch, eager, on the CPU."""
    try:
        import torch  # noqa: PLC0415
        from torch.nn import functional  # noqa: PLC0415
    except ImportError:
        return None

    def tensor(x):
        # bfloat16 has no NumPy dtype that PyTorch reads; float32 holds it exactly.
        if x.dtype == jnp.bfloat16:
            return torch.tensor(x.astype(np.float32)).bfloat16()
        return torch.tensor(x)

    def array(x):
        return x.detach().to(torch.float64).numpy()

    def second(value, x, pick=lambda slope: slope):
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        (curved,) = torch.autograd.grad(pick(slope).sum(), x)
        return array(value), array(slope), array(curved)

    def sigmoid(z, x, q):
        x = tensor(x).requires_grad_()
        value = functional.binary_cross_entropy_with_logits(
            x, tensor(z), reduction="none", pos_weight=torch.tensor(q).to(x.dtype)
        )
        return second(value, x)

    def softmax(y, x):
        x, y = tensor(x).requires_grad_(), torch.tensor(y)
        value = functional.cross_entropy(x, y, reduction="none")
        value, slope, curved = second(value, x, lambda s: s.gather(1, y[:, None]))
        return value, slope, np.take_along_axis(curved, y.numpy()[:, None], 1)[:, 0]

    def first(function, x):
        x = tensor(x).requires_grad_()
        value = function(x)
        (slope,) = torch.autograd.grad(value.sum(), x)
        return array(value), array(slope)

    def entropy(x):
        return first(lambda x: torch.distributions.Categorical(logits=x).entropy(), x)

    def divergence(teacher, x):
        log_t = functional.log_softmax(tensor(teacher), -1)

        def of_student(x):
            log_s = functional.log_softmax(x, -1)
            return functional.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)

        return first(of_student, x)

    def focal(z, x):
        z = tensor(z)

        def of_logits(x):
            loss = functional.binary_cross_entropy_with_logits(x, z, reduction="none")
            p = torch.sigmoid(x)
            missed = z * (1 - p) + (1 - z) * p
            return loss * missed**FOCUS

        return first(of_logits, x)

    return Peer("PyTorch", sigmoid, softmax, entropy, divergence, focal, True)


def tensorflow_peer() -> Peer | None:
    """TensorFlow, eager, on the CPU."""
    try:
        import tensorflow as tf  # noqa: PLC0415
    except ImportError:
        return None

    def twice(function, x, pick=lambda slope: slope):
        x = tf.constant(x)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = function(x)
            slope = inner.gradient(value, x)
            picked = pick(slope)
        return value.numpy(), slope.numpy(), outer.gradient(picked, x).numpy()

    def sigmoid(z, x, q):
        q = tf.cast(tf.constant(q), x.dtype)
        return twice(lambda x: tf.nn.weighted_cross_entropy_with_logits(z, x, q), x)

    def softmax(y, x):
        value, slope, curved = twice(
            lambda x: tf.nn.sparse_softmax_cross_entropy_with_logits(y, x),
            x,
            lambda slope: tf.gather(slope, y, axis=1, batch_dims=1),
        )
        return value, slope, np.take_along_axis(curved, y[:, None], 1)[:, 0]

    def first(function, x):
        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return value.numpy(), tape.gradient(value, x).numpy()

    def entropy(x):
        def of_logits(x):
            log_p = tf.nn.log_softmax(x)
            return -tf.reduce_sum(tf.exp(log_p) * log_p, -1)

        return first(of_logits, x)

    def divergence(teacher, x):
        log_t = tf.nn.log_softmax(tf.constant(teacher))

        def of_student(x):
            return tf.reduce_sum(tf.exp(log_t) * (log_t - tf.nn.log_softmax(x)), -1)

        return first(of_student, x)

    def focal(z, x):
        def of_logits(x):
            p = tf.sigmoid(x)
            missed = z * (1 - p) + (1 - z) * p
            return tf.nn.sigmoid_cross_entropy_with_logits(z, x) * missed**FOCUS

        return first(of_logits, x)

    return Peer("TensorFlow", sigmoid, softmax, entropy, divergence, focal, True)


PEERS: list[Callable[[], Peer | None]] = [jxent_peer, optax_peer, torch_peer, tensorflow_peer]
