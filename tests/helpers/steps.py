"""Steps recorded by a `Recorder` alone, without a monitor, beside a recording by brute force."""

import contextlib
from types import SimpleNamespace

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback

from lightning_landscape.recording.recorder import Finished, Recorder
from lightning_landscape.recording.schedule import Schedule
from lightning_landscape.store.memory import Memory
from lightning_landscape.training.training import Training
from tests.helpers.brute_force import BruteForce, Recording, recorded
from tests.helpers.modules import loader


class Steps(Callback):
    """Calls a `Recorder` as the monitor does, at every step of automatic optimization."""

    def __init__(self, stride=1, at_step=None, **recorder):
        self.stride, self.at_step, self.arguments = stride, at_step or {}, recorder
        self.finished = []

    def on_train_start(self, trainer, pl_module):
        self.training = Training.of(trainer, pl_module, trainer.optimizers[0])
        arguments = {
            "memory": Memory(most=2),
            "others_changed": lambda others: True,
            "loss_infimum": 0.0,
            **self.arguments,
        }
        self.recorder = Recorder(self.training, Schedule(self.stride, 1000), **arguments)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.recorder.check_nothing_moved()
        self.recorder.watch(trainer.global_step, may_refuse=trainer.global_step == 0)

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.recorder.forget_gradients()
        if self.recorder.sums is not None:
            self.recorder.sums.forget_gradients()

    def on_after_backward(self, trainer, pl_module):
        if self.recorder.sums is not None:
            self.recorder.sums.count_backward()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.recorder.read_gradient()
        self.recorder.take_sums()
        act = self.at_step.get(trainer.global_step)
        if act is not None:
            act(self)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.recorder.stepping:
            found = self.recorder.finish()
            self.finished.append(found)
            if isinstance(found, Finished):
                self.recorder.schedule.keep(found.probe.step)
            else:
                self.recorder.schedule.skip(found.step)
        else:
            self.recorder.look_away()
        self.recorder.count_step(trainer.global_step - 1)

    @property
    def records(self):
        return [found.record for found in self.finished if isinstance(found, Finished)]

    @property
    def probes(self):
        return [found.probe for found in self.finished if isinstance(found, Finished)]


def fit(module, callbacks, batches=6, shuffle=True, **kwargs):
    """Train a module for one epoch; return the trainer, whose optimizer and counters stay."""
    pl.seed_everything(1, verbose=False)
    trainer = pl.Trainer(**{
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": callbacks,
        **kwargs,
    })  # fmt: skip
    trainer.fit(module(), loader(batches, shuffle=shuffle))
    return trainer


def record(kind, steps=None, **kwargs):
    """Train a module and record it twice: by a `Recorder`, and by brute force."""
    steps, recording = steps or Steps(), Recording()
    module = recorded(kind)
    module.recording = recording
    trainer = fit(module, [steps, recording], **kwargs)
    steps.training.module.zero_grad()
    return SimpleNamespace(
        trainer=trainer,
        module=steps.training.module,
        training=steps.training,
        steps=steps,
        records=steps.records,
        probes=steps.probes,
        slow=recording.steps,
        brute=BruteForce(recording, kind, contextlib.nullcontext),
    )


def elsewhere(run, seed=0):
    """Return other parameters by name."""
    generator = torch.Generator().manual_seed(seed)
    return {n: p + 0.1 * torch.randn(p.shape, generator=generator) for n, p in
            run.training.present().items()}  # fmt: skip


def flat(values):
    """Return tensors by name as one vector, in float64."""
    return torch.cat([value.double().flatten() for value in values.values()])


def assert_close(found, expected, rtol=1e-5):
    """Assert that two gradients by name are the same but for the order of their sums."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].double(), value.double(), rtol=rtol, atol=rtol * float(value.abs().max())
        )
