"""A language model of Python's own source, trained without ever making the logits.

    python examples/language_model.py [--steps N] [--seed N] [--vocabulary N] [--quick]
                                      [--save-every N] [--fresh] [--output FOLDER]

The text is the standard library of the Python that runs this. A byte-level byte-pair tokenizer is
trained on the spot, then a small causal transformer (flax.nnx, optax) with
`jxent.losses.linear_sparse_softmax_cross_entropy`: the output projection and its loss at once. Some
files are held out; how well they are predicted is told in bits per byte, which does not depend on
the tokenizer. Finally the train step is compiled, not run, for vocabularies up to 256k, with this
loss and with logits, to compare the memory it needs.

The run is saved every so many steps. Killed and started again it continues from there, and ends
with the same numbers: batches and learning rate are functions of the step's number alone.
"""

import argparse
import hashlib
import json
import logging
import math
import shutil
import sys
import sysconfig
import time
import tokenize
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from tabulate import tabulate
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm

import jxent

mpl.use("agg")
import matplotlib.pyplot as plt

HEAD_DTYPE = jnp.bfloat16  # of the output projection's products; its weights are float32
Z_LOSS = 1e-4
PADDING = -1  # the label where a piece of text is shorter than the others
NOT_TEXT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}  # folders left out
HELD_OUT = 0.05  # of the files
EVALUATIONS = 6  # the last on all held-out pieces
SAMPLE = 8  # the earlier ones on every eighth piece
VOCABULARIES = (8_192, 32_768, 131_072, 262_144)  # of the comparison of memory
QUICK_VOCABULARIES = (8_192, 131_072)
MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """All that the numbers of a run depend on; a checkpoint belongs to exactly one of these."""

    steps: int
    seed: int
    vocabulary: int
    width: int = 192
    layers: int = 3
    heads: int = 3
    length: int = 128  # tokens a piece
    batch: int = 8  # pieces
    rate: float = 3e-3  # the peak of the learning rate
    files: int | None = None  # all
    text: str = ""  # a digest of the tokens, as the standard library may change


@dataclass(frozen=True)
class Text:
    """Pieces of files, `[n, length]` token ids and `PADDING`; the bytes of each held-out piece."""

    training: np.ndarray
    held_out: np.ndarray
    held_out_bytes: np.ndarray

    def digest(self) -> str:
        """Differs where the tokens differ."""
        parts = (np.ascontiguousarray(part).tobytes() for part in (self.training, self.held_out))
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def source_files() -> list[str]:
    """The text of every file of the standard library, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for path in sorted(root.rglob("*.py")):
        if NOT_TEXT.isdisjoint(path.relative_to(root).parts):
            try:
                with tokenize.open(path) as file:  # in the encoding that the file declares
                    texts.append(file.read())
            except (SyntaxError, UnicodeDecodeError):
                continue
    if len(texts) < 2:
        sys.exit(f"this Python has no source files of its standard library in {root}")
    return texts


def train_tokenizer(texts: list[str], types: int) -> Tokenizer:
    """Byte-pair encoding of bytes: whatever the text, there are tokens for it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=types, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def cut(tokenizer: Tokenizer, texts: list[str], length: int) -> np.ndarray:
    """Tokens of the texts, `[n, length]`; the last piece of each text is padded."""
    pieces = []
    for encoding in tokenizer.encode_batch(texts):
        ids = np.asarray(encoding.ids, np.int32)
        pieces.append(np.pad(ids, (0, -len(ids) % length), constant_values=PADDING))
    return np.concatenate(pieces).reshape(-1, length)


def byte_counts(tokenizer: Tokenizer, pieces: np.ndarray) -> np.ndarray:
    """The bytes of each piece: a token's name has one character a byte."""
    names = sorted((number, name) for name, number in tokenizer.get_vocab().items())
    lengths = np.array([*(len(name) for _, name in names), 0])  # the last for PADDING, -1
    return lengths[pieces].sum(axis=1)


