"""Speed on CPU: losses, steps in place and the projection, of jxent and its peers.

    python -m benchmarks.speed [--tiny] [--rounds 15] [--results DIR] [--json DIR] [--plots DIR]

Outputs are compared with each other before anything is timed. Times are taken in one process, in
turn; a ratio is the median of the ratios of the rounds. Peers that are not installed are left out.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.goals import ALONE, BARE, FRESH, GRADIENTS, LOSS, STEP, goals_table
from benchmarks.lib import command, competitors, programs
from benchmarks.lib.command import Options
from benchmarks.lib.competitors import COMPETITORS, Make, check_against_each_other, losses_in_mean
from benchmarks.lib.report import Table
from benchmarks.lib.timing import Program, ratio, side_by_side
from benchmarks.lib.workloads import (
    MORE,
    SMALL,
    Loss,
    Variant,
    Workload,
    labels_and_logits,
    projection_operands,
    shrunk,
    variants,
    workloads,
)

WITH_LOGITS = "Mean loss, and training step in place"
PROJECTED = "Projection, value and gradients"

DEFINITIONS = f"""\
* {LOSS}: one number from labels and logits in memory.
* {STEP}: a training step, which returns its mean loss and writes `logits - rate * gradient` over \
the logits; compiled, the buffer given away; PyTorch: backward, then `sub_`, gradients set to None.
* {ALONE}: the same without the loss. {FRESH}: with the gradient in an array of its own. Of the \
first workloads.
* jxent, mean of each: its losses, one a class or one an example, and the caller's `mean()`. \
jax.nn: as users write it.
* optax computes in the logits' dtype, in bfloat16 too; jxent in float32.
* {GRADIENTS}: the mean loss with d/d inputs and d/d kernel, as fresh arrays.
* random data: logits standard normal. Confident: in 9 rows of 10 the label's logit leads by 10 \
to 20.
* ratio: time over jxent's, median of ratios paired by round; above 1 the program is slower than \
jxent. Spread: its 10 and 90 % quantiles."""


def rows_of(times: dict[str, np.ndarray], to: str, **place) -> list[dict]:
    """One line a program, with its ratio to the program `to`."""
    lines = []
    for name, taken in times.items():
        r = ratio(times, name, to)
        lines.append({
            **place, "program": name, "ms": float(np.median(taken)) * 1e3, "ratio": r.median,
            "spread": f"{r.low:.2f} to {r.high:.2f}",
        })  # fmt: skip
    return lines


def losses_and_steps(
    workload: Workload,
    variant: Variant,
    rounds: int,
    makers: Sequence[Make] = COMPETITORS,
    *,
    main: bool = True,
) -> list[dict]:
    """Mean loss and step in place of all competitors on one workload; of a main one, more."""
    labels, logits = labels_and_logits(workload, variant)
    makers = (*makers, competitors.of_jxent_each) if main else makers
    made = [make(workload, labels, logits) for make in makers]
    present = [one for one in made if one is not None]
    check_against_each_other(present, workload, logits)
    # So small a rate that the data stay what they are over all rounds.
    rate = 0.01 * losses_in_mean(workload)
    programs = {
        LOSS: {one.name: Program(one.loss) for one in present},
        STEP: {one.name: Program(partial(one.step, rate)) for one in present},
    }
    if main:
        programs[ALONE] = {
            one.name: Program(partial(one.alone, rate)) for one in present if one.alone
        }
        programs[FRESH] = {one.name: Program(one.fresh) for one in present if one.fresh}
    rows = []
    for quantity, of_all in programs.items():
        times = side_by_side(of_all, rounds, f"{workload.name}, {variant}, {quantity}")
        place = {"loss": workload.loss, "workload": workload.name, "data": variant}
        rows += rows_of(times, "jxent", **place, quantity=quantity)
    return rows


Step = Callable[[], tuple]
PARTS = ("value", "d/d inputs", "d/d kernel")  # of what it returns, however nested


