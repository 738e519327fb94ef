"""The speeds aimed at on CPU, beside what was measured."""

from dataclasses import dataclass

from benchmarks.lib.report import Table


@dataclass(frozen=True)
class Goal:
    """jxent is to be at least `factor` times as fast as `against`, of workloads of this shape."""

    loss: str
    quantity: str
    against: str
    factor: float
    program: str = "jxent"
    shape: str = ""

    def rows(self, measured: list[dict]) -> list[dict]:
        """One line for each workload and kind of data that was measured."""
        return [
            _line(row, self.program, self.against, self.factor, row["ratio"] / own["ratio"])
            for row in measured
            if row["loss"] == self.loss
            and self.shape in row["workload"]
            and row["quantity"] == self.quantity
            and row["program"] == self.against
            for own in measured
            if own["program"] == self.program and _place(own) == _place(row)
        ]


def _place(row: dict) -> tuple:
    return row["workload"], row["data"], row["quantity"]


def _line(row, program, against, factor, reached) -> dict:
    return {
        "workload": row["workload"],
        "data": row["data"],
        "quantity": row["quantity"],
        "program": program,
        "against": against,
        "goal: times as fast": round(factor, 3),
        "measured": reached,
        "met": "yes" if reached >= factor else "no",
    }


LOSS, STEP, GRADIENTS = "mean loss", "loss and step in place", "value and gradients"
ALONE, FRESH = "step alone, in place", "loss and gradient"
EACH = "jxent, mean of each"
BARE = "three bare products"


def _of(loss: str, shape: str, of_loss: float, of_step: float) -> tuple[Goal, Goal]:
    both = (LOSS, of_loss), (STEP, of_step)
    first, second = (Goal(loss, what, "optax", factor, shape=shape) for what, factor in both)
    return first, second


GOALS = (
    *_of("sigmoid", "4096 x 4096 float32", 5, 5),
    Goal("sigmoid", LOSS, "optax", 2, EACH),
    Goal("sigmoid", STEP, "optax", 2, EACH),
    *_of("softmax ids", " 2048 x 32768 float32", 2, 4),
    *_of("softmax ids", "32768 x 1000 float32", 1.3, 3.3),
    *_of("softmax ids", "1677721 x 10 ", 0.7, 1.5),
    *_of("softmax ids", "x 50261 ", 1, 2),
    *_of("softmax ids", "x 32003 ", 1.3, 3),
    *_of("softmax", "32768 x 1000 ", 1, 2.2),
    *(
        Goal("sigmoid ids", quantity, "optax", factor, shape=f" {count} ids")
        for count, factor in ((8, 2.5), (64, 1.2), (256, 1), (1000, 1))
        for quantity in (LOSS, STEP)
    ),
    *(
        Goal(loss, quantity, "optax", 1, shape=shape)
        for shape in (" 32 x 10 ", " 128 x 10 ", " 256 x 100 ", " 1024 x 1000 ")
        for loss in ("sigmoid", "softmax ids", "softmax")
        for quantity in (LOSS, STEP)
    ),
    Goal("projection", GRADIENTS, "optax", 1.7),
    Goal("projection", GRADIENTS, BARE, 0.8),
)
BEST_BLOCK = 1 / 1.05  # of the bare products' speed, at the best block size


def goals_table(measured: list[dict]) -> Table:
    """Goal by goal. `measured`: rows with loss, workload, data, quantity, program and ratio."""
    rows = [line for goal in GOALS for line in goal.rows(measured)]
    blocks = [r for r in measured if r["program"].startswith("jxent, block_size")]
    bare = [r for r in measured if r["program"] == BARE]
    if blocks and bare:
        best = min(blocks, key=lambda r: r["ratio"])
        reached = bare[0]["ratio"] / best["ratio"]
        rows.append(_line(best, best["program"], BARE, BEST_BLOCK, reached))
    torch = {row["program"] for row in measured if row["program"].startswith("PyTorch")}
    for row in measured:
        if row["program"] in torch:
            rows += Goal(row["loss"], row["quantity"], row["program"], 1).rows([
                row,
                *(r for r in measured if r["program"] == "jxent" and _place(r) == _place(row)),
            ])  # fmt: skip
    note = (
        "Measured: the time of `against` over the time of `program`, each the median of ratios "
        "paired by round. At most 1.15 (1.05) times the products' time is 0.870 (0.952) times "
        "as fast."
    )
    return Table("Goals", rows, note)
