"""The α-β-condition of residual networks: effect of batch size, optimizer and depth.

python demos/resnet_batch_size.py                     narrow ResNets on scikit-learn's digits, 2
                                                      seeds, about a minute
python demos/resnet_batch_size.py --full --root DIR   the paper's setting: ResNet9, 18 and 34,
                                                      CIFAR-100 (either version) in DIR

Islamov et al. 2024, figures 6, 15, 16 and 17: batch 64 to 512, one-cycle step size up to 0.01.
Findings of the paper: the smallest α and β tend to fall with the batch size, and α − β grows; Adam
has smaller α and β than SGD; both fall with depth. Seeds are 0, 1, …; compare with:
lightning-landscape compare runs/resnet_batch_size/small/resnet9-SGD --group-by batch_size
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_landscape.run import Run

if __package__:
    from demos.data import Images
    from demos.experiment import Finding, Options, conclude, measured, options
    from demos.resnet import resnet
    from demos.sweep import (
        MONITOR,
        NAMES,
        Sweep,
        add_epochs,
        course,
        draw,
        judged,
        listed,
        quiet,
        settled,
        sweep,
        tends,
    )
else:
    from data import Images
    from experiment import Finding, Options, conclude, measured, options
    from resnet import resnet
    from sweep import (
        MONITOR,
        NAMES,
        Sweep,
        add_epochs,
        course,
        draw,
        judged,
        listed,
        quiet,
        settled,
        sweep,
        tends,
    )

LR = 0.01
OPTIMIZERS = ("SGD", "momentum", "Adam")
SMALL, FULL = (32, 64, 128, 256), (64, 128, 256, 512)
"""Batch sizes, smaller for the digits, which are 28 times fewer than CIFAR's images.

