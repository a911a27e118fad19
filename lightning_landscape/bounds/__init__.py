"""Convergence theorems along a run: their bounds, with the assumptions checked.

`functional` has the formulas. A `Theorem` takes a run (`Evidence`) and returns a `Certificate`:
the bound at the pair that minimizes it, or the reason why the theorem does not apply.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_landscape.bounds import functional
from lightning_landscape.bounds.adaptive import (
    AdaGradNormMaxBound,
    DecSPSBound,
    DecSPSSharpBound,
    NGNBound,
    NGNDecreasingBound,
    NGNSharpBound,
    SPSMaxBound,
    SPSMaxSharpBound,
)
from lightning_landscape.bounds.evidence import Evidence
from lightning_landscape.bounds.sgd import (
    GradientDescentBound,
    SGDBound,
    SGDDecreasingBound,
    SGDScheduleBound,
    SGDSharpBound,
)
from lightning_landscape.bounds.theorem import Certificate, DoesNotApply, Terms, Theorem
from lightning_landscape.bounds.trajectory import TrajectoryBound

THEOREMS: tuple[Theorem, ...] = (
    SGDBound(),
    SGDSharpBound(),
    SGDScheduleBound(),
    SGDDecreasingBound(),
    SPSMaxBound(),
    SPSMaxSharpBound(),
    DecSPSBound(),
    DecSPSSharpBound(),
    NGNBound(),
    NGNSharpBound(),
    NGNDecreasingBound(),
    AdaGradNormMaxBound(),
    GradientDescentBound(),
    TrajectoryBound(),
)
"""All theorems, in the order in which they are reported"""


def certify(evidence: Evidence) -> list[Certificate]:
    """Return the certificate of each of `THEOREMS` for a run."""
    return [theorem.certify(evidence) for theorem in THEOREMS]


def in_force(certificates: Sequence[Certificate]) -> Certificate | None:
    """Return the smallest bound on the best iterate.

    If there is none, return the certificate of the trajectory, or None if that does not apply.
    """
    applying = [certificate for certificate in certificates if certificate.value is not None]
    on_best_iterate = [found for found in applying if found.theorem != TrajectoryBound.name]
    return min(on_best_iterate or applying, key=lambda found: found.value or 0.0, default=None)


__all__ = [
    "THEOREMS",
    "AdaGradNormMaxBound",
    "Certificate",
    "DecSPSBound",
    "DecSPSSharpBound",
    "DoesNotApply",
    "Evidence",
    "GradientDescentBound",
    "NGNBound",
    "NGNDecreasingBound",
    "NGNSharpBound",
    "SGDBound",
    "SGDDecreasingBound",
    "SGDScheduleBound",
    "SGDSharpBound",
    "SPSMaxBound",
    "SPSMaxSharpBound",
    "Terms",
    "Theorem",
    "TrajectoryBound",
    "certify",
    "functional",
    "in_force",
]
