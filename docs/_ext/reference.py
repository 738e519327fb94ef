"""The reference: docstrings' formulas as formulas, signatures as they are written."""

import ast
import inspect
import pkgutil
import re
import textwrap
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import jxent

DISPLAYED = re.compile(r"^( *)\$\$(.+?)\$\$(?=\n|$)", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<![\\$`])\$([^$`]+)\$(?![$])")


def directive(found: re.Match) -> str:
    """One formula a line: beside each other they are wider than the page."""
    indent = found[1] + "   "
    parts = [textwrap.dedent(part).strip() for part in found[2].split(r"\qquad")]
    return (
        f"{found[1]}.. math::\n\n"
        + "\n\n".join(textwrap.indent(part, indent) for part in parts)
        + "\n"
    )


def formulas(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list) -> None:
    r"""`$$...$$` and `$...$`, which read well in a terminal, to directives and roles."""
    text = "\n".join(lines)
    text = re.sub(DISPLAYED, directive, text)
    lines[:] = INLINE.sub(r":math:`\1`", text).split("\n")


def signature(
    _app: Sphinx, what: str, _name: str, obj: Any, _options: Any, _text: str | None, _return: str
) -> tuple[str, str] | None:
    """A function's arguments in the source's words: `Float[ArrayLike, "*batch classes"]`.

    At run time that is a union of ten classes.
    """
    if what != "function":
        return None
    function = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))).body[0]
    assert isinstance(function, ast.FunctionDef)
    returns = ast.unparse(function.returns) if function.returns else ""
    return f"({ast.unparse(function.args)})", returns


def one_signature(_app: Sphinx) -> None:
    """Without overloads, of which autodoc would show each: they are one flag's two types."""
    for module in pkgutil.walk_packages(jxent.__path__, "jxent."):
        analyzer = ModuleAnalyzer.for_module(module.name)
        analyzer.analyze()
        analyzer.overloads.clear()


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects them to autodoc."""
    app.connect("builder-inited", one_signature)
    app.connect("autodoc-process-docstring", formulas, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
