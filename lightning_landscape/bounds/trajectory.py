"""The certificate of one trajectory: what the α-β-condition promises of this run alone, with measured step sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from lightning_landscape.bounds import functional as B
from lightning_landscape.bounds.assumptions import check_measured_throughout, foresee_direction
from lightning_landscape.bounds.evidence import RESIDUAL_SHARE, Evidence, interpolation_weights
from lightning_landscape.bounds.theorem import DoesNotApply, Status, Theorem
from lightning_landscape.functional._envelope import as_float
from lightning_landscape.functional._fractional import LinearFractional


class TrajectoryBound(Theorem):
    """``x_{k+1} = x_k − η_k g_k − e_k`` summed over the run: no smoothness, no expectation, any optimiser of this kind."""

    name = "trajectory"
    title = "the certificate of this trajectory"
    condition = "α > β"

    def foresee(self, evidence: Evidence) -> None:
        """Foresee steps that are not along the gradient; a small weight decay may matter little."""
        foresee_direction(evidence)
        momentum = [option for option in evidence.declared if option.startswith("momentum")]
        if momentum:
            raise DoesNotApply(
                f"steps of {evidence.optimizer} with {momentum[0]} are not along the mini-batch gradient"
            )

    def check(self, evidence: Evidence) -> None:
        """Check that no step went along +gradient, and that what was not along the gradient hardly matters."""
        check_measured_throughout(evidence)
        sums = exact_sums(evidence)
        negative = (
            int((evidence.column("step_size") < 0).sum())
            if sums is None
            else int(sums["negative_steps"])
        )
        if negative:
            of = f"{len(evidence.table)} probes" if sums is None else f"{evidence.steps} steps"
            raise DoesNotApply(
                f"{negative} of {of} went along +gradient ({evidence.optimizer}); what of the steps was not along the gradient "
                f"is {evidence.residual_share:.2g} times what was"
            )
        share = self._residual_share(evidence)
        if share > RESIDUAL_SHARE:
            raise DoesNotApply(
                f"steps of {evidence.optimizer} were not along the mini-batch gradient: what of them was not, R, is "
                f"{share:.2g} times the rest of the certificate, more than {RESIDUAL_SHARE:g}"
            )

    def _residual_share(self, evidence: Evidence) -> float:
        """Return R beside the rest of the certificate at its pair.

        Beside what the steps did where there is no pair (δ → ∞), or where the rest is negative: it bounds a mean gap, which
        is negative where the run was mostly below its reference.
        """
        constants = self.constants(evidence)
        shape, residual = self.shape(evidence, constants, evidence.steps), constants["residual"]
        pair = evidence.feasible.minimise(shape).pair
        rest = (
            as_float(shape.distance + shape.noise + shape.spread * pair[1]) - residual
            if pair
            else 0.0
        )
        return residual / rest if rest > 0 else evidence.residual_share

    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return the sums over all steps: exact where they were kept, else estimated from the probes."""
        return self._sums(evidence, evidence.steps)

    def shape(
        self, evidence: Evidence, constants: Mapping[str, float], steps: float
    ) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.trajectory` as a function of the pair."""
        if math.isinf(steps):
            raise DoesNotApply("the certificate is of the steps that were made")
        sums = dict(constants) if steps == evidence.steps else self._sums(evidence, int(steps))
        along = sums.pop("inner_product_sum", None)
        shape = B.trajectory_shape(**sums)
        # what the probes say of Σ η p stands for (D_0² − D_K²)/2 + ½ Σ η²G², which it is over every step: sums with the same
        # weights on both sides of an inequality that holds at each probe cannot contradict it
        return (
            shape
            if along is None
            else replace(shape, distance=Fraction(along) - Fraction(sums["sq_step_sum"]) / 2)
        )

    def status(self, evidence: Evidence) -> tuple[Status, str]:
        """Return "proved" where every step was a probe."""
        if evidence.every_step:
            return "proved", "proved for this run: every step was a probe"
        which = (
            "the sums over steps"
            if exact_sums(evidence) is None
            else "the sums of η(b − l) and ‖e‖D"
        )
        return (
            "estimate",
            f"estimate: {which} are taken from {len(evidence.table)} probes of {evidence.steps} steps",
        )

    def measured(self, evidence: Evidence) -> float | None:
        """Return the η-weighted mean of a − b, estimated from the probes."""
        weights = evidence.weights * evidence.column("step_size")
        gap = evidence.column("loss") - evidence.column("reference_loss")
        return float((weights * gap).sum() / weights.sum())

    def _sums(self, evidence: Evidence, steps: int) -> dict[str, float]:
        """Return the sums over the first steps; x_K of fewer steps is the iterate of the probe that is due then."""
        sizes, squares = evidence.column("step_size"), evidence.column("grad_sq_norm")
        rest, distance = evidence.column("step_residual"), evidence.column("sq_distance").sqrt()
        excess = evidence.column("reference_loss") - evidence.column("loss_infimum")
        weights = interpolation_weights(evidence.spans_until(steps))
        later = (evidence.column("step") - evidence.first_step >= steps).nonzero().flatten()
        final = (
            evidence.final_sq_distance
            if not len(later)
            else float(evidence.column("sq_distance")[int(later[0])])
        )
        sums = {
            "step_size_sum": float((weights * sizes).sum()),
            "sq_step_sum": float((weights * sizes.square() * squares).sum()),
            "excess_sum": float((weights * sizes * excess).sum()),
            "sq_distance": evidence.sq_distance,
            "final_sq_distance": final,
            "residual": float((weights * (rest.square() / 2 + rest * distance)).sum()),
        }
        kept = exact_sums(evidence)
        if kept is not None and steps == evidence.steps:
            sums["step_size_sum"], sums["sq_step_sum"] = kept["step_size"], kept["sq_step"]
            sums["residual"] = kept["sq_residual"] / 2 + float((weights * rest * distance).sum())
        elif not evidence.every_step:
            sums["inner_product_sum"] = float(
                (weights * sizes * evidence.column("inner_product")).sum()
            )
        return sums


def exact_sums(evidence: Evidence) -> Mapping[str, float] | None:
    """Return the sums that were kept at every step from x_0 on; None where they were not."""
    sums: Mapping[str, float] | None = evidence.run.get("exact_sums")
    if sums is None or None in sums.values():  # not kept, or not finite
        return None
    return (
        sums
        if sums["first_step"] == evidence.first_step and sums["steps"] == evidence.steps
        else None
    )