def make_text(settings: Settings) -> Text:
    """Training and held-out pieces, of different files; the tokenizer sees the training files."""
    files = source_files()
    order = np.random.default_rng(settings.seed).permutation(len(files))[: settings.files]
    share = max(1, round(HELD_OUT * len(order)))
    test, training = ([files[i] for i in part] for part in np.split(order, [share]))
    tokenizer = train_tokenizer(training, settings.vocabulary - 1)  # one more: the begin token
    held_out = cut(tokenizer, test, settings.length)
    return Text(
        cut(tokenizer, training, settings.length), held_out, byte_counts(tokenizer, held_out)
    )


def batch_of(step: int, pieces: np.ndarray, settings: Settings) -> np.ndarray:
    """The pieces of a step; every epoch has its own order. Nothing depends on earlier steps."""
    positions = np.arange(step * settings.batch, (step + 1) * settings.batch)
    epochs, places = np.divmod(positions, len(pieces))
    orders = {
        epoch: np.random.default_rng([settings.seed, epoch]).permutation(len(pieces))
        for epoch in np.unique(epochs)
    }
    return pieces[[orders[e][place] for e, place in zip(epochs, places, strict=True)]]


class Block(nnx.Module):
    """Causal attention and a two-layer network, each added to what comes in."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norms = nnx.List([nnx.RMSNorm(width, rngs=rngs) for _ in range(2)])
        self.attend = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        qkv = self.attend(self.norms[0](x)).reshape(*x.shape[:2], 3, self.heads, -1)
        q, k, v = rotated(qkv[:, :, 0]), rotated(qkv[:, :, 1]), qkv[:, :, 2]
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.down(jax.nn.gelu(self.up(self.norms[1](x))))


def rotated(x: jax.Array) -> jax.Array:
    """Queries or keys `[batch, length, heads, features]`, turned by angles that tell the place."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None, None] * 1e4 ** (-np.arange(half) / half)
    cos, sin = jnp.asarray(np.cos(angles), x.dtype), jnp.asarray(np.sin(angles), x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class Transformer(nnx.Module):
    """From labels to the features `[batch, length, width]` that `kernel` makes logits of."""

    def __init__(self, settings: Settings, rngs: nnx.Rngs):
        width = settings.width
        self.begin = settings.vocabulary - 1
        self.embedding = nnx.Param(
            jax.random.normal(rngs.params(), (settings.vocabulary, width)) / width**0.5
        )
        blocks = [Block(width, settings.heads, rngs) for _ in range(settings.layers)]
        self.blocks = nnx.List(blocks)
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.kernel = nnx.Param(
            jax.random.normal(rngs.params(), (width, settings.vocabulary)) / width
        )

    def __call__(self, labels: jax.Array) -> jax.Array:
        before = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=self.begin)
        x = self.embedding[...][jnp.where(before == PADDING, self.begin, before)]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Metrics(NamedTuple):
    """What is logged of a step beside its loss."""

    z_loss: jax.Array
    accuracy: jax.Array  # the share of tokens that were the likeliest


Loss = Callable[..., tuple[jax.Array, Metrics]]  # means over all tokens but padding


def fused(labels: jax.Array, features: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Metrics]:
    """The loss of this example: the logits are never made, and the weights stay float32."""
    loss, aux = jxent.losses.linear_sparse_softmax_cross_entropy(
        labels,
        features.astype(HEAD_DTYPE),
        kernel,
        weights=labels != PADDING,
        z_loss=Z_LOSS,
        has_aux=True,
    )
    return loss, Metrics(aux.z_loss, aux.accuracy)


def with_logits(
    labels: jax.Array, features: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, Metrics]:
    """The usual way to the same numbers, for comparison."""
    counts = labels != PADDING
    labels = jnp.where(counts, labels, 0)
    logits = jnp.matmul(
        features.astype(HEAD_DTYPE), kernel.astype(HEAD_DTYPE), preferred_element_type=jnp.float32
    )

    def mean(x: jax.Array) -> jax.Array:
        return jnp.sum(x * counts) / jnp.sum(counts)

    z_loss = mean(Z_LOSS * jax.nn.logsumexp(logits, axis=-1) ** 2)
    accuracy = mean(jnp.argmax(logits, axis=-1) == labels)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return mean(losses) + z_loss, Metrics(z_loss, accuracy)


