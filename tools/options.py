"""The table of functions and options in the docs: `python -m tools.options --write`.

An option that a function does not have says why, by the letter of a sentence on the page.
"""

import argparse
import inspect
import re
from pathlib import Path

from tabulate import tabulate

from tools import docstrings

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "options.md"
OPTIONS = (
    "weights", "mask", "reduction", "mean_over", "label_smoothing", "label_weights", "excluded",
    "z_loss", "logit_softcap", "teacher_logit_softcap", "pos_weight", "focusing",
    "negative_focusing",
    "temperature", "has_aux", "axis", "bias", "block_size", "class_block_size", "axis_name",
)  # fmt: skip
# The first pattern of the function's name that matches has the reason.
WHY = {
    "weights": {".*": "a"},
    "mask": {"linear_logits|losses.*": "a"},
    "reduction": {".*": "a"},
    "mean_over": {"linear_logits|losses.(blockwise|compute)": "l", "losses.*softmax.*": "d",
                  ".*": "a"},
    "label_smoothing": {"linear_logits|losses.(blockwise|compute)": "l", ".*": "b"},
    "label_weights": {"linear_logits|losses.(blockwise|compute)": "l", ".*(kl|statistics)": "b",
                      ".*": "e"},
    "excluded": {"linear_logits|losses.(blockwise|compute)": "l", ".*(sigmoid|weighted)": "d",
                 ".*": "n"},
    "z_loss": {"linear_logits|losses.(blockwise|compute)": "l", ".*(kl|statistics)": "b",
               ".*": "c"},
    "logit_softcap": {".*": "l"},
    "teacher_logit_softcap": {".*": "m"},
    "pos_weight": {"linear_logits|losses.(blockwise|compute)": "l", ".*(kl|statistics)": "b",
                   ".*": "d"},
    "focusing": {"linear_logits|losses.(blockwise|compute)": "l", ".*(kl|statistics)": "b",
                 ".*": "f"},
    "negative_focusing": {"linear_logits|losses.(blockwise|compute)": "l", ".*(kl|statistics)": "b",
                          ".*": "d"},
    "temperature": {"linear_logits|losses.(blockwise|compute)": "l", ".*": "g"},
    "has_aux": {"losses.compute": "l", "losses.*sigmoid": "c", "losses.*kl": "b", ".*": "a"},
    "axis": {"losses.(blockwise|compute)": "l", ".*": "h"},
    "bias": {"losses.blockwise": "l", ".*": "i"},
    "block_size": {"linear_logits": "l", ".*": "i"},
    "class_block_size": {"(losses.)?linear_softmax.*": "j", "linear_logits|losses.blockwise": "l",
                         ".*": "i"},
    "axis_name": {"linear_logits|losses.(blockwise|compute)": "l", ".*": "k"},
}  # fmt: skip


def functions() -> dict[str, set[str]]:
    """Parameters by the functions' public names."""
    found = {}
    for function in docstrings.public_functions():
        reduced = function.__module__ == "jxent.losses"
        found["losses." * reduced + function.__name__] = {*inspect.signature(function).parameters}
    del found["assume_platform"]
    return found


def table() -> str:
    """Rows of functions, columns of options."""
    rows = []
    for name, parameters in functions().items():
        row = [f"`{name}`"]
        for option in OPTIONS:
            reasons = (why for pattern, why in WHY[option].items() if re.match(pattern, name))
            row.append("x" if option in parameters else next(reasons))
        rows.append(row)
    return tabulate(rows, ["", *(f"`{option}`" for option in OPTIONS)], "github")


def page() -> str:
    """The page with the table as the signatures have it."""
    text = PAGE.read_text()
    return re.sub(r"(?m)^@@TABLE@@$|(?:^\|  [^\n]*\n)(?:^\|[^\n]*\n?)+", table() + "\n", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    if parser.parse_args().write:
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
