"""The probes that are kept: their schedule, their rows, their records in the store.

All processes keep the same probes. Each stores its own part of their records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from lightning_landscape.probes import Probe, ProbeTable, from_scalars, to_scalars
from lightning_landscape.recording.schedule import Schedule
from lightning_landscape.store.record import Record
from lightning_landscape.store.store import RecordStore, Unwritten
from lightning_landscape.training.processes import Processes


class Beside(Protocol):
    """Further rows by step, which go when a probe goes."""

    def forget(self, step: int) -> None:
        """Remove the rows of a step."""


class KeptProbes:
    """The kept probes of one ``fit``.

    Args:
        schedule: says which steps are probed.
        store: holds this process's part of each record until it is evaluated.
        processes: those of the run.
        beside: further rows of these probes.
    """

    def __init__(
        self,
        schedule: Schedule,
        store: RecordStore,
        processes: Processes,
        beside: Sequence[Beside] = (),
    ) -> None:
        self.schedule, self.store, self._processes, self._beside = (
            schedule,
            store,
            processes,
            beside,
        )
        self.table = ProbeTable()
        self.dropped = {"non_finite": 0, "no_loss": 0, "unevaluable": 0}
        self._digests: dict[int, list[str]] = {}
        """Of each stored step, by process: a checkpoint holds those of all"""

    @property
    def steps(self) -> list[int]:
        """The steps of the kept probes, ascending."""
        return self.schedule.kept

    # -------------------------------------------------------------------------------------- rows

    def add(self, row: Probe) -> None:
        """Keep a new probe."""
        self.schedule.keep(row.step)
        self.put(row)

    def put(self, row: Probe) -> None:
        """Put a row in the place of the one of its step."""
        self.table = self.table.merged([row])

    def make_room(self, step: int, spacing: float) -> list[int]:
        """Thin a full table before a step that is due; return the dropped steps.

        Args:
            step: the step that is about to be made.
            spacing: smallest number of steps between probes.
        """
        dropped = self.schedule.make_room(step, spacing)
        self.forget(dropped)
        return dropped

    def forget(self, steps: Iterable[int]) -> None:
        """Remove rows and all that belongs to them."""
        gone = set(steps)
        if gone:
            self.table = ProbeTable(row for row in self.table if row.step not in gone)
        for step in gone:
            self.drop_stored(step)
            for rows in self._beside:
                rows.forget(step)

    def miss(self, step: int, why: str) -> None:
        """Count a probe that could not be measured."""
        self.dropped[why] += 1
        self.schedule.skip(step)

    def lose(self, step: int, why: str) -> None:
        """Remove a kept probe and count it."""
        self.dropped[why] += 1
        self.schedule.kept = [kept for kept in self.schedule.kept if kept != step]
        if not self.schedule.kept:
            self.schedule.skip(step)  # until there is an x_0, every step is tried
        self.forget([step])

    # ----------------------------------------------------------------------------------- records

    def write(self, record: Record) -> None:
        """Store a record in the background; see to those that could not be written before.

        Raises:
            OSError: as of `settle`.
        """
        if self._processes.everywhere(self.store.all_is_well):
            self.store.write(record)
        else:
            self._make_room_for([record])
        if record.step in self.steps:
            self._share_digests(record.step)
            self._limit()

    def write_start(self, record: Record) -> None:
        """Store x_0 and its mini-batch, where rows are evaluated at once; survive a full disk.

        Raises:
            BaseException: a failure other than that of the disk.
        """
        if not self.store.all_is_well:
            self.give_up_unwritten()
        self.store.write(replace(record, gradient=None, following=None))
        self._share_digests(record.step)

    def _limit(self) -> None:
        """Keep no more probes than have room in each process's store."""
        capacity = self.store.capacity
        least = self._processes.smallest(float("inf") if capacity is None else capacity)
        if least < float("inf"):
            self.schedule.limit(int(least))

    def settle(self) -> None:
        """Wait until everything is written; on a full disk thin the table once and try again.

        Raises:
            OSError: if the disk is full nevertheless; probes that were not written are counted as
                unevaluable.
        """
        self.store.wait()
        if not self._processes.everywhere(self.store.all_is_well):
            self._make_room_for([])

    def settle_alone(self) -> None:
        """Wait until everything is written that can be, without the other processes.

        Raises:
            OSError: if a probe could not be written; it is counted as unevaluable.
        """
        unwritten = self.store.take_unwritten()
        steps = [one.record.step for one in unwritten]
        for step in steps:
            self.lose(step, "unevaluable")
        _raise_first(unwritten, steps)

    def give_up_unwritten(self) -> None:
        """Keep the rows whose records could not be written, without these.

        Raises:
            BaseException: the reason, unless it was the disk.
        """
        for one in self.store.take_unwritten():
            self.store.give_up(one.record)
            if not isinstance(one.error, OSError):
                raise one.error

    def _make_room_for(self, new: list[Record]) -> None:
        """Thin the table, and write at once what could not be written and is still kept."""
        own, of_all = self._unwritten_of_all()
        if len(self.steps) >= 3:
            self.forget(self.schedule.thin())
            for record in [*(one.record for one in own), *new]:
                if record.step in self.steps:
                    self.store.write(record)
                else:
                    self.store.give_up(record)
            if self._processes.everywhere(self._is_written()):
                return
            own, of_all = self._unwritten_of_all()
        lost = sorted({*of_all, *(record.step for record in new)}.intersection(self.steps))
        for step in lost:
            self.lose(step, "unevaluable")
        _raise_first(own, lost)
        raise OSError(f"another process has no room, while storing the probes of steps {lost}")

    def _is_written(self) -> bool:
        self.store.wait()
        return self.store.all_is_well

    def _unwritten_of_all(self) -> tuple[list[Unwritten], set[int]]:
        """Return what could not be written here, and its steps in all processes."""
        own = self.store.take_unwritten()
        for one in own:
            if not isinstance(one.error, OSError):
                raise one.error
        steps = self._processes.of_each([one.record.step for one in own])
        return own, set().union(*steps)

    def drop_stored(self, step: int) -> None:
        """Remove the record of a step; its row stays."""
        self.store.drop(step)
        self._digests.pop(step, None)

    def drop_unshared(self) -> None:
        """Remove probes that another process lacks: a failure there may have come in between."""
        shared = set.intersection(*map(set, self._processes.of_each(self.steps)))
        for step in [step for step in self.steps if step not in shared]:
            self.lose(step, "unevaluable")

    def _share_digests(self, step: int) -> None:
        """Tell all processes the digest of each, in numbers that an exchange carries."""
        mine = self.store.digests.get(step, "0" * 64)
        words = [float(int(mine[start : start + 8], 16)) for start in range(0, 64, 8)]
        rows = self._processes.exchange(*words)
        self._digests[step] = ["".join(f"{int(word):08x}" for word in row) for row in rows]

    # --------------------------------------------------------------------------- stop and resume

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: plain values, for the processes of the whole run."""
        self.store.wait()
        return {
            "rows": [to_scalars(row) for row in self.table],
            "stride": self.schedule.stride,
            "next_step": self.schedule.next_step,
            "dropped": dict(self.dropped),
            "digests": {str(step): list(known) for step, known in self._digests.items()},
        }

    def adopt(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from a checkpoint.

        Args:
            state: as of `state`.
            folder: this process's store of that run; its records are linked, and it stays as it is.
        """
        rows = ProbeTable(from_scalars(row) for row in state["rows"])
        self.schedule.kept = [row.step for row in rows]
        self.schedule.stride, self.schedule.next_step = state["stride"], state["next_step"]
        there = self._linked(state["digests"], folder)
        # the run may have thinned its table after the checkpoint and before it ended: then so do we
        while len(self.steps) > 2 and not there.issuperset(self.steps):
            if not there.issuperset(self.steps[::2]):
                break
            self.schedule.thin()
        expected = self.steps
        usable = [row for row in rows if row.step in expected]
        usable = [row for row in usable if row.evaluated or row.step in there]
        self.table, self.schedule.kept = ProbeTable(usable), [row.step for row in usable]
        for step in there.difference(self.steps):
            self.drop_stored(step)
        lost = len(expected) - len(usable)
        self.dropped = {**state["dropped"], "unevaluable": state["dropped"]["unevaluable"] + lost}

    def _linked(self, digests: Mapping[str, list[str]], folder: Path) -> set[int]:
        """Link the records of the kept steps; return the steps that every process has linked."""
        own = set()
        for step in self.steps:
            known = digests.get(str(step), [])
            complete = len(known) == self._processes.size
            if complete and self._adopt(folder, step, known[self._processes.rank]):
                own.add(step)
                self._digests[step] = list(known)
        shared = set.intersection(*map(set, self._processes.of_each(sorted(own))))
        for step in own - shared:
            self.drop_stored(step)
        return shared

    def _adopt(self, folder: Path, step: int, digest: str) -> bool:
        try:
            return self.store.adopt(folder, step, digest)
        except OSError:  # a record that cannot be linked is as good as gone
            self.store.drop(step)
            return False


def _raise_first(unwritten: list[Unwritten], lost: list[int]) -> None:
    """Raise the error that kept the first of these from being written, if there are any."""
    if not unwritten:
        return
    error = unwritten[0].error
    if not isinstance(error, OSError):
        raise error
    raise OSError(
        error.errno, f"{error.strerror}, while storing the probes of steps {lost}"
    ) from error
