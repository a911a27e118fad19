"""``summary.json``: what the table of probes says, with every assumption, and in plain sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_landscape.bounds import Evidence, certify, in_force
from lightning_landscape.functional.alpha_beta import mean_and_error
from lightning_landscape.probes import SCHEMA, Probe, ProbeTable
from lightning_landscape.records import Accuracy, FixedBatchRow
from lightning_landscape.reporting.alpha_beta import alpha_beta_condition
from lightning_landscape.reporting.certificates import entries, theory_sentences
from lightning_landscape.reporting.conditions import other_conditions
from lightning_landscape.reporting.held_out import (
    fixed_batches_entry,
    held_out_entry,
    held_out_sentence,
)
from lightning_landscape.reporting.numbers import number
from lightning_landscape.reporting.per_sample import per_sample_entry, per_sample_sentence
from lightning_landscape.reporting.stored import accuracy_entry, accuracy_sentence
from lightning_landscape.reporting.verdict import caveats, verdict


def summarise(
    table: ProbeTable,
    run: dict[str, Any],
    windows: int,
    secants: Mapping[int, float] | None = None,
    held_out: Iterable[Probe] = (),
    fixed_batches: Sequence[FixedBatchRow] = (),
    accuracies: Mapping[int, Accuracy] | None = None,
    samples: Mapping[int, Tensor] | None = None,
    about_samples: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Args:
        table: the table of probes; rows whose reference columns are not known are left out of conditions and bounds.
        run: what the table does not hold: how the run was made and measured.
        windows: number of equal slices of training for which constants are given as well.
        secants: ‖∇f(x_{k+1}) − ∇f(x_k)‖² of a probe's mini-batch by step, where it was measured.
        held_out: a probe each with a batch that was held out, where there are any.
        fixed_batches: the same held-out batches at every probe, where there are any.
        accuracies: how far a codec can have moved a probe, by step, where there was one.
        samples: by step f_j(x_k), f_j(x_p), <∇f_j(x_k), x_k − x_p> of its single samples, shape ``(samples, 3)``.
        about_samples: how those were evaluated; None where they were not asked for.
    """
    drop, rows = drop_of(table), table.evaluated
    evidence = Evidence(table, run)
    certificates = certify(evidence)
    best = in_force(certificates)
    alpha_beta = alpha_beta_condition(rows, drop, windows, run)
    beside = held_out_entry(ProbeTable(held_out), rows, alpha_beta)
    fixed = fixed_batches_entry(fixed_batches, run, alpha_beta)
    if "store" in run:
        run = {
            **run,
            "store": {
                **run["store"],
                "accuracy": accuracy_entry(table, run, accuracies or {}, best),
            },
        }
    single = per_sample_entry(samples or {}, rows, about_samples, run, alpha_beta)
    return {
        "schema": SCHEMA,
        "run": {**run, "drop": drop},
        "conditions": {
            "alpha_beta": alpha_beta,
            **other_conditions(evidence, windows, secants or {}),
        },
        "held_out": beside,
        "fixed_batches": fixed,
        "per_sample": single,
        "bounds": entries(certificates, drop["value"], run),
        "bound_in_force": best.theorem if best else None,
        "verdict": verdict(alpha_beta, drop, run, len(rows))
        + held_out_sentence(beside, fixed)
        + per_sample_sentence(single)
        + theory_sentences(certificates, run, drop["value"])
        + caveats(rows, drop, windows, run)
        + accuracy_sentence(run.get("store", {})),
    }


def drop_of(table: ProbeTable) -> dict[str, Any]:
    """Return the estimate of f(x_0) − f(x_p): mean over the rows with ``initial_loss``, and its standard error."""
    rows = ProbeTable(probe for probe in table.evaluated if probe.initial_loss is not None)
    if not len(rows):
        return {
            "value": None,
            "standard_error": None,
            "rows": 0,
            "reason": "no probe has its loss at x_0 evaluated",
        }
    value, error = mean_and_error(rows.column("initial_loss") - rows.column("reference_loss"))
    reason = "the standard error needs two rows" if len(rows) < 2 else None
    return {
        "value": number(value),
        "standard_error": number(error),
        "rows": len(rows),
        "reason": reason,
    }
