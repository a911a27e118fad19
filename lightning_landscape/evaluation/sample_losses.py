"""Losses of single samples: what a user's function may return, and a mini-batch in which some samples are replaced."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_VECTOR = "supported is a tensor of shape (B,), one loss a sample: take a loss function with reduction='none'"


def vector_loss(output: Any, batch: Any) -> Tensor:
    """Return what a loss of single samples returned, one number a sample.

    Raises:
        TypeError: if it is no vector, or has another length than the tensors of the batch have.
    """
    if not isinstance(output, Tensor) or output.ndim != 1 or not output.numel():
        found = (
            f"a tensor of shape {tuple(output.shape)}"
            if isinstance(output, Tensor)
            else f"a {type(output).__name__}"
        )
        raise TypeError(f"found {found} as losses of single samples; {_VECTOR}")
    sizes = {size for tensor in tensors_in(batch) for size in tensor.shape[:2]}
    if sizes and len(output) not in sizes:
        raise TypeError(
            f"found {len(output)} losses for a batch of tensors with {sorted(sizes)} items; {_VECTOR}"
        )
    return output


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors with at least one dimension in a batch of plain containers."""
    if isinstance(value, Tensor):
        return [value] if value.ndim else []
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return (
        [tensor for item in value for tensor in tensors_in(item)]
        if isinstance(value, (list, tuple))
        else []
    )


def with_first_half_replaced(batch: Any, samples: int) -> Any:
    """Return a batch in which the last sample stands in the place of each of the first half.

    Tensors in plain containers with one item for each sample are changed; what they are in, or is no such tensor, is not seen.
    """
    if isinstance(batch, Tensor):
        axis = next((axis for axis, size in enumerate(batch.shape[:2]) if size == samples), None)
        if axis is None:
            return batch
        batch = batch.clone()
        batch.narrow(axis, 0, samples // 2).copy_(batch.narrow(axis, samples - 1, 1).clone())
        return batch
    if isinstance(batch, dict):
        changed = copy.copy(batch)
        for key, item in batch.items():
            changed[key] = with_first_half_replaced(item, samples)
        return changed
    if isinstance(batch, (list, tuple)):
        items = [with_first_half_replaced(item, samples) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch
