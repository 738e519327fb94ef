"""The registry of implementations: what a function is replaced by on some platform.

A function that some platform computes differently says so by its decorator, and a module of
`platforms` registers the implementation:

    @per_platform(statics=1)
    def label_logit(classes, ids, x): ...

    @implements(label_logit, "cpu", applies=...)
    def gathered_label_logit(classes, ids, x): ...

The platform is known only when a program is lowered, so every implementation that applies is
traced, once for the same types. Whether it applies is decided from the types of the arguments,
shapes without the axes that `vmap` adds. All implementations of a function return the same types.
There is one decision on any path: what an implementation calls is computed as on its own platform.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial, update_wrapper
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import jax

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])


class Implementation(NamedTuple):
    """How one platform computes a function."""

    platform: str  # as `jax.lax.platform_dependent` names it: cpu, tpu, cuda, rocm
    function: Callable[..., Any]
    applies: Callable[..., bool]  # of the function's arguments


class _KnownPlatform(NamedTuple):
    """What is known of the platform that a program is traced for."""

    only: str | None = None  # it is this one
    never: frozenset[str] = frozenset()  # it is none of these


_NOTHING_KNOWN = _KnownPlatform()
_KNOWN_PLATFORM: ContextVar[_KnownPlatform] = ContextVar("known platform", default=_NOTHING_KNOWN)
# The platform that the caller assumes, if any. JAX keeps the value of such a context in the keys of
# all its caches, so that no program traced under one assumption is taken for one under another. A
# `ContextVar` would not do: a caller's `jit` would find what it had traced outside.
ASSUMED = jax.make_user_context(default_value=None)


class PerPlatform(Generic[Result]):
    """A function, its reference implementation, and those that replace it on some platforms."""

    every: ClassVar[list["PerPlatform[Any]"]] = []

    def __init__(self, reference: Callable[..., Result], statics: int):
        self.reference = reference
        self.implementations: list[Implementation] = []
        self._statics = statics

        def on_platform(known: _KnownPlatform, *arguments: Any) -> Result:
            token = _KNOWN_PLATFORM.set(known)
            try:
                return self._of_known_platform(*arguments)
            finally:
                _KNOWN_PLATFORM.reset(token)

        # JAX's cache of traces is keyed by it: a value and then its gradient share one trace.
        update_wrapper(on_platform, reference)
        self._traced = jax.jit(on_platform, static_argnums=tuple(range(1 + statics)))
        update_wrapper(self, reference)
        self.every.append(self)

    def __call__(self, *arguments: Any) -> Result:
        """The result of this platform's implementation."""
        # With jit disabled each operation is run as it stands. What is written for a compiler has
        # no use there, and may try a fast form whose NaN it detects and replaces, which
        # `jax.debug_nans` would report. JAX tells what is traced so from all else in its caches.
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return self.reference(*arguments)
        if ASSUMED.value is not None:
            return self.select(ASSUMED.value, *arguments)(*arguments)
        known = _KNOWN_PLATFORM.get()
        if known.only is not None:
            return self._of_known_platform(*arguments)
        fixed, arrays = arguments[: self._statics], arguments[self._statics :]
        branches: dict[str, Callable[..., Any]] = {}
        firsts: dict[Callable[..., Any], str] = {}
        for platform in dict.fromkeys(one.platform for one in self.implementations):
            function = self.select(platform, *arguments)
            # What several platforms share is traced once, as on the first of them.
            first = firsts.setdefault(function, platform)
            if platform not in known.never and function is not self.reference:
                branches[platform] = partial(self._traced, _KnownPlatform(only=first), *fixed)
        if not branches:
            return self.reference(*arguments)
        others = _KnownPlatform(never=known.never | set(branches))
        default = partial(self._traced, others, *fixed)
        result: Result = jax.lax.platform_dependent(*arrays, default=default, **branches)
        return result

    def _of_known_platform(self, *arguments: Any) -> Result:
        """The result of the known platform's implementation, or of the reference."""
        only = _KNOWN_PLATFORM.get().only
        return (self.reference if only is None else self.select(only, *arguments))(*arguments)

    def select(self, platform: str, *arguments: Any) -> Callable[..., Result]:
        """What a platform computes for these arguments."""
        for one in self.implementations:
            if one.platform == platform and one.applies(*arguments):
                return one.function
        return self.reference


def per_platform(statics: int = 0) -> Callable[[Callable[..., Result]], PerPlatform[Result]]:
    """Marks a function that a platform may replace by an implementation of its own.

    `statics`: how many of its arguments, the first ones, are Python values; the rest are arrays.
    """
    return partial(PerPlatform, statics=statics)


_closed = False


def implements(
    of: PerPlatform[Any], platform: str, applies: Callable[..., bool] = lambda *_: True
) -> Callable[[Function], Function]:
    """Registers a platform's implementation; of several that apply the first one is taken."""

    def register(function: Function) -> Function:
        if _closed:
            raise RuntimeError(f"{function.__name__} is too late: programs may be traced already")
        of.implementations.append(Implementation(platform, function, applies))
        return function

    return register


def freeze_registry() -> None:
    """No more implementations: a program that is traced already would not have a later one."""
    global _closed  # noqa: PLW0603
    _closed = True
