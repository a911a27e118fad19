"""What the user asked for, and whether it can be had."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

DOUBLING = "doubling"
"""Epochs 1, 2, 4, 8, …"""

STORE_DTYPES = ("native", "bfloat16", "int8")

_NAME = re.compile(r"(?=.*[\w-])[\w.-]+")


@dataclass(frozen=True, slots=True)
class Settings:
    """The constructor's arguments of `LandscapeMonitor`, documented there."""

    reference: str
    every_n_steps: int
    max_probes: int
    max_overhead: float | None
    loss_infimum: float
    loss: Callable[[LightningModule, Any], Any] | None
    parameters: str | None
    store_dtype: str
    store_gib: float
    dirpath: str | os.PathLike[str] | None
    prefix: str
    save_reference: bool
    keep_store: bool
    windows: int
    secant: bool
    exact_sums: bool
    per_layer: bool
    segments: int
    held_out: Callable[[Trainer], Any] | str | None
    fixed_batches: int
    per_sample: bool | str
    live_epochs: str | Sequence[int] | None
    layout: bool
    figures: bool
    progress_bar: bool

    def live_at(self, epochs: int) -> bool:
        """Return whether the probes so far are evaluated after so many epochs."""
        if self.live_epochs == DOUBLING:
            return epochs > 0 and epochs & (epochs - 1) == 0
        return self.live_epochs is not None and epochs in self.live_epochs

    def check(self) -> None:
        """Refuse what is outside its range.

        Raises:
            MisconfigurationException: naming the argument, what was found and what is supported.
        """
        for name, (is_fine, supported) in _CHECKS.items():
            value = getattr(self, name)
            if not is_fine(value):
                raise MisconfigurationException(
                    f"LandscapeMonitor({name}={value!r}): supported are {supported}; pass one of these"
                )
        if self.exact_sums and self.max_overhead is not None:
            raise MisconfigurationException(
                f"LandscapeMonitor(exact_sums=True, max_overhead={self.max_overhead!r}): sums over every step cost time at "
                "every step, which probes further apart do not save; supported is one of the two: leave exact_sums out, then "
                "the sums are estimated from the probes"
            )
        if self.fixed_batches and self.held_out is None:
            raise MisconfigurationException(
                f"LandscapeMonitor(fixed_batches={self.fixed_batches}): found no held_out=, from whose loader these batches "
                "are; supported is fixed_batches= together with held_out='val', or a function of the trainer: pass one"
            )
        if self.per_sample and self.loss is None:
            raise MisconfigurationException(
                f"LandscapeMonitor(per_sample={self.per_sample!r}): found no loss=, from which the losses of single samples "
                "come; supported is loss=, a function of (module, batch) that returns one loss a sample, a tensor of shape (B,)"
                ": pass one"
            )
        if self.exact_sums and self.loss is not None:
            raise MisconfigurationException(
                "LandscapeMonitor(exact_sums=True, loss=...): the gradient of loss= would be needed at every step; supported "
                "is one of the two: leave exact_sums out, then the sums are estimated from the probes"
            )


def _is_whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _are_epochs(value: Any) -> bool:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value is None or value == DOUBLING
    return all(map(_is_whole(1), value))


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "every_n_steps": (_is_whole(1), "whole numbers of 1 or more"),
    "max_probes": (_is_whole(2), "whole numbers of 2 or more"),
    "max_overhead": (
        lambda value: value is None or (_is_real(value) and 0 < value < 1),
        "shares of the time of training between 0 and 1, and None",
    ),
    "loss_infimum": (_is_real, "finite numbers"),
    "loss": (lambda value: value is None or callable(value), "functions of (module, batch)"),
    "parameters": (
        lambda value: value is None or (isinstance(value, str) and value != ""),
        "the dotted name of a submodule, and None",
    ),
    "store_dtype": (
        lambda value: value in STORE_DTYPES,
        "'native', the parameters' own dtype, and the codecs 'bfloat16' and 'int8'",
    ),
    "store_gib": (lambda value: _is_real(value) and value > 0, "sizes above 0, in GiB"),
    "dirpath": (lambda value: value is None or isinstance(value, (str, os.PathLike)), "paths"),
    "prefix": (
        lambda value: isinstance(value, str) and _NAME.fullmatch(value) is not None,
        "names of letters, digits, '.', '-' and '_'",
    ),
    "windows": (_is_whole(1), "whole numbers of 1 or more"),
    "segments": (_is_whole(0), "whole numbers of 0 or more"),
    "held_out": (
        lambda value: value is None or value == "val" or callable(value),
        "'val', functions of the trainer that return an iterable of batches, and None",
    ),
    "fixed_batches": (_is_whole(0), "whole numbers of 0 or more"),
    "per_sample": (
        lambda value: isinstance(value, bool) or value == "mixing",
        "True and False, and 'mixing' where the loss of one sample depends on the others",
    ),
    "live_epochs": (_are_epochs, f"'{DOUBLING}', lists of whole numbers of 1 or more, and None"),
    **dict.fromkeys(
        ("secant", "exact_sums", "per_layer", "layout", "figures", "progress_bar"),
        (lambda value: isinstance(value, bool), "True and False"),
    ),
}
