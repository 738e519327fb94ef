"""Which names does a function use? Trained by many processes, any of which may be killed.

    python examples/pod.py --processes 2 --devices 2   # two processes on this machine, on its CPU
    python examples/pod.py                             # on every host of a TPU pod, or on one host

The model and the data are those of `extreme_multilabel.py`. Examples are split over the mesh axis
"data", the classes, which are the columns of the output projection, over "model". That is all
there is to it: `jax.jit` splits the step and its loss
`jxent.losses.linear_sparse_sigmoid_cross_entropy`, and no process ever sees all logits or the
whole projection.

On a TPU pod (or under Slurm, Open MPI, ...) start the same command on every host, with an --output
that all of them share: JAX asks the cluster who they are. Elsewhere say it, on host i of n:
`python examples/pod.py --processes n --process i --coordinator host0:1234`. With --processes alone
this command starts all of them on this machine and ends when they have ended.

The run is saved every so many steps, in the background, each process writing its part. If a process
is lost, the others say so and end. The same command, with any number of processes and devices,
continues from the last checkpoint that is whole: batches and learning rate are functions of the
step's number alone. On SIGTERM, the notice that cloud machines get, all save and end.
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from extreme_multilabel import (
    BATCH,
    CUTS,
    MAX_WORDS,
    WORD_DROPOUT,
    Data,
    Params,
    bag,
    encode,
    init,
    label_counts,
    positive,
    precisions,
    random_split,
    read_examples,
    seed_number,
)
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from tqdm import tqdm

import jxent

HEARTBEAT = 30  # seconds of silence after which the runtime takes a process for lost
PATIENCE = 10  # seconds that a step may take before we say that somebody may be lost
GRACE = 30  # seconds that the other local processes have to end when one has failed
LOST = 75  # the exit status of a process when another is lost: EX_TEMPFAIL, "try again"
KEPT = 2  # checkpoints: while one is written, and if it was cut short, there is another

# Classes are filled up to a multiple of this, so that every power of two up to it splits them
# evenly. Not to a multiple of the mesh's axis: a checkpoint must fit another mesh, too.
CLASS_MULTIPLE = 128

# What is split, by name; the optimizer's moments are named, and split, as their parameters. All
# else is on every device. (Embeddings too: few of their rows have a gradient, all are updated.)
SPECS = {"kernel": P(None, "model"), "bias": P("model")}


@dataclass(frozen=True)
class Settings:
    """All that the numbers of a run depend on; a checkpoint belongs to exactly one of these."""

    steps: int
    seed: int
    stride: int  # every how manyth file of the standard library is read
    features: int
    data: int = 0  # a checksum, as the standard library may change


class State(NamedTuple):
    """What a step changes."""

    params: Params
    optimizer: optax.OptState
    losses: jax.Array  # of every step, NaN where it is yet to come


@functools.cache
def terminal() -> TextIO:
    """Standard error as it was when this was first called: for people."""
    return os.fdopen(os.dup(2), "w", buffering=1)


def only_people_on_terminal(log: Path) -> None:
    """Sends all that the libraries print to a file, which is kept if it may be needed.

    When a process is lost, JAX's runtime may abort the others at any moment, with a stack trace;
    and of one file cut short, all of orbax's threads complain.
    """
    terminal()
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def say(text: str) -> None:
    """A line for people, above the progress bar."""
    who = f"process {jax.process_index()} of {jax.process_count()}: "
    tqdm.write((who if jax.process_count() > 1 else "") + text, file=terminal())


def refuse(text: str) -> NoReturn:
    """Ends all processes; every one of them must come here."""
    if jax.process_index() == 0:
        say(f"error: {text}")
    raise SystemExit(2)


def connect(options: argparse.Namespace) -> None:
    """Makes one of many processes, before anything else is asked of JAX."""
    if options.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.devices)
    if options.process is not None:
        jax.distributed.initialize(
            options.coordinator,
            options.processes,
            options.process,
            cluster_detection_method="deactivate",  # nobody but us knows of these processes
            coordinator_bind_address=options.coordinator,  # not every network the machine is on
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    elif options.processes is None:  # the cluster knows, if there is one
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
        except ValueError as error:
            if "coordinator_address" not in str(error):
                raise
            say("no cluster found: this is the only process")


def make_mesh(model: int | None) -> Mesh:
    """All devices as ("data", "model")."""
    devices = jax.device_count()
    model = model or (1 if devices % 2 else 2)
    if devices % model or CLASS_MULTIPLE % model:
        refuse(
            f"argument --model: must divide the number of devices, {devices}, and"
            f" {CLASS_MULTIPLE}, got {model}"
        )
    if BATCH % (devices // model):
        refuse(
            f"argument --model: {devices // model} x {model} devices cannot share a batch of"
            f" {BATCH}: the first must divide it"
        )
    return jax.make_mesh((devices // model, model), ("data", "model"), (AxisType.Auto,) * 2)


def read_data(settings: Settings) -> Data:
    """The whole data on every process, as it is small; only the first shows progress."""
    root = Path(sysconfig.get_paths()["stdlib"])
    leads = jax.process_index() == 0
    with contextlib.redirect_stderr(terminal()) if leads else contextlib.nullcontext():
        data = encode(read_examples(root, settings.stride))
    if len(data.examples) < 2 * BATCH:
        refuse(f"needs the sources of Python's standard library, not found in {root}")
    return data


def checksum(data: Data) -> int:
    """Differs where the data differ; ends the program where they do so among processes."""
    found = zlib.crc32(b"".join((data.words.tobytes(), data.labels.tobytes())))
    if len(np.unique(multihost_utils.process_allgather(np.uint32(found)))) > 1:
        refuse("the processes read different data: is Python the same on all hosts?")
    return found


def batch_of(step: int, data: Data, which: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The words and labels of a step: whatever was before, on however many processes."""
    epoch, place = divmod(step, len(which) // BATCH)
    order = np.random.default_rng([seed, 0, epoch]).permutation(which)
    rows = order[place * BATCH : (place + 1) * BATCH]
    dropped = np.random.default_rng([seed, 1, step]).random((BATCH, MAX_WORDS)) < WORD_DROPOUT
    return np.where(dropped, np.int32(-1), data.words[rows]), data.labels[rows]


def spread(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """A batch that all processes have, split: each puts its rows on its devices."""
    sharding = NamedSharding(mesh, P("data"))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def shardings_of(tree: Any, mesh: Mesh) -> Any:
    """Where each array lies, by the last name on the way to it."""

    def sharding(path, _):
        return NamedSharding(mesh, SPECS.get(getattr(path[-1], "key", ""), P()))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def masked_bias(params: Params, classes: int) -> jax.Array:
    """The bias, with -inf for classes that are only there to fill up.

    Such a class takes no part in the loss and has no gradient, so that its parameters stay 0; and
    it is never predicted. No label names it.
    """
    bias = params["bias"]
    return jnp.where(jnp.arange(len(bias)) < classes, bias, -jnp.inf)


def loss_of(params: Params, words: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """Sigmoid cross-entropy of all classes, from the ids of those that are there."""
    return jxent.losses.linear_sparse_sigmoid_cross_entropy(
        labels,
        bag(params["embeddings"], words),
        params["kernel"],
        bias=masked_bias(params, classes),
        mean_over="examples",
    )


def norm_and_bits(params: Params) -> tuple[jax.Array, jax.Array]:
    """Two numbers to compare runs by: one to rounding, the other to the last bit.

    The sum of all bits is one of integers, so it is exact in any order, on any mesh.
    """
    bits = [
        jax.lax.bitcast_convert_type(array, jnp.uint32).sum(dtype=jnp.uint32)
        for array in jax.tree.leaves(params)
    ]
    return optax.global_norm(params), sum(bits[1:], bits[0])


class Trainer:
    """The compiled programs of a run, and where their arrays lie."""

    def __init__(self, settings: Settings, data: Data, training: np.ndarray, mesh: Mesh):
        self.settings, self.mesh, self.classes = settings, mesh, len(data.names)
        counts = label_counts(data, training)
        extra = -self.classes % CLASS_MULTIPLE
        schedule = optax.cosine_onecycle_schedule(settings.steps, peak_value=1e-2)
        optimizer = optax.adam(schedule)

        def start():
            params = init(jax.random.key(settings.seed), settings.features, counts, len(training))
            params["kernel"] = jnp.pad(params["kernel"], ((0, 0), (0, extra)))
            params["bias"] = jnp.pad(params["bias"], (0, extra))
            return State(params, optimizer.init(params), jnp.full(settings.steps, jnp.nan))

        def step(state, i, words, labels):
            value, gradient = jax.value_and_grad(loss_of)(state.params, words, labels, self.classes)
            updates, memory = optimizer.update(gradient, state.optimizer)
            params = optax.apply_updates(state.params, updates)
            return State(params, memory, state.losses.at[i].set(value)), value

        @functools.partial(  # left to itself, `top_k` gathers all logits on every device
            jax.shard_map, mesh=mesh, in_specs=P("data", "model"), out_specs=P("data", "model")
        )
        def best_of_part(logits):
            values, ids = jax.lax.top_k(logits, max(CUTS))
            return values, ids + jax.lax.axis_index("model") * logits.shape[1]

        def top(params, words):
            logits = bag(params["embeddings"], words) @ params["kernel"]
            values, ids = best_of_part(logits + masked_bias(params, self.classes)[None])
            return jnp.take_along_axis(ids, jax.lax.top_k(values, max(CUTS))[1], axis=1)

        shapes = jax.eval_shape(start)
        everywhere = NamedSharding(mesh, P())
        shardings = shardings_of(shapes, mesh)
        self.target = jax.tree.map(  # what a checkpoint is restored onto
            lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
            shapes,
            shardings,
        )
        self.start = jax.jit(start, out_shardings=shardings)
        self.step = jax.jit(step, out_shardings=(shardings, everywhere), donate_argnums=0)
        self.top = jax.jit(top, out_shardings=everywhere)
        self.norm_and_bits = jax.jit(norm_and_bits, out_shardings=everywhere)

    def predict(self, params: Params, words: np.ndarray) -> np.ndarray:
        """The ids of the most probable labels `[n, max(CUTS)]`, the best first."""
        filled = np.pad(words, ((0, -len(words) % BATCH), (0, 0)), constant_values=-1)
        batches = np.split(filled, len(filled) // BATCH)
        found = [np.asarray(self.top(params, spread(batch, self.mesh))) for batch in batches]
        return np.concatenate(found)[: len(words)]


class Checkpoints:
    """The saved steps of one run, in a folder that all processes share."""

    def __init__(self, folder: Path, settings: Settings, every: int):
        self.folder, self.settings, self.every = folder, settings, every
        self.manager = ocp.CheckpointManager(
            folder,
            # Saving is asynchronous; what a killed process left unfinished is removed.
            options=ocp.CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True),
            item_names=("state", "settings"),
        )

    def save(self, step: int, state: State, now: bool = False) -> None:
        """Once in a while, at the end, and when asked to; returns while it is written."""
        if now or step % self.every == 0 or step == self.settings.steps:
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                settings=ocp.args.JsonSave(asdict(self.settings)),
            )
            self.manager.save(step, args=items, force=True)

    def restore(self, target: State) -> tuple[int, State | None]:
        """The last step that is whole and its state, or 0 and None where nothing was saved."""
        steps = agreed(self.manager.all_steps())
        for step in reversed(steps):
            found, problem = self.read(step, target)
            if agree(found is not None):
                self.check_settings(found.settings)
                for cut in (cut for cut in steps if cut > step):
                    self.manager.delete(cut)  # in the way of the one that will be saved there
                return step, found.state
            if problem:
                say(f"step {step} in {self.folder} cannot be read: {problem}")
        if steps:
            refuse(f"no checkpoint in {self.folder} can be read: --fresh starts anew")
        return 0, None

    def read(self, step: int, target: State) -> tuple[Any, str]:
        """State and settings of a step, or what is wrong with it; each process reads its part.

        Orbax makes processes wait for each other at the end of a restore, and one that cannot read
        its part would never get there. So each is made to think that it is the only one.
        """
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
        )
        options = ocp.CheckpointManagerOptions(read_only=True, multiprocessing_options=alone)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), settings=ocp.args.JsonRestore()
        )
        with ocp.CheckpointManager(
            self.folder, options=options, item_names=("state", "settings")
        ) as reader:
            try:
                return reader.restore(step, args=items), ""
            except Exception as error:  # it raises just this where an array is cut short
                return None, first_line(error.__cause__ or error)

    def check_settings(self, theirs: dict[str, int]) -> None:
        """Ends the program where the checkpoint is not of this run."""
        ours = asdict(self.settings)
        differences = [
            f"{name} {theirs.get(name)} there, {ours.get(name)} here"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if differences:
            refuse(
                f"{self.folder} holds the checkpoint of another run ({'; '.join(differences)}): "
                "--fresh discards it, --output takes another folder"
            )


def agree(yes: bool) -> bool:
    """Whether all processes say so."""
    return bool(np.all(multihost_utils.process_allgather(np.array(yes))))


def agreed(steps: Any) -> list[int]:
    """What the first process sees: another may look at a moment when less, or more, is there."""
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    mine = np.resize(np.array([*sorted(steps), 0], np.int32), count)
    return [int(step) for step in multihost_utils.broadcast_one_to_all(mine)]


def first_line(error: BaseException) -> str:
    """The head of a message: what follows is for those who debug JAX or orbax."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def check_folder(folder: Path, target: State) -> None:
    """Writes as much as a checkpoint will take, so that a full disk shows before the first step."""
    whole = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(target))
    share = whole // jax.process_count()  # about what orbax has each process write
    probe = folder / f".probe{jax.process_index()}"
    problem = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb", buffering=0) as file:
            block = os.urandom(2**20)  # not zeros, which some disks do not store
            for start in range(0, share, len(block)):
                file.write(block[: share - start])
            os.fsync(file.fileno())
    except OSError as error:
        problem = f"cannot write {share / 1e6:.1f} MB, a share of a checkpoint: {error.strerror}"
    well = agree(not problem)  # so that all have written before any makes room again
    with contextlib.suppress(OSError):
        probe.unlink()
    if not well:
        say(f"error: argument --output: {folder}: {problem or 'another process cannot write'}")
        raise SystemExit(2)


@contextlib.contextmanager
def watched(step: int) -> Iterator[None]:
    """Says so when a step takes long. CPUs notice a lost process at once, TPUs wait for it."""
    text = (
        f"step {step} has taken {PATIENCE} s by now. If another process was lost, JAX ends this one"
        f" within {HEARTBEAT} s"
    )
    timer = threading.Timer(PATIENCE, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def train(trainer: Trainer, data: Data, training: np.ndarray, checkpoints: Checkpoints) -> State:
    """All steps that are not yet done."""
    steps, seed = trainer.settings.steps, trainer.settings.seed
    leads = jax.process_index() == 0
    first, state = checkpoints.restore(trainer.target)
    if state is None:
        state = trainer.start()
    elif leads:
        say(f"continuing after step {first}, from {checkpoints.folder}; --fresh starts anew")
    todo, done = range(first, steps), first
    with tqdm(
        todo, initial=first, total=steps, unit="step", disable=not leads, file=terminal()
    ) as progress:
        for i in progress:
            batch = [spread(part, trainer.mesh) for part in batch_of(i, data, training, seed)]
            # The first step compiles, which takes its time.
            with watched(i + 1) if i > first else contextlib.nullcontext():
                state, value = trainer.step(state, np.int32(i), *batch)
                progress.set_postfix(loss=f"{float(value):.2f}", refresh=False)
            done = i + 1
            stop = checkpoints.manager.reached_preemption(done)
            checkpoints.save(done, state, now=stop)
            if stop:
                break
    # Not a `with` around it all: where a process is lost, closing would wait for it.
    checkpoints.manager.close()
    if done < steps:
        if leads:
            say(f"told to stop: step {done} is saved, the same command continues")
        raise SystemExit(128 + signal.SIGTERM)
    return state


def work(options: argparse.Namespace) -> None:
    """What each process does."""
    stride, features = (12, 16) if options.quick else (1, 64)
    mesh = make_mesh(options.model)
    settings = Settings(options.steps, options.seed, stride, features)
    data = read_data(settings)
    settings = Settings(options.steps, options.seed, stride, features, checksum(data))
    training, held_out = random_split(data, np.random.default_rng(settings.seed))
    trainer = Trainer(settings, data, training, mesh)

    folder = options.output.resolve() / "pod_checkpoints"
    check_folder(folder, trainer.target)
    if options.fresh:
        if jax.process_index() == 0:
            shutil.rmtree(folder)
            folder.mkdir()
        multihost_utils.sync_global_devices("fresh")
    if jax.process_index() == 0:
        say(
            f"{len(training):,} functions, {trainer.classes:,} classes, {dict(mesh.shape)} devices"
            f" of {jax.process_count()} processes"
        )

    state = train(trainer, data, training, Checkpoints(folder, settings, options.save_every))
    found = precisions(data, held_out, trainer.predict(state.params, data.words[held_out]))
    norm, bits = map(np.asarray, trainer.norm_and_bits(state.params))
    if jax.process_index() == 0:
        numbers = {f"precision@{k}": value for k, value in zip(CUTS, found, strict=True)}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        print(f"{shown}; parameters: norm {norm:.6f}, bits {int(bits):08x}", flush=True)
        summary = {"norm": float(norm), "bits": int(bits), "losses": state.losses.tolist()}
        (options.output / "pod.json").write_text(json.dumps(numbers | summary))


def run_process(options: argparse.Namespace) -> None:
    """One process, from beginning to end."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells much
    only_people_on_terminal(options.log)
    try:
        connect(options)
        work(options)
        jax.distributed.shutdown()  # waits for the others
    except Exception as error:
        status = 1
        print(file=terminal())  # the progress bar may be another's
        if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            status = LOST
            say(f"ending, as another process was lost: {first_line(error)}")
        else:
            traceback.print_exc(file=terminal())
        sys.stdout.flush()
        terminal().flush()
        # Not `sys.exit`: on the way out JAX would wait for the lost process, and then abort.
        os._exit(status)


def launch(processes: int, argv: list[str]) -> int:
    """Starts processes on this machine, passes signals on, waits; returns the exit status."""
    command = [sys.executable, __file__, *argv]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            command += ["--coordinator", "{}:{}".format(*free.getsockname())]
    children: list[subprocess.Popen] = []
    received: list[int] = []

    def pass_on(number, _):
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL if received else signal.SIGTERM)
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    logs = [Path(tempfile.mkstemp(".log", f"pod{i}-")[1]) for i in range(processes)]
    deadline = None
    try:
        for i, log in enumerate(logs):
            which = ["--process", str(i)] if processes > 1 else []
            # In sessions of their own: Ctrl-C reaches them through us alone.
            child = subprocess.Popen([*command, *which, "--log", log], start_new_session=True)
            children.append(child)
        print("started processes", *(child.pid for child in children), file=sys.stderr, flush=True)
        while any(child.poll() is None for child in children):
            if deadline is None and (received or any(child.returncode for child in children)):
                deadline = time.monotonic() + GRACE
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
    status = report(children, logs)
    return 128 + received[0] if received else status


