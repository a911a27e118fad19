"""`max_overhead` in monitored runs with a clock of ours: a step takes one second."""

import re
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_landscape import LandscapeMonitor, Store, load
from lightning_landscape.evaluation.replay import Replay
from lightning_landscape.fit import ending, live
from lightning_landscape.recording import clock as run_clock
from lightning_landscape.recording import recorder
from lightning_landscape.store.store import RecordStore
from tests.helpers.modules import Plain, loader
from tests.helpers.settings import SETTINGS, train
from tests.integration.test_brute_force import assert_equals_brute_force, record
from tests.integration.test_event_files import curves
from tests.integration.test_event_files import fit as fit_with_curves


class Clock:
    """A clock that tests advance."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class OneSecondSteps(pl.Callback):
    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_end(self, *args):
        self.clock.now += 1


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (live, ending, run_clock, recorder):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def slow(monkeypatch, clock, probe=0.0, replay=0.0):
    """Let storing a probe, and evaluating one, take a number of seconds."""
    write, loss = RecordStore.write, Replay.loss

    def slow_write(self, *args):
        clock.now += probe
        return write(self, *args)

    def slow_loss(self, *args):
        clock.now += replay
        return loss(self, *args)

    monkeypatch.setattr(RecordStore, "write", slow_write)
    monkeypatch.setattr(Replay, "loss", slow_loss)


def test_slow_probes_are_few_and_their_rows_are_right(tmp_path, clock, monkeypatch):
    setting = SETTINGS["plain"]
    recording = record(setting, tmp_path)
    slow(monkeypatch, clock, probe=2.0)
    monitor = LandscapeMonitor(every_n_steps=1, max_overhead=0.5)
    train(setting, tmp_path / "run", [monitor, OneSecondSteps(clock)])
    run = monitor.summary["run"]
    assert run["steps"] == 20
    # a probe costs 2 s, and 2 s for its evaluations at the end: each counts as a step of 1 s
    assert [probe.step for probe in monitor.table] == [0, 8, 16]
    assert run["stride"] == 8
    assert run["overhead"]["training"] <= 0.5
    assert_equals_brute_force(monitor.table, recording, setting, every=8)


def test_the_evaluation_at_the_end_counts(tmp_path, clock, monkeypatch):
    slow(monkeypatch, clock, replay=1.0)
    monitor = LandscapeMonitor(every_n_steps=1, max_overhead=0.4, dirpath=tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=8,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor, OneSecondSteps(clock)],
    )
    trainer.fit(Plain(), loader(12))
    overhead = monitor.summary["run"]["overhead"]
    assert overhead["finalisation_s"] > 10
    total = (
        overhead["training"] * (clock.now - overhead["finalisation_s"]) + overhead["finalisation_s"]
    ) / clock.now
    assert overhead["total"] == pytest.approx(total)
    assert 0.2 < overhead["total"] <= 0.4


def test_without_it_the_schedule_does_not_look_at_the_clock(tmp_path, clock, monkeypatch):
    slow(monkeypatch, clock, probe=1000.0)
    monitor = LandscapeMonitor(every_n_steps=1)
    train(SETTINGS["plain"], tmp_path, [monitor, OneSecondSteps(clock)])
    assert [probe.step for probe in monitor.table] == list(range(20))


def test_a_generous_one_changes_nothing(tmp_path):
    tables = []
    for share in (None, 0.999):
        monitor = LandscapeMonitor(every_n_steps=4, max_overhead=share)
        train(SETTINGS["plain"], tmp_path / str(share), [monitor])
        tables.append(monitor.table)
    assert tables[0] == tables[1]


def test_the_curve_ends_with_the_share_in_all(tmp_path):
    monitor = LandscapeMonitor(every_n_steps=5)
    fit_with_curves(tmp_path, monitor)
    points = curves(tmp_path / "run")[0]["overhead"]
    steps = [step for step, _ in points]
    assert steps == sorted(set(steps))
    assert steps[-1] == 24
    assert len(points) == len(monitor.table) + 1
    assert points[-1][1] == pytest.approx(monitor.summary["run"]["overhead"]["total"])


def test_resume_goes_on_with_clock_costs_and_stride(tmp_path, clock, monkeypatch):
    slow(monkeypatch, clock, probe=2.0)

    def fit(epochs, folder, checkpoint=None):
        monitor = LandscapeMonitor(
            every_n_steps=1, max_overhead=0.5, dirpath=tmp_path / folder, store=Store(keep=True)
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                monitor,
                OneSecondSteps(clock),
                ModelCheckpoint(tmp_path / "checkpoints", save_last=True),
            ],
        )
        trainer.fit(Plain(), loader(12), ckpt_path=checkpoint)
        return monitor

    fit(1, "one")
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    states = torch.load(checkpoint, weights_only=True)["callbacks"]
    state = next(state for key, state in states.items() if key.startswith("LandscapeMonitor"))
    assert state["clock"]["from_step"] == 0
    assert state["clock"]["elapsed"] > 12
    assert state["budget"]["costs"] == [2.0] * state["budget"]["probes"]
    clock.now += 1e6  # between the two runs
    again = fit(3, "two", checkpoint)
    steps, run = [probe.step for probe in again.table], again.summary["run"]
    assert steps == list(range(0, steps[-1] + 1, run["stride"]))
    assert run["stride"] == 8
    assert 0.2 < run["overhead"]["training"] <= 0.5
    assert load(tmp_path / "two").table == again.table


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.5, -0.1, float("nan"), "5%", True])
def test_refuses_what_is_no_share(value):
    found = re.escape(f"max_overhead={value!r}")
    with pytest.raises(MisconfigurationException, match=f"{found}.*between 0 and 1"):
        LandscapeMonitor(max_overhead=value)


def test_refuses_what_it_could_not_keep():
    with pytest.raises(MisconfigurationException, match="every_step=True, max_overhead=0.05"):
        LandscapeMonitor(max_overhead=0.05, every_step=True)
