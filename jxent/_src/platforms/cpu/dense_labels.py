"""Implementations for XLA:CPU of dense labels, each with its reason."""

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from jxent._src.core import hints
from jxent._src.core.dispatch import implements
from jxent._src.numerics import softmax_rows
from jxent._src.platforms.cpu.fallback import is_unsharded, map_row_blocks, with_fallback
from jxent._src.platforms.cpu.softmax import has_fast_rows, is_not_small
from jxent._src.platforms.cpu.tiles import RowTiles, first_place, row_tiles, sum_without
from jxent._src.sharding import varying
from jxent._src.sharding.class_axis import ClassAxis


@implements(softmax_rows.labels_sums, "cpu", applies=is_not_small)
def _labels_sums_computed_once(
    classes: ClassAxis, z: Array, sumexp_rest: Array
) -> tuple[Array, Array]:
    """The select keeps the sums from being fused with the gradient, which would store them."""
    if not (classes.are_last(z) and is_unsharded(z)):
        largest, others = _largest_label(classes, z, sumexp_rest)
    elif z.shape[-1] <= FEW:
        largest, others = _largest_of_few(z.astype(sumexp_rest.dtype))
    elif pieces := row_tiles(z):
        largest, others = _largest_in_pieces(pieces, z, sumexp_rest.dtype)
    else:
        largest, others = _largest_label(classes, z, sumexp_rest)
    # Where it is not at least 0, `sumexp_rest` is NaN.
    return jnp.where(sumexp_rest >= 0, largest, sumexp_rest), jnp.where(
        sumexp_rest >= 0, others, sumexp_rest
    )


# Classes up to which one reduction of both numbers, which XLA:CPU computes one after the other, is
# faster than three of one number: at 200000 x 10 it takes 0.3 ms and they 2.5; at 509, 3.5 and 0.7.
FEW = 64


def _largest_of_few(z: Array) -> tuple[Array, Array]:
    def merged(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.maximum(a[0], b[0]), a[1] + b[1] + jnp.minimum(a[0], b[0])

    none = jnp.zeros((), z.dtype)
    of_nan = jnp.where(jnp.isnan(z), z, 0)  # a maximum and a minimum may drop it
    labels, start = varying.match_varying(((z, of_nan), (none, none)))
    largest, others = jax.lax.reduce(labels, start, merged, (z.ndim - 1,))
    return largest[..., None], others[..., None]


def _largest_in_pieces(pieces: RowTiles, z: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    """A label that is more than all others together is in the piece of the largest sum.

    Unless others are negative; but any label does where none is more than all others.
    """
    cut = pieces.cut(z)
    sums = pieces.each(lambda z: jnp.sum(z.astype(dtype), -1), cut)
    which = first_place(sums, jnp.max(sums, -1, keepdims=True))
    own = hints.materialize(pieces.own(cut, which, 0)[0].astype(dtype))
    largest = jnp.max(own, -1, keepdims=True)
    others = sum_without(sums, which) + sum_without(own, first_place(own, largest))
    total = jnp.sum(sums, -1, keepdims=True)
    return largest, jnp.where(jnp.isnan(total), total, others)


def _largest_label(classes: ClassAxis, z: Array, after: Array) -> tuple[Array, Array]:
    """By a minimum, as in `_pair_without_selects`; ties are no more than the others together.

    The difference where it is half of the largest label at least: the sum is then at most three
    times what is left, and so are its roundings. And where all labels are negative. The product
    below is between 0 and inf, its minimum 0 for the largest and its ties, 1 for all others.
    """
    dtype = after.dtype
    inverse, one = hints.unshared_constants(dtype, 1 / jnp.finfo(dtype).tiny, 1.0)
    largest = classes.max(z).astype(dtype)
    wide = hints.unshared_upcast(z, largest, dtype)
    without = classes.sum(wide * jnp.minimum((largest - wide) * inverse, one))
    sumexp_rest = classes.sum(hints.unshared_upcast(z, after, dtype)) - largest
    return largest, jnp.where((largest > 0) & (sumexp_rest < 0.5 * largest), without, sumexp_rest)


@implements(
    softmax_rows.expected, "cpu", applies=lambda classes, _, *data: has_fast_rows(classes, *data)
)
def _expected_on_cpu(classes: ClassAxis, smoothing: float, *data: Array | None) -> Array:
    # A sum that is finite has no infinite logit in it, and no class is ruled out.
    def of_finite(
        x: Array, row_max: Array, more: Array, uniform_mass: Array | None, z: Array | None
    ) -> tuple[Array, Array]:
        x = hints.unshared_upcast(x, more)
        neg_log_probs = (row_max - x) + more
        if z is not None:
            z = hints.unshared_upcast(z, more, x.dtype)
        if z is None:
            total = cast(Array, uniform_mass) * classes.sum(neg_log_probs)
        else:
            if uniform_mass is not None:
                (keep,) = hints.unshared_constants(x.dtype, 1 - smoothing)
                z = keep * z + uniform_mass
            total = classes.sum(z * neg_log_probs)
        return jnp.isfinite(total), total

    exact = partial(softmax_rows.expected.reference, classes, smoothing)
    loss: Array = with_fallback(of_finite, map_row_blocks(exact))(*data)
    return loss
