"""Which way of a function a platform takes. The registry knows no platform's code.

A function of the mathematics that some platform computes in another way says so by its decorator,
and the platform's room registers that way:

    @per_platform(statics=1)
    def label_logit(classes, ids, x): ...

    @way(label_logit, "cpu", applies=...)
    def gathered_label_logit(classes, ids, x): ...

Which platform it is shows when a program is lowered, so every way that applies is traced. What
applies is decided from the types of the arguments, shapes without the axes that `vmap` adds. All
ways of a function give results of the same types.
"""

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any, ClassVar, NamedTuple

import jax


class Way(NamedTuple):
    """How one platform computes a function."""

    platform: str  # as `jax.lax.platform_dependent` names it: cpu, tpu, cuda, rocm
    function: Callable[..., Any]
    applies: Callable[..., bool]  # of the function's arguments


_closed = False


class PerPlatform:
    """A function in its plain spelling, which platforms without a way of their own run."""

    every: ClassVar[list["PerPlatform"]] = []

    def __init__(self, plain: Callable[..., Any], statics: int):
        self.plain = plain
        self.ways: list[Way] = []
        self._statics = statics
        update_wrapper(self, plain)
        self.every.append(self)

    def __call__(self, *arguments):
        """The result of this platform's way."""
        fixed, arrays = arguments[: self._statics], arguments[self._statics :]
        taken: dict[str, Callable[..., Any]] = {}
        for platform, function, applies in self.ways:
            if platform not in taken and applies(*arguments):
                taken[platform] = partial(function, *fixed)
        if not taken:
            return self.plain(*arguments)
        return jax.lax.platform_dependent(*arrays, default=partial(self.plain, *fixed), **taken)


def per_platform(statics: int = 0) -> Callable[[Callable[..., Any]], PerPlatform]:
    """Marks a function that a platform may compute in a way of its own.

    `statics`: how many of its arguments, the first ones, are Python values; the rest are arrays.
    """
    return partial(PerPlatform, statics=statics)


def way(
    of: PerPlatform, platform: str, applies: Callable[..., bool] = lambda *_: True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a platform's way of a function; of several that apply the first one is taken."""

    def register(function):
        if _closed:
            raise RuntimeError(f"{function.__name__} is too late: programs may be traced already")
        of.ways.append(Way(platform, function, applies))
        return function

    return register


def close() -> None:
    """No more ways: one that is registered after a program is traced would not be in it."""
    global _closed  # noqa: PLW0603
    _closed = True
