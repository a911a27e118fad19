"""Records on disk, one folder a probe, until they are evaluated.

The store holds the user's training batches, so its folders are open to the user alone. Pickled
bytes are handed out only if this run wrote them: it keeps their SHA-256 in memory and in its
checkpoint.

In a distributed run each process has its own store, with its own micro-batches. Only the first
process stores parameters and gradients, unless they are sharded: then each stores its part.

Records are written in the background. A read, a checkpoint and the end wait for that.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_landscape.store.background import Background
from lightning_landscape.store.codecs import NATIVE, bytes_of_start, stored_bytes
from lightning_landscape.store.encoding import PARAMETERS, Base, encode, is_native
from lightning_landscape.store.freezing import Frozen
from lightning_landscape.store.memory import Memory
from lightning_landscape.store.others import OTHERS, Others
from lightning_landscape.store.probe_files import (
    MOMENTS,
    digest_of,
    file_of,
    read_record,
    write_record,
)
from lightning_landscape.store.record import Record
from lightning_landscape.store.tensor_files import link, read_tensors
from lightning_landscape.training.failures import NotMeasurable
from lightning_landscape.vectors.gradients import Gradient

WAYS_OUT = (
    "raise gib= of Store, set dirpath= to a disk with more room, or pass reference= a file, with "
    "which little more than one point is stored"
)


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A record that could not be written."""

    record: Record
    error: BaseException
    """Why, or why an earlier one could not"""