def torch_projection(labels, inputs, kernel, compiled: bool) -> Step | None:
    """PyTorch's linear_cross_entropy, or None where it is not there."""
    try:
        import torch  # noqa: PLC0415
        from torch.nn import functional  # noqa: PLC0415
    except ImportError:
        return None
    if not hasattr(functional, "linear_cross_entropy"):
        return None
    x = torch.tensor(inputs).requires_grad_()
    w = torch.tensor(kernel.T.copy()).requires_grad_()
    y = torch.tensor(labels).long()

    def loss(x, w, y):
        return functional.linear_cross_entropy(x, w, y)

    mean = torch.compile(loss, dynamic=False) if compiled else loss

    def step():
        value = mean(x, w, y)
        gradients = torch.autograd.grad(value, (x, w))
        return value.detach().numpy(), gradients[0].numpy(), gradients[1].numpy().T

    return step


def torch_projection_in_blocks(labels, inputs, kernel) -> Step | None:
    """PyTorch's linear_cross_entropy with its own choice of blocks, which compute gradients too."""
    try:
        import torch  # noqa: PLC0415
        from torch.nn import functional  # noqa: PLC0415
    except ImportError:
        return None
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return None
    x = torch.tensor(inputs).requires_grad_()
    w = torch.tensor(kernel.T.copy()).requires_grad_()
    y = torch.tensor(labels).long()

    def step():
        value = functional.linear_cross_entropy(
            x, w, y, options=torch.nn.LinearCrossEntropyOptions()
        )
        gradients = torch.autograd.grad(value, (x, w))
        return value.detach().numpy(), gradients[0].numpy(), gradients[1].numpy().T

    return step


def torch_products(inputs, kernel) -> Step | None:
    """The three bare products as PyTorch takes them: the floor under its projections."""
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        return None
    x, w = torch.tensor(inputs), torch.tensor(kernel)

    def step():
        logits = x @ w
        return logits[0, 0].numpy(), (logits @ w.T).numpy(), (x.T @ logits).numpy()

    return step


def check_projections(steps: dict[str, Step]) -> None:
    """Compares the outputs of all with the first's.

    Raises:
      AssertionError: The one that differs is named.
    """
    (first, reference), *others = steps.items()
    expected = [np.asarray(a) for a in jax.tree.leaves(reference())]
    for name, step in others:
        results = jax.tree.leaves(step())
        for part, got, wanted in zip(PARTS, results, expected, strict=True):
            np.testing.assert_allclose(
                got, wanted, rtol=1e-3, atol=1e-6, err_msg=f"{name} against {first}: {part}"
            )


def projection(workload: Workload, rounds: int, *, torch: bool = True) -> list[dict]:
    """Value and both gradients beside the three bare products, at several block sizes."""
    labels, inputs, kernel = projection_operands(workload)
    x, w, y = jnp.asarray(inputs), jnp.asarray(kernel), jnp.asarray(labels)
    blocks = [min(size, workload.examples) for size in (1024, 2048)]
    steps: dict[str, Step] = {}
    for name, loss in {
        "jxent": partial(programs.scalar, None),
        "optax": programs.of_optax,
        **{f"jxent, block_size={size}": partial(programs.scalar, size) for size in blocks},
        "jxent, per example": programs.per_example,
    }.items():
        steps[name] = partial(jax.jit(programs.value_and_gradients(loss)), x, w, y)
    made: dict[str, Callable[..., Step | None]] = {
        "PyTorch linear_cross_entropy": partial(torch_projection, compiled=False),
        "PyTorch linear_cross_entropy, blocks": torch_projection_in_blocks,
        "PyTorch linear_cross_entropy, compiled": partial(torch_projection, compiled=True),
    }
    for name, make in made.items() if torch else ():
        if (step := make(labels, inputs, kernel)) is not None:
            steps[name] = step
    check_projections(steps)
    steps[BARE] = partial(jax.jit(programs.chained_products), x, w)
    if torch and (products := torch_products(inputs, kernel)) is not None:
        steps[f"{BARE}, PyTorch"] = products
    block = blocks[0]
    if workload.examples % block == 0:
        steps[f"{BARE}, blocks of {block}"] = partial(
            jax.jit(partial(programs.blocked_products, block)), x, w
        )
    times = side_by_side(
        {name: Program(step) for name, step in steps.items()}, rounds, workload.name
    )
    place = {"loss": "projection", "workload": workload.name, "data": "random"}
    rows = rows_of(times, "jxent", **place, quantity=GRADIENTS)
    for row in rows:
        row["/ products"] = ratio(times, row["program"], BARE).median
    return rows


