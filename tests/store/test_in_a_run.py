"""The store in whole runs."""

import shutil
import typing
import weakref

import lightning.pytorch as pl
import torch

from lightning_landscape import LandscapeMonitor, settings
from lightning_landscape.recording.recorder import Recorder
from lightning_landscape.store import memory
from lightning_landscape.store.codecs import CODECS
from tests.helpers.modules import Plain, loader


def test_the_names_of_the_codecs_are_those_of_the_setting():
    hint = typing.get_type_hints(settings.Store)["dtype"]
    assert typing.get_args(hint) == tuple(CODECS)


def test_a_run_on_a_small_disk_thins_and_ends_well(small_disk):
    """The disk fills up while training; the probes until then are evaluated."""

    class Large(Plain):
        def __init__(self):
            super().__init__()
            self.net.append(torch.nn.Linear(4, 4))
            self.wide = torch.nn.Parameter(torch.zeros(10_000))

        def compute_loss(self, batch):
            return super().compute_loss(batch) + (self.wide - 1).square().mean()

    class Fill(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 3:  # another program takes most of the rest of the disk
                # else less may be free when it is taken
                monitor._session.kept.store.wait()
                (small_disk / "ballast").write_bytes(
                    b"0" * (shutil.disk_usage(small_disk).free - 60_000)
                )

    monitor = LandscapeMonitor(every_n_steps=1, dirpath=small_disk)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor, Fill()],
    )
    trainer.fit(Large(), loader())
    assert trainer.global_step == 20
    assert len(monitor.table) >= 2
    stride = monitor.summary["run"]["stride"]
    assert stride > 1
    assert all(probe.step % stride == 0 for probe in monitor.table)
    assert all(probe.evaluated for probe in monitor.table)
    assert monitor.summary["run"]["fidelity"]["exact"]


def test_a_run_uses_the_same_two_pieces_for_all_of_its_probes(tmp_path, monkeypatch):
    where, read, finish = [], Recorder.read_gradient, Recorder.finish
    monkeypatch.setattr(memory, "LARGE", 0)

    def waiting(recorder):
        monitor._session.kept.store.wait()  # else the record before may still need its pieces
        read(recorder)

    def noting(recorder):
        finished = finish(recorder)
        parts = (finished.record.x, finished.record.gradient.raw)
        where.append(tuple(min(v.data_ptr() for v in part.values()) for part in parts))
        return finished

    monkeypatch.setattr(Recorder, "read_gradient", waiting)
    monkeypatch.setattr(Recorder, "finish", noting)
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    trainer.fit(Plain(), loader())
    assert len(where) > 5
    # the first two, and two while those were written
    assert len({place for pair in where for place in pair}) <= 4
    assert len(set(where[2:])) <= 2


class Counts(pl.Callback):
    """Notes after each step how many pieces there are, and how many there ever were at a time."""

    def __init__(self, monkeypatch):
        self.there, self.after_steps, self.most = weakref.WeakSet(), [], 0
        init = memory._Place.__init__

        def noting(place, size):
            init(place, size)
            self.there.add(place)
            self.most = max(self.most, len(self.there))

        monkeypatch.setattr(memory._Place, "__init__", noting)

    def on_train_batch_end(self, trainer, *args):
        # x_0 is needed until it is written
        trainer.callbacks[0]._session.kept.store.wait()
        self.after_steps.append(len(self.there))


def test_a_live_run_keeps_two_pieces(tmp_path, monkeypatch):
    """x_{k+1} waits in the place of g_k while the loss at x_p is evaluated, and x_0 is read."""

    def trained(folder, *others, **settings):
        monitor = LandscapeMonitor(dirpath=folder, every_n_steps=1, **settings)
        still = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[monitor, *others], **still)
        trainer.fit(Plain(), loader())
        return monitor

    monkeypatch.setattr(memory, "LARGE", 0)
    trained(tmp_path / "first")
    counts, reference = (
        Counts(monkeypatch),
        tmp_path / "first" / "landscape" / "reference.safetensors",
    )
    monitor = trained(tmp_path / "second", counts, reference=str(reference))
    assert len(monitor.table) == len(counts.after_steps) > 5
    assert all(probe.evaluated for probe in monitor.table)
    assert set(counts.after_steps) == {2}
    assert counts.most == 3
