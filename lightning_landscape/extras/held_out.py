"""`HeldOut`: batches that did not make the trajectory, evaluated at its iterates.

The run's own mini-batches led it to x_p: for SGD the inner product is an autocorrelation of
gradients along one run. A held-out batch is independent evidence. It takes the place of the batch
among the arguments of ``training_step``; random numbers, buffers and all else are those of the
step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from typing_extensions import override

from lightning_landscape import functional as F
from lightning_landscape.evaluation.batches import VALIDATION, Batches
from lightning_landscape.evaluation.extra import Extra
from lightning_landscape.extras.settings import check_whole, refuse
from lightning_landscape.functional.alpha_beta import best_alpha_beta
from lightning_landscape.probes import Probe, ProbeTable
from lightning_landscape.reporting.conditions import reason_against_infimum
from lightning_landscape.reporting.findings import Findings
from lightning_landscape.reporting.numbers import number
from lightning_landscape.training import lightning_compat
from lightning_landscape.training.training import Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_landscape.evaluation.probed_step import ProbedStep
    from lightning_landscape.reporting.figures import Drawn

_COLUMNS = ("loss", "reference_loss", "inner_product", "loss_infimum")


@dataclass(frozen=True, slots=True)
class FixedBatchRow:
    """One of a fixed set of held-out batches at one probe, of ``fixed_batches.csv``."""

    step: int
    logged_step: int
    batch: int
    """i; f_i is the loss of batch i"""
    loss: float
    """f_i(x_k)"""
    reference_loss: float
    """f_i(x_p)"""
    inner_product: float
    """<∇f_i(x_k), x_k − x_p>"""
    grad_sq_norm: float


class HeldOut(Extra):
    """Evaluates a new held-out batch at each probe, and a fixed set of them at every probe.

    ``held_out.csv`` has the columns of ``probes.csv``. The verdict says whether the pair of the
    run's own mini-batches holds on them.

    Args:
        source: "val" for the validation loader's batches, or a function of the trainer, by import
            path on the command line, that returns an iterable of batches such as ``training_step``
            takes. Each batch costs two forward passes and a backward pass.
        fixed: Number of first batches that are evaluated at every probe: all i at one x.

    Raises:
        MisconfigurationException: if an argument is outside its range, or no validation loader is
            there.
    """

    tables = {"held_out": Probe, "fixed_batches": FixedBatchRow}

    def __init__(
        self, source: Literal["val"] | Callable[[Trainer], Any] = "val", fixed: int = 0
    ) -> None:
        if source != VALIDATION and not callable(source):
            refuse(
                "HeldOut",
                "source",
                source,
                "'val' and functions of the trainer that return batches",
            )
        check_whole("HeldOut", "fixed", fixed, least=0)
        self.source, self.fixed = source, fixed

    @override
    def check(self, training: Training) -> None:
        if self.source == VALIDATION and not lightning_compat.has_validation(training.trainer):
            raise MisconfigurationException(
                "HeldOut('val') found no validation loader; supported are runs with one, and a "
                "function of the trainer that returns an iterable of batches: pass val_dataloaders "
                "to fit, or such a function"
            )
        self._batches = Batches(training.trainer, self.source)

    @override
    def at(self, step: ProbedStep) -> Iterable[Probe | FixedBatchRow]:
        probe, rows = step.probe, list[Probe | FixedBatchRow]()
        values = _evaluated(step.with_batch(self._batches.take()))
        if _finite(values):
            rows.append(replace(probe, **values, initial_loss=None))  # type: ignore[arg-type]
        for index, batch in enumerate(self._batches.first(self.fixed)):
            values = _evaluated(step.with_batch(batch))
            if _finite(values):
                rows.append(FixedBatchRow(step.number, probe.logged_step, index, **values))
        return rows

    @override
    def evaluations(self, records: int) -> int:
        return 4 * (1 + self.fixed) * records

    @override
    def describe(self) -> str:
        return f"{1 + self.fixed} held-out batches" if self.fixed else "one held-out batch"

    @override
    def failed(self, error: str, step: int) -> str:
        return (
            f"LandscapeMonitor: HeldOut could not evaluate a batch at step {step}, {error}. "
            "Supported are batches that training_step (or loss=) takes as it does those of "
            "training. HeldOut ends; all else goes on"
        )

    # ----------------------------------------------------------------------------------- summary

    @override
    def summary(self, findings: Findings) -> dict[str, Any]:
        held_out = ProbeTable(self.rows("held_out"))
        fixed = self.rows("fixed_batches")
        found = {
            "held_out": held_out_entry(held_out, findings.table, findings.alpha_beta),
            "fixed_batches": fixed_batches_entry(fixed, findings.run, findings.alpha_beta),
        }
        return {key: entry for key, entry in found.items() if entry is not None}

    @override
    def sentence(self, summary: Mapping[str, Any]) -> str:
        return held_out_sentence(summary.get("held_out"), summary.get("fixed_batches"))

    @classmethod
    @override
    def figures(cls, drawn: Drawn) -> Mapping[str, Figure]:
        from lightning_landscape.reporting.figures import margin
        from lightning_landscape.reporting.figures._style import picture

        draw = functools.partial(margin.draw, beside=draw_beside)
        return {"held_out": picture(draw)(drawn)}


def _evaluated(step: ProbedStep) -> dict[str, float]:
    """Return the columns of a batch, by name."""
    loss, gradient = step.gradient()
    products = step.evaluator.products_of(step.record, gradient, step.reference)
    return {
        "loss": loss,
        "reference_loss": step.loss(step.reference),
        "inner_product": products.inner_product,
        "grad_sq_norm": step.evaluator.sq_norm(gradient),
    }


def _finite(values: Mapping[str, float]) -> bool:
    return all(value - value == 0 for value in values.values())


def held_out_entry(
    held_out: ProbeTable, table: ProbeTable, found: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the findings on one held-out batch a probe; None without any.

    Args:
        held_out: the content of ``held_out.csv``.
        table: the run's own probes, evaluated.
        found: the entry of the α-β-condition on those, whose pair is tested.
    """
    if not len(held_out):
        return None
    reason = reason_against_infimum(held_out, "loss", "reference_loss")
    entry: dict[str, Any] = {
        "probes": len(held_out),
        "violated": None,
        "violated_share": None,
        "smallest_margin": {"value": None, "step": None},
        "alpha_beta": _pair(None if reason else held_out.columns(*_COLUMNS)),
        "together": _pair(None if reason else _joined(table, held_out)),
        "reason": reason or _reason_without_pair(found),
    }
    if entry["reason"] is None:
        columns = held_out.columns(*_COLUMNS)
        margins = F.alpha_beta_margin(found["alpha"], found["beta"], **columns)
        violations = F.alpha_beta_violations(found["alpha"], found["beta"], **columns)
        violated, tight = int(violations.sum()), int(margins.argmin())
        entry |= {
            "violated": violated,
            "violated_share": violated / len(held_out),
            "smallest_margin": {"value": number(margins[tight]), "step": held_out[tight].step},
        }
    return entry


