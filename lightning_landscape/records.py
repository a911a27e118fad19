"""Tables beside the table of probes: optional, each a list of frozen records, one CSV file each.

=====================  ===============================================================================================
``secant.csv``         `SecantRow`: how much the gradient of a probe's mini-batch changed over its step
``layers.csv``         `LayerRow`: what a part of the module contributes to a probe's inner product, norm and distance
``segments.csv``       `SegmentPoint`: a probe's mini-batch loss on the straight line from its iterate to the reference
``fixed_batches.csv``  `FixedBatchRow`: one of a fixed set of held-out batches at a probe
``per_sample.csv``     `PerSampleRow`: one sample of a probe's mini-batches
=====================  ===============================================================================================

``held_out.csv`` has the columns of the table of probes: at each probe one batch that was held out.

They are written above the waist and only read below it, as the table of probes is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from lightning_landscape.csv_tables import from_csv, to_csv


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How far a probe that was stored through a codec can be off, and is where it was stored as it was, too; in no file."""

    inner_product: float
    """Bound of |p̃ − p|"""
    distance: float
    """Bound of |D̃ − D|"""
    exact: tuple[float, float] | None = None
    """p and D² where they are known"""


@dataclass(frozen=True, slots=True)
class SecantRow:
    """One probe of ``secant.csv``."""

    step: int
    grad_sq_change: float
    """‖∇f_{i_k}(x_{k+1}) − ∇f_{i_k}(x_k)‖² of its mini-batch"""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One part of the module at one probe, of ``layers.csv``; over the parts of a probe each column sums to the probe's own."""

    step: int
    logged_step: int
    layer: str
    """Name of the submodule, or of a parameter that is in none"""
    inner_product: float
    """<g_k, x_k − x_p>, of this part's parameters"""
    grad_sq_norm: float
    sq_distance: float


@dataclass(frozen=True, slots=True)
class SegmentPoint:
    """One point of ``segments.csv``: f_{i_k}(x_k + t (x_p − x_k))."""

    step: int
    """k, the probe whose iterate the line starts at, and whose mini-batch is evaluated"""
    fraction: float
    """t in [0, 1]: 0 is x_k, 1 is x_p"""
    loss: float


@dataclass(frozen=True, slots=True)
class FixedBatchRow:
    """One of a fixed set of held-out batches at one probe, of ``fixed_batches.csv``; f_i is the loss of batch i."""

    step: int
    logged_step: int
    batch: int
    """i"""
    loss: float
    """f_i(x_k)"""
    reference_loss: float
    """f_i(x_p)"""
    inner_product: float
    """<∇f_i(x_k), x_k − x_p>"""
    grad_sq_norm: float


@dataclass(frozen=True, slots=True)
class PerSampleRow:
    """One sample of the mini-batches of one probe, of ``per_sample.csv``; f_j is the loss of sample j."""

    step: int
    logged_step: int
    sample: int
    """j, counted through processes, and in each through micro-batches"""
    loss: float
    """f_j(x_k)"""
    reference_loss: float
    """f_j(x_p)"""
    inner_product: float
    """<∇f_j(x_k), x_k − x_p>"""


Record = TypeVar("Record", bound=SecantRow | LayerRow | SegmentPoint | FixedBatchRow | PerSampleRow)
records_to_csv, records_from_csv = to_csv, from_csv
