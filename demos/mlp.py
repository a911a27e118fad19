"""The main job on real data: train a small network, and see what its loss landscape was like along the run.

python demos/mlp.py                                              scikit-learn's digits, half a minute
python demos/mlp.py --data fashion-mnist --root DIR --epochs 5   Fashion-MNIST from its four IDX files
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

from lightning_landscape import LandscapeMonitor, ProbeTable
from lightning_landscape.functional import cosine
from lightning_landscape.optim import NGN, AdaGradNormMax, DecSPS, SPSMax

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
    """A network with two hidden layers, trained by SGD as in the paper's figure 4.

    Args:
        features: Size of an input.
        width: Size of the hidden layers.
        lr: Step size of SGD, or the scale of another optimizer's.
        optimizer: Name of the optimizer, of torch or of this package.
    """

    def __init__(self, features: int = 64, width: int = 64, lr: float = 0.1, optimizer: str = "SGD") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer: type[torch.optim.Optimizer] = OPTIMIZERS[self.hparams["optimizer"]]
        return optimizer(self.parameters(), lr=self.hparams["lr"])  # type: ignore[call-arg]


def findings(table: ProbeTable, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was found, as (name, value) rows."""
    run, found = summary["run"], summary["conditions"]["alpha_beta"]
    angles = cosine(**table.columns("inner_product", "grad_sq_norm", "sq_distance"))
    angles = angles[angles.isfinite()]
    worth = "informative" if found["informative"] else "vacuous"
    return [
        ("probes", f"{run['probes']} over {run['steps']} steps, every {run['stride']}"),
        ("replays of recorded losses", "exact" if run["fidelity"]["exact"] else f"off by {run['fidelity']['max_abs']}"),
        ("alpha", shown(found["alpha"])),
        ("beta", shown(found["beta"])),
        ("rate = alpha - beta", shown(found["rate"])),
        ("interpolation error", f"{shown(found['interpolation_error'])} ± {shown(found['interpolation_error_se'])}"),
        ("neighbourhood", shown(found["neighbourhood"])),
        ("drop achieved by training", f"{shown(run['drop']['value'])} ± {shown(run['drop']['standard_error'])}"),
        ("neighbourhood / drop", f"{shown(found['informativeness'])}, {worth}"),
        ("probes that violate the pair", f"{found['violated']} of {run['probes']}"),
        ("cosine(gradient, x - x_p)", f"{angles.min():.3f} smallest, {angles.median():.3f} median"),
        ("overhead while training", f"{run['overhead']['training']:.1%}, then {run['overhead']['finalisation_s']:.1f} s"),
    ]


def conditions(summary: dict[str, Any]) -> list[str]:
    """Return a line for each other condition: its constant, where it is attained, how many probes violate it."""
    lines = []
    for name, found in summary["conditions"].items():
        if name != "alpha_beta":
            where = f"at step {found['step']}" if found["step"] is not None else found["reason"] or "at no probe"
            lines.append(
                f"{name:28s} {found['constant']:7s} {shown(found['value']):>10s}  {where}, violated {found['violated']} times"
            )
    return lines


def theorems(summary: dict[str, Any]) -> list[str]:
    """Return a line for each theorem that applies, and one on the others."""
    bounds, drop = summary["bounds"], summary["run"]["drop"]["value"]
    lines = []
    for name, bound in bounds.items():
        if bound["applies"]:
            terms = " + ".join(shown(term) for term in bound["terms"].values())
            worth = (
                f"{bound['informativeness']:.2g} of the drop" if bound["informativeness"] is not None else f"drop {shown(drop)}"
            )
            lines.append(f"{name:28s} {shown(bound['value']):>8s} = {terms}, {worth}, {bound['status'].replace('_', ' ')}")
    others = [name for name, bound in bounds.items() if not bound["applies"]]
    return [*lines, f"no value, with a reason in summary.json: {', '.join(others)}"]


def shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(FEATURES), default="digits")
    parser.add_argument("--root", help="folder with the four IDX files of Fashion-MNIST")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="SGD")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", default="final", help="'final', or the reference.safetensors of an earlier run")
    parser.add_argument("--out", default="runs", help="folder of the runs")
    options = parser.parse_args()
    if options.data == "fashion-mnist" and options.root is None:
        parser.error("--data fashion-mnist needs --root DIR, a folder with its four IDX files (see demos/README.md)")
    warnings.filterwarnings("ignore", message="The 'train_dataloader' does not have many workers")

    pl.seed_everything(options.seed)
    monitor = LandscapeMonitor(reference=options.reference)
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(options.out, name=f"mlp-{options.data}"),
        log_every_n_steps=10,
        callbacks=[monitor],
    )
    trainer.fit(MLP(FEATURES[options.data], options.width, options.lr, options.optimizer), Images(options.data, options.root))
    if monitor.table is None or monitor.summary is None:
        raise SystemExit("the run was not measured, see the messages above")

    folder = Path(str(trainer.log_dir)) / monitor.prefix
    rows = findings(monitor.table, monitor.summary)
    print(f"\nThe loss landscape along this run ({options.data})\n")
    for name, value in rows:
        print(f"  {name:30s} {value}")
    print("\n  Other conditions, with the constant that holds at every probe\n")
    for line in conditions(monitor.summary):
        print(f"  {line}")
    print("\n  Theorems: bound = distance of the start + noise of the step size + neighbourhood\n")
    for line in theorems(monitor.summary):
        print(f"  {line}")
    print(f"\n{monitor.summary['verdict']}\n")
    print(f"  table and summary  {folder}/probes.csv, summary.json")
    picture = draw(monitor.table, monitor.summary, folder)
    print(f"  picture            {picture or 'install matplotlib for one: pip install lightning-landscape[plots]'}")
    print(f"  TensorBoard        tensorboard --logdir {options.out}    (scalars, group '{monitor.prefix}')")
    print(
        f"  a harder test      {sys.executable} {sys.argv[0]} --data {options.data} --seed {options.seed + 1} "
        f"{f'--root {options.root} ' if options.root else ''}"
        f"--reference {folder}/reference.safetensors"
    )


def draw(table: ProbeTable, summary: dict[str, Any], folder: Path) -> Path | None:
    """Draw what was found, where matplotlib is installed."""
    try:
        from lightning_landscape.reporting.figures import overview
    except ImportError:
        return None
    path = folder / "overview.png"
    overview(table, summary).savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    main()
