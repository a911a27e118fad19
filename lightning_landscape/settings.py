"""The arguments of `LandscapeMonitor`, which check themselves."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule

from lightning_landscape.csv_tables import to_csv
from lightning_landscape.evaluation.extra import SAMPLES, Extra
from lightning_landscape.evaluation.reference import FINAL
from lightning_landscape.extras import KNOWN
from lightning_landscape.store.codecs import CODECS
from lightning_landscape.training.failures import said

DOUBLING: Literal["doubling"] = "doubling"
"""Epochs 1, 2, 4, 8, …"""

_NAME = re.compile(r"(?=.*[\w-])[\w.-]+")
_Check = tuple[Callable[[Any], bool], str]


@dataclass(frozen=True)
class Store:
    """How records wait on disk for their evaluation.

    Args:
        dtype: How parameters and gradients are stored. "native" is exact. "bfloat16" takes half of
            float32, "int8" (groups of 128 numbers with one scale, rounded at random without bias) a
            little more than a quarter. Losses, gradient norms and steps stay exact; bounds of the
            errors of inner products and distances are reported.
        gib: Largest size on disk in GiB; half of the free disk is another limit.
        keep: Keep the store after a good end, to extend the run from its checkpoint. It holds
            training batches.
        save_reference: Write the last iterate as reference.safetensors (sharded: a folder,
            reference), for a second run to take as its reference.

    Raises:
        MisconfigurationException: if a value is outside its range.
    """

    dtype: Literal["native", "bfloat16", "int8"] = "native"
    gib: float = 16.0
    keep: bool = False
    save_reference: bool = True

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _check("store=Store", self, _STORE)


@dataclass(frozen=True)
class Report:
    """What is shown of a run.

    Args:
        windows: Number of equal slices of training for which constants are reported as well.
        layout: Write charts for TensorBoard's tab "Custom scalars". A layout that the module, or
            another monitor, writes later replaces them.
        images: Pictures at the end, as files and for loggers that take them, where matplotlib is
            installed: "overview" for one, "all" for every one, None for none. The command
            ``lightning-landscape plot`` draws all of them from the files of a run.
        progress_bar: Show two values in the progress bar.

    Raises:
        MisconfigurationException: if a value is outside its range.
    """

    windows: int = 4
    layout: bool = True
    images: Literal["overview", "all"] | None = "overview"
    progress_bar: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _check("report=Report", self, _REPORT)


@dataclass(frozen=True)
class Settings:
    """All arguments of `LandscapeMonitor`, documented there."""

    reference: str | Path = FINAL
    every_n_steps: int = 10
    max_probes: int = 128
    every_step: bool = False
    loss: Callable[[LightningModule, Any], Any] | None = None
    loss_infimum: float = 0.0
    parameters: str | None = None
    live_epochs: Literal["doubling"] | Sequence[int] | None = DOUBLING
    live_losses: bool = False
    max_overhead: float | None = None
    extras: Sequence[Extra] = ()
    store: Store = field(default_factory=Store)
    report: Report = field(default_factory=Report)
    dirpath: str | os.PathLike[str] | None = None
    prefix: str = "landscape"

    def __post_init__(self) -> None:
        """Refuse values outside their range, and those that exclude each other."""
        _check("LandscapeMonitor", self, _ARGUMENTS)
        _check_every_step(self)
        _check_extras(self.extras, self.loss)

    def live_at(self, epochs: int) -> bool:
        """Return whether probes are evaluated at the present iterate after so many epochs."""
        if self.live_epochs == DOUBLING:
            return epochs > 0 and epochs & (epochs - 1) == 0
        return self.live_epochs is not None and epochs in self.live_epochs


def _check(what: str, settings: Any, checks: Mapping[str, _Check]) -> None:
    """Refuse values outside their range.

    Raises:
        MisconfigurationException: naming the argument, what was found and what is supported.
    """
    for name, (is_fine, supported) in checks.items():
        value = getattr(settings, name)
        if not is_fine(value):
            raise MisconfigurationException(
                f"{what}({name}={value!r}): supported are {supported}; pass one of these"
            )


def _check_every_step(settings: Settings) -> None:
    if not settings.every_step:
        return
    if settings.max_overhead is not None:
        raise MisconfigurationException(
            f"LandscapeMonitor(every_step=True, max_overhead={settings.max_overhead!r}): sums over "
            "every step cost time at every step, and rarer probes do not save it. Supported is one "
            "of the two: leave every_step out, then the sums are estimated from the probes"
        )
    if settings.loss is not None:
        raise MisconfigurationException(
            "LandscapeMonitor(every_step=True, loss=...): every step would need a gradient of "
            "loss=. Supported is one of the two: leave every_step out, then the sums are estimated "
            "from the probes"
        )


def _check_extras(extras: Sequence[Extra], loss: Any) -> None:
    tables = [table for extra in extras for table in extra.tables]
    twice = sorted({table for table in tables if tables.count(table) > 1} | {"probes"} & {*tables})
    if twice:
        raise MisconfigurationException(
            f"LandscapeMonitor(extras=...) found the table {twice[0]!r} more than once; supported "
            "is one extra of a kind, with tables of its own names: leave the other one out"
        )
    for extra in extras:
        _check_tables(extra)
        if SAMPLES in extra.needs and loss is None:
            raise MisconfigurationException(
                f"LandscapeMonitor(extras=...) found {type(extra).__name__} and no loss=; "
                "supported is loss=, a function of (module, batch) that returns one loss a sample, "
                "a tensor of shape (B,): pass one"
            )


def _check_tables(extra: Extra) -> None:
    """Refuse rows that a CSV cannot hold, and rows that `load` would read as others."""
    who = f"LandscapeMonitor(extras=...) found {type(extra).__name__}"
    ours = {name: kind for known in KNOWN for name, kind in known.tables.items()}
    for name, kind in extra.tables.items():
        if ours.get(name, kind) is not kind:
            raise MisconfigurationException(
                f"{who} with a table {name!r} of {kind.__name__}; rows of that table are "
                f"{ours[name].__name__}. Supported are names of its own: choose another one"
            )
        try:
            to_csv(kind, [])
        except (TypeError, NameError) as error:
            raise MisconfigurationException(
                f"{who} with a table {name!r} of {kind.__name__}, {said(error)}. Supported are "
                "dataclasses with fields of bool, int, float and str, each also with None"
            ) from error


def _is_whole(least: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least


def _is_real(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _are_epochs(value: Any) -> bool:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value is None or value == DOUBLING
    return all(map(_is_whole(1), value))


def _is_a(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and str(value) != ""


def _are_extras(value: Any) -> bool:
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    return is_sequence and all(isinstance(extra, Extra) for extra in value)


_SWITCH: _Check = (_is_a(bool), "True and False")
_STORE: dict[str, _Check] = {
    "dtype": (lambda value: value in CODECS, f"{', '.join(map(repr, CODECS))}"),
    "gib": (lambda value: _is_real(value) and value > 0, "sizes above 0, in GiB"),
    "keep": _SWITCH,
    "save_reference": _SWITCH,
}
_REPORT: dict[str, _Check] = {
    "windows": (_is_whole(1), "whole numbers of 1 or more"),
    "layout": _SWITCH,
    "images": (lambda value: value in ("overview", "all", None), "'overview', 'all' and None"),
    "progress_bar": _SWITCH,
}
_ARGUMENTS: dict[str, _Check] = {
    "reference": (_is_path, "'final' and paths"),
    "every_n_steps": (_is_whole(1), "whole numbers of 1 or more"),
    "max_probes": (_is_whole(2), "whole numbers of 2 or more"),
    "every_step": _SWITCH,
    "loss": (lambda value: value is None or callable(value), "functions of (module, batch)"),
    "loss_infimum": (_is_real, "finite numbers"),
    "parameters": (
        lambda value: value is None or (isinstance(value, str) and value != ""),
        "the dotted name of a submodule, and None",
    ),
    "live_epochs": (_are_epochs, f"'{DOUBLING}', lists of whole numbers of 1 or more, and None"),
    "live_losses": _SWITCH,
    "max_overhead": (
        lambda value: value is None or (_is_real(value) and 0 < value < 1),
        "shares of the time of training between 0 and 1, and None",
    ),
    "extras": (_are_extras, "lists of extras, as [Segments(), Layers()]"),
    "store": (_is_a(Store), "Store(...)"),
    "report": (_is_a(Report), "Report(...)"),
    "dirpath": (lambda value: value is None or _is_path(value), "paths"),
    "prefix": (
        lambda value: isinstance(value, str) and _NAME.fullmatch(value) is not None,
        "names of letters, digits, '.', '-' and '_'",
    ),
}
