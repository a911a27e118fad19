"""The theorems about SGD with step sizes of its own, and about gradient descent."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

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

Constants = Mapping[str, float]


def constant_step(evidence: Evidence) -> float:
    """Return the step size if it was the same at every probe.

    Raises:
        DoesNotApply: if it was not.
    """
    found = evidence.column("step_size")[evidence.moving]
    if not len(found):
        raise DoesNotApply("every probed gradient is zero: there is no step size")
    step_size = float(found.median())
    if step_size <= 0:
        raise DoesNotApply(
            f"the step size was {step_size:.4g}; steps along −gradient have a positive one"
        )
    step = evidence.departure(torch.full((len(evidence.table),), step_size, dtype=torch.float64))
    if step is not None:
        raise DoesNotApply(
            f"the step size was not constant: {float(found.min()):.4g} to {float(found.max()):.4g}, {step_size:.4g} in the "
            f"middle, another one at step {step}{said_clipping(evidence)}"
        )
    return step_size


def foresee_sgd(evidence: Evidence) -> None:
    """Raise `DoesNotApply` where step sizes will follow from the mini-batch, or parameter groups have their own."""
    if evidence.is_from("lightning_landscape.optim"):
        raise OtherOptimizer(f"step sizes of {evidence.optimizer} follow from the mini-batch")
    if evidence.run.get("gradient_clipping") is not None:
        raise DoesNotApply("gradients that are clipped make the step size depend on the mini-batch")
    if evidence.several_rates:
        raise DoesNotApply("parameter groups have several lr")


class SGDBound(Stochastic):
    """SGD with a constant step (Islamov et al. 2024, Theorem 1)."""

    name = "sgd"
    title = "SGD with a constant step"
    condition = "step_size ≤ (α − β)/(2L)"
    remedy = "a smaller step size"
    noise_remedy = "which a smaller or a decreasing step size shrinks"

    def foresee(self, evidence: Evidence) -> None:
        """Foresee a step size that is not constant."""
        super().foresee(evidence)
        foresee_sgd(evidence)
        foresee_schedule(evidence, constant=True)

    def check_steps(self, evidence: Evidence) -> None:
        """Check that the step size was constant."""
        constant_step(evidence)

    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return γ, L, D_0² and σ²."""
        return {"step_size": constant_step(evidence), **super().constants(evidence)}

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.sgd` as a function of the pair."""
        return B.sgd_shape(steps=steps, **constants)


class SGDSharpBound(SGDBound):
    """SGD with a constant step, without the last estimate of Theorem 1."""

    name = "sgd_sharp"
    title = "SGD with a constant step, sharper"
    condition = "step_size < (α − β)/L"
    remedy = "a smaller step size"

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.sgd_sharp` as a function of the pair."""
        return B.sgd_sharp_shape(steps=steps, **constants)


class SGDDecreasingBound(Stochastic):
    """SGD with γ_0/√(k+1) (Islamov et al. 2024, Theorem 4)."""

    name = "sgd_decreasing"
    title = "SGD with a step that falls as 1/√(k + 1)"
    condition = "the first step_size ≤ (α − β)/(2L)"
    remedy = "a smaller step size"
    noise_remedy = "which more steps or a smaller first step size shrink"

    def foresee(self, evidence: Evidence) -> None:
        """Foresee a step size that does not fall as 1/√(k + 1)."""
        super().foresee(evidence)
        foresee_sgd(evidence)
        foresee_schedule(evidence, constant=False)

    def check_steps(self, evidence: Evidence) -> None:
        """Check that the step size fell as 1/√(k + 1)."""
        self._first(evidence)

    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return γ_0, L, D_0² and σ²."""
        return {"step_size": self._first(evidence), **super().constants(evidence)}

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.sgd_decreasing` as a function of the pair."""
        return B.sgd_decreasing_shape(steps=steps, **constants)

    def _first(self, evidence: Evidence) -> float:
        growth = root_of_step(evidence)
        found = (evidence.column("step_size") * growth)[evidence.moving]
        if len(found) < 2:
            raise DoesNotApply(
                "fewer than two probes have a step size: a decreasing one cannot be told from them"
            )
        first = float(found.median())
        step = evidence.departure(first / growth)
        if first <= 0 or step is not None:
            raise DoesNotApply(
                f"the step size did not fall as 1/√(k + 1): another one at step {step}{said_clipping(evidence)}"
            )
        return first


class SGDScheduleBound(Stochastic):
    """SGD with any schedule that does not depend on the mini-batches."""

    name = "sgd_schedule"
    title = "SGD with a schedule"
    condition = "the largest step_size ≤ (α − β)/L"
    remedy = "smaller step sizes"
    noise_remedy = "which smaller step sizes shrink"

    def foresee(self, evidence: Evidence) -> None:
        """Foresee step sizes that follow from what is measured."""
        super().foresee(evidence)
        foresee_sgd(evidence)
        self._check_fixed_before(evidence)

    def _check_fixed_before(self, evidence: Evidence) -> None:
        watching = [
            s["class"] for s in evidence.run.get("lr_schedulers") or [] if s["reduce_on_plateau"]
        ]
        if watching:
            raise DoesNotApply(
                f"{watching[0]} sets lr by what was measured on the way; the proof needs a schedule that was fixed before"
            )

    def check_steps(self, evidence: Evidence) -> None:
        """Check that step sizes come from a schedule: of torch's SGD, unclipped, or constant as measured."""
        try:
            constant_step(evidence)
        except DoesNotApply:
            if (
                evidence.optimizer != "SGD"
                or not evidence.is_from("torch.optim")
                or evidence.run.get("gradient_clipping") is not None
            ):
                raise DoesNotApply(
                    f"step sizes may depend on the mini-batch ({evidence.optimizer}{said_clipping(evidence)}); the proof needs "
                    "a schedule that was fixed before"
                ) from None
        self._check_fixed_before(evidence)
        off = evidence.run.get("off_schedule")
        if off:
            raise DoesNotApply(
                f"the step was not one lr times the gradient at {off} probes: gradients were clipped or changed, so that step "
                "sizes depend on the mini-batch, or parameter groups have several lr"
            )
        if bool((evidence.column("step_size") < 0).any()):
            raise DoesNotApply("a step went along +gradient")

    def caveats(self, evidence: Evidence) -> list[str]:
        """Add that nobody but the user knows where a schedule without a scheduler comes from."""
        seen = evidence.learning_rates
        by_hand = seen is not None and seen[0] != seen[1] and not evidence.run.get("lr_schedulers")
        return (
            super().caveats(evidence)
            + ["lr was set by hand, if by the losses it is no schedule"] * by_hand
        )

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.sgd_schedule` as a function of the pair."""
        if math.isinf(steps):
            raise DoesNotApply("a schedule says nothing of steps beyond its end")
        spans = evidence.spans_until(int(steps))  # each probe's step size up to the next probe
        return B.sgd_schedule_shape(
            step_sizes=evidence.column("step_size"), counts=spans, **constants
        )


class GradientDescentBound(Theorem):
    """Gradient descent on the full batch with a constant step."""

    name = "gradient_descent"
    title = "gradient descent on the full batch"
    condition = "step_size < (α − β)/L"
    remedy = "a smaller step size"
    noise_remedy = "which a smaller step size shrinks"

    def foresee(self, evidence: Evidence) -> None:
        """Foresee mini-batches, or a step that is not along the gradient or not constant."""
        foresee_direction(evidence)
        check_declared(evidence)
        if not one_batch_a_step(evidence):
            raise DoesNotApply("a step takes a part of an epoch's batches")
        foresee_sgd(evidence)
        foresee_schedule(evidence, constant=True)

    def check(self, evidence: Evidence) -> None:
        """Check that every probe is of the full batch, and that the step size was constant."""
        if not evidence.full_batch:
            raise DoesNotApply(
                "the probes are not seen to be of one function: reference_loss or initial_loss differs, or is unknown"
            )
        check_fixed_losses(evidence)
        check_moves_along_gradient(evidence)
        constant_step(evidence)

    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return γ, L with respect to f(x_p), D_0² and σ²."""
        return {
            "step_size": constant_step(evidence),
            "smoothness": evidence.full_batch_smoothness,
            # what of the steps was not along the gradient adds to the squared distance at most twice R
            "sq_distance": evidence.sq_distance + 2 * evidence.residual_bound,
            "interpolation_error": evidence.interpolation_error,
        }

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.gradient_descent` as a function of the pair."""
        return B.gradient_descent_shape(steps=steps, **constants)

    def status(self, evidence: Evidence) -> tuple[Status, str]:
        """Return "proved" where every step was a probe: the proof is path by path."""
        if evidence.every_step:
            return (
                "proved",
                "proved for this run, to rounding: every step was a probe, of the same function",
            )
        return super().status(evidence)
