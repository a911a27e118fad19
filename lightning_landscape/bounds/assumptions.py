"""What the theorems about random mini-batches assume, each with the reason that is said where it is not met."""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import Tensor
from torch.optim import lr_scheduler

from lightning_landscape.bounds.evidence import RESIDUAL_SHARE, Evidence
from lightning_landscape.bounds.theorem import DoesNotApply, Theorem

SAME_GRADIENT = 0.01
"""Largest relative difference of a gradient from the same one evaluated again; by rounding it is less"""


_NOT_SHUFFLED = "the training loader does not shuffle, and the order of the batches can break every bound: use shuffle=True"


class Stochastic(Theorem):
    """A theorem about steps along mini-batch gradients, the mini-batches drawn at random."""

    def check(self, evidence: Evidence) -> None:
        """Check losses, sampling, steps and infimum; then the rule for the step sizes."""
        check_fixed_losses(evidence)
        check_sampling(evidence)
        check_moves_along_gradient(evidence)
        check_infimum(evidence)
        self.check_steps(evidence)

    def foresee(self, evidence: Evidence) -> None:
        """Foresee that steps are not along mini-batch gradients, or that these come in a fixed order."""
        foresee_direction(evidence)
        check_declared(evidence)
        if evidence.run.get("sampling") == "sequential" and not one_batch_a_step(evidence):
            raise DoesNotApply(_NOT_SHUFFLED)

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
        raise DoesNotApply(_NOT_SHUFFLED)


def one_batch_a_step(evidence: Evidence) -> bool:
    """Return whether an epoch has no more batches than a step takes."""
    return evidence.steps_per_epoch == 1


def foresee_direction(evidence: Evidence) -> None:
    """Raise `DoesNotApply` where the optimiser is one of torch's whose steps are not along the gradient."""
    if evidence.is_from("torch.optim") and evidence.optimizer != "SGD":
        raise DoesNotApply(f"steps of {evidence.optimizer} are not along the mini-batch gradient")


def foresee_schedule(evidence: Evidence, *, constant: bool) -> None:
    """Raise `DoesNotApply` where schedulers show that lr will not be constant, or that it will not fall as 1/√(k + 1)."""
    names = [scheduler["class"] for scheduler in evidence.run.get("lr_schedulers") or []]
    if constant and names:
        raise DoesNotApply(f"{', '.join(names)} changes lr, the theorem has one")
    if not constant and all(hasattr(lr_scheduler, name) and name != "LambdaLR" for name in names):
        raise DoesNotApply(
            f"{', '.join(names)} does not do that" if names else "there is no scheduler"
        )


def check_declared(evidence: Evidence) -> None:
    """Raise `DoesNotApply` where an option of the optimiser adds to its steps what is not along the gradient."""
    if evidence.declared:
        raise DoesNotApply(
            f"{evidence.optimizer} has {', '.join(evidence.declared)}; the theorem is about steps along the mini-batch gradient"
        )


def check_moves_along_gradient(evidence: Evidence) -> None:
    """Raise `DoesNotApply` where steps were not a number times the mini-batch gradient."""
    check_measured_throughout(evidence)
    check_declared(evidence)
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
        raise DoesNotApply(
            "the distance of the last iterate to the reference is not a finite number"
        )
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
        raise DoesNotApply(
            f"the last probe is {last} steps before the end, what came after it was not measured"
        )
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
        raise DoesNotApply(
            "a loss is at loss_infimum, or below, while its gradient is not zero: pass a smaller loss_infimum="
        )


def root_of_step(evidence: Evidence) -> Tensor:
    """Return √(k + 1) at each probe, k counted from x_0."""
    return (evidence.column("step") - evidence.first_step + 1).sqrt()


def said_clipping(evidence: Evidence) -> str:
    """Say that gradients were clipped, if they were."""
    return ", gradients were clipped" if evidence.run.get("gradient_clipping") is not None else ""
