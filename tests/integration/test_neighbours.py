"""The monitor with other callbacks, tuners and second fits."""

import copy
import errno
import os
import pickle
import signal

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.tuner import Tuner
from safetensors.torch import load_file

from lightning_landscape import LandscapeMonitor, Secant, Store, load
from lightning_landscape.evaluation import reference, untouched
from lightning_landscape.evaluation.evaluation import Evaluation
from lightning_landscape.recording.recorder import Recorder
from lightning_landscape.reporting import folder
from lightning_landscape.store.store import RecordStore
from lightning_landscape.training.training import Training
from tests.helpers.modules import CLASSES, FEATURES, Plain, loader, plain_loss


class WithoutScheduler(Plain):
    """SWA adds its own scheduler."""

    def __init__(self, batch_norm=True, lr=0.1):
        super().__init__()
        self.lr = lr
        if not batch_norm:
            self.net[1] = torch.nn.Identity()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class LastStep(Callback):
    """Records the parameters after the last step that had a gradient."""

    def __init__(self):
        self.moved, self.parameters = False, None

    def on_after_backward(self, trainer, pl_module):
        self.moved = True

    def on_train_batch_end(self, trainer, pl_module, *args):
        if self.moved:
            self.parameters = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.moved = False


def trainer_with(*callbacks, **kwargs):
    settings = {
        "accelerator": "cpu",
        "max_epochs": 4,
        "logger": False,
        "enable_checkpointing": False,
    }
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, **kwargs}
    return pl.Trainer(callbacks=list(callbacks), **settings)


@pytest.mark.filterwarnings("ignore:Swapping scheduler", "ignore:.*lr_scheduler.step")
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(
    "averaging",
    [lambda: StochasticWeightAveraging(0.05, swa_epoch_start=2), lambda: WeightAveraging()],
)
@pytest.mark.parametrize("order", [1, -1])
def test_the_last_iterate_is_that_of_the_optimizer_not_an_average(
    averaging, batch_norm, order, tmp_path
):
    pl.seed_everything(0, verbose=False)
    last, monitor = LastStep(), LandscapeMonitor(dirpath=tmp_path, every_n_steps=3)
    trainer = trainer_with(last, *[averaging(), monitor][::order])
    trainer.fit(WithoutScheduler(batch_norm), loader())
    reference = load_file(tmp_path / "landscape" / "reference.safetensors")
    final = dict(trainer.lightning_module.named_parameters())
    assert all(torch.equal(reference[name], last.parameters[name]) for name in reference)
    assert not all(torch.equal(reference[name], final[name]) for name in reference)
    assert monitor.summary["run"]["fidelity"]["exact"]
    assert monitor.summary["run"]["complete"]


def test_two_monitors_with_different_prefixes(tmp_path):
    one, two = (
        LandscapeMonitor(dirpath=tmp_path),
        LandscapeMonitor(dirpath=tmp_path, prefix="two", every_n_steps=5),
    )
    pl.seed_everything(0, verbose=False)
    watched = Plain()
    trainer_with(one, two, max_epochs=1).fit(watched, loader())
    pl.seed_everything(0, verbose=False)
    plain = Plain()
    trainer_with(max_epochs=1).fit(plain, loader())
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True)
    )
    assert "training_step" not in vars(watched)
    assert one.summary["run"]["fidelity"]["exact"]
    assert two.summary["run"]["fidelity"]["exact"]
    assert [probe.step for probe in load(tmp_path / "landscape").table] == [0]
    assert [probe.step for probe in load(tmp_path / "two").table] == [0, 5]
    assert one.state_key != two.state_key


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tuner_before_fit_changes_nothing(tmp_path):
    def run(*callbacks):
        pl.seed_everything(0, verbose=False)
        module, trainer = WithoutScheduler(), trainer_with(*callbacks, max_epochs=1)
        Tuner(trainer).lr_find(module, loader(), num_training=5, attr_name="lr")
        trainer.fit(module, loader())
        return module

    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=2)
    plain, watched = run(), run(monitor)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True)
    )
    assert [probe.step for probe in monitor.table] == [0, 2, 4, 6, 8]


def test_two_fits_with_one_trainer_are_two_tables(tmp_path):
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=4)
    trainer, module = trainer_with(monitor, max_epochs=1), Plain()
    trainer.fit(module, loader())
    first = monitor.table
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    assert [probe.step for probe in first] == [0, 4, 8]
    assert [probe.step for probe in monitor.table] == [10, 14, 18]
    assert [len(load(tmp_path / name).table) for name in ("landscape", "landscape-1")] == [3, 3]


def test_another_module_in_the_same_trainer_is_another_table(tmp_path):
    """The trainer's counters continue, but the second module's table has no rows of the first."""
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=4, store=Store(keep=True))
    trainer = trainer_with(monitor, max_epochs=1)
    trainer.fit(Plain(), loader())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Plain(), loader())
    assert [probe.step for probe in monitor.table] == [10, 14, 18]


