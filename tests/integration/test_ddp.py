"""Real processes under DistributedDataParallel: the table of one process on the batches of both."""

import csv
import dataclasses
import errno
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_landscape import LandscapeMonitor, Layers, Secant, Segments, Store, load
from lightning_landscape.evaluation.evaluation import Evaluation
from lightning_landscape.reporting.folder import RunFolder
from lightning_landscape.store.store import RecordStore
from lightning_landscape.training.training import Training
from tests.helpers import distributed, run_script
from tests.helpers.distributed import InOrder, Net, smoothed_loss, train
from tests.helpers.modules import Plain, TargetInBuffers, TargetInParameters, loader
from tests.helpers.slow import some

pytestmark = [
    pytest.mark.filterwarnings("ignore:It is recommended to use `self.log"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]

ROOT = Path(__file__).parents[2]
EXACT = {"step", "epoch", "logged_step", "loss_infimum"}


def monitored(folder, processes=2, train_kwargs=None, **arguments):
    """Train with a monitor; return its run."""
    train(
        folder,
        [LandscapeMonitor(**{"every_n_steps": 1, **arguments})],
        processes=processes,
        **(train_kwargs or {}),
    )
    return load(folder / "run")


def assert_same_tables(one, two, rtol=2e-5):
    """Assert that two tables are the same up to rounding: gradients add up in another order."""
    assert len(one) == len(two) > 1
    for a, b in zip(one, two, strict=True):
        for column in EXACT:
            assert getattr(a, column) == getattr(b, column), column
        for column in (
            "loss",
            "reference_loss",
            "initial_loss",
            "grad_sq_norm",
            "sq_distance",
            "step_size",
        ):
            assert getattr(a, column) == pytest.approx(getattr(b, column), rel=rtol, abs=rtol), (
                a.step,
                column,
            )
        size = math.sqrt(b.grad_sq_norm * b.sq_distance)
        assert a.inner_product == pytest.approx(b.inner_product, abs=rtol * size)
        assert a.step_residual == pytest.approx(
            b.step_residual, abs=rtol * math.sqrt(b.grad_sq_norm)
        )


SETTINGS = {
    "plain": ({}, {}),
    "accumulation": ({"accumulate_grad_batches": 2}, {}),
    "clipping": ({"gradient_clip_val": 0.1}, {}),
    "loss": ({}, {"loss": smoothed_loss}),
    "loss_accumulation": ({"accumulate_grad_batches": 2}, {"loss": smoothed_loss}),
    "uneven": ({"data": InOrder(drop=4)}, {}),
    "extras_and_sums": ({}, {"every_step": True, "extras": [Layers(), Secant(), Segments()]}),
    "thinned": ({}, {"max_probes": 5}),
}


@pytest.mark.parametrize("name", some(list(SETTINGS), every=4))
def test_two_processes_give_the_table_of_one(name, tmp_path):
    trainer, monitor = SETTINGS[name]
    one = monitored(tmp_path / "one", 1, trainer, **monitor)
    two = monitored(tmp_path / "two", 2, trainer, **monitor)
    assert_same_tables(two.table, one.table)
    run = two.summary["run"]
    assert run["world_size"] == 2
    assert run["fidelity"]["exact"] is True
    assert run["fidelity"]["gradient"] == pytest.approx(0, abs=1e-6)
    assert run["off_schedule"] == one.summary["run"]["off_schedule"]
    assert not (two.path / "store").exists()
    if "extras" in monitor:
        assert set(two.tables) == set(one.tables) == {"layers", "secant", "segments"}
        for a, b in zip(two.tables["layers"], one.tables["layers"], strict=True):
            assert (a.step, a.layer) == (b.step, b.layer)
            assert a.grad_sq_norm == pytest.approx(b.grad_sq_norm, rel=2e-5)
            assert a.inner_product == pytest.approx(
                b.inner_product, abs=2e-5 * math.sqrt(b.grad_sq_norm * b.sq_distance) + 1e-9
            )
        for a, b in zip(two.tables["segments"], one.tables["segments"], strict=True):
            assert (a.step, a.fraction) == (b.step, b.fraction)
            assert a.loss == pytest.approx(b.loss, rel=1e-5)
        sums, expected = run["exact_sums"], one.summary["run"]["exact_sums"]
        assert sums["steps"] == expected["steps"]
        assert sums["sq_step"] == pytest.approx(expected["sq_step"], rel=2e-5)
        assert two.summary["conditions"]["smoothness"]["secant"]["value"] == pytest.approx(
            one.summary["conditions"]["smoothness"]["secant"]["value"], rel=1e-3
        )


@pytest.mark.parametrize("loss", [None, pytest.param(smoothed_loss, marks=pytest.mark.slow)])
def test_with_a_reference_file(loss, tmp_path):
    one = monitored(tmp_path / "one", 1, loss=loss)
    reference = str(one.path / "reference.safetensors")
    live = monitored(tmp_path / "live", 2, loss=loss, reference=reference, extras=[Layers()])
    assert_same_tables(live.table, one.table)
    assert {row.step for row in live.tables["layers"]} == {probe.step for probe in live.table}


def metrics(folder):
    """Return what Lightning logged of the module."""
    with (folder / "run" / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if not k.startswith("landscape/") and v}
            for row in csv.DictReader(file)
            if row["train_loss_step"]
        ]


def assert_same_ends(a, b):
    """Assert that two runs ended with the same module and random numbers in both processes."""
    for rank in range(2):
        one, two = (torch.load(folder / f"end-{rank}.pt") for folder in (a, b))
        assert torch.equal(one["random"], two["random"])
        assert list(one["module"]) == list(two["module"])
        assert all(torch.equal(one["module"][name], two["module"][name]) for name in one["module"])


@pytest.mark.parametrize("module", some([Plain, TargetInBuffers, TargetInParameters], every=3))
def test_training_is_the_same_with_and_without_the_monitor(module, tmp_path):
    """Dropout, BatchNorm of each process, shuffling; buffers and parameters in a loss."""
    settings = {
        "module": module,
        "data": loader(16),
        "strategy": "ddp_fork_find_unused_parameters_true",
    }
    if module is not Plain:
        settings["strategy"] = "ddp_fork_find_unused_parameters_false"
    train(tmp_path / "without", [], **settings)
    with_monitor = monitored(tmp_path / "with", 2, settings, every_n_steps=2)
    assert_same_ends(tmp_path / "without", tmp_path / "with")
    assert metrics(tmp_path / "without") == metrics(tmp_path / "with")
    assert with_monitor.summary["run"]["fidelity"]["exact"] is True
    assert len(with_monitor.table) == 8


class FailsInOne(Callback):
    """Makes storing (or reading) a probe fail in one process from some step on."""

    def __init__(self, rank, method, at=4):
        self.rank, self.method, self.at = rank, method, at

    def on_train_start(self, trainer, pl_module):
        if trainer.global_rank == self.rank:
            original = getattr(RecordStore, self.method)

            def failing(store, *args):
                if trainer.global_step >= self.at:
                    raise RuntimeError("broken on purpose")
                return original(store, *args)

            setattr(RecordStore, self.method, failing)


@pytest.mark.filterwarnings("ignore:.*LandscapeMonitor")
@pytest.mark.parametrize("rank", some([1, 0], every=2))
@pytest.mark.parametrize("method", some(["others_changed", "write", "read"], every=3))
def test_a_failure_in_one_process_stops_measuring_in_all_and_nothing_else(rank, method, tmp_path):
    train(tmp_path / "without", [])
    run = monitored(
        tmp_path / "with", 2, {"callbacks_before": [FailsInOne(rank, method)]}, live_epochs=None
    )
    assert_same_ends(tmp_path / "without", tmp_path / "with")
    assert run.summary["run"]["complete"] is False
    assert (
        "failed" in run.summary["run"]["stopped_by"]
        or "broken on purpose" in run.summary["run"]["stopped_by"]
    )
    if method != "read":
        assert [probe.step for probe in run.table][:3] == [0, 1, 2]
        assert run.table[-1].step <= 5
        assert all(probe.evaluated for probe in run.table if probe.step < 3)


class FullInOne(Callback):
    """From the fifth on, a number of probes cannot be written to the disk of one process."""

    def __init__(self, rank, failures):
        self.rank, self.failures, self.calls = rank, failures, 0

    def on_train_start(self, trainer, pl_module):
        if trainer.global_rank == self.rank:
            original = RecordStore._write_files

            def full(store, *args):
                self.calls += 1
                if 4 < self.calls <= 4 + self.failures:
                    raise OSError(errno.ENOSPC, "No space left on device")
                original(store, *args)

            RecordStore._write_files = full


