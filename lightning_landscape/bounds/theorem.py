"""What every theorem does with a run: check its assumptions, choose the best pair exactly, answer a value or the reason."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_landscape.bounds.evidence import Evidence
from lightning_landscape.functional._envelope import Best, as_float
from lightning_landscape.functional._fractional import LinearFractional
from lightning_landscape.probes import ProbeTable

Status = Literal["proved", "estimate", "does_not_apply"]


class DoesNotApply(Exception):
    """An assumption of a theorem is not met; the message says which, and what was found."""


class OtherOptimizer(DoesNotApply):
    """The theorem is about another optimiser."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The three parts of a bound, in units of the loss; their sum is its value."""

    initial_distance: float
    """What is left of ‖x_0 − x_p‖²; it falls with the number of steps"""
    step_size_noise: float
    """What the length of the steps adds; it falls with the step size"""
    neighbourhood: float
    """What β σ² adds, which no step size removes"""

    @property
    def dominant(self) -> str:
        """Name of the largest part."""
        return max(self.__slots__, key=lambda name: float(getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a theorem says of a run: a value, or the reason why there is none."""

    theorem: str
    """Key of the theorem, as in files and tags"""
    title: str
    status: Status
    reason: str
    """Why it does not apply, or what makes the value an estimate"""
    value: float | None = None
    """The bound, in units of the loss"""
    alpha: float | None = None
    beta: float | None = None
    """The pair that minimises the bound; None where none does: the infimum is approached at an open end, or as δ → ∞"""
    constants: Mapping[str, float] = field(default_factory=dict)
    """What entered the bound beside the pair"""
    terms: Terms | None = None
    limit: float | None = None
    """The bound of the same pair as the number of steps goes to infinity; None where there is none"""
    measured: float | None = None
    """What the bound is a bound of, where the run shows it"""
    place: tuple[Fraction, Fraction] | None = field(default=None, repr=False)
    """(δ, β), exactly, where the value is attained or approached; None: as δ → ∞"""
    remedy: str = ""
    """What would allow the pair that minimises β/δ, where the step-size condition rules it out"""
    noise_remedy: str = ""
    """What shrinks the noise of the step size"""

    def on(self, bound: LinearFractional, evidence: Evidence) -> Fraction:
        """Return another bound's value at the same place."""
        return (
            bound.at(*self.place)
            if self.place
            else bound.at_infinity(evidence.feasible.lines[-1].slope)
        )

    @property
    def applies(self) -> bool:
        """Whether there is a value."""
        return self.value is not None


class Theorem(ABC):
    """A convergence theorem: a key, its assumptions, its constants, and its bound as a function of the pair.

    A subclass raises `DoesNotApply` from ``check`` or ``constants`` with the reason, and gives ``shape``.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    condition: ClassVar[str] = ""
    """The step-size condition, for the reason where no pair meets it"""
    remedy: ClassVar[str] = ""
    """What relaxes that condition, if anything does"""
    noise_remedy: ClassVar[str] = ""
    """What shrinks the noise of the step size, as a clause"""

    def certify(self, evidence: Evidence) -> Certificate:
        """Return the best certificate that the theorem gives of a run, or the reason why it gives none."""
        try:
            if not len(evidence.table) or evidence.steps < 1:
                raise DoesNotApply("no probe was evaluated at the reference")
            self.check(evidence)
            constants = self.constants(evidence)
            shape = self.shape(evidence, constants, evidence.steps)
            best = evidence.feasible.minimise(shape)
            self._check_found(best, shape, evidence)
            certificate = self._certificate(evidence, constants, shape, best)
            self._check_measured(certificate)
        except (DoesNotApply, ValueError, ArithmeticError) as reason:
            return Certificate(self.name, self.title, "does_not_apply", str(reason))
        return certificate

    def foreseen(self, run: Mapping[str, Any]) -> DoesNotApply | None:
        """Return why the theorem is not going to apply, as far as that is known before training; None where it can.

        Args:
            run: how the run is made, as in the ``run`` part of its summary.
        """
        try:
            self.foresee(Evidence(ProbeTable(), run))
        except DoesNotApply as reason:
            return reason
        return None

    @abstractmethod
    def foresee(self, evidence: Evidence) -> None:
        """Raise `DoesNotApply` where the way in which the run is made rules the theorem out, whatever will be measured."""

    @abstractmethod
    def check(self, evidence: Evidence) -> None:
        """Raise `DoesNotApply` where an assumption is not met."""

    @abstractmethod
    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return the numbers that enter the bound beside the pair and the number of steps."""

    @abstractmethod
    def shape(
        self, evidence: Evidence, constants: Mapping[str, float], steps: float
    ) -> LinearFractional:
        """Return the bound after so many steps (``math.inf``: in the limit) as a function of the pair."""

    def status(self, evidence: Evidence) -> tuple[Status, str]:
        """Return whether the value is proved for this run or an estimate, and why."""
        return "estimate", f"estimate: {'; '.join(self.caveats(evidence))}"

    def caveats(self, evidence: Evidence) -> list[str]:
        """Return what keeps the value from being proved."""
        caveats = ["the constants are those of the probed mini-batches"]
        rounded = int(evidence.rounded_away.sum())
        if rounded:
            caveats.append(f"losses of {rounded} probes are at loss_infimum to float32 rounding")
        if str(evidence.run.get("precision", "")).startswith("16"):
            caveats.append("steps that a GradScaler left out are counted as steps")
        sampling = evidence.run.get("sampling", "unknown")
        if not evidence.full_batch and sampling != "with_replacement":
            said = {"reshuffled": "batches are reshuffled every epoch"}.get(
                sampling, "the order of the data is not known"
            )
            caveats.append(f"{said}, the proof draws them independently")
        if evidence.run["reference"]["kind"] == "final" and not evidence.full_batch:
            caveats.append(
                "the reference is this run's own end, in the proof it does not depend on the run"
            )
        return caveats

    def _certificate(
        self,
        evidence: Evidence,
        constants: Mapping[str, float],
        shape: LinearFractional,
        best: Best,
    ) -> Certificate:
        assert best.value is not None
        status, reason = self.status(evidence)
        rate, beta = best.pair or (None, None)
        place = best.pair or best.end
        if place:
            parts = shape.parts(*place)
        else:
            steepest = evidence.feasible.lines[-1].slope
            parts = (
                shape.distance * 0,
                shape.noise_rate / shape.slope,
                shape.spread * steepest / shape.slope,
            )
        if best.pair is None:
            where = "at the excluded end of the step-size condition" if place else "as δ → ∞"
            reason = f"{reason}; approached only {where}, no pair attains it"
        certificate = Certificate(
            self.name,
            self.title,
            status,
            reason,
            value=_finite(as_float(best.value)),
            alpha=None if rate is None or beta is None else as_float(rate + beta),
            beta=None if beta is None else as_float(beta),
            constants=constants,
            terms=Terms(*map(as_float, parts)),
            measured=self.measured(evidence),
            place=place,
            noise_remedy=self.noise_remedy,
            remedy=self.remedy
            if (ideal := evidence.feasible.best().pair) and not shape.allows(ideal[0])
            else "",
        )
        return replace(certificate, limit=self._limit(evidence, certificate))

    def curve(self, evidence: Evidence, certificate: Certificate) -> Tensor:
        """Return the bound after as many steps as each probe had before it, float64, shape ``(n,)``.

        With the certificate's pair and constants; ``nan`` at the first probe, before any step.
        """
        later = [
            self._after(probe.step - evidence.first_step, evidence, certificate)
            for probe in evidence.table[1:]
        ]
        return torch.tensor([math.nan, *later], dtype=torch.float64)

    def _after(self, steps: int, evidence: Evidence, certificate: Certificate) -> float:
        """Return the bound after so many steps; ``inf`` where so few are no certificate."""
        try:
            shape = self.shape(evidence, certificate.constants, steps)
            return as_float(certificate.on(shape, evidence))
        except (DoesNotApply, ValueError, ZeroDivisionError):
            return math.inf

    def measured(self, evidence: Evidence) -> float | None:
        """Return what the bound is a bound of, where the run shows it."""
        return None

    def _limit(self, evidence: Evidence, certificate: Certificate) -> float | None:
        try:
            shape = self.shape(evidence, certificate.constants, math.inf)
        except (DoesNotApply, ValueError, OverflowError):
            return None
        return _finite(as_float(certificate.on(shape, evidence)))

    def _check_measured(self, certificate: Certificate) -> None:
        value, measured = certificate.value, certificate.measured
        if value is not None and measured is not None and measured > value + 1e-6 * abs(value):
            raise DoesNotApply(
                f"its estimate, {value:.4g}, is below what it bounds, {measured:.4g}, as estimated from the same probes: they "
                "are too few"
            )

    def _check_found(self, best: Best, shape: LinearFractional, evidence: Evidence) -> None:
        if best.value is not None and math.isfinite(as_float(best.value)):
            return
        region = evidence.feasible
        if region.empty:
            raise DoesNotApply("no pair of the α-β-condition holds at every probe")
        if region.rate_max is not None and not shape.allows(region.rate_max):
            raise DoesNotApply(
                f"it needs {self.condition}, that is α − β {'≥' if shape.closed else '>'} {as_float(shape.least_rate):.4g}, "
                f"and probes with reference_loss = loss_infimum bound α − β by {as_float(region.rate_max):.4g}"
            )
        raise DoesNotApply(
            "its value is beyond the range of float64, or the probes' sums contradict each other"
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
