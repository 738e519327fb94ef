"""Every snippet of the README and of docs/ runs, in order, as a reader would type them."""

import re
from pathlib import Path

import jax
import pytest

import jxent

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "count"), [("README.md", 4), ("docs/guides/scaling.md", 2)])
def test_snippets_run(page, count):
    text = (ROOT / page).read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) >= count
    namespace: dict = {}
    # As a user has them: JAX's defaults, not the strict modes of these tests.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for snippet in snippets:
            exec(snippet, namespace)
    assert namespace["loss"].shape == ()


@pytest.mark.parametrize("module", [jxent, jxent.losses])
def test_every_public_function_is_listed(module):
    functions = [n for n in vars(module) if "cross_entropy" in n or n == "compute_weighted_loss"]
    assert len(functions) >= 9
    family = "`linear_…_cross_entropy(" in README
    for name in functions:
        shared = family and module is jxent.losses and name.startswith("linear_")
        assert shared or f"`{name}" in README, name


def test_the_reductions_are_listed():
    for reduction in jxent.losses.Reduction:
        assert f'`"{reduction.value}"`' in README
        assert f"`{reduction.name}`" in README
