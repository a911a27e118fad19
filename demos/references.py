"""The effect of the reference: the same run measured against four reference points.

python demos/references.py                      scikit-learn's digits, an MLP 64-64-64-10, 2 seeds
python demos/references.py --full               4 seeds, 200 epochs: eight minutes on one core
python demos/references.py --full --root DIR    Fashion-MNIST, width 512

In the theory x_p is a projection of x onto the minimizers of f. The paper (Islamov et al. 2024)
uses the last iterate. A second training with the same seed is bitwise the same, so the same
iterates, gradients and losses can be compared with another x_p. The four references are the end of
the run itself, the end of a run twice as long, the average of the iterates of the second half, and
the end of a run with another seed. The small setting takes half a minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.torch import save_file

from lightning_landscape.reporting.compare import Group, compare
from lightning_landscape.run import Run

if __package__:
    from demos.data import FEATURES, Images, Name
    from demos.experiment import Finding, Options, conclude, measured, options, seen
    from demos.mlp import MLP
else:
    from data import FEATURES, Images, Name
    from experiment import Finding, Options, conclude, measured, options, seen
    from mlp import MLP

STEP_SIZE = 0.1
OTHER = 1000
"""Added to a seed: the other seed shares nothing with it"""
REFERENCES = ("last iterate", "longer run", "average of iterates", "another seed")
LOOKS = {
    "last iterate": ("#000000", "-", "o"),
    "longer run": ("#0072B2", "--", "s"),
    "average of iterates": ("#009E73", "-.", "^"),
    "another seed": ("#D55E00", ":", "D"),
}
"""Color, line and marker"""


class Judged(MLP):
    """The MLP of the main demo, with the kind of reference as a hyper-parameter.

    Args:
        features: Size of an input.
        width: Size of the hidden layers.
        lr: Step size of SGD.
        reference: Kind of x_p.
    """

    def __init__(self, features: int, width: int, lr: float, reference: str) -> None:
        super().__init__(features, width, lr)
        self.save_hyperparameters()


class Average(Callback):
    """Averages the parameters over the second half of training, without changing training.

    Args:
        path: path of the file with the average, .safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *unused: Any
    ) -> None:
        """Add the new iterate in float64, so that rounding of the sum does not matter."""
        if 2 * trainer.global_step <= trainer.estimated_stepping_batches:
            return
        for name, value in pl_module.state_dict().items():
            new = value.detach().double()
            self.sums[name] = self.sums[name] + new if name in self.sums else new
        self.count += 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the average."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: (total / self.count).float() for name, total in self.sums.items()}, self.path
        )


def train(
    chosen: Options,
    folder: str,
    kind: str,
    seed: int,
    epochs: int,
    reference: Path | str,
    *others: Callback,
) -> Run:
    """Train and measure one run; network, order of images and probes depend on the seed only.

    Args:
        chosen: options of the experiment.
        folder: folder of the runs of this kind.
        kind: kind of x_p.
        seed: seed of weights and order.
        epochs: number of epochs.
        reference: file with x_p, or "final" for the run's own last iterate.
        others: further callbacks.
    """
    data: Name = "fashion-mnist" if chosen.root else "digits"
    root = str(chosen.root) if chosen.root else None
    return measured(
        chosen.out / folder / f"seed-{seed}",
        lambda: Judged(FEATURES[data], 512 if chosen.root else 64, STEP_SIZE, kind),
        lambda: Images(data, root),
        seed=seed,
        max_epochs=epochs,
        accelerator="cpu",
        log_every_n_steps=100,
        monitor={
            "reference": reference,
            "every_n_steps": 4,
            "max_probes": 256,
            "live_epochs": None,
        },
        callbacks=others,
    )


def runs_of(chosen: Options, seed: int, epochs: int) -> dict[str, Run]:
    """Return the measurements of one run by kind of reference."""
    average = chosen.out / "points" / f"average-{seed}.safetensors"
    first = train(chosen, "last-iterate", "last iterate", seed, epochs, "final", Average(average))
    longer = train(chosen, "source-longer", "its own end, twice as long", seed, 2 * epochs, "final")
    other = train(
        chosen, "source-other", "its own end, another seed", seed + OTHER, epochs, "final"
    )
    points = {
        "longer run": longer.path / "reference.safetensors",
        "average of iterates": average,
        "another seed": other.path / "reference.safetensors",
    }
    again = {
        kind: train(chosen, kind.replace(" ", "-"), kind, seed, epochs, point)
        for kind, point in points.items()
    }
    return {"last iterate": first, **again}


