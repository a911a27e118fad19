"""What the theorems about random mini-batches assume, each with the reason that is said where it is not met."""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import Tensor

from lightning_landscape.bounds.evidence import RESIDUAL_SHARE, Evidence
from lightning_landscape.bounds.theorem import DoesNotApply, Theorem

SAME_GRADIENT = 0.01
"""Largest relative difference of a gradient from the same one evaluated again; by rounding it is less"""


class Stochastic(Theorem):
    """A theorem about steps along mini-batch gradients, the mini-batches drawn at random."""

    def check(self, evidence: Evidence) -> None:
        """Check losses, sampling, steps and infimum; then the rule for the step sizes."""
        check_fixed_losses(evidence)
        check_sampling(evidence)
        check_moves_along_gradient(evidence)
        check_infimum(evidence)
        self.check_steps(evidence)

    @abstractmethod
    def check_steps(self, evidence: Evidence) -> None:
        """Raise `DoesNotApply` where the step sizes do not follow the theorem's rule."""

    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return L, D_0² and σ²."""
        return {
            "smoothness": evidence.smoothness,
            "sq_distance": evidence.sq_distance,
            "interpolation_error": evidence.interpolation_error,
        }


def check_fixed_losses(evidence: Evidence) -> None:
    """Raise `DoesNotApply` where parameters that are not x were trained as well: every f_i changed from step to step."""
    others = evidence.run.get("trained_elsewhere")
    if others:
        raise DoesNotApply(
            f"{others} parameter tensors beside x were trained too, so the mini-batch losses, as functions of x, changed from "
            "step to step; the theorem is about fixed ones"
        )


def check_sampling(evidence: Evidence) -> None:
    """Raise `DoesNotApply` where the order of the mini-batches is fixed."""
    if evidence.run.get("sampling") == "sequential" and not evidence.full_batch:
        raise DoesNotApply(
            "the training loader does not shuffle, and the order of the batches can break every bound: use shuffle=True"
        )


def check_moves_along_gradient(evidence: Evidence) -> None:
    """Raise `DoesNotApply` where steps were not a number times the mini-batch gradient."""
    check_measured_throughout(evidence)
    if evidence.declared:
        raise DoesNotApply(
            f"{evidence.optimizer} has {', '.join(evidence.declared)}; the theorem is about steps along the mini-batch gradient"
        )
    share = evidence.residual_share
    if not share <= RESIDUAL_SHARE:
        raise DoesNotApply(
            f"steps of {evidence.optimizer} were not along the mini-batch gradient: what of them was not is {share:.2g} times "
            f"what was, more than {RESIDUAL_SHARE:g}; momentum, weight decay and adaptive methods are outside, and steps so "
            "small that the parameters' precision rounds them"
        )


def check_measured_throughout(evidence: Evidence) -> None:
    """Raise `DoesNotApply` where the probes do not reach to the end, or parameters moved between the optimiser's steps."""
    if not math.isfinite(evidence.final_sq_distance):
        raise DoesNotApply("the distance of the last iterate to the reference is not a finite number")
    off = evidence.gradient_difference
    if off is not None and off > SAME_GRADIENT:
        raise DoesNotApply(
            f"the gradient that the optimizer got differs from that of the measured loss by {off:.2g} of its length: a "
            "callback or a hook changed it (noise, clipping, centring), or loss= is not what was trained"
        )
    idle, moved = evidence.run.get("idle_steps"), evidence.run.get("moved_between")
    if idle:
        raise DoesNotApply(
            f"{idle} of {evidence.run['steps']} steps had no gradient: training_step returned None, or a callback skipped the "
            "backward pass"
        )
    stride, last = evidence.run.get("stride"), int(evidence.spans[-1])
    if stride is not None and last > max(2 * int(stride), 0.05 * evidence.steps):
        raise DoesNotApply(f"the last probe is {last} steps before the end, what came after it was not measured")
    if moved:
        raise DoesNotApply(
            f"after the step of {moved} probes something else moved the parameters (a hook, an averaging callback), and the "
            "proof is about the optimizer's steps alone"
        )
    if evidence.jump is not None:
        raise DoesNotApply(
            f"after step {evidence.jump} the parameters were not where the step had left them: a hook moved them, and the "
            "proof is about the optimizer's steps alone"
        )


def check_infimum(evidence: Evidence) -> None:
    """Raise `DoesNotApply` where a loss is at the infimum while its gradient is not zero, or below it."""
    if math.isinf(evidence.smoothness):
        raise DoesNotApply("a loss is at loss_infimum, or below, while its gradient is not zero: pass a smaller loss_infimum=")


def root_of_step(evidence: Evidence) -> Tensor:
    """Return √(k + 1) at each probe, k counted from x_0."""
    return (evidence.column("step") - evidence.first_step + 1).sqrt()


def said_clipping(evidence: Evidence) -> str:
    """Say that gradients were clipped, if they were."""
    return ", gradients were clipped" if evidence.run.get("gradient_clipping") is not None else ""
