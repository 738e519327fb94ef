"""What is programs for chips that are not here: cases, bounds, and who computes the same."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import gpu, tpu
from benchmarks.compiled import bounds, cases, h100, programs
from benchmarks.lib.command import Options
from jxent.losses import SoftmaxAux

pytestmark = pytest.mark.optimized

TINY = Options(tiny=True)


@pytest.fixture(autouse=True)
def defaults_of_jax():
    """As a user has them: optax does not keep to the strict modes."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


COMPILED = {"TPU": (tpu.CASES, bounds.TPU), "H100": (h100.CASES, bounds.H100)}


@pytest.mark.parametrize(("listed", "bound"), COMPILED.values(), ids=COMPILED)
def test_every_compiled_case_has_its_bound(listed, bound):
    assert sorted(case.name for case in listed) == sorted(bound)
    for case in listed:
        assert (bound[case.name].unit == "passes") == (case.features is None)
        assert bound[case.name].moved * (
            case.logits_bytes if case.features is None else 1e9
        ) >= case.least_bytes  # fmt: skip


@pytest.mark.parametrize("name", ["tpu", "gpu_compile"])
def test_the_tables_that_are_kept_have_every_row_within_its_bound(name):
    """Some rows take too long to be programs in every test."""
    results = Path(cases.__file__).parents[1] / "results"
    path = results / ("newest" if jax.__version_info__ >= (0, 12) else "") / f"{name}.json"
    (table,) = json.loads(path.read_text(encoding="utf-8"))["tables"]
    found = {row["workload"]: row for row in table["rows"] if row["program"] == "jxent"}
    listed, bound = COMPILED["TPU" if name == "tpu" else "H100"]
    for case in listed:
        row = found[case.name]
        cycles = row.get("est. Mcycles", 0) * 1e6
        kept = row["GB moved"] * 1e9, case.logits_bytes, row["held GB"] * 1e9, cycles
        assert bound[case.name].holds(*kept), case.name


def test_bounds():
    assert bounds.passes(2, held=1).holds(moved=200, logits=100, held=1e9)
    assert not bounds.passes(2, held=1).holds(moved=201, logits=100, held=0)
    assert not bounds.gb(2, held=1).holds(moved=2e9, logits=100, held=1.1e9)
    assert bounds.gb(2, held=1, mcycles=3).holds(moved=0, logits=100, held=0, cycles=3e6)
    assert not bounds.gb(2, held=1, mcycles=3).holds(moved=0, logits=100, held=0, cycles=3.1e6)


@pytest.mark.parametrize("case", programs.tiny(tpu.CASES), ids=lambda case: case.name)
@pytest.mark.one_in(9)
def test_compiled_programs_agree(case):
    """On real arrays, with every option: what is compared is the same loss."""
    case = replace(case, dtype="float32")
    for changed in (case, *variants_of(case)):
        check_programs(changed)


def variants_of(case):
    yield replace(case, value_only=True)
    if case.loss == "softmax ids":
        yield from (replace(case, option=name) for name in (*cases.OPTIONS, cases.WEIGHTS))
        yield from (replace(case, form=form) for form in ("vmap", "axis 0"))


def is_aux(x):
    return isinstance(x, SoftmaxAux)


def check_programs(case):
    rng = np.random.default_rng(0)
    labels, *operands, weights = (
        rng.integers(case.classes, size=s.shape, dtype=np.int32)
        if s.dtype == np.int32
        else rng.random(s.shape, np.float32) / max(case.features or 0, 1)
        for s in cases.shapes(case)
    )
    if case.loss.endswith("softmax"):
        labels /= labels.sum(-1, keepdims=True)
    found = cases.programs(case)
    mine, theirs = (jax.jit(found[name])(labels, *operands, weights) for name in ("jxent", "optax"))
    mine = jax.tree.map(lambda x: x.accuracy if is_aux(x) else x, mine, is_leaf=is_aux)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), mine, theirs)


def test_least_traffic():
    """Read the operands, write the gradients; labels are no more than read."""
    sigmoid, ids = cases.Case("sigmoid", 8, 16), cases.Case("softmax ids", 8, 16)
    assert sigmoid.least_bytes == 3 * sigmoid.logits_bytes
    assert replace(sigmoid, value_only=True).least_bytes == 2 * sigmoid.logits_bytes
    assert ids.least_bytes == 2 * ids.logits_bytes + 8 * 4
    projection = cases.Case("projection, softmax ids", 8, 16, 4)
    assert projection.least_bytes == 2 * (8 * 4 + 4 * 16) * 2 + 8 * 4


@pytest.mark.parametrize(
    ("module", "said"),
    [(tpu, "libtpu is not installed"), (h100, "The GPU's compiler is not installed")],
)
def test_a_missing_compiler_is_said(monkeypatch, module, said):
    monkeypatch.setattr(module, "is_available", lambda: False)
    (table,) = module.tables(TINY)
    assert table.rows == []
    assert said in table.note


@pytest.mark.long
@pytest.mark.parametrize(
    "module",
    [
        pytest.param(module, marks=pytest.mark.skipif(not module.is_available(), reason=reason))
        for module, reason in ((tpu, "needs libtpu"), (h100, "needs the GPU's compiler"))
    ],
)
def test_compiled(module):
    (table,) = module.tables(TINY)
    moved = {(r["workload"].split(" 32")[0], r["program"]): r["GB moved"] for r in table.rows}
    assert moved["sigmoid", "jxent"] > 0
    assert moved["projection, softmax ids", cases.BARE] > 0
    assert ("est. Mcycles" in table.rows[0]) == (module is tpu)


def test_the_gpu_compiles_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(h100, "is_available", lambda: False)
    gpu.main(["--compile", "--json", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["gpu_compile.json"]
