"""The theorems about this package's optimisers, whose step sizes follow from the mini-batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lightning_landscape.bounds import functional as B
from lightning_landscape.bounds.assumptions import Stochastic, foresee_schedule, root_of_step
from lightning_landscape.bounds.evidence import Evidence
from lightning_landscape.bounds.theorem import DoesNotApply, OtherOptimizer
from lightning_landscape.functional._fractional import LinearFractional

Constants = Mapping[str, float]


class _Adaptive(Stochastic):
    """A theorem about one of this package's optimisers, whose constants are read off it and whose steps are checked."""

    optimizer: ClassVar[str]
    needs_loss: ClassVar[bool] = True
    constant_rate: ClassVar[bool] = True
    """Whether the theorem is about a learning rate that no scheduler changes"""
    noise_remedy = "which a smaller lr shrinks"

    def foresee(self, evidence: Evidence) -> None:
        """Foresee another optimiser, or a use of it, its lr or its infimum that the theorem is not about."""
        self._check_method(evidence)
        super().foresee(evidence)
        if self.constant_rate:
            foresee_schedule(evidence, constant=True)

    def check(self, evidence: Evidence) -> None:
        """Check the optimiser and how it was used, before what was measured."""
        self._check_method(evidence)
        seen, start = evidence.learning_rates, evidence.learning_rate
        if self.constant_rate and seen is not None and seen != (start, start):
            raise DoesNotApply(
                f"lr started at {start:g} and was {seen[0]:g} to {seen[1]:g} at the probes; the theorem has one"
            )
        super().check(evidence)

    def _check_method(self, evidence: Evidence) -> None:
        if evidence.optimizer != self.optimizer or not evidence.is_from(
            "lightning_landscape.optim"
        ):
            raise OtherOptimizer(
                f"the optimizer is {evidence.optimizer}; the theorem is about {self.optimizer} of this package"
            )
        if evidence.run.get("gradient_clipping") is not None:
            raise DoesNotApply(
                "gradients are clipped; the theorem is about the gradient's own norm"
            )
        if self.needs_loss and evidence.run["accumulate_grad_batches"] != 1:
            raise DoesNotApply(
                "gradients are accumulated; the step size is made of the last micro-batch's loss alone"
            )
        if self.needs_loss and evidence.run["precision"] == "16-mixed":
            raise DoesNotApply("a GradScaler calls the optimizer without its loss")

    def check_loss_infimum(self, evidence: Evidence) -> None:
        """Check that the optimiser and the probes use the same l."""
        ours, theirs = evidence.number("loss_infimum"), evidence.loss_infima
        if bool((theirs != ours).any()):
            raise DoesNotApply(
                f"the optimizer has loss_infimum={ours:g}, the monitor {float(theirs[0]):g}; the proof needs one: pass the "
                "same to both"
            )

    def check_follows(self, evidence: Evidence, expected: Tensor) -> None:
        """Check that the measured step sizes are those of the optimiser's definition."""
        step = evidence.departure(expected)
        if step is not None:
            raise DoesNotApply(
                f"the step at {step} was not that of {self.optimizer}'s definition with lr={evidence.learning_rate:g}: a "
                "scheduler, or a gradient or loss that the optimizer saw differently"
            )

    def check_from_start(self, evidence: Evidence) -> None:
        """Check that x_0 is where the optimiser started: its constants belong to its own first step."""
        if evidence.first_step != 0:
            raise DoesNotApply(
                f"the first probe is at step {evidence.first_step}, the optimizer's constants belong to step 0"
            )


class SPSMaxBound(_Adaptive):
    """SPS_max (Islamov et al. 2024, Theorem 2)."""

    noise_remedy = "which a smaller lr shrinks, down to 1/(2cL)"

    name = "sps_max"
    title = "SPS_max"
    optimizer = "SPSMax"
    condition = "c > 1/(2(α − β))"
    remedy = "a larger c"

    def foresee(self, evidence: Evidence) -> None:
        """Foresee another infimum than the monitor's."""
        super().foresee(evidence)
        self.check_loss_infimum(evidence)

    def check_steps(self, evidence: Evidence) -> None:
        """Check γ_k = min{(a − l)/(c G²), γ_b}."""
        self.check_loss_infimum(evidence)
        gap = evidence.column("loss") - evidence.column("loss_infimum")
        polyak = gap / (evidence.number("c") * evidence.column("grad_sq_norm"))
        self.check_follows(evidence, polyak.clamp(max=evidence.learning_rate))

    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return c, γ_b, L, D_0² and σ²."""
        own = {"c": evidence.number("c"), "step_size_bound": evidence.learning_rate}
        return {**own, **super().constants(evidence)}

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.sps_max` as a function of the pair."""
        return B.sps_max_shape(steps=steps, **constants)