class State(NamedTuple):
    """What a step changes."""

    params: nnx.State
    optimizer: optax.OptState


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """Adam; the learning rate rises, then falls to zero, by the step's number."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.rate, max(1, settings.steps // 20), max(2, settings.steps)
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.98))


def make_model(settings: Settings) -> tuple[nnx.GraphDef, nnx.State]:
    """The structure of the model, and its parameters."""
    return nnx.split(Transformer(settings, nnx.Rngs(settings.seed)))


def make_state(settings: Settings) -> State:
    """Before the first step."""
    _, params = make_model(settings)
    return State(params, make_optimizer(settings).init(params))


def make_step(settings: Settings, loss: Loss) -> jax.stages.Wrapped:
    """A step of training, `(state, labels) -> (state, (loss, metrics))`, its state donated."""
    structure, _ = nnx.eval_shape(lambda: make_model(settings))
    optimizer = make_optimizer(settings)

    def loss_fn(params, labels):
        model = nnx.merge(structure, params)
        return loss(labels, model(labels), model.kernel[...])

    def step(state, labels):
        found, gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params, labels)
        updates, memory = optimizer.update(gradient, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), memory), found

    return jax.jit(step, donate_argnums=0)


def compiled_step(settings: Settings, loss: Loss, **options: Any) -> jax.stages.Compiled:
    """The step, compiled from shapes alone."""
    state = jax.eval_shape(lambda: make_state(settings))
    labels = jax.ShapeDtypeStruct((settings.batch, settings.length), jnp.int32)
    return make_step(settings, loss).lower(state, labels).compile(options)


def step_memory(settings: Settings, loss: Loss) -> int:
    """Bytes the step needs at its peak, besides parameters and optimizer state."""
    options = {}
    if jax.default_backend() == "cpu":  # memory is laid out before machine code is made
        options["xla_backend_optimization_level"] = 0  # only faster to compile
    analysis = compiled_step(settings, loss, **options).memory_analysis()
    assert analysis is not None, "this device's compiler tells nothing about memory"
    return analysis.temp_size_in_bytes


def make_evaluation(settings: Settings, text: Text) -> Callable[[nnx.State, int], float]:
    """A function of the parameters: bits per byte of every n-th held-out piece."""
    structure, _ = nnx.eval_shape(lambda: make_model(settings))

    @jax.jit
    def nats(params, labels):
        model = nnx.merge(structure, params)
        return jxent.losses.linear_sparse_softmax_cross_entropy(
            labels,
            model(labels).astype(HEAD_DTYPE),
            model.kernel[...],
            weights=labels != PADDING,
            reduction="weighted_sum",
        )

    def bits_per_byte(params, every):
        pieces, counts = text.held_out[::every], text.held_out_bytes[::every]
        missing = -len(pieces) % settings.batch
        pieces = np.pad(pieces, ((0, missing), (0, 0)), constant_values=PADDING)
        batches = pieces.reshape(-1, settings.batch, settings.length)
        total = math.fsum(float(nats(params, labels)) for labels in batches)
        return total / math.log(2) / float(np.sum(counts))

    return bits_per_byte


class Log(NamedTuple):
    """What a run has to tell of every step; bits per byte at `evaluation_steps`."""

    losses: np.ndarray
    z_losses: np.ndarray
    accuracies: np.ndarray
    bits_per_byte: np.ndarray
    tokens: np.ndarray  # of every step, without padding
    seconds: np.ndarray  # of every step, without compilation, evaluation and saving


def evaluation_steps(settings: Settings) -> list[int]:
    """After how many steps the held-out files are looked at; the last is after all."""
    return sorted({-(-settings.steps * i // EVALUATIONS) for i in range(1, EVALUATIONS + 1)})


def empty_log(settings: Settings) -> Log:
    """Before the first step."""
    sizes = dict.fromkeys(Log._fields, settings.steps)
    sizes["bits_per_byte"] = len(evaluation_steps(settings))
    return Log(**{name: np.full(n, np.nan) for name, n in sizes.items()})


class Checkpoints:
    """The saved steps of one run, in a folder: state, log and settings."""

    def __init__(self, folder: Path, settings: Settings, every: int):
        self.folder, self.settings, self.every = folder, settings, every
        self.manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False),
            item_names=("state", "log", "settings"),
        )

    def save(self, step: int, state: State, log: Log) -> None:
        """Once in a while and at the end. A save that is cut off leaves the one before it."""
        if step % self.every == 0 or step == self.settings.steps:
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                log=ocp.args.StandardSave(log._asdict()),
                settings=ocp.args.JsonSave(asdict(self.settings)),
            )
            if step in self.manager.all_steps():  # it could not be read
                self.manager.delete(step)
            self.manager.save(step, args=items, force=True)

    def restore(self, state: State, log: Log) -> tuple[int, State, Log]:
        """The last step that can be read, or the arguments where nothing was saved yet."""
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                self.check_settings(step)
                items = ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract(state)),
                    log=ocp.args.StandardRestore(log._asdict()),
                )
                saved = self.manager.restore(step, args=items)
            except Exception as error:  # orbax raises a bare one for a file cut short
                print(f"step {step} in {self.folder} cannot be read: {error}", file=sys.stderr)
                continue
            print(f"continuing after step {step}, from {self.folder}; --fresh starts anew")
            return step, saved.state, Log(*(np.array(saved.log[name]) for name in Log._fields))
        return 0, state, log

    def check_settings(self, step: int) -> None:
        """Ends the program where the checkpoint is not of this run."""
        items = ocp.args.Composite(settings=ocp.args.JsonRestore())
        theirs = self.manager.restore(step, args=items).settings
        ours = json.loads(json.dumps(asdict(self.settings)))
        differences = [
            f"{name} {theirs.get(name)} there, {ours.get(name)} here"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if differences:
            sys.exit(
                f"{self.folder} holds the checkpoint of another run ({'; '.join(differences)}): "
                "--fresh discards it, --output takes another folder"
            )


def abstract(tree: Any) -> Any:
    """Shapes, types and devices of arrays: what orbax restores onto."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def train(settings: Settings, text: Text, folder: Path, every: int) -> tuple[State, Log]:
    """All steps that are not yet done."""
    points = evaluation_steps(settings)
    checkpoints = Checkpoints(folder, settings, every)
    with checkpoints.manager:
        first, state, log = checkpoints.restore(make_state(settings), empty_log(settings))
        step, evaluate = compiled_step(settings, fused), make_evaluation(settings, text)
        steps = range(first, settings.steps)
        with tqdm(steps, initial=first, total=settings.steps, unit="step") as progress:
            for i in progress:
                labels = batch_of(i, text.training, settings)
                start = time.perf_counter()
                state, (loss, metrics) = step(state, labels)
                log.losses[i], log.tokens[i] = loss, np.count_nonzero(labels != PADDING)
                log.z_losses[i], log.accuracies[i] = metrics
                log.seconds[i] = time.perf_counter() - start
                if i + 1 in points:
                    every = 1 if i + 1 == settings.steps else SAMPLE
                    log.bits_per_byte[points.index(i + 1)] = evaluate(state.params, every)
                checkpoints.save(i + 1, state, log)
                progress.set_postfix(
                    loss=f"{loss:.3f}", accuracy=f"{metrics.accuracy:.2f}", refresh=False
                )
    return state, log


