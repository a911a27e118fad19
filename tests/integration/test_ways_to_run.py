"""Ways to run a Trainer, kinds of batches and layers: training is unchanged, brute force agrees."""

import collections
import copy
import datetime
import shutil
import time

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_landscape import LandscapeMonitor, load
from tests.helpers.brute_force import Recording, recorded
from tests.helpers.foreign import Foreign, train
from tests.helpers.modules import FEATURES, Plain, loader
from tests.helpers.slow import some
from tests.integration.test_bit_identity import assert_same, everything
from tests.integration.test_brute_force import assert_equals_brute_force
from tests.integration.test_neighbours import WithoutScheduler, trainer_with

Pair = collections.namedtuple("Pair", "x y")

# ------------------------------------------------------------------------------------------ modules


class Checkpointed(Plain):
    """Recomputes its first layers in the backward pass."""

    reentrant = False

    def compute_loss(self, batch):
        x = batch[0].clone().requires_grad_()  # reentrant checkpointing needs it
        hidden = checkpoint(self.net[:4], x, use_reentrant=self.reentrant)
        logits = self.net[4](hidden)
        self.accuracy(logits, batch[1])
        return nn.functional.cross_entropy(logits.float(), batch[1])


class CheckpointedReentrant(Checkpointed):
    reentrant = True


class Named(Plain):
    """Batches with names, of any kind."""

    def compute_loss(self, batch):
        return super().compute_loss(
            (batch["x"], batch["y"]) if isinstance(batch, dict) else (batch.x, batch.y)
        )


class Combined(Plain):
    """Labeled and unlabeled batches side by side; one of them ends first."""

    def compute_loss(self, batch):
        loss = torch.zeros(())
        if batch["labelled"] is not None:
            loss = loss + super().compute_loss(batch["labelled"])
        return loss + (
            0.1 * self.net(batch["plain"][0]).square().mean() if batch["plain"] is not None else 0
        )


class Validated(Plain):
    """Validation between training steps, which changes metrics, counts and modes."""

    def validation_step(self, batch, batch_idx):
        self.counts["steps"] += 1
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def val_dataloader(self):
        return loader(2, shuffle=False)


class Penalised(Plain):
    """A gradient penalty at points between samples (as in WGAN-GP), at random."""

    def compute_loss(self, batch):
        share = torch.rand(len(batch[0]), 1)
        between = (share * batch[0] + (1 - share) * batch[0].flip(0)).requires_grad_()
        (slope,) = torch.autograd.grad(
            self.net(between).logsumexp(1).sum(), between, create_graph=True
        )
        return super().compute_loss(batch) + (slope.norm(dim=1) - 1).square().mean()


# ------------------------------------------------------------------------------------------ loaders


def named(kind):
    def collate(samples):
        x, y = (torch.stack(part) for part in zip(*samples, strict=True))
        return {"x": x, "y": y, "name": "a text"} if kind is dict else Pair(x, y)

    return lambda: DataLoader(loader().dataset, 6, shuffle=True, collate_fn=collate)


class Stream(IterableDataset):
    """Samples without a length."""

    def __iter__(self):
        yield from loader(5).dataset


def streamed():
    return DataLoader(Stream(), 6)


def combined(mode):
    def make():
        plain = DataLoader(
            TensorDataset(torch.randn(30, FEATURES, generator=torch.Generator().manual_seed(5))),
            5,
            shuffle=True,
        )
        return CombinedLoader({"labelled": loader(4), "plain": plain}, mode)

    return make


WAYS = {
    "checkpointed": Foreign(Checkpointed, loader),
    "checkpointed_reentrant": Foreign(CheckpointedReentrant, loader),
    "dict_batches": Foreign(Named, named(dict)),
    "named_tuple_batches": Foreign(Named, named(Pair)),
    "combined_max_size": Foreign(Combined, combined("max_size")),
    "combined_min_size": Foreign(Combined, combined("min_size"), {"accumulate_grad_batches": 3}),
    "iterable": Foreign(Plain, streamed),
    "max_steps": Foreign(Plain, loader, {"max_epochs": -1, "max_steps": 13}),
    "iterable_max_steps": Foreign(
        Plain, streamed, {"max_epochs": -1, "max_steps": 7, "accumulate_grad_batches": 2}
    ),
    "overfit_batches": Foreign(
        Plain, lambda: loader(shuffle=False), {"overfit_batches": 2, "max_epochs": 3}
    ),
    "limit_train_batches": Foreign(Plain, loader, {"limit_train_batches": 0.5}),
    "val_check_interval": Foreign(
        Validated, loader, {"val_check_interval": 3, "accumulate_grad_batches": 2}
    ),
    "sanity_and_validation": Foreign(Validated, loader, {"num_sanity_val_steps": 2}),
    "penalised": Foreign(Penalised, loader),
}


