"""Which way of a function a platform takes. The registry knows no platform's code.

A function of the mathematics that some platform computes in another way says so by its decorator,
and the platform's room registers that way:

    @per_platform(statics=1)
    def label_logit(classes, ids, x): ...

    @way(label_logit, "cpu", applies=...)
    def gathered_label_logit(classes, ids, x): ...

Which platform it is shows when a program is lowered, so every way that applies is traced, once for
the same types. What applies is decided from the types of the arguments, shapes without the axes
that `vmap` adds. All ways of a function give results of the same types. There is one decision on
any path: what a way calls in its turn is computed as its own platform computes it.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial, update_wrapper
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import jax

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])


class Way(NamedTuple):
    """How one platform computes a function."""

    platform: str  # as `jax.lax.platform_dependent` names it: cpu, tpu, cuda, rocm
    function: Callable[..., Any]
    applies: Callable[..., bool]  # of the function's arguments


class _Where(NamedTuple):
    """What is known of the platform that a program is traced for."""

    only: str | None = None  # it is this one
    never: frozenset[str] = frozenset()  # it is none of these


_ANYWHERE = _Where()
_WHERE: ContextVar[_Where] = ContextVar("where", default=_ANYWHERE)
# The platform that the caller assumes, if any. JAX keeps the value of such a context in the keys of
# all its caches, so that no program traced under one assumption is taken for one under another. A
# `ContextVar` would not do: a caller's `jit` would find what it had traced outside.
ASSUMED = jax.make_user_context(default_value=None)


class PerPlatform(Generic[Result]):
    """A function in its plain spelling, which platforms without a way of their own run."""

    every: ClassVar[list["PerPlatform[Any]"]] = []

    def __init__(self, plain: Callable[..., Result], statics: int):
        self.plain = plain
        self.ways: list[Way] = []
        self._statics = statics

        def in_its_place(where: _Where, *arguments: Any) -> Result:
            token = _WHERE.set(where)
            try:
                return self._here(*arguments)
            finally:
                _WHERE.reset(token)

        # For the cache of what is traced: a value, then its gradient ask for the same.
        update_wrapper(in_its_place, plain)
        self._traced = jax.jit(in_its_place, static_argnums=tuple(range(1 + statics)))
        update_wrapper(self, plain)
        self.every.append(self)

    def __call__(self, *arguments: Any) -> Result:
        """The result of this platform's way."""
        # With jit disabled each operation is run as it stands. What is spelled for a compiler has
        # no use there, and may try a fast form whose NaN it detects and replaces, which
        # `jax.debug_nans` would report. JAX tells what is traced so from all else in its caches.
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return self.plain(*arguments)
        if ASSUMED.value is not None:
            return self.taken(ASSUMED.value, *arguments)(*arguments)
        where = _WHERE.get()
        if where.only is not None:
            return self._here(*arguments)
        fixed, arrays = arguments[: self._statics], arguments[self._statics :]
        branches: dict[str, Callable[..., Any]] = {}
        firsts: dict[Callable[..., Any], str] = {}
        for platform in dict.fromkeys(way.platform for way in self.ways):
            function = self.taken(platform, *arguments)
            # What several platforms share is traced once, as on the first of them.
            first = firsts.setdefault(function, platform)
            if platform not in where.never and function is not self.plain:
                branches[platform] = partial(self._traced, _Where(only=first), *fixed)
        if not branches:
            return self.plain(*arguments)
        others = _Where(never=where.never | set(branches))
        default = partial(self._traced, others, *fixed)
        result: Result = jax.lax.platform_dependent(*arrays, default=default, **branches)
        return result

    def _here(self, *arguments: Any) -> Result:
        """The result of the known platform's way, and the plain one where none is."""
        only = _WHERE.get().only
        return (self.plain if only is None else self.taken(only, *arguments))(*arguments)

    def taken(self, platform: str, *arguments: Any) -> Callable[..., Result]:
        """What a platform computes for these arguments."""
        for way in self.ways:
            if way.platform == platform and way.applies(*arguments):
                return way.function
        return self.plain


def per_platform(statics: int = 0) -> Callable[[Callable[..., Result]], PerPlatform[Result]]:
    """Marks a function that a platform may compute in a way of its own.

    `statics`: how many of its arguments, the first ones, are Python values; the rest are arrays.
    """
    return partial(PerPlatform, statics=statics)


_closed = False


def way(
    of: PerPlatform[Any], platform: str, applies: Callable[..., bool] = lambda *_: True
) -> Callable[[Function], Function]:
    """Registers a platform's way of a function; of several that apply the first one is taken."""

    def register(function: Function) -> Function:
        if _closed:
            raise RuntimeError(f"{function.__name__} is too late: programs may be traced already")
        of.ways.append(Way(platform, function, applies))
        return function

    return register


def close() -> None:
    """No more ways: one that is registered after a program is traced would not be in it."""
    global _closed  # noqa: PLW0603
    _closed = True
