"""Sharded parameters (DTensors, FSDP2): the part that this process holds, and how many processes hold the same elements.

Everything here is cheap where nothing is sharded, and imports nothing of torch's sharding then.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, of which this process may hold a part only."""
    return hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, without a graph; it shares its memory."""
    detached: Any = tensor.detach()
    part: Tensor = detached.to_local() if is_sharded(detached) else detached
    return part


def local_gradient(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return the part of a gradient that belongs to this process's part of its parameter; every process has to call it."""
    found: Any = gradient.detach()
    if is_sharded(found) and is_sharded(parameter):
        wanted: Any = parameter
        if (
            found.placements != wanted.placements
        ):  # as sums that are still to be added, under tensor parallelism
            found = found.redistribute(placements=wanted.placements)
    return local(found)


def local_part(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return the part of a whole tensor that belongs to this process's part of a parameter, without any exchange."""
    if not is_sharded(parameter):
        return whole.detach()
    from torch.distributed.tensor import distribute_tensor

    like: Any = parameter
    on_device = whole.to(like.to_local().device, like.dtype)
    return local(
        distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
    )


def shares(parameters: Mapping[str, Tensor], processes: int) -> dict[str, float]:
    """Return by name what part of a sum over elements this process adds: 1 over the number of processes that hold the same.

    Args:
        parameters: by name, sharded or replicated.
        processes: number of all processes.
    """
    return {name: _shards(parameter) / processes for name, parameter in parameters.items()}


def _shards(parameter: Tensor) -> int:
    """Return into how many parts a parameter is cut."""
    if not is_sharded(parameter):
        return 1
    like: Any = parameter
    cut = [
        like.device_mesh.size(dim)
        for dim, placement in enumerate(like.placements)
        if not placement.is_replicate()
    ]
    return math.prod(cut)


def reshard(modules: Iterable[nn.Module]) -> None:
    """Let FSDP2 free what it gathered: only then are the parameters of a module those that an optimiser moves."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not torch.distributed.is_initialized():
        return
    for module in modules:
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
