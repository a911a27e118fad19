"""The theorems about this package's optimizers, whose step sizes follow from the mini-batch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_landscape.bounds import functional as B
from lightning_landscape.bounds.assumptions import Stochastic, foresee_schedule, root_of_step
from lightning_landscape.bounds.evidence import Evidence
from lightning_landscape.bounds.theorem import DoesNotApply, OtherOptimizer
from lightning_landscape.functional._fractional import LinearFractional


class _Adaptive(Stochastic):
    """A theorem about one optimizer of this package: it reads the constants off the optimizer."""

    optimizer: ClassVar[str]
    needs_loss: ClassVar[bool] = True
    constant_rate: ClassVar[bool] = True
    """Whether the theorem needs a learning rate that no scheduler changes"""
    from_start: ClassVar[bool] = False
    """Whether x_0 must be where the optimizer started, because its constants belong to step 0"""
    noise_remedy = "which a smaller lr shrinks"

    @override
    def foresee(self, evidence: Evidence) -> None:
        self._check_method(evidence)
        super().foresee(evidence)
        if self.constant_rate:
            foresee_schedule(evidence, constant=True)
        self.check_optimizers_infimum(evidence)

    @override
    def check(self, evidence: Evidence) -> None:
        self._check_method(evidence)
        seen, start = evidence.learning_rates, evidence.learning_rate
        if self.constant_rate and seen is not None and seen != (start, start):
            raise DoesNotApply(
                f"lr started at {start:g} and was {seen[0]:g} to {seen[1]:g} at the probes; "
                "the theorem has one constant lr"
            )
        super().check(evidence)

    @override
    def check_steps(self, evidence: Evidence) -> None:
        self.check_optimizers_infimum(evidence)
        if self.from_start and evidence.first_step != 0:
            raise DoesNotApply(
                f"the first probe is at step {evidence.first_step}, but the constants of the "
                "optimizer belong to step 0"
            )
        step = evidence.departure(self.defined_steps(evidence))
        if step is not None:
            raise DoesNotApply(
                f"step {step} was not that of {self.optimizer}'s definition with "
                f"lr={evidence.learning_rate:g}: a scheduler changed lr, or the optimizer saw "
                "another gradient or loss"
            )

    @abstractmethod
    def defined_steps(self, evidence: Evidence) -> Tensor:
        """Return the step sizes at the probes by the definition of the optimizer."""

    def check_optimizers_infimum(self, evidence: Evidence) -> None:
        """Raise `DoesNotApply` if the optimizer's l does not match the probes'."""

    def _check_method(self, evidence: Evidence) -> None:
        ours = evidence.is_from("lightning_landscape.optim")
        if evidence.optimizer != self.optimizer or not ours:
            raise OtherOptimizer(
                f"the optimizer is {evidence.optimizer}; the theorem is about {self.optimizer} of "
                "this package"
            )
        if evidence.run.get("gradient_clipping") is not None:
            raise DoesNotApply(
                "gradients are clipped; the theorem is about the norm of the unclipped gradient"
            )
        if self.needs_loss and evidence.run["accumulate_grad_batches"] != 1:
            raise DoesNotApply(
                "gradients are accumulated, but the step size follows from the loss of the last "
                "micro-batch only"
            )
        if self.needs_loss and evidence.run["precision"] == "16-mixed":
            raise DoesNotApply("a GradScaler calls the optimizer without its loss")


class _Polyak(_Adaptive):
    """A theorem about a Polyak step, which uses the loss above its infimum."""

    @override
    def check_optimizers_infimum(self, evidence: Evidence) -> None:
        ours, theirs = evidence.number("loss_infimum"), evidence.loss_infima
        if bool((theirs != ours).any()):
            raise DoesNotApply(
                f"the optimizer has loss_infimum={ours:g}, the monitor {float(theirs[0]):g}; the "
                "proof needs one infimum: pass the same to both"
            )

    def polyak_step(self, evidence: Evidence) -> Tensor:
        """Return (a − l)/G² at each probe."""
        gap = evidence.column("loss") - evidence.column("loss_infimum")
        return gap / evidence.column("grad_sq_norm")


class SPSMaxBound(_Polyak):
    """SPS_max (Islamov et al. 2024, Theorem 2)."""

    name = "sps_max"
    title = "SPS_max"
    bound = B.SPSMax
    optimizer = "SPSMax"
    remedy = "a larger c"
    noise_remedy = "which a smaller lr shrinks, down to 1/(2cL)"

    @override
    def defined_steps(self, evidence: Evidence) -> Tensor:
        """Return min{(a − l)/(c G²), γ_b}."""
        polyak = self.polyak_step(evidence) / evidence.number("c")
        return polyak.clamp(max=evidence.learning_rate)

    @override
    def constants(self, evidence: Evidence) -> dict[str, float]:
        own = {"c": evidence.number("c"), "step_size_bound": evidence.learning_rate}
        return {**own, **super().constants(evidence)}


class SPSMaxSharpBound(SPSMaxBound):
    """SPS_max, minus σ²."""

    name = "sps_max_sharp"
    title = "SPS_max, sharper"
    bound = B.SPSMaxSharp


class DecSPSBound(_Polyak):
    """DecSPS with c_k = c_0 √(k+1) (Islamov et al. 2024, Theorem 5)."""

    name = "dec_sps"
    title = "DecSPS"
    bound = B.DecSPS
    optimizer = "DecSPS"
    constant_rate = False  # only the first step has lr
    from_start = True
    remedy = "a larger c_init"
    noise_remedy = "which more steps or a larger c_init shrink"

    @override
    def defined_steps(self, evidence: Evidence) -> Tensor:
        """Return min{(a − l)/G², c_{k−1}γ_{k−1}}/c_k.

        Unless every step is a probe, this is only an upper bound: smaller steps agree with it.
        """
        found, c_0 = evidence.column("step_size"), evidence.number("c_init")
        c = c_0 * root_of_step(evidence)
        scaled = torch.where(evidence.moving, found * c, torch.inf)
        start = scaled.new_tensor([c_0 * evidence.learning_rate])
        previous = torch.cat([start, scaled[:-1]]).cummin(0).values
        largest = torch.minimum(self.polyak_step(evidence), previous) / c
        return largest if evidence.every_step else torch.minimum(found, largest)

    @override
    def constants(self, evidence: Evidence) -> dict[str, float]:
        return {
            "c_init": evidence.number("c_init"),
            "step_size_bound": evidence.learning_rate,
            "smoothness": max(evidence.smoothness, self._smoothness_of_steps(evidence)),
            "max_sq_distance": evidence.max_sq_distance,
            "interpolation_error": evidence.interpolation_error,
        }

    @override
    def shape(
        self, evidence: Evidence, constants: Mapping[str, float], steps: float
    ) -> LinearFractional:
        schedule = _root_schedule(constants["c_init"], steps)
        return super().shape(evidence, {**constants, **schedule}, steps)

    def _smoothness_of_steps(self, evidence: Evidence) -> float:
        """Return the largest 1/(2c_kγ_k): the proof uses L only for c_kγ_k ≥ 1/(2L)."""
        scaled = evidence.column("step_size") * evidence.number("c_init") * root_of_step(evidence)
        scaled = scaled[evidence.moving & (scaled > 0)]
        return float((1 / (2 * scaled)).max()) if len(scaled) else 0.0


class DecSPSSharpBound(DecSPSBound):
    """DecSPS, without the last estimate of Theorem 5."""

    name = "dec_sps_sharp"
    title = "DecSPS, sharper"
    bound = B.DecSPSSharp


class NGNBound(_Adaptive):
    """NGN with a constant γ (Islamov et al. 2024, Theorem 3)."""

    name = "ngn"
    title = "NGN"
    bound = B.NGN
    optimizer = "NGN"

    @override
    def check_optimizers_infimum(self, evidence: Evidence) -> None:
        low = evidence.number("loss_infimum")
        if bool((evidence.loss_infima < low).any()):
            raise DoesNotApply(
                f"the monitor's loss_infimum is below the optimizer's loss_infimum={low:g}; the "
                "proof needs one at least as large"
            )

    @override
    def defined_steps(self, evidence: Evidence) -> Tensor:
        """Return γ/(1 + γ G²/(2a)), with a above the optimizer's infimum."""
        γ = self.step_sizes(evidence)
        above = evidence.column("loss") - evidence.number("loss_infimum")
        return γ / (1 + γ * evidence.column("grad_sq_norm") / (2 * above))

    def step_sizes(self, evidence: Evidence) -> Tensor:
        """Return γ at each probe."""
        return torch.full((len(evidence.table),), evidence.learning_rate, dtype=torch.float64)

    @override
    def constants(self, evidence: Evidence) -> dict[str, float]:
        positivity = float(evidence.column("loss_infimum").mean()) - evidence.number("loss_infimum")
        return {
            "step_size": evidence.learning_rate,
            **super().constants(evidence),
            "positivity_error": positivity,
        }


