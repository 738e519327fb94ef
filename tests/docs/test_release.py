"""What a release needs: one version everywhere, and the part of the changelog that goes with it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def first(pattern, name):
    found = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.M)
    assert found, (pattern, name)
    return found.group(1)


def test_one_version():
    version = PROJECT["version"]
    assert first(r"^version: (\S+)$", "CITATION.cff") == version
    assert first(r'^  version: "(\S+)"$', "recipe/recipe.yaml") == version


def test_one_set_of_requirements():
    """The conda recipe's are those of the wheel."""
    recipe = (ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8")
    run = recipe.split("  run:\n")[1].split("\n\n")[0]
    listed = {line.strip(" -").replace(" ", "") for line in run.splitlines()}
    assert listed == {*PROJECT["dependencies"], f"python{PROJECT['requires-python']}"}


def test_versions_are_tested():
    """CI runs the oldest JAX that is allowed, and each Python that is named."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    oldest = next(d for d in PROJECT["dependencies"] if d.startswith("jax>")).removeprefix("jax>=")
    assert f'jax: "{oldest}"' in workflow
    named = "Programming Language :: Python :: "
    for classifier in PROJECT["classifiers"]:
        if classifier.startswith(named):
            assert f'python: "{classifier.removeprefix(named)}"' in workflow


def test_the_changelogs_part():
    def changes(version):
        return subprocess.run(
            [sys.executable, ROOT / ".ci" / "changes", version],
            check=False, capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip

    part = changes(PROJECT["version"])
    assert part.returncode == 0
    assert "### Added" in part.stdout
    assert "## [" not in part.stdout
    missing = changes("9.9.9")
    assert missing.returncode == 1
    assert "no part for 9.9.9" in missing.stderr
