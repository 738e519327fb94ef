"""The fused projection beside logits in memory: temporaries and time, on this machine.

    python -m benchmarks.projection [--examples 4096 --features 256 --classes 65536] [--rounds 7]

Temporaries are the compiler's own figure and do not jitter. Times are taken in one process, in
turn, after the outputs have been compared; each is a median, and a ratio to the three bare matrix
products of the same shapes. PyTorch is left out where it is not installed.
"""

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tabulate import tabulate
from tqdm import tqdm

import jxent
from jxent import losses

Step = Callable[..., tuple]  # of inputs, kernel, labels: value, d/d inputs, d/d kernel


def bare_products(inputs, kernel, slope):
    """What value and both gradients cannot do without."""
    return inputs @ kernel, slope @ kernel.T, inputs.T @ slope


def of_optax(inputs, kernel, labels):
    """Logits in memory."""
    return optax.softmax_cross_entropy_with_integer_labels(inputs @ kernel, labels).mean()


def scalar(block_size, inputs, kernel, labels):
    """The loss that a training step differentiates."""
    return losses.linear_sparse_softmax_cross_entropy(labels, inputs, kernel, block_size=block_size)


def per_example(inputs, kernel, labels):
    """One loss an example, reduced by the caller."""
    return jxent.linear_sparse_softmax_cross_entropy(
        labels=labels, inputs=inputs, kernel=kernel
    ).mean()


def value_and_gradients(loss) -> Step:
    """Value and d/d inputs, d/d kernel."""
    return jax.value_and_grad(loss, (0, 1))


def hessian_vector(loss, *, forward: bool):
    """A Hessian-vector product along the arguments themselves."""

    def product(inputs, kernel, labels):
        def gradient(a, b):
            return jax.grad(loss, (0, 1))(a, b, labels)

        if forward:
            return jax.jvp(gradient, (inputs, kernel), (inputs, kernel))[1]
        return jax.vjp(gradient, inputs, kernel)[1]((inputs, kernel))

    return product


def temporaries(function, *shapes) -> int:
    """Bytes of temporary memory of the compiled program."""
    analysis = jax.jit(function).lower(*shapes).compile().memory_analysis()
    assert analysis is not None  # every backend that this runs on has one
    return analysis.temp_size_in_bytes


def memory_table(examples: int, features: int, classes: int) -> list[dict]:
    """Temporaries of jxent and optax, for value, gradients and Hessian-vector products."""
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    shapes = (
        f32((examples, features)),
        f32((features, classes)),
        jax.ShapeDtypeStruct((examples,), jnp.int32),
    )
    default = partial(scalar, None)
    rows = []
    programs: dict[str, Callable] = {
        "value": lambda loss: loss,
        "value and gradients": value_and_gradients,
        "Hessian-vector, forward over reverse": partial(hessian_vector, forward=True),
        "Hessian-vector, reverse over reverse": partial(hessian_vector, forward=False),
    }
    for what, wrap in programs.items():
        theirs = temporaries(wrap(of_optax), *shapes)
        for name, loss in {
            "scalar": default,
            "scalar, block_size=64": partial(scalar, 64),
            "per example": per_example,
        }.items():
            ours = temporaries(wrap(loss), *shapes)
            rows.append({
                "program": what, "jxent": name, "MB": ours / 1e6,
                "optax MB": theirs / 1e6, "optax / jxent": theirs / ours,
            })  # fmt: skip
    return rows


def torch_step(inputs, kernel, labels) -> Callable[[], tuple] | None:
    """PyTorch's fused projection, if it is there: an eager step of the same work."""
    try:
        import torch  # noqa: PLC0415
        from torch.nn import functional  # noqa: PLC0415
    except ImportError:
        return None
    if not hasattr(functional, "linear_cross_entropy"):
        return None
    x = torch.tensor(np.asarray(inputs)).requires_grad_()
    w = torch.tensor(np.asarray(kernel).T.copy()).requires_grad_()
    y = torch.tensor(np.asarray(labels)).long()

    def step():
        value = functional.linear_cross_entropy(x, w, y)
        slopes = torch.autograd.grad(value, (x, w))
        return value.detach().numpy(), slopes[0].numpy(), slopes[1].numpy().T

    return step


def time_table(examples: int, features: int, classes: int, rounds: int) -> list[dict]:
    """Medians and spreads, as ratios to the bare products."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.standard_normal((examples, features)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((features, classes)) / features**0.5, jnp.float32)
    labels = jnp.asarray(rng.integers(classes, size=examples), jnp.int32)
    slope = jnp.asarray(rng.standard_normal((examples, classes)) / examples, jnp.float32)
    programs: dict[str, Callable[[], tuple]] = {
        "three bare products": partial(jax.jit(bare_products), inputs, kernel, slope)
    }
    for name, loss in {
        "optax": of_optax,
        "jxent, default block": partial(scalar, None),
        "jxent, block_size=1024": partial(scalar, 1024),
        "jxent, block_size=2048": partial(scalar, 2048),
        "jxent, per example": per_example,
    }.items():
        step = jax.jit(value_and_gradients(loss))
        programs[name] = partial(step, inputs, kernel, labels)
    torch = torch_step(inputs, kernel, labels)
    if torch is not None:
        programs["PyTorch linear_cross_entropy"] = torch

    truth = jax.tree.leaves(programs["optax"]())
    for name, run in programs.items():  # compiles, and compares before anything is timed
        if name != "three bare products":
            for got, wanted in zip(jax.tree.leaves(run()), truth, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-6)
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in tqdm(range(rounds), desc="timing", unit="round"):
        for name, run in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    bare = np.array(times["three bare products"])
    return [
        {
            "step": name,
            "seconds": float(np.median(taken)),
            "/ bare products": float(np.median(np.array(taken) / bare)),
            "spread": "{:.2f} to {:.2f}".format(*np.quantile(np.array(taken) / bare, (0.1, 0.9))),
        }
        for name, taken in times.items()
    ]


def main(argv: list[str] | None = None) -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=4096)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--classes", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    shape = (options.examples, options.features, options.classes)
    print(
        "{} x {} x {} float32, ".format(*shape) + f"jxent {jxent.__version__}, "
        f"jax {jax.__version__}, optax {optax.__version__}, {jax.default_backend()}, "
        f"{platform.machine()}, {platform.python_version()}"
    )
    table = partial(tabulate, headers="keys", floatfmt=".3g", tablefmt="github")
    print(table(memory_table(*shape)))
    print(table(time_table(*shape, options.rounds)))


if __name__ == "__main__":
    main()
