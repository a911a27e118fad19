"""Names of the files of a run."""

from __future__ import annotations

from typing import Any

from lightning_landscape.records import (
    FixedBatchRow,
    LayerRow,
    PerSampleRow,
    SecantRow,
    SegmentPoint,
)

PROBES_CSV, PROBES_JSONL, SUMMARY = "probes.csv", "probes.jsonl", "summary.json"
STORE = "store"
"""Subfolder with what a probe needs until it is evaluated, the training batches among it"""


def store_of(process: int) -> str:
    """Return the folder of a process's store: of others than the first it is within the first one's.

    Example:
        >>> store_of(0), store_of(3)
        ('store', 'store/process-3')
    """
    return STORE if process == 0 else f"{STORE}/process-{process}"


HELD_OUT_CSV = "held_out.csv"
RECORDS_CSV: dict[type[Any], str] = {
    SecantRow: "secant.csv",
    LayerRow: "layers.csv",
    SegmentPoint: "segments.csv",
    FixedBatchRow: "fixed_batches.csv",
    PerSampleRow: "per_sample.csv",
}