class SPSMaxSharpBound(SPSMaxBound):
    """SPS_max, minus σ²."""

    name = "sps_max_sharp"
    title = "SPS_max, sharper"

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.sps_max_sharp` as a function of the pair."""
        return B.sps_max_sharp_shape(steps=steps, **constants)


class DecSPSBound(_Adaptive):
    """DecSPS with c_k = c_0 √(k+1) (Islamov et al. 2024, Theorem 5)."""

    name = "dec_sps"
    title = "DecSPS"
    optimizer = "DecSPS"
    constant_rate = False  # only the first step has lr
    noise_remedy = "which more steps or a larger c_init shrink"
    condition = "c_init ≥ 1/(α − β)"
    remedy = "a larger c_init"

    def foresee(self, evidence: Evidence) -> None:
        """Foresee another infimum than the monitor's."""
        super().foresee(evidence)
        self.check_loss_infimum(evidence)

    def check_steps(self, evidence: Evidence) -> None:
        """Check that c_k γ_k is at most (a − l)/G² and does not increase; with every step probed, that it is as large."""
        self.check_loss_infimum(evidence)
        self.check_from_start(evidence)
        found, c = evidence.column("step_size"), evidence.number("c_init") * root_of_step(evidence)
        scaled = torch.where(evidence.moving, found * c, torch.inf)
        start = scaled.new_tensor([evidence.number("c_init") * evidence.learning_rate])
        previous = torch.cat([start, scaled[:-1]]).cummin(0).values
        gap = evidence.column("loss") - evidence.column("loss_infimum")
        largest = torch.minimum(gap / evidence.column("grad_sq_norm"), previous) / c
        self.check_follows(
            evidence, largest if evidence.every_step else torch.minimum(found, largest)
        )

    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return c_0, γ_b, L, the largest D_k² and σ²."""
        return {
            "c_init": evidence.number("c_init"),
            "step_size_bound": evidence.learning_rate,
            "smoothness": max(evidence.smoothness, self._shortest(evidence)),
            "max_sq_distance": evidence.max_sq_distance,
            "interpolation_error": evidence.interpolation_error,
        }

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.dec_sps` as a function of the pair."""
        return B.dec_sps_shape(
            steps=steps, **constants, **_root_schedule(constants["c_init"], steps)
        )

    def _shortest(self, evidence: Evidence) -> float:
        """Return the largest 1/(2 c_k γ_k): what the proof takes from L is that no c_k γ_k is below 1/(2L)."""
        scaled = (
            evidence.column("step_size") * evidence.number("c_init") * root_of_step(evidence)
        )[evidence.moving]
        scaled = scaled[scaled > 0]
        return float((1 / (2 * scaled)).max()) if len(scaled) else 0.0


class DecSPSSharpBound(DecSPSBound):
    """DecSPS, without the last estimate of Theorem 5."""

    name = "dec_sps_sharp"
    title = "DecSPS, sharper"
    condition = "c_init ≥ 1/(2(α − β))"

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.dec_sps_sharp` as a function of the pair."""
        return B.dec_sps_sharp_shape(
            steps=steps, **constants, **_root_schedule(constants["c_init"], steps)
        )


class NGNBound(_Adaptive):
    """NGN with a constant γ (Islamov et al. 2024, Theorem 3)."""

    name = "ngn"
    title = "NGN"
    optimizer = "NGN"
    condition = "α ≥ β + 1"

    def check_steps(self, evidence: Evidence) -> None:
        """Check γ_k = γ/(1 + γ G²/(2a))."""
        low = self._check_low(evidence)
        gamma = evidence.learning_rate / self.growth(evidence)
        above = evidence.column("loss") - low
        self.check_follows(
            evidence, gamma / (1 + gamma * evidence.column("grad_sq_norm") / (2 * above))
        )

    def foresee(self, evidence: Evidence) -> None:
        """Foresee an infimum below that of the optimiser."""
        super().foresee(evidence)
        self._check_low(evidence)

    def _check_low(self, evidence: Evidence) -> float:
        low = evidence.number("loss_infimum")
        if bool((evidence.loss_infima < low).any()):
            raise DoesNotApply(
                f"the optimizer takes losses above loss_infimum={low:g}, the monitor's is smaller; the proof needs f_i^* ≥ that"
            )
        return low

    def growth(self, evidence: Evidence) -> Tensor:
        """Return by what γ was divided at each probe."""
        return torch.ones(len(evidence.table), dtype=torch.float64)

    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return γ, L, D_0², σ² and σ_pos²."""
        positivity = float(evidence.column("loss_infimum").mean()) - evidence.number("loss_infimum")
        return {
            "step_size": evidence.learning_rate,
            **super().constants(evidence),
            "positivity_error": positivity,
        }

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.ngn` as a function of the pair."""
        return B.ngn_shape(steps=steps, **constants)


