"""The main demo: train a small network on real data and measure its loss landscape along the run.

python demos/mlp.py                                             scikit-learn's digits: half a minute
python demos/mlp.py --data fashion-mnist --root DIR --epochs 5  Fashion-MNIST, four IDX files in DIR
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_landscape import LandscapeMonitor, ProbeTable, Report, Segments
from lightning_landscape.optim import NGN, AdaGradNormMax, DecSPS, SPSMax
from lightning_landscape.reporting import tables
from lightning_landscape.reporting.tables import TextTable

if __package__:
    from demos.data import FEATURES, Images
else:
    from data import FEATURES, Images

OPTIMIZERS: dict[str, Any] = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "SPSMax": SPSMax,
    "DecSPS": DecSPS,
    "NGN": NGN,
    "AdaGradNormMax": AdaGradNormMax,
}


class MLP(pl.LightningModule):
    """A network with two hidden layers, trained by SGD as in figure 4 of the paper.

    Args:
        features: Size of an input.
        width: Size of the hidden layers.
        lr: Step size of SGD, or ``lr`` of another optimizer.
        optimizer: Name of an optimizer of torch or of this package.
    """

    def __init__(
        self, features: int = 64, width: int = 64, lr: float = 0.1, optimizer: str = "SGD"
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(features, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer: type[torch.optim.Optimizer] = OPTIMIZERS[self.hparams["optimizer"]]
        return optimizer(self.parameters(), lr=self.hparams["lr"])  # type: ignore[call-arg]


def show(table: TextTable) -> None:
    """Print a table with aligned columns."""
    widths = [max(map(len, cells)) for cells in zip(table.headers, *table.rows, strict=True)]
    print(f"\n  {table.title}\n")
    for row in (table.headers, *table.rows):
        print(
            "  "
            + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    for note in table.notes:
        print(f"  {note}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=tuple(FEATURES), default="digits")
    parser.add_argument("--root", help="folder with the four IDX files of Fashion-MNIST")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="SGD")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--reference",
        default="final",
        help="'final', or the reference.safetensors of an earlier run",
    )
    parser.add_argument("--out", default="runs", help="folder of the runs")
    parser.add_argument(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw pictures at the end",
    )
    options = parser.parse_args()
    if options.data == "fashion-mnist" and options.root is None:
        parser.error(
            "--data fashion-mnist needs --root DIR, a folder with its four IDX files (see "
            "demos/README.md)"
        )
    warnings.filterwarnings("ignore", message="The 'train_dataloader' does not have many workers")

    pl.seed_everything(options.seed)
    monitor = LandscapeMonitor(
        options.reference,
        extras=[Segments()],
        report=Report(images="all" if options.pictures else None),
    )
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(options.out, name=f"mlp-{options.data}"),
        log_every_n_steps=10,
        callbacks=[monitor],
    )
    trainer.fit(
        MLP(FEATURES[options.data], options.width, options.lr, options.optimizer),
        Images(options.data, options.root),
    )
    if monitor.table is None or monitor.summary is None:
        raise SystemExit("the run was not measured, see the messages above")

    folder = Path(str(trainer.log_dir)) / monitor.settings.prefix
    print(f"\nThe loss landscape along this run ({options.data})")
    for table in tables.of_summary(monitor.summary):
        show(table)
    print(f"\n{monitor.summary['verdict']}\n")
    print(f"  table and summary  {folder}/probes.csv, summary.json")
    if options.pictures:
        picture = draw(monitor.table, monitor.summary, folder)
        print(
            "  picture            "
            f"{picture or 'install matplotlib for one: pip install lightning-landscape[plots]'}"
        )
    if (folder / "figures").exists():
        print(f"  pictures           {folder}/figures/*.png, and *.pdf for a paper")
    print(
        f"  TensorBoard        tensorboard --logdir {options.out}    (curves, custom scalars, "
        "images, text, hparams)"
    )
    print(
        f"  a stricter test    {sys.executable} {sys.argv[0]} --data {options.data} "
        f"--seed {options.seed + 1} "
        f"{f'--root {options.root} ' if options.root else ''}"
        f"--reference {folder}/reference.safetensors"
    )


def draw(table: ProbeTable, summary: dict[str, Any], folder: Path) -> Path | None:
    """Draw the results if matplotlib is installed."""
    try:
        from lightning_landscape.reporting.figures import Drawn, overview
    except ImportError:
        return None
    path = folder / "overview.png"
    overview(Drawn(table, summary)).savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    main()