def retraced(runs: Mapping[str, Run]) -> bool:
    """Whether runs of one seed have bitwise the same probes, losses, gradients and steps."""
    names = ("step", "loss", "grad_sq_norm", "step_size")
    tables = [run.table.evaluated.columns(*names) for run in runs.values()]
    return all(torch.equal(table[name], tables[0][name]) for table in tables for name in names)


def row_of(group: Group, runs: Sequence[Run]) -> dict[str, Any]:
    """Return a row of the results: one reference, over all seeds."""
    tables = [run.table.evaluated for run in runs]

    def column(name: str) -> torch.Tensor:
        return torch.cat([table.column(name) for table in tables])

    summaries = [run.summary for run in runs if run.summary is not None]
    trajectories = [s["bounds"]["trajectory"]["informativeness"] for s in summaries]
    forces = [
        s["bounds"][s["bound_in_force"]]["informativeness"] if s["bound_in_force"] else None
        for s in summaries
    ]
    return {
        "reference": group.key,
        "runs": len(group.runs),
        "probes": group.probes,
        "first_distance": sum(table.column("sq_distance")[0].sqrt().item() for table in tables)
        / len(tables),
        "last_distance": sum(table.column("sq_distance")[-1].sqrt().item() for table in tables)
        / len(tables),
        "reference_loss": float(column("reference_loss").mean()),
        "below_reference": float((column("loss") < column("reference_loss")).double().mean()),
        "drop": group.drop,
        "negative_angles": float((column("inner_product") < 0).double().mean()),
        "aiming_theta": float((column("inner_product") / column("loss")).min()),
        "alpha": group.alpha,
        "beta": group.beta,
        "rate": group.rate,
        # If no pair attains it, the infimum is approached as δ → ∞.
        "beta_over_rate": None
        if group.neighbourhood is None
        else group.neighbourhood / (group.interpolation_error or 1.0),
        "attained": group.attained,
        "beta_min_tenth": group.beta_min[0],
        "beta_min_one": group.beta_min[1],
        "neighbourhood": group.neighbourhood,
        "informativeness": group.informativeness,
        "worst_theorem_over_drop": None if None in forces else max(forces),
        "worst_certificate_over_drop": None if None in trajectories else max(trajectories),
    }


def findings(rows: Mapping[str, Mapping[str, Any]], same: bool) -> list[Finding]:
    """Compare the warnings of docs/theory.md with the runs."""
    own, longer, average, other = (rows[kind] for kind in REFERENCES)

    def ratio(row: Mapping[str, Any]) -> float:
        return float("inf") if row["beta_over_rate"] is None else row["beta_over_rate"]

    def each(*chosen: Mapping[str, Any]) -> str:
        text = (
            "{reference}: β/δ = {beta_over_rate}, neighbourhood {informativeness} of the drop, "
            "cosine < 0 at {angles}"
        )
        return "; ".join(
            text.format(
                reference=row["reference"],
                beta_over_rate=f"{ratio(row):.3g}",
                informativeness="—"
                if row["informativeness"] is None
                else f"{row['informativeness']:.2g}",
                angles=f"{row['negative_angles']:.0%}",
            )
            for row in chosen
        )

    return [
        Finding(
            "a second pass with the same seed is the same run, to the last bit",
            seen(same),
            "losses, gradients, step sizes",
        ),
        Finding(
            "the run's own end gives the smallest β/δ of the four",
            seen(ratio(own) <= min(map(ratio, (longer, average, other)))),
            each(own, longer, average, other),
        ),
        *(
            Finding(
                f"{name} gives the same verdict on the pair, informative or vacuous",
                seen(((own["informativeness"] or 0) < 1) == ((row["informativeness"] or 0) < 1)),
                f"{each(own, row)}; Aiming θ = {own['aiming_theta']:.3g} and "
                f"{row['aiming_theta']:.3g}",
            )
            for name, row in (("a longer run's end", longer), ("an average of iterates", average))
        ),
        Finding(
            "gradients aim at the run's own end and not at another seed's",
            seen(other["negative_angles"] > 0.25 > own["negative_angles"]),
            f"D_0 = {own['first_distance']:.3g}, and nothing at the end, to its own end; "
            f"{other['first_distance']:.3g} and "
            f"{other['last_distance']:.3g} at the last probe, to the other seed's",
        ),
        Finding(
            "judged against another seed's end, the verdict turns from informative to vacuous",
            seen((own["informativeness"] or 0) < 1 <= (other["informativeness"] or float("inf"))),
            each(own, other),
        ),
    ]


def draw(path: Path, runs: Mapping[str, Run], rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the run of one seed against each reference, and the constants over all seeds."""
    figure = Figure(figsize=(12.5, 4.7), layout="constrained")
    distance, angle, worth = figure.subplots(1, 3)
    for kind, run in runs.items():
        table, (colour, line, marker) = run.table.evaluated, LOOKS[kind]
        steps, every = table.column("step"), max(1, len(table) // 8)
        style: dict[str, Any] = {
            "color": colour,
            "linestyle": line,
            "marker": marker,
            "markevery": every,
            "markersize": 5,
        }
        distance.plot(steps, table.column("sq_distance").sqrt(), **style, label=kind)
        size = (table.column("grad_sq_norm") * table.column("sq_distance")).sqrt()
        angle.plot(steps, _smooth(table.column("inner_product") / size), **style)
    distance.set(
        title=r"How far $x_k$ is from each $x_p$",
        xlabel="optimizer step k",
        ylabel=r"$\Vert x_k - x_p\Vert$",
        ylim=(0, None),
    )
    distance.legend(title=r"$x_p$", fontsize="small")
    angle.axhline(0, color="black", linewidth=0.8)
    angle.set(
        title="Do gradients aim at it?\n(above 0: yes; mean of 15 probes)",
        xlabel="optimizer step k",
    )
    angle.set_ylabel(r"cosine of $\nabla f_i(x_k)$ and $x_k - x_p$")
    _draw_worth(worth, rows)
    figure.savefig(path, dpi=95)


def _smooth(values: torch.Tensor, width: int = 15) -> torch.Tensor:
    """Return running means over up to ``width`` neighbors."""
    half = width // 2
    return torch.stack(
        [values[max(0, k - half) : k + half + 1].nanmean() for k in range(len(values))]
    )


def _draw_worth(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    known = [row["informativeness"] or 0.0 for row in rows]
    colours = [LOOKS[row["reference"]][0] for row in rows]
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # the line at 1 runs behind it
    axes.barh(range(len(rows)), known, 0.6, color=colours)
    for place, (row, value) in enumerate(zip(rows, known, strict=True)):
        ratio = "none" if row["beta_over_rate"] is None else f"{row['beta_over_rate']:.3g}"
        axes.text(
            value + 0.03,
            place,
            f" {value:.2g}  (β/δ = {ratio})",
            va="center",
            fontsize="small",
            bbox=paper,
        )
    axes.axvline(1, color="black", linestyle="--", linewidth=1.2)
    axes.set_yticks(range(len(rows)), [row["reference"] for row in rows])
    axes.set(
        title="What the best pair is worth\n(beyond 1: vacuous)",
        xlabel="(β/δ) σ² / drop",
        ylim=(len(rows) - 0.5, -0.5),
    )
    axes.set_xlim(0, 1.9 * max(1.0, *known))


def main() -> None:
    chosen = options("references", __doc__, small_seeds=2, full_seeds=4)
    experiment(chosen, chosen.pick(20, 200))


def experiment(chosen: Options, epochs: int) -> None:
    """Train every seed against every reference and write the results."""
    by_seed = [runs_of(chosen, seed, epochs) for seed in chosen.seeds]
    runs = {kind: [runs[kind] for runs in by_seed] for kind in REFERENCES}
    groups = {
        group.key: group
        for group in compare(
            [run for members in runs.values() for run in members], "reference"
        ).groups
    }
    rows = {kind: row_of(groups[kind], runs[kind]) for kind in REFERENCES}
    conclude("references", chosen, list(rows.values()), findings(rows, all(map(retraced, by_seed))))
    draw(chosen.out / "references.png", by_seed[0], list(rows.values()))
    print(f"  picture   {chosen.out / 'references.png'}")


if __name__ == "__main__":
    main()
