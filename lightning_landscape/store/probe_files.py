"""The folder of one probe: one file of its micro-batches, and one each of x_k, g_k and x_{k+1}.

The file of the micro-batches holds their tensors, and the pickled bytes of everything else of
them. Nothing here unpickles: `digest_of` tells whether this run wrote the bytes.
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
from lightning_landscape.store.codecs import Part
from lightning_landscape.store.tensor_files import read_tensors, write_tensors

MOMENTS = "moments.safetensors"
_PROBE, _COUNT = "probe", "count"
_NONE = torch.empty(0, dtype=torch.uint8)


def file_of(part: str) -> str:
    """Return the name of the file of a part."""
    return f"{part}.safetensors"


def write_parts(folder: Path, parts: Mapping[str, Part]) -> None:
    """Write the tensors of a record that belong to parameters.

    Raises:
        OSError: if that is not possible.
    """
    for name, part in parts.items():
        write_tensors(folder / file_of(name), part.tensors, part.texts, private=True)


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
