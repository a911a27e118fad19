"""The α-β-condition of small stand-ins for four workloads of AlgoPerf, and of an interpolating MLP.

python demos/workloads.py            all stand-ins and the control, 2 seeds, about a minute
python demos/workloads.py --larger   wider, longer, 3 seeds, a quarter of an hour
python demos/workloads.py --full     wider again, 5 seeds, no reproduction of a setting; needs a GPU

Islamov et al. 2024, figures 7 and 18. NO WORKLOAD HERE IS ALGOPERF'S. Each is a small network of
the same kind (DLRM, U-Net, graph network, encoder-decoder transformer) on real data that ships with
Python or scikit-learn, see demos/stand_in_data.py. NAdamW trains them all. The control is an MLP on
scikit-learn's digits that reaches a loss near zero. The paper relates larger constants to less
interpolation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_landscape.reporting.compare import Group, compare
from lightning_landscape.run import Run

if __package__:
    from demos.data import digits
    from demos.experiment import Finding, Options, conclude, measured, options, seen
    from demos.pairs import draw, over_seeds, row_of
    from demos.stand_in_data import click_rows, graphs, library, scanned_digits, translations
    from demos.stand_ins import DLRM, Classifier, EncoderDecoder, GraphNetwork, UNet
    from demos.sweep import MONITOR, quiet
    from demos.transformer_language_model import warm_up_and_cosine
else:
    from data import digits
    from experiment import Finding, Options, conclude, measured, options, seen
    from pairs import draw, over_seeds, row_of
    from stand_in_data import click_rows, graphs, library, scanned_digits, translations
    from stand_ins import DLRM, Classifier, EncoderDecoder, GraphNetwork, UNet
    from sweep import MONITOR, quiet
    from transformer_language_model import warm_up_and_cosine

NAME = "workloads"
CONTROL = "MLP control"


@cache
def data_of(workload: str, most: int | None = None) -> TensorDataset:
    """Return the data of a workload.

    Args:
        workload: name of the workload.
        most: number of rows, the first ones; None for all.
    """
    make: Callable[[], TensorDataset] = {
        "DLRM stand-in": click_rows,
        "U-Net stand-in": scanned_digits,
        "GNN stand-in": lambda: graphs(library()),
        "Transformer stand-in": lambda: translations(library()),
        CONTROL: digits,
    }[workload]
    return TensorDataset(*(column[:most] for column in make().tensors))


def network_of(workload: str, data: TensorDataset, sizes: Mapping[str, int]) -> nn.Module:
    """Return an untrained network for a workload's data.

    Args:
        workload: name of the workload.
        data: data of the workload.
        sizes: arguments of the network's class.
    """
    first, last = data.tensors[0], data.tensors[-1]
    if workload == "DLRM stand-in":
        return DLRM([int(first.max()) + 1] * first.shape[1], data.tensors[1].shape[1], **sizes)
    if workload == "U-Net stand-in":
        return UNet(**sizes)
    if workload == "GNN stand-in":
        return GraphNetwork(int(first.max()) + 1, last.shape[1], **sizes)
    if workload == "Transformer stand-in":
        return EncoderDecoder(1 + int(max(column.max() for column in data.tensors)), **sizes)
    return Classifier(first.shape[1], int(last.max()) + 1, **sizes)


class Workload(pl.LightningModule):
    """A network under NAdamW: NAdam, decoupled weight decay, linear warm-up, a cosine to zero.

    Args:
        network: Network with a method `loss` of a mini-batch.
        workload: Name of the workload, for comparisons.
        lr: Largest step size.
        weight_decay: Weight decay of all parameters.
        warm_up: Share of the steps with warm-up.
    """

    def __init__(
        self,
        network: nn.Module,
        workload: str,
        lr: float,
        weight_decay: float = 0.01,
        warm_up: float = 0.05,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="network")
        self.network = network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.network.loss(batch)  # type: ignore[operator]
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        h = self.hparams
        decay: dict[str, Any] = {"weight_decay": h["weight_decay"], "decoupled_weight_decay": True}
        optimizer = torch.optim.NAdam(self.parameters(), h["lr"], **decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_up_and_cosine(step, steps, h["warm_up"], last=0.0)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def findings_of(rows: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """Compare every workload with the paper and with the control."""
    control, found = rows[CONTROL], []
    for name, row in rows.items():
        if name == CONTROL:
            continue
        found.append(
            Finding(
                f"{name}: a wide range of pairs holds and says something (its neighbourhood is "
                "below the drop, a decade of δ)",
                seen(row["informative_share"] >= 1 / 3),  # one of the three decades
                f"holds so for δ from {row['informative_rates']} (looked at: 0.01 to 10); "
                f"{best_of(row)}",
            )
        )
        left, fewer = (
            row["interpolation_error"] / row["drop"],
            control["interpolation_error"] / control["drop"],
        )
        found.append(
            Finding(
                f"{name}: interpolates less than the control (a larger σ², as a share of the drop)",
                seen(left > fewer),
                f"σ² {row['interpolation_error']:.3g} of a drop of {row['drop']:.3g}, {left:.3g}; "
                f"control {fewer:.3g}",
            )
        )
        for rate, key in ((0.1, "beta_min_0.1"), (1.0, "beta_min_1")):
            found.append(
                Finding(
                    f"{name}: larger constants than the control's (β_min at δ = {rate:g})",
                    seen(None not in (row[key], control[key]) and row[key] > control[key]),
                    f"{constant_of(row, key, rate)}; control {constant_of(control, key, rate)}",
                )
            )
        found.append(
            Finding(
                f"{name}: a larger β/δ of the best pair than the control's",
                seen(
                    None not in (row["beta"], control["beta"]) and ratio_of(row) > ratio_of(control)
                ),
                f"{best_of(row)}; control {best_of(control)}",
            )
        )
    return found


def constant_of(row: Mapping[str, Any], key: str, rate: float) -> str:
    """Return the smallest β at a rate, and its neighbourhood as a share of the drop, as text."""
    if row[key] is None:
        return "none"
    share = row[key] / rate * row["interpolation_error"] / row["drop"]
    return f"{row[key]:.3g} (neighbourhood {share:.2g} of the drop)"


def ratio_of(row: Mapping[str, Any]) -> float:
    """Return β/δ of the best pair."""
    return row["beta"] / (row["alpha"] - row["beta"])


def best_of(row: Mapping[str, Any]) -> str:
    """Return the pair with the smallest β/δ as text."""
    if row["beta"] is None:
        return "no finite pair has the smallest β/δ"
    return f"smallest β/δ = {ratio_of(row):.3g}, at α = {row['alpha']:.3g}, β = {row['beta']:.3g}"


SMALL: dict[str, Any] = {
    "steps": 400,
    "workloads": {  # each has the best of the step sizes 0.001, 0.003 and 0.01 for seed 0
        "DLRM stand-in": {"lr": 1e-2, "batch_size": 128, "sizes": {"width": 16, "hidden": 64}},
        "U-Net stand-in": {"lr": 1e-2, "batch_size": 32, "sizes": {"channels": 8}},
        "GNN stand-in": {"lr": 3e-3, "batch_size": 32, "sizes": {"width": 32, "rounds": 3}},
        "Transformer stand-in": {"lr": 1e-2, "batch_size": 32, "sizes": {"width": 64, "depth": 1}},
        CONTROL: {"lr": 1e-2, "batch_size": 64, "sizes": {"width": 128}},
    },
    "monitor": {**MONITOR, "every_n_steps": 4, "max_probes": 128},
    "trainer": {"accelerator": "cpu"},
}
LARGER: dict[str, Any] = {
    "steps": 2000,
    "workloads": {
        "DLRM stand-in": {"lr": 3e-3, "batch_size": 128, "sizes": {"width": 32, "hidden": 128}},
        "U-Net stand-in": {"lr": 3e-3, "batch_size": 32, "sizes": {"channels": 16}},
        "GNN stand-in": {"lr": 3e-3, "batch_size": 32, "sizes": {"width": 64, "rounds": 4}},
        "Transformer stand-in": {"lr": 3e-3, "batch_size": 32, "sizes": {"width": 128, "depth": 2}},
        CONTROL: {"lr": 3e-3, "batch_size": 64, "sizes": {"width": 256}},
    },
    "monitor": {**MONITOR, "every_n_steps": 20, "max_probes": 128},
    "trainer": {"accelerator": "cpu"},
}
FULL: dict[str, Any] = {
    "steps": 10_000,
    "workloads": {
        "DLRM stand-in": {"lr": 1e-3, "batch_size": 512, "sizes": {"width": 128, "hidden": 512}},
        "U-Net stand-in": {"lr": 1e-3, "batch_size": 32, "sizes": {"channels": 32}},
        "GNN stand-in": {"lr": 1e-3, "batch_size": 128, "sizes": {"width": 256, "rounds": 5}},
        "Transformer stand-in": {
            "lr": 1e-3,
            "batch_size": 64,
            "sizes": {"width": 512, "depth": 6, "heads": 8},
        },
        CONTROL: {"lr": 1e-3, "batch_size": 64, "sizes": {"width": 1024}},
    },
    "monitor": {
        **MONITOR,
        "every_n_steps": 200,
        "max_probes": 64,
        "store": replace(MONITOR["store"], gib=40.0),
    },
    "trainer": {"accelerator": "auto"},
}


def run(chosen: Options, setting: dict[str, Any]) -> list[Finding]:
    """Train, measure, draw and conclude in one setting."""
    runs: dict[str, list[Run]] = {}
    for workload, its in setting["workloads"].items():
        data = data_of(workload, setting.get("most"))
        print(f"  {workload}, {len(data)} rows, {len(chosen.seeds)} seeds", flush=True)
        runs[workload] = [
            measured(
                chosen.out / workload.replace(" ", "-") / f"seed-{seed}",
                lambda: Workload(network_of(workload, data, its["sizes"]), workload, its["lr"]),  # noqa: B023, called at once
                lambda: DataLoader(data, its["batch_size"], shuffle=True, drop_last=True),  # noqa: B023
                seed=seed,
                monitor=setting["monitor"],
                max_steps=setting["steps"],
                **setting["trainer"],
            )
            for seed in chosen.seeds
        ]
    betas = {name: over_seeds(own) for name, own in runs.items()}
    groups: dict[str, Group] = {
        name: compare(own, group_by="workload").groups[0] for name, own in runs.items()
    }
    rows = {name: row_of(name, groups[name], betas[name]) for name in runs}
    found = findings_of(rows)
    starts = {name: row["drop"] + row["interpolation_error"] for name, row in rows.items()}
    draw(chosen.out / f"{NAME}.png", betas, groups, runs, "as a share of its start", starts)
    conclude(NAME, chosen, list(rows.values()), found)
    return found


def main() -> None:
    own = "larger stand-ins, trained for longer: sizes of our own, not AlgoPerf's"
    chosen = options(NAME, __doc__, small_seeds=2, full_seeds=5, larger_seeds=3, full=own)
    quiet()
    run(chosen, chosen.pick(SMALL, FULL, LARGER))


if __name__ == "__main__":
    main()
