"""Names of the files of a run."""

from __future__ import annotations

PROBES_CSV, PROBES_JSONL, SUMMARY = "probes.csv", "probes.jsonl", "summary.json"
STORE = "store"
"""Subfolder of the records that wait for their evaluation; the training batches are among them"""


def store_of(process: int) -> str:
    """Return the folder of a process's store, which is inside that of the first process.

    Example:
        >>> store_of(0), store_of(3)
        ('store', 'store/process-3')
    """
    return STORE if process == 0 else f"{STORE}/process-{process}"
