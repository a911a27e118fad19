"""The reference point x_p: the last iterate of this run, or parameters from a file.

Sharded parameters (FSDP2) are written and read part by part, as a folder of ``torch.distributed.checkpoint``: no process ever
holds them whole.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_landscape.store.tensor_files import file_digest, save_tensors
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.parameters import plain_name
from lightning_landscape.vectors.sharding import local, local_part

FINAL = "final"
"""``reference="final"``: x_p is the last iterate of the run"""
FILE = "reference.safetensors"
FOLDER = "reference"
"""Where parameters are sharded"""

_KINDS = (
    "supported are a Lightning checkpoint (.ckpt, a file or a folder), a file with a state_dict, .safetensors, and a folder of "
    "torch.distributed.checkpoint"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """x_p by parameter name, and where it is from; of sharded parameters this process's part."""

    parameters: dict[str, Tensor]
    kind: str
    path: str | None
    sha256: str | None


def last_iterate(parameters: Mapping[str, Tensor], folder: Path | None) -> Reference:
    """Return the last iterate as reference; with a folder, write it there as ``reference.safetensors``."""
    if folder is None:
        return Reference(dict(parameters), FINAL, None, None)
    path = folder / FILE
    save_tensors(path, parameters)
    return Reference(dict(parameters), FINAL, path.name, file_digest(path))


def last_sharded_iterate(
    values: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    folder: Path,
    processes: Processes,
) -> Reference:
    """Return the last iterate as reference, written to a folder by all processes together, in a block of `Processes.agreed`.

    Args:
        values: this process's part of x_K by name.
        parameters: the module's parameters by name, which tell of what they are parts.
        folder: where a folder ``reference`` is made.
        processes: those of the run.
    """
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.tensor import DTensor

    whole: dict[str, Any] = {}
    for name, value in values.items():
        like: Any = parameters[name]
        whole[name] = value
        if isinstance(like, DTensor):
            whole[name] = DTensor.from_local(
                value,
                like.device_mesh,
                like.placements,
                run_check=False,
                shape=like.shape,
                stride=like.stride(),
            )
    path = folder / FOLDER
    processes.exchange()  # torch's saving waits for all: whoever is not ready says so
    with _quiet():
        save(whole, checkpoint_id=path)
    return Reference(dict(values), FINAL, path.name, folder_digest(path))


def folder_digest(path: Path) -> str:
    """Return one SHA-256 over the files of a folder and their names."""
    whole = hashlib.sha256()
    for file in sorted(file for file in path.iterdir() if file.is_file()):
        whole.update(f"{file.name}:{file_digest(file)};".encode())
    return whole.hexdigest()


def check_reference_file(reference: str | Path) -> None:
    """Refuse a path at which there is no file.

    Raises:
        MisconfigurationException: if there is none.
    """
    if isinstance(reference, (str, os.PathLike)) and (
        reference == FINAL or Path(reference).is_file() or _is_distributed(Path(reference))
    ):
        return
    raise MisconfigurationException(
        f"LandscapeMonitor(reference={str(reference)!r}) found no file there; {_KINDS}, for example "
        f"<log_dir>/landscape/{FILE} of another run, or 'final', the last iterate of this run: pass one of these"
    )


def load_reference(
    reference: str | Path,
    trained: Mapping[str, nn.Parameter],
    others: Mapping[str, nn.Parameter],
    processes: Processes,
) -> Reference:
    """Read x_p from a file, for the parameters that the optimiser trains; all processes have to call it.

    Args:
        reference: path of the file.
        trained: the optimiser's parameters by name; the file must hold every one, in its shape.
        others: the module's other parameters; where the file holds one, it must have the value that it has here.
        processes: those of the run.

    Returns:
        x_p in the dtype and on the device of each parameter.

    Raises:
        MisconfigurationException: naming the parameters that are missing, have other shapes or (frozen) other values.
    """
    path = Path(reference)
    if _is_distributed(path):
        return _load_distributed(reference, trained, others, processes)
    found = {plain_name(name): value for name, value in _read(path).items()}
    shapes = {name: value.shape for name, value in found.items()}
    values = {name: value for name, value in found.items() if name in trained or name in others}
    _check(reference, shapes, values, trained, others)
    parts = {name: local_part(found[name], parameter) for name, parameter in trained.items()}
    return Reference(_placed(parts, trained), "file", str(path.absolute()), file_digest(path))


