"""Every snippet of the README and of docs/ runs, in order, as a reader would type them."""

import re
from pathlib import Path

import jax
import pytest

import jxent

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "count"), [("README.md", 3), ("docs/guides/scaling.md", 2)])
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


def test_the_readme_is_a_page():
    assert len(README.splitlines()) <= 120


def test_every_scalar_is_listed():
    functions = [
        n for n in vars(jxent.losses) if "cross_entropy" in n or n == "compute_weighted_loss"
    ]
    assert len(functions) >= 9
    for name in functions:
        assert name.startswith("linear_") or f"`{name}`" in README, name  # those in words


def test_the_reductions_are_listed():
    page = (ROOT / "docs" / "guides" / "masks_and_reductions.md").read_text(encoding="utf-8")
    for reduction in jxent.losses.Reduction:
        assert f'`"{reduction.value}"`' in page
        assert f"`{reduction.name}`" in page
