"""A theorem and its answer to a run: it checks assumptions and finds the best pair exactly."""

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
from lightning_landscape.bounds.functional import Bound
from lightning_landscape.bounds.functional._bound import least_rate
from lightning_landscape.functional._envelope import Best, as_float
from lightning_landscape.functional._fractional import LinearFractional
from lightning_landscape.probes import ProbeTable

Status = Literal["proved", "estimate", "does_not_apply"]


class DoesNotApply(Exception):
    """The run does not meet an assumption; the message names it and what was found."""


class OtherOptimizer(DoesNotApply):
    """The theorem is about another optimizer."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The three parts of a bound, in units of the loss; their sum is its value."""

    initial_distance: float
    """The part from ‖x_0 − x_p‖²; it falls with the number of steps"""
    step_size_noise: float
    """The part from the length of the steps; it falls with the step size"""
    neighbourhood: float
    """The part from β σ², which no step size removes"""

    @property
    def dominant(self) -> str:
        """Name of the largest part."""
        return max(self.__slots__, key=lambda name: float(getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Certificate:
    """The answer of a theorem to a run: a value, or the reason why there is none."""

    theorem: str
    """Key of the theorem, as in files and tags"""
    title: str
    status: Status
    reason: str
    """Why the theorem does not apply, or why the value is an estimate"""
    value: float | None = None
    """The bound, in units of the loss"""
    alpha: float | None = None
    beta: float | None = None
    """The pair that minimizes the bound; None if the infimum is at an open end or as δ → ∞"""
    constants: Mapping[str, float] = field(default_factory=dict)
    """The arguments of the bound, without the pair and the number of steps"""
    terms: Terms | None = None
    limit: float | None = None
    """The bound at the same pair as the number of steps tends to infinity; None if unknown"""
    measured: float | None = None
    """The measured quantity that the bound is about; None if the run does not show it"""
    place: tuple[Fraction, Fraction] | None = field(default=None, repr=False)
    """(δ, β) of the minimum or infimum, exactly; None as δ → ∞"""
    remedy: str = ""
    """The change that would allow the pair with the smallest β/δ, if the step size forbids it"""
    noise_remedy: str = ""
    """The change that shrinks the noise of the step size"""

    def on(self, bound: LinearFractional, evidence: Evidence) -> Fraction:
        """Return the value of another bound at the same place."""
        if self.place:
            return bound.at(*self.place)
        return bound.at_infinity(evidence.feasible.lines[-1].slope)

    @property
    def applies(self) -> bool:
        """Whether there is a value."""
        return self.value is not None


class Theorem(ABC):
    """A convergence theorem: a key, its assumptions, its constants and its bound.

    A subclass names its `bound`. Its ``check`` and ``constants`` raise `DoesNotApply` with the
    reason where an assumption is not met.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    bound: ClassVar[type[Bound]]
    """Class of the bound; its arguments are ``constants`` and the number of steps"""
    remedy: ClassVar[str] = ""
    """The change that relaxes the step-size condition, if there is one"""
    noise_remedy: ClassVar[str] = ""
    """The change that shrinks the noise of the step size, as a clause"""

    def certify(self, evidence: Evidence) -> Certificate:
        """Return the best certificate of a run, or the reason why there is none."""
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
        """Return why the theorem cannot apply, as known before training; None if it may apply.

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
        """Raise `DoesNotApply` if the run is made in a way that rules the theorem out."""

    @abstractmethod
    def check(self, evidence: Evidence) -> None:
        """Raise `DoesNotApply` if the run does not meet an assumption."""

    @abstractmethod
    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return the arguments of the bound, without the pair and the number of steps."""

    def shape(
        self, evidence: Evidence, constants: Mapping[str, float], steps: float
    ) -> LinearFractional:
        """Return the bound after some steps (``math.inf``: the limit) as a function of the pair."""
        return self.bound(**{"steps": steps, **constants}).shape()

    def status(self, evidence: Evidence) -> tuple[Status, str]:
        """Return whether the value is proved for this run or an estimate, and why."""
        return "estimate", f"estimate: {'; '.join(self.caveats(evidence))}"

    def caveats(self, evidence: Evidence) -> list[str]:
        """Return the reasons why the value is not proved for this run."""
        caveats = ["the constants are those of the probed mini-batches"]
        rounded = int(evidence.rounded_away.sum())
        if rounded:
            caveats.append(f"losses of {rounded} probes are at loss_infimum to float32 rounding")
        if str(evidence.run.get("precision", "")).startswith("16"):
            caveats.append("the number of steps includes those that a GradScaler skipped")
        sampling = evidence.run.get("sampling", "unknown")
        if not evidence.full_batch and sampling != "with_replacement":
            order = "the order of the data is not known"
            if sampling == "reshuffled":
                order = "the loader reshuffles the batches every epoch"
            caveats.append(f"{order}, but the proof draws them independently")
        if evidence.run["reference"]["kind"] == "final" and not evidence.full_batch:
            caveats.append(
                "the reference is this run's own end, but in the proof it is independent of the run"
            )
        return caveats

    def curve(self, evidence: Evidence, certificate: Certificate) -> Tensor:
        """Return the bound after the steps before each probe, float64, shape ``(n,)``.

        It uses the pair and the constants of the certificate. It is ``nan`` at the first probe,
        before any step.
        """
        later = [
            self._after(probe.step - evidence.first_step, evidence, certificate)
            for probe in evidence.table[1:]
        ]
        return torch.tensor([math.nan, *later], dtype=torch.float64)

    def measured(self, evidence: Evidence) -> float | None:
        """Return the measured quantity that the bound is about; None if the run hides it."""
        return None

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
        if best.pair is None:
            where = "at the excluded end of the step-size condition" if place else "as δ → ∞"
            reason = f"{reason}; no pair attains the value, it is approached only {where}"
        ideal = evidence.feasible.best().pair
        certificate = Certificate(
            self.name,
            self.title,
            status,
            reason,
            value=_finite(as_float(best.value)),
            alpha=None if rate is None or beta is None else as_float(rate + beta),
            beta=None if beta is None else as_float(beta),
            constants=constants,
            terms=Terms(*map(as_float, _parts(shape, place, evidence))),
            measured=self.measured(evidence),
            place=place,
            remedy=self.remedy if ideal and not shape.allows(ideal[0]) else "",
            noise_remedy=self.noise_remedy,
        )
        return replace(certificate, limit=self._limit(evidence, certificate))

    def _after(self, steps: int, evidence: Evidence, certificate: Certificate) -> float:
        """Return the bound after some steps; ``inf`` where there is none after so few steps."""
        try:
            shape = self.shape(evidence, certificate.constants, steps)
            return as_float(certificate.on(shape, evidence))
        except (DoesNotApply, ValueError, ZeroDivisionError):
            return math.inf

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
                f"there are too few probes: the estimate of the bound, {value:.4g}, is below the "
                f"estimate of the bounded quantity, {measured:.4g}"
            )

    def _check_found(self, best: Best, shape: LinearFractional, evidence: Evidence) -> None:
        if best.value is not None and math.isfinite(as_float(best.value)):
            return
        region = evidence.feasible
        if region.empty:
            raise DoesNotApply("no pair of the α-β-condition holds at every probe")
        if region.rate_max is not None and not shape.allows(region.rate_max):
            raise DoesNotApply(
                f"the theorem needs {self.bound.condition}, here {least_rate(shape, 4)}; "
                "but probes with reference_loss = loss_infimum limit α − β to "
                f"{as_float(region.rate_max):.4g}"
            )
        raise DoesNotApply(
            "the bound is beyond the range of float64, or sums over the probes contradict each "
            "other"
        )


def _parts(
    shape: LinearFractional, place: tuple[Fraction, Fraction] | None, evidence: Evidence
) -> tuple[Fraction, Fraction, Fraction]:
    """Return the three parts of a bound at a place; with None, as δ → ∞."""
    if place:
        return shape.parts(*place)
    steepest = evidence.feasible.lines[-1].slope
    return (
        shape.distance * 0,
        shape.noise_rate / shape.slope,
        shape.spread * steepest / shape.slope,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
