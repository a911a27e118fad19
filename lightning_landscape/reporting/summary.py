"""``summary.json``: the findings of a run, with their assumptions, and in sentences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lightning_landscape.bounds import Evidence, certify, in_force
from lightning_landscape.functional.alpha_beta import mean_and_error
from lightning_landscape.probes import SCHEMA, ProbeTable
from lightning_landscape.reporting.alpha_beta import alpha_beta_condition
from lightning_landscape.reporting.attempts import attempt
from lightning_landscape.reporting.certificates import entries, theory_sentences
from lightning_landscape.reporting.conditions import other_conditions
from lightning_landscape.reporting.findings import Findings
from lightning_landscape.reporting.numbers import number
from lightning_landscape.reporting.verdict import caveats, verdict


class Part(Protocol):
    """An extra, as far as it has a part in the summary."""

    def summary(self, findings: Findings) -> dict[str, Any]:
        """Return its part."""

    def sentence(self, summary: Mapping[str, Any]) -> str:
        """Return its sentences of the verdict."""


def summarise(
    table: ProbeTable, run: dict[str, Any], windows: int, extras: Sequence[Part] = ()
) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Args:
        table: the table of probes. Conditions and bounds leave out rows without reference columns.
        run: how the run was made and measured.
        windows: number of equal slices of training for which constants are given as well.
        extras: each adds its part and its sentences.
    """
    drop, rows = drop_of(table), table.evaluated
    evidence = Evidence(table, run)
    certificates = certify(evidence)
    best = in_force(certificates)
    alpha_beta = alpha_beta_condition(rows, drop, windows, run)
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "run": {**run, "drop": drop},
        "conditions": {"alpha_beta": alpha_beta, **other_conditions(evidence, windows)},
        "bounds": entries(certificates, drop["value"], run),
        "bound_in_force": best.theorem if best else None,
    }
    findings = Findings(rows, run, alpha_beta)
    for extra in extras:
        _merge(summary, _part_of(extra, findings))
    sentences = [
        verdict(alpha_beta, drop, run, len(rows)),
        *(_sentence_of(extra, summary) for extra in extras),
        theory_sentences(certificates, run, drop["value"]),
        caveats(rows, drop, windows, run),
    ]
    return {**summary, "verdict": "".join(sentences)}


def _part_of(extra: Part, findings: Findings) -> dict[str, Any]:
    """Return an extra's part of the summary; {} if it fails, or holds anything but JSON."""

    def part() -> dict[str, Any]:
        found = extra.summary(findings)
        json.dumps(found, allow_nan=False)
        return found

    return attempt(extra, "summary", part, {})


def _sentence_of(extra: Part, summary: Mapping[str, Any]) -> str:
    return attempt(extra, "sentence", lambda: extra.sentence(summary), "")


def _merge(summary: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add a part, key by key where both sides have a dictionary."""
    for key, value in part.items():
        if isinstance(value, Mapping) and isinstance(summary.get(key), dict):
            summary[key] = dict(summary[key])
            _merge(summary[key], value)
        else:
            summary[key] = value


def drop_of(table: ProbeTable) -> dict[str, Any]:
    """Estimate f(x_0) − f(x_p): the mean over rows with ``initial_loss``, and its error."""
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
