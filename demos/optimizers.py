"""Every theorem of the paper against a run of its optimizer: the bound and the measured gap.

python demos/optimizers.py            scikit-learn's digits, one seed, 30 epochs: about a minute
python demos/optimizers.py --full     3 seeds, 300 epochs: a quarter of an hour on one core

Islamov et al. (2024) state seven theorems, one for each choice of the step size: SGD with a
constant (Theorem 1) and a decreasing step (4), SPS_max (2), NGN with a constant (3) and a
decreasing step (6), DecSPS (5), AdaGrad-norm-max (7). The paper plots none of them against a run.

Here each optimizer trains two models on the same data: logistic regression, which is convex, and an
MLP with one hidden layer. Each bound uses the best pair and the measured constants of its run. No
theorem covers Adam, the control. The optimizers' constants are the same for both models and were
not tuned for small bounds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from lightning_landscape.optim import NGN, AdaGradNormMax, DecSPS, SPSMax
from lightning_landscape.reporting.compare import compare
from lightning_landscape.reporting.scalars import bound_curves
from lightning_landscape.run import Run

if __package__:
    from demos.data import Images
    from demos.experiment import Finding, Options, conclude, measured, options, seen
else:
    from data import Images
    from experiment import Finding, Options, conclude, measured, options, seen

Make = Callable[[Any], torch.optim.Optimizer]

METHODS: dict[str, tuple[str, Make, bool]] = {
    "SGD": ("sgd", lambda p: torch.optim.SGD(p, lr=0.1), False),
    "SGD, 1/√k": ("sgd_decreasing", lambda p: torch.optim.SGD(p, lr=0.5), True),
    "SPS_max": ("sps_max", lambda p: SPSMax(p, lr=0.5, c=1.0), False),
    "DecSPS": ("dec_sps", lambda p: DecSPS(p, lr=2.0, c_init=1.0), False),
    "NGN": ("ngn", lambda p: NGN(p, lr=0.1), False),
    "NGN, 1/√k": ("ngn_decreasing", lambda p: NGN(p, lr=0.5), True),
    "AdaGrad-norm-max": (
        "adagrad_norm_max",
        lambda p: AdaGradNormMax(p, lr=2.0, b_init=10.0),
        False,
    ),
    "Adam (control)": ("sgd", lambda p: torch.optim.Adam(p, lr=1e-3), False),
}
"""By name: key of the theorem, optimizer, and whether the step size falls as 1/√(k + 1)"""
SHARPER = {
    "sgd": "sgd_sharp",
    "sps_max": "sps_max_sharp",
    "dec_sps": "dec_sps_sharp",
    "ngn": "ngn_sharp",
}
"""Key of the sharper form of a theorem, by the key of the theorem"""
MODELS = {"logistic regression": 0, "MLP": 32}
"""Width of the hidden layer; 0 for none"""
LOOKS = {"logistic regression": ("#0072B2", "o"), "MLP": ("#D55E00", "^")}
"""Color and marker"""


class Classifier(pl.LightningModule):
    """A linear classifier of digits, or an MLP with one hidden layer.

    Args:
        method: A key of `METHODS`.
        model: A key of `MODELS`.
    """

    def __init__(self, method: str, model: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        width = MODELS[model]
        self.net = (
            nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
            if width
            else nn.Linear(64, 10)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        _, make, decreasing = METHODS[self.hparams["method"]]
        optimizer = make(self.parameters())
        if not decreasing:
            return optimizer
        schedule = LambdaLR(optimizer, lambda k: (k + 1) ** -0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(folder: Path, method: str, model: str, seed: int, epochs: int) -> Run:
    """Train and measure one run with up to 400 probes."""
    return measured(
        folder,
        lambda: Classifier(method, model),
        Images,
        seed=seed,
        monitor={"every_n_steps": 4, "max_probes": 400, "live_epochs": None},
        max_epochs=epochs,
        accelerator="cpu",
        log_every_n_steps=1000,
    )


def best_gap(run: Run, width: int = 8) -> float:
    """Return the smallest mean gap of consecutive probes, an estimate of min_k E[f(x_k) − f(x_p)].

    The mean keeps one mini-batch with a small loss from deciding.
    """
    rows = run.table.evaluated
    gaps = rows.column("loss") - rows.column("reference_loss")
    return float(gaps.unfold(0, min(width, len(gaps)), 1).mean(1).min())


def _largest(terms: Mapping[str, float | None]) -> str | None:
    known = {name: value for name, value in terms.items() if value is not None}
    return max(known, key=lambda name: known[name]) if known else None


def rows_of(method: str, model: str, seed: int, run: Run) -> list[dict[str, Any]]:
    """Return the rows of a method's theorem, its sharper form and the trajectory certificate."""
    assert run.summary is not None
    key = METHODS[method][0]
    keys = [key, *([SHARPER[key]] if key in SHARPER else []), "trajectory"]
    return [row_of(method, model, seed, run, name) for name in keys]


