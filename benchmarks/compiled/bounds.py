"""What this library's compiled programs may move and hold, a line a row; each may only be lowered.

Measured by `python -m benchmarks.tpu` and `python -m benchmarks.gpu --compile`, and a few per cent.
"""

import math
from dataclasses import dataclass

import jax

VERSIONS = ("0.10.2", "0.12.0.1")  # of jax, beside the compilers that the extras name
ARE_OF_THIS_JAX = jax.__version__ in VERSIONS


@dataclass(frozen=True)
class Bound:
    """The most bytes moved, as passes over the logits or in GB, the most GB held, and Mcycles."""

    moved: float
    unit: str
    held: float
    mcycles: float = math.inf  # by the compiler's estimate

    def holds(self, moved: float, logits: float, held: float, cycles: float = 0) -> bool:
        """For bytes moved, the size of the logits in bytes, bytes held, and cycles."""
        unit = logits if self.unit == "passes" else 1e9
        in_time = cycles <= self.mcycles * 1e6
        return moved <= self.moved * unit and held <= self.held * 1e9 and in_time


def passes(moved: float, held: float) -> Bound:
    """Of logits in memory."""
    return Bound(moved, "passes", held)


def gb(moved: float, held: float, mcycles: float = math.inf) -> Bound:
    """Of a projection."""
    return Bound(moved, "GB", held, mcycles)


