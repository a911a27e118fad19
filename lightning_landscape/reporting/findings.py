"""What is known of a run when an extra writes its part of ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_landscape.probes import ProbeTable


@dataclass(frozen=True, slots=True)
class Findings:
    """The run, before the extras add to it."""

    table: ProbeTable
    """The probes that are evaluated"""
    run: Mapping[str, Any]
    """How the run was made and measured: the ``run`` part of the summary"""
    alpha_beta: Mapping[str, Any]
    """The entry of the α-β-condition"""
