"""An LSTM language model under normalized SGD: the gradient points away from x_p early on.

python demos/lstm_language_model.py            Python's help texts, a small vocabulary: a minute
python demos/lstm_language_model.py --larger   wider, 2,000 words, 40 epochs, 3 seeds: half an hour
python demos/lstm_language_model.py --full --data ptb --root DIR
                                               sizes of AWD-LSTM, 7 seeds; DIR has ptb.train.txt, …

Islamov et al. 2024, figures 1, 8 and 10. The model has three layers. Two trainings are measured by
the same loss, the cross-entropy of a segment without dropout. One trains this loss. The other
trains with the regularizers of AWD-LSTM, so its steps follow another gradient.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from lightning_landscape import Store
from lightning_landscape.functional import aiming_ratio, cosine, polyak_lojasiewicz_ratio
from lightning_landscape.reporting.compare import Group, compare
from lightning_landscape.run import Run

if __package__:
    from demos.experiment import Finding, Options, conclude, measured, options, seen
    from demos.text import FILES, Text
else:
    from experiment import Finding, Options, conclude, measured, options, seen
    from text import FILES, Text

NAME = "lstm_language_model"
COLOURS = {"plain": "#0072B2", "regularised": "#D55E00"}
EARLY = 0.1
"""Share of training that counts as its beginning"""


class NormalisedSGD(torch.optim.Optimizer):
    """Steps of length lr along the momentum (Cutkosky and Mehta 2020).

    m ← βm + (1 − β)(g + λx), x ← x − lr m/‖m‖

    Args:
        params: Parameters or groups; ‖m‖ is the norm over a group.
        lr: Length of a step.
        momentum: β.
        weight_decay: λ.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [x for x in group["params"] if x.grad is not None]
            for x in trained:
                g = x.grad + group["weight_decay"] * x
                if "momentum" not in self.state[x]:
                    self.state[x]["momentum"] = torch.zeros_like(x)
                self.state[x]["momentum"].lerp_(g, 1 - group["momentum"])
            norm = sum(self.state[x]["momentum"].square().sum() for x in trained) ** 0.5
            for x in trained if norm > 0 else ():
                x.sub_(self.state[x]["momentum"], alpha=float(group["lr"] / norm))
        return loss