def compare_memory(settings: Settings, vocabularies: tuple[int, ...]) -> list[dict[str, float]]:
    """Peak memory of the step with this loss and with logits, in MiB, over vocabularies."""
    rows = []
    for vocabulary in tqdm(vocabularies, desc="compiling for memory", unit="vocabulary"):
        larger = replace(settings, vocabulary=vocabulary)
        ours, theirs = step_memory(larger, fused), step_memory(larger, with_logits)
        rows.append(
            {
                "vocabulary": vocabulary,
                "fused, MiB": ours / MIB,
                "with logits, MiB": theirs / MIB,
                "ratio": theirs / ours,
            }
        )
    return rows


def draw(path: Path, settings: Settings, log: Log, memory: list[dict[str, float]]) -> None:
    """One picture: the loss curve with bits per byte, memory over vocabulary."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    (line,) = left.plot(np.arange(1, settings.steps + 1), log.losses, "C0", alpha=0.4)
    left.set(xlabel="step", ylabel="training loss, nats per token", title="training")
    bits = left.twinx()
    (dots,) = bits.plot(evaluation_steps(settings), log.bits_per_byte, "o-", color="C1")
    for x, y in zip(evaluation_steps(settings), log.bits_per_byte, strict=True):
        bits.annotate(f"{y:.2f}", (x, y), (0, 8), textcoords="offset points", ha="center")
    bits.set(ylabel="held-out files, bits per byte")
    bits.margins(y=0.15)
    left.margins(x=0.08)
    left.legend([line, dots], ["training loss", "held-out bits per byte"])
    vocabularies = [row["vocabulary"] for row in memory]
    for name, mark, below in (("with logits, MiB", "s--C3", 8), ("fused, MiB", "o-C0", -16)):
        values = [row[name] for row in memory]
        right.loglog(vocabularies, values, mark, label=name.removesuffix(", MiB"))
        for at in zip(vocabularies, values, strict=True):
            right.annotate(f"{at[1]:.0f}", at, (0, below), textcoords="offset points", ha="center")
    right.margins(x=0.1, y=0.15)
    right.set_xticks(vocabularies, [f"{v // 1024}k" for v in vocabularies])
    right.set_yticks([])
    right.minorticks_off()
    right.set(
        xlabel="vocabulary", ylabel="MiB, logarithmic", title="peak temporary memory of a step"
    )
    right.legend()
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


def vocabulary_size(text: str) -> int:
    """An argument that is enough for all bytes and the begin token."""
    value = int(text)
    if not 257 <= value <= 2**20:
        raise argparse.ArgumentTypeError(f"must be in [257, 2**20], got {value}")
    return value


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=positive, default=700, help="of training")
    parser.add_argument("--seed", type=seed_number, default=0, help="same seed, same numbers")
    parser.add_argument("--vocabulary", type=vocabulary_size, default=8192, help="token types")
    parser.add_argument(
        "--quick", action="store_true", help="40 steps of a smaller model on few files, to try it"
    )
    parser.add_argument("--save-every", type=positive, default=100, help="steps", metavar="STEPS")
    parser.add_argument(
        "--fresh", action="store_true", help="discard a checkpoint, if there is one"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("out"), help="folder for picture and checkpoints"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.steps = min(options.steps, 40)
        options.vocabulary = min(options.vocabulary, 1024)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / ".writable").touch()
        (options.output / ".writable").unlink()
    except OSError as error:
        parser.error(f"argument --output: cannot write to {options.output}: {error.strerror}")
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    """What the command line asks for."""
    settings = Settings(options.steps, options.seed, options.vocabulary)
    if options.quick:
        settings = replace(settings, width=64, layers=2, heads=2, length=64, files=60)
    return settings


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains or continues, prints the tables, writes the picture; returns the main numbers."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells much
    options = arguments(argv)
    start = time.perf_counter()
    settings = settings_of(options)
    folder = options.output / "language_model_checkpoints"
    if options.fresh and folder.exists():
        shutil.rmtree(folder)

    text = make_text(settings)
    settings = replace(settings, text=text.digest())
    _, log = train(settings, text, folder, options.save_every)
    memory = compare_memory(settings, QUICK_VOCABULARIES if options.quick else VOCABULARIES)

    numbers = {
        "bits per byte, held out": float(log.bits_per_byte[-1]),
        "nats per token, last step": float(log.losses[-1] - log.z_losses[-1]),
        "z-loss, last step": float(log.z_losses[-1]),
        "accuracy, last step": float(log.accuracies[-1]),
        "tokens per second": float(np.sum(log.tokens) / np.sum(log.seconds)),
    }
    print(tabulate(numbers.items(), floatfmt=".3f"))
    print(f"\nPeak temporary memory of a step of {settings.batch} x {settings.length} tokens:\n")
    print(tabulate(memory, headers="keys", floatfmt=("d", ".0f", ".0f", ".1f")))
    picture = options.output / "language_model.png"
    draw(picture, settings, log, memory)
    print(f"{picture} written, {time.perf_counter() - start:.0f} s in all")
    return numbers


if __name__ == "__main__":
    main()
