"""The micro-batches of a probe in one file: their tensors, the bytes of all else of them, and in the header what else is known.

The bytes are pickled: they are to be read back only where their digest is one that this run wrote down.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_landscape.recording.freezing import Frozen
from lightning_landscape.store.memory import Memory
from lightning_landscape.store.tensor_files import read_header, read_tensors, write_tensors

MOMENTS = "moments.safetensors"
_PROBE, _COUNT = "probe", "count"
_NONE = torch.empty(0, dtype=torch.uint8)
"""In the place of the bytes of a micro-batch that could not be pickled"""


def write_moments(folder: Path, moments: Sequence[Frozen], about: Mapping[str, Any]) -> None:
    """Write micro-batches into a probe's folder.

    Args:
        folder: the probe's.
        moments: in their order.
        about: what else is known of the probe, plain values by name.

    Raises:
        OSError: if that cannot be.
    """
    tensors = {
        f"{index}/{name}": tensor
        for index, moment in enumerate(moments)
        for name, tensor in moment.tensors.items()
    }
    for index, moment in enumerate(moments):
        tensors[f"{index}"] = (
            torch.frombuffer(bytearray(moment.structure), dtype=torch.uint8)
            if moment.structure
            else _NONE
        )
    header = {_PROBE: json.dumps({**about, _COUNT: len(moments)})}
    write_tensors(folder / MOMENTS, tensors, header, private=True)


def read_about(folder: Path) -> dict[str, Any]:
    """Return what else is known of a probe.

    Raises:
        OSError: if it is gone.
        ValueError: if it cannot be read.
    """
    return _about(read_header(folder / MOMENTS)[1])


def read_moments(folder: Path) -> list[Frozen]:
    """Return the micro-batches of a probe, as they lie there: nothing is unpickled.

    Raises:
        OSError: if they are gone.
        ValueError: if they cannot be read.
    """
    tensors, header = read_tensors(folder / MOMENTS, Memory(most=0))
    try:
        structures = [
            tensors.pop(f"{index}").numpy().tobytes() for index in range(_about(header)[_COUNT])
        ]
        parts: list[dict[str, Tensor]] = [{} for _ in structures]
        for key, tensor in tensors.items():
            index, _, name = key.partition("/")
            parts[int(index)][name] = tensor
    except (LookupError, TypeError) as error:
        raise ValueError(f"found no micro-batches in {folder / MOMENTS}: {error}") from error
    return [Frozen(*each) for each in zip(structures, parts, strict=True)]


def _about(header: Mapping[str, str]) -> dict[str, Any]:
    about = json.loads(header.get(_PROBE, "null"))
    if not isinstance(about, dict) or not isinstance(about.get(_COUNT), int):
        raise ValueError("found a file without what is known of its probe")
    return about


def digest_of(structures: Iterable[bytes]) -> str:
    """Return one SHA-256 over the pickled parts of a probe's micro-batches: what no known run wrote is never unpickled."""
    whole = hashlib.sha256()
    for structure in structures:
        whole.update(hashlib.sha256(structure).digest())
    return whole.hexdigest()
