"""What this library's compiled programs may move and hold, a line a row; each may only be lowered.

Measured by `python -m benchmarks.tpu` and `python -m benchmarks.gpu --compile`, and a few per cent.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """The most bytes moved, as passes over the logits or in GB, and the most GB held."""

    moved: float
    unit: str
    held: float

    def holds(self, moved: float, logits: float, held: float) -> bool:
        """For bytes moved, the size of the logits in bytes, and bytes held."""
        unit = logits if self.unit == "passes" else 1e9
        return moved <= self.moved * unit and held <= self.held * 1e9


def passes(moved: float, held: float) -> Bound:
    """Of logits in memory."""
    return Bound(moved, "passes", held)


def gb(moved: float, held: float) -> Bound:
    """Of a projection."""
    return Bound(moved, "GB", held)


TPU = {  # one chip of a v5e
    "sigmoid 4096 x 32768 bfloat16": passes(3.07, held=0.01),
    "sigmoid 4096 x 32768 bfloat16, value": passes(2.04, held=0.01),
    "softmax 4096 x 32768 bfloat16": passes(7.15, held=0.01),
    "softmax 4096 x 32768 bfloat16, value": passes(4.09, held=0.01),
    "softmax ids 4096 x 32768 bfloat16": passes(4.08, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, value": passes(2.05, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, each": passes(4.08, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, each, value": passes(2.05, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, vmap": passes(4.08, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, axis 0": passes(4.08, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, label_smoothing": passes(4.08, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, z_loss": passes(4.08, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, logit_softcap": passes(11.3, held=0.56),
    "softmax ids 4096 x 32768 bfloat16, weights": passes(4.09, held=0.01),
    "softmax ids 4096 x 50257 bfloat16": passes(4.09, held=0.01),
    "softmax ids 4096 x 50257 bfloat16, value": passes(2.05, held=0.01),
    "sigmoid ids 4096 x 131072 bfloat16, 8 ids": passes(2.05, held=0.01),
    "sigmoid ids 4096 x 131072 bfloat16, 24 ids": passes(3.07, held=0.56),
    "sigmoid ids 4096 x 131072 bfloat16, 64 ids": passes(4.09, held=0.56),
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16, value": gb(27.4, held=1.2),
    "projection, softmax 8192 x 2304 x 256000 bfloat16, value": gb(48.3, held=5.5),
    "projection, sigmoid ids 8192 x 2304 x 256000 bfloat16, 8 ids, value": gb(9.67, held=0.01),
    "projection, sigmoid 8192 x 2304 x 256000 bfloat16, value": gb(22.6, held=4.5),
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16, each": gb(116, held=2.6),
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16": gb(96.4, held=2.5),
    "projection, softmax ids 8192 x 1024 x 131072 bfloat16": gb(44.8, held=0.58),
    "projection, softmax ids 8192 x 256 x 65536 bfloat16": gb(9.9, held=0.14),
    "projection, sigmoid ids 8192 x 1024 x 131072 bfloat16, 8 ids": gb(40.4, held=0.58),
    "projection, sigmoid ids 8192 x 256 x 1048576 bfloat16, 8 ids": gb(318, held=1.2),
    "projection, sigmoid ids 8192 x 2304 x 262144 bfloat16, 8 ids": gb(90, held=2.6),
}
H100 = {
    "sigmoid 4096 x 32768 bfloat16": passes(3.07, held=0.01),
    "softmax 4096 x 32768 bfloat16": passes(6.21, held=0.01),
    "softmax ids 4096 x 32768 bfloat16": passes(4.15, held=0.01),
    "softmax ids 4096 x 32768 bfloat16, value": passes(2.11, held=0.01),
    "softmax ids 8192 x 128256 bfloat16": passes(4.15, held=0.035),
    "softmax ids 8192 x 128256 bfloat16, value": passes(2.11, held=0.052),
    "softmax ids 32768 x 1000 bfloat16": passes(4.13, held=0.01),
    "softmax ids 32768 x 1000 bfloat16, value": passes(2.08, held=0.01),
    "sigmoid ids 4096 x 131072 bfloat16, 8 ids": passes(3.07, held=0.57),
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16, each": gb(135, held=3.6),
    "projection, softmax ids 8192 x 2304 x 256000 bfloat16": gb(112, held=3.1),
    "projection, sigmoid ids 8192 x 1024 x 131072 bfloat16, 8 ids": gb(45.5, held=0.81),
    "projection, sigmoid ids 8192 x 256 x 1048576 bfloat16, 8 ids": gb(354, held=1.6),
    "projection, sigmoid ids 8192 x 2304 x 262144 bfloat16, 8 ids": gb(102, held=3.5),
    "sigmoid 4096 x 32768 float32": passes(3.07, held=0.01),
    "softmax 4096 x 32768 float32": passes(6.17, held=0.01),
    "softmax ids 4096 x 32768 float32": passes(4.12, held=0.01),
    "softmax ids 4096 x 32768 float32, value": passes(2.08, held=0.01),
    "softmax ids 8192 x 128256 float32": passes(4.12, held=0.035),
    "softmax ids 8192 x 128256 float32, value": passes(2.08, held=0.052),
    "softmax ids 32768 x 1000 float32": passes(4.11, held=0.01),
    "softmax ids 32768 x 1000 float32, value": passes(2.06, held=0.01),
    "sigmoid ids 4096 x 131072 float32, 8 ids": passes(2.56, held=0.57),
    "projection, softmax ids 8192 x 2304 x 256000 float32, each": gb(178, held=3.4),
    "projection, softmax ids 8192 x 2304 x 256000 float32": gb(141, held=2.3),
    "projection, sigmoid ids 8192 x 1024 x 131072 float32, 8 ids": gb(60.2, held=0.67),
    "projection, sigmoid ids 8192 x 256 x 1048576 float32, 8 ids": gb(475, held=1.3),
    "projection, sigmoid ids 8192 x 2304 x 262144 float32, 8 ids": gb(131, held=2.7),
}
