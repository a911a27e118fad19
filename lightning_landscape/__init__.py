"""What your loss landscape is like along your own training run, and what convergence theory is worth there."""

from importlib.metadata import version

from lightning_landscape import bounds, conditions, functional, optim
from lightning_landscape.loading import Run, load
from lightning_landscape.monitor import LandscapeMonitor
from lightning_landscape.probes import Probe, ProbeTable

__version__ = version("lightning-landscape")

__all__ = [
    "LandscapeMonitor",
    "Probe",
    "ProbeTable",
    "Run",
    "__version__",
    "bounds",
    "conditions",
    "functional",
    "load",
    "optim",
]