def left_behind(setting, folder, callbacks):
    trainer, module = train(setting, folder, callbacks)
    left = everything(trainer, module, folder)
    return {
        **copy.deepcopy({key: value for key, value in left.items() if key != "python"}),
        "python": left["python"],
    }


@pytest.mark.filterwarnings("ignore:You requested to overfit", "ignore:.*overfit_batches")
@pytest.mark.parametrize("name", some(WAYS, every=2))
def test_the_same_run_and_the_obvious_table(name, tmp_path):
    setting, recording = WAYS[name], Recording()
    module_class = recorded(setting.module)
    module_class.recording = recording
    train(setting, tmp_path / "recorded", [recording], module_class)
    monitor = LandscapeMonitor(every_n_steps=1)
    plainly = left_behind(setting, tmp_path / "without", [])
    assert_same(plainly, left_behind(setting, tmp_path / "with", [monitor]))
    assert_equals_brute_force(monitor.table, recording, setting)
    assert monitor.summary["run"]["fidelity"]["exact"] is True
    assert monitor.summary["run"]["steps"] == len(recording.steps)


def test_what_is_said_of_the_data(tmp_path):
    """A loader without a length, and one whose order overfit_batches has fixed."""
    streaming, overfitting = LandscapeMonitor(), LandscapeMonitor()
    train(WAYS["iterable"], tmp_path / "a", [streaming])
    train(WAYS["overfit_batches"], tmp_path / "b", [overfitting])
    assert streaming.summary["run"]["batches_per_epoch"] == "inf"
    assert streaming.summary["run"]["sampling"] == "unknown"
    assert overfitting.summary["run"]["batches_per_epoch"] == 2
    assert overfitting.summary["run"]["sampling"] == "sequential"
    assert "does not shuffle" in overfitting.summary["bounds"]["sgd"]["reason"]


# ------------------------------------------------------------------------------------ torch.compile


NEEDS_A_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler"
)


class Compiled(Plain):
    backend = "eager"

    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net, backend=self.backend)

    def training_step(self, batch, batch_idx):
        loss = self.compute_loss(batch)
        self.log("train_loss", loss)
        return loss

    def on_train_epoch_end(self):
        pass


class CompiledAhead(Compiled):
    backend = "aot_eager"


class CompiledByInductor(Compiled):
    backend = "inductor"


@pytest.mark.filterwarnings("ignore")  # dynamo's own
@pytest.mark.parametrize(
    "module",
    [
        Compiled,
        pytest.param(CompiledAhead, marks=pytest.mark.slow),
        pytest.param(CompiledByInductor, marks=[NEEDS_A_COMPILER, pytest.mark.slow]),
    ],
)
def test_a_compiled_submodule(module, tmp_path):
    torch._dynamo.reset()
    setting = Foreign(module, lambda: loader(5))
    plainly = left_behind(setting, tmp_path / "without", [])
    monitor = LandscapeMonitor(every_n_steps=1)
    assert_same(plainly, left_behind(setting, tmp_path / "with", [monitor]))
    assert len(monitor.table) == 10
    assert monitor.summary["run"]["fidelity"]["exact"] is True
    # Parameters keep their plain names, so the reference also fits a module that is not compiled.
    folder = load(tmp_path / "with" / "lightning_logs" / "version_0").path
    live = LandscapeMonitor(every_n_steps=1, reference=str(folder / "reference.safetensors"))
    assert_same(plainly, left_behind(setting, tmp_path / "live", [live]))
    assert [p.reference_loss for p in live.table] == [p.reference_loss for p in monitor.table]
    if module is CompiledByInductor:  # its kernels round and draw dropout differently
        return
    uncompiled = LandscapeMonitor(every_n_steps=1)
    train(Foreign(NotCompiled, lambda: loader(5)), tmp_path / "uncompiled", [uncompiled])
    assert [p.loss for p in uncompiled.table] == [p.loss for p in monitor.table]
    assert [p.reference_loss for p in uncompiled.table] == [p.reference_loss for p in monitor.table]
    assert (
        uncompiled.table.column("grad_sq_norm").tolist()
        == monitor.table.column("grad_sq_norm").tolist()
    )