class NGNSharpBound(NGNBound):
    """NGN, without the last estimates of Theorem 3."""

    name = "ngn_sharp"
    title = "NGN, sharper"
    condition = "α − β > 2γL/(1 + 2γL)"
    remedy = "a smaller step size"

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.ngn_sharp` as a function of the pair."""
        return B.ngn_sharp_shape(steps=steps, **constants)


class NGNDecreasingBound(NGNBound):
    """NGN with γ/√(k+1) (Islamov et al. 2024, Theorem 6)."""

    name = "ngn_decreasing"
    title = "NGN with γ falling as 1/√(k + 1)"
    constant_rate = False
    noise_remedy = "which more steps shrink"

    def foresee(self, evidence: Evidence) -> None:
        """Foresee a γ that does not fall."""
        super().foresee(evidence)
        foresee_schedule(evidence, constant=False)

    def growth(self, evidence: Evidence) -> Tensor:
        """Return √(k + 1) at each probe."""
        self.check_from_start(evidence)
        if evidence.steps > 1 and len(evidence.table) < 2:
            raise DoesNotApply("one probe does not show how γ fell")
        return root_of_step(evidence)

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.ngn_decreasing` as a function of the pair."""
        return B.ngn_decreasing_shape(steps=steps, **constants)


class AdaGradNormMaxBound(_Adaptive):
    """AdaGrad-norm-max (Islamov et al. 2024, Theorem 7)."""

    name = "adagrad_norm_max"
    title = "AdaGrad-norm-max"
    optimizer = "AdaGradNormMax"
    noise_remedy = "which a larger b_init or larger batches shrink"
    needs_loss = False
    condition = "b_init ≥ 2L step_size/(α − β)"
    remedy = "a larger b_init or a smaller step size"

    def check_steps(self, evidence: Evidence) -> None:
        """Check that b_k = γ/γ_k is at least what the probed gradients demand; with every step probed, that it is that."""
        self.check_from_start(evidence)
        found, steps = evidence.column("step_size"), evidence.column("step")
        largest = (
            evidence.column("grad_sq_norm").cummax(0).values
        )  # c_k² up to the next probe is at least this
        before = torch.cat([largest.new_zeros(1), (largest[:-1] * steps.diff()).cumsum(0)])
        longest = (
            evidence.learning_rate / (evidence.number("b_init") ** 2 + before + largest).sqrt()
        )
        self.check_follows(
            evidence, longest if evidence.every_step else torch.minimum(found, longest)
        )

    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return γ, b_{−1}, L, D_0², σ², G and D = 0, which is always right."""
        own = {"step_size": evidence.learning_rate, "b_init": evidence.number("b_init")}
        return {
            **own,
            **super().constants(evidence),
            "grad_bound": self._largest(evidence),
            "grad_min": 0.0,
        }

    def _largest(self, evidence: Evidence) -> float:
        """Return the largest ‖g_k‖, or what the growth of b_k shows of gradients between probes: b_k² ≤ b_{−1}² + G²(k+1)."""
        sizes, steps = evidence.column("step_size"), evidence.column("step") + 1
        between = (
            (evidence.learning_rate / sizes).square() - evidence.number("b_init") ** 2
        ) / steps
        between = between[evidence.moving & (sizes > 0)]
        return max(
            evidence.grad_bound, math.sqrt(max(float(between.max()), 0.0)) if len(between) else 0.0
        )

    def shape(self, evidence: Evidence, constants: Constants, steps: float) -> LinearFractional:
        """Return `lightning_landscape.bounds.functional.adagrad_norm_max` as a function of the pair."""
        return B.adagrad_norm_max_shape(steps=steps, **constants)


def _root_schedule(c_init: float, steps: float) -> dict[str, float]:
    """Return c_{K−1} and Σ 1/c_k of c_k = c_0 √(k + 1)."""
    if math.isinf(steps):
        return {"c_last": math.inf, "inverse_c_sum": math.inf}
    return {
        "c_last": c_init * math.sqrt(steps),
        "inverse_c_sum": sum_of_inverse_roots(int(steps)) / c_init,
    }


def sum_of_inverse_roots(steps: int) -> float:
    """Return ``Σ_{k=1}^K 1/√k``; from 64 steps on by Euler and Maclaurin's formula, whose rest is below float64's rounding.

    Example:
        >>> sum_of_inverse_roots(2)
        1.7071067811865475
    """
    if steps < 64:
        return math.fsum(1 / math.sqrt(k) for k in range(1, steps + 1))
    zeta_of_half = -1.4603545088095868
    root = math.sqrt(steps)
    return 2 * root + zeta_of_half + 1 / (2 * root) - 1 / (24 * root**3) + 1 / (384 * root**7)