def test_a_checkpoint_saved_after_fit_extends_a_run_that_kept_its_store(tmp_path):
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=4, store=Store(keep=True))
    trainer = trainer_with(monitor, max_epochs=1)
    trainer.fit(Plain(), loader())
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    again = LandscapeMonitor(dirpath=tmp_path, every_n_steps=4)
    trainer_with(again, max_epochs=2).fit(Plain(), loader(), ckpt_path=tmp_path / "after.ckpt")
    assert [probe.step for probe in again.table] == [0, 4, 8, 12, 16]
    assert [probe.loss for probe in again.table][:3] == [probe.loss for probe in monitor.table]


def test_a_table_that_cannot_be_taken_over_costs_nothing_else(tmp_path, monkeypatch):
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=4, store=Store(keep=True))
    trainer = trainer_with(monitor, max_epochs=1)
    trainer.fit(Plain(), loader())
    trainer.save_checkpoint(tmp_path / "after.ckpt")

    def adopt(store, folder, step, digest):
        if step == 8:  # some probes were taken over before
            raise MemoryError("on purpose")
        return original(store, folder, step, digest)

    original = RecordStore.adopt
    monkeypatch.setattr(RecordStore, "adopt", adopt)
    again = LandscapeMonitor(dirpath=tmp_path, every_n_steps=4)
    with pytest.warns(
        UserWarning,
        match="could not go on from the table of the checkpoint: MemoryError: on purpose",
    ):
        trainer_with(again, max_epochs=2).fit(Plain(), loader(), ckpt_path=tmp_path / "after.ckpt")
    assert [probe.step for probe in again.table] == [10, 14, 18]
    assert again.summary["run"]["complete"] is True
    assert len(load(tmp_path / "landscape-1").table) == 3


class ChangesParametersInTheEnd(Callback):
    def on_train_end(self, trainer, pl_module):
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.zero_()


@pytest.mark.filterwarnings("ignore:LandscapeMonitor stopped measuring")
def test_no_other_point_is_taken_for_a_last_iterate_that_could_not_be_copied(tmp_path, monkeypatch):
    def present(training):
        if trainer.current_epoch == 1:
            raise RuntimeError("out of memory")
        return original(training)

    original = Training.present
    monkeypatch.setattr(Training, "present", present)
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=4)
    trainer = trainer_with(ChangesParametersInTheEnd(), monitor, max_epochs=2)
    with pytest.warns(
        UserWarning, match="could not be copied before other callbacks may have changed it"
    ):
        trainer.fit(Plain(), loader())
    assert not any(probe.evaluated for probe in monitor.table)
    assert not (tmp_path / "landscape" / "reference.safetensors").exists()
    assert (tmp_path / "landscape" / "store").is_dir()


def test_ctrl_c_while_evaluating_keeps_the_store_and_is_no_complete_run(tmp_path, monkeypatch):
    calls = []

    def at(evaluation, record, reference):
        calls.append(record.step)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(evaluation, record, reference)

    original = Evaluation.at
    monkeypatch.setattr(Evaluation, "at", at)
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=2, live_epochs=None)
    trainer_with(monitor, max_epochs=1).fit(Plain(), loader())
    assert [probe.evaluated for probe in monitor.table] == [True, True, False, False, False]
    assert monitor.summary["run"]["complete"] is False
    assert "Ctrl-C" in monitor.summary["run"]["stopped_by"]
    assert (tmp_path / "landscape" / "store").is_dir()


def test_ctrl_c_while_a_loss_is_evaluated_leaves_nothing_of_it_behind(tmp_path, monkeypatch):
    """``loss=`` is the one code of the user's that runs at a probed step."""
    restore, handler = untouched._Belongings.restore, signal.getsignal(signal.SIGINT)

    def interrupted(belongings):
        monkeypatch.setattr(untouched._Belongings, "restore", restore)
        os.kill(os.getpid(), signal.SIGINT)
        belongings.restore()

    monkeypatch.setattr(untouched._Belongings, "restore", interrupted)
    module = Plain()
    before = [p.detach().clone() for p in module.parameters()]
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=1, loss=plain_loss)
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            trainer_with(monitor, max_epochs=1).fit(module, loader())
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on
    assert monitor.summary["run"]["stopped_by"] == "KeyboardInterrupt"
    assert all(map(torch.equal, before, module.parameters()))  # no step was made
    assert all(p.grad is not None and p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("failing", ["save_tensors", "write_atomically"])
def test_on_a_full_disk_the_store_makes_room_for_the_report(failing, tmp_path, monkeypatch):
    """If x_K or the table does not fit on disk, it fits once the evaluated store is deleted."""
    module = {"save_tensors": reference, "write_atomically": folder}[failing]
    original = getattr(module, failing)

    def full(path, content):
        if (tmp_path / "landscape" / "store").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, content)

    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=2, live_epochs=None)
    trainer = trainer_with(
        AtTheEnd(lambda: monkeypatch.setattr(module, failing, full)), monitor, max_epochs=1
    )
    trainer.fit(Plain(), loader())
    assert all(probe.evaluated for probe in load(tmp_path / "landscape").table)
    assert monitor.summary["run"]["complete"] is True
    assert monitor.summary["run"]["reference"]["path"] == "reference.safetensors"
    assert (tmp_path / "landscape" / "reference.safetensors").is_file()
    assert not (tmp_path / "landscape" / "store").exists()


