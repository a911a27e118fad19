"""Write the curves of a run to its loggers, as soon as their values are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_landscape.probes import Probe, ProbeTable
from lightning_landscape.reporting import scalars


class RunCurves:
    """Write the curves of a run. Each tag gets each step once, in ascending order.

    Args:
        loggers: loggers of Lightning.
        prefix: group of all tags.
        live: whether new rows come with their reference columns, as with ``reference=`` a file.
    """

    def __init__(self, loggers: Iterable[Logger], prefix: str, *, live: bool) -> None:
        self._writer = CurveWriter(loggers, prefix)
        self._live = live
        self._running = scalars.RunningAlphaBeta()
        self._evaluated = -1
        """The newest step whose reference columns were written while training"""
        self._newest = -1
        """The newest step on the x-axis that was written while training"""

    def add(self, probe: Probe, overhead: float, of_extras: Mapping[str, float]) -> None:
        """Write the known values of a new probe.

        Args:
            probe: the row of the probe.
            overhead: the monitor's share of the training time so far.
            of_extras: values of the extras by tag.
        """
        if not self._writer.writes:
            return
        row, self._newest = ProbeTable([probe]), probe.logged_step
        curves = scalars.known_while_training(row)
        if probe.evaluated:
            self._evaluated = probe.step
            curves |= scalars.known_with_reference(row)
        values = {tag: float(curve[0]) for tag, curve in curves.items()}
        if probe.evaluated:
            values |= self._running.add(probe)
        self._writer.write_point(probe.logged_step, {**values, **of_extras, "overhead": overhead})

    def at_present(self, table: ProbeTable, step: int) -> None:
        """Write values with the present iterate as x_p.

        Args:
            table: rows whose reference columns belong to the present iterate.
            step: the step on the x-axis.
        """
        if self._writer.writes:
            self._writer.write_point(step, scalars.at_present(table))

    def restart(self, table: ProbeTable) -> None:
        """Compute the running α-β pair anew, after thinning or after rows came from another run."""
        self._running = scalars.RunningAlphaBeta()
        for probe in table.evaluated:
            self._running.add(probe)

    def repeat(self, table: ProbeTable) -> None:
        """Write the rows of an earlier run to this run's loggers, before any other point."""
        curves = scalars.known_while_training(table)
        if self._live:
            curves |= {**scalars.known_with_reference(table), **scalars.running_alpha_beta(table)}
        self._writer.write(table, curves)

    def finish(
        self,
        table: ProbeTable,
        summary: dict[str, Any],
        steps: int,
        of_extras: Mapping[int, Mapping[str, float]],
    ) -> None:
        """Write the values that are known only at the end of training.

        Args:
            table: all rows.
            summary: the content of ``summary.json``.
            steps: number of steps of training.
            of_extras: values of the extras by step and tag.
        """
        if not self._writer.writes:
            return
        rows, alpha_beta = table.evaluated, summary["conditions"]["alpha_beta"]
        running = scalars.running_alpha_beta(rows, summary["run"]["drop"]["value"])
        final = scalars.alpha_beta_margin(rows, alpha_beta["alpha"], alpha_beta["beta"])
        final |= scalars.bound_curves(rows, summary["run"])
        if not self._live:
            self._write_reference_columns(rows, {**running, **final}, of_extras)
        else:
            late = ProbeTable(probe for probe in rows if probe.step > self._evaluated)
            self._write_reference_columns(late, {}, of_extras)
            self._writer.write(rows, final)
        last = {"overhead": summary["run"]["overhead"]["total"]}
        after = max(steps, self._newest + 1)
        if len(rows):
            after = max(after, rows[-1].logged_step + 1)
            last |= scalars.bounds_of_the_whole(summary)
            if self._live:  # the report's values, which thinning may have changed
                last |= {tag: float(curve[-1]) for tag, curve in running.items()}
        self._writer.write_point(after, last)

    def _write_reference_columns(
        self,
        rows: ProbeTable,
        further: Mapping[str, Tensor],
        of_extras: Mapping[int, Mapping[str, float]],
    ) -> None:
        self._writer.write(rows, {**scalars.known_with_reference(rows), **further})
        for probe in rows:
            self._writer.write_point(probe.logged_step, of_extras.get(probe.step, {}))


class CurveWriter:
    """Write curves to loggers. A logger that fails causes one warning and gets no more values.

    Args:
        loggers: loggers of Lightning.
        prefix: group of all tags.
    """

    def __init__(self, loggers: Iterable[Logger], prefix: str) -> None:
        self._loggers = list(loggers)
        self._prefix = prefix

    @property
    def writes(self) -> bool:
        """Whether there is a logger left to write to."""
        return bool(self._loggers)

    def write(self, table: Iterable[Probe], curves: Mapping[str, Tensor]) -> None:
        """Write curves, one value a probe, at the steps of the probes."""
        for row, probe in enumerate(table):
            values = {tag: float(curve[row]) for tag, curve in curves.items()}
            self.write_point(probe.logged_step, values)

    def write_point(self, step: int, values: Mapping[str, float]) -> None:
        """Write the finite values by tag at one step."""
        finite = {
            f"{self._prefix}/{tag}": value for tag, value in values.items() if math.isfinite(value)
        }
        if not finite:
            return
        for logger in tuple(self._loggers):
            self._write_to(logger, step, finite)

    def _write_to(self, logger: Logger, step: int, values: Mapping[str, float]) -> None:
        try:
            separator = logger.group_separator
            logger.log_metrics(
                {tag.replace("/", separator): value for tag, value in values.items()}, step=step
            )
        except Exception as error:  # a logger's service may raise anything
            self._loggers.remove(logger)
            rank_zero_warn(
                f"LandscapeMonitor no longer logs to {type(logger).__name__}: {error}. Its files "
                "are still written"
            )
