"""How the cost of measuring grows: with parameters, with steps, with probes, with processes. One picture, one table.

python -m benchmarks.growth                 1e4 to 1e8 parameters, which want some GB of disk and of memory
python -m benchmarks.growth --largest 1e6   stop there

Parameters: MLPs 784-w-w-10 on batches of 128, the cost of a probe and of its evaluation in plain steps and in seconds. Steps:
how many probes the default schedule makes in all and keeps, counted. Probes: seconds from a table of that length to the best
pair, and to all that the metric says. Processes: DistributedDataParallel on this machine, a probe in plain steps of as many.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.overhead import (
    AFTER,
    PERIOD,
    Case,
    environment,
    fit,
    images,
    mlp,
    probe_costs,
    probes_made,
)
from demos.sweep import quiet
from lightning_landscape.conditions import AlphaBeta
from lightning_landscape.functional.alpha_beta import feasible_set

QUIETLY: dict[str, Any] = {"every_n_steps": PERIOD, "live_epochs": None}
PARAMETERS = (1e4, 1e5, 1e6, 1e7, 1e8)
STEPS = (100, 1000, 10_000, 100_000, 1_000_000)
PROBES = (16, 64, 256, 1024, 4096)
PROCESSES = (1, 2, 4)


def width_for(parameters: float) -> int:
    """Return w so that an MLP 784-w-w-10 has about so many parameters: w² + 796 w + 10 of them."""
    return max(1, round((math.sqrt(796**2 + 4 * parameters) - 796) / 2))


def with_parameters(parameters: float) -> dict[str, Any]:
    """Return costs for an MLP of about so many parameters."""
    case = Case(lambda: mlp(width_for(parameters)), images(784))
    count = sum(p.numel() for p in case.net().parameters())
    probes = 20 if count < 3e6 else 8 if count < 3e7 else 3
    with tempfile.TemporaryDirectory() as folder:
        timed = fit(case, PERIOD * (probes + 1), Path(folder), **QUIETLY)
        assert timed.monitor is not None
        assert timed.monitor.summary is not None
        plain = statistics.median(
            s for place, s in enumerate(timed.steps) if place % PERIOD >= AFTER
        )
        alone, together = probe_costs(timed.steps)
        evaluated = len(timed.monitor.table or ())
        return {
            "parameters": count,
            "plain_step_s": plain,
            "probe_steps": alone,
            "probe_s": alone * plain,
            "probe_with_writing_steps": together,
            "finalisation_steps": timed.finalisation / plain / evaluated,
            "finalisation_s": timed.finalisation / evaluated,
            "bytes": timed.monitor.summary["run"]["store"]["bytes"] / evaluated,
        }


def table(probes: int) -> dict[str, Tensor]:
    """Return columns of a run that looks like one: the loss falls, angles scatter."""
    generator = torch.Generator().manual_seed(probes)
    scatter = torch.rand(probes, generator=generator, dtype=torch.float64)
    reference = 0.05 + 0.1 * torch.rand(probes, generator=generator, dtype=torch.float64)
    loss = reference + 2 * torch.exp(-3 * torch.linspace(0, 1, probes, dtype=torch.float64)) * (
        0.5 + scatter
    )
    product = (loss - reference) * (0.2 + scatter) - 0.02 * torch.rand(
        probes, generator=generator, dtype=torch.float64
    )
    return {
        "loss": loss,
        "reference_loss": reference,
        "inner_product": product,
        "loss_infimum": torch.zeros(probes),
    }


def with_probes(probes: int) -> dict[str, float]:
    """Return seconds from a table to the exact best pair, and of the metric with windows and quantiles."""
    columns, seconds = table(probes), []
    for _ in range(3):
        start = time.perf_counter()
        feasible_set(**columns).best()
        seconds.append(time.perf_counter() - start)
    metric = AlphaBeta()
    start = time.perf_counter()
    metric.update(**columns)
    metric.compute()
    return {
        "probes": probes,
        "best_pair_s": statistics.median(seconds),
        "metric_s": time.perf_counter() - start,
    }


def with_processes(processes: int) -> dict[str, Any]:
    """Return what a probe costs in plain steps of so many processes, started as Lightning starts them."""
    command = [sys.executable, __file__, "--processes", str(processes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith('{"processes"'))
    )
    return result


def train_in(processes: int) -> None:
    """Train in this and other processes; the first one prints what a probe costs."""
    torch.set_num_threads(1)
    case = Case(lambda: mlp(1000), images(784))
    trainer = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    with tempfile.TemporaryDirectory() as folder:
        timed = fit(case, PERIOD * 21, Path(folder), trainer=trainer, **QUIETLY)
        alone, together = probe_costs(timed.steps)
        plain = statistics.median(
            s for place, s in enumerate(timed.steps) if place % PERIOD >= AFTER
        )
        evaluated = len(timed.monitor.table or ()) if timed.monitor else 0
    if evaluated:  # the first process alone has the table
        result = {
            "processes": processes,
            "plain_step_s": plain,
            "probe_steps": alone,
            "probe_with_writing_steps": together,
        }
        print(json.dumps({**result, "finalisation_steps": timed.finalisation / plain / evaluated}))


def draw(path: Path, found: dict[str, Sequence[dict[str, Any]]]) -> None:
    """Draw the four."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    parameters, steps, probes, processes = figure.subplots(1, 4)
    blue, orange, green = "#0072B2", "#D55E00", "#009E73"

    def line(
        axes: Any,
        rows: Sequence[dict[str, Any]],
        x: str,
        y: str,
        colour: str,
        marker: str,
        label: str,
    ) -> None:
        axes.plot(
            [row[x] for row in rows],
            [row[y] for row in rows],
            color=colour,
            marker=marker,
            label=label,
        )

    line(
        parameters,
        found["parameters"],
        "parameters",
        "probe_steps",
        blue,
        "o",
        "a probe, on its step",
    )
    line(
        parameters,
        found["parameters"],
        "parameters",
        "probe_with_writing_steps",
        green,
        "^",
        "with the four after it",
    )
    line(
        parameters,
        found["parameters"],
        "parameters",
        "finalisation_steps",
        orange,
        "s",
        "its evaluation at the end",
    )
    parameters.set(
        title="Parameters of an MLP",
        xlabel="parameters",
        ylabel="plain steps of batch 128",
        xscale="log",
    )
    parameters.set(ylim=(0, None))
    line(steps, found["steps"], "steps", "made", blue, "o", "made in all")
    line(steps, found["steps"], "steps", "kept", orange, "s", "kept to the end")
    steps.set(
        title="Steps of training",
        xlabel="steps",
        ylabel="probes (default schedule)",
        xscale="log",
        ylim=(0, None),
    )
    line(probes, found["probes"], "probes", "best_pair_s", blue, "o", "exact best pair")
    line(probes, found["probes"], "probes", "metric_s", orange, "s", "all of the metric")
    probes.set(
        title="Probes in the table", xlabel="probes", ylabel="seconds", xscale="log", yscale="log"
    )
    line(
        processes, found["processes"], "processes", "probe_steps", blue, "o", "a probe, on its step"
    )
    line(
        processes,
        found["processes"],
        "processes",
        "finalisation_steps",
        orange,
        "s",
        "its evaluation at the end",
    )
    processes.set(
        title="Processes (DDP, one machine)",
        xlabel="processes",
        ylabel="plain steps of as many processes",
    )
    processes.set(ylim=(0, None), xticks=[row["processes"] for row in found["processes"]])
    for axes in (parameters, steps, probes, processes):
        axes.legend(fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=95)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--largest",
        type=float,
        default=1e8,
        help="parameters of the largest network (default: 1e8)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/growth"),
        help="folder of the numbers and the picture",
    )
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    quiet()
    if given.processes:
        train_in(given.processes)
        return
    found: dict[str, Sequence[dict[str, Any]]] = {
        "steps": [
            dict(zip(("steps", "made", "kept"), (n, *probes_made(n)), strict=True)) for n in STEPS
        ],
        "probes": [with_probes(n) for n in PROBES],
        "processes": [with_processes(n) for n in PROCESSES],
        "parameters": [with_parameters(n) for n in PARAMETERS if n <= given.largest],
    }
    given.out.mkdir(parents=True, exist_ok=True)
    numbers = {"environment": environment(), **found}
    (given.out / "growth.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    draw(given.out / "growth.png", found)
    for name, rows in found.items():
        print(f"\n{name}")
        for row in rows:
            print("  " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
    print(f"\n  numbers   {given.out / 'growth.json'}\n  picture   {given.out / 'growth.png'}")


if __name__ == "__main__":
    main()
