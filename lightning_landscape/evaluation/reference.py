"""The reference x_p: the last iterate of this run, or parameters from a file.

Sharded parameters (FSDP2) are written and read as a folder of ``torch.distributed.checkpoint``, so
that no process ever holds them whole.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_landscape.store.tensor_files import file_digest, save_tensors
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.parameters import plain_name
from lightning_landscape.vectors.sharding import is_sharded, local, local_part

FINAL = "final"
"""``reference="final"``: x_p is the last iterate of the run"""
FILE = "reference.safetensors"
FOLDER = "reference"
"""Replaces the file if parameters are sharded"""

_KINDS = (
    "supported are a Lightning checkpoint (.ckpt, a file or a folder), a file with a state_dict, "
    ".safetensors, and a folder of torch.distributed.checkpoint"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """x_p and its origin."""

    parameters: dict[str, Tensor]
    """By name; of a sharded parameter this process's part"""
    kind: str
    """Either "final" or "file"."""
    path: str | None
    sha256: str | None


class _Content(NamedTuple):
    """The parameters in a file or folder, by plain name."""

    shapes: Mapping[str, torch.Size]
    """Shapes of all parameters"""
    values: Mapping[str, Tensor]
    """Values of the parameters that the module has, too"""


# ------------------------------------------------------------------------------------- last iterate


def last_iterate(parameters: Mapping[str, Tensor], folder: Path | None) -> Reference:
    """Return the last iterate as reference.

    Args:
        parameters: x_K by name.
        folder: where to write ``reference.safetensors``; None to write nothing.
    """
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
    """Write the last iterate of a sharded run, and return it as reference.

    All processes call this together, in a block of `Processes.agreed`.

    Args:
        values: this process's part of x_K by name.
        parameters: the module's parameters by name.
        folder: where to create the folder ``reference``.
        processes: the processes of the run.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    whole: dict[str, Any] = {
        name: _as_dtensor(value, parameters[name]) for name, value in values.items()
    }
    path = folder / FOLDER
    processes.exchange()  # `save` waits for all processes: one that has failed says so here
    with _without_warnings():
        save(whole, checkpoint_id=path)
    return Reference(dict(values), FINAL, path.name, folder_digest(path))


def _as_dtensor(part: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return this process's part of a parameter as a DTensor like the parameter."""
    from torch.distributed.tensor import DTensor

    like: Any = parameter
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def folder_digest(path: Path) -> str:
    """Return a SHA-256 over the names and contents of the files in a folder."""
    whole = hashlib.sha256()
    for file in sorted(file for file in path.iterdir() if file.is_file()):
        whole.update(f"{file.name}:{file_digest(file)};".encode())
    return whole.hexdigest()


# -------------------------------------------------------------------------------- file or folder


def check_reference_file(reference: str | Path) -> None:
    """Check that there is a file or folder at a path, unless the reference is "final".

    Raises:
        MisconfigurationException: if there is none.
    """
    if isinstance(reference, (str, os.PathLike)) and (
        reference == FINAL or Path(reference).is_file() or _is_distributed(Path(reference))
    ):
        return
    raise MisconfigurationException(
        f"LandscapeMonitor(reference={str(reference)!r}) found no file there; {_KINDS}: pass one "
        f"of these, such as <log_dir>/landscape/{FILE} of another run, or pass 'final' for the "
        "last iterate of this run"
    )


