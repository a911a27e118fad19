"""The loss among the outputs of ``training_step``, and the batch among its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

Loss = Callable[[LightningModule, Any], Any]
"""``loss=``: a function of (module, batch)"""


def scalar_loss(output: Any) -> Tensor | None:
    """Return the loss that ``training_step`` returned; None where it skipped the step.

    Raises:
        TypeError: if there is a loss that is no tensor with one element.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if loss is None:
        return None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        is_tensor = isinstance(loss, Tensor)
        found = f"tensor of shape {tuple(loss.shape)}" if is_tensor else type(loss).__name__
        raise TypeError(
            f"found a {found} as loss; supported is one number, a tensor with one element: "
            "return its mean"
        )
    return loss.detach()


def batch_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the batch among the arguments of ``training_step``."""
    return args[0] if args else next(iter(kwargs.values()))
