"""What a user's type checker sees: pyright in strict mode, over a program with every function."""

import ast
import inspect
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import jxent
from jxent import losses
from jxent.compat import optax

PROGRAM = Path(__file__).with_name("typed_calls.py")
ROOT = Path(__file__).parents[2]


def test_the_program_calls_every_function():
    called = {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(PROGRAM.read_text()))
        if isinstance(node, ast.Call)
    }
    modules = {"jxent": jxent, "losses": losses, "optax": optax}
    public = {
        f"{name}.{function}"
        for name, module in modules.items()
        for function in module.__all__
        if inspect.isfunction(getattr(module, function))
    }
    assert public <= called


@pytest.mark.skipif(find_spec("basedpyright") is None, reason="of the extra `dev`")
def test_pyright_knows_every_type(tmp_path):
    settings = {
        "include": [str(PROGRAM)], "extraPaths": [str(ROOT)], "typeCheckingMode": "strict",
        "reportMissingTypeStubs": False,
    }  # fmt: skip
    config = tmp_path / "pyrightconfig.json"
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "-p", str(config)]
    found = subprocess.run(
        [*command, "--pythonpath", sys.executable], capture_output=True, text=True, check=False
    )
    report = json.loads(found.stdout)
    messages = [f"{d['range']['start']['line'] + 1}: {d['message']}"
                for d in report["generalDiagnostics"]]  # fmt: skip
    assert report["summary"]["filesAnalyzed"] == 1
    assert not messages