def load_reference(
    reference: str | Path,
    trained: Mapping[str, nn.Parameter],
    others: Mapping[str, nn.Parameter],
    processes: Processes,
) -> Reference:
    """Read x_p from a file or folder. Every process must call this.

    Args:
        reference: path of the file or folder. It must hold every trained parameter in its shape.
        trained: the measured parameters by name.
        others: the frozen parameters by name. If the file holds one, the values must be equal.
        processes: the processes of the run.

    Returns:
        x_p, with the dtype and device of each parameter.

    Raises:
        MisconfigurationException: if the file is unreadable, or if parameters are missing or
            differ. The message names them.
    """
    path = Path(reference)
    try:
        if _is_distributed(path):
            content = _read_folder(path, {**others, **trained}, processes)
            digest = folder_digest(path)
        else:
            content = _read_file(path, {**others, **trained})
            digest = file_digest(path)
    except MisconfigurationException:
        raise
    except Exception as error:  # the content of a file may be anything
        raise MisconfigurationException(
            f"LandscapeMonitor(reference={str(reference)!r}) cannot be read: "
            f"{type(error).__name__} {str(error)[:200]}; {_KINDS}, readable by "
            "torch.load(weights_only=True): pass one of these"
        ) from error
    _check(reference, content, trained, others)
    parts = {name: _part_of(content.values[name], parameter) for name, parameter in trained.items()}
    return Reference(parts, "file", str(path.absolute()), digest)


def _is_distributed(path: Path) -> bool:
    return (path / ".metadata").is_file()


def _read_file(path: Path, parameters: Mapping[str, nn.Parameter]) -> _Content:
    if path.suffix == ".safetensors":
        content: Any = load_file(path)
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise MisconfigurationException(
            f"LandscapeMonitor(reference={str(path)!r}) found a {type(content).__name__} in the "
            f"file; {_KINDS}: pass one of these"
        )
    found = {plain_name(n): value for n, value in content.items() if isinstance(value, Tensor)}
    shapes = {name: value.shape for name, value in found.items()}
    return _Content(shapes, {name: found[name] for name in found if name in parameters})


def _read_folder(
    path: Path, parameters: Mapping[str, nn.Parameter], processes: Processes
) -> _Content:
    """Read a folder of ``torch.distributed.checkpoint``, in each process its own parts."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    written = FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {
        key: meta for key, meta in written.items() if isinstance(meta, TensorStorageMetadata)
    }
    keys = {_name_in_folder(key): key for key in tensors}
    shapes = {name: tensors[key].size for name, key in keys.items()}
    state: dict[str, Any] = {
        keys[name]: torch.empty_like(parameter.detach())
        for name, parameter in parameters.items()
        if shapes.get(name) == parameter.shape
    }
    processes.exchange()  # `load` waits for all processes: one that has failed says so here
    with _without_warnings():
        load(state, checkpoint_id=path)
    return _Content(shapes, {_name_in_folder(key): value for key, value in state.items()})


def _name_in_folder(key: str) -> str:
    return plain_name(key.removeprefix("state_dict."))  # a prefix of Lightning's checkpoints


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence torch, which warns if a single process saves or loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check(
    reference: str | Path,
    content: _Content,
    trained: Mapping[str, nn.Parameter],
    others: Mapping[str, nn.Parameter],
) -> None:
    """Check that a file has all trained parameters, and the values of the frozen ones."""
    shapes, values = content
    problems = {
        "holds none of": [name for name in trained if name not in shapes],
        "has other shapes for": [
            name for name in trained if name in shapes and shapes[name] != trained[name].shape
        ],
        "has other values for the frozen parameters": [
            name
            for name in others
            if name in shapes and not (name in values and _is_same(values[name], others[name]))
        ],
    }
    said = "; ".join(
        f"it {problem} {_listed(names)}" for problem, names in problems.items() if names
    )
    if said:
        raise MisconfigurationException(
            f"LandscapeMonitor(reference={str(reference)!r}) found a file that does not fit this "
            f"module: {said}; supported is a file from a run of the same module: pass one, or "
            "reference='final'"
        )


def _is_same(found: Tensor, parameter: Tensor) -> bool:
    return found.shape == parameter.shape and torch.equal(
        _part_of(found, parameter), local(parameter)
    )


def _part_of(found: Tensor, parameter: Tensor) -> Tensor:
    """Return this process's part as a new tensor, with the dtype and device of the parameter."""
    part = local(found) if is_sharded(found) else local_part(found, parameter)
    like = local(parameter)
    return part.to(like.device, like.dtype, copy=True)


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