def _load_distributed(
    reference: str | Path,
    trained: Mapping[str, nn.Parameter],
    others: Mapping[str, nn.Parameter],
    processes: Processes,
) -> Reference:
    """Read x_p from a folder of ``torch.distributed.checkpoint``: each process its own parts."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    path = Path(reference)
    try:
        written = FileSystemReader(path).read_metadata().state_dict_metadata
        kept = {
            _name_in_folder(key): (key, meta)
            for key, meta in written.items()
            if isinstance(meta, TensorStorageMetadata)
        }
        shapes = {name: meta.size for name, (_, meta) in kept.items()}
        wanted = {
            n: p for n, p in {**others, **trained}.items() if n in shapes and shapes[n] == p.shape
        }
        state: dict[str, Any] = {
            kept[name][0]: torch.empty_like(p.detach()) for name, p in wanted.items()
        }
        processes.exchange()  # torch's loading waits for all: whoever is not ready says so
        with _quiet():
            load(state, checkpoint_id=path)
    except Exception as error:
        raise _unreadable(reference, error) from error
    values = {name: state[kept[name][0]] for name in wanted}
    _check(reference, shapes, values, trained, others)
    return Reference(
        _placed({name: local(values[name]) for name in trained}, trained),
        "file",
        str(path.absolute()),
        folder_digest(path),
    )


def _name_in_folder(key: str) -> str:
    """Return a parameter's name: Lightning's folders have all parameters under ``state_dict``."""
    return plain_name(key.removeprefix("state_dict."))


def _check(
    reference: str | Path,
    shapes: Mapping[str, Any],
    values: Mapping[str, Tensor],
    trained: Mapping[str, nn.Parameter],
    others: Mapping[str, nn.Parameter],
) -> None:
    complaints = {
        "holds none of": [name for name in trained if name not in shapes],
        "has other shapes for": [
            name for name in trained if name in shapes and shapes[name] != trained[name].shape
        ],
        "has other values for frozen parameters, which stay as they are in this run,": [
            name
            for name in others
            if name in shapes and not (name in values and _same(values[name], others[name]))
        ],
    }
    if any(complaints.values()):
        said = "; ".join(
            f"it {what} {_listed(names)}" for what, names in complaints.items() if names
        )
        raise MisconfigurationException(
            f"LandscapeMonitor(reference={str(reference)!r}) is no reference for this run: {said}. Supported is a file from a run "
            "of the same module: pass one, or reference='final'"
        )


def _placed(
    parts: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return parts in the dtype and on the device of their parameters."""
    where = {name: local(parameters[name]) for name in parts}
    return {
        name: part.to(where[name].device, where[name].dtype, copy=True)
        for name, part in parts.items()
    }


def _is_distributed(path: Path) -> bool:
    return (path / ".metadata").is_file()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from warning that one process alone saves or loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        safetensors.SafetensorError,
    ) as error:
        raise _unreadable(str(path), error) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise MisconfigurationException(
            f"LandscapeMonitor(reference={str(path)!r}) holds a {type(content).__name__}; {_KINDS}"
        )
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _unreadable(reference: str | Path, error: Exception) -> MisconfigurationException:
    return MisconfigurationException(
        f"LandscapeMonitor(reference={str(reference)!r}) cannot be read: {type(error).__name__} {str(error)[:200]}; {_KINDS}, "
        "the files readable by torch.load(weights_only=True): pass one of these"
    )


def _same(found: Tensor, parameter: Tensor) -> bool:
    if found.shape != parameter.shape:
        return False
    here = local(parameter)
    part = local(found) if type(found) is not Tensor else local_part(found, parameter)
    return torch.equal(part.to(here.device, here.dtype), here)


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