@pytest.mark.filterwarnings("ignore:.*LandscapeMonitor")
@pytest.mark.parametrize("rank", some([0, 1], every=2))
@pytest.mark.parametrize("failures", some([2, 1, 100], every=3))
def test_a_full_disk_in_one_process_thins_in_all_once_and_then_ends_the_monitor(
    rank, failures, tmp_path
):
    train(tmp_path / "without", [])
    run = monitored(
        tmp_path / "with", 2, {"callbacks_before": [FullInOne(rank, failures)]}, live_epochs=None
    )
    assert_same_ends(tmp_path / "without", tmp_path / "with")
    steps = [probe.step for probe in run.table]
    assert all(probe.evaluated for probe in run.table)
    assert run.summary["run"]["fidelity"]["exact"] is True
    assert run.summary["run"]["stride"] > 1
    if failures == 1:
        assert run.summary["run"]["complete"] is True
        assert steps == list(range(0, 18, 2))
    if failures == 100:
        assert run.summary["run"]["complete"] is False
        assert (
            "No space left" in run.summary["run"]["stopped_by"]
            or "no room" in run.summary["run"]["stopped_by"]
        )
        assert steps == [0, 2]


class NegativeInOne(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) - 100 * self.global_rank


def test_a_refusal_is_one_of_all_processes_before_the_first_step(tmp_path):
    started = time.monotonic()
    with pytest.raises(Exception, match="below loss_infimum=0; supported is a lower bound"):
        monitored(tmp_path, 2, {"module": NegativeInOne})
    assert time.monotonic() - started < 60
    assert not (tmp_path / "run" / "landscape").exists()


class InOne(Callback):
    """Calls a function in one process, before its training or at its end."""

    def __init__(self, rank, at, what):
        self.rank, self.what = rank, what
        setattr(self, at, self.hook)

    def hook(self, trainer, pl_module, stage=None):
        if trainer.global_rank == self.rank:
            self.what(trainer)


@pytest.mark.slow
@pytest.mark.parametrize("rank", some([0, 1], every=2))
def test_a_reference_that_one_process_lacks_is_refused_in_all(rank, tmp_path):
    monitored(tmp_path / "first", 2)
    reference = tmp_path / "first" / "run" / "landscape" / "reference.safetensors"

    def lacks(trainer):
        monitor = next(
            callback for callback in trainer.callbacks if isinstance(callback, LandscapeMonitor)
        )
        nowhere = str(tmp_path / "nowhere.safetensors")
        monitor.settings = dataclasses.replace(monitor.settings, reference=nowhere)

    started = time.monotonic()
    with pytest.raises(Exception, match="nowhere.safetensors"):
        monitored(
            tmp_path,
            2,
            {"callbacks_before": [InOne(rank, "setup", lacks)]},
            reference=str(reference),
        )
    assert time.monotonic() - started < 60
    assert not (tmp_path / "run" / "landscape").exists()


@pytest.mark.filterwarnings("ignore:.*LandscapeMonitor")
@pytest.mark.parametrize("rank", some([0, 1], every=2))
def test_ctrl_c_in_one_process_ends_the_evaluation_of_all_and_what_is_done_is_reported(
    rank, tmp_path
):
    def interrupts_the_fifth(trainer):
        original, calls = Evaluation.at, []

        def at(evaluation, record, reference):
            calls.append(record.step)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return original(evaluation, record, reference)

        Evaluation.at = at

    train(tmp_path / "without", [])
    before = [InOne(rank, "on_train_end", interrupts_the_fifth)]
    run = monitored(tmp_path / "with", 2, {"callbacks_before": before}, live_epochs=None)
    assert_same_ends(tmp_path / "without", tmp_path / "with")
    assert [probe.evaluated for probe in run.table] == [True] * 5 + [False] * 13
    assert run.summary["run"]["complete"] is False
    assert "Ctrl-C" in run.summary["run"]["stopped_by"]
    assert (run.path / "store" / "process-1").is_dir()  # to resume


@pytest.mark.filterwarnings("ignore:.*LandscapeMonitor")
@pytest.mark.parametrize("rank", some([0, 1], every=2))
def test_a_last_iterate_that_one_process_cannot_copy_is_evaluated_in_none(rank, tmp_path):
    def fails(trainer):
        def present(training):
            raise RuntimeError("out of memory")

        Training.present = present

    started = time.monotonic()
    settings = {"callbacks_before": [InOne(rank, "on_train_end", fails)], "callbacks_after": []}
    run = monitored(tmp_path, 2, settings, live_epochs=None)
    assert time.monotonic() - started < 60
    assert len(run.table) == 18
    assert not any(probe.evaluated for probe in run.table)
    assert "out of memory, while copying the last iterate" in run.summary["run"]["stopped_by"]
    assert (run.path / "store" / "process-1").is_dir()