# Powers of ten, and GPT-2's vocabulary: wide, and no multiple of anything that suits a machine.
WIDTHS = (10, 100, 1000, 10_000, 50_257, 100_000, 1_000_000)


def sweep(elements: int, rounds: int) -> list[dict]:
    """Cost an element from 10 to a million classes, the number of elements kept."""
    rows = []
    makers: tuple[Make, ...] = (competitors.of_jxent, competitors.of_optax)
    kinds: tuple[Loss, ...] = ("sigmoid", "softmax ids")
    for loss in kinds:
        for classes in (width for width in WIDTHS if width <= elements):
            examples = elements // classes
            workload = Workload("cpu", loss, examples, classes, "float32", "A sweep.")
            count = examples * classes
            found = losses_and_steps(workload, "random", rounds, makers, main=False)
            for quantity in (LOSS, STEP):
                ours, theirs = (r for r in found if r["quantity"] == quantity)
                rows.append({
                    "loss": loss, "quantity": quantity, "classes": classes,
                    "examples": examples,
                    "jxent ns / element": ours["ms"] * 1e6 / count,
                    "optax ns / element": theirs["ms"] * 1e6 / count,
                    "optax / jxent": theirs["ratio"], "spread": theirs["spread"],
                })  # fmt: skip
    return rows


def tables(options: Options, makers: Sequence[Make] = COMPETITORS) -> list[Table]:
    """All measurements of speed."""
    with jax.default_device(jax.devices("cpu")[0]):
        with_logits = [
            row
            for workload in workloads("cpu", "sigmoid", "softmax ids", "softmax", tiny=options.tiny)
            for variant in variants(workload)
            for row in losses_and_steps(workload, variant, options.rounds or 15, makers)
        ]
        more = [
            row
            for workload in (map(shrunk, MORE) if options.tiny else MORE)
            for row in losses_and_steps(workload, "random", options.rounds or 7, makers, main=False)
        ]
        small = [
            row
            for workload in SMALL
            for row in losses_and_steps(
                workload, "random", 3 * (options.rounds or 7), makers, main=False
            )
        ]
        projected = [
            row
            for workload in workloads("cpu", "projection", tiny=options.tiny)
            for row in projection(
                workload, options.rounds or 7, torch=competitors.of_torch in makers
            )
        ]
        swept = sweep(2**10 if options.tiny else 2**24, options.rounds or 7)
    reasons = "\n".join(
        f"* {w.name}: {w.reason}" for w in workloads("cpu", tiny=options.tiny)
    )  # fmt: skip
    more_reasons = "\n".join(f"* {w.name}: {w.reason}" for w in MORE)
    found = [
        Table(WITH_LOGITS, _without_loss(with_logits), DEFINITIONS),
        Table("More shapes, dtypes and losses", _without_loss(more), more_reasons),
        Table("Small batches", _without_loss(small)),
        Table(PROJECTED, _without_loss(projected), reasons),
        Table(
            "Cost over the number of classes",
            swept,
            "The number of elements is constant; random data.",
        ),
        goals_table(with_logits + more + small + projected),
    ]
    if options.plots:
        from benchmarks import plots  # noqa: PLC0415  # needs matplotlib

        plots.speed(with_logits + projected, options.plots)
    return found


def _without_loss(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "loss"} for row in rows]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    command.main("speed", tables, __doc__ or "", argv)


if __name__ == "__main__":
    main()
