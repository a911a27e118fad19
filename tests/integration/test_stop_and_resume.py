"""Interrupt, exception, SIGTERM, ``kill -9`` and resume, each in a real process."""

import contextlib
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from lightning_landscape import load
from lightning_landscape.probes import from_json_lines
from lightning_landscape.store.probe_files import digest_of, read_moments, write_moments
from lightning_landscape.store.store import RecordStore
from tests.helpers import run_script
from tests.integration.test_event_files import (
    CONDITIONS,
    RUNNING,
    WHILE_TRAINING,
    WITH_REFERENCE,
    WITHOUT_LOSSES,
    curves,
)

ROOT = Path(__file__).parents[2]
SECONDS = 60
CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture(autouse=True, scope="module")
def _forkserver():
    """One clean process imports everything once; every run is a process forked from it."""
    CONTEXT.set_forkserver_preload(["tests.helpers.run_script"])
    previous = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    yield
    if previous is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = previous


@dataclass
class Running:
    process: multiprocessing.process.BaseProcess
    log: Path


def start(folder, *options):
    folder.mkdir(exist_ok=True, parents=True)
    log = folder / f"log-{len(list(folder.glob('log-*')))}"
    process = CONTEXT.Process(
        target=run_script.main_logged, args=([str(folder), *options], str(log))
    )
    process.start()
    return Running(process, log)


def finish(running):
    """Wait for a process; return (exit status, its output)."""
    running.process.join(SECONDS)
    if running.process.exitcode is None:
        os.kill(running.process.pid, signal.SIGUSR1)
        time.sleep(1)
        running.process.kill()
        pytest.fail(f"the process did not end:\n{running.log.read_text()}")
    assert running.process.exitcode is not None, running.log.read_text()
    return running.process.exitcode, running.log.read_text()


