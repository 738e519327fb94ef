"""The layers of the package, and which way their imports point."""

import ast
import inspect
import re
from pathlib import Path
from typing import get_args, get_overloads, get_type_hints

import pytest

import jxent
from jxent._src.core import dispatch, options
from tools import docstrings

PACKAGE = Path(jxent.__file__).parent
PUBLIC = docstrings.public_functions()
SOURCE = PACKAGE / "_src"
ROOT = Path(__file__).parent.parent
LAYERS = (  # a folder imports from itself and from what stands below
    "api",
    "run",
    "platforms",
    "projection",
    "loss_fns",
    "numerics",
    "checks",
    "sharding",
    "core",
)


def imported(path: Path) -> set[str]:
    """The folders that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jxent"):
            parts = f"{node.module}.{node.names[0].name}".split(".")
            found.add(parts[2] if parts[1] == "_src" else parts[1])
    return found


def test_imports_point_down():
    assert {path.name for path in SOURCE.iterdir() if path.is_dir()} - {"__pycache__"} == {*LAYERS}
    for layer, folder in enumerate(LAYERS):
        for path in (SOURCE / folder).rglob("*.py"):
            assert imported(path) <= {*LAYERS[layer:]}, path


@pytest.mark.parametrize("function", [f for f in PUBLIC if get_overloads(f)])
def test_overloads_have_the_options_of_the_signature(function):
    for overload in get_overloads(function):
        taken = dict(inspect.signature(overload).parameters)
        options = taken.pop("options", None)
        if options is not None:
            (kind,) = get_args(options.annotation)
            taken.update(get_type_hints(kind))
        assert taken.keys() == inspect.signature(function).parameters.keys()


def test_platforms_are_known_in_one_folder():
    """Outside it nothing asks where it runs."""
    known_to = [
        SOURCE / "core" / name for name in ("dispatch.py", "assumed_platform.py", "hints.py")
    ]
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if SOURCE / "platforms" not in path.parents and path not in known_to:
            assert not re.search("platform_dependent|default_backend|device_count|[CTG]PU", text), (
                path
            )


def test_files_are_short():
    for folder in (PACKAGE, ROOT / "tests", ROOT / "benchmarks"):
        for path in folder.rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path


def test_one_file_imports_chex():
    users = [p for p in PACKAGE.rglob("*.py") if "import chex" in p.read_text()]
    assert users == [SOURCE / "checks" / "check.py"]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_docstrings_say_the_same_of_the_same_option(function):
    """`python -m tools.docstrings --write` makes it so."""
    parameters = inspect.signature(function).parameters
    said = list(docstrings.entries(function))
    assert [entry.name for entry in said] == list(parameters)
    assert not [entry.name for entry in said if entry.text not in entry.variants]
    for name, option in options.OPTIONS.items():
        if name in parameters:
            assert parameters[name].default == option.default


def test_a_late_implementation_is_refused():
    """A program that is traced already would not have it."""
    with pytest.raises(RuntimeError, match="too late"):
        dispatch.implements(dispatch.PerPlatform.every[0], "cpu")(lambda *_: None)


def test_the_package_says_what_it_exports():
    public = {name for name in vars(jxent) if not name.startswith("_")}
    assert public - {"compat"} == {  # which is imported by its own name alone
        "losses",
        "assume_platform",
        "linear_logits",
        "SoftmaxStatistics",
        "Transposed",
        "sparse_softmax_statistics_with_logits",
        "linear_sparse_softmax_statistics",
        "softmax_kl_divergence_with_logits",
        "linear_softmax_kl_divergence",
        "sigmoid_cross_entropy_with_logits",
        "weighted_cross_entropy_with_logits",
        "softmax_cross_entropy_with_logits",
        "sparse_softmax_cross_entropy_with_logits",
        "sparse_sigmoid_cross_entropy_with_logits",
        "linear_sparse_softmax_cross_entropy",
        "linear_softmax_cross_entropy",
        "linear_sparse_sigmoid_cross_entropy",
        "linear_sigmoid_cross_entropy",
    }
    assert (PACKAGE / "py.typed").exists()
    assert jxent.__version__
