"""The rows that are kept of a run, with all that goes with them: schedule, table, store, and the tables beside it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_landscape.probes import Probe, ProbeTable, from_scalars, to_scalars
from lightning_landscape.recording.schedule import Schedule
from lightning_landscape.records import (
    Accuracy,
    FixedBatchRow,
    LayerRow,
    PerSampleRow,
    SegmentPoint,
)
from lightning_landscape.store.kept import Kept, Unwritten
from lightning_landscape.store.store import ProbeStore
from lightning_landscape.training.processes import Processes


class Rows:
    """The kept probes of one ``fit``: the same ones in every process.

    Args:
        schedule: which steps are probed.
        store: where this process's part of a kept probe waits for x_p.
        processes: those of the run.
        secant: whether the gradient is taken at x_{k+1} too.
        per_layer: whether the parts of the module are told apart.
    """

    def __init__(
        self,
        schedule: Schedule,
        store: ProbeStore,
        processes: Processes,
        *,
        secant: bool = False,
        per_layer: bool = False,
    ) -> None:
        self.schedule, self.store, self._processes = schedule, store, processes
        self.table = ProbeTable()
        self.dropped = {"non_finite": 0, "no_loss": 0, "unevaluable": 0}
        self.secants: dict[int, float] | None = {} if secant else None
        """‖∇f_{i_k}(x_{k+1}) − ∇f_{i_k}(x_k)‖² by step; None where it was not asked for"""
        self.layers: dict[int, list[LayerRow]] | None = {} if per_layer else None
        """What the parts of the module contribute, by step; None where it was not asked for"""
        self.segments: list[SegmentPoint] = []
        """Losses on the straight lines from some iterates to x_p"""
        self.held_out: dict[int, Probe] = {}
        """At each probe a batch that was held out, by step"""
        self.fixed_batches: dict[int, list[FixedBatchRow]] = {}
        """At each probe the same batches, by step"""
        self.accuracies: dict[int, Accuracy] = {}
        """How far a codec can have moved what was found at x_p, by step"""
        self.per_sample: dict[int, Tensor] = {}
        """At each probe its single samples, by step: f_j(x_k), f_j(x_p), <∇f_j(x_k), x_k − x_p>, shape ``(samples, 3)``"""
        self._digests: dict[int, list[str]] = {}
        """Of each stored step, by process: a checkpoint of the first one holds those of all"""

    def add(self, probe: Probe) -> None:
        """Keep a probe that was measured."""
        self.schedule.keep(probe.step)
        self.table = self.table.merged([probe])

    def put(self, probe: Probe) -> None:
        """Put a row in the place of the one of its step."""
        self.table = self.table.merged([probe])

    def write(self, step: int, kept: Kept) -> None:
        """Write to the store, in the background; see to what could not be written before.

        Raises:
            OSError: as of `settle`.
        """
        if self._processes.everywhere(self.store.all_is_well):
            self.store.write(step, kept)
        else:
            self._make_room([(step, kept)])
        if step in self.schedule.kept:
            self._share_digests(step)

    def settle(self) -> None:
        """Wait until everything is written; where the disk is full, in any process, thin the table once and try again.

        Raises:
            OSError: if it is full nevertheless; what was not written is counted as what cannot be evaluated.
        """
        self.store.wait()
        if not self._processes.everywhere(self.store.all_is_well):
            self._make_room([])

    def settle_alone(self) -> None:
        """Wait until everything is written that can be, while other processes may be gone.

        Raises:
            OSError: if something could not be; it is counted as what cannot be evaluated.
        """
        unwritten = self.store.take_unwritten()
        for one in unwritten:
            self.lose(one.step, "unevaluable")
        _raise_first(unwritten, [one.step for one in unwritten])

    def _make_room(self, new: list[tuple[int, Kept]]) -> None:
        """Thin the table, and write, without delay, what could not be written before and is still kept."""
        unwritten = self._unwritten_of_all()
        if len(self.schedule.kept) >= 3:
            self.forget(self.schedule.thin())
            for step, kept in [*((one.step, one.kept) for one in unwritten[0]), *new]:
                if step in self.schedule.kept:
                    self.store.write(step, kept)
                else:
                    self.store.give_up(step, kept)
            if self._processes.everywhere(self._is_written()):
                return
            unwritten = self._unwritten_of_all()
        own, of_all = unwritten
        lost = sorted({*of_all, *(step for step, _ in new)}.intersection(self.schedule.kept))
        for step in lost:
            self.lose(step, "unevaluable")
        _raise_first(own, lost)
        raise OSError(f"another process has no room, while storing the probes of steps {lost}")

    def _is_written(self) -> bool:
        self.store.wait()
        return self.store.all_is_well

    def _unwritten_of_all(self) -> tuple[list[Unwritten], set[int]]:
        """Return what could not be written here, and the steps of which something could not be, in any process."""
        own = self.store.take_unwritten()
        for one in own:
            if not isinstance(one.error, OSError):
                raise one.error
        return own, set().union(*self._processes.of_each([one.step for one in own]))

    def write_if_there_is_room(self, step: int, kept: Kept) -> None:
        """Write to the store, in the background; a full disk costs what was to be evaluated of such a probe, no more."""
        if not self.store.all_is_well:
            self.give_up_unwritten()
        self.store.write(step, kept)
        self._share_digests(step)

    def give_up_unwritten(self) -> None:
        """Leave what could not be written; its rows stay.

        Raises:
            BaseException: what kept it from being written, unless that was the disk.
        """
        for one in self.store.take_unwritten():
            self.store.give_up(one.step, one.kept)
            if not isinstance(one.error, OSError):
                raise one.error

    def _share_digests(self, step: int) -> None:
        """Tell all processes what each has written, in numbers that an exchange carries."""
        mine = self.store.digests.get(step, "0" * 64)
        words = [float(int(mine[start : start + 8], 16)) for start in range(0, 64, 8)]
        rows = self._processes.exchange(*words)
        self._digests[step] = ["".join(f"{int(word):08x}" for word in row) for row in rows]

    def forget(self, steps: Iterable[int]) -> None:
        """Remove rows and all that belongs to them."""
        gone = set(steps)
        if gone:
            self.table = ProbeTable(probe for probe in self.table if probe.step not in gone)
            for step in gone:
                self.drop_stored(step)
                for rows in (
                    self.secants,
                    self.layers,
                    self.held_out,
                    self.fixed_batches,
                    self.accuracies,
                    self.per_sample,
                ):
                    if rows is not None:
                        rows.pop(step, None)

    def sample_records(self) -> list[PerSampleRow]:
        """Return the single samples as rows of their file."""
        records = []
        for step in sorted(self.per_sample):
            logged = self.table.at_step(step).logged_step
            rows = enumerate(self.per_sample[step].tolist())
            records += [PerSampleRow(step, logged, sample, *values) for sample, values in rows]
        return records

    def drop_stored(self, step: int) -> None:
        """Remove what is stored of a step; its row stays."""
        self.store.drop(step)
        self._digests.pop(step, None)

    def miss(self, step: int, why: str) -> None:
        """Count a probe that could not be measured."""
        self.dropped[why] += 1
        self.schedule.skip(step)

    def lose(self, step: int, why: str) -> None:
        """Take a kept row out of the table and count it."""
        self.dropped[why] += 1
        self.schedule.kept = [kept for kept in self.schedule.kept if kept != step]
        self.forget([step])

    # ------------------------------------------------------------------------------------------------- stop and resume

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: plain numbers and text, for the processes of the whole run."""
        return {
            "rows": [to_scalars(probe) for probe in self.table],
            "stride": self.schedule.stride,
            "next_step": self.schedule.next_step,
            "dropped": dict(self.dropped),
            "digests": {str(step): list(known) for step, known in self._digests.items()},
            "secants": None
            if self.secants is None
            else {str(step): change for step, change in self.secants.items()},
            "held_out": [to_scalars(probe) for probe in self.held_out.values()],
            "fixed_batches": [astuple(row) for rows in self.fixed_batches.values() for row in rows],
            "per_sample": {str(step): samples for step, samples in self.per_sample.items()},
            "layers": None
            if self.layers is None
            else [astuple(row) for rows in self.layers.values() for row in rows],
        }

    def adopt(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from a checkpoint: link the probes before it from this process's store in ``folder``, which is not changed."""
        rows = ProbeTable(from_scalars(row) for row in state["rows"])
        self.schedule.kept = [probe.step for probe in rows]
        self.schedule.stride, self.schedule.next_step = state["stride"], state["next_step"]
        there = self._linked(state["digests"], folder)
        # the run may have gone on after the checkpoint and thinned its table before it ended: then so do we
        while (
            len(kept := self.schedule.kept) > 2
            and not there.issuperset(kept)
            and there.issuperset(kept[::2])
        ):
            self.schedule.thin()
        expected = self.schedule.kept
        usable = [
            probe
            for probe in rows
            if probe.step in expected and (probe.evaluated or probe.step in there)
        ]
        self.table, self.schedule.kept = ProbeTable(usable), [probe.step for probe in usable]
        for step in there.difference(self.schedule.kept):
            self.drop_stored(step)
        self.dropped = {
            **state["dropped"],
            "unevaluable": state["dropped"]["unevaluable"] + len(expected) - len(usable),
        }
        if self.secants is not None and state.get("secants") is not None:
            self.secants = {
                int(k): change
                for k, change in state["secants"].items()
                if int(k) in self.schedule.kept
            }
        if self.layers is not None:
            for row in itertools.starmap(LayerRow, state.get("layers") or []):
                if row.step in self.schedule.kept:
                    self.layers.setdefault(row.step, []).append(row)

        for probe in map(from_scalars, state.get("held_out", [])):
            if probe.step in self.schedule.kept:
                self.held_out[probe.step] = probe
        for one in itertools.starmap(FixedBatchRow, state.get("fixed_batches", [])):
            if one.step in self.schedule.kept:
                self.fixed_batches.setdefault(one.step, []).append(one)
        known = {int(step): samples for step, samples in state.get("per_sample", {}).items()}
        self.per_sample = {
            step: samples for step, samples in known.items() if step in self.schedule.kept
        }

    def _adopt(self, folder: Path, step: int, digest: str) -> bool:
        try:
            return self.store.adopt(folder, step, digest)
        except OSError:  # what cannot be taken over is as good as gone
            self.store.drop(step)
            return False

    def _linked(self, digests: Mapping[str, list[str]], folder: Path) -> set[int]:
        """Take over what is stored of the kept steps; return the steps of which every process has its part."""
        own = set()
        for step in self.schedule.kept:
            known = digests.get(str(step), [])
            if len(known) == self._processes.size and self._adopt(
                folder, step, known[self._processes.rank]
            ):
                own.add(step)
                self._digests[step] = list(known)
        shared = set.intersection(*map(set, self._processes.of_each(sorted(own))))
        for step in own - shared:
            self.drop_stored(step)
        return shared


def _raise_first(unwritten: list[Unwritten], lost: list[int]) -> None:
    """Raise what kept probes from being written, if anything did."""
    if unwritten:
        error = unwritten[0].error
        if not isinstance(error, OSError):
            raise error
        raise OSError(
            error.errno, f"{error.strerror}, while storing the probes of steps {lost}"
        ) from error
