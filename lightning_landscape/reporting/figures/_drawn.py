"""What every picture is drawn from: the files of a run, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lightning_landscape.probes import ProbeTable
from lightning_landscape.reporting.fidelity import infidelity, is_faithful
from lightning_landscape.reporting.scalars import Curves, bound_curves


@dataclass(frozen=True)
class Drawn:
    """A measured run as the pictures need it.

    Args:
        table: the table of probes.
        summary: the content of ``summary.json``.
        tables: rows of the extras' tables, by name.
    """

    table: ProbeTable
    summary: dict[str, Any] = field(repr=False)
    tables: Mapping[str, Sequence[Any]] = field(default_factory=dict, repr=False)

    @cached_property
    def rows(self) -> ProbeTable:
        """The rows whose reference columns are known."""
        return self.table.evaluated

    @cached_property
    def steps(self) -> list[float]:
        """The optimiser's steps made before each of ``rows``."""
        return [float(probe.step) for probe in self.rows]

    @cached_property
    def bound_curves(self) -> Curves:
        """Each applying theorem's bound along ``rows``; certifying anew is expensive, so it is done once."""
        return bound_curves(self.rows, self.summary["run"])

    @property
    def alpha_beta(self) -> dict[str, Any]:
        """The entry of the α-β-condition."""
        found: dict[str, Any] = self.summary["conditions"]["alpha_beta"]
        return found

    @property
    def applying(self) -> dict[str, dict[str, Any]]:
        """The entries of the theorems that apply, by key."""
        return {key: bound for key, bound in self.summary["bounds"].items() if bound["applies"]}

    @property
    def drop(self) -> float | None:
        """f(x_0) − f(x_p), None where it was not measured."""
        value: float | None = self.summary["run"]["drop"]["value"]
        return value

    @property
    def doubt(self) -> str:
        """A sentence on replays that are off, empty where they are not: nothing drawn from them is to be relied on."""
        run = self.summary["run"]
        return "" if is_faithful(run, self.drop) else f"not to be relied on: {infidelity(run)}"
