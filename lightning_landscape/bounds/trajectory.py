"""The certificate of one trajectory: the α-β-condition with the measured step sizes of this run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from typing_extensions import override

from lightning_landscape.bounds import functional as B
from lightning_landscape.bounds.assumptions import (
    check_measured_throughout,
    foresee_direction,
    percent,
)
from lightning_landscape.bounds.evidence import RESIDUAL_SHARE, Evidence, interpolation_weights
from lightning_landscape.bounds.theorem import DoesNotApply, Status, Theorem
from lightning_landscape.functional._envelope import as_float
from lightning_landscape.functional._fractional import LinearFractional


class TrajectoryBound(Theorem):
    """``x_{k+1} = x_k − η_k g_k − e_k``, summed over the run.

    It needs no smoothness and no expectation, and holds for any optimizer with a small residual.
    """

    name = "trajectory"
    title = "the certificate of this trajectory"
    bound = B.Trajectory

    @override
    def foresee(self, evidence: Evidence) -> None:
        foresee_direction(evidence)
        # a small weight decay may have a small residual: only momentum rules the bound out
        momentum = [option for option in evidence.declared if option.startswith("momentum")]
        if momentum:
            raise DoesNotApply(
                f"steps of {evidence.optimizer} with {momentum[0]} are not along the mini-batch "
                "gradient"
            )

    @override
    def check(self, evidence: Evidence) -> None:
        check_measured_throughout(evidence)
        sums = exact_sums(evidence)
        if sums is None:
            negative = int((evidence.column("step_size") < 0).sum())
            steps = f"{len(evidence.table)} probed steps"
        else:
            negative, steps = int(sums["negative_steps"]), f"{evidence.steps} steps"
        if negative:
            raise DoesNotApply(
                f"{negative} of {steps} went along +gradient ({evidence.optimizer}): the residual "
                f"R, off the gradient, is {percent(evidence.residual_share)} of the movement along "
                "it"
            )
        share = self._residual_share(evidence)
        if share > RESIDUAL_SHARE:
            raise DoesNotApply(
                f"steps of {evidence.optimizer} were not along the mini-batch gradient: the "
                f"residual R, off the gradient, is {percent(share)} of the rest of the "
                f"certificate, above the limit of {percent(RESIDUAL_SHARE)}"
            )

    def _residual_share(self, evidence: Evidence) -> float:
        """Return R relative to the rest of the certificate at its pair.

        Without a pair (δ → ∞), or if the rest is negative, return R relative to the movement. The
        rest is negative if the run was mostly below its reference.
        """
        constants = self.constants(evidence)
        shape, residual = self.shape(evidence, constants, evidence.steps), constants["residual"]
        pair = evidence.feasible.minimise(shape).pair
        if pair is None:
            return evidence.residual_share
        rest = as_float(shape.distance + shape.noise + shape.spread * pair[1]) - residual
        return residual / rest if rest > 0 else evidence.residual_share

    @override
    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return the sums over all steps: exact if they were kept, else estimates from probes."""
        return self._sums(evidence, evidence.steps)

    @override
    def shape(
        self, evidence: Evidence, constants: Mapping[str, float], steps: float
    ) -> LinearFractional:
        if math.isinf(steps):
            raise DoesNotApply("the certificate is about the steps that were made")
        sums = dict(constants) if steps == evidence.steps else self._sums(evidence, int(steps))
        along = sums.pop("inner_product_sum", None)
        shape = B.Trajectory(**sums).shape()
        if along is None:
            return shape
        # Over every step, Σ η p = (D_0² − D_K²)/2 + ½ Σ η²G². The estimate of Σ η p replaces the
        # right side: the inequality holds at each probe, and with the same weights on both of its
        # sides the sums cannot contradict it.
        return replace(shape, distance=Fraction(along) - Fraction(sums["sq_step_sum"]) / 2)

    @override
    def status(self, evidence: Evidence) -> tuple[Status, str]:
        if evidence.every_step:
            return "proved", "proved for this run: every step was a probe"
        sums = "the sums over steps"
        if exact_sums(evidence) is not None:
            sums = "the sums of η(b − l) and ‖e‖D"
        probes = f"{len(evidence.table)} probes of {evidence.steps} steps"
        return "estimate", f"estimate: {sums} are taken from {probes}"

    @override
    def measured(self, evidence: Evidence) -> float | None:
        """Return the η-weighted mean of a − b, estimated from the probes."""
        weights = evidence.weights * evidence.column("step_size")
        gap = evidence.column("loss") - evidence.column("reference_loss")
        return float((weights * gap).sum() / weights.sum())

    def _sums(self, evidence: Evidence, steps: int) -> dict[str, float]:
        """Return the sums over the first steps."""
        sizes, squares = evidence.column("step_size"), evidence.column("grad_sq_norm")
        rest, distance = evidence.column("step_residual"), evidence.column("sq_distance").sqrt()
        excess = evidence.column("reference_loss") - evidence.column("loss_infimum")
        weights = interpolation_weights(evidence.spans_until(steps))
        sums = {
            "step_size_sum": float((weights * sizes).sum()),
            "sq_step_sum": float((weights * sizes.square() * squares).sum()),
            "excess_sum": float((weights * sizes * excess).sum()),
            "sq_distance": evidence.sq_distance,
            "final_sq_distance": _sq_distance_after(steps, evidence),
            "residual": float((weights * (rest.square() / 2 + rest * distance)).sum()),
        }
        kept = exact_sums(evidence)
        if kept is not None and steps == evidence.steps:
            sums["step_size_sum"], sums["sq_step_sum"] = kept["step_size"], kept["sq_step"]
            sums["residual"] = kept["sq_residual"] / 2 + float((weights * rest * distance).sum())
        elif not evidence.every_step:
            along = weights * sizes * evidence.column("inner_product")
            sums["inner_product_sum"] = float(along.sum())
        return sums


def _sq_distance_after(steps: int, evidence: Evidence) -> float:
    """Return D² of the first probe after some steps, or D_K² if there is none."""
    later = (evidence.column("step") - evidence.first_step >= steps).nonzero().flatten()
    if not len(later):
        return evidence.final_sq_distance
    return float(evidence.column("sq_distance")[int(later[0])])


def exact_sums(evidence: Evidence) -> Mapping[str, float] | None:
    """Return the sums that the run kept at every step from x_0 on; None if it did not."""
    sums: Mapping[str, float] | None = evidence.run.get("exact_sums")
    if sums is None or None in sums.values():  # not kept, or not finite
        return None
    from_start = sums["first_step"] == evidence.first_step
    return sums if from_start and sums["steps"] == evidence.steps else None
