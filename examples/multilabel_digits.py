"""Which digits are in the picture? Multi-label training on real handwriting.

    python examples/multilabel_digits.py [--steps N] [--seed N] [--quick] [--output FOLDER]

Scenes are composed of scikit-learn's handwritten digits: one to three of them on a canvas, and the
label of a scene says which digits are present. Several may be, so the classes are independent and
the loss is sigmoid cross-entropy. A small convolutional network is trained with
`jxent.losses.sigmoid_cross_entropy` inside an ordinary optax step; three shorter runs then show
what `pos_weight` is for, and one what `focusing` does. Training and held-out scenes are made from
different digits.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from sklearn.model_selection import train_test_split
from tabulate import tabulate
from tqdm import tqdm

import jxent

mpl.use("agg")
import matplotlib.pyplot as plt

CLASSES = 10
SIDE = 8  # of a digit
CANVAS = 20
BATCH = 100
POS_WEIGHTS = (0.25, 1.0, 4.0)
FOCUSING = 2.0


@dataclass(frozen=True)
class Scenes:
    """Pictures `[n, CANVAS, CANVAS, 1]` in [0, 1], and which digits each shows, `[n, CLASSES]`."""

    pictures: np.ndarray
    labels: np.ndarray

    def batches(self, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Shuffled batches without end."""
        while True:
            order = rng.permutation(len(self.pictures))
            for start in range(0, len(order) - BATCH + 1, BATCH):
                batch = order[start : start + BATCH]
                yield self.pictures[batch], self.labels[batch]


def places(count: int, rng: np.random.Generator) -> np.ndarray:
    """Upper left corners of `count` digits that do not overlap."""
    while True:
        corners = rng.integers(CANVAS - SIDE + 1, size=(count, 2))
        apart = np.abs(corners[:, None] - corners).max(axis=-1)
        if np.all(apart[~np.eye(count, dtype=bool)] >= SIDE):
            return corners


def compose(digits: np.ndarray, names: np.ndarray, count: int, rng: np.random.Generator) -> Scenes:
    """`count` scenes of one to three digits that do not overlap."""
    pictures = np.zeros((count, CANVAS, CANVAS, 1), np.float32)
    labels = np.zeros((count, CLASSES), np.float32)
    for picture, label in zip(pictures, labels, strict=True):
        chosen = rng.integers(len(digits), size=rng.integers(1, 4))
        for which, (row, column) in zip(chosen, places(len(chosen), rng), strict=True):
            picture[row : row + SIDE, column : column + SIDE, 0] = digits[which]
            label[names[which]] = 1
    return Scenes(pictures, labels)


def make_scenes(training: int, held_out: int, seed: int) -> tuple[Scenes, Scenes]:
    """Training and held-out scenes, of different digits."""
    data = load_digits()
    images = (data.images / 16).astype(np.float32)
    parts = train_test_split(
        images, data.target, test_size=0.25, stratify=data.target, random_state=seed
    )
    rng = np.random.default_rng(seed)
    return (
        compose(parts[0], parts[2], training, rng),
        compose(parts[1], parts[3], held_out, rng),
    )


Params = dict[str, jax.Array]


def init(key: jax.Array) -> Params:
    """Three 3 x 3 convolutions and a linear layer."""
    params: Params = {}
    widths = (1, 32, 64, 64)
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        key, sub = jax.random.split(key)
        scale = (2 / (9 * n_in)) ** 0.5
        params[f"conv{i}"] = scale * jax.random.normal(sub, (3, 3, n_in, n_out))
        params[f"bias{i}"] = jnp.zeros(n_out)
    params["kernel"] = jax.random.normal(key, (widths[-1], CLASSES)) / widths[-1] ** 0.5
    params["bias"] = jnp.zeros(CLASSES)
    return params


