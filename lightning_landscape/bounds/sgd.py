"""The theorems about SGD with step sizes of its own, and about full-batch gradient descent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from typing_extensions import override

from lightning_landscape.bounds import functional as B
from lightning_landscape.bounds.assumptions import (
    Stochastic,
    check_declared,
    check_fixed_losses,
    check_moves_along_gradient,
    foresee_direction,
    foresee_schedule,
    one_batch_a_step,
    root_of_step,
    said_clipping,
)
from lightning_landscape.bounds.evidence import Evidence
from lightning_landscape.bounds.theorem import DoesNotApply, OtherOptimizer, Status, Theorem
from lightning_landscape.functional._fractional import LinearFractional


def constant_step(evidence: Evidence) -> float:
    """Return the step size.

    Raises:
        DoesNotApply: if it was not the same at every probe.
    """
    found = evidence.column("step_size")[evidence.moving]
    if not len(found):
        raise DoesNotApply("every probed gradient is zero: there is no step size")
    step_size = float(found.median())
    if step_size <= 0:
        raise DoesNotApply(
            f"the step size was {step_size:.4g}; a step along −gradient has a positive one"
        )
    step = evidence.departure(torch.full((len(evidence.table),), step_size, dtype=torch.float64))
    if step is not None:
        raise DoesNotApply(
            f"the step size was not constant: {float(found.min()):.4g} to "
            f"{float(found.max()):.4g}, with median {step_size:.4g}, from which step {step} "
            f"differs{said_clipping(evidence)}"
        )
    return step_size


def falling_step(evidence: Evidence) -> float:
    """Return the first step size γ of γ/√(k + 1).

    Raises:
        DoesNotApply: if the step sizes do not follow this rule.
    """
    growth = root_of_step(evidence)
    found = (evidence.column("step_size") * growth)[evidence.moving]
    if len(found) < 2:
        raise DoesNotApply("fewer than two probes have a step size: they cannot show how it falls")
    first = float(found.median())
    step = evidence.departure(first / growth)
    if first <= 0 or step is not None:
        where = "" if step is None else f": step {step} differs"
        raise DoesNotApply(
            f"the step size did not fall as 1/√(k + 1){where}{said_clipping(evidence)}"
        )
    return first


def foresee_sgd(evidence: Evidence) -> None:
    """Raise `DoesNotApply` if step sizes will follow from mini-batches, or differ by group."""
    if evidence.is_from("lightning_landscape.optim"):
        raise OtherOptimizer(f"step sizes of {evidence.optimizer} follow from the mini-batch")
    if evidence.run.get("gradient_clipping") is not None:
        raise DoesNotApply("gradients that are clipped make the step size depend on the mini-batch")
    if evidence.several_rates:
        raise DoesNotApply("parameter groups have different lr")


class SGDBound(Stochastic):
    """SGD with a constant step (Islamov et al. 2024, Theorem 1)."""

    name = "sgd"
    title = "SGD with a constant step"
    bound: ClassVar[type[B.Bound]] = B.SGD
    remedy = "a smaller step size"
    noise_remedy = "which a smaller or a decreasing step size shrinks"
    step_size = staticmethod(constant_step)

    @override
    def foresee(self, evidence: Evidence) -> None:
        super().foresee(evidence)
        foresee_sgd(evidence)
        foresee_schedule(evidence, constant=self.step_size is constant_step)

    @override
    def check_steps(self, evidence: Evidence) -> None:
        self.step_size(evidence)

    @override
    def constants(self, evidence: Evidence) -> dict[str, float]:
        return {"step_size": self.step_size(evidence), **super().constants(evidence)}


class SGDSharpBound(SGDBound):
    """SGD with a constant step, without the last estimate of Theorem 1."""

    name = "sgd_sharp"
    title = "SGD with a constant step, sharper"
    bound = B.SGDSharp


class SGDDecreasingBound(SGDBound):
    """SGD with γ/√(k+1) (Islamov et al. 2024, Theorem 4)."""

    name = "sgd_decreasing"
    title = "SGD with a step that falls as 1/√(k + 1)"
    bound = B.SGDDecreasing
    noise_remedy = "which more steps or a smaller first step size shrink"
    step_size = staticmethod(falling_step)


class SGDScheduleBound(Stochastic):
    """SGD with any schedule that does not depend on the mini-batches."""

    name = "sgd_schedule"
    title = "SGD with a schedule"
    bound = B.SGDSchedule
    remedy = "smaller step sizes"
    noise_remedy = "which smaller step sizes shrink"

    @override
    def foresee(self, evidence: Evidence) -> None:
        super().foresee(evidence)
        foresee_sgd(evidence)
        self._check_fixed_before(evidence)

    def _check_fixed_before(self, evidence: Evidence) -> None:
        for scheduler in evidence.run.get("lr_schedulers") or []:
            if scheduler["reduce_on_plateau"]:
                raise DoesNotApply(
                    f"{scheduler['class']} sets lr by what was measured during the run; the proof "
                    "needs a schedule that is fixed before the run"
                )

    @override
    def check_steps(self, evidence: Evidence) -> None:
        try:
            constant_step(evidence)  # a schedule, with any optimizer
        except DoesNotApply:
            torchs_own = evidence.optimizer == "SGD" and evidence.is_from("torch.optim")
            if not torchs_own or evidence.run.get("gradient_clipping") is not None:
                raise DoesNotApply(
                    "step sizes may depend on the mini-batch "
                    f"({evidence.optimizer}{said_clipping(evidence)}); the proof needs a schedule "
                    "that is fixed before the run"
                ) from None
        self._check_fixed_before(evidence)
        off = evidence.run.get("off_schedule")
        if off:
            raise DoesNotApply(
                f"the step was not one lr times the gradient at {off} probes: gradients were "
                "clipped or changed, so that step sizes depend on the mini-batch, or parameter "
                "groups have different lr"
            )
        if bool((evidence.column("step_size") < 0).any()):
            raise DoesNotApply("a step went along +gradient")

    @override
    def caveats(self, evidence: Evidence) -> list[str]:
        caveats, seen = super().caveats(evidence), evidence.learning_rates
        if seen is not None and seen[0] != seen[1] and not evidence.run.get("lr_schedulers"):
            caveats.append(
                "lr was set by hand, and an lr that follows from the losses is no schedule"
            )
        return caveats

    @override
    def shape(
        self, evidence: Evidence, constants: Mapping[str, float], steps: float
    ) -> LinearFractional:
        if math.isinf(steps):
            raise DoesNotApply("a schedule has no step sizes beyond its end")
        return B.SGDSchedule(
            step_sizes=evidence.column("step_size"),
            counts=evidence.spans_until(
                int(steps)
            ),  # a size stands for the steps to the next probe
            **constants,
        ).shape()


class GradientDescentBound(Theorem):
    """Gradient descent on the full batch with a constant step."""

    name = "gradient_descent"
    title = "gradient descent on the full batch"
    bound = B.GradientDescent
    remedy = "a smaller step size"
    noise_remedy = "which a smaller step size shrinks"

    @override
    def foresee(self, evidence: Evidence) -> None:
        foresee_direction(evidence)
        check_declared(evidence)
        if not one_batch_a_step(evidence):
            raise DoesNotApply("a step takes a part of an epoch's batches")
        foresee_sgd(evidence)
        foresee_schedule(evidence, constant=True)

    @override
    def check(self, evidence: Evidence) -> None:
        if not evidence.full_batch:
            raise DoesNotApply(
                "the probes do not show one function: reference_loss or initial_loss differs "
                "between probes, or is unknown"
            )
        check_fixed_losses(evidence)
        check_moves_along_gradient(evidence)
        constant_step(evidence)

    @override
    def constants(self, evidence: Evidence) -> dict[str, float]:
        return {
            "step_size": constant_step(evidence),
            "smoothness": evidence.full_batch_smoothness,
            # the parts e_k of the steps add at most 2R to the squared distance
            "sq_distance": evidence.sq_distance + 2 * evidence.residual_bound,
            "interpolation_error": evidence.interpolation_error,
        }

    @override
    def status(self, evidence: Evidence) -> tuple[Status, str]:
        if evidence.every_step:  # the proof is path by path
            return (
                "proved",
                "proved for this run, to rounding: every step was a probe, of the same function",
            )
        return super().status(evidence)