class RecordStore:
    """Records on disk.

    Args:
        folder: made when the first record is written.
        budget: largest number of bytes to use.
        dtype: how x_k and g_k are stored, a name of `codecs.CODECS`.
    """

    def __init__(self, folder: Path, budget: int, dtype: str = NATIVE) -> None:
        self.folder, self.budget = folder, budget
        self.digests: dict[int, str] = {}
        """SHA-256 over the pickled bytes of each step that this run wrote or adopted"""
        self.memory = Memory(most=2)
        """For x_k and g_k until they are on disk"""
        self.shares: Mapping[str, float] = {}
        """By name, what part of a sum over parameters this process adds; all of it by default"""
        self.largest = 0
        """Bytes of the largest record so far"""
        self._start = 0
        """Bytes by which the first record, stored natively, exceeds the others"""
        self._dtype = dtype
        self._base: Base | None = None
        """x_0 for lossy dtypes, known once the first record is on disk"""
        self._others = Others(folder)
        self._held: dict[int, Sequence[Frozen]] = {}
        """Micro-batches that could not be pickled"""
        self._background = Background(most=2)
        self._waiting: set[int] = set()
        """Steps whose records are still to be written"""
        self._unwritten: list[Unwritten] = []
        self._ahead: dict[int, Record] = {}
        """The record that was read ahead"""
        self._expected: int | None = None
        """The step that was read ahead last"""
        self._adopted: dict[tuple[int, int], Path] = {}
        """By device and inode, the link or copy of a file of the other store"""

    # ------------------------------------------------------------------------------------- writing

    @property
    def capacity(self) -> int | None:
        """How many records of the largest size fit the budget; None before the first."""
        beside = self._others.nbytes + self._start
        return max(0, self.budget - beside) // self.largest if self.largest else None

    def note_size(self, record: Record) -> None:
        """Take the size of a record into account before it is written."""
        size = self._bytes_of(record)
        self.largest = max(self.largest, size)
        # the first record is native, and so takes more
        native = sum(t.nbytes for t in _tensors_of(record))
        native += sum(moment.nbytes for moment in record.moments)
        self._start = max(self._start, native - size)

    def require_room(self) -> None:
        """Refuse a budget in which two records of the largest size have no room.

        Raises:
            MisconfigurationException: naming the ways out.
        """
        if self.capacity is not None and self.capacity < 2:
            start = f", {_mib(self._start)} more for x_0," if self._start else ""
            raise MisconfigurationException(
                f"LandscapeMonitor needs {_mib(self.largest)} a probe on disk{start} and may use "
                f"{_mib(self.budget)}; supported are budgets of two probes or more: {WAYS_OUT}"
            )

    def write(self, record: Record) -> None:
        """Write a record in the background; its folder appears when it is complete.

        The record must not change any more. Tensors on another device are copied to the host
        before this returns. The call waits while two records are unfinished. `take_unwritten`
        has the records that could not be written.
        """
        record, step = self._on_host(record), record.step
        self.note_size(record)
        if record.others:
            if self._others.known:  # they change: every probe may bring its own
                size = sum(value.nbytes for value in record.others.values())
                self.largest = max(self.largest, self._bytes_of(record) + size)
            self._others.note(record.others)
        structures = [moment.structure for moment in record.moments]
        self.digests[step] = digest_of(structures)
        if not all(structures):
            self._held[step] = record.moments
        self._ahead = {}
        self._waiting.add(step)
        self._background.do(functools.partial(self._try_to_write, record))

    def _on_host(self, record: Record) -> Record:
        gradient, others = record.gradient, record.others or {}
        return replace(
            record,
            x=record.x and self._copied_to_host(record.x),
            gradient=gradient and Gradient(self._copied_to_host(gradient.raw), gradient.factor),
            following=record.following and self._copied_to_host(record.following),
            others={name: value.detach().to("cpu") for name, value in others.items()},
        )

    def _copied_to_host(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if all(tensor.device.type == "cpu" for tensor in tensors.values()):
            return tensors
        return self.memory.on_host(tensors)

    def _bytes_of(self, record: Record) -> int:
        following = record.following or {}
        stored = sum(stored_bytes(tensor, self._dtype) for tensor in (record.x or {}).values())
        stored += sum(tensor.nbytes for tensor in following.values())
        if record.gradient is not None:
            # x_{k+1} makes the gradient native, see encoding.py
            dtype = NATIVE if following else self._dtype
            stored += sum(stored_bytes(tensor, dtype) for tensor in record.gradient.raw.values())
        return stored + sum(moment.nbytes for moment in record.moments)

    def wait(self) -> None:
        """Wait until every record is written, if it can be."""
        self._background.wait()

    @property
    def all_is_well(self) -> bool:
        """Whether no failure is known so far; some records may not be written yet."""
        return not self._unwritten

    def take_unwritten(self) -> list[Unwritten]:
        """Return, in order, the records that could not be written, and forget them.

        After a failure no further record is written until this is called.
        """
        self.wait()
        unwritten, self._unwritten = self._unwritten, []
        return unwritten

    def give_up(self, record: Record) -> None:
        """Give up a record that could not be written; its ``others`` go with the next one."""
        self.drop(record.step)
        self._others.owe(record.others)

    def _try_to_write(self, record: Record) -> None:
        try:
            if self._unwritten:  # in order: probes link to files of earlier ones
                self._unwritten.append(Unwritten(record, self._unwritten[0].error))
            else:
                self._write(record)
        except BaseException as error:
            self._unwritten.append(Unwritten(record, error))
        finally:
            self._waiting.discard(record.step)

    def _write(self, record: Record) -> None:
        self._others.owe(record.others)
        self._make_private(self.folder)
        partial, final = self.folder / f".{record.step:012d}.part", self._of(record.step)
        shutil.rmtree(partial, ignore_errors=True)
        self._make_private(partial)
        try:
            self._write_files(partial, record)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._others.written()
        self._look_for_base(record.step)

    def _write_files(self, folder: Path, record: Record) -> None:
        parts, error = encode(record, self._dtype, self._base, self.shares)
        others = self._others.put_into(folder)
        write_record(folder, replace(record, error=error), parts, others=others)

    def others_changed(self, others: Mapping[str, Tensor]) -> bool:
        """Return whether parameters that are not x have to be stored: they have changed.

        A sample of each tensor is compared, because comparing everything would need a second copy
        of a frozen backbone. Others of more than half the budget are not stored, but taken to be
        constant; if they are not, the check of fidelity tells.
        """
        if sum(value.nbytes for value in others.values()) > self.budget // 2:
            return False
        return self._others.changed(others)

    def newest_others(self) -> dict[str, Tensor]:
        """Return the newest stored values of the parameters that are not x."""
        self.wait()
        for one in reversed(self._unwritten):
            if one.record.others:
                return dict(one.record.others)
        return self._others.newest()

    def drop(self, step: int) -> None:
        """Remove a probe."""
        if step in self._waiting or step == self._expected:
            self.wait()
        self._ahead.pop(step, None)
        self.digests.pop(step, None)
        self._held.pop(step, None)
        shutil.rmtree(self._of(step), ignore_errors=True)

    def remove(self) -> None:
        """Remove the whole store."""
        self.wait()
        self._ahead = {}
        self._others.forget()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------ adopting

    def adopt(self, folder: Path, step: int, digest: str) -> bool:
        """Take over a probe of another run by hard links, or else copies.

        Args:
            folder: the other run's store.
            step: the probe's; the first probe of that run has to come first.
            digest: of its micro-batches, as that run knows it.

        Returns:
            False if the probe is not there.
        """
        self.wait()
        source, own = folder / f"{step:012d}", self._of(step)
        if not (source / MOMENTS).is_file():
            return False
        self._make_private(self.folder)
        self._make_private(own)
        for file in source.iterdir():
            self._adopt(file, own / file.name)
        self.digests[step] = digest
        self._look_for_base(step)
        if self._base is None or self._base.step != step:
            files = [file for file in own.iterdir() if file.name != file_of(OTHERS)]
            self.largest = max(self.largest, sum(file.stat().st_size for file in files))
        return True

    def _adopt(self, file: Path, target: Path) -> None:
        """Link a file; on another disk, a file that probes share is copied once."""
        found = file.stat()
        link(self._adopted.setdefault((found.st_dev, found.st_ino), file), target)
        self._adopted[found.st_dev, found.st_ino] = target

    def _look_for_base(self, step: int) -> None:
        """Take x of a step as x_0, if there is none yet and a lossy dtype needs it."""
        if self._dtype == NATIVE or self._base is not None:
            return
        with suppress(OSError, ValueError):  # without it the next record is stored natively
            self._base = self._read_base(step)
            start = bytes_of_start(self._base.values, self._dtype)
            self._start = max(self._start, start)

    def _read_base(self, step: int) -> Base:
        tensors, texts = read_tensors(self._of(step) / file_of(PARAMETERS))
        if not is_native(texts):
            raise ValueError(f"x of step {step} is not stored natively")
        return Base(step, tensors)

    def _values_of_base(self, step: int) -> Mapping[str, Tensor]:
        base = self._base
        if base is None or base.step != step:
            base = self._read_base(step)
            self._base = self._base or base
        return base.values

    # ------------------------------------------------------------------------------------- reading

    def __contains__(self, step: int) -> bool:
        if step in self._waiting:
            self.wait()
        return (self._of(step) / MOMENTS).is_file()

    def holds_iterate(self, step: int) -> bool:
        """Return whether a step is stored with its x."""
        return step in self and (self._of(step) / file_of(PARAMETERS)).is_file()

    def expect(self, step: int) -> None:
        """Read a record in the background, for the next `read` of it, which reports errors."""
        self._expected = step
        self._background.do(functools.partial(self._read_ahead, step))

    def _read_ahead(self, step: int) -> None:
        self._ahead = {}  # its memory is lent again
        with suppress(Exception):  # the read that follows retries, and reports the error
            self._ahead = {step: self._read(step)}

    def read(self, step: int) -> Record:
        """Return everything that is stored of a step.

        Raises:
            NotMeasurable: if something is gone or damaged, or if another run wrote it.
        """
        self.wait()
        found = self._ahead.pop(step, None)
        return self._read(step) if found is None else found

    def _read(self, step: int) -> Record:
        record = read_record(
            self._of(step), step, self.memory, self._values_of_base, self._others.read
        )
        if step in self._held:
            return replace(record, moments=self._held[step])
        self._check_digest(step, record.moments)
        return record

    def _check_digest(self, step: int, moments: Sequence[Frozen]) -> None:
        structures = [moment.structure for moment in moments]
        if not structures or not all(structures) or digest_of(structures) != self.digests.get(step):
            raise NotMeasurable(
                f"the stored batch of step {step} is not the one that this run wrote"
            )

    @property
    def nbytes(self) -> int:
        """Bytes on disk now, hard links counted once, without the stores of other processes."""
        self.wait()
        folders = [self.folder, *map(self._of, self.digests)]
        files = [file for folder in folders if folder.is_dir() for file in folder.iterdir()]
        found = [file.stat() for file in files if file.is_file()]
        return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in found}.values())

    def _of(self, step: int) -> Path:
        return self.folder / f"{step:012d}"

    @staticmethod
    def _make_private(folder: Path) -> None:
        for level in (folder.parent, folder) if folder.name.startswith("process-") else (folder,):
            level.mkdir(mode=0o700, parents=True, exist_ok=True)


def _tensors_of(record: Record) -> list[Tensor]:
    raw = record.gradient.raw if record.gradient else {}
    return [*(record.x or {}).values(), *raw.values(), *(record.following or {}).values()]


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"
