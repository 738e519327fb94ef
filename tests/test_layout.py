"""The rooms of the package, and which way their imports point."""

import ast
from pathlib import Path

import jxent

PACKAGE = Path(jxent.__file__).parent
LEVELS = {  # a room imports from lower levels only
    "_widen": 0,
    "_softcap": 0,
    "_attempt": -1,
    "_explicit": -1,
    "_classes": 0,
    "_normalizer": 0.5,
    "_derivative": 0,
    "_checks": 1,
    "_label": 1,
    "_blocks": 1,
    "_sigmoid": 2,
    "_softmax": 2,
    "_linear": 3,
    "losses": 4,
    "__init__": 5,
}


def imported(room: Path) -> set[str]:
    """The rooms that a room imports."""
    found = set()
    for node in ast.walk(ast.parse(room.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "jxent":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jxent."):
            found.add(node.module.split(".")[1])
    return found


def test_imports_point_one_way():
    rooms = {path.stem: path for path in PACKAGE.glob("*.py")}
    assert set(rooms) == set(LEVELS)
    for name, path in rooms.items():
        assert all(LEVELS[other] < LEVELS[name] for other in imported(path)), name


def test_one_room_imports_chex():
    users = [p.stem for p in PACKAGE.rglob("*.py") if "import chex" in p.read_text()]
    assert users == ["_checks"]


def test_the_package_says_what_it_exports():
    public = {name for name in vars(jxent) if not name.startswith("_")}
    assert public == {
        "losses",
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