class LSTMLanguageModel(pl.LightningModule):
    """LSTM layers as in AWD-LSTM (Merity et al. 2018), with tied input and output embeddings.

    The last layer is as wide as an embedding. Each segment starts from a zero state, so its loss is
    a function of the parameters only.

    Args:
        vocabulary: Number of words.
        embedding: Size of a word's vector.
        hidden: Units of all layers but the last.
        layers: Number of layers.
        lr: Length of the first steps; it falls to 0 along a cosine.
        momentum: β of normalized SGD.
        regularised: Whether training uses the regularizers below; the measured loss has none.
        dropout: Share of dropped values between layers.
        activation: Weight of the mean square of the output (AR).
        temporal: Weight of the mean square of its change in time (TAR).
        weight_decay: λ of normalized SGD.
    """

    def __init__(
        self,
        vocabulary: int,
        embedding: int = 32,
        hidden: int = 64,
        layers: int = 3,
        lr: float = 0.1,
        momentum: float = 0.9,
        regularised: bool = False,
        dropout: float = 0.3,
        activation: float = 2.0,
        temporal: float = 1.0,
        weight_decay: float = 1.2e-6,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        sizes = [embedding, *[hidden] * (layers - 1), embedding]
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.layers = nn.ModuleList(nn.LSTM(a, b, batch_first=True) for a, b in pairwise(sizes))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def outputs(self, tokens: Tensor, drop: float = 0.0) -> Tensor:
        """Return the last layer's outputs, shape (batch, length, embedding)."""
        values = dropout(self.embedding(tokens), drop)
        for layer in self.layers[:-1]:
            values = dropout(layer(values)[0], drop)
        return self.layers[-1](values)[0]

    def cross_entropy(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """Return the mean loss of the next tokens."""
        logits = outputs @ self.embedding.weight.T + self.bias
        return cross_entropy(logits.flatten(0, 1), tokens.flatten())

    def plain(self, batch: tuple[Tensor]) -> Tensor:
        """Return the measured loss: the cross-entropy without dropout and regularizers."""
        (tokens,) = batch
        return self.cross_entropy(self.outputs(tokens[:, :-1]), tokens[:, 1:])

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        loss = self.penalised(batch) if self.hparams["regularised"] else self.plain(batch)
        self.log("train_loss", loss)
        return loss

    def penalised(self, batch: tuple[Tensor]) -> Tensor:
        """Return the loss of the regularized training."""
        (tokens,), h = batch, self.hparams
        outputs = self.outputs(tokens[:, :-1], h["dropout"])
        dropped = dropout(outputs, h["dropout"])
        change = outputs[:, 1:] - outputs[:, :-1]
        penalty = h["activation"] * dropped.square().mean() + h["temporal"] * change.square().mean()
        return self.cross_entropy(dropped, tokens[:, 1:]) + penalty

    def validation_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.plain(batch), batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        h = self.hparams
        decay = h["weight_decay"] if h["regularised"] else 0.0
        optimizer = NormalisedSGD(self.parameters(), h["lr"], h["momentum"], decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def plain(module: LSTMLanguageModel, batch: tuple[Tensor]) -> Tensor:
    """Return the measured loss."""
    return module.plain(batch)


@dataclass(frozen=True, slots=True)
class Curves:
    """Constants of the probes of one run, in the order of training."""

    progress: Tensor
    """Share of training before each probe, 0 to 1"""
    cosine: Tensor
    aiming: Tensor
    mu: Tensor

    @classmethod
    def of(cls, run: Run) -> Curves:
        """Compute them from the table of a run."""
        rows = run.table.evaluated
        assert run.summary is not None
        return cls(
            progress=rows.column("step") / run.summary["run"]["steps"],
            cosine=cosine(**rows.columns("inner_product", "grad_sq_norm", "sq_distance")),
            aiming=aiming_ratio(**rows.columns("loss", "inner_product", "loss_infimum")),
            mu=polyak_lojasiewicz_ratio(**rows.columns("grad_sq_norm", "loss", "loss_infimum")),
        )

    @property
    def early(self) -> Tensor:
        """Whether each probe is in the first tenth."""
        return self.progress < EARLY

    @property
    def late(self) -> Tensor:
        """Whether each probe is in the second half."""
        return self.progress >= 0.5


def row_of(kind: str, seed: int, run: Run) -> dict[str, Any]:
    """Return a row of the table."""
    curves = Curves.of(run)
    early, late = curves.early, curves.late
    assert run.summary is not None
    return {
        "training": kind,
        "seed": seed,
        "probes": len(curves.progress),
        "drop": run.summary["run"]["drop"]["value"],
        "reference_loss": float(run.table.evaluated.column("reference_loss").mean()),
        "cosine_early_mean": float(curves.cosine[early].mean()),
        "cosine_early_min": float(curves.cosine[early].min()),
        "negative_cosines_early": float((curves.cosine[early] < 0).double().mean()),
        "negative_cosines_late": float((curves.cosine[late] < 0).double().mean()),
        "aiming_early_min": float(curves.aiming[early].min()),
        "aiming_late_min": float(curves.aiming[late].min()),
        "mu_min": float(curves.mu.min()),
        "mu_at": float(curves.progress[curves.mu.argmin()]),
    }


def findings_of(rows: Sequence[dict[str, Any]], groups: Sequence[Group]) -> list[Finding]:
    """Compare the runs with the paper, each finding for both trainings."""
    found = []
    for kind in dict.fromkeys(row["training"] for row in rows):
        own = [row for row in rows if row["training"] == kind]

        def every(name: str, own: list[dict[str, Any]] = own) -> str:
            return ", ".join(f"{row[name]:.3g}" for row in own)

        found += [
            Finding(
                f"{kind} training: early the gradient points away from the end (mean cosine of the "
                "first tenth below 0)",
                seen(all(row["cosine_early_mean"] < 0 for row in own)),
                f"mean cosine, a seed each: {every('cosine_early_mean')}; smallest: "
                f"{every('cosine_early_min')}; "
                f"share below 0: {every('negative_cosines_early')}",
            ),
            Finding(
                f"{kind} training: aiming is violated early and holds later (first tenth, second "
                "half)",
                seen(all(row["aiming_early_min"] < 0 < row["aiming_late_min"] for row in own)),
                f"smallest θ early: {every('aiming_early_min')}; in the second half: "
                f"{every('aiming_late_min')}",
            ),
            Finding(
                f"{kind} training: PL holds only with a tiny μ (1e-7 or less)",
                seen(all(row["mu_min"] <= 1e-7 for row in own)),
                f"μ: {every('mu_min')}, attained after a share of training of {every('mu_at')}",
            ),
        ]
    for group in groups:
        kind = "regularised" if group.key in (True, "True") else "plain"
        tell = (
            f"no finite pair ({group.reason})"
            if group.alpha is None
            else f"α = {group.alpha:.3g}, β = {group.beta:.3g}"
        )
        worth = group.informativeness
        found.append(
            Finding(
                f"{kind} training: one pair of the α-β-condition holds at all probes of all seeds, "
                "and says something",
                seen(worth is not None and worth < 1),
                f"{tell}; neighbourhood {group.neighbourhood:.3g} of a drop of {group.drop:.3g}"
                if worth is not None
                else tell,
            )
        )
    return found


def draw(path: Path, runs: dict[tuple[str, int], Run]) -> None:
    """Draw angle, aiming and Polyak-Łojasiewicz constants along training, a line per seed."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for (kind, seed), run in runs.items():
        curves = Curves.of(run)
        label = f"{kind} training" if seed == min(seed for _, seed in runs) else None
        style: dict[str, Any] = {
            "color": COLOURS[kind],
            "label": label,
            "linewidth": 1.0,
            "alpha": 0.8,
        }
        style["linestyle"] = "-" if kind == "plain" else "--"
        left.plot(curves.progress, curves.cosine, **style)
        middle.plot(curves.progress, curves.aiming, **style)
        right.plot(curves.progress, curves.mu, **style)
    _name(
        left,
        "cosine of ∇f_i(x) and x − x_p",
        "Angle: below 0 the gradient points\naway from where training ends",
    )
    _name(middle, "θ = ⟨∇f_i(x), x − x_p⟩ / f_i(x)", "Aiming: below 0 it is violated")
    _name(right, "μ = ‖∇f_i(x)‖² / 2 f_i(x)", "PL: the smallest value is its constant")
    for axes in (left, middle):
        axes.axhline(0, color="#666666", linewidth=0.8)
    right.set_yscale("log")
    left.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _name(axes: Axes, what: str, title: str) -> None:
    axes.set(xlabel="share of training", ylabel=what)
    axes.set_title(title, fontsize="medium")


SMALL: dict[str, Any] = {
    "text": {"size": 500, "length": 24, "batch_size": 16, "limit": 40_000},
    # Of the step sizes 0.2, 0.5, 1 and 2 this one gave the smallest validation loss.
    "model": {"embedding": 32, "hidden": 64, "lr": 1.0},
    "epochs": 6,
    "monitor": {"every_n_steps": 4, "max_probes": 256},
}
LARGER: dict[str, Any] = {
    "text": {"size": 2000, "length": 32, "batch_size": 16},
    "model": {"embedding": 64, "hidden": 128, "lr": 1.0},
    "epochs": 40,
    "monitor": {"every_n_steps": 4, "max_probes": 512},
}
FULL: dict[str, Any] = {
    "text": {"size": None, "length": 70, "batch_size": 20},
    "model": {"embedding": 400, "hidden": 1150, "lr": 1.0},
    "epochs": 100,
    "monitor": {"every_n_steps": 50, "max_probes": 64, "store": Store(gib=16.0)},
}


def run(chosen: Options, setting: dict[str, Any]) -> list[Finding]:
    """Train, measure, draw and conclude in one setting."""
    data = getattr(chosen.arguments, "data", "python-docs")
    text = Text(data, chosen.root, **setting["text"])
    runs = {}
    for kind in COLOURS:
        for seed in chosen.seeds:
            runs[kind, seed] = measured(
                chosen.out / kind / f"seed-{seed}",
                lambda kind=kind: LSTMLanguageModel(
                    text.size, **setting["model"], regularised=kind == "regularised"
                ),
                lambda: text,
                seed=seed,
                monitor={"loss": plain, **setting["monitor"]},
                max_epochs=setting["epochs"],
                accelerator="auto" if chosen.full else "cpu",
            )
    rows = [row_of(kind, seed, run) for (kind, seed), run in runs.items()]
    found = findings_of(rows, compare(list(runs.values()), group_by="regularised").groups)
    draw(chosen.out / f"{NAME}.png", runs)
    conclude(NAME, chosen, rows, found)
    return found


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", choices=("python-docs", "python-sources", *FILES), default="python-docs"
    )


def main() -> None:
    chosen = options(NAME, __doc__, small_seeds=2, larger_seeds=3, full_seeds=7, add=add)
    run(chosen, chosen.pick(SMALL, FULL, LARGER))


if __name__ == "__main__":
    main()