As in the paper, the largest is 8 times the smallest.
"""
SMALL_EPOCHS, FULL_EPOCHS = 8, 200
SMALL_WIDTH, FULL_WIDTH = 8, 64
SMALL_GRID = {
    (9, "SGD"): SMALL,
    (9, "momentum"): SMALL,
    (9, "Adam"): SMALL,
    (18, "SGD"): SMALL[1:2],
    (34, "SGD"): SMALL[1:2],
}
"""Batch sizes by depth and optimizer; deep networks are expensive, so they have one batch size"""
FULL_GRID = {
    (9, "SGD"): FULL,
    (9, "momentum"): FULL,
    (9, "Adam"): FULL,
    (18, "SGD"): FULL,
    (34, "SGD"): FULL,
}
STORE = 64.0
"""Disk for the probes in GiB; a probe of ResNet34 has 170 MB"""


class ResNet(pl.LightningModule):
    """A residual network under a one-cycle schedule.

    Args:
        depth: 9, 18 or 34.
        width: channels of the first layer.
        channels: channels of an image.
        classes: number of classes.
        optimizer: "SGD", "momentum" (SGD with momentum 0.9) or "Adam".
        batch_size: stored with the run for comparisons; the loader makes the batches.
        lr: largest step size of the cycle.
    """

    def __init__(
        self,
        depth: int = 9,
        width: int = 64,
        channels: int = 3,
        classes: int = 10,
        optimizer: str = "SGD",
        batch_size: int = 64,
        lr: float = LR,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = resnet(depth, channels, classes, width)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        lr, name = self.hparams["lr"], self.hparams["optimizer"]
        optimizer: torch.optim.Optimizer
        if name == "Adam":
            optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        else:
            optimizer = torch.optim.SGD(
                self.parameters(), lr=lr, momentum=0.9 if name == "momentum" else 0.0
            )
        steps = int(self.trainer.estimated_stepping_batches)
        # Plain SGD has no momentum to cycle. So momentum is constant for the others too, and runs
        # differ only in the optimizer.
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, lr, total_steps=steps, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def train(chosen: Options) -> dict[tuple[int, str], dict[int, list[Run]]]:
    """Return the runs over all seeds by depth and optimizer, then by batch size."""
    data, width = "cifar100" if chosen.root else "digits", chosen.pick(SMALL_WIDTH, FULL_WIDTH)
    length = chosen.arguments.epochs or chosen.pick(SMALL_EPOCHS, FULL_EPOCHS)
    grid: dict[tuple[int, str], tuple[int, ...]] = chosen.pick(SMALL_GRID, FULL_GRID)
    images = Images(data, chosen.root, vectors=False)
    runs: dict[tuple[int, str], dict[int, list[Run]]] = {}
    for (depth, name), sizes in grid.items():
        print(
            f"  ResNet{depth}, {name}, batches of {', '.join(map(str, sizes))}, "
            f"{len(chosen.seeds)} seeds, {length} epochs",
            flush=True,
        )
        for size, seed in product(sizes, chosen.seeds):
            images.batch_size = size
            run = measured(
                chosen.out / f"resnet{depth}-{name}" / f"batch-{size}" / f"seed-{seed}",
                lambda: ResNet(depth, width, images.shape[0], images.classes, name, size),  # noqa: B023, called at once
                lambda: images,
                seed=seed,
                monitor={
                    **MONITOR,
                    "store": replace(MONITOR["store"], gib=chosen.pick(4.0, STORE)),
                },
                max_epochs=length,
                log_every_n_steps=5,  # an epoch of the largest batches has seven
                accelerator=chosen.pick("cpu", "auto"),
            )
            runs.setdefault((depth, name), {}).setdefault(size, []).append(run)
    return runs


def with_batch_size(found: dict[str, Sweep], full: bool) -> list[Finding]:
    """Return findings on the trends of α, β and α − β with the batch size for every optimizer."""
    findings = []
    for name, way in (
        ("beta at 0.1", -1),
        ("beta at 1", -1),
        ("alpha", -1),
        ("beta", -1),
        ("rate", 1),
    ):
        for optimizer, one in found.items():
            values = one.values(name)
            what = (
                f"{optimizer}: {NAMES[name]} tends to {'fall' if way < 0 else 'grow'} with the "
                "batch size"
            )
            findings.append(
                Finding(what, judged(tends(values, way), full), listed(one.keys, values))
            )
    return findings


def smaller(found: Sweep, first: str, other: str, name: str, full: bool) -> Finding:
    """Return the finding that the number is smaller for the first optimizer over all runs."""
    values = dict(zip(found.keys, found.values(name), strict=True))
    holds = tends([values[other], values[first]], -1)
    return Finding(
        f"{NAMES[name]} is smaller for {first} than for {other}",
        judged(holds, full),
        listed(found.keys, found.values(name)),
    )


def main() -> None:
    given = options("resnet_batch_size", __doc__, small_seeds=2, full_seeds=4, add=add_epochs)
    chosen = settled(given, "the files of CIFAR-100")
    quiet()
    runs = train(chosen)
    nine = {name: runs[9, name] for name in OPTIMIZERS}
    by_size = {
        name: sweep([run for some in one.values() for run in some], "batch_size")
        for name, one in nine.items()
    }
    every = [run for one in nine.values() for some in one.values() for run in some]
    by_optimizer = sweep(every, "hparams.optimizer")
    shared = set.intersection(*(set(runs[depth, "SGD"]) for depth in (9, 18, 34)))
    by_depth = sweep(
        [run for depth in (9, 18, 34) for size in shared for run in runs[depth, "SGD"][size]],
        "depth",
    )

    findings = with_batch_size(by_size, chosen.full)
    for name in ("beta at 0.1", "beta at 1", "alpha", "beta"):
        findings.append(smaller(by_optimizer, "Adam", "SGD", name, chosen.full))
    for name in ("beta at 0.1", "beta at 1", "alpha", "beta"):
        values = by_depth.values(name)
        findings.append(
            Finding(
                f"SGD: {NAMES[name]} falls with depth",
                judged(tends(values, -1), chosen.full),
                listed(by_depth.keys, values),
            )
        )
    rows = [
        row
        for (depth, name), one in runs.items()
        for row in sweep([run for some in one.values() for run in some], "batch_size").rows(
            depth=depth, optimizer=name
        )
    ]
    conclude("resnet_batch_size", chosen, rows, findings)
    sgd = by_size["SGD"]
    draw(
        chosen.out / "resnet_batch_size.png",
        "ResNet9 and the batch size. SGD: the smallest β at δ = 1 "
        f"{course(sgd.keys, sgd.values('beta at 1'))},\n"
        f"the α − β of the pair with the smallest β/δ {course(sgd.keys, sgd.values('rate'))}",
        "images in a mini-batch",
        {
            f"smallest β at δ = α − β = {rate}": {
                name: (by_size[name], f"beta at {rate}") for name in OPTIMIZERS
            }
            for rate in ("0.1", "1")
        }
        | {
            "α − β of the pair with the smallest β/δ": {
                name: (by_size[name], "rate") for name in OPTIMIZERS
            }
        },
        f"filled: holds over all {len(chosen.seeds)} seeds; hollow: one seed alone",
    )


if __name__ == "__main__":
    main()
