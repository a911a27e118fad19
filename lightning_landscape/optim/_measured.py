"""The two numbers of a step, loss and G² = ‖g‖² over all parameters, identical on all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import inf, isfinite
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SAME_GRADIENT = 1e-6
"""Relative tolerance; rounding alone changes the norm of one averaged gradient by much less"""


def as_number(loss: Any) -> float:
    """Return a loss, a number or a tensor of one element, as a Python float.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1 or loss.is_complex():
            raise ValueError(
                f"found a loss of shape {tuple(loss.shape)} and {loss.dtype}; "
                "supported is one real number: reduce it"
            )
        return float(loss.item())
    try:
        return float(loss)
    except (TypeError, ValueError):
        raise ValueError(
            f"found a loss of type {type(loss).__name__}; "
            "supported is a number or a 0-dim tensor: pass the loss alone"
        ) from None


def ratio(numerator: float, denominator: float) -> float:
    """Return the quotient of two non-negative numbers, ``inf`` if the denominator is 0."""
    return numerator / denominator if denominator > 0 else inf


def squared_norm(gradients: Iterable[Tensor]) -> float:
    """Return the sum of squares of all entries in float64; sparse gradients must be coalesced."""
    totals: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        values = gradient.values() if gradient.is_sparse else gradient
        values = torch.view_as_real(values) if values.is_complex() else values
        # MPS has no float64.
        wide = torch.float32 if values.device.type == "mps" else torch.float64
        totals[values.device].append(torch.linalg.vector_norm(values, dtype=wide).square())
    # Stack first: one transfer per device instead of one per parameter.
    return sum((float(torch.stack(squares).sum().item()) for squares in totals.values()), start=0.0)


def across_ranks(loss: float, sq_norm: float, device: torch.device) -> tuple[float, float]:
    """Return the mean loss over all ranks and their common G², the same two floats on every rank.

    A value that is non-finite on one rank is non-finite on all. A single process gets its own two
    values back.

    Raises:
        RuntimeError: on every rank, if the gradient norms of the ranks differ.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return loss, sq_norm
    # Without a CPU backend (nccl alone) the tensor has to be on the GPU.
    place = torch.device("cpu") if "cpu:" in dist.get_backend_config() else device
    mine = torch.tensor([loss, sq_norm], dtype=torch.float64, device=place)
    rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    # Gather instead of all-reduce: every rank adds in the same order and can compare the norms.
    dist.all_gather(rows, mine)
    losses, sq_norms = zip(*(row.tolist() for row in rows), strict=True)
    if all(map(isfinite, losses + sq_norms)) and max(sq_norms) > (1 + SAME_GRADIENT) * min(
        sq_norms
    ):
        raise RuntimeError(
            f"found squared gradient norms {list(sq_norms)} on the ranks; supported is the same "
            "averaged gradient on every rank, as after DDP's backward, because all ranks take one "
            "step. Sharded gradients (FSDP, tensor parallel) and gradients that are not averaged "
            "yet (no_sync) are not supported: train with strategy='ddp', or average the gradients "
            "first"
        )
    return sum(losses) / len(losses), sum(sq_norms) / len(sq_norms)