def fixed_batches_entry(
    rows: Sequence[FixedBatchRow], run: Mapping[str, Any], found: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the findings on the same batches at every probe: all i at one x_k; None without any.

    Args:
        rows: the content of ``fixed_batches.csv``.
        run: how the run was made; ``loss.infimum`` is the lower bound of every loss.
        found: the entry of the α-β-condition on the run's own probes, whose pair is tested.
    """
    if not rows:
        return None
    infimum: float = run["loss"]["infimum"]
    by_step: dict[int, list[FixedBatchRow]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row)
    reason = _reason_without_pair(found)
    if any(min(row.loss, row.reference_loss) < infimum for row in rows):
        reason = f"a loss is below loss_infimum={infimum:g}: pass a smaller loss_infimum="
    steps = [] if reason else [_at_step(by_step[step], infimum, found) for step in sorted(by_step)]
    return {
        "batches": len({row.batch for row in rows}),
        "probes": len(by_step),
        "alpha_beta": _pair(None if reason else _columns_of(rows, infimum)),
        "steps": steps,
        "reason": reason,
    }


def _at_step(
    rows: Sequence[FixedBatchRow], infimum: float, found: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the worst case over the batches at one x_k: β_min(δ), smallest margin, violations."""
    columns = _columns_of(rows, infimum)
    margins = F.alpha_beta_margin(found["alpha"], found["beta"], **columns)
    violated = F.alpha_beta_violations(found["alpha"], found["beta"], **columns)
    tight = int(margins.argmin())
    return {
        "step": rows[0].step,
        "logged_step": rows[0].logged_step,
        "beta": number(F.beta_min(found["rate"], **columns)),
        "smallest_margin": number(margins[tight]),
        "batch": rows[tight].batch,
        "violated_share": int(violated.sum()) / len(rows),
    }


def held_out_sentence(held_out: Mapping[str, Any] | None, fixed: Mapping[str, Any] | None) -> str:
    """Say whether the pair holds on batches that did not make the trajectory."""
    said = ""
    if held_out is not None and held_out["violated"] is not None:
        count, probes = held_out["violated"], held_out["probes"]
        bad = f"is violated on {count} ({count / probes:.0%}) of"
        how = "holds on all" if count == 0 else bad
        said += f" The same pair {how} {probes} held-out batches."
        both = held_out["together"]
        if count and both["beta"] is not None:
            said += (
                f" The pair α = {both['alpha']:.4g}, β = {both['beta']:.4g} holds on both: the "
                "training batches and the held-out ones."
            )
    if fixed is not None and fixed["steps"]:
        bad_steps = sum(step["violated_share"] > 0 for step in fixed["steps"])
        where = f"at {bad_steps} of {len(fixed['steps'])} probes" if bad_steps else "at no probe"
        said += (
            f" {fixed['batches']} batches were evaluated at every probe; some violate it {where}."
        )
    return said


def _joined(table: ProbeTable, held_out: ProbeTable) -> dict[str, torch.Tensor]:
    own, other = table.columns(*_COLUMNS), held_out.columns(*_COLUMNS)
    return {name: torch.cat([own[name], other[name]]) for name in _COLUMNS}


def _columns_of(rows: Sequence[FixedBatchRow], infimum: float) -> dict[str, torch.Tensor]:
    columns = {
        name: torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)
        for name in ("loss", "reference_loss", "inner_product")
    }
    infima = torch.full((len(rows),), infimum, dtype=torch.float64)
    return columns | {"loss_infimum": infima}


def _pair(columns: dict[str, Any] | None) -> dict[str, Any]:
    """Return the pair with the smallest β/δ that holds on rows, null values where there is none."""
    if columns is None:
        return {"alpha": None, "beta": None, "rate": None, "attained": None}
    best = best_alpha_beta(**columns)
    pair = {name: number(getattr(best, name)) for name in ("alpha", "beta", "rate")}
    return pair | {"attained": bool(best.attained)}


def _reason_without_pair(found: Mapping[str, Any]) -> str | None:
    has_pair = found["alpha"] is not None and found["beta"] is not None
    return None if has_pair else "there is no pair to test"


def draw_beside(axes: Axes, drawn: Drawn, alpha: float, beta: float) -> list[float]:
    """Draw the margins of the held-out batches, and the smallest one over the fixed batches."""
    from lightning_landscape.reporting.figures._style import ORANGE, drawable

    shown: list[float] = []
    held_out = ProbeTable(drawn.tables.get("held_out", ()))
    if len(held_out):
        steps = [float(probe.step) for probe in held_out]
        margins = drawable(F.alpha_beta_margin(alpha, beta, **held_out.columns(*_COLUMNS)))
        bad = sum(margin < 0 for margin in margins)
        look: dict[str, Any] = {"color": ORANGE, "markersize": 4, "fillstyle": "none"}
        axes.plot(steps, margins, "^", label=f"held out, {bad} violated", **look)
        shown += margins
    fixed = drawn.summary.get("fixed_batches")
    if fixed and fixed["steps"]:
        lowest = [step["smallest_margin"] for step in fixed["steps"]]
        steps = [float(step["step"]) for step in fixed["steps"]]
        said = f"smallest over {fixed['batches']} fixed batches"
        axes.plot(steps, lowest, ":", color=ORANGE, linewidth=1.2, label=said)
        shown += lowest
    return shown
