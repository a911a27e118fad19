"""The folder of one probe: a file each of its micro-batches, x_k, g_k, x_{k+1} and the others.

The file of the micro-batches holds their tensors, the pickled bytes of everything else of them,
and in its header what else is known of the record, with the names of the other files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_landscape.probes import SCHEMA
from lightning_landscape.store.encoding import FOLLOWING, GRADIENT, PARAMETERS, Part, decode
from lightning_landscape.store.freezing import Frozen
from lightning_landscape.store.memory import Memory
from lightning_landscape.store.others import OTHERS
from lightning_landscape.store.record import CodecError, Record
from lightning_landscape.store.tensor_files import read_tensors, write_tensors
from lightning_landscape.training.failures import NotMeasurable
from lightning_landscape.vectors.gradients import Gradient

MOMENTS = "moments.safetensors"
_PROBE, _COUNT = "probe", "count"
_NONE = torch.empty(0, dtype=torch.uint8)


def file_of(part: str) -> str:
    """Return the name of the file of a part."""
    return f"{part}.safetensors"


def write_record(folder: Path, record: Record, parts: Mapping[str, Part], *, others: bool) -> None:
    """Write a record into the folder of its probe.

    Args:
        folder: the probe's.
        record: with the error of its codec.
        parts: its x, gradient and following as they are stored.
        others: whether the folder has the file of its other parameters.

    Raises:
        OSError: if that is not possible.
    """
    for name, part in parts.items():
        write_tensors(folder / file_of(name), part.tensors, part.texts, private=True)
    about = {
        "schema": SCHEMA,
        "loss": record.loss,
        "factor": record.gradient.factor if record.gradient else 1.0,
        "error": asdict(record.error),
        "stored": [*parts, OTHERS] if others else [*parts],
    }
    write_moments(folder, record.moments, about)


def read_record(
    folder: Path,
    step: int,
    memory: Memory,
    base_of: Callable[[int], Mapping[str, Tensor]],
    others_of: Callable[[Path], dict[str, Tensor]],
) -> Record:
    """Return a record from the folder of its probe. Nothing is unpickled, or checked against a run.

    Args:
        folder: the probe's.
        step: the record's.
        memory: lends the memory for large tensors.
        base_of: returns the stored x of another step.
        others_of: returns the other parameters of a folder.

    Raises:
        NotMeasurable: if something is gone or damaged.
    """

    def part(name: str) -> dict[str, Tensor] | None:
        if name not in stored:
            return None
        with _readable(name, step):
            return decode(*read_tensors(folder / file_of(name), memory), base_of)

    with _readable("batch", step):
        moments, about = read_moments(folder)
        stored, loss, factor = about["stored"], float(about["loss"]), float(about["factor"])
        error = CodecError(**about["error"])
    x, raw, following = part(PARAMETERS), part(GRADIENT), part(FOLLOWING)
    with _readable(OTHERS, step):
        others = others_of(folder) if OTHERS in stored else {}
    gradient = None if raw is None else Gradient(raw, factor)
    return Record(step, loss, moments, x, gradient, others, following, error)


_DAMAGE = (OSError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""The errors of files that are gone, or whose bytes or header are damaged"""


@contextmanager
def _readable(what: str, step: int) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        message = f"the stored {what} of step {step} cannot be read: {error}"
        raise NotMeasurable(message) from error


def write_moments(folder: Path, moments: Sequence[Frozen], about: Mapping[str, Any]) -> None:
    """Write the micro-batches of a record.

    Args:
        folder: the probe's.
        moments: in their order.
        about: what else is known of the record: plain values by name.

    Raises:
        OSError: if that is not possible.
    """
    tensors = {
        f"{index}/{name}": tensor
        for index, moment in enumerate(moments)
        for name, tensor in moment.tensors.items()
    }
    for index, moment in enumerate(moments):
        tensors[f"{index}"] = _tensor_of(moment.structure)
    texts = {_PROBE: json.dumps({**about, _COUNT: len(moments)})}
    write_tensors(folder / MOMENTS, tensors, texts, private=True)


def read_moments(folder: Path) -> tuple[list[Frozen], dict[str, Any]]:
    """Return the micro-batches of a record, and what else is known of it.

    Raises:
        OSError: if the file is gone.
        ValueError: if it is damaged.
    """
    tensors, texts = read_tensors(folder / MOMENTS)
    try:
        about = json.loads(texts.get(_PROBE, "null"))
        indices = [f"{index}" for index in range(about[_COUNT])]
        structures = [tensors.pop(index).numpy().tobytes() for index in indices]
        parts: list[dict[str, Tensor]] = [{} for _ in structures]
        for key, tensor in tensors.items():
            index, _, name = key.partition("/")
            parts[int(index)][name] = tensor
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"found no micro-batches in {folder / MOMENTS}: {error}") from error
    return [Frozen(*each) for each in zip(structures, parts, strict=True)], about


def _tensor_of(structure: bytes) -> Tensor:
    # a micro-batch that could not be pickled has no bytes, of which torch makes no tensor
    dtype = torch.uint8
    return torch.frombuffer(bytearray(structure), dtype=dtype) if structure else _NONE


def digest_of(structures: Iterable[bytes]) -> str:
    """Return one SHA-256 over the pickled bytes of a probe's micro-batches."""
    whole = hashlib.sha256()
    for structure in structures:
        whole.update(hashlib.sha256(structure).digest())
    return whole.hexdigest()
