"""What docstrings say of each option: one table, checked against them and written into them.

python -m tools.docstrings            # prints the entries that differ from the table
python -m tools.docstrings --write    # rewrites them, each as the variant that is most like it
"""

import argparse
import difflib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jxent
from jxent import losses

WIDTH = 100
_SPLIT = (
    "Under `shard_map`, the mesh axis that the classes are split over, in parts of equal width; "
    "{} Gradients taken inside need shard_map's default `check_vma=True`."
)
_LABELS, _IDS = "labels are split like the logits.", "ids stay global."
_REDUCED = (
    " The reduction is over this chip's examples: for a mean over all of them take "
    "`Reduction.SUM` and divide by a `psum` of the count."
)
_WHOLE = " None: the classes are whole, or split by `jit` alone."
_NAMES = "Names the computation in profiles (`jax.named_scope`)."

# Of an argument: one of these, word for word.
OPTION_DOCS: dict[str, tuple[str, ...]] = {
    "label_smoothing": (
        "The share s, in [0, 1], by which labels move towards 1/2.",
        "The share s of the labels, in [0, 1], that is spread evenly over the C classes that are "
        "not at -inf.",
    ),
    "z_loss": ("The factor on logsumexp squared, which keeps logits from drifting; >= 0.",),
    "logit_softcap": (
        "A positive number c: the logits become c tanh(logits / c).",
        "A positive number c: the logits become c tanh(logits / c). A class at -inf stays ruled "
        "out.",
        "A positive number c: the logits become c tanh(logits / c), after the bias.",
        "A positive number c: the logits become c tanh(logits / c), after the bias. A class at "
        "-inf stays ruled out.",
    ),
    "focusing": (
        "A power g >= 0: each label's term is multiplied by (1 - p)^g, p the probability that is "
        "given to what the label says, so that well classified ones count little.",
        "A power g >= 0: the cross-entropy is multiplied by (1 - p)^g, p the probability of the "
        "label, so that well classified examples count little; z-loss is not. Not with "
        "`label_smoothing`.",
    ),
    "negative_focusing": (
        "Another power for the term of negative labels, 1 - z; None for that of `focusing`.",
    ),
    "pos_weight": (
        "The factor q on positive labels: a number, or an array that broadcasts to the logits, "
        "`[classes]` for one a class. Differentiable.",
        "The factor q on positive labels: a number, or an array that broadcasts to the logits, "
        "`[classes]` for one a class. Differentiable. A negative one is computed as the formula "
        "says.",
        "The factor q on positive labels: a number, or `[classes]` for one a class. "
        "Differentiable.",
    ),
    "weights": (
        "A number, or an array of one weight an example: `[*batch]` with each dimension 1 or "
        "equal to the losses', or that with a trailing 1. Where it is 0 the example takes no "
        "part. Differentiable.",
        "A number, or an array of the logits' rank with each dimension 1 or equal to theirs. "
        "Where it is 0 the element takes no part. Differentiable.",
        "A number, or an array of the losses' rank with each dimension 1 or equal to theirs; "
        "`[batch, 1]` for losses of shape `[batch]` too. Differentiable.",
    ),
    "axis": ("The axis of `logits` that holds the classes.",),
    "axis_name": tuple(
        _SPLIT.format(labels) + reduced + _WHOLE
        for labels in (_LABELS, _IDS)
        for reduced in ("", _REDUCED)
    ),
    "block_size": (
        "Examples per block. Smaller blocks hold fewer logits, larger ones make faster products. "
        "None takes 2^25 / classes, and at least features / 2: adding to the kernel's gradient "
        "passes over it once per block. Under automatic sharding the shapes seen are the global "
        "ones; pass it there.",
        "Examples per block. Smaller blocks hold fewer logits, larger ones make faster products. "
        "None takes 2^24 / classes, and at least features / 2: adding to the kernel's gradient "
        "passes over it once per block. Under automatic sharding the shapes seen are the global "
        "ones; pass it there.",
        "Rows per block. Smaller blocks hold less, larger ones make faster products.",
    ),
    "class_block_size": (
        "Classes per block, in place of examples. None, where `block_size` is None too, takes 4 a "
        "feature and at least 1024, if there are more classes than examples: each block then has "
        "its losses and its gradients at once, and the kernel's gradient is written once.",
        "Classes per block, in place of examples: after the losses each block has its gradients, a "
        "product more, but the kernel's gradient is written once. None, where `block_size` is None "
        "too, leaves it to shapes and platform.",
        "Classes per block, in place of examples: the kernel's gradient is written once. None, "
        "where `block_size` is None too, leaves it to shapes and platform.",
    ),
    "label_weights": (
        "A weight for each of several ids per example, with labels `[*batch, ids]`: the loss is "
        "that of dense labels with these weights, which need not sum to 1. A negative id is "
        "padding, one that appears twice adds up. Differentiable. Not with `focusing`.",
    ),
    "excluded": (
        "Lists `[*batch, ids]` of classes that take no part in that example, as at -inf: "
        "accidental hits, known positives. A negative id is padding, one that appears twice "
        "counts once, one that is too large makes its example NaN. The loss of an excluded "
        "label is inf.",
        "Lists `[*batch, ids]` of classes that take no part in that example, as at -inf. A "
        "negative id is padding, one that appears twice counts once, one that is too large "
        "makes its example NaN. The log-probability of an excluded label is -inf.",
    ),
    "reduction": (
        'A `Reduction`, its value, or `"mean"` or `"sum"`.',
        'A `Reduction`, its value, or `"mean"` or `"sum"`. `NONE` costs one product more in '
        "reverse mode.",
        'A `Reduction`, its value, or `"mean"` or `"sum"`. `NONE` computes each block once more '
        "in reverse mode.",
    ),
    "mask": (
        "Which examples take part, `[*batch]`; None for all. Where it is False the loss is exactly "
        "0 and has no derivative, whatever stands in the arrays.",
        "Which examples take part, `[*batch]`, or which elements, in the logits' shape; None for "
        "all. Where it is False the loss is exactly 0 and has no derivative, whatever stands in "
        "logits and labels.",
        "Which examples take part, `[*batch]`; None for all. Where it is False every field is "
        "exactly 0, `prediction` -1, and nothing has a derivative, whatever stands in the arrays.",
    ),
    "mean_over": (
        'What a mean counts. "elements": every class of every example, as TensorFlow does. '
        '"examples": every example, whose classes are summed; the last axis of the logits is that '
        "of the classes, and weights have one dimension of 1 there. A sum is over both.",
        'What a mean counts. "elements": every class of every example, as in '
        '`sigmoid_cross_entropy` of dense labels. "examples": every example, whose classes are '
        "summed. A sum is over both.",
    ),
    "teacher_logit_softcap": ("The same of the teacher's logits.",),
    "temperature": (
        "A positive number, which may be traced: divides the float32 logits, after the cap. "
        "Differentiable; NaN comes of one that is not positive.",
        "A positive number, which may be traced: divides both logits in float32, after the caps. "
        "Differentiable; NaN comes of one that is not positive. The loss is not multiplied by its "
        "square.",
    ),
    "has_aux": (
        "True returns `(loss, SoftmaxAux)`: beside the loss its parts and the accuracy, as "
        "`jax.value_and_grad(loss_fn, has_aux=True)` takes them. Not with `Reduction.NONE`.",
        "True returns `(loss, sums)`: of each array in `more` the sum over the rows, each times "
        "its weight, in float32 at least; constants to differentiation. Not with `Reduction.NONE`.",
    ),
    "name": (_NAMES,),
    "scope": (_NAMES,),
}


