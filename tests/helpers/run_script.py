"""A training run in a process of its own, to be interrupted.

``python -m tests.helpers.run_script FOLDER [options]``
"""

import argparse
import faulthandler
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.nn.functional import cross_entropy

from lightning_landscape import LandscapeMonitor, PerSample, Report, Store
from tests.helpers.modules import CLASSES, FEATURES, Plain, loader


class Slow(Plain):
    """An ordinary module (dropout, BatchNorm, shuffling) that takes its time."""

    pause = 0.01

    def training_step(self, batch, batch_idx):
        time.sleep(self.pause)
        return super().training_step(batch, batch_idx)


class OfTheStep(Slow):
    """Random numbers are a function of the global step: a resumed run is the uninterrupted one."""

    def __init__(self):
        super().__init__()
        self.net[3] = torch.nn.Identity()

    def compute_loss(self, batch):
        generator = torch.Generator().manual_seed(2 * self.trainer.global_step + self.global_rank)
        x = torch.randn(6, FEATURES, generator=generator)
        y = torch.randint(CLASSES, (6,), generator=generator)
        logits = self.net(x)
        self.accuracy(logits, y)
        return cross_entropy(logits, y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def sample_losses(module, batch):
    """One loss a sample, of samples that BatchNorm mixes."""
    return cross_entropy(module.net(batch[0]), batch[1], reduction="none")


class Failing(Callback):
    def __init__(self, step, folder):
        self.step, self.folder = step, folder

    def on_train_start(self, trainer, pl_module):
        (self.folder / f"pid-{trainer.global_rank}").write_text(str(os.getpid()))

    def on_train_batch_end(self, trainer, *args):
        print(f"step {trainer.global_step}", flush=True)
        if trainer.global_step == self.step:
            raise ValueError("the user's own error")


def main(argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--module", default="Slow")
    parser.add_argument("--pause", type=float, default=0.01)
    parser.add_argument("--fail-at", type=int, default=-1)
    parser.add_argument("--resume")
    parser.add_argument("--reference", default="final")
    parser.add_argument("--max-probes", type=int, default=256)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--store-dtype", default="native")
    parser.add_argument("--version", default="run")
    parser.add_argument("--keep-store", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strategy", default="ddp_fork")
    parser.add_argument("--per-sample", action="store_true")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pl.seed_everything(11, verbose=False)
    module = globals()[options.module]()
    module.pause = options.pause
    monitor = LandscapeMonitor(
        every_n_steps=options.every,
        reference=options.reference,
        max_probes=options.max_probes,
        loss=sample_losses if options.per_sample else None,
        extras=[PerSample(mixing=True)] if options.per_sample else [],
        store=Store(keep=options.keep_store, dtype=options.store_dtype),
        report=Report(images=None),
    )
    checkpoints = ModelCheckpoint(
        options.folder / "checkpoints", save_last=True, every_n_train_steps=7, save_top_k=-1
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=options.processes,
        strategy=options.strategy if options.processes > 1 else "auto",
        max_epochs=options.epochs,
        logger=TensorBoardLogger(options.folder, name="", version=options.version),
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=options.accumulate,
        callbacks=[monitor, checkpoints, Failing(options.fail_at, options.folder)],
    )
    trainer.fit(module, loader(20), ckpt_path=options.resume)


def main_logged(argv, log):
    """Run `main`; everything that the process says goes to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # a test that waits in vain asks where the process is
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    main(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
