"""Sharded parameters (DTensors, as FSDP2 makes them): the part that this process holds.

Without sharding these functions are cheap and do not import torch's sharding.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, so that this process may hold only a part of it."""
    return hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """Return the detached part of a tensor that this process holds; it shares memory with it."""
    detached: Any = tensor.detach()
    part: Tensor = detached.to_local() if is_sharded(detached) else detached
    return part


def local_gradient(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return the part of a gradient that belongs to this process's part of its parameter.

    Every process must call this, because it may communicate.
    """
    found: Any = gradient.detach()
    if is_sharded(found) and is_sharded(parameter):
        wanted: Any = parameter
        # Under tensor parallelism a gradient may consist of addends that are not summed yet.
        if found.placements != wanted.placements:
            found = found.redistribute(placements=wanted.placements)
    return local(found)


def local_part(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return the part of a whole tensor that belongs to this process's part of a parameter.

    This does not communicate.

    Args:
        whole: a tensor of the parameter's full shape.
        parameter: the parameter, sharded or not.
    """
    if not is_sharded(parameter):
        return whole.detach()
    from torch.distributed.tensor import distribute_tensor

    like: Any = parameter
    on_device = whole.to(like.to_local().device, like.dtype)
    part = distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
    return local(part)


def shares(parameters: Mapping[str, Tensor], processes: int) -> dict[str, float]:
    """Return the factor of this process's part in a sum over the elements of each parameter.

    The factor is 1 over the number of processes that hold the same elements.

    Args:
        parameters: by name, sharded or replicated.
        processes: number of all processes.
    """
    return {name: _shards(parameter) / processes for name, parameter in parameters.items()}


def _shards(parameter: Tensor) -> int:
    """Return the number of parts that a parameter is cut into."""
    if not is_sharded(parameter):
        return 1
    like: Any = parameter
    sizes = [
        like.device_mesh.size(dim)
        for dim, placement in enumerate(like.placements)
        if not placement.is_replicate()
    ]
    return math.prod(sizes)


def reshard(modules: Iterable[nn.Module]) -> None:
    """Let FSDP2 free the parameters that it gathered.

    Until then, a module lists the gathered parameters, and not those that the optimizer updates.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not torch.distributed.is_initialized():
        return
    for module in modules:
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
