"""Losses of single samples: check a user's loss, and replace samples in a mini-batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_VECTOR = (
    "supported is a tensor of shape (B,), one loss a sample: "
    "take a loss function with reduction='none'"
)


def vector_loss(output: Any, batch: Any) -> Tensor:
    """Check the losses of single samples and return them.

    Args:
        output: the result of the user's loss function.
        batch: the argument of that function.

    Returns:
        The losses, shape ``(B,)``.

    Raises:
        TypeError: if ``output`` is not such a tensor, or if no tensor in the batch has B items.
    """
    if not isinstance(output, Tensor):
        raise TypeError(f"found a {type(output).__name__} as losses of single samples; {_VECTOR}")
    if output.ndim != 1 or not output.numel():
        found = f"a tensor of shape {tuple(output.shape)}"
        raise TypeError(f"found {found} as losses of single samples; {_VECTOR}")
    # The samples may be along the second axis, such as in (time, batch, ...).
    sizes = {size for tensor in tensors_in(batch) for size in tensor.shape[:2]}
    if sizes and len(output) not in sizes:
        items = sorted(sizes)
        raise TypeError(
            f"found {len(output)} losses for a batch of tensors with {items} items; {_VECTOR}"
        )
    return output


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in plain containers, except scalars."""
    if isinstance(value, Tensor):
        return [value] if value.ndim else []
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors_in(item)]


def with_first_half_replaced(batch: Any, samples: int) -> Any:
    """Return a copy of a batch in which the last sample replaces each sample of the first half.

    Only tensors in plain containers that have one item for each sample are changed.

    Args:
        batch: the batch; it stays as it is.
        samples: number of samples.
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