def logits_of(params: Params, pictures: jax.Array) -> jax.Array:
    """One logit a digit: is it anywhere in the picture? Hence the *max* over all places."""
    x = pictures
    for i, stride in enumerate((1, 2, 1)):
        x = jax.lax.conv_general_dilated(
            x, params[f"conv{i}"], (stride, stride), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        x = jax.nn.relu(x + params[f"bias{i}"])
    return x.max(axis=(1, 2)) @ params["kernel"] + params["bias"]


Loss = Callable[[jax.Array, jax.Array], jax.Array]  # of (labels, logits)


def plain(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """The loss of the main run."""
    return jxent.losses.sigmoid_cross_entropy(labels, logits)


def weighted(pos_weight: float, labels: jax.Array, logits: jax.Array) -> jax.Array:
    """The same where a digit that is there counts `pos_weight` times."""
    return jxent.weighted_cross_entropy_with_logits(
        labels=labels, logits=logits, pos_weight=pos_weight
    ).mean()


def focused(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """The same where a digit that is told well counts little: focal loss."""
    return jxent.losses.sigmoid_cross_entropy(labels, logits, focusing=FOCUSING)


def train(loss: Loss, scenes: Scenes, steps: int, seed: int, title: str) -> Params:
    """The trained parameters."""
    optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, peak_value=6e-3))

    def loss_fn(params, pictures, labels):
        return loss(labels, logits_of(params, pictures))

    @jax.jit
    def step(params, state, pictures, labels):
        value, gradient = jax.value_and_grad(loss_fn)(params, pictures, labels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params = init(jax.random.key(seed))
    state = optimizer.init(params)
    batches = scenes.batches(np.random.default_rng(seed))
    with tqdm(range(steps), desc=title, unit="step") as progress:
        for _ in progress:
            params, state, value = step(params, state, *next(batches))
            progress.set_postfix(loss=f"{float(value):.4f}", refresh=False)
    return params


def predict(params: Params, scenes: Scenes) -> np.ndarray:
    """The probability of each digit in each scene."""
    chunks = np.array_split(scenes.pictures, max(1, len(scenes.pictures) // 500))
    forward = jax.jit(logits_of)
    return np.concatenate([np.asarray(jax.nn.sigmoid(forward(params, c))) for c in chunks])


def metrics(probabilities: np.ndarray, scenes: Scenes) -> dict[str, float]:
    """Mean average precision, and macro precision and recall at probability one half.

    A digit that is never predicted has no precision, and is left out of that mean.
    """
    precision, recall, f1, _ = precision_recall_fscore_support(
        scenes.labels, probabilities > 0.5, average="macro", zero_division=np.nan
    )
    return {
        "mean average precision": float(average_precision_score(scenes.labels, probabilities)),
        "precision": float(precision),
        "recall": float(recall),
        "F1": float(f1),
    }


def draw(path: Path, scenes: Scenes, probabilities: np.ndarray, trade: list[dict]) -> None:
    """One picture: scenes with predictions, and what `pos_weight` makes of precision and recall."""
    with plt.rc_context({"font.size": 12, "axes.titlesize": 12}):
        figure = plt.figure(figsize=(5.2, 7.5), layout="constrained")  # legible on a phone
        rows = figure.add_gridspec(2, 1, height_ratios=(1.3, 1))
        upper, lower = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
        upper.suptitle("Which digits are in the picture?")
        for i, axes in enumerate(upper.subplots(2, 3).flat):
            axes.imshow(scenes.pictures[i, :, :, 0], cmap="gray_r")
            truth, guess = np.flatnonzero(scenes.labels[i]), np.flatnonzero(probabilities[i] > 0.5)
            shown = [" ".join(map(str, digits)) or "none" for digits in (truth, guess)]
            wrong = {} if np.array_equal(truth, guess) else {"color": "#D55E00", "weight": "bold"}
            axes.set_xlabel(f"shows {shown[0]}\nfound {shown[1]}", **wrong)
            axes.set(xticks=[], yticks=[])
        panel = lower.subplots()
        at = range(len(trade))
        for name, meaning, color, line in (
            ("recall", "recall: of digits shown, found", "#0072B2", "o-"),
            ("precision", "precision: of digits found, shown", "#E69F00", "s--"),
        ):
            panel.plot(at, [r[name] for r in trade], line, color=color, lw=3, ms=8, label=meaning)
        panel.set_xticks(at, [f"{q:g}" for q in POS_WEIGHTS])
        panel.set(xlabel="pos_weight", title="What pos_weight trades")
        panel.margins(x=0.1, y=0.1)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
        lower.legend(loc="outside lower center")
        figure.savefig(path, dpi=160)
        plt.close(figure)


def positive(text: str) -> int:
    """An argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def seed_number(text: str) -> int:
    """An argument that seeds NumPy, scikit-learn and JAX alike."""
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
    parser.add_argument("--steps", type=positive, default=500, help="of the main run")
    parser.add_argument("--seed", type=seed_number, default=0, help="same seed, same numbers")
    parser.add_argument("--quick", action="store_true", help="40 steps on few scenes, to try it")
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
    """Trains, prints the table, writes the picture; returns the main run's metrics."""
    options = arguments(argv)
    start = time.perf_counter()
    training, held_out = make_scenes(
        *((2_000, 500) if options.quick else (20_000, 4_000)), options.seed
    )
    shorter = max(1, options.steps // 2)

    params = train(plain, training, options.steps, options.seed, "sigmoid_cross_entropy")
    probabilities = predict(params, held_out)
    rows = [metrics(probabilities, held_out)]
    others: dict[str, Loss] = {f"pos_weight {q:g}": partial(weighted, q) for q in POS_WEIGHTS}
    others[f"focusing {FOCUSING:g}"] = focused
    for name, loss in others.items():
        other = train(loss, training, shorter, options.seed, name)
        rows.append(metrics(predict(other, held_out), held_out))

    names = [f"sigmoid_cross_entropy, {options.steps} steps"]
    names += [f"{name}, {shorter} steps" for name in others]
    table = [{"run": name, **row} for name, row in zip(names, rows, strict=True)]
    print(tabulate(table, headers="keys", floatfmt=".3f"))
    picture = options.output / "multilabel_digits.png"
    draw(picture, held_out, probabilities, rows[1 : 1 + len(POS_WEIGHTS)])
    print(f"{picture} written, {time.perf_counter() - start:.0f} s in all")
    return rows[0]


if __name__ == "__main__":
    main()
