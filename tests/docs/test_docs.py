"""The site's pages run, and name all that is public."""

import inspect
import json
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

import jxent
from jxent.compat import optax as compat
from tools import options

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n((?::[^\n]*\n)*)(.*?)^```", re.MULTILINE | re.DOTALL)
EXECUTED = [
    path
    for path in sorted(DOCS.rglob("*.md"))
    if "_build" not in path.parts
    and path.read_text(encoding="utf-8").startswith("---\nfile_format")
]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.long
@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_pages_run(page, monkeypatch, tmp_path):
    """Each cell in order, warnings being errors; recipes assert that before and after are equal."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    cells = [code for _, code in CELL.findall(page.read_text(encoding="utf-8"))]
    assert cells
    for package in re.findall(r"^import (keras|equinox)|^from (flax)", "\n".join(cells), re.M):
        if not find_spec(name := "".join(package)):
            pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(page.parent)
    namespace: dict = {"__name__": "page"}
    # As a user has them: JAX's defaults, not the strict modes of these tests.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for cell in cells:
            exec(compile(cell, page.name, "exec"), namespace)
    import_module("matplotlib.pyplot").close("all")


def public(module) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value))
    }


def test_every_public_name_has_a_page():
    text = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^   ([a-zA-Z_.]+)$", text, re.MULTILINE)
    names = public(jxent) | {f"losses.{name}" for name in public(jxent.losses)}
    names |= {f"compat.optax.{name}" for name in public(compat)}
    assert len(names) > 25
    assert sorted(listed) == sorted(names)


def test_links_have_targets():
    pages = [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
        *(path for path in DOCS.rglob("*.md") if "_build" not in path.parts),
    ]
    assert len(pages) > 30
    for page in pages:
        text = CELL.sub("", page.read_text(encoding="utf-8"))
        for target in LINK.findall(text):
            assert (page.parent / target).exists(), (page, target)


def test_a_page_for_each_kind_of_result():
    """What was measured is on the site, with its machine and its date."""
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        measured = pytest.importorskip("measured", reason="the site's packages are not installed")
    finally:
        sys.path.remove(str(DOCS / "_ext"))
    tables = {
        path.relative_to(measured.RESULTS).as_posix()
        for path in measured.RESULTS.rglob("*.json")
        if "tables" in json.loads(path.read_text(encoding="utf-8"))
    }
    assert {file for file, _ in measured.PAGES.values()} == tables
    for name in measured.PAGES:
        assert (DOCS / "measured" / f"{name}.md").exists()
        text = measured.tables(name)
        assert "* machine: " in text
        assert "* date: 20" in text
        assert "|--" in text


def test_the_table_of_options_is_that_of_the_signatures():
    """Each function has each option, or the page says why not."""
    text = options.PAGE.read_text()
    assert options.page() == text
    reasons = {why for of_option in options.WHY.values() for why in of_option.values()}
    assert {*re.findall(r"(?m)^\* ([a-z]): ", text)} == reasons