class NotCompiled(Compiled):
    def __init__(self):
        Plain.__init__(self)


# --------------------------------------------------------------------------------------- neighbours


class RecordingBackward(Recording):
    """Skips steps without a backward pass; SWA makes one, with old gradients, for BatchNorm."""

    passes = 0

    def on_after_backward(self, trainer, pl_module):
        self.passes += 1

    def on_before_optimizer_step(self, *args):
        if self.passes:
            super().on_before_optimizer_step(*args)
        self.passes, self.window = 0, []


class Ema(WeightAveraging):
    def __init__(self):
        super().__init__(avg_fn=get_ema_avg_fn(decay=0.9))


@pytest.mark.filterwarnings("ignore:Swapping scheduler", "ignore:.*lr_scheduler.step")
@pytest.mark.parametrize(
    "averaging", some([lambda: StochasticWeightAveraging(0.05, swa_epoch_start=1), Ema], every=2)
)
@pytest.mark.parametrize("order", some([1, -1], every=2))
def test_averages_are_not_moved_and_the_table_is_of_the_iterates(averaging, order, tmp_path):
    recording, setting = RecordingBackward(), Foreign(WithoutScheduler, loader, {"max_epochs": 3})
    module_class = recorded(WithoutScheduler)
    module_class.recording = recording
    # The last recorded iterate is the optimizer's: SWA inserts its averages after the last batch.
    train(setting, tmp_path / "recorded", [recording, averaging()], module_class)
    plainly = left_behind(setting, tmp_path / "without", [averaging()])
    monitor = LandscapeMonitor(every_n_steps=1)
    assert_same(plainly, left_behind(setting, tmp_path / "with", [averaging(), monitor][::order]))
    assert_equals_brute_force(monitor.table, recording, setting)
    assert monitor.summary["run"]["fidelity"]["exact"] is True


class Noise(Callback):
    """Adds noise from its own generator to gradients."""

    def __init__(self, hook):
        self.generator = torch.Generator().manual_seed(0)
        self.norms = []
        setattr(self, hook, self.add)

    def add(self, trainer, pl_module, *args):
        for parameter in pl_module.parameters():
            parameter.grad += 0.1 * torch.randn(parameter.shape, generator=self.generator)
        self.norms.append(
            sum(float(p.grad.double().square().sum()) for p in pl_module.parameters())
        )


@pytest.mark.parametrize("hook", ["on_after_backward", "on_before_optimizer_step"])
def test_noise_that_the_monitor_sees_is_in_its_gradient_and_is_said(hook, tmp_path):
    noise, monitor = Noise(hook), LandscapeMonitor(every_n_steps=1)
    train(Foreign(WithoutScheduler, loader), tmp_path, [noise, monitor])
    assert monitor.table.column("grad_sq_norm").tolist() == pytest.approx(noise.norms, rel=1e-5)
    summary = monitor.summary
    assert summary["run"]["fidelity"]["exact"] is True
    assert summary["run"]["fidelity"]["gradient"] > 0.1
    assert "the recorded gradients differ from those of" in summary["verdict"]
    assert "differs from that of the measured loss" in summary["bounds"]["sgd"]["reason"]
    assert "differs from that of the measured loss" in summary["bounds"]["trajectory"]["reason"]


def test_noise_after_the_monitors_turn_is_in_the_residual_of_the_step(tmp_path):
    noise, monitor = Noise("on_before_optimizer_step"), LandscapeMonitor(every_n_steps=1)
    train(Foreign(WithoutScheduler, loader), tmp_path, [monitor, noise])
    summary = monitor.summary
    assert summary["run"]["fidelity"]["gradient"] < 1e-5
    for probe, norm in zip(monitor.table, noise.norms, strict=True):
        step = probe.step_size**2 * probe.grad_sq_norm + probe.step_residual**2
        assert step == pytest.approx(0.1**2 * norm, rel=1e-4)
    assert "were not along the mini-batch gradient" in summary["bounds"]["sgd"]["reason"]
    assert "were not along the mini-batch gradient" in summary["bounds"]["trajectory"]["reason"]


class Sized(WithoutScheduler):
    """Reads batch size and learning rate from attributes, which tuners set."""

    def __init__(self):
        super().__init__()
        self.batch_size = 4

    def train_dataloader(self):
        return DataLoader(loader().dataset, self.batch_size, shuffle=True)


