"""Options and contexts in combination, by the table of `tests/combinations/table.py`."""

import inspect
from itertools import combinations, product

import pytest

import jxent
from jxent import losses
from tests.combinations.covering import Covering
from tests.combinations.run import failure, lower, rows, run
from tests.combinations.table import (
    BY_NAME,
    FUNCTIONS,
    OPTIONS,
    OTHERS,
    Function,
    each_operand,
    never,
    refusals,
)

PARTS = 8  # of the pairs of a function
IN_TURN = 8  # functions, and parts of their triples: in 64 turns all of them have been traced


def grouped(name: str, *values, default: bool = False):
    """A parameter whose function's rows are spread over four processes."""
    group = list(BY_NAME).index(name) % 4
    marks = [pytest.mark.eight_devices, pytest.mark.xdist_group(f"combinations {group}")]
    marks += [] if default else [pytest.mark.long]
    return pytest.param(name, *values, marks=marks, id="-".join([name, *map(str, values)]))


def public_functions():
    for module, prefix in ((jxent, ""), (losses, "losses.")):
        for name, function in vars(module).items():
            if inspect.isfunction(function) and not name.startswith(("_", "assume_platform")):
                yield prefix + name, function


def test_every_function_and_every_option_is_in_the_table():
    functions = dict(public_functions())
    assert functions.keys() == BY_NAME.keys()
    for function in functions.values():
        own = {"loss_fn", "params", "rows"}  # of `blockwise`
        assert set(inspect.signature(function).parameters) <= OPTIONS.keys() | OTHERS | own


@pytest.mark.parametrize("strength", [2, 3])
def test_a_covering_array_has_whatever_can_be_together(strength):
    """Against all rows that there are."""
    sizes = (3, 2, 4, 2, 3)
    # 0 of the first without 1 of the second; 1, 2 of the third with 0 of the fourth; and three.
    rules = [[(0, 0b001), (1, 0b01)], [(2, 0b0110), (3, 0b01)], [(0, 0b110), (3, 0b10), (4, 0b011)]]

    def is_right(row):
        return not any(all(levels >> row[f] & 1 for f, levels in rule) for rule in rules)

    def together(rows):
        return {
            (factors, tuple(row[f] for f in factors))
            for row in rows
            for factors in combinations(range(len(sizes)), strength)
        }

    found = Covering(sizes, rules, strength).rows()
    right = [row for row in product(*map(range, sizes)) if is_right(row)]
    assert all(map(is_right, found))
    assert together(found) == together(right)
    assert len(found) < len(right)


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
@pytest.mark.one_in(5)
def test_every_level_is_called(function: Function):
    """No rule takes a level out altogether."""
    found = rows(function.name)
    assert not any(rule.holds(row) for row in found for rule in never(function))
    for factor, levels in function.factors().items():
        assert {row[factor] for row in found} == set(levels), factor


@pytest.mark.parametrize(
    ("function", "row", "error"),
    [pytest.param(*r, id=f"{r[0]}-{r[2][:30]}") for r in refusals()],
)
@pytest.mark.eight_devices
@pytest.mark.xdist_group("combinations 0")
def test_what_is_refused_says_so(function, row, error):
    with pytest.raises(ValueError, match=error):
        lower(function.name, row)


def failures(action, name, chosen):
    found = [(row, failure(action, name, row)) for row in chosen]
    wrong = [(row, message) for row, message in found if message is not None]
    text = "\n\n".join(f"{name!r}, {row}\n{message}" for row, message in wrong)
    if wrong:
        pytest.fail(f"{len(wrong)} of {len(found)} combinations:\n\n{text}", pytrace=False)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        grouped(f.name, part, default=part == 0 and n % 2 == 0)
        for n, f in enumerate(FUNCTIONS)
        for part in range(1 + PARTS)
    ],
)  # fmt: skip
def test_pairs(name, part):
    """Of every other function one combination in the fast suite, all of all in the full one."""
    found = rows(name)
    failures(run, name, found[:1] if part == 0 else found[part::PARTS])


# Of what is only traced and lowered a part in each turn: all in 64 turns, and by one command,
# `python -m tests.combinations --triples` or `--operands`.


@pytest.mark.parametrize("place", range(-(-len(FUNCTIONS) // IN_TURN)))
@pytest.mark.eight_devices
@pytest.mark.xdist_group("combinations 1")
@pytest.mark.long
def test_triples_in_turn(place, request):
    turn = request.config.getoption("--turn")
    mine = FUNCTIONS[turn % IN_TURN :: IN_TURN]
    if place < len(mine):
        name = mine[place].name
        failures(lower, name, rows(name, 3)[turn // IN_TURN % IN_TURN :: IN_TURN])


@pytest.mark.parametrize("name", [grouped(f.name) for f in FUNCTIONS])
def test_each_operand_by_itself_in_turn(name, request):
    turn = request.config.getoption("--turn")
    found = each_operand(BY_NAME[name])
    failures(lower, name, found[turn % (2 * IN_TURN) :: 2 * IN_TURN])
