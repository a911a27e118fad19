"""The report as a text in Markdown: the verdict and its tables."""

from __future__ import annotations

from typing import Any


def report(summary: dict[str, Any]) -> str:
    """Return the verdict and the tables of a run."""
    return str(summary["verdict"])
