"""Every library's fused projection on a GPU: value, d/d inputs and d/d kernel, and its memory.

A peer is made by a function of `Operands` that returns None where its library is not installed.
On a machine without a GPU the same programs run on the CPU, where their library can.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lib import programs
from benchmarks.lib.timing import Program
from benchmarks.lib.workloads import Workload


@dataclass
class Operands:
    """Inputs, kernel and labels on the device, for JAX and, once asked for, for PyTorch."""

    workload: Workload

    @cached_property
    def jax(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(inputs, kernel, labels), drawn on the device."""
        w, features = self.workload, self.workload.features
        assert features is not None
        keys = jax.random.split(jax.random.key(0), 3)

        @jax.jit
        def draw(keys):
            inputs = jax.random.normal(keys[0], (w.examples, features), w.dtype)
            kernel = jax.random.normal(keys[1], (features, w.classes), w.dtype)
            labels = jax.random.randint(keys[2], (w.examples,), 0, w.classes, jnp.int32)
            return inputs, kernel / jnp.asarray(features**0.5, w.dtype), labels

        return draw(keys)

    @cached_property
    def torch(self) -> tuple:
        """(inputs, weight, labels); the weight is [classes, features], as PyTorch has it."""
        import torch  # noqa: PLC0415

        inputs, kernel, labels = (torch.from_dlpack(a) for a in self.jax)
        weight = kernel.T.contiguous()
        return inputs.clone().requires_grad_(), weight.requires_grad_(), labels.long()


@dataclass(frozen=True)
class Peer:
    """One library's program.

    `memory`: bytes beyond the operands at the peak, outputs included; NaN where not known.
    """

    program: Program
    outputs: Callable[[object], tuple[float, np.ndarray, np.ndarray]]
    memory: Callable[[], float]
    approximates: bool = False  # by design: its error is shown, not held against it


Make = Callable[[Operands], Peer | None]

SLICE = 64  # examples of d/d inputs, and classes of d/d kernel, that are compared


def _jax_peer(function, operands, *, of_labels=True) -> Peer:
    args = operands.jax if of_labels else operands.jax[:2]
    compiled = jax.jit(function).lower(*args).compile()

    def memory():
        analysis = compiled.memory_analysis()
        assert analysis is not None  # every backend that this runs on has one
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    def outputs(result):
        value, by_inputs, by_kernel = jax.tree.leaves(result)
        return float(value), _wide(by_inputs[:SLICE]), _wide(by_kernel[:, :SLICE])

    return Peer(Program(lambda: compiled(*args)), outputs, memory)


def _wide(x) -> np.ndarray:
    return np.asarray(x).astype(np.float32)


def of_jxent(operands: Operands, block_size: int | None = None) -> Peer:
    """This library's scalar."""
    loss = partial(programs.scalar, block_size)
    return _jax_peer(programs.value_and_gradients(loss), operands)


def of_jxent_per_example(operands: Operands) -> Peer:
    """This library's loss per example, reduced by the caller."""
    return _jax_peer(programs.value_and_gradients(programs.per_example), operands)


def of_optax(operands: Operands) -> Peer:
    """Logits in memory."""
    return _jax_peer(programs.value_and_gradients(programs.of_optax), operands)


def of_bare_products(operands: Operands) -> Peer:
    """The three products alone; their result is no loss."""
    return _jax_peer(programs.chained_products, operands, of_labels=False)


def of_tokamax(operands: Operands) -> Peer | None:
    """OpenXLA's tokamax, which chooses its own implementation."""
    try:
        from tokamax import linear_softmax_cross_entropy_loss as loss  # noqa: PLC0415
    except ImportError:
        return None

    def mean(inputs, kernel, labels):
        return loss(inputs, labels, kernel, reduction="mean")

    return _jax_peer(programs.value_and_gradients(mean), operands)


def _torch_peer(mean, operands, *, approximates=False) -> Peer:
    import torch  # noqa: PLC0415

    inputs, weight, labels = operands.torch

    def call():
        value = mean(inputs, weight, labels)
        return value.detach(), *torch.autograd.grad(value, (inputs, weight))

    def wait(result):
        if inputs.is_cuda:
            torch.cuda.synchronize()

    program = Program(call, wait)

    def memory():
        if not inputs.is_cuda:
            return float("nan")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        program.run()
        return torch.cuda.max_memory_allocated() - before

    def outputs(result):
        value, by_inputs, by_weight = result
        parts = by_inputs[:SLICE], by_weight[:SLICE].T
        return float(value), *(part.float().cpu().numpy() for part in parts)

    return Peer(program, outputs, memory, approximates)


def of_torch(operands: Operands) -> Peer | None:
    """PyTorch's projection, then its loss: logits in memory."""
    return _plain_torch(operands, lambda torch, mean: mean)


def of_torch_compiled(operands: Operands) -> Peer | None:
    """The same through torch.compile."""
    return _plain_torch(operands, lambda torch, mean: torch.compile(mean, dynamic=False))


def _plain_torch(operands, transform) -> Peer | None:
    try:
        import torch  # noqa: PLC0415
        from torch.nn import functional  # noqa: PLC0415
    except ImportError:
        return None

    def mean(inputs, weight, labels):
        return functional.cross_entropy(functional.linear(inputs, weight), labels)

    return _torch_peer(transform(torch, mean), operands)


def of_torch_linear(operands: Operands) -> Peer | None:
    """PyTorch's linear_cross_entropy with its own choice of blocks (2.13 and newer)."""
    try:
        import torch  # noqa: PLC0415
        from torch.nn import functional  # noqa: PLC0415
    except ImportError:
        return None
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return None
    options = torch.nn.LinearCrossEntropyOptions()
    return _torch_peer(partial(functional.linear_cross_entropy, options=options), operands)


def of_liger(operands: Operands) -> Peer | None:
    """LinkedIn's Liger kernels (Triton)."""
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # noqa: PLC0415
    except ImportError:
        return None
    loss = LigerFusedLinearCrossEntropyLoss()
    return _torch_peer(lambda inputs, weight, labels: loss(weight, inputs, labels), operands)


def of_cut_cross_entropy(operands: Operands, impl: str = "cce") -> Peer | None:
    """Apple's cut-cross-entropy (Triton); "cce" leaves out small gradients, "cce_exact" not."""
    try:
        from cut_cross_entropy import linear_cross_entropy  # noqa: PLC0415
    except ImportError:
        return None
    mean = partial(linear_cross_entropy, impl=impl)
    return _torch_peer(mean, operands, approximates=impl == "cce")


BARE = "three bare products"
PEERS: dict[str, Make] = {
    "jxent": of_jxent,  # first: the others are compared with it
    BARE: of_bare_products,
    "optax": of_optax,
    "jxent, per example": of_jxent_per_example,
    "jxent, block_size=4096": partial(of_jxent, block_size=4096),
    "PyTorch linear_cross_entropy": of_torch_linear,
    "PyTorch": of_torch,
    "PyTorch, compiled": of_torch_compiled,
    "tokamax": of_tokamax,
    "Liger": of_liger,
    "cut-cross-entropy": of_cut_cross_entropy,
    "cut-cross-entropy, exact": partial(of_cut_cross_entropy, impl="cce_exact"),
}
