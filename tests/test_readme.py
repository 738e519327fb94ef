"""Every snippet of the README runs, in order, in one namespace, as a reader would type them."""

import re
from pathlib import Path

import jax
import pytest

import jxent

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_snippets_run():
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) >= 4
    namespace: dict = {}
    # As a user has them: JAX's defaults, not the strict modes of these tests.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for snippet in snippets:
            exec(snippet, namespace)
    assert namespace["loss"].shape == ()


@pytest.mark.parametrize("module", [jxent, jxent.losses])
def test_every_public_function_is_listed(module):
    for name, value in vars(module).items():
        if callable(value) and getattr(value, "__module__", "").startswith("jxent") and (
            name[0] != "_" and name not in {"Sigmoid", "Softmax", "SparseSoftmax"}
            and name not in {"widen", "computing_dtype"}
        ):  # fmt: skip
            assert f"`{name}" in README or f".{name}" in README, name


def test_the_reductions_are_listed():
    for reduction in jxent.losses.Reduction:
        assert f'`"{reduction.value}"`' in README
        assert f"`{reduction.name}`" in README
