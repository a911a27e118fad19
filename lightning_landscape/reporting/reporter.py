"""All that is shown of a run: files in its folder; curves, text and pictures in loggers."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info

from lightning_landscape.probes import Probe, ProbeTable
from lightning_landscape.reporting import pictures, tensorboard
from lightning_landscape.reporting.attempts import attempt
from lightning_landscape.reporting.curves import RunCurves
from lightning_landscape.reporting.folder import RunFolder, remove_empty
from lightning_landscape.reporting.text import report as text_report

T = TypeVar("T")


class Beside(Protocol):
    """An extra, as far as it is shown."""

    tables: ClassVar[Mapping[str, type]]
    """Class of the rows of each table, by its name"""

    def at_step(self, step: int) -> list[Any]:
        """Return the rows of a probe."""

    def rows(self, table: str) -> list[Any]:
        """Return the rows of a table."""

    def curves(self, rows: Sequence[Any]) -> dict[str, float]:
        """Return values by tag of one probe's rows."""


class Reporter:
    """Shows one run, in the process that writes.

    Args:
        folder: the run's files.
        temporary: a folder around all files that is removed at the end; None for none.
        loggers: the Trainer's.
        prefix: group of all tags.
        extras: those of the run.
        images: pictures at the end; None for none.
        live: whether rows come with their reference columns.
        writes: whether this process writes.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        temporary: Path | None,
        loggers: Sequence[Logger],
        prefix: str,
        extras: Sequence[Beside],
        images: pictures.Images | None,
        live: bool,
        writes: bool,
    ) -> None:
        self.folder, self.temporary = folder, temporary
        self._loggers, self._prefix, self._extras = loggers, prefix, extras
        self._images, self._writes = images, writes
        self._without_curves: set[int] = set()
        """Extras, by id, whose curves failed"""
        self.curves = RunCurves(loggers if writes else [], prefix, live=live)

    # ------------------------------------------------------------------------------ while training

    def add(self, probe: Probe, table: ProbeTable, overhead: float) -> None:
        """Show a new probe.

        Args:
            probe: its row.
            table: all rows so far.
            overhead: the monitor's share of the time of training so far.
        """
        self.folder.append(probe, table)
        if self.folder.beside_is_due:
            self.write_beside()
        self.curves.add(probe, overhead, self._curves_at(probe.step))

    def follow(self, table: ProbeTable) -> None:
        """Bring files and curves in line after rows were removed or taken over from another run."""
        self.rewrite(table)
        self.curves.restart(table)

    def rewrite(self, table: ProbeTable) -> None:
        """Write all tables anew."""
        self.folder.rewrite(table)
        self.write_beside()

    def write_beside(self) -> None:
        """Write the tables of the extras."""
        if self._writes:
            found = {
                name: (kind, extra.rows(name))
                for extra in self._extras
                for name, kind in extra.tables.items()
            }
            self.folder.write_beside(found)

    def _curves_at(self, step: int) -> dict[str, float]:
        values: dict[str, float] = {}
        for extra in self._extras:
            rows = extra.at_step(step)
            if rows and id(extra) not in self._without_curves:
                values |= self._curves_of(extra, rows)
        return values

    def _curves_of(self, extra: Beside, rows: Sequence[Any]) -> dict[str, float]:
        """Return an extra's values by tag; after a failure it is not asked again."""
        call: Callable[[], dict[str, float] | None] = lambda: dict(extra.curves(rows))  # noqa: E731
        found = attempt(extra, "curves", call, None)
        if found is None:
            self._without_curves.add(id(extra))
        return found or {}

    # -------------------------------------------------------------------------------- at the end

    def finish(
        self, table: ProbeTable, summary: dict[str, Any], logged_step: int, *, evaluated: bool
    ) -> None:
        """Show what was found, in the loggers and in a few lines.

        Args:
            table: the table of probes.
            summary: the content of ``summary.json``.
            logged_step: Lightning's x-axis at the end.
            evaluated: whether the evaluation came to its end. A partial one writes files only: each
                tag is written once.
        """
        if evaluated:
            of_extras = {probe.step: self._curves_at(probe.step) for probe in table}
            self.curves.finish(table, summary, logged_step, of_extras)
            tensorboard.show_text(self._loggers, self._prefix, text_report(summary), logged_step)
            self._draw(table, summary, logged_step)
        rank_zero_info(f"LandscapeMonitor: {summary['verdict']}")
        if self.temporary is None:
            rank_zero_info(
                f"LandscapeMonitor: the table of {len(table)} probes and its summary are in "
                f"{self.folder.path}"
            )

    def _draw(self, table: ProbeTable, summary: dict[str, Any], logged_step: int) -> None:
        if self._images is None:
            return
        tables = {name: extra.rows(name) for extra in self._extras for name in extra.tables}
        path = self.folder.path
        found = pictures.draw(table, summary, tables, path, self._images, self._extras)
        tensorboard.show_figures(self._loggers, self._prefix, found, logged_step)

    def discard(self) -> None:
        """Leave nothing behind: the run was refused before its first step."""
        shutil.rmtree(self.temporary or self.folder.path, ignore_errors=True)

    @contextmanager
    def temporarily(self, store: Path) -> Iterator[None]:
        """Remove the temporary folder, if it is one, after the block.

        Args:
            store: this process's store. Other machines have a folder of the same name, for it.
        """
        try:
            yield
        finally:
            if self.temporary is not None and self._writes:
                shutil.rmtree(self.temporary, ignore_errors=True)
            elif self.temporary is not None:
                shutil.rmtree(store, ignore_errors=True)
                remove_empty(store.parent, self.temporary)


def making_room(write: Callable[[], T], remove: Callable[[], None] | None) -> T:
    """Call a function that writes files; on a full disk call ``remove``, if given, and retry."""
    try:
        return write()
    except OSError as error:
        if remove is None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    remove()
    return write()
