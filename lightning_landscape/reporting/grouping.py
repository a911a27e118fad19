"""Short names of runs, from their folders, and groups of runs, by a hyper-parameter."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from lightning_landscape.run import Run

Key: TypeAlias = float | int | str

OPTIMIZER = "optimizer"
"""The class of the optimizer. A hyper-parameter of the same name is ``hparams.optimizer``."""


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return short and distinct names of folders.

    Example:
        >>> names_of([Path("logs/mlp/version_0/landscape"), Path("logs/mlp/version_1/landscape")])
        ['version_0', 'version_1']
    """
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    if len(parts) < 2:
        return ["/".join(own[-2:]) for own in parts]
    start = len(Path(os.path.commonpath([os.path.abspath(folder) for folder in folders])).parts)
    same_end = len({own[-1] for own in parts}) == 1 and all(len(own) > start + 1 for own in parts)
    names = ["/".join(own[start : -1 if same_end else None]) or own[-1] for own in parts]
    return names if len(set(names)) == len({*parts}) else ["/".join(own) for own in parts]


def key_of(run: Run, name: str) -> Key | None:
    """Return the value of a hyper-parameter of a run; None if it is not known.

    Args:
        run: the run.
        name: name of the hyper-parameter, with dots for a nested one, or "optimizer".

    Returns:
        A number if the value, or its text, is a finite number. Otherwise its text.
    """
    described: dict[str, Any] = (run.summary or {}).get("run", {})
    if name == OPTIMIZER:
        kind = (described.get("optimizer") or {}).get("class")
        return None if kind is None else str(kind)
    value = _lookup(_hparams(run), name.removeprefix("hparams."))
    return None if value is None else _number_or_text(value)


def order(key: Key) -> tuple[int, float, str]:
    """Return a sort key: numbers come first, then text."""
    return (0, key, "") if isinstance(key, (int, float)) else (1, 0, key)


def unknown(group_by: str, runs: Sequence[Run]) -> str:
    """Return an error message: no run has this hyper-parameter; these are the known ones."""
    known = sorted({name for run in runs for name in _hparams(run)})
    return (
        f"found no hyper-parameter {group_by!r} in any run; supported are "
        f"{', '.join([*known, OPTIMIZER])}, and names with dots for nested hyper-parameters; "
        "call save_hyperparameters() in the module to record its hyper-parameters"
    )


def differences(runs: Iterable[Run]) -> set[str]:
    """Return the hyper-parameters in which some runs differ, except seeds."""
    described = [_hparams(run) for run in runs]
    names = {name for values in described for name in values if "seed" not in name.lower()}
    first = next(iter(described), {})
    return {name for name in names if any(v.get(name) != first.get(name) for v in described)}


def _hparams(run: Run) -> Mapping[str, Any]:
    return (run.summary or {}).get("run", {}).get("hparams") or {}


def _lookup(values: Any, name: str) -> Any:
    """Return the value under a name with dots. A key may also contain dots."""
    if not isinstance(values, Mapping):
        return None
    if name in values:
        return values[name]
    inner = (
        _lookup(values[key], name[len(key) + 1 :]) for key in values if name.startswith(f"{key}.")
    )
    return next((found for found in inner if found is not None), None)


def _number_or_text(value: Any) -> Key:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return str(value)
    try:
        number = float(value)  # YAML reads 1e-3 as text
    except (ValueError, OverflowError):
        return str(value)
    if not math.isfinite(number):
        return str(value)
    return value if isinstance(value, int) else number