def row_of(method: str, model: str, seed: int, run: Run, key: str) -> dict[str, Any]:
    """Return a row for one theorem and its run."""
    assert run.summary is not None
    bound, drop = run.summary["bounds"][key], run.summary["run"]["drop"]["value"]
    worth = bound["informativeness"]
    return {
        "method": method,
        "model": model,
        "seed": seed,
        "theorem": key,
        "verdict": "does not apply"
        if not bound["applies"]
        else "informative"
        if worth is not None and worth < 1
        else "vacuous",
        "bound": bound["value"],
        "best_gap": bound["measured"] if key == "trajectory" else best_gap(run),
        "drop": drop,
        "bound_over_drop": worth,
        "alpha": bound["alpha"],
        "beta": bound["beta"],
        "initial_distance": bound["terms"]["initial_distance"],
        "step_size_noise": bound["terms"]["step_size_noise"],
        "neighbourhood": bound["terms"]["neighbourhood"],
        "largest_part": _largest(bound["terms"]),
        "limit": bound["limit"],
        "status": bound["status"],
        "reason": bound["reason"],
    }


def findings(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Compare the theorems with the runs."""
    own = {METHODS[name][0] for name in METHODS}
    printed = [
        row for row in rows if row["theorem"] in own and not row["method"].startswith("Adam")
    ]
    applying = [row for row in rows if row["verdict"] != "does not apply"]
    control = [row for row in rows if row["method"].startswith("Adam")]

    def listed(chosen: Sequence[Mapping[str, Any]]) -> str:
        return ", ".join(f"{r['method']} {r['bound_over_drop']:.2g}" for r in chosen) or "none"

    def of(model: str) -> Finding:
        theirs = [
            row for row in printed if row["model"] == model and row["verdict"] != "does not apply"
        ]
        good = [row for row in theirs if row["verdict"] == "informative"]
        missing = [
            f"{row['method']}: {row['reason']}"
            for row in printed
            if row["model"] == model and row not in theirs
        ]
        vacuous = [row for row in theirs if row not in good]
        return Finding(
            f"{model}: every theorem promises less than the drop",
            seen(len(good) == len(theirs) and bool(theirs)),
            f"bound / drop, informative: {listed(good)}. Vacuous: {listed(vacuous)}. "
            f"Does not apply: {'; '.join(missing) or 'none'}",
        )

    found = {
        (row["method"], row["model"], row["seed"], row["theorem"]): row["bound"] for row in rows
    }
    pairs = [(b, found.get((*run, SHARPER.get(key, "")))) for (*run, key), b in found.items()]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    nearest = min(
        (row["bound"] / row["best_gap"] for row in applying if row["best_gap"] > 0),
        default=float("nan"),
    )
    return [
        Finding(
            "no bound is below what its run did",
            seen(all(row["bound"] >= row["best_gap"] for row in applying)),
            f"{len(applying)} bounds, the nearest {nearest:.3g} times the best measured gap (for "
            "the trajectory its mean gap)",
        ),
        *(of(model) for model in MODELS),
        Finding(
            "ours: the sharper forms are smaller",
            seen(bool(both) and all(b <= a for a, b in both)),
            f"by factors of {min(a / b for a, b in both):.3g} to {max(a / b for a, b in both):.3g}"
            if both
            else "none applies",
        ),
        Finding(
            "no theorem is about Adam",
            seen(all(row["verdict"] == "does not apply" for row in control)),
            control[0]["reason"] if control else "not run",
        ),
    ]


def draw(
    path: Path, runs: Mapping[tuple[str, str], Run], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Draw the gaps and bounds of both models for each method."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = figure.subplots(2, -(-len(METHODS) // 2), sharex=True, sharey=True)
    for place, (axes, method) in enumerate(zip(panels.flat, METHODS, strict=False)):
        said = []
        for model in MODELS:
            if (method, model) not in runs:
                continue
            row = next(r for r in rows if (r["method"], r["model"]) == (method, model))
            _draw_run(axes, runs[method, model], row["theorem"], model)
            share = row["bound_over_drop"]
            said.append(row["verdict"] if share is None else f"{share:.2g}")
        axes.set_title(f"{method}\n{' | '.join(dict.fromkeys(said))}", fontsize="medium")
        axes.set(xscale="log", yscale="log", ylim=(1e-2, 1e4))
        if place % panels.shape[1] == 0:
            axes.set_ylabel(r"$f - f(x_p)$")
        if place >= panels.shape[1]:
            axes.set_xlabel("updates K")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize="small")
    figure.suptitle(
        "Each theorem's bound (lines) above the measured gap of its run (points); above the dotted "
        "drop a bound is vacuous.\n"
        f"Numbers: final bound / drop, {' | '.join(MODELS)}"
    )
    figure.savefig(path, dpi=92)


def _draw_run(axes: Axes, run: Run, key: str, model: str) -> None:
    assert run.summary is not None
    rows, (colour, marker) = run.table.evaluated, LOOKS[model]
    updates, gaps = rows.column("step"), rows.column("loss") - rows.column("reference_loss")
    drop = run.summary["run"]["drop"]["value"]
    axes.axhline(drop, color=colour, linestyle=":", linewidth=1.4, label=f"{model}: drop")
    positive = gaps.where(gaps > 0, torch.nan)
    axes.plot(
        updates,
        positive,
        marker,
        color=colour,
        markersize=2,
        alpha=0.6,
        markeredgewidth=0,
        label=f"{model}: gap",
    )
    curves = bound_curves(rows, run.summary["run"])
    for name, line in ((key, "-"), (SHARPER.get(key, ""), "--")):
        if f"bound/{name}" in curves:
            label = f"{model}: {'sharper bound' if line == '--' else 'bound'}"
            axes.plot(
                updates, curves[f"bound/{name}"], line, color=colour, linewidth=1.6, label=label
            )


def main() -> None:
    chosen = options("optimizers", __doc__, small_seeds=1, full_seeds=3)
    experiment(chosen, chosen.pick(30, 300), tuple(METHODS))


def experiment(chosen: Options, epochs: int, methods: Sequence[str]) -> None:
    """Train both models with some of the methods and write each theorem's bound for its run."""
    warnings.filterwarnings("ignore", message=".*Detected call of `lr_scheduler.step\\(\\)`")
    runs = {
        (method, model, seed): train(
            chosen.out / model.replace(" ", "-") / f"{key_of(method)}-{seed}",
            method,
            model,
            seed,
            epochs,
        )
        for model in MODELS
        for method in methods
        for seed in chosen.seeds
    }
    rows = [
        row
        for (method, model, seed), run in runs.items()
        for row in rows_of(method, model, seed, run)
    ]
    for group in compare(list(runs.values()), "model").groups:
        print(
            f"\n{group.key}, one pair for all methods: α = {group.alpha}, β = {group.beta}, "
            f"{group.informativeness} of the drop"
        )
    conclude("optimizers", chosen, rows, findings(rows))
    first = chosen.seeds[0]
    draw(
        chosen.out / "optimizers.png",
        {(a, b): run for (a, b, seed), run in runs.items() if seed == first},
        rows,
    )
    print(f"  picture   {chosen.out / 'optimizers.png'}")


def key_of(method: str) -> str:
    """Return the folder name of a method."""
    return "".join(letter for letter in method.lower().replace("√k", "root") if letter.isalnum())


if __name__ == "__main__":
    main()
