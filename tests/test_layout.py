"""The rooms of the package, and which way their imports point."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import jxent
from jxent import _dispatch, _options, losses

PACKAGE = Path(jxent.__file__).parent
PUBLIC = [
    f
    for room in (jxent, losses)
    for name, f in vars(room).items()
    if inspect.isfunction(f) and not name.startswith("_")
]
LEVELS = (  # a room imports from lower levels only
    ("_arithmetic", "_dispatch", "_serialization", "_versions"),
    ("_kernel", "_assumed_platform"),
    ("_blocks",),
    ("_softcap",),
    ("_options",),
    ("_checks",),
    ("_check_labels",),
    ("_mesh",),
    ("_logsumexp", "_loss", "_terms", "_focal"),
    ("_statistics",),
    ("_label_lists",),
    ("_sigmoid", "_softmax", "_operands"),
    ("_divergence",),
    ("_projection", "_prediction", "_teacher"),
    ("_total", "_predicted_projection"),
    ("_blockwise",),
    ("_check_rows",),
    ("platforms",),
    ("_reduction",),
    ("_call",),
    (
        "_with_logits",
        "_linear",
        "_softmax_statistics",
        "_kl_divergence",
        "_linear_logits",
        "losses",
    ),
    ("__init__",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "jxent":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("jxent."):
            found.add(node.module.split(".")[1])
    return found


def test_imports_point_one_way():
    files = list(PACKAGE.rglob("*.py"))
    assert {room_of(path) for path in files} == set(LEVEL)
    for path in files:
        room = room_of(path)
        others = imported(path) - ({room} if path.parent != PACKAGE else set())
        assert all(LEVEL[other] < LEVEL[room] for other in others), path


def test_platforms_have_their_room():
    """Outside it nothing asks where it runs."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if room_of(path) not in ("platforms", "_dispatch", "_assumed_platform"):
            assert not re.search("platform_dependent|default_backend|device_count|[CTG]PU", text), (
                path
            )
        assert len(text.splitlines()) <= 400, path


def test_one_room_imports_chex():
    users = [p.stem for p in PACKAGE.rglob("*.py") if "import chex" in p.read_text()]
    assert users == ["_checks"]


def entries(function) -> dict[str, str]:
    """What a docstring says of each argument."""
    doc = inspect.getdoc(function) or ""
    listed = doc[doc.index("Args:\n") + 6 : doc.index("\n\nReturns:")]
    pairs = (entry.strip().split(":", 1) for entry in re.split(r"\n(?=  \w)", listed))
    return {name: " ".join(text.split()) for name, text in pairs}


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_docstrings_say_the_same_of_the_same_option(function):
    parameters = inspect.signature(function).parameters
    said = entries(function)
    assert list(said) == list(parameters)
    for name, text in said.items():
        if name in _options.WORDS:
            assert text in _options.WORDS[name], name
    for name, option in _options.OPTIONS.items():
        if name in parameters:
            assert parameters[name].default == option.default


def test_a_way_that_comes_too_late_is_refused():
    """A program that is traced already would not have it."""
    with pytest.raises(RuntimeError, match="too late"):
        _dispatch.way(_dispatch.PerPlatform.every[0], "cpu")(lambda *_: None)


def test_the_package_says_what_it_exports():
    public = {name for name in vars(jxent) if not name.startswith("_")} - {"platforms"}
    assert public == {
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
