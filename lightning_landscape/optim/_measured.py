"""The two numbers of a step, the loss and G² = ‖g‖² over all parameters, and how ranks come to the same two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import inf, isfinite
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SAME_GRADIENT = 1e-6
"""Relative; the norm of one averaged gradient, summed on different devices, differs by much less"""


def as_number(loss: Any) -> float:
    """Return a loss, a number or a tensor of one element, as a Python float.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1 or loss.is_complex():
            raise ValueError(
                f"found a loss of shape {tuple(loss.shape)} and {loss.dtype}; supported is one real number: reduce it"
            )
        return float(loss.item())
    try:
        return float(loss)
    except (TypeError, ValueError):
        raise ValueError(
            f"found a loss of type {type(loss).__name__}; supported is a number or a 0-dim tensor: give the loss alone"
        ) from None


def ratio(numerator: float, denominator: float) -> float:
    """Return the quotient of two numbers that are not negative, ``inf`` where the denominator is 0."""
    return numerator / denominator if denominator > 0 else inf


def squared_norm(gradients: Iterable[Tensor]) -> float:
    """Return the sum of squares of all entries, accumulated in float64; sparse gradients are coalesced ones."""
    totals: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        values = gradient.values() if gradient.is_sparse else gradient
        values = torch.view_as_real(values) if values.is_complex() else values
        wide = (
            torch.float32 if values.device.type == "mps" else torch.float64
        )  # which MPS does not have
        totals[values.device].append(torch.linalg.vector_norm(values, dtype=wide).square())
    # one transfer a device, not one a parameter
    return sum((float(torch.stack(squares).sum().item()) for squares in totals.values()), start=0.0)


def across_ranks(loss: float, sq_norm: float, device: torch.device) -> tuple[float, float]:
    """Return the mean loss over all ranks and the G² that they share, the same two floats on every rank.

    Either is non-finite everywhere if it is anywhere. In a single process both are returned as they are.

    Raises:
        RuntimeError: on every rank, if the gradients of the ranks differ in norm.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return loss, sq_norm
    # nccl alone moves nothing that lies on the CPU
    place = torch.device("cpu") if "cpu:" in dist.get_backend_config() else device
    mine = torch.tensor([loss, sq_norm], dtype=torch.float64, device=place)
    rows = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    # gathered, not summed: every rank adds the same numbers in the same order, and can compare the norms
    dist.all_gather(rows, mine)
    losses, sq_norms = zip(*(row.tolist() for row in rows), strict=True)
    if all(map(isfinite, losses + sq_norms)) and max(sq_norms) > (1 + SAME_GRADIENT) * min(
        sq_norms
    ):
        raise RuntimeError(
            f"found squared gradient norms {list(sq_norms)} on the ranks; supported is the same averaged gradient on every "
            "rank, as after DDP's backward, because all ranks take one step; gradients in shards (FSDP, tensor parallel) or "
            "not yet averaged (no_sync) are not: train with strategy='ddp', or average them first"
        )
    return sum(losses) / len(losses), sum(sq_norms) / len(sq_norms)
