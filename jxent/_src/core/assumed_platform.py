"""Programs for one platform, where the caller knows which it is."""

from collections.abc import Iterator
from contextlib import _GeneratorContextManager, contextmanager
from typing import Literal, TypeAlias, get_args

from jxent._src.core import dispatch

Platform: TypeAlias = Literal["cpu", "tpu", "gpu", "cuda", "rocm", "reference"]


def assume_platform(platform: Platform) -> "_GeneratorContextManager[None]":
    """Traces the calls inside for one platform alone: a context manager and a decorator.

    JAX decides for which platform a program is compiled after it has traced it, so each function
    that platforms compute in different ways is traced for all of them, below a conditional. Inside
    of `assume_platform` it is traced for one, without the conditional: traces take less time, and
    converters and readers of jaxprs see what is computed. The assumption is part of the keys of
    JAX's caches: a function under `jit` is traced again where it differs. Threads have their own.

    Derivatives are traced where they are taken: decorate the whole step, not its loss alone.

    Args:
      platform: "cpu", "tpu", "cuda" (NVIDIA), "rocm" (AMD), "gpu" (either, as
        `jax.default_backend()` says), or "reference": the plain mathematics of every platform.
        The program may still run on another platform, slower or in more memory.

    Returns:
      A context manager that also decorates functions. The innermost one counts.

    Raises:
      ValueError: `platform` is none of these.

    Examples:
      >>> import jax
      >>> import jxent
      >>> @jax.jit
      ... @jxent.assume_platform("reference")
      ... def loss(labels, logits):
      ...     return jxent.losses.sparse_softmax_cross_entropy(labels, logits)
      >>> loss([1], [[0.0, 0.0]])
      Array(0.6931472, dtype=float32)

    See Also:
      jax.lax.platform_dependent: the conditional that programs have otherwise.

    References:
      `jax.make_user_context`, which makes it part of the keys of JAX's caches.
    """
    if platform not in get_args(Platform):
        known = ", ".join(map(repr, get_args(Platform)))
        raise ValueError(f"platform must be one of {known}, got {platform!r}")
    return _assumed(platform)


@contextmanager
def _assumed(platform: str) -> Iterator[None]:
    # Both kinds of GPU are computed alike.
    with dispatch.ASSUMED("cuda" if platform == "gpu" else platform):
        yield
