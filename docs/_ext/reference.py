"""The reference: docstrings' formulas as formulas, signatures as they are written."""

import ast
import inspect
import re
import textwrap
from typing import Any

from sphinx.application import Sphinx

INLINE = re.compile(r"(?<![\\$`])\$([^$`]+)\$(?![$])")


def formulas(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list) -> None:
    r"""`$$...$$` and `$...$`, which read well in a terminal, to directives and roles."""
    text = "\n".join(lines)
    text = re.sub(
        r"^( *)\$\$(.+?)\$\$(?=\n|$)",
        lambda found: (
            f"{found[1]}.. math::\n\n"
            + textwrap.indent(textwrap.dedent(found[2].strip()), found[1] + "   ")
            + "\n"
        ),
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
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


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects both to autodoc."""
    app.connect("autodoc-process-docstring", formulas, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