class Entry(NamedTuple):
    """What a function's docstring says of one argument."""

    function: Callable[..., Any]
    name: str
    text: str

    @property
    def variants(self) -> tuple[str, ...]:
        """What the table allows; anything for an argument that is not in it."""
        return OPTION_DOCS.get(self.name, (self.text,))


def public_functions() -> list[Callable[..., Any]]:
    """Those of `jxent` and `jxent.losses`."""
    return [
        f
        for module in (jxent, losses)
        for name, f in vars(module).items()
        if inspect.isfunction(f) and not name.startswith("_")
    ]


def entries(function: Callable[..., Any]) -> Iterator[Entry]:
    """Each entry under "Args:"."""
    doc = inspect.getdoc(function) or ""
    listed = doc[doc.index("Args:\n") + 6 : doc.index("\n\nReturns:")]
    for entry in re.split(r"\n(?=  \w)", listed):
        name, text = entry.strip().split(":", 1)
        yield Entry(function, name, " ".join(text.split()))


def rewritten(source: str, entry: Entry, text: str) -> str:
    """The source of a module with another text of the entry."""
    start = source.index(f"def {entry.function.__name__}(")
    start = source.index("    Args:\n", start)
    pattern = re.compile(rf" {{6}}{entry.name}:.*?(?=\n {{6}}\w|\n\n)", re.DOTALL)
    found = pattern.search(source, start)
    assert found is not None
    filled = textwrap.fill(
        f"{entry.name}: {text}", WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 8,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return source[: found.start()] + filled + source[found.end() :]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite what differs")
    write = parser.parse_args().write
    different = [e for f in public_functions() for e in entries(f) if e.text not in e.variants]
    for entry in different:
        print(f"{entry.function.__module__}.{entry.function.__name__}: {entry.name}")
        if write:
            path = Path(inspect.getfile(entry.function))
            (text,) = difflib.get_close_matches(entry.text, entry.variants, 1, cutoff=0)
            source = rewritten(path.read_text(encoding="utf-8"), entry, text)
            path.write_text(source, encoding="utf-8")
    raise SystemExit(bool(different) and not write)


if __name__ == "__main__":
    main()
