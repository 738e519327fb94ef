"""Which names does a function use? Multi-label training over thousands of classes.

    python examples/extreme_multilabel.py [--steps N] [--seed N] [--quick] [--output FOLDER]

The examples are the functions of Python's own standard library. The input is what a reader is
told: the words of a function's name, of its class's name, of docstring and comments. The labels
are the identifiers that its code mentions: some six out of many thousands, most of them rare. An
embedding bag and a linear projection are trained with
`jxent.losses.linear_sparse_sigmoid_cross_entropy`, which takes the ids of the labels and never
holds the logits or dense labels of more than a block of examples. A table says what that saves.
"""

import argparse
import ast
import builtins
import io
import os
import re
import sysconfig
import time
import tokenize
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from tabulate import tabulate
from tqdm import tqdm

import jxent

mpl.use("agg")
import matplotlib.pyplot as plt

BUCKETS = 2**16  # of the hashed words
MAX_WORDS = 64  # of an example; later ones are dropped
MAX_LABELS = 32  # of an example in training; it is judged by all
BATCH = 256
HELD_OUT = 0.1
WORD_DROPOUT = 0.3
CUTS = (1, 3, 5)  # the k of precision@k

MEMORY_BATCH = 512
MEMORY_FEATURES = 64
MEMORY_CLASSES = (2**14, 2**16, 2**18, 2**20)

SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages"}
EVERYWHERE = {*dir(builtins), "self", "cls"}  # names that say nothing
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
IDENTIFIER = re.compile(r"\w+")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Example:
    """A function: the words of its input, and the names that it uses."""

    file: str
    name: str
    words: tuple[str, ...]
    labels: tuple[str, ...]


def words_of(text: str) -> list[str]:
    """The distinct words, split at case and underscore, in lower case."""
    return list(dict.fromkeys(word.lower() for word in WORD.findall(text)))


def outermost_functions(node: ast.AST, scope: str = "") -> Iterator[tuple[str, FunctionNode]]:
    """The functions not within a function, each with the names of its classes before it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FunctionNode):
            yield scope + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from outermost_functions(child, f"{scope}{child.name}.")
        elif not isinstance(child, ast.expr):
            yield from outermost_functions(child, scope)


def comments_of(lines: Sequence[str]) -> list[str]:
    """The comments on these lines of source."""
    if not any("#" in line for line in lines):
        return []
    tokens = tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


def names_in(function: FunctionNode) -> list[str]:
    """The distinct names and attributes mentioned that are not a parameter's, in order."""
    mentioned, parameters = [], set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            mentioned.append(node.id)
        elif isinstance(node, ast.Attribute):
            mentioned.append(node.attr)
        elif isinstance(node, ast.arg):
            parameters.add(node.arg)
    return [name for name in dict.fromkeys(mentioned) if name not in parameters]


def examples_in(source: str, file: str) -> list[Example]:
    """The functions of one file that use any name which their input does not give away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the code that is read
        tree = ast.parse(source)
    lines = source.split("\n")
    examples = []
    for name, node in outermost_functions(tree):
        comments = comments_of(lines[node.lineno - 1 : node.end_lineno])
        text = "\n".join([name, ast.get_docstring(node) or "", *comments])
        words = words_of(text)
        given = {*words, *(found.lower() for found in IDENTIFIER.findall(text))}
        labels = [
            used for used in names_in(node) if used not in EVERYWHERE and used.lower() not in given
        ]
        if labels:
            examples.append(Example(file, name, tuple(words), tuple(labels)))
    return examples


def source_files(root: Path) -> list[Path]:
    """The Python files below a folder, in a fixed order, without tests and installed packages."""
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(set(inner) - SKIPPED_FOLDERS)
        found += [Path(folder, file) for file in sorted(files) if file.endswith(".py")]
    return found


def read_examples(root: Path, stride: int = 1) -> list[Example]:
    """The distinct examples of every `stride`-th file; files that cannot be read are skipped."""
    examples: dict[tuple, Example] = {}
    files = source_files(root)[::stride]
    for path in tqdm(files, desc="reading the standard library", unit="file"):
        try:
            with tokenize.open(path) as lines:
                found = examples_in(lines.read(), path.relative_to(root).as_posix())
        except (SyntaxError, tokenize.TokenError, ValueError, OSError):
            continue
        for example in found:  # some functions stand in many files: once is enough
            examples.setdefault((example.words, example.labels), example)
    return list(examples.values())


def padded(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Lists of ids as an array `[n, width]`: cut there, and filled up with -1."""
    ids = np.full((len(rows), width), -1, np.int32)
    for row, given in zip(ids, rows, strict=True):
        row[: len(given)] = given[:width]
    return ids


