"""The speeds aimed at on CPU, beside what was measured."""

from dataclasses import dataclass

from benchmarks.report import Table


@dataclass(frozen=True)
class Goal:
    """jxent is to be at least `factor` times as fast as `against`."""

    loss: str
    quantity: str
    against: str
    factor: float
    program: str = "jxent"

    def rows(self, measured: list[dict]) -> list[dict]:
        """One line for each workload and kind of data that was measured."""
        return [
            _line(row, self.program, self.against, self.factor, row["ratio"] / own["ratio"])
            for row in measured
            if row["loss"] == self.loss
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
BARE = "three bare products"

GOALS = (
    Goal("sigmoid", LOSS, "optax", 6),
    Goal("sigmoid", STEP, "optax", 4),
    Goal("softmax ids", LOSS, "optax", 1),
    Goal("softmax ids", STEP, "optax", 2),
    Goal("projection", GRADIENTS, "optax", 1.1),
    Goal("projection", GRADIENTS, BARE, 1 / 1.15),
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
