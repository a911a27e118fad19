"""What your loss landscape is like along your own training run, and what theory is worth there."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_landscape import bounds, conditions, extras, functional, optim
    from lightning_landscape.extras import (
        Extra,
        HeldOut,
        Layers,
        PerSample,
        Secant,
        Segments,
    )
    from lightning_landscape.monitor import LandscapeMonitor
    from lightning_landscape.probes import Probe, ProbeTable
    from lightning_landscape.reading.load import load
    from lightning_landscape.run import Run
    from lightning_landscape.settings import Report, Store

    __version__: str

_EXTRAS = ("Extra", "HeldOut", "Layers", "PerSample", "Secant", "Segments")
_ROOM_OF = {
    **dict.fromkeys(_EXTRAS, "extras"),
    "Run": "run",
    "load": "reading.load",
    **dict.fromkeys(("Probe", "ProbeTable"), "probes"),
    **dict.fromkeys(("Report", "Store"), "settings"),
    "LandscapeMonitor": "monitor",
}
_ROOMS = ("bounds", "conditions", "extras", "functional", "optim")

__all__ = [
    "Extra",
    "HeldOut",
    "LandscapeMonitor",
    "Layers",
    "PerSample",
    "Probe",
    "ProbeTable",
    "Report",
    "Run",
    "Secant",
    "Segments",
    "Store",
    "__version__",
    "bounds",
    "conditions",
    "extras",
    "functional",
    "load",
    "optim",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: reading files must not wait for torch and Lightning."""
    if name == "__version__":
        from importlib.metadata import version

        return version("lightning-landscape")
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name in _ROOM_OF:
        return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