def tuned(way, *callbacks):
    """Train after a tuner, or with a callback that tunes."""
    finders = {
        "learning_rate_finder": lambda: LearningRateFinder(num_training_steps=30, attr_name="lr"),
        "batch_size_finder": lambda: BatchSizeFinder(max_trials=3, steps_per_trial=2),
    }
    finder = [finders[way]()] if way in finders else []
    pl.seed_everything(0, verbose=False)
    module, trainer = Sized(), trainer_with(*finder, *callbacks, max_epochs=1)
    if way == "scale_batch_size":
        Tuner(trainer).scale_batch_size(module, max_trials=3, steps_per_trial=2)
    trainer.fit(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "way", some(["scale_batch_size", "learning_rate_finder", "batch_size_finder"], every=2)
)
def test_tuners(way, tmp_path):
    plain, monitor = tuned(way), LandscapeMonitor(dirpath=tmp_path, every_n_steps=1)
    watched = tuned(way, monitor)
    assert (plain.lr, plain.batch_size) == (watched.lr, watched.batch_size) != (0.1, 4)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True)
    )
    steps = -(-60 // watched.batch_size)
    assert [probe.step for probe in monitor.table] == list(range(steps))
    assert monitor.summary["run"]["steps"] == steps
    assert monitor.summary["run"]["fidelity"]["exact"] is True
    assert monitor.table.column("step_size").tolist() == pytest.approx(
        [watched.lr] * steps, rel=1e-3
    )
    assert [path.name for path in tmp_path.iterdir()] == ["landscape"]


# ------------------------------------------------------------------------------------------ its end


class Slow(Callback):
    def on_train_batch_end(self, *args):
        time.sleep(0.05)


@pytest.mark.slow
def test_max_time_ends_a_run_like_any_other(tmp_path):
    monitor = LandscapeMonitor(dirpath=tmp_path, every_n_steps=1)
    limit = datetime.timedelta(seconds=1)
    trainer = trainer_with(monitor, Slow(), max_epochs=-1, max_time=limit, num_sanity_val_steps=0)
    trainer.fit(Plain(), loader())
    assert monitor.summary["run"]["complete"] is True
    assert monitor.summary["run"]["stopped_by"] == "should_stop"
    assert monitor.summary["run"]["steps"] == trainer.global_step == len(monitor.table) > 0
    assert all(probe.evaluated for probe in monitor.table)


def test_max_time_that_is_over_before_the_first_batch_is_no_error(tmp_path):
    monitor = LandscapeMonitor(dirpath=tmp_path)
    trainer = trainer_with(monitor, max_time=datetime.timedelta(0))
    trainer.fit(Plain(), loader())
    assert trainer.global_step == 0
    assert monitor.table is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [1, 3])
def test_fast_dev_run_trains_the_same(steps, tmp_path):
    runs = []
    for callbacks in ([], [LandscapeMonitor(dirpath=tmp_path, every_n_steps=1)]):
        pl.seed_everything(0, verbose=False)
        module = Validated()
        pl.Trainer(
            accelerator="cpu",
            fast_dev_run=steps,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
        ).fit(module, loader())
        runs.append(module)
    assert all(
        torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in runs), strict=True)
    )
    assert len(callbacks[0].table) == steps
    assert list(tmp_path.iterdir()) == []


class Evaluated(Validated):
    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


def test_validate_test_and_predict_do_nothing_and_keep_what_fit_found(tmp_path):
    monitor, module = LandscapeMonitor(dirpath=tmp_path, every_n_steps=2), Evaluated()
    trainer, data = trainer_with(monitor, max_epochs=1), loader(2, shuffle=False)
    alone = [
        trainer.validate(module, data, verbose=False),
        trainer.test(module, data, verbose=False),
    ]
    predicted = torch.cat(trainer.predict(module, data))
    assert list(tmp_path.iterdir()) == []
    assert monitor.table is None
    bare = trainer_with()
    assert alone == [
        bare.validate(module, data, verbose=False),
        bare.test(module, data, verbose=False),
    ]
    assert torch.equal(predicted, torch.cat(bare.predict(module, data)))
    trainer.fit(module, loader())
    table, summary = monitor.table, monitor.summary
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    trainer.predict(module, data)
    assert monitor.table is table
    assert monitor.summary is summary
    assert len(table) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["landscape"]