class AtTheEnd(Callback):
    def __init__(self, what):
        self.what = what

    def on_train_epoch_end(self, trainer, pl_module):
        self.what()


def test_a_state_that_cannot_be_written_costs_no_checkpoint(tmp_path, monkeypatch):
    def state(recorder):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Recorder, "state", state)
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=4)
    trainer = trainer_with(monitor, max_epochs=1)
    with pytest.warns(
        UserWarning, match="could not write its state into the checkpoint: RuntimeError: on purpose"
    ):
        trainer.fit(Plain(), loader())
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert monitor.summary["run"]["complete"] is True
    monkeypatch.undo()
    again = LandscapeMonitor(dirpath=tmp_path, every_n_steps=4)
    trainer_with(again, max_epochs=2).fit(Plain(), loader(), ckpt_path=tmp_path / "after.ckpt")
    assert [probe.step for probe in again.table] == [10, 14, 18]


def test_a_resume_against_another_reference_starts_a_new_table(tmp_path, lightning_says):
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=4, store=Store(keep=True))
    trainer = trainer_with(monitor, max_epochs=1)
    trainer.fit(Plain(), loader())
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    other = LandscapeMonitor(
        dirpath=tmp_path, reference=str(tmp_path / "landscape" / "reference.safetensors")
    )
    trainer_with(other, max_epochs=2).fit(Plain(), loader(), ckpt_path=tmp_path / "after.ckpt")
    assert other.table[0].step == 10
    assert "another reference; a new table starts at step 10" in lightning_says()


def test_training_that_is_over_before_it_starts_is_no_error(tmp_path):
    monitor = LandscapeMonitor(dirpath=tmp_path)
    trainer_with(monitor, max_epochs=0).fit(Plain(), loader())
    assert monitor.table is None
    assert list(tmp_path.iterdir()) == []


def test_the_monitor_can_be_copied_and_pickled_before_and_after_fit(tmp_path):
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=4)
    assert copy.deepcopy(monitor).settings.every_n_steps == 4
    trainer_with(monitor, max_epochs=1).fit(Plain(), loader())
    assert pickle.loads(pickle.dumps(monitor)).table == monitor.table


def test_early_stopping_is_a_good_end(tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step == 7

    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=3)
    trainer_with(monitor, Stop()).fit(Plain(), loader())
    assert [probe.step for probe in monitor.table] == [0, 3, 6]
    assert monitor.summary["run"]["complete"] is True
    assert monitor.summary["run"]["stopped_by"] == "should_stop"


def test_a_callback_that_moves_a_teacher_now_and_then_does_not_mislead_live_evaluations(tmp_path):
    """The teacher moves between a probe's step and our hook; the probe has the old teacher."""

    class Distilled(Plain):
        def __init__(self):
            super().__init__()
            self.teacher = torch.nn.Linear(FEATURES, CLASSES)

        def compute_loss(self, batch):
            x, _ = batch
            return super().compute_loss(batch) + (self.net(x) - self.teacher(x)).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.05)

    class MovesTeacher(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step % 4 == 1:  # after the step of every second probe
                with torch.no_grad():
                    pl_module.teacher.weight.add_(1.0)

    def fit(folder, **arguments):
        pl.seed_everything(1, verbose=False)
        monitor = LandscapeMonitor(every_n_steps=2, dirpath=folder, extras=[Secant()], **arguments)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[MovesTeacher(), monitor],
        )
        trainer.fit(Distilled(), loader(12))
        assert monitor.summary["run"]["fidelity"]["exact"] is True
        rows = load(folder).tables["secant"]
        return monitor, {row.step: row.grad_sq_change for row in rows}

    first, secants = fit(tmp_path / "one")
    reference = tmp_path / "one" / "landscape" / "reference.safetensors"
    second, again = fit(tmp_path / "two", reference=str(reference))
    assert [p.reference_loss for p in second.table] == [p.reference_loss for p in first.table]
    assert again == secants
    # If the teacher had moved by 1, the gradient would change far more than by a step of 0.05.
    assert list(secants) == [probe.step for probe in first.table]
    assert max(secants[p.step] / (0.05**2 * p.grad_sq_norm) for p in first.table) < 1e3