TPU = {  # one chip of a v5e
    "KL 4096 x 32768 bfloat16": passes(9.21, held=0.01),
    "sigmoid 4096 x 32768 bfloat16": passes(3.07, held=0.01),
    "sigmoid 4096 x 32768 bfloat16, value": passes(2.04, held=0.01),
    "softmax 4096 x 32768 bfloat16": passes(5.11, held=0.01),
    "softmax 4096 x 32768 bfloat16, value": passes(2.05, held=0.01),
    "softmax ids 4096 x 32768 bfloat16": passes(3.07, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, value": passes(1.03, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, each": passes(3.07, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, each, value": passes(1.03, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, vmap": passes(3.07, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, axis 0": passes(3.07, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, label_smoothing": passes(3.07, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, z_loss": passes(3.07, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, logit_softcap": passes(3.07, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, weights": passes(3.07, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, has_aux": passes(3.07, held=0.01),
    "softmax 4096 x 32768 bfloat16, has_aux": passes(5.11, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, statistics": passes(3.07, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, statistics, value": passes(1.03, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, 8 ids, label_weights": passes(3.07, held=0.01),
    "softmax ids 4096 x 50257 bfloat16": passes(3.07, held=0.01),
    "softmax ids 4096 x 50257 bfloat16, value": passes(1.03, held=0.01),
    "sigmoid ids 4096 x 131072 bfloat16, 8 ids": passes(2.05, held=0.01),
    "sigmoid ids 4096 x 131072 bfloat16, 24 ids": passes(3.07, held=0.559),
    "sigmoid ids 4096 x 131072 bfloat16, 64 ids": passes(3.07, held=0.559),
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16, value": gb(
        1.25, held=0.01, mcycles=77.7
    ),
    "projection, softmax 8192 x 2304 x 256000 bfloat16, value": gb(5.52, held=0.01, mcycles=84.8),
    "projection, sigmoid ids 8192 x 2304 x 256000 bfloat16, 8 ids, value": gb(
        1.25, held=0.01, mcycles=79.5
    ),
    "projection, sigmoid 8192 x 2304 x 256000 bfloat16, value": gb(5.52, held=0.01, mcycles=76.9),
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16, each": gb(
        26.8, held=1.49, mcycles=351.0
    ),
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16": gb(22.9, held=0.342, mcycles=359.0),
    "projection, softmax ids 8192 x 1024 x 131072 bfloat16": gb(8, held=0.0701, mcycles=78.9),
    "projection, softmax ids 8192 x 256 x 65536 bfloat16": gb(0.15, held=0.01, mcycles=17.3),
    "projection, softmax ids 8192 x 256 x 65536 bfloat16, has_aux": gb(
        0.15, held=0.01, mcycles=17.6
    ),
    "projection, softmax ids 8192 x 1024 x 131072 bfloat16, float32 kernel": gb(
        9.4, held=0.412, mcycles=87.0
    ),
    "projection, softmax ids 8192 x 1024 x 131072 bfloat16, statistics": gb(
        8.54, held=0.275, mcycles=82.2
    ),
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16, statistics, value": gb(
        1.25, held=0.01, mcycles=77.7
    ),
    "projection, softmax ids 8192 x 1024 x 131072 bfloat16, tied table": gb(
        8, held=0.0701, mcycles=83.1
    ),
    "projection, softmax ids 8192 x 1024 x 131072 bfloat16, blockwise": gb(
        44.7, held=0.566, mcycles=131.0
    ),
    "projection, softmax ids 8192 x 1024 x 131072 bfloat16, blockwise, tied table": gb(
        44.7, held=0.566, mcycles=133.0
    ),
    "projection, sigmoid ids 8192 x 1024 x 131072 bfloat16, 8 ids": gb(
        7.71, held=0.07, mcycles=59.9
    ),
    "projection, sigmoid ids 8192 x 1024 x 131072 bfloat16, 8 ids, tied table": gb(
        7.71, held=0.07, mcycles=59.7
    ),
    "projection, sigmoid ids 8192 x 256 x 1048576 bfloat16, 8 ids": gb(
        2.2, held=0.01, mcycles=181.0
    ),
    "projection, sigmoid ids 8192 x 2304 x 262144 bfloat16, 8 ids": gb(
        22.4, held=0.29, mcycles=289.0
    ),
}
H100 = {
    "KL 4096 x 32768 bfloat16": passes(9.3, held=0.01),
    "KL 4096 x 32768 float32": passes(9.3, held=0.01),
    "sigmoid 4096 x 32768 bfloat16": passes(3.07, held=0.01),
    "softmax 4096 x 32768 bfloat16": passes(5.17, held=0.01),
    "softmax ids 4096 x 32768 bfloat16": passes(3.11, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, value": passes(1.07, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, has_aux": passes(3.11, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, statistics": passes(3.14, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, 8 ids, label_weights": passes(3.15, held=0.01),
    "softmax ids 8192 x 128256 bfloat16": passes(3.11, held=0.0343),
    "softmax ids 8192 x 128256 bfloat16, value": passes(1.07, held=0.0514),
    "softmax ids 32768 x 1000 bfloat16": passes(3.11, held=0.01),
    "softmax ids 32768 x 1000 bfloat16, value": passes(1.05, held=0.01),
    "sigmoid ids 4096 x 131072 bfloat16, 8 ids": passes(2.05, held=0.01),
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16, each": gb(86.4, held=1.62),
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16": gb(74.2, held=4.73),
    "projection, softmax ids 8192 x 1024 x 131072 bfloat16, tied table": gb(28.3, held=2.25),
    "projection, softmax ids 8192 x 1024 x 131072 bfloat16, blockwise": gb(47.7, held=0.704),
    "projection, softmax ids 8192 x 1024 x 131072 bfloat16, blockwise, tied table": gb(
        47.7, held=0.704
    ),
    "projection, sigmoid ids 8192 x 1024 x 131072 bfloat16, 8 ids": gb(25.9, held=0.254),
    "projection, sigmoid ids 8192 x 1024 x 131072 bfloat16, 8 ids, tied table": gb(
        25.9, held=0.254
    ),
    "projection, sigmoid ids 8192 x 256 x 1048576 bfloat16, 8 ids": gb(134, held=0.347),
    "projection, sigmoid ids 8192 x 2304 x 262144 bfloat16, 8 ids": gb(48.4, held=0.876),
    "sigmoid 4096 x 32768 float32": passes(3.07, held=0.01),
    "softmax 4096 x 32768 float32": passes(5.14, held=0.01),
    "softmax ids 4096 x 32768 float32": passes(3.09, held=0.01),
    "softmax ids 4096 x 32768 float32, value": passes(1.05, held=0.01),
    "softmax ids 4096 x 32768 float32, has_aux": passes(3.09, held=0.01),
    "softmax ids 4096 x 32768 float32, statistics": passes(3.1, held=0.01),
    "softmax ids 4096 x 32768 float32, 8 ids, label_weights": passes(3.15, held=0.01),
    "softmax ids 8192 x 128256 float32": passes(3.09, held=0.0343),
    "softmax ids 8192 x 128256 float32, value": passes(1.05, held=0.0514),
    "softmax ids 32768 x 1000 float32": passes(3.09, held=0.01),
    "softmax ids 32768 x 1000 float32, value": passes(1.04, held=0.01),
    "sigmoid ids 4096 x 131072 float32, 8 ids": passes(2.05, held=0.01),
    "projection, softmax ids 8192 x 2304 x 256000 float32, each": gb(131, held=2.7),
    "projection, softmax ids 8192 x 2304 x 256000 float32": gb(93.3, held=4.47),
    "projection, softmax ids 8192 x 1024 x 131072 float32, tied table": gb(36.4, held=2.25),
    "projection, softmax ids 8192 x 1024 x 131072 float32, blockwise": gb(99, held=0.9),
    "projection, softmax ids 8192 x 1024 x 131072 float32, blockwise, tied table": gb(99, held=0.9),
    "projection, sigmoid ids 8192 x 1024 x 131072 float32, 8 ids": gb(35.2, held=0.297),
    "projection, sigmoid ids 8192 x 1024 x 131072 float32, 8 ids, tied table": gb(35.2, held=0.297),
    "projection, sigmoid ids 8192 x 256 x 1048576 float32, 8 ids": gb(192, held=0.484),
    "projection, sigmoid ids 8192 x 2304 x 262144 float32, 8 ids": gb(70.5, held=1.18),
}
if jax.__version_info__ >= (0, 12):  # with libtpu 0.0.52 and its CUDA plug-in
    TPU |= {
        "projection, softmax ids 8192 x 2304 x 256000 bfloat16, each": gb(
            29.1, held=2.57, mcycles=351.0
        ),
        "projection, softmax ids 8192 x 1024 x 131072 bfloat16, statistics": gb(
            8.54, held=0.344, mcycles=82.2
        ),
        "projection, softmax ids 8192 x 1024 x 131072 bfloat16, blockwise": gb(
            44.7, held=0.843, mcycles=132.0
        ),
        "projection, softmax ids 8192 x 1024 x 131072 bfloat16, blockwise, tied table": gb(
            44.7, held=0.843, mcycles=134.0
        ),
    }
    H100 |= {
        "sigmoid ids 4096 x 131072 bfloat16, 8 ids": passes(3.07, held=0.01),
        "projection, softmax ids 8192 x 2304 x 256000 bfloat16, each": gb(86.4, held=1.68),
        "sigmoid ids 4096 x 131072 float32, 8 ids": passes(3.07, held=0.01),
        "projection, softmax ids 8192 x 2304 x 256000 float32, each": gb(131, held=3.13),
    }
