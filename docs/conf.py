"""The site.

python -m pip install -e '.[docs]' && python -m sphinx -W -b html docs docs/_build
"""

import os
import sys
from importlib.metadata import version as _version
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
# Pages run on any machine with the same output, in processes that inherit this.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MATPLOTLIBRC"] = str(HERE / "matplotlibrc")

project = "jxent"
author = "The jxent developers"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx's name
release = version = _version("jxent")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax from its own package, not from a network
    "sphinx_copybutton",
    "sphinx_design",
    "reference",
    "measured",
]
exclude_patterns = ["_build", "_ext", "_templates", "measured/_*", "jupyter_execute"]
templates_path = ["_templates"]
html_theme = "sphinx_book_theme"
html_title = "jxent"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the search stands in the sidebar
}
html_show_sourcelink = False
html_copy_source = False

# Each page's code runs when the site is built, and a page that fails stops it. While writing,
# `-D nb_execution_mode=cache` runs only what has changed.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds a cell
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
default_role = "code"  # docstrings are written with single backticks
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 60
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app: Sphinx) -> None:
    """Two pages at a time, where the command does not say `-j`: most wait for a compiler."""
    app.parallel = max(app.parallel, 2)
    # It has files to copy, and nothing that is read.
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True
