"""A cheap way first, and the careful one only where it does not do.

On CPU the arithmetic of a loss is dear, not the memory, and most of the care is for rare values.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def attempt(cheap: Callable[..., tuple[Any, Any]], careful: Callable[..., Any]) -> Callable:
    """A function of arrays: `cheap`'s result where all that it calls usable is, else `careful`'s.

    `cheap` returns (usable, result). Both work on any number of leading axes, so that `vmap` can
    add one: with a condition for each example, both ways would be computed.
    """

    @jax.custom_batching.custom_vmap
    def tried(*arrays):
        usable, result = cheap(*arrays)
        return jax.lax.cond(
            jnp.all(usable), lambda result, _: result, lambda _, a: careful(*a), result, arrays
        )

    @tried.def_vmap
    def _with_one_more_axis(size, batched, *arrays):
        widened = (
            x if is_batched else jnp.broadcast_to(x[None], (size, *x.shape))
            for x, is_batched in zip(arrays, batched, strict=True)
        )
        result = attempt(cheap, careful)(*widened)
        return result, jax.tree.map(lambda _: True, result)

    return tried