class NGNSharpBound(NGNBound):
    """NGN, without the last estimates of Theorem 3."""

    name = "ngn_sharp"
    title = "NGN, sharper"
    bound = B.NGNSharp
    remedy = "a smaller step size"


class NGNDecreasingBound(NGNBound):
    """NGN with γ/√(k+1) (Islamov et al. 2024, Theorem 6)."""

    name = "ngn_decreasing"
    title = "NGN with γ falling as 1/√(k + 1)"
    bound = B.NGNDecreasing
    constant_rate = False
    from_start = True
    noise_remedy = "which more steps shrink"

    @override
    def foresee(self, evidence: Evidence) -> None:
        super().foresee(evidence)
        foresee_schedule(evidence, constant=False)

    @override
    def step_sizes(self, evidence: Evidence) -> Tensor:
        """Return γ/√(k + 1) at each probe."""
        if evidence.steps > 1 and len(evidence.table) < 2:
            raise DoesNotApply("one probe does not show how γ fell")
        return evidence.learning_rate / root_of_step(evidence)


class AdaGradNormMaxBound(_Adaptive):
    """AdaGrad-norm-max (Islamov et al. 2024, Theorem 7)."""

    name = "adagrad_norm_max"
    title = "AdaGrad-norm-max"
    bound = B.AdaGradNormMax
    optimizer = "AdaGradNormMax"
    needs_loss = False
    from_start = True
    remedy = "a larger b_init or a smaller step size"
    noise_remedy = "which a larger b_init or larger batches shrink"

    @override
    def defined_steps(self, evidence: Evidence) -> Tensor:
        """Return γ/b_k.

        Unless every step is a probe, the probed gradients give only an upper bound: smaller steps
        agree with it.
        """
        found, steps = evidence.column("step_size"), evidence.column("step")
        c_sq = evidence.column("grad_sq_norm").cummax(0).values  # at least this to the next probe
        before = torch.cat([c_sq.new_zeros(1), (c_sq[:-1] * steps.diff()).cumsum(0)])
        b = (evidence.number("b_init") ** 2 + before + c_sq).sqrt()
        largest = evidence.learning_rate / b
        return largest if evidence.every_step else torch.minimum(found, largest)

    @override
    def constants(self, evidence: Evidence) -> dict[str, float]:
        return {
            "step_size": evidence.learning_rate,
            "b_init": evidence.number("b_init"),
            **super().constants(evidence),
            "grad_bound": max(evidence.grad_bound, self._grad_bound_of_steps(evidence)),
            "grad_min": 0.0,  # always right
        }

    def _grad_bound_of_steps(self, evidence: Evidence) -> float:
        """Return the smallest G that allows the growth b_k² ≤ b_{−1}² + G²(k+1) of b_k = γ/γ_k."""
        sizes, steps = evidence.column("step_size"), evidence.column("step") + 1
        growth = (evidence.learning_rate / sizes).square() - evidence.number("b_init") ** 2
        sq_bounds = (growth / steps)[evidence.moving & (sizes > 0)]
        return math.sqrt(max(float(sq_bounds.max()), 0.0)) if len(sq_bounds) else 0.0


def _root_schedule(c_init: float, steps: float) -> dict[str, float]:
    """Return c_{K−1} and Σ 1/c_k of c_k = c_0 √(k + 1)."""
    if math.isinf(steps):
        return {"c_last": math.inf, "inverse_c_sum": math.inf}
    return {
        "c_last": c_init * math.sqrt(steps),
        "inverse_c_sum": sum_of_inverse_roots(int(steps)) / c_init,
    }


def sum_of_inverse_roots(steps: int) -> float:
    """Return ``Σ_{k=1}^K 1/√k``.

    From 64 steps on it uses the formula of Euler and Maclaurin, whose remainder is below the
    rounding of float64.

    Example:
        >>> sum_of_inverse_roots(2)
        1.7071067811865475
    """
    if steps < 64:
        return math.fsum(1 / math.sqrt(k) for k in range(1, steps + 1))
    zeta_of_half = -1.4603545088095868
    root = math.sqrt(steps)
    return 2 * root + zeta_of_half + 1 / (2 * root) - 1 / (24 * root**3) + 1 / (384 * root**7)