def bucket(word: str) -> int:
    """The embedding of a word, the same in every process."""
    return zlib.crc32(word.encode()) % BUCKETS


@dataclass(frozen=True)
class Data:
    """Ids of words `[n, MAX_WORDS]` and of labels `[n, MAX_LABELS]`, and the labels' names."""

    examples: list[Example]
    words: np.ndarray
    labels: np.ndarray
    names: list[str]


def encode(examples: list[Example]) -> Data:
    """The examples as arrays."""
    names = sorted({name for example in examples for name in example.labels})
    ids = {name: i for i, name in enumerate(names)}
    words = [list(dict.fromkeys(map(bucket, example.words))) for example in examples]
    labels = [[ids[name] for name in example.labels] for example in examples]
    return Data(examples, padded(words, MAX_WORDS), padded(labels, MAX_LABELS), names)


Split = tuple[np.ndarray, np.ndarray]  # which examples train, which are held out


def random_split(data: Data, rng: np.random.Generator) -> Split:
    """Functions at random: others of the same file are in training."""
    order = rng.permutation(len(data.examples))
    count = max(1, round(HELD_OUT * len(order)))
    return np.sort(order[count:]), np.sort(order[:count])


def file_split(data: Data, rng: np.random.Generator) -> Split:
    """All functions of files at random: the names a file makes up for itself are not known."""
    files = sorted({example.file for example in data.examples})
    count = max(1, round(HELD_OUT * len(files)))
    chosen = {files[i] for i in rng.permutation(len(files))[:count]}
    held_out = np.array([example.file in chosen for example in data.examples])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def label_counts(data: Data, which: np.ndarray) -> np.ndarray:
    """How many of these examples have each label."""
    labels = data.labels[which]
    return np.bincount(labels[labels >= 0], minlength=len(data.names))


Params = dict[str, jax.Array]


def init(key: jax.Array, features: int, counts: np.ndarray, total: int) -> Params:
    """Random embeddings, and a projection that starts at the log prior odds of each label."""
    prior = (counts + 0.5) / (total + 1)
    return {
        "embeddings": 0.1 * jax.random.normal(key, (BUCKETS, features)),
        "kernel": jnp.zeros((features, len(counts))),
        "bias": jnp.asarray(np.log(prior / (1 - prior)), jnp.float32),
    }


def bag(embeddings: jax.Array, words: jax.Array) -> jax.Array:
    """The words' embeddings `[batch, features]`: their sum over the root of their number."""
    there = (words >= 0).astype(embeddings.dtype)
    vectors = embeddings[jnp.maximum(words, 0)] * there[..., None]
    return vectors.sum(axis=1) / jnp.sqrt(jnp.maximum(there.sum(axis=1, keepdims=True), 1))


def loss_of(params: Params, words: jax.Array, labels: jax.Array) -> jax.Array:
    """Sigmoid cross-entropy of all classes, from the ids of those that are there."""
    return jxent.losses.linear_sparse_sigmoid_cross_entropy(
        labels,
        bag(params["embeddings"], words),
        params["kernel"],
        bias=params["bias"],
        mean_over="examples",
    )


