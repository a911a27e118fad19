"""Real runs over a grid of widths and seeds, to compare and to show."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_landscape import LandscapeMonitor, Report

WIDTHS, SEEDS = (24, 3), (0, 1)


class Network(pl.LightningModule):
    """A small network that keeps its hyper-parameters, a nested one among them."""

    def __init__(self, width, seed, training=None, rate="1e-1"):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.net(x).squeeze(1) - y).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=float(self.hparams["rate"]))


def train(folder, width, seed, epochs=2, **settings):
    """Train a network for a few steps and return the monitor's folder."""
    pl.seed_everything(seed, verbose=False)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(24, 4, generator=generator)
    y = x[:, 0] + torch.randn(24, generator=generator)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=CSVLogger(folder, name=f"width_{width}", version=f"seed_{seed}"),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LandscapeMonitor(every_n_steps=1, report=Report(images=None), **settings)],
    )
    network = Network(width, seed, training={"noise": {"scale": 0.5 if width == 3 else 2}})
    trainer.fit(network, DataLoader(TensorDataset(x, y), 4, shuffle=True))
    return folder / f"width_{width}" / f"seed_{seed}" / "landscape"


def train_grid(folder):
    """Train all of the grid and return the folder."""
    for width in WIDTHS:
        for seed in SEEDS:
            train(folder, width, seed)
    return folder