def report(children: list[subprocess.Popen], logs: list[Path]) -> int:
    """Says which processes did not end by themselves; returns the exit status."""
    # JAX ends a process that lost another one: by SIGABRT, before 0.10 with status 1.
    was_killed = any(
        child.returncode < 0 and child.returncode != -signal.SIGABRT for child in children
    )
    statuses = [
        LOST if child.returncode < 0 or (was_killed and child.returncode == 1) else child.returncode
        for child in children
    ]
    for child, log in zip(children, logs, strict=True):
        text = f"process {child.pid} was ended by signal {-child.returncode}"
        if child.returncode == -signal.SIGABRT:
            text += f", by JAX if another one was lost; its last words are in {log}"
        elif child.returncode == 1 and was_killed:
            text = f"process {child.pid} was ended by JAX; its last words are in {log}"
        elif child.returncode == 1:
            text = f"process {child.pid} failed; what the libraries had to say is in {log}"
        else:
            log.unlink()
        if child.returncode == 1 or child.returncode < 0:
            print(text, file=sys.stderr)
    if 1 in statuses:
        return 1  # the others only lost this one
    if LOST in statuses:
        text = "the same command, started again, continues from the last checkpoint"
        print(text, file=sys.stderr)
    return max(statuses)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--processes", type=positive, help="how many there are; started here, unless --process"
    )
    parser.add_argument("--devices", type=positive, help="CPU devices of each process")
    parser.add_argument("--process", type=int, help="which one this is, from 0")
    parser.add_argument("--coordinator", help="host and port of process 0", metavar="HOST:PORT")
    parser.add_argument("--model", type=positive, help="devices that share the classes")
    parser.add_argument("--steps", type=positive, default=500, help="of training")
    parser.add_argument("--seed", type=seed_number, default=0, help="same seed, same numbers")
    parser.add_argument("--quick", action="store_true", help="40 steps on few files, to try it")
    parser.add_argument("--save-every", type=positive, default=50, help="steps", metavar="STEPS")
    parser.add_argument(
        "--fresh", action="store_true", help="discard a checkpoint, if there is one"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("out"),
        help="folder for checkpoints and numbers; all hosts share it",
    )
    # Where a process that was started by `launch` puts what is not for people.
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.quick:
        options.steps = min(options.steps, 40)
        options.save_every = min(options.save_every, 10)
    if (options.process is None) != (options.coordinator is None):
        parser.error("arguments --process and --coordinator: give both or neither")
    if options.process is not None:
        if options.processes is None:
            parser.error("argument --processes: must say how many there are, with --process")
        if not 0 <= options.process < options.processes:
            parser.error(
                f"argument --process: must be in [0, {options.processes}), got {options.process}"
            )
    return options


def main(argv: list[str] | None = None) -> int:
    """Starts the processes, or is one; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = arguments(argv)
    if options.log:
        run_process(options)
        return 0
    if options.processes is None or options.process is not None:
        return launch(1, argv)  # one a host, and an eye on it
    return launch(options.processes, argv if options.devices else [*argv, "--devices", "1"])


if __name__ == "__main__":
    sys.exit(main())