def batches(
    data: Data, which: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shuffled batches without end, some of the words left out."""
    size = min(BATCH, len(which))
    while True:
        order = rng.permutation(which)
        for start in range(0, len(order) - size + 1, size):
            batch = order[start : start + size]
            dropped = rng.random((size, MAX_WORDS)) < WORD_DROPOUT
            yield np.where(dropped, np.int32(-1), data.words[batch]), data.labels[batch]


def train(
    data: Data, which: np.ndarray, features: int, steps: int, seed: int, title: str
) -> tuple[Params, list[float]]:
    """The trained parameters, and the loss of every step."""
    optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, peak_value=1e-2))

    @jax.jit
    def step(params, state, words, labels):
        value, gradient = jax.value_and_grad(loss_of)(params, words, labels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params = init(jax.random.key(seed), features, label_counts(data, which), len(which))
    state = optimizer.init(params)
    curve = []
    source = batches(data, which, np.random.default_rng(seed))
    with tqdm(range(steps), desc=title, unit="step") as progress:
        for _ in progress:
            params, state, value = step(params, state, *next(source))
            curve.append(float(value))
            progress.set_postfix(loss=f"{curve[-1]:.2f}", refresh=False)
    return params, curve


def top_labels(params: Params, data: Data, which: np.ndarray) -> np.ndarray:
    """The ids of the most probable labels `[n, max(CUTS)]`, the best first."""

    @jax.jit
    def top(params, words):
        logits = bag(params["embeddings"], words) @ params["kernel"] + params["bias"][None]
        return jax.lax.top_k(logits, max(CUTS))[1]

    chunks = np.array_split(data.words[which], -(-len(which) // BATCH))
    return np.concatenate([np.asarray(top(params, words)) for words in chunks])


def precisions(data: Data, which: np.ndarray, predicted: np.ndarray) -> list[float]:
    """Precision@k: the share of the first k predictions that the function does use."""
    right = np.array(
        [
            [data.names[i] in data.examples[example].labels for i in row]
            for example, row in zip(which, predicted, strict=True)
        ]
    )
    return [float(right[:, :k].mean()) for k in CUTS]


@dataclass(frozen=True)
class Run:
    """What came of one split."""

    title: str
    held_out: np.ndarray
    predicted: np.ndarray
    curve: list[float]
    model: list[float]
    baseline: list[float]


def run(data: Data, title: str, split: Split, features: int, steps: int, seed: int) -> Run:
    """Trains on one part and judges by the other, beside always the most frequent labels."""
    training, held_out = split
    params, curve = train(data, training, features, steps, seed, title)
    predicted = top_labels(params, data, held_out)
    popular = np.argsort(-label_counts(data, training), kind="stable")[: max(CUTS)]
    return Run(
        title,
        held_out,
        predicted,
        curve,
        precisions(data, held_out, predicted),
        precisions(data, held_out, np.tile(popular, (len(held_out), 1))),
    )


def fused(labels: jax.Array, inputs: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The loss from ids of the labels."""
    return jxent.losses.linear_sparse_sigmoid_cross_entropy(
        labels, inputs, kernel, bias=bias, mean_over="examples"
    )


def dense(labels: jax.Array, inputs: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The same loss the usual way, from an array of a label for each example and class."""
    logits = inputs @ kernel + bias[None]
    return optax.sigmoid_binary_cross_entropy(logits, labels).sum(axis=-1).mean()


def temporary_bytes(
    loss: Callable[..., jax.Array], labels: jax.ShapeDtypeStruct, classes: int
) -> int:
    """What the compiler sets aside for value and gradients; nothing is run."""
    shapes = ((MEMORY_BATCH, MEMORY_FEATURES), (MEMORY_FEATURES, classes), (classes,))
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(jax.value_and_grad(loss, (1, 2, 3))).lower(labels, *operands).compile()
    analysis: Any = compiled.memory_analysis()
    return analysis.temp_size_in_bytes


def memory(classes: int) -> dict[str, int]:
    """Bytes that both ways take beside the projection and its gradients."""
    ids = jax.ShapeDtypeStruct((MEMORY_BATCH, MAX_LABELS), jnp.int32)
    array = jax.ShapeDtypeStruct((MEMORY_BATCH, classes), jnp.float32)
    return {
        "classes": classes,
        "fused": temporary_bytes(fused, ids, classes),
        "its label ids": ids.size * ids.dtype.itemsize,
        "dense": temporary_bytes(dense, array, classes),
        "its label array": array.size * array.dtype.itemsize,
    }


def show_metrics(runs: list[Run]) -> None:
    """The table of precisions."""
    rows = [
        [run.title, len(run.held_out), who, *values]
        for run in runs
        for who, values in (("trained", run.model), ("most frequent", run.baseline))
    ]
    headers = ["held out", "functions", "prediction", *(f"precision@{k}" for k in CUTS)]
    print(tabulate(rows, headers, floatfmt=".3f"), end="\n\n")


def show_memory(table: list[dict[str, int]]) -> None:
    """The table of memory."""
    rows = [
        {name: f"{n:,}" if name == "classes" else f"{n / 2**20:,.1f}" for name, n in row.items()}
        for row in table
    ]
    print(f"Temporaries and labels, MiB, {MEMORY_BATCH} examples of {MEMORY_FEATURES} features:")
    print(tabulate(rows, headers="keys", stralign="right", disable_numparse=True), end="\n\n")


def show_predictions(data: Data, run: Run, count: int, rng: np.random.Generator) -> None:
    """What some held-out functions use, as predicted and in truth."""
    rows = []
    for i in np.sort(rng.permutation(len(run.held_out))[:count]):
        example = data.examples[run.held_out[i]]
        predicted = [data.names[label] for label in run.predicted[i]]
        first = sorted(example.labels, key=lambda name: name not in predicted)[:7]
        rows.append(
            {
                "function": example.name,
                f"predicted, * is right ({run.title})": " ".join(
                    f"*{name}" if name in example.labels else name for name in predicted
                ),
                "used": " ".join(first) + (" ..." if len(example.labels) > len(first) else ""),
            }
        )
    print(tabulate(rows, headers="keys", maxcolwidths=[28, 40, 40]), end="\n\n")


def draw(path: Path, runs: list[Run], table: list[dict[str, int]]) -> None:
    """One picture: precision beside the baseline's, the loss curves, memory over classes."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    places = np.arange(len(CUTS))
    for i, run in enumerate(runs):
        bars = left.bar(places + 0.4 * i - 0.2, run.model, 0.36, color=f"C{i}", label=run.title)
        left.bar_label(bars, fmt="%.2f", fontsize=8)
        left.hlines(
            run.baseline, places + 0.4 * i - 0.38, places + 0.4 * i - 0.02, "black", lw=2,
            label=None if i else "most frequent labels",
        )  # fmt: skip
        middle.plot(run.curve, color=f"C{i}", label=run.title)
    left.set_xticks(places, [f"precision@{k}" for k in CUTS])
    left.set(ylabel="share that is right", title="predicted names")
    middle.set(xlabel="step", ylabel="loss, nats per function", title="training")
    classes = [row["classes"] for row in table]
    for name, style in (("dense", "o-"), ("its label array", "o--"), ("fused", "s-")):
        label = "dense labels" if name == "its label array" else f"{name} loss, temporaries"
        color = "C3" if name == "fused" else "0.4"
        right.plot(classes, [row[name] / 2**20 for row in table], style, color=color, label=label)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set(xlabel="classes", ylabel="MiB", title=f"memory, {MEMORY_BATCH} examples")
    for axes in (left, middle, right):
        axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def positive(text: str) -> int:
    """An argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def seed_number(text: str) -> int:
    """An argument that seeds NumPy and JAX alike."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must be in [0, 2**32), got {value}")
    return value


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=positive, default=500, help="of each of the two runs")
    parser.add_argument("--seed", type=seed_number, default=0, help="same seed, same numbers")
    parser.add_argument("--quick", action="store_true", help="40 steps on few files, to try it")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the picture")
    options = parser.parse_args(argv)
    if options.quick:
        options.steps = min(options.steps, 40)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / ".writable").touch()
        (options.output / ".writable").unlink()
    except OSError as error:
        parser.error(f"argument --output: cannot write to {options.output}: {error.strerror}")
    return options


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains on both splits, prints the tables, writes the picture; returns the precisions."""
    options = arguments(argv)
    start = time.perf_counter()
    stride, features, sizes = (12, 16, 2) if options.quick else (1, 64, len(MEMORY_CLASSES))
    root = Path(sysconfig.get_paths()["stdlib"])
    examples = read_examples(root, stride)
    if len({example.file for example in examples}) < 2:
        raise SystemExit(f"needs the sources of Python's standard library, not found in {root}")
    data = encode(examples)
    labels = sum(len(example.labels) for example in examples)
    print(
        f"{len(examples):,} functions, {len(data.names):,} distinct labels,"
        f" {labels / len(examples):.1f} a function"
    )

    rng = np.random.default_rng(options.seed)
    splits = {"functions": random_split(data, rng), "files": file_split(data, rng)}
    runs = [
        run(data, f"held-out {title}", split, features, options.steps, options.seed)
        for title, split in splits.items()
    ]
    table = [memory(n) for n in tqdm(MEMORY_CLASSES[:sizes], desc="compiling", unit="size")]

    print()
    for each in runs:
        show_predictions(data, each, 4, rng)
    show_metrics(runs)
    show_memory(table)
    picture = options.output / "extreme_multilabel.png"
    draw(picture, runs, table)
    print(f"{picture} written, {time.perf_counter() - start:.0f} s in all")
    return {
        f"{each.title}, {who} @{k}": value
        for each in runs
        for who, values in (("trained", each.model), ("most frequent", each.baseline))
        for k, value in zip(CUTS, values, strict=True)
    }


if __name__ == "__main__":
    main()
