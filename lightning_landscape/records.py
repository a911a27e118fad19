"""The other tables of a run: optional, one CSV file each, with one dataclass for the rows.

=====================  =============================================================================
``secant.csv``         `SecantRow`: the change of a mini-batch gradient over its step
``layers.csv``         `LayerRow`: the share of one part of the module in a probe
``segments.csv``       `SegmentPoint`: losses on the straight line from x_k to the reference
``fixed_batches.csv``  `FixedBatchRow`: a held-out mini-batch, the same ones at every probe
``per_sample.csv``     `PerSampleRow`: one sample of a probe's mini-batches
=====================  =============================================================================

``held_out.csv`` has the columns of the table of probes, with one held-out mini-batch at each probe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from lightning_landscape.csv_tables import from_csv, to_csv


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Error bounds of a probe in a lossy store. No file contains them."""

    inner_product: float
    """Bound of |p̃ − p|, where p̃ comes from the stored tensors."""
    distance: float
    """Bound of |D̃ − D|, where D̃ comes from the stored tensors."""
    exact: tuple[float, float] | None = None
    """The exact p and D², if the store also has the probe without loss."""


@dataclass(frozen=True, slots=True)
class SecantRow:
    """One probe in ``secant.csv``."""

    step: int
    grad_sq_change: float
    """‖∇f_{i_k}(x_{k+1}) − ∇f_{i_k}(x_k)‖², with the probe's mini-batch i_k."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One part of the module at one probe, in ``layers.csv``.

    The sum of a column over the parts of a probe is the value of the probe.
    """

    step: int
    logged_step: int
    layer: str
    """Name of the submodule, or of a parameter outside all submodules."""
    inner_product: float
    """<g_k, x_k − x_p> over the parameters of this part."""
    grad_sq_norm: float
    sq_distance: float


@dataclass(frozen=True, slots=True)
class SegmentPoint:
    """One point in ``segments.csv``: f_{i_k}(x_k + t (x_p − x_k))."""

    step: int
    """k. The line starts at the iterate of this probe; its mini-batch is evaluated."""
    fraction: float
    """t in [0, 1]: 0 is x_k, 1 is x_p."""
    loss: float


@dataclass(frozen=True, slots=True)
class FixedBatchRow:
    """One held-out mini-batch at one probe, in ``fixed_batches.csv``. f_i is its loss."""

    step: int
    logged_step: int
    batch: int
    """i."""
    loss: float
    """f_i(x_k)."""
    reference_loss: float
    """f_i(x_p)."""
    inner_product: float
    """<∇f_i(x_k), x_k − x_p>."""
    grad_sq_norm: float


@dataclass(frozen=True, slots=True)
class PerSampleRow:
    """One sample at one probe, in ``per_sample.csv``. f_j is its loss."""

    step: int
    logged_step: int
    sample: int
    """j. The count goes through the processes, and in each process through its micro-batches."""
    loss: float
    """f_j(x_k)."""
    reference_loss: float
    """f_j(x_p)."""
    inner_product: float
    """<∇f_j(x_k), x_k − x_p>."""


Record = TypeVar("Record", bound=SecantRow | LayerRow | SegmentPoint | FixedBatchRow | PerSampleRow)
records_to_csv, records_from_csv = to_csv, from_csv
