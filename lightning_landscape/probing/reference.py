"""The reference point x_p: the last iterate of this run, or parameters from a file."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_landscape.probing.parameters import inner_product_and_distance, plain_name
from lightning_landscape.probing.store import file_digest, save_tensors

FINAL = "final"
FILE = "reference.safetensors"
_KINDS = "supported are a Lightning checkpoint (.ckpt), a file with a state_dict, and .safetensors"


@dataclass(frozen=True, slots=True)
class Reference:
    """x_p by parameter name, and where it is from."""

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


def sq_distance(here: Mapping[str, Tensor], reference: Reference) -> float:
    """Return ‖x − x_p‖² for parameters x by name; ``nan`` where the reference does not have them all."""
    if any(name not in reference.parameters for name in here):
        return math.nan  # parameters that joined the optimiser late
    return inner_product_and_distance(here, reference.parameters, {}, 1.0)[1]


def check_reference_file(reference: str) -> None:
    """Refuse a path at which there is no file.

    Raises:
        MisconfigurationException: if there is none.
    """
    if not isinstance(reference, (str, os.PathLike)) or (reference != FINAL and not Path(reference).is_file()):
        raise MisconfigurationException(
            f"LandscapeMonitor(reference={reference!r}) found no file there; {_KINDS}, for example "
            f"<log_dir>/landscape/{FILE} of another run, or 'final', the last iterate of this run: pass one of these"
        )


def load_reference(reference: str, trained: Mapping[str, nn.Parameter], others: Mapping[str, nn.Parameter]) -> Reference:
    """Read x_p from a file, for the parameters that the optimiser trains.

    Args:
        reference: path of the file.
        trained: the optimiser's parameters by name; the file must hold every one, in its shape.
        others: the module's other parameters; where the file holds one, it must have the value that it has here.

    Returns:
        x_p in the dtype and on the device of each parameter.

    Raises:
        MisconfigurationException: naming the parameters that are missing, have other shapes or (frozen) other values.
    """
    found = {plain_name(name): value for name, value in _read(Path(reference)).items()}
    missing = [name for name in trained if name not in found]
    shapes = [name for name in trained if name in found and found[name].shape != trained[name].shape]
    frozen = [name for name in others if name in found and not _same(found[name], others[name])]
    complaints = {
        "holds none of": missing,
        "has other shapes for": shapes,
        "has other values for frozen parameters, which stay as they are in this run,": frozen,
    }
    if missing or shapes or frozen:
        said = "; ".join(f"it {what} {_listed(names)}" for what, names in complaints.items() if names)
        raise MisconfigurationException(
            f"LandscapeMonitor(reference={reference!r}) is no reference for this run: {said}. Supported is a file from a run "
            "of the same module: pass one, or reference='final'"
        )
    values = {name: found[name].to(parameter.device, parameter.dtype, copy=True) for name, parameter in trained.items()}
    return Reference(values, "file", str(Path(reference).absolute()), file_digest(Path(reference)))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, safetensors.SafetensorError) as error:
        raise MisconfigurationException(
            f"LandscapeMonitor(reference={str(path)!r}) cannot be read: {type(error).__name__} {str(error)[:200]}; {_KINDS}, "
            "all readable by torch.load(weights_only=True): pass one of these"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise MisconfigurationException(f"LandscapeMonitor(reference={str(path)!r}) holds a {type(content).__name__}; {_KINDS}")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _same(found: Tensor, parameter: Tensor) -> bool:
    return found.shape == parameter.shape and torch.equal(found.to(parameter.device, parameter.dtype), parameter.detach())


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
