"""Runs of several processes, and the same runs of one process on the batches of all."""

import lightning.pytorch as pl
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tests.helpers.modules import CLASSES, FEATURES

BATCH, STEPS = 4, 9


class Net(LightningModule):
    """Nothing random and nothing that mixes samples: two batches of 4 are one batch of 8."""

    def __init__(self, lr=0.1):
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES))
        self.lr = lr

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = cross_entropy(self.net(x).float(), y)
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=self.lr)


def smoothed_loss(module, batch):
    x, y = batch
    return cross_entropy(module.net(x).float(), y, label_smoothing=0.1)


def sample_losses(module, batch):
    """Return one loss a sample."""
    x, y = batch
    return cross_entropy(module.net(x).float(), y, reduction="none")


def dataset(drop=0):
    """Return samples for `STEPS` steps of two batches, less some at the end."""
    generator = torch.Generator().manual_seed(7)
    count = STEPS * BATCH * 2 - drop
    x = torch.randn(count, FEATURES, generator=generator)
    return TensorDataset(x, torch.randint(CLASSES, (count,), generator=generator))


def place(trainer):
    """Return the number of processes with batches of their own, and the rank among these."""
    mesh = getattr(trainer.lightning_module, "_device_mesh", None)
    if mesh is not None:  # all processes of a tensor-parallel group have the same batch
        return mesh["data_parallel"].size(), mesh["data_parallel"].get_local_rank()
    return trainer.world_size, trainer.global_rank


def held_out_batches(trainer):
    """Return three held-out batches; each process has its part of them."""
    generator, (processes, rank) = torch.Generator().manual_seed(11), place(trainer)
    batches = [
        (
            torch.randn(4, FEATURES, generator=generator),
            torch.randint(CLASSES, (4,), generator=generator),
        )
        for _ in "abc"
    ]
    return [(x[rank::processes], y[rank::processes]) for x, y in batches]


class InOrder(pl.LightningDataModule):
    """At each step, two processes with batches of 4 see what one with batches of 8 sees."""

    def __init__(self, drop=0):
        super().__init__()
        self.samples = dataset(drop)

    def train_dataloader(self):
        processes, rank = place(self.trainer)
        sampler = DistributedSampler(self.samples, processes, rank, shuffle=False)
        return DataLoader(self.samples, BATCH * 2 // processes, sampler=sampler)


class Remember(Callback):
    """Each process writes down what it ends with, after the monitor's evaluation."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {"random": torch.get_rng_state(), "module": pl_module.state_dict()}
        torch.save(found, self.folder / f"end-{trainer.global_rank}.pt")


def train(
    folder,
    callbacks,
    *,
    processes=2,
    callbacks_before=(),
    callbacks_after=None,
    module=Net,
    epochs=2,
    strategy="ddp_fork",
    data=None,
    ckpt_path=None,
    **kwargs,
):
    """Train in a number of processes; return the trainer."""
    pl.seed_everything(3, verbose=False)
    remember = [Remember(folder)] if callbacks_after is None else callbacks_after
    checkpoints = ModelCheckpoint(
        folder / "checkpoints", save_last=True, every_n_train_steps=5, save_top_k=-1
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy if processes > 1 else "auto",
        max_epochs=epochs,
        logger=CSVLogger(folder, name="", version="run", flush_logs_every_n_steps=1),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=not (data is None or isinstance(data, pl.LightningDataModule)),
        callbacks=[*callbacks_before, *callbacks, *remember, checkpoints],
        **kwargs,
    )
    if data is None:
        data = InOrder()
    loaders = (
        {"datamodule": data}
        if isinstance(data, pl.LightningDataModule)
        else {"train_dataloaders": data}
    )
    trainer.fit(module(), **loaders, ckpt_path=ckpt_path)
    return trainer
