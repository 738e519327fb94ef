"""Classes that take no part in an example: lists of ids, whose logits become -inf."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jxent._src.core.blocks import Block
from jxent._src.core.elementary import largest_id, nan_unless
from jxent._src.core.kernel import Kernel
from jxent._src.loss_fns.base import OfLogits
from jxent._src.loss_fns.sigmoid import multi_hot_mask
from jxent._src.sharding.class_axis import ClassAxis


class WithExcluded(NamedTuple):
    """Labels, and ids that lie along the axis of the classes; a negative one is padding."""

    labels: Any
    ids: Array


def with_excluded(labels: Any, ids: Array | None) -> Any:
    """The labels, with the ids if there are any."""
    return labels if ids is None else WithExcluded(labels, ids)


def labels_alone(labels: Any) -> Any:
    """The labels without what is excluded; of their tangents, these."""
    return labels.labels if isinstance(labels, WithExcluded) else labels


def replaced(labels: Any, by: Any) -> Any:
    """Other labels with what is excluded beside these."""
    return labels._replace(labels=by) if isinstance(labels, WithExcluded) else by


def none_where_masked(classes: ClassAxis, mask: Array, labels: Any, x: Array | Kernel) -> Any:
    """The labels, with nothing excluded where the mask is False; `x` has the classes.

    Whatever stands there: all classes, or ids that are too large, would make the example NaN.
    """
    if not isinstance(labels, WithExcluded):
        return labels
    number = classes.count(x)
    # In the ids' own dtype, which may have no negative numbers.
    too_large = labels.ids > largest_id(labels.ids.dtype, number)
    ids = jnp.where(too_large, 0, labels.ids).astype(jnp.int32)
    ids = jnp.where(too_large, number, ids)
    return labels._replace(ids=jnp.where(classes.expand(mask), ids, -1))


def labels_of_block(loss_fn: OfLogits, block: Block, labels: Any) -> Any:
    """The same in a block of classes."""
    if not isinstance(labels, WithExcluded):
        return loss_fn.labels_of(block, labels)
    ids = loss_fn.classes.local_ids(block, labels.ids)
    return WithExcluded(loss_fn.labels_of(block, labels.labels), ids)


def labels_and_logits(classes: ClassAxis, labels: Any, x: Array) -> tuple[Any, Array]:
    """The labels alone, and logits without the excluded classes."""
    if not isinstance(labels, WithExcluded):
        return labels, x
    return labels.labels, _without(classes, labels.ids, x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _without(
    classes: ClassAxis, ids: Integer[Array, "..."], x: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The logits, -inf in the places of the ids; NaN for an example with an id that is too large.

    Comparisons fuse with what makes the logits or reads them: a projection's block needs no copy.
    """
    # In the ids' own dtype: a cast to int32 first would fold large ids into the range.
    last = largest_id(ids.dtype, classes.count(x))
    in_range = jnp.all(ids <= last, axis=classes.index, keepdims=True)
    out = multi_hot_mask(classes, ids, x) | ~in_range
    neg_inf = jnp.full_like(in_range, -jnp.inf, dtype=x.dtype)
    return jnp.where(out, nan_unless(in_range, neg_inf), x)


# Whatever is computed of a logit at -inf has the derivative 0 to it already. A `where` here would
# save its mask for the gradient, and pass over the logits' gradient once more.
@_without.defjvp
def _without_jvp(classes: ClassAxis, primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _without(classes, *primals), tangents[1]
