"""What a kept probe needs until x_p is known, on disk: x_k, g_k and the moments of its micro-batches.

One folder a probe, named by its step. Tensors lie in safetensors files; the structure of a batch and of the module's plain
state is pickled among them, and read back only if its SHA-256 is one that this run wrote down (in memory, or in its
checkpoint). The store holds the user's training batches: its folders are open to the user alone.

In a distributed run each process has a store of its own: the micro-batches are its own, and of sharded parameters it keeps its
own part. Parameters and gradients that are the same in every process are kept by the first one alone.

Probes are written in the background. Whoever reads waits for what is still to be written, and so do a checkpoint and the end.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightning_landscape.probes import SCHEMA
from lightning_landscape.recording.freezing import Frozen
from lightning_landscape.store.background import Background
from lightning_landscape.store.codecs import NATIVE
from lightning_landscape.store.encoding import GRADIENT, PARAMETERS, CodecError, Encoder
from lightning_landscape.store.kept import Kept, Unwritten, same_sample, sampled
from lightning_landscape.store.memory import Memory
from lightning_landscape.store.moments import (
    MOMENTS,
    digest_of,
    read_about,
    read_moments,
    write_moments,
)
from lightning_landscape.store.tensor_files import link, save_tensors
from lightning_landscape.training.failures import NotMeasurable
from lightning_landscape.vectors.gradients import Gradient

T = TypeVar("T")

_OTHERS = "others"
_NATIVES = 3
"""So many probes, x_0 and the two newest of those that the caller chose, are there as they were, beside being encoded"""
WAYS_OUT = (
    "raise store_gib=, set dirpath= to a disk with more room, or pass reference= a file, with which little more than one point "
    "is stored"
)


class ProbeStore:
    """Kept probes on disk.

    Args:
        folder: where they go; made when the first one is written.
        budget: largest number of bytes to use.
        codec: how x_k and g_k are written, a name of `CODECS`.
    """

    def __init__(self, folder: Path, budget: int, codec: str = NATIVE) -> None:
        self.folder, self.encoder = folder, Encoder(codec, folder)
        self.budget = budget
        self.digests: dict[int, str] = {}
        """SHA-256 over the structures of each step that this run wrote, or took over from its checkpoint"""
        self.largest = 0
        """Bytes of the largest probe so far"""
        self.shared = 0
        """Bytes of the parameters that the optimiser does not hold, as stored once"""
        self._base = 0
        """Bytes of x_0, where differences to it are stored"""
        self._native = 0
        """Bytes of the largest probe as it was, where some are there like that beside"""
        self._natives: list[int] = []
        self._held: dict[int, Sequence[Frozen]] = {}
        self._newest_read: tuple[int, list[Frozen]] | None = None
        """The micro-batches that were read last: a line to x_p evaluates the same ones again and again"""
        self._adopted: dict[tuple[int, int], Path] = {}
        self._background = Background(most=2)
        self.memory = Memory(most=2)
        """Where x_k and g_k are until they are on disk"""
        self._reading = Background(most=2)
        self._ahead: dict[tuple[int, str], Any] = {}
        """x_k and g_k that were read before anybody asked for them"""
        self._waiting: set[int] = set()
        """Steps that were to be written and are not yet"""
        self._unwritten: list[Unwritten] = []
        self._owed: Mapping[str, Tensor] = {}
        """Parameters that the optimiser does not hold and that are not on disk, but belong to the next probe written"""
        self._sample: dict[str, Tensor] = {}
        self._newest_others = folder / f"{_OTHERS}.safetensors"

    # -------------------------------------------------------------------------------------------------------- writing

    @property
    def capacity(self) -> int | None:
        """How many probes as large as the largest fit in the budget; None before the first."""
        beside = self.shared + self._base + _NATIVES * self._native
        return max(0, self.budget - beside) // self.largest if self.largest else None

    def note_size(self, kept: Kept) -> None:
        """Take a probe's size into account before it is written."""
        self.largest = max(self.largest, self._bytes_of(kept))
        self._base = max(self._base, self.encoder.base_bytes(kept.parameters or {}))

    def _bytes_of(self, kept: Kept) -> int:
        gradient = kept.gradient.raw if kept.gradient else {}
        moments = sum(moment.nbytes for moment in kept.moments)
        return self.encoder.nbytes(kept.parameters or {}) + self.encoder.nbytes(gradient) + moments

    def require_room(self) -> None:
        """Refuse a budget in which two probes of the largest size have no room.

        Raises:
            MisconfigurationException: naming the ways out.
        """
        if self.capacity is not None and self.capacity < 2:
            raise MisconfigurationException(
                f"LandscapeMonitor needs {self.largest / 2**20:.1f} MiB a probe on disk{self._besides()} and may use "
                f"{self.budget / 2**20:.1f} MiB; supported are budgets of two probes or more: {WAYS_OUT}"
            )

    def _besides(self) -> str:
        return f", {self._base / 2**20:.1f} MiB for x_0," if self._base else ""

    def write(self, step: int, kept: Kept) -> None:
        """Write a probe in the background; its folder appears when it is complete.

        What is in ``kept`` must not change any more. Waits while two are not written yet. What is on another device is copied
        to the host before this returns: memory there is free again at once. What could not be written is in `take_unwritten`.
        """
        kept = kept.on_host(self.memory)
        self.note_size(kept)
        if kept.others:
            size = sum(value.nbytes for value in kept.others.values())
            if self._sample:  # they change: every probe may bring its own
                self.largest = max(self.largest, self._bytes_of(kept) + size)
            self.shared = size
            self._sample = sampled(kept.others)
        self.digests[step] = digest_of(moment.structure for moment in kept.moments)
        if any(not moment.structure for moment in kept.moments):
            self._held[step] = kept.moments
        kept = replace(kept, natively=kept.natively and self._has_room_natively(kept.nbytes))
        if kept.natively:
            self._note_natively(step)
        self._waiting.add(step)
        self._background.do(functools.partial(self._try_to_write, step, kept))

    def _has_room_natively(self, nbytes: int) -> bool:
        """Return whether some probes may be there as they were: they take a quarter of the budget at most."""
        if (
            not self.encoder.lossy
            or _NATIVES * nbytes > (self.budget - self.shared - self._base) // 4
        ):
            return False
        self._native = max(self._native, nbytes)
        return True

    def _note_natively(self, step: int) -> None:
        self._natives = sorted({*self._natives, step}.intersection(self.digests))
        for dropped in self._natives[1 : 1 - _NATIVES]:
            if dropped in self._waiting:
                self.wait()
            self.encoder.drop_native(self._of(dropped))
            self._natives.remove(dropped)

    def wait(self) -> None:
        """Wait until everything is written that can be."""
        self._background.wait()

    @property
    def all_is_well(self) -> bool:
        """Whether nothing is known of a probe that could not be written; some may not be written yet."""
        return not self._unwritten

    def take_unwritten(self) -> list[Unwritten]:
        """Return what could not be written, in order, and forget it: after a failure nothing is, until this is called."""
        self.wait()
        unwritten, self._unwritten = self._unwritten, []
        return unwritten

    def give_up(self, step: int, kept: Kept) -> None:
        """Leave a probe that could not be written out; what others share with it is written with the next one."""
        self.drop(step)
        self._owed = kept.others or self._owed

    def _try_to_write(self, step: int, kept: Kept) -> None:
        try:
            if self._unwritten:  # in order, for probes link what those before them have brought
                self._unwritten.append(Unwritten(step, kept, self._unwritten[0].error))
            else:
                self._write(step, kept)
        except BaseException as error:
            self._unwritten.append(Unwritten(step, kept, error))
        finally:
            self._waiting.discard(step)

    def _write(self, step: int, kept: Kept) -> None:
        self._owed = kept.others or self._owed
        self._make_private(self.folder)
        partial = self.folder / f".{step:012d}.part"
        shutil.rmtree(partial, ignore_errors=True)
        self._make_private(partial)
        try:
            self._write_parts(partial, step, kept)
            final = self._of(step)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._owed = {}

    def _write_parts(self, folder: Path, step: int, kept: Kept) -> None:
        error = self.encoder.write(
            folder, f"step {step}", kept.parameters, kept.gradient, natively=kept.natively
        )
        if self._owed:
            save_tensors(self._newest_others, self._owed, private=True)
        if self._newest_others.exists():
            link(self._newest_others, folder / self._newest_others.name)
        write_moments(
            folder, kept.moments, {"schema": SCHEMA, "loss": kept.loss, "error": asdict(error)}
        )

    def others_changed(self, others: Mapping[str, Tensor]) -> bool:
        """Return whether parameters that the optimiser does not hold are to be stored: they differ from those stored last.

        Seen on up to 1,024 elements of each: comparing all of them would cost a second copy of a frozen backbone. One that
        takes more than half of the budget is not stored at all, but taken to be constant; a replay that is off tells.
        """
        if sum(value.nbytes for value in others.values()) > self.budget // 2:
            return False
        return not same_sample(sampled(others), self._sample)

    def drop(self, step: int) -> None:
        """Remove a probe."""
        if step in self._waiting:
            self.wait()
        self.digests.pop(step, None)
        self._held.pop(step, None)
        self._newest_read = None
        shutil.rmtree(self._of(step), ignore_errors=True)

    def remove(self) -> None:
        """Remove the whole store."""
        self.wait()
        self._reading.wait()
        self._ahead.clear()
        self._newest_read = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def adopt(self, folder: Path, step: int, digest: str) -> bool:
        """Take over a probe from another run's store by hard links, else copies; False if it is not there."""
        self.wait()
        source = folder / f"{step:012d}"
        if not (source / MOMENTS).is_file():
            return False
        self._make_private(self.folder)
        self._make_private(self._of(step))
        for file in source.iterdir():
            self._adopt(file, self._of(step) / file.name)
        self.encoder.adopt(self._of(step))
        self.digests[step] = digest
        if self.encoder.holds_natively(self._of(step)):
            self._natives = sorted({*self._natives, step})
        own = [
            file
            for file in self._of(step).iterdir()
            if not file.name.startswith((_OTHERS, "base-", "native-"))
        ]
        self.largest = max(self.largest, sum(file.stat().st_size for file in own))
        return True

    def _adopt(self, file: Path, target: Path) -> None:
        """Link a file of another store; where that is on another disk, what its probes share is copied once."""
        found = file.stat()
        link(self._adopted.setdefault((found.st_dev, found.st_ino), file), target)
        self._adopted[found.st_dev, found.st_ino] = target

    # -------------------------------------------------------------------------------------------------------- reading

    def __contains__(self, step: int) -> bool:
        self.wait()
        return (self._of(step) / MOMENTS).is_file()

    def holds_iterate(self, step: int) -> bool:
        """Return whether x_k of a step is stored, and what its loss needs."""
        return step in self and (self._of(step) / f"{PARAMETERS}.safetensors").is_file()

    def holds_exactly(self, step: int) -> bool:
        """Return whether x_k of a step can be had as it was."""
        try:
            return self.holds_iterate(step) and (
                self.holds_natively(step) or self.error(step).iterate == 0
            )
        except (OSError, NotMeasurable):
            return False

    def holds_gradient_exactly(self, step: int) -> bool:
        """Return whether g_k of a stored step can be had as it was."""
        return self.holds_natively(step) or self.error(step).gradient == 0

    def holds_natively(self, step: int) -> bool:
        """Return whether x_k and g_k of a step are there as they were, beside being encoded."""
        self.wait()
        return self.encoder.holds_natively(self._of(step))

    def iterate(self, step: int, *, exactly: bool = False) -> dict[str, Tensor]:
        """Return x_k, as it was or, where a codec changed it and no more is asked for, as that left it."""
        return self._read(step, PARAMETERS, exactly, self._read_iterate)

    def others(self, step: int) -> dict[str, Tensor]:
        """Return the stored values of parameters that the optimiser did not hold."""
        self.wait()
        path = os.path.join(self._of(step), f"{_OTHERS}.safetensors")
        try:
            return load_file(path) if os.path.exists(path) else {}
        except (OSError, SafetensorError) as error:
            raise NotMeasurable(f"the stored {_OTHERS} of step {step} are gone: {error}") from error

    def newest_others(self) -> dict[str, Tensor]:
        """Return the values of these parameters that were stored last."""
        self.wait()
        for others in (*(one.kept.others for one in reversed(self._unwritten)), self._owed):
            if others:
                return dict(others)
        return load_file(self._newest_others)

    def gradient(self, step: int, *, exactly: bool = False) -> Gradient:
        """Return g_k, as it was or, where a codec changed it and no more is asked for, as that left it."""
        return self._read(step, GRADIENT, exactly, self.encoder.read_gradient)

    def gradient_names(self, step: int) -> list[str]:
        """Return the names of the parameters that have a gradient at a step, without reading it."""
        self.wait()
        try:
            return self.encoder.names(self._of(step), GRADIENT)
        except (OSError, LookupError, ValueError) as error:
            raise NotMeasurable(f"the stored {GRADIENT} of step {step} is gone: {error}") from error

    def error(self, step: int) -> CodecError:
        """Return what a codec did to the stored x_k and g_k.

        Raises:
            NotMeasurable: if that is gone.
        """
        try:
            return CodecError(**self._content(step).get("error", {}))
        except OSError as error:
            raise NotMeasurable(f"what a codec did at step {step} is gone: {error}") from error

    def _read_iterate(
        self, folder: Path, memory: Memory, *, natively: bool = False
    ) -> dict[str, Tensor]:
        return self.encoder.read(folder, PARAMETERS, memory, natively=natively)

    def expect(self, step: int) -> None:
        """Begin to read x_k and g_k of a step for whoever asks next, once: a disk takes as long as an evaluation."""
        self.wait()
        self._reading.wait()
        self._ahead.clear()
        for part, read in (
            (PARAMETERS, self._read_iterate),
            (GRADIENT, self.encoder.read_gradient),
        ):
            self._reading.do(functools.partial(self._read_ahead, step, part, read))

    def _read_ahead(self, step: int, part: str, read: Callable[..., Any]) -> None:
        with suppress(Exception):  # whoever asks reads it again, and sees what is the matter
            self._ahead[step, part] = read(self._of(step), self.memory)

    def _read(self, step: int, part: str, exactly: bool, read: Callable[..., T]) -> T:
        self.wait()
        self._reading.wait()
        found: T | None = self._ahead.pop((step, part), None)
        if found is not None and not exactly:
            return found
        natively = exactly and self.encoder.holds_natively(self._of(step))
        try:
            return read(self._of(step), memory=self.memory, natively=natively)
        except (OSError, SafetensorError, LookupError, ValueError) as error:
            raise NotMeasurable(f"the stored {part} of step {step} are gone: {error}") from error

    def moments(self, step: int) -> list[Frozen]:
        """Return the moments of a probe's micro-batches.

        Raises:
            NotMeasurable: if they are gone, or are not the ones that this run wrote.
        """
        self.wait()
        if step in self._held:
            return list(self._held[step])
        if self._newest_read is not None and self._newest_read[0] == step:
            return list(self._newest_read[1])
        try:
            moments = read_moments(self._of(step))
        except (OSError, ValueError) as error:
            raise NotMeasurable(f"the stored batch of step {step} is gone: {error}") from error
        structures = [moment.structure for moment in moments]
        if not moments or not all(structures) or digest_of(structures) != self.digests.get(step):
            raise NotMeasurable(
                f"the stored batch of step {step} is not the one that this run wrote"
            )
        self._newest_read = step, moments
        return list(moments)

    def loss(self, step: int) -> float:
        """Return this process's loss at a step, as training saw it.

        Raises:
            NotMeasurable: if it is gone.
        """
        try:
            return float(self._content(step)["loss"])
        except OSError as error:
            raise NotMeasurable(f"the stored loss of step {step} is gone: {error}") from error

    def _content(self, step: int) -> dict[str, Any]:
        self.wait()
        try:
            return read_about(self._of(step))
        except ValueError as error:
            raise NotMeasurable(f"what is stored of step {step} cannot be read: {error}") from error

    @property
    def nbytes(self) -> int:
        """Bytes on disk now, hard links counted once, without the stores of other processes."""
        self.wait()
        probes = [self._of(step) for step in self.digests]
        found = [
            file.stat()
            for folder in (self.folder, *probes)
            if folder.is_dir()
            for file in folder.iterdir()
            if file.is_file()
        ]
        return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in found}.values())

    def _of(self, step: int) -> Path:
        return self.folder / f"{step:012d}"

    @staticmethod
    def _make_private(folder: Path) -> None:
        for level in (folder.parent, folder) if folder.name.startswith("process-") else (folder,):
            level.mkdir(mode=0o700, parents=True, exist_ok=True)
