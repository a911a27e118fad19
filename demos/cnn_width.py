"""The α-β-condition and the width of a CNN: the second convolution has 32 channels and more.

python demos/cnn_width.py                     scikit-learn's digits, 8 to 256 channels, 2 seeds
python demos/cnn_width.py --root DIR          one epoch of CIFAR-10 (either version) in DIR
python demos/cnn_width.py --full --root DIR   the paper's setting: CIFAR-10, 32 to 2048 channels

Islamov et al. 2024, figures 5, 13 and 14: two convolutions and one linear layer, SGD with a cosine
schedule from 0.01, batch 64. Findings of the paper: with the width the smallest α and β first rise,
then fall; α − β first falls, then rises. The small setting takes less than a minute. Seeds are
0, 1, …; compare with: lightning-landscape compare runs/cnn_width/small --group-by channels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

if __package__:
    from demos.data import Images
    from demos.experiment import conclude, measured, options
    from demos.sweep import (
        MONITOR,
        NAMES,
        add_epochs,
        course,
        draw,
        epochs,
        quiet,
        settled,
        sweep,
        turning,
    )
else:
    from data import Images
    from experiment import conclude, measured, options
    from sweep import (
        MONITOR,
        NAMES,
        add_epochs,
        course,
        draw,
        epochs,
        quiet,
        settled,
        sweep,
        turning,
    )

SMALL, FULL = (8, 16, 32, 64, 128, 256), (32, 64, 128, 256, 512, 1024, 2048)
"""Channels of the second convolution"""
SMALL_STEPS, FULL_EPOCHS = 840, 200
LR, BATCH = 0.01, 64


class CNN(pl.LightningModule):
    """Two convolutions, each with a ReLU and a maximum over 2 × 2 pixels, and one linear layer.

    Args:
        shape: Shape of an image, (channels, height, width); height and width are multiples of 4.
        channels: Channels of the second convolution.
        first: Channels of the first convolution.
        classes: Number of classes.
        lr: Initial step size of SGD; a cosine schedule decreases it to 0.
    """

    def __init__(
        self,
        shape: Sequence[int] = (1, 8, 8),
        channels: int = 32,
        first: int = 32,
        classes: int = 10,
        lr: float = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        depth, height, width = shape
        self.net = nn.Sequential(
            nn.Conv2d(depth, first, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(channels * (height // 4) * (width // 4), classes),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def main() -> None:
    given = options("cnn_width", __doc__, small_seeds=2, full_seeds=4, add=add_epochs)
    chosen = settled(given, "the files of CIFAR-10")
    quiet()
    images = Images("cifar10" if chosen.root else "digits", chosen.root, BATCH, vectors=False)
    shape, length = tuple(images.shape), epochs(chosen, images.steps, SMALL_STEPS, FULL_EPOCHS)
    runs = []
    for channels in chosen.pick(SMALL, FULL):
        print(f"  {channels} channels, {len(chosen.seeds)} seeds, {length} epochs", flush=True)
        runs += [
            measured(
                chosen.out / f"channels-{channels}" / f"seed-{seed}",
                lambda: CNN(shape, channels, lr=LR),  # noqa: B023, called at once
                lambda: images,
                seed=seed,
                monitor=MONITOR,
                max_epochs=length,
                accelerator=chosen.pick("cpu", "auto"),
            )
            for seed in chosen.seeds
        ]

    found = sweep(runs, "channels")
    names = ("beta at 0.1", "beta at 1", "alpha", "beta")
    findings = [turning(found, name, 1, f"{NAMES[name]} with width", chosen.full) for name in names]
    findings.append(turning(found, "rate", -1, "α − β of the pair with width", chosen.full))
    conclude("cnn_width", chosen, list(found.rows()), findings)
    draw(
        chosen.out / "cnn_width.png",
        f"CNNs: the smallest β at δ = 1 {course(found.keys, found.values('beta at 1'))};\n"
        f"the α − β of the pair with the smallest β/δ {course(found.keys, found.values('rate'))}",
        "channels of the second convolution",
        {
            "smallest β at δ = α − β = 0.1": {"β": (found, "beta at 0.1")},
            "smallest β at δ = α − β = 1": {"β": (found, "beta at 1")},
            "pair with the smallest β/δ": {"α − β": (found, "rate"), "β": (found, "beta")},
        },
        f"filled: holds over all {len(chosen.seeds)} seeds; hollow: one seed alone",
    )


if __name__ == "__main__":
    main()