def test_fast_dev_run_leaves_nothing_behind(tmp_path, monkeypatch):
    left = []
    for name, callbacks in (("without", []), ("with", [LandscapeMonitor()])):
        temporary = tmp_path / f"temporary-{name}"
        temporary.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        train(tmp_path / name, callbacks, fast_dev_run=True)
        assert (tmp_path / name / "end-1.pt").exists()
        left.append(len(list(temporary.rglob("*"))))
    assert left[0] == left[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LandscapeMonitor")
def test_no_store_goes_before_there_is_a_report(tmp_path):
    def fails(trainer):
        def write_summary(folder, summary):
            raise RuntimeError("broken on purpose")

        RunFolder.write_summary = write_summary

    run = monitored(tmp_path, 2, {"callbacks_before": [InOne(0, "on_train_end", fails)]})
    assert all(probe.evaluated for probe in run.table)
    assert run.summary is None
    for store in (run.path / "store", run.path / "store" / "process-1"):
        assert len(list(store.glob("0*"))) == len(run.table)


class UnpicklableInOne(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1:
            batch.append(iter([1]) if False else (i for i in range(3)))


def test_a_batch_that_one_process_cannot_keep_is_refused_in_all(tmp_path):
    class Lenient(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

    with pytest.raises(Exception, match="cannot keep this batch"):
        monitored(tmp_path, 2, {"module": Lenient, "callbacks_before": [UnpicklableInOne()]})


def test_resume_mid_epoch_and_a_changed_number_of_processes(tmp_path):
    first = monitored(tmp_path / "first", 2, {"max_steps": 12}, store=Store(keep=True))
    checkpoint = tmp_path / "first" / "checkpoints" / "epoch=1-step=10.ckpt"
    again = monitored(tmp_path / "again", 2, {"ckpt_path": str(checkpoint)})
    assert [probe.step for probe in again.table] == list(range(len(again.table)))
    assert len(again.table) > 10
    for old, new in zip(first.table[:10], again.table, strict=False):
        assert (old.step, old.loss, old.grad_sq_norm) == (new.step, new.loss, new.grad_sq_norm)
        assert new.evaluated
    assert again.summary["run"]["fidelity"]["exact"] is True
    assert again.summary["run"]["dropped"]["unevaluable"] == 0
    with pytest.raises(
        Exception, match="checkpoint of a run with 2 processes, and 1 now.*train on 2 devices"
    ):
        monitored(tmp_path / "alone", 1, {"ckpt_path": str(checkpoint)})


def test_the_store_of_each_process(tmp_path):
    run = monitored(tmp_path, 2, {"max_steps": 4}, store=Store(keep=True))
    first, second = run.path / "store", run.path / "store" / "process-1"
    for step in range(4):
        assert (first / f"{step:012d}" / "parameters.safetensors").is_file()
        assert (first / f"{step:012d}" / "moments.safetensors").is_file()
        assert (second / f"{step:012d}" / "moments.safetensors").is_file()
        assert not (second / f"{step:012d}" / "parameters.safetensors").exists()
        assert not (second / f"{step:012d}" / "gradient.safetensors").exists()
    assert all(path.stat().st_mode & 0o077 == 0 for path in (first, *first.rglob("*")))


def test_distributed_helpers_see_the_same_batches():
    """The comparisons rest on it: the samples of two processes together are those of one."""

    class Trainer:
        world_size, global_rank, lightning_module = 1, 0, None

    one = InOrder()
    one.trainer = Trainer
    whole = [batch[0] for batch in one.train_dataloader()]
    halves = []
    for rank in range(2):
        part = InOrder()
        part.trainer = type(
            "T", (), {"world_size": 2, "global_rank": rank, "lightning_module": None}
        )
        halves.append([batch[0] for batch in part.train_dataloader()])
    assert len(whole) == len(halves[0]) == distributed.STEPS
    for together, a, b in zip(whole, *halves, strict=True):
        assert sorted(map(tuple, together.tolist())) == sorted(
            map(tuple, torch.cat([a, b]).tolist())
        )
    assert os.environ.get("LOCAL_RANK") is None


@pytest.mark.slow
def test_other_launchers_give_the_same_table(tmp_path):
    """New processes of Lightning, started by the same command or from a pickled trainer."""
    options = ("--module", "OfTheStep", "--processes", "2", "--epochs", "1", "--pause", "0")
    run_script.main([str(tmp_path / "ddp_fork"), *options])
    for name in ("ddp", "ddp_spawn"):
        clean = {
            key: value
            for key, value in os.environ.items()
            if "RANK" not in key and not key.startswith(("MASTER", "PL_"))
        }
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.helpers.run_script",
                str(tmp_path / name),
                *options,
                "--strategy",
                name,
            ],
            cwd=ROOT,
            env=clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    forked, *others = (load(tmp_path / name / "run") for name in ("ddp_fork", "ddp", "ddp_spawn"))
    assert len(forked.table) == 5
    for other in others:
        assert other.table == forked.table
        assert other.summary["run"]["fidelity"]["exact"] is True
