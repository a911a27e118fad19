"""Half-space learning, the paper's non-convex example: the verdict depends on the start.

python demos/half_space.py                  2 seeds per start, a probe every 20 steps: a minute
python demos/half_space.py --full           4 seeds, a probe every 4 steps: ten minutes on one core

f(x) = mean_i σ(−b_i⟨a_i, x⟩) + (λ/2)‖x‖² with λ = 1e-5. The 20 samples come from two Gaussians of
variance 2. As in the paper, SGD makes 4000 steps of size 1/4 with one sample per mini-batch
(Islamov et al. 2024, figures 2 and 9). A sigmoid is flat at both ends: far from 0 on the wrong side
the loss is near 1 and the gradient near 0.

The result depends on dimension, class means, start and seed. Here the dimension is 10, the class
means are ±μ with ‖μ‖ = 1, and the samples have seed 0. The seed of a run draws the order of the
samples and the direction of x_0. The length of x_0 is 0.01 ("near"), 1 ("middle") or 5 ("far").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_landscape import HeldOut
from lightning_landscape.functional.alpha_beta import feasible_set
from lightning_landscape.reporting.compare import Group, compare
from lightning_landscape.run import Run

if __package__:
    from demos.experiment import Finding, Options, conclude, measured, options, seen
else:
    from experiment import Finding, Options, conclude, measured, options, seen

DIMENSION, SAMPLES, VARIANCE, MEAN = 10, 20, 2.0, 1.0
PENALTY, STEP_SIZE, STEPS = 1e-5, 0.25, 4000
STARTS = {"near": 0.01, "middle": 1.0, "far": 5.0}
"""Length of x_0 for each kind of start"""
LOOKS = {"near": ("#0072B2", "s"), "middle": ("#009E73", "^"), "far": ("#D55E00", "o")}
"""Color and marker"""
LARGE_LOSS, SMALL_GRADIENT = 0.5, 0.01
"""Thresholds of a sample on the wrong side with almost no gradient.

For comparison: at half height ‖∇f_i‖ = ‖a_i‖/4, which is about 1.
"""


def samples(seed: int = 0) -> TensorDataset:
    """Return the samples a_i, shape (20, 10), and their classes b_i = ±1, ten of each.

    Args:
        seed: seed of the samples.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = torch.ones(SAMPLES, dtype=torch.float64)
    classes[SAMPLES // 2 :] = -1
    mean = torch.full((DIMENSION,), MEAN / math.sqrt(DIMENSION), dtype=torch.float64)
    noise = torch.randn(SAMPLES, DIMENSION, generator=generator, dtype=torch.float64)
    return TensorDataset(classes[:, None] * mean + math.sqrt(VARIANCE) * noise, classes)


def loss_of(x: Tensor, points: Tensor, classes: Tensor) -> Tensor:
    """Return the mean over the given samples of σ(−b⟨a, x⟩), plus (λ/2)‖x‖²."""
    return torch.sigmoid(-classes * (points @ x)).mean() + PENALTY / 2 * x.square().sum()


class HalfSpace(pl.LightningModule):
    """A half-space through the origin, with its normal x as the only parameter.

    Args:
        start: Kind of start, a key of `STARTS`.
        length: Norm of x_0; the global seed draws its direction.
    """

    def __init__(self, start: str, length: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        direction = torch.randn(DIMENSION, dtype=torch.float64)
        self.x = nn.Parameter(length * direction / direction.norm())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return loss_of(self.x, *batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=STEP_SIZE)


def single_samples_and_all(trainer: pl.Trainer) -> list[list[Tensor]]:
    """Return 20 mini-batches of one sample, for every f_i, and one of all samples, for f."""
    return [*([point[None], label[None]] for point, label in samples()), list(samples().tensors)]


def train(folder: Path, start: str, seed: int, steps: int, every: int) -> Run:
    """Train and measure one run.

    Args:
        folder: folder of the run.
        start: kind of start.
        seed: seed of the direction of x_0 and of the order of the samples.
        steps: number of SGD steps.
        every: steps between probes.
    """
    return measured(
        folder,
        lambda: HalfSpace(start, STARTS[start]),
        lambda: DataLoader(samples(), batch_size=1, shuffle=True),
        seed=seed,
        monitor={
            "every_n_steps": every,
            "max_probes": -(-steps // every),
            "live_epochs": None,
            "extras": [HeldOut(single_samples_and_all, fixed=SAMPLES + 1)],
        },
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        precision="64-true",  # float32 would round away a step along a gradient of 1e-4
        log_every_n_steps=1000,
    )


def _fixed(run: Run) -> dict[str, Tensor]:
    rows = run.tables["fixed_batches"]
    names = ("loss", "reference_loss", "inner_product", "grad_sq_norm")
    return {
        n: torch.tensor([getattr(r, n) for r in rows], dtype=torch.float64).reshape(-1, SAMPLES + 1)
        for n in names
    }


def everywhere(run: Run) -> dict[str, Tensor]:
    """Return the columns of all 20 samples at every probe, each of shape (probes, 20)."""
    return {name: column[:, :SAMPLES] for name, column in _fixed(run).items()}


def full_batch(run: Run) -> dict[str, Tensor]:
    """Return the columns of f, the mean of all samples, at every probe, each of shape (probes,)."""
    return {name: column[:, SAMPLES] for name, column in _fixed(run).items()}


def row_of(group: Group, runs: Sequence[Run]) -> dict[str, Any]:
    """Return a row of results: constants over all runs of a start, for all f_i and for f."""
    columns = [everywhere(run) for run in runs]
    every = {name: torch.cat([c[name] for c in columns]).flatten() for name in columns[0]}
    means = [full_batch(run) for run in runs]
    whole = {name: torch.cat([m[name] for m in means]) for name in means[0]}
    gap = whole["loss"] - whole["reference_loss"]
    high = bool((whole["loss"] > LARGE_LOSS).any())
    flat = (every["loss"] > LARGE_LOSS) & (every["grad_sq_norm"].sqrt() < SMALL_GRADIENT)
    own = {
        name: torch.cat([run.table.evaluated.column(name) for run in runs])
        for name in ("loss", "inner_product")
    }
    own["grad_sq_norm"] = torch.cat([run.table.evaluated.column("grad_sq_norm") for run in runs])
    region = feasible_set(
        loss=every["loss"],
        reference_loss=every["reference_loss"],
        inner_product=every["inner_product"],
        loss_infimum=torch.zeros_like(every["loss"]),
    )
    best = region.best().pair
    return {
        "start": group.key,
        "runs": len(group.runs),
        "probes": group.probes,
        "flat_share": float(flat.double().mean()),
        "flat_loss": float(every["loss"][flat].max()) if bool(flat.any()) else None,
        "grad_norm_f_where_large": float(
            whole["grad_sq_norm"].sqrt()[whole["loss"] > LARGE_LOSS].min()
        )
        if high
        else None,
        "aiming_theta": float((own["inner_product"] / own["loss"]).min()),
        "aiming_violations": float((own["inner_product"] < 0).double().mean()),
        "aiming_theta_f": float((whole["inner_product"] / whole["loss"]).min()),
        "aiming_violations_f": float((whole["inner_product"] < 0).double().mean()),
        "pl_mu": float((own["grad_sq_norm"] / (2 * own["loss"])).min()),
        "pl_mu_f": float((whole["grad_sq_norm"] / (2 * gap))[gap > 0].min()),
        "alpha": group.alpha,
        "beta": group.beta,
        "rate": group.rate,
        # If no pair attains it, the infimum is approached as δ → ∞.
        "beta_over_rate": None
        if group.neighbourhood is None
        else group.neighbourhood / (group.interpolation_error or 1.0),
        "beta_min_tenth": group.beta_min[0],
        "beta_min_one": group.beta_min[1],
        "interpolation_error": group.interpolation_error,
        "drop": group.drop,
        "informativeness": group.informativeness,
        "beta_over_rate_all_samples": float(best[1] / best[0]) if best else None,
        "informativeness_all_samples": float(best[1] / best[0])
        * float(every["reference_loss"].mean())
        / group.drop
        if best and group.drop
        else None,
        "beta_min_tenth_all_samples": float(region.beta_min(Fraction(0.1)) or 0),
    }


def findings(near: Mapping[str, Any], far: Mapping[str, Any]) -> list[Finding]:
    """Compare the findings of the paper with both kinds of start."""
    both = (("near", near), ("far", far))

    def each(text: str) -> str:
        return "; ".join(f"{kind}: {text.format_map(row)}" for kind, row in both)

    def small(row: Mapping[str, Any]) -> bool:
        ratio, worth = row["beta_over_rate_all_samples"], row["informativeness_all_samples"]
        return ratio is not None and ratio < 10 and worth is not None and worth < 1

    def huge(row: Mapping[str, Any]) -> bool:
        ratio, worth = row["beta_over_rate_all_samples"], row["informativeness_all_samples"]
        return ratio is None or (ratio > 100 and (worth is None or worth >= 1))

    # First the numbers of the monitor, then those of the condition itself: every f_i at every x_k.
    pair = (
        "β/δ = {beta_over_rate:.4g} at the run's own mini-batches, neighbourhood "
        "{informativeness:.3g} of the drop; with all 20 samples at every probe "
        "{beta_over_rate_all_samples:.4g} and {informativeness_all_samples:.3g}; δ = 0.1 then "
        "needs β = {beta_min_tenth_all_samples:.4g}"
    )
    return [
        Finding(
            "the gradient is about 0 while the loss is large",
            seen(far["flat_loss"] is not None),
            each(
                f"{{flat_share:.1%}} of all f_i at probes are above {LARGE_LOSS} with "
                f"‖∇f_i‖ < {SMALL_GRADIENT}"
            ),
        ),
        Finding(
            "Aiming fails on mini-batches",
            seen(far["aiming_theta"] < 0),
            each("θ = {aiming_theta:.3g}, ⟨∇f_i, x − x_p⟩ < 0 at {aiming_violations:.0%}"),
        ),
        Finding(
            "Aiming fails for f itself",
            seen(far["aiming_theta_f"] < 0),
            each(
                "θ = {aiming_theta_f:.3g}, ⟨∇f, x − x_p⟩ < 0 at {aiming_violations_f:.0%} of probes"
            ),
        ),
        Finding(
            "the Polyak-Łojasiewicz inequality fails on mini-batches (needs μ below 1e-6)",
            seen(far["pl_mu"] < 1e-6),
            each("μ = {pl_mu:.2g}"),
        ),
        Finding(
            "the Polyak-Łojasiewicz inequality fails for f itself (needs μ below 1e-6)",
            seen(far["pl_mu_f"] < 1e-6),
            each("μ = {pl_mu_f:.2g}"),
        ),
        Finding(
            "far from 0, α-β holds with huge constants only, which say nothing",
            seen(huge(far)),
            pair.format_map(far),
        ),
        Finding(
            "ours: near 0 the constants of the same function are small",
            seen(small(near)),
            pair.format_map(near),
        ),
    ]


def draw(path: Path, runs: Mapping[str, Sequence[Run]], rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the first run of each kind and the pairs that hold over all runs of the kind."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    loss, flat, angle, pairs = figure.subplots(1, 4)
    for kind, members in runs.items():
        columns, table = everywhere(members[0]), members[0].table.evaluated
        steps, (colour, marker) = table.column("step"), LOOKS[kind]
        length = rf"{kind}, $\Vert x_0\Vert$ = {STARTS[kind]:g}"
        loss.plot(steps, columns["loss"].mean(1), color=colour, linewidth=1.8, label=length)
        points = (columns["loss"].flatten(), columns["grad_sq_norm"].sqrt().flatten())
        flat.plot(*points, marker, color=colour, markersize=2.5, alpha=0.35, markeredgewidth=0)
        cosine = (
            table.column("inner_product")
            / (table.column("grad_sq_norm") * table.column("sq_distance")).sqrt()
        )
        angle.plot(
            steps, cosine, marker, color=colour, markersize=2.5, alpha=0.6, markeredgewidth=0
        )
        _draw_pairs(pairs, members, colour, {"near": "-", "middle": "--", "far": "-"}[kind])
    loss.set(
        title="f along the run",
        xlabel="optimizer step k",
        ylabel=r"$f(x_k)$, mean of all 20 samples",
        ylim=(0, None),
    )
    loss.legend(fontsize="small")
    flat.axvspan(
        LARGE_LOSS, 1, ymax=_height(flat, SMALL_GRADIENT), color="#666666", alpha=0.15, linewidth=0
    )
    flat.set(
        title="Flat while wrong: in the grey box\nloss is large, gradient about 0",
        xlabel=r"$f_i(x_k)$",
        ylabel=r"$\Vert\nabla f_i(x_k)\Vert$",
        yscale="log",
    )
    angle.axhline(0, color="black", linewidth=0.8)
    angle.set(
        title="Aiming fails: below 0 the step\nleads away from the end",
        xlabel="optimizer step k",
        ylim=(-1, 1),
    )
    angle.set_ylabel(r"cosine of $\nabla f_i(x_k)$ and $x_k - x_p$")
    for line, row in zip(pairs.lines, rows, strict=True):
        ratio = row["beta_over_rate"]
        line.set_label(f"{row['start']}: {'none' if ratio is None else format(ratio, '.3g')}")
    pairs.legend(title="smallest β/δ", fontsize="small", loc="upper left")
    pairs.set(
        title="α-β holds above each line:\nfrom afar only with large β/δ",
        xlabel="δ = α − β",
        ylabel="smallest β",
    )
    pairs.set(xscale="log")
    pairs.set_yscale("symlog", linthresh=0.01)
    figure.savefig(path, dpi=95)


def _height(axes: Axes, value: float, bottom: float = 1e-5, top: float = 3.0) -> float:
    """Fix a logarithmic axis; return the position of a value on it, from 0 to 1."""
    axes.set_ylim(bottom, top)
    return math.log(value / bottom) / math.log(top / bottom)


def _draw_pairs(axes: Axes, runs: Sequence[Run], colour: str, line: str) -> None:
    names = ("loss", "reference_loss", "inner_product", "loss_infimum")
    tables = [run.table.evaluated.columns(*names) for run in runs]
    columns = {name: torch.cat([table[name] for table in tables]) for name in names}
    rates = torch.logspace(-4, 1, 200, dtype=torch.float64)
    rise, excess = (
        columns["loss"] - columns["reference_loss"],
        columns["reference_loss"] - columns["loss_infimum"],
    )
    # Float64 is enough for a picture.
    betas = ((rates[:, None] * rise - columns["inner_product"]) / excess).max(1).values.clamp(min=0)
    axes.plot(rates, betas, line, color=colour, linewidth=1.8)
    axes.set(xlim=(1e-4, 10), ylim=(0, 1e6))


def main() -> None:
    chosen = options("half_space", __doc__, small_seeds=2, full_seeds=4)
    experiment(chosen, STEPS, chosen.pick(20, 4))


def experiment(chosen: Options, steps: int, every: int) -> None:
    """Train every kind of start with every seed and write the results."""
    runs = {
        start: [
            train(chosen.out / start / f"seed-{seed}", start, seed, steps, every)
            for seed in chosen.seeds
        ]
        for start in STARTS
    }
    groups = compare([run for members in runs.values() for run in members], "start").groups
    rows = {group.key: row_of(group, runs[str(group.key)]) for group in groups}
    ordered = [rows[start] for start in STARTS]
    for start, members in runs.items():
        print(f"\n{start}, seed 0: {members[0].summary['verdict'] if members[0].summary else ''}")
    conclude("half_space", chosen, ordered, findings(rows["near"], rows["far"]))
    draw(chosen.out / "half_space.png", runs, ordered)
    print(f"  picture   {chosen.out / 'half_space.png'}")


if __name__ == "__main__":
    main()
