"""Names of the files of a run."""

from __future__ import annotations

from typing import Any

from lightning_landscape.records import LayerRow, SecantRow, SegmentPoint

PROBES_CSV, PROBES_JSONL, SUMMARY = "probes.csv", "probes.jsonl", "summary.json"
STORE = "store"
"""Subfolder with what a probe needs until it is evaluated, the training batches among it"""
RECORDS_CSV: dict[type[Any], str] = {SecantRow: "secant.csv", LayerRow: "layers.csv", SegmentPoint: "segments.csv"}
