"""How examples are cut into blocks.

Block k takes the examples k, k + K, k + 2 K, ...: strided, so that under automatic sharding every
block stays evenly split over the chips that the examples are split over.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

# Elements of a block of logits that every shape may have: 128 MiB in float32.
_ROOM = 2**25


class Cut(NamedTuple):
    """How examples are cut: `number` blocks of `size`; the last places may be filled up."""

    number: int
    size: int

    def is_ragged(self, examples: int) -> bool:
        """Whether places are filled up."""
        return self.number * self.size != examples

    def to_blocks(self, x: Array) -> Array:
        """`[examples, ...]` as `[number, size, ...]`, strided; zeros fill the last places."""
        number, size = self
        if self.is_ragged(x.shape[0]):
            x = jnp.pad(x, [(0, number * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
        return jnp.swapaxes(x.reshape(size, number, *x.shape[1:]), 0, 1)

    def from_blocks(self, examples: int, x: Array) -> Array:
        """The inverse: drops what was filled in."""
        return jnp.swapaxes(x, 0, 1).reshape(self.number * self.size, *x.shape[2:])[:examples]


def cut(examples: int, kernel: tuple[int, ...], block_size: int | None) -> Cut:
    """The blocks to cut the examples into.

    By default a block has 2^25 logits, but at least half as many examples as there are features:
    adding to d/d kernel reads and writes it once a block, and fewer examples a block would leave
    the products waiting for that. Blocks are evened out, unless the examples' number is a symbol
    (`jax.export`).
    """
    features, classes = kernel
    if block_size is None:
        block_size = max(_ROOM // classes, features // 2, 8)
        block_size -= block_size % 128 if block_size > 128 else 0
    number = -(-examples // block_size)
    if not isinstance(examples, int):
        return Cut(number, block_size)
    number = max(1, number)
    return Cut(number, -(-examples // number))


def flat(labels: Array, inputs: Array) -> tuple[Array, Array]:
    """Labels and inputs with one axis of examples."""
    batch = inputs.shape[:-1]
    examples = math.prod(batch)
    labels = labels.reshape(examples, *labels.shape[len(batch) :])
    return labels, inputs.reshape(examples, inputs.shape[-1])
