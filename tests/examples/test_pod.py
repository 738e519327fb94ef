"""The example of many processes: one run, whatever splits it, kills it or cuts its checkpoints."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("optax", reason="in the `examples` extra")
pytest.importorskip("orbax.checkpoint", reason="in the `examples` extra")
pytest.importorskip("matplotlib", reason="in the `examples` extra")

# As for a script, which imports the one beside it.
sys.path.append(str(Path(__file__).parents[2] / "examples"))

import extreme_multilabel
import pod

QUICK = ["--quick", "--steps", "40", "--save-every", "10"]
LIMIT = 120  # seconds for anything


@contextlib.contextmanager
def started(folder, *argv, before=()):
    """The command, running, and the file that it writes to; nothing of it is left afterwards."""
    output = folder / "printed"
    environment = os.environ | {"TMPDIR": str(folder)}  # for the logs
    command = [*before, sys.executable, pod.__file__, *QUICK, "--output", folder, *argv]
    with output.open("w") as file:
        launcher = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        yield launcher, output
    finally:
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with contextlib.suppress(ProcessLookupError):
                launcher.send_signal(signal.SIGTERM)  # the second one kills its processes
            launcher.wait(LIMIT)


def run(folder, *argv, before=(), status=0):
    """What the command prints."""
    with started(folder, *argv, before=before) as (launcher, output):
        ended = launcher.wait(LIMIT)
    printed = output.read_text()
    assert ended == status, printed
    assert "Traceback" not in printed
    return printed


def saved(folder):
    return sorted(int(f.name) for f in (folder / "pod_checkpoints").glob("*") if f.name.isdigit())


def numbers(folder):
    return json.loads((folder / "pod.json").read_text())


def layout(processes, devices, model=2):
    return f"--processes={processes}", f"--devices={devices}", f"--model={model}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run of 2 processes x 2 devices."""
    folder = tmp_path_factory.mktemp("whole")
    printed = run(folder, *layout(2, 2))
    assert "precision@1" in printed
    assert saved(folder) == [30, 40]
    assert not list(folder.glob("*.log"))
    return folder


def assert_same_but_for_rounding(folder, other):
    ours, theirs = numbers(folder), numbers(other)
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=1e-5)
    np.testing.assert_allclose(ours["norm"], theirs["norm"], rtol=1e-6)


@pytest.mark.long
@pytest.mark.xdist_group("pod")
def test_one_process_with_another_mesh_gives_the_same_losses(whole, tmp_path):
    run(tmp_path, *layout(1, 4, model=4))
    assert_same_but_for_rounding(tmp_path, whole)
    losses = numbers(tmp_path)["losses"]
    assert len(losses) == 40
    assert np.isfinite(losses).all()
    # continues where there is nothing left to do
    printed = run(tmp_path, *layout(1, 1, model=1))
    assert "continuing after step 40" in printed
    assert_same_but_for_rounding(tmp_path, whole)
    printed = run(tmp_path, *layout(1, 1, model=1), "--seed=1", status=2)
    assert re.search(r"another run \(seed 0 there, 1 here\): --fresh", printed)


def kill_one(folder, victim):
    """Kills one of two processes with SIGKILL once it has saved something; returns what is said."""
    before = max(saved(folder), default=0)
    with started(folder, *layout(2, 2)) as (launcher, output):
        end = time.monotonic() + LIMIT
        while max(saved(folder), default=0) <= before and time.monotonic() < end:
            assert launcher.poll() is None, output.read_text()
            time.sleep(0.01)
        children = re.search(r"started processes (\d+) (\d+)", output.read_text())
        assert children
        process = int(children[1 + victim])
        os.kill(process, signal.SIGKILL)
        assert launcher.wait(60) == pod.LOST
    printed = output.read_text()
    assert f"process {process} was ended by signal 9" in printed
    # The other one says so itself, or JAX is faster and aborts it.
    ending = f"process {1 - victim} of 2: ending, as another process was lost"
    other = f"process {children[2 - victim]} was ended by"
    assert ending in printed or f"{other} signal 6" in printed or f"{other} JAX" in printed
    assert "the same command, started again, continues" in printed
    assert "Traceback" not in printed
    assert "stack trace" not in printed
    assert max(saved(folder)) < 40


@pytest.mark.long
@pytest.mark.xdist_group("pod")
def test_killed_twice_and_started_again_ends_with_the_same_bits(whole, tmp_path):
    kill_one(tmp_path, 1)
    kill_one(tmp_path, 0)
    printed = run(tmp_path, *layout(2, 2))
    assert "continuing after step" in printed
    assert numbers(tmp_path) == numbers(whole)


