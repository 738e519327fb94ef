"""Temporary memory as the compiler counts it on CPU: nothing is run, nothing jitters.

    python -m benchmarks.memory [--tiny] [--results DIR] [--json DIR] [--plots DIR]

A program's temporaries are what it needs beyond its operands and its outputs.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.lib import command
from benchmarks.lib.command import Options
from benchmarks.lib.programs import (
    each_of_label_ids,
    hessian_vector,
    jxent_mean,
    label_ids,
    label_ids_of_optax,
    of_optax,
    operand_shapes,
    optax_mean,
    per_example,
    scalar,
    temporaries,
    value_and_gradients,
)
from benchmarks.lib.report import Table
from benchmarks.lib.workloads import Loss, Workload, workloads

FLOOR = """\
The floor is what the mathematics needs beyond operands and outputs, which hold the gradients: one \
float32 an example where classes are summed over (its normaliser, known only after the whole row \
has been read), one float32 in all for sigmoid. Everything else can be made a tile at a time."""


def floor_bytes(workload: Workload) -> int:
    """See `FLOOR`."""
    return 4 if workload.loss == "sigmoid" else 4 * workload.examples


def sweep(options: Options) -> list[dict]:
    """Temporaries of value and gradients over the number of classes."""
    sizes = (16, 64) if options.tiny else tuple(4**k for k in range(5, 11))
    examples, features = (8, 4) if options.tiny else (4096, 256)
    rows = []
    kinds: tuple[Loss, ...] = ("sigmoid", "softmax ids", "projection")
    for loss in kinds:
        for classes in sizes:
            workload = Workload(
                "cpu", loss, examples, classes, "float32", "A sweep.",
                features if loss == "projection" else None,
            )  # fmt: skip
            shapes = operand_shapes(workload)
            if loss == "projection":
                wrap: Callable = value_and_gradients
                means: dict[str, Callable] = {
                    "jxent": partial(scalar, None),
                    "jxent, per example": per_example,
                    "optax": of_optax,
                }
            else:
                wrap = jax.value_and_grad
                means = {"jxent": jxent_mean(loss), "optax": optax_mean(loss)}
            line: dict = {"loss": loss, "examples": examples, "features": workload.features or ""}
            line |= {"classes": classes, "logits": workload.logits_bytes / 1e6}
            for name, mean in means.items():
                line[name] = temporaries(wrap(mean), *shapes) / 1e6
            rows.append(line | {"floor": floor_bytes(workload) / 1e6})
    return rows


def softmax(workload: Workload) -> list[dict]:
    """Temporaries of the projection to exclusive classes."""
    small = min(64, workload.examples)
    ours: dict[str, Callable] = {
        "scalar": partial(scalar, None),
        f"scalar, block_size={small}": partial(scalar, small),
        "per example": per_example,
    }
    return second_order(operand_shapes(workload), ours, of_optax)


def multilabel(workload: Workload) -> list[dict]:
    """Temporaries of the projection to independent classes, of which 8 are listed an example."""
    inputs, kernel, _ = operand_shapes(workload)
    ids = jax.ShapeDtypeStruct((workload.examples, 8), jnp.int32)
    ours: dict[str, Callable] = {"scalar": label_ids, "per example": each_of_label_ids}
    return second_order((inputs, kernel, ids), ours, label_ids_of_optax)


def second_order(shapes: Sequence, ours: dict[str, Callable], optax: Callable) -> list[dict]:
    """Temporaries of value, gradients and Hessian-vector products."""
    wraps: dict[str, Callable] = {
        "value": lambda loss: loss,
        "value and gradients": value_and_gradients,
        "Hessian-vector, forward over reverse": partial(hessian_vector, forward=True),
        "Hessian-vector, reverse over reverse": partial(hessian_vector, forward=False),
    }
    rows = []
    for what, wrap in wraps.items():
        theirs = temporaries(wrap(optax), *shapes)
        for name, loss in ours.items():
            held = temporaries(wrap(loss), *shapes)
            rows.append({
                "program": what, "jxent": name, "MB": held / 1e6,
                "optax MB": theirs / 1e6, "optax / jxent": theirs / max(held, 1),
            })  # fmt: skip
    return rows


def tables(options: Options) -> list[Table]:
    """All measurements of memory."""
    with jax.default_device(jax.devices("cpu")[0]):
        swept = sweep(options)
        found = [
            Table("Temporaries of value and gradients over the number of classes, MB", swept, FLOOR)
        ]
        for workload in workloads("cpu", "projection", tiny=options.tiny):
            name = workload.name
            found.append(Table(f"Temporaries of the {name}", softmax(workload)))
            listed = multilabel(workload)
            found.append(Table(f"Temporaries of the {name}, 8 label ids an example", listed))
    if options.plots:
        from benchmarks import plots  # noqa: PLC0415  # needs matplotlib

        plots.memory(swept, options.plots)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    command.main("memory", tables, __doc__ or "", argv)


if __name__ == "__main__":
    main()