def wait_for(running, condition):
    """Wait until a condition holds, while the process runs."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert running.process.is_alive(), running.log.read_text()
        assert time.monotonic() < deadline, "the process took too long"
        time.sleep(0.005)


def last_probe(folder):
    """Return the step of the newest probe on disk."""
    path = folder / "run" / "landscape" / "probes.jsonl"
    table = from_json_lines(path.read_text()) if path.exists() else []
    return table[-1].step if len(table) else -1


def run_to_the_end(folder, *options):
    status, output = finish(start(folder, *options))
    assert status == 0, output
    return output


def interrupted(folder, how, step, *options):
    """Run until the probe of a step is on disk, then send a signal."""
    running = start(folder, *options)
    wait_for(running, lambda: last_probe(folder) >= step)
    if how == signal.SIGINT:
        # into the pause of the next step: an interrupt while Lightning itself writes to
        # TensorBoard's queue can hang the process, with or without the monitor
        time.sleep(0.02)
    os.kill(running.process.pid, how)
    # the other processes of a distributed run, which nobody else ends; for the first one a second
    # interrupt would be another Ctrl-C
    for process in {int(file.read_text()) for file in folder.glob("pid-*")} - {running.process.pid}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, how)
    return running


def test_ctrl_c_evaluates_what_is_there(tmp_path):
    status, output = finish(
        interrupted(tmp_path, signal.SIGINT, 10, "--epochs", "1000", "--pause", "0.05")
    )
    assert status == 1, output
    run = load(tmp_path / "run")
    assert len(run.table) >= 6
    assert all(probe.evaluated for probe in run.table)
    assert run.summary["run"]["complete"] is False
    assert run.summary["run"]["stopped_by"] == "KeyboardInterrupt"
    assert run.summary["run"]["fidelity"]["exact"] is True
    assert run.summary["conditions"]["alpha_beta"]["neighbourhood"] is not None
    assert (run.path / "reference.safetensors").is_file()
    assert (run.path / "store").is_dir()  # kept, to resume
    assert (
        set(curves(tmp_path / "run")[0]) >= WHILE_TRAINING | WITH_REFERENCE | RUNNING | CONDITIONS
    )


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_evaluation_at_once(tmp_path):
    process = interrupted(
        tmp_path, signal.SIGINT, 20, "--epochs", "1000", "--pause", "0.05", "--every", "1"
    )
    wait_for(process, (tmp_path / "run" / "landscape" / "reference.safetensors").exists)
    time.sleep(0.4)  # a part of the twenty replays of 0.05 s each
    os.kill(process.process.pid, signal.SIGINT)
    time.sleep(0.3)
    if "interrupted again" not in process.log.read_text() and process.process.is_alive():
        # Python swallows an interrupt that comes in a destructor: press again
        os.kill(process.process.pid, signal.SIGINT)
    sent = time.monotonic()
    status, output = finish(process)
    assert status == 1, output
    assert "interrupted again" in output
    assert time.monotonic() - sent < 20
    run = load(tmp_path / "run")
    evaluated = [probe.evaluated for probe in run.table]
    assert len(run.table) >= 20
    assert not all(evaluated)
    assert run.summary["run"]["complete"] is False
    retroactive = {
        tag for tag in curves(tmp_path / "run")[0] if not tag.startswith("live/")
    } - WHILE_TRAINING
    assert not retroactive  # no retroactive tags of a partial evaluation


def test_an_exception_flushes_and_is_raised(tmp_path):
    status, output = finish(start(tmp_path, "--fail-at", "13"))
    assert status == 1
    assert "ValueError: the user's own error" in output
    run = load(tmp_path / "run")
    assert [probe.step for probe in run.table] == [0, 2, 4, 6, 8, 10, 12]
    assert not any(probe.evaluated for probe in run.table)
    assert run.summary["run"]["stopped_by"] == "ValueError"
    assert run.summary["run"]["complete"] is False
    assert run.summary["conditions"]["alpha_beta"]["alpha"] is None
    assert (run.path / "store").is_dir()


@pytest.mark.slow
def test_sigterm_only_flushes(tmp_path):
    _status, output = finish(interrupted(tmp_path, signal.SIGTERM, 10, "--epochs", "1000"))
    assert "Received SIGTERM" in output
    run = load(tmp_path / "run")
    assert len(run.table) >= 6
    assert not any(probe.evaluated for probe in run.table)
    assert run.summary["run"]["stopped_by"] == "SIGTERMException"
    assert set(curves(tmp_path / "run")[0]) <= WHILE_TRAINING | WITHOUT_LOSSES


def test_kill_loses_at_most_two_probes(tmp_path):
    process = interrupted(tmp_path, signal.SIGKILL, 22, "--epochs", "1000")
    status, output = finish(process)
    assert status == -signal.SIGKILL
    last = int(output.strip().rpartition("step ")[2])
    run = load(tmp_path / "run")
    assert run.summary is None
    steps = [probe.step for probe in run.table]
    assert steps == list(range(0, steps[-1] + 1, 2))
    assert steps[-1] >= last - 2 * 2
    assert all(
        mode & 0o077 == 0
        for mode in (path.stat().st_mode for path in (run.path / "store").rglob("*"))
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--store-dtype", "int8")])
def test_what_is_in_the_store_after_a_kill_is_whole(options, tmp_path):
    """At most the two newest probes are missing; all others, and x_0, can be read."""
    finish(
        interrupted(
            tmp_path,
            signal.SIGKILL,
            22,
            "--epochs",
            "1000",
            "--every",
            "1",
            "--pause",
            "0",
            *options,
        )
    )
    run = load(tmp_path / "run")
    steps, folders = (
        [probe.step for probe in run.table],
        [p for p in (run.path / "store").iterdir() if p.name.isdigit()],
    )
    stored = sorted(int(folder.name) for folder in folders)
    assert stored == list(range(len(stored)))
    assert len(stored) >= len(steps) - 2
    sizes = {name: p.numel() for name, p in run_script.Slow().named_parameters()}
    store = RecordStore(run.path / "store", 2**30, options[-1] if options else "native")
    for folder in folders:
        moments, _ = read_moments(folder)
        step = int(folder.name)
        store.digests[step] = digest_of([moment.structure for moment in moments])
        record = store.read(step)
        for part in (record.x, record.gradient.raw):
            assert {name: value.numel() for name, value in part.items()} == sizes
        assert record.gradient.factor == 1.0
        assert len(record.moments) == 1
        assert record.moments[0].structure


def killed_and_resumed(folder, *options, step):
    """Kill a run and resume it from its last checkpoint, which leaves the old run as it is.

    Returns:
        The old run, the new one, and the new one's first step.
    """
    process = interrupted(folder, signal.SIGKILL, step, *options, "--epochs", "1000")
    finish(process)
    before = load(folder / "run")
    names = {path: path.stat().st_mtime_ns for path in before.path.rglob("*") if path.is_file()}
    checkpoint = folder / "checkpoints" / "last.ckpt"
    first = torch.load(checkpoint, weights_only=True)["global_step"]
    run_to_the_end(folder, *options, "--version", "again", "--resume", str(checkpoint))
    assert names == {
        path: path.stat().st_mtime_ns for path in before.path.rglob("*") if path.is_file()
    }
    return before, load(folder / "again"), first


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["final", "file"])
def test_single_samples_survive_a_kill(mode, tmp_path):
    options = ("--per-sample",)
    if mode == "file":
        run_to_the_end(tmp_path / "first")
        options += (
            "--reference",
            str(tmp_path / "first" / "run" / "landscape" / "reference.safetensors"),
        )
    before, again, step = killed_and_resumed(tmp_path, *options, step=45)
    assert step > 0
    rows = {
        k: [row for row in again.tables["per_sample"] if row.step == k]
        for k in (probe.step for probe in again.table)
    }
    assert all(len(found) == 6 for found in rows.values())
    for probe in again.table:
        size = (probe.grad_sq_norm * probe.sq_distance) ** 0.5
        found = rows[probe.step]
        assert sum(row.loss for row in found) / 6 == pytest.approx(probe.loss, rel=1e-6)
        assert sum(row.inner_product for row in found) / 6 == pytest.approx(
            probe.inner_product, abs=1e-5 * size
        )
    assert [probe.step for probe in again.table if probe.step < step] == [
        p.step for p in before.table if p.step < step
    ]


DDP = ("--processes", "2", "--epochs", "9")


@pytest.mark.parametrize(
    "options",
    [
        (),
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                ("--accumulate", "3", "--every", "1", "--epochs", "9"),
                ("--max-probes", "16"),
                DDP,
            )
        ),
    ],
)
def test_resume_of_an_ordinary_run_loses_and_doubles_nothing(options, tmp_path):
    before, again, step = killed_and_resumed(tmp_path, *options, step=45)
    old = {probe.step: probe for probe in before.table if probe.step < step}
    new = {probe.step: probe for probe in again.table}
    shared = sorted(set(old) & set(new))
    assert shared
    for k in shared:
        assert (new[k].loss, new[k].grad_sq_norm) == (old[k].loss, old[k].grad_sq_norm)
    stride = again.summary["run"]["stride"]
    assert sorted(new) == list(range(0, max(new) + 1, stride))
    assert all(probe.evaluated for probe in again.table)
    assert again.summary["run"]["fidelity"]["exact"] is True
    assert again.summary["run"]["dropped"] == {"non_finite": 0, "no_loss": 0, "unevaluable": 0}
    assert again.summary["run"]["complete"] is True


INT8 = ("--store-dtype", "int8")


@pytest.mark.parametrize(
    "options",
    [
        ("--max-probes", "16"),
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                (),
                DDP,
                INT8,
                (*INT8, "--max-probes", "16"),
                ("--store-dtype", "bfloat16"),
                (*DDP, *INT8),
            )
        ),
    ],
)
def test_resume_of_a_run_of_the_step_is_the_uninterrupted_run(options, tmp_path):
    run_to_the_end(tmp_path / "whole", "--module", "OfTheStep", *options)
    _, again, _ = killed_and_resumed(
        tmp_path / "killed", "--module", "OfTheStep", *options, step=36
    )
    whole = load(tmp_path / "whole" / "run")
    assert again.table == whole.table
    assert again.summary["conditions"] == whole.summary["conditions"]
    assert again.summary["run"]["fidelity"]["exact"] is True
    accuracies = [run.summary["run"]["store"].get("accuracy") for run in (again, whole)]
    assert (accuracies[0] is not None) == ("--store-dtype" in options)
    assert accuracies[0] == accuracies[1]
    assert again.tables == whole.tables
    ours, theirs = curves(tmp_path / "killed" / "again")[0], curves(tmp_path / "whole" / "run")[0]
    kept = {probe.logged_step for probe in whole.table}
    for tag in (WHILE_TRAINING | WITH_REFERENCE | RUNNING) - {"overhead"}:
        assert [p for p in ours[tag] if p[0] in kept] == [p for p in theirs[tag] if p[0] in kept], (
            tag
        )


@pytest.mark.slow
def test_resume_with_a_reference_file(tmp_path):
    run_to_the_end(tmp_path / "first", "--module", "OfTheStep")
    reference = str(tmp_path / "first" / "run" / "landscape" / "reference.safetensors")
    options = ("--module", "OfTheStep", "--reference", reference)
    run_to_the_end(tmp_path / "whole", *options)
    _, again, _ = killed_and_resumed(tmp_path / "killed", *options, step=36)
    assert again.table == load(tmp_path / "whole" / "run").table


@pytest.mark.slow
def test_resume_when_the_store_is_gone_drops_and_counts(tmp_path):
    finish(interrupted(tmp_path, signal.SIGKILL, 28, "--epochs", "1000"))
    store = load(tmp_path / "run").path / "store"
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    rows = next(s for key, s in state["callbacks"].items() if key.startswith("LandscapeMonitor"))[
        "rows"
    ]
    store.rename(store.with_name("elsewhere"))
    run_to_the_end(tmp_path, "--version", "again", "--resume", str(checkpoint))
    again = load(tmp_path / "again")
    assert again.summary["run"]["dropped"]["unevaluable"] == len(rows)
    assert again.table[0].step >= state["global_step"]


def test_a_stored_batch_that_the_run_did_not_write_is_not_unpickled(tmp_path):
    finish(interrupted(tmp_path, signal.SIGKILL, 28, "--epochs", "1000"))
    store = load(tmp_path / "run").path / "store"
    victim = sorted(store.glob("0*"))[1]
    (moment,), about = read_moments(victim)
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    write_moments(victim, [replace(moment, structure=evil)], about)
    run_to_the_end(
        tmp_path, "--version", "again", "--resume", str(tmp_path / "checkpoints" / "last.ckpt")
    )
    assert not (tmp_path / "ran").exists()
    assert load(tmp_path / "again").summary["run"]["dropped"]["unevaluable"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_extending_a_finished_run_needs_its_store(keep, tmp_path):
    options = ("--keep-store",) if keep else ()
    run_to_the_end(tmp_path, "--epochs", "2", *options)
    first = load(tmp_path / "run")
    output = run_to_the_end(
        tmp_path,
        "--epochs",
        "3",
        *options,
        "--version",
        "again",
        "--resume",
        str(tmp_path / "checkpoints" / "last.ckpt"),
    )
    again = load(tmp_path / "again")
    assert again.summary["run"]["dropped"]["unevaluable"] == 0
    if keep:
        # 35 is the last multiple of 7 at which it was saved
        kept = [probe for probe in first.table if probe.step < 35]
        assert [probe.loss for probe in again.table][: len(kept)] == [probe.loss for probe in kept]
        assert again.table[0].step == 0
    else:
        assert again.table[0].step == 35
        assert "Store(keep=True)" in output