@pytest.mark.long
@pytest.mark.xdist_group("pod")
def test_truncated_checkpoints_are_skipped_by_any_number_of_processes(whole, tmp_path):
    shutil.copytree(whole / "pod_checkpoints", tmp_path / "pod_checkpoints")
    arrays = tmp_path / "pod_checkpoints" / "40" / "state" / "ocdbt.process_1" / "d"
    largest = max(arrays.iterdir(), key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    (tmp_path / "pod_checkpoints" / "50").mkdir()
    printed = run(tmp_path, *layout(4, 1))
    for step in (40, 50):
        assert f"step {step} in {tmp_path / 'pod_checkpoints'} cannot be read" in printed
    assert "continuing after step 30" in printed
    assert saved(tmp_path) == [30, 40]
    assert_same_but_for_rounding(tmp_path, whole)

    for step in (30, 40):
        (tmp_path / "pod_checkpoints" / str(step) / "state" / "_METADATA").write_text("{")
    printed = run(tmp_path, *layout(1, 4), status=2)
    assert "no checkpoint" in printed
    assert "--fresh starts anew" in printed
    assert saved(tmp_path) == [30, 40]


@pytest.mark.long
@pytest.mark.xdist_group("pod")
def test_a_folder_that_cannot_be_written_is_an_error_on_all_processes(tmp_path):
    (tmp_path / "file").write_text("")
    printed = run(tmp_path, *layout(2, 1), f"--output={tmp_path / 'file'}", status=2)
    for process in range(2):
        assert f"process {process} of 2: error: argument --output: {tmp_path / 'file'}" in printed


@pytest.mark.long
@pytest.mark.xdist_group("pod")
def test_a_full_disk_is_an_error_before_the_first_step(tmp_path):
    small = ["sh", "-c", 'ulimit -f 2000; exec "$@"', "sh"]  # a file of 1 MB is too large
    printed = run(tmp_path, *layout(2, 1), before=small, status=2)
    for process in range(2):
        assert re.search(f"process {process} of 2: error: argument --output.* MB", printed)
    assert not list((tmp_path / "pod_checkpoints").iterdir())


def data_of(count):
    return extreme_multilabel.encode(
        [
            extreme_multilabel.Example("", f"f{i}", ("word", f"word{i}"), ("common", f"own{i}"))
            for i in range(count)
        ]
    )


def test_batches_are_functions_of_the_step_and_an_epoch_takes_each_example_once():
    data, which = data_of(600), np.arange(5, 600)
    steps = [2, 0, 1, 0, 3]
    found = dict(zip(steps, (pod.batch_of(step, data, which, 0) for step in steps), strict=True))
    for step, batch in found.items():
        for part, again in zip(batch, pod.batch_of(step, data, which, 0), strict=True):
            np.testing.assert_array_equal(part, again)
    for first in (0, 2):  # two batches an epoch, of the 595
        own = np.concatenate([found[first][1][:, 1], found[first + 1][1][:, 1]])
        assert len(set(own)) == 2 * pod.BATCH
    assert not np.array_equal(found[0][1], found[2][1])
    assert not np.array_equal(pod.batch_of(0, data, which, 1)[1], found[0][1])


def test_classes_that_fill_up_take_no_part():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "embeddings": jax.random.normal(keys[0], (100, 4)),
        "kernel": jax.random.normal(keys[1], (4, 7)),
        "bias": jax.random.normal(keys[2], (7,)),
    }
    filled = params | {
        "kernel": jnp.pad(params["kernel"], ((0, 0), (0, 9))),
        "bias": jnp.pad(params["bias"], (0, 9)),
    }
    words, labels = np.array([[1, 2], [3, -1]]), np.array([[0, 6], [2, -1]])
    loss = extreme_multilabel.loss_of(params, words, labels)
    same, gradient = jax.value_and_grad(pod.loss_of)(filled, words, labels, 7)
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    assert gradient["kernel"][:, :7].all()
    assert not gradient["kernel"][:, 7:].any()
    assert not gradient["bias"][7:].any()


@pytest.mark.eight_devices
def test_neither_logits_nor_the_projection_are_gathered():
    data = data_of(1000)
    settings = pod.Settings(steps=3, seed=0, stride=1, features=8)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        trainer = pod.Trainer(settings, data, np.arange(600), pod.make_mesh(4))
        words, labels = (
            pod.spread(part, trainer.mesh) for part in pod.batch_of(0, data, np.arange(600), 0)
        )
        state = trainer.start()
        predicted = trainer.predict(state.params, data.words[:300])
        step = trainer.step.lower(state, np.int32(0), words, labels).compile().as_text()
        top = trainer.top.lower(state.params, words).compile().as_text()
    assert state.params["kernel"].shape == (8, 1024)  # of 1001 classes
    assert state.params["kernel"].sharding.shard_shape((8, 1024)) == (8, 256)
    np.testing.assert_array_equal(
        predicted, np.broadcast_to(jax.lax.top_k(state.params["bias"][:1001], 5)[1], (300, 5))
    )
    assert not re.findall(r"all-gather|all-to-all|collective-permute", step)
    for shape in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather", top):
        assert np.prod([int(n) for n in shape.split(",")]) <= pod.BATCH * 4 * 5


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--processes", "0"], "must be at least 1"),
        (["--devices", "none"], "invalid"),
        (["--seed", "-1"], "must be in"),
        (["--process", "0"], "give both or neither"),
        (["--process", "0", "--coordinator", "here:1"], "must say how many"),
        (["--processes", "2", "--process", "2", "--coordinator", "here:1"], "must be in [0, 2)"),
    ],
)
def test_bad_arguments(given, complaint, capsys):
    with pytest.raises(SystemExit):
        pod.arguments(given)
    assert complaint in capsys.readouterr().err
