"""Assumptions of the theorems, each with the message for a run that does not meet it."""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import Tensor
from torch.optim import lr_scheduler

from lightning_landscape.bounds.evidence import RESIDUAL_SHARE, Evidence
from lightning_landscape.bounds.theorem import DoesNotApply, Theorem

SAME_GRADIENT = 0.01
"""Largest relative difference of one gradient evaluated twice; rounding makes a smaller one"""

_NOT_SHUFFLED = (
    "the training loader does not shuffle, and a fixed order of the batches can break every bound: "
    "use shuffle=True"
)


class Stochastic(Theorem):
    """A theorem about steps along gradients of mini-batches that are drawn at random."""

    def check(self, evidence: Evidence) -> None:
        """Check losses, sampling, steps and infimum; then the rule for the step sizes."""
        check_fixed_losses(evidence)
        check_sampling(evidence)
        check_moves_along_gradient(evidence)
        check_infimum(evidence)
        self.check_steps(evidence)

    def foresee(self, evidence: Evidence) -> None:
        """Foresee steps that are not along mini-batch gradients, and a fixed order of batches."""
        foresee_direction(evidence)
        check_declared(evidence)
        if evidence.run.get("sampling") == "sequential" and not one_batch_a_step(evidence):
            raise DoesNotApply(_NOT_SHUFFLED)

    @abstractmethod
    def check_steps(self, evidence: Evidence) -> None:
        """Raise `DoesNotApply` if the step sizes do not follow the theorem's rule."""

    def constants(self, evidence: Evidence) -> dict[str, float]:
        """Return L, D_0² and σ²."""
        return {
            "smoothness": evidence.smoothness,
            "sq_distance": evidence.sq_distance,
            "interpolation_error": evidence.interpolation_error,
        }


def check_fixed_losses(evidence: Evidence) -> None:
    """Raise `DoesNotApply` if parameters outside x were trained, so that every f_i changed."""
    others = evidence.run.get("trained_elsewhere")
    if others:
        raise DoesNotApply(
            f"{others} parameter tensors beside x were trained too, so that the mini-batch losses "
            "changed as functions of x; the theorem is about fixed losses"
        )


def check_sampling(evidence: Evidence) -> None:
    """Raise `DoesNotApply` if the order of the mini-batches is fixed."""
    if evidence.run.get("sampling") == "sequential" and not evidence.full_batch:
        raise DoesNotApply(_NOT_SHUFFLED)


def one_batch_a_step(evidence: Evidence) -> bool:
    """Return whether one step takes all batches of an epoch."""
    return evidence.steps_per_epoch == 1


def foresee_direction(evidence: Evidence) -> None:
    """Raise `DoesNotApply` if torch's optimizer does not step along the gradient."""
    if evidence.is_from("torch.optim") and evidence.optimizer != "SGD":
        raise DoesNotApply(f"steps of {evidence.optimizer} are not along the mini-batch gradient")


def foresee_schedule(evidence: Evidence, *, constant: bool) -> None:
    """Raise `DoesNotApply` if the schedulers rule out a constant lr, or one ∝ 1/√(k + 1)."""
    names = [scheduler["class"] for scheduler in evidence.run.get("lr_schedulers") or []]
    if constant and names:
        raise DoesNotApply(f"{', '.join(names)} changes lr, the theorem has one constant lr")
    # a LambdaLR, or a scheduler of the user's own, may give any schedule
    if not constant and all(hasattr(lr_scheduler, name) and name != "LambdaLR" for name in names):
        raise DoesNotApply(
            f"{', '.join(names)} does not make lr fall as 1/√(k + 1)"
            if names
            else "there is no scheduler"
        )


def check_declared(evidence: Evidence) -> None:
    """Raise `DoesNotApply` if an option of the optimizer turns its steps off the gradient."""
    if evidence.declared:
        raise DoesNotApply(
            f"{evidence.optimizer} has {', '.join(evidence.declared)}; the theorem is about steps "
            "along the mini-batch gradient"
        )


def check_moves_along_gradient(evidence: Evidence) -> None:
    """Raise `DoesNotApply` if a step is not a multiple of the mini-batch gradient."""
    check_measured_throughout(evidence)
    check_declared(evidence)
    share = evidence.residual_share
    if not share <= RESIDUAL_SHARE:
        raise DoesNotApply(
            f"steps of {evidence.optimizer} were not along the mini-batch gradient: the residual "
            f"R, off the gradient, is {percent(share)} of the movement along it, above the limit "
            f"of {percent(RESIDUAL_SHARE)}; momentum, weight decay and adaptive methods cause a "
            "residual, and so do steps below the precision of the parameters"
        )


def check_measured_throughout(evidence: Evidence) -> None:
    """Raise `DoesNotApply` if probes miss the end, or parameters moved between two steps."""
    if not math.isfinite(evidence.final_sq_distance):
        raise DoesNotApply(
            "the distance of the last iterate to the reference is not a finite number"
        )
    off = evidence.gradient_difference
    if off is not None and off > SAME_GRADIENT:
        raise DoesNotApply(
            "the gradient that the optimizer got differs from that of the measured loss by "
            f"{off:.2g} of its length: a callback or a hook changed the gradient (noise, clipping, "
            "centering), or loss= is not the loss that was trained"
        )
    idle, moved = evidence.run.get("idle_steps"), evidence.run.get("moved_between")
    if idle:
        raise DoesNotApply(
            f"{idle} of {evidence.run['steps']} steps had no gradient: training_step returned "
            "None, or a callback skipped the backward pass"
        )
    stride, last = evidence.run.get("stride"), int(evidence.spans[-1])
    if stride is not None and last > max(2 * int(stride), 0.05 * evidence.steps):
        raise DoesNotApply(f"the last probe is {last} steps before the end of training")
    if moved:
        raise DoesNotApply(
            f"after the step of {moved} probes something else moved the parameters (a hook, an "
            "averaging callback); the proof is about the optimizer's steps only"
        )
    if evidence.jump is not None:
        raise DoesNotApply(
            f"a hook moved the parameters after step {evidence.jump}; the proof is about the "
            "optimizer's steps only"
        )


def check_infimum(evidence: Evidence) -> None:
    """Raise `DoesNotApply` if a loss at or below its infimum has a gradient that is not zero."""
    if math.isinf(evidence.smoothness):
        raise DoesNotApply(
            "a loss is at loss_infimum, or below, while its gradient is not zero: pass a smaller "
            "loss_infimum="
        )


def root_of_step(evidence: Evidence) -> Tensor:
    """Return √(k + 1) at each probe; k counts from x_0."""
    return (evidence.column("step") - evidence.first_step + 1).sqrt()


def said_clipping(evidence: Evidence) -> str:
    """Return a clause about gradient clipping, if there was any."""
    return ", gradients were clipped" if evidence.run.get("gradient_clipping") is not None else ""


def percent(share: float) -> str:
    """Return a share as a percentage.

    Example:
        >>> percent(0.0123)
        '1.23 %'
    """
    return f"{100 * share:.3g} %"
