"""What theorems ask of a run, read off its table of probes and the ``run`` part of its summary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_landscape import functional as F
from lightning_landscape.functional._envelope import FeasibleSet
from lightning_landscape.functional.alpha_beta import feasible_set
from lightning_landscape.probes import ProbeTable

RESIDUAL_SHARE = 0.01
"""A run moves along its mini-batch gradients if what of its steps did not is at most this share of what did"""

FLOAT32_ROUNDING = float(torch.finfo(torch.float32).eps)
"""Losses of this size beside the largest one are rounding"""

STEP_TOLERANCE = 1e-3
"""Relative difference from a rule up to which measured step sizes follow it, beside their own rounding"""


class Evidence:
    """A measured run as theorems see it.

    Args:
        table: its table of probes; rows whose reference columns are not known are left out.
        run: the ``run`` part of its summary.
    """

    def __init__(self, table: ProbeTable, run: Mapping[str, Any]) -> None:
        self.table = table.evaluated
        self.run = run

    def column(self, name: str) -> Tensor:
        """Return a column of the table as float64, shape ``(n,)``."""
        return self.table.column(name)

    # ----------------------------------------------------------------------------------------------------- the landscape

    @cached_property
    def feasible(self) -> FeasibleSet:
        """All pairs with which the α-β-condition holds at every probe."""
        return feasible_set(
            **self.table.columns("loss", "reference_loss", "inner_product", "loss_infimum")
        )

    @cached_property
    def full_batch(self) -> bool:
        """Whether every probe is of one and the same function: equal losses at x_p, and at x_0, to rounding.

        Equal to rounding of their own size, and beside the drop between the two. Losses that are all at the infimum say
        nothing (a model that interpolates), nor do those of one and the same batch of every epoch, which a stride may come upon
        where batches have an order: then an epoch must also be known to have no more batches than a step takes.
        """
        starts, ends = self.column("initial_loss"), self.column("reference_loss")
        starts = starts[~starts.isnan()]
        if len(starts) < 2 or len(ends) < 2:
            return False
        drop = (starts.mean() - ends.mean()).abs()
        for values in (starts, ends):
            spread = values.max() - values.min()
            if bool(spread > 1e-5 * values.abs().max()) or (
                bool(drop > 0) and bool(spread > 1e-3 * drop)
            ):
                return False
        if self.steps_per_epoch == 1:
            return True
        in_order = self.run.get("sampling") not in ("reshuffled", "with_replacement")
        steps = self.column("step").long()
        if (
            self.steps_per_epoch
            and in_order
            and len(set((steps % self.steps_per_epoch).tolist())) == 1
        ):
            return False
        return bool((ends > self.column("loss_infimum")).any())

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimiser steps of an epoch, where the number of its batches is known."""
        batches = self.run.get("batches_per_epoch")
        if not isinstance(batches, int):
            return None
        return max(1, math.ceil(batches / int(self.run["accumulate_grad_batches"])))

    @cached_property
    def rounded_away(self) -> Tensor:
        """Which probes' losses are at the infimum to float32 rounding of the largest loss, bool, shape ``(n,)``.

        Cross-entropy in float32 is 0 where the loss is tiny and its gradient is not.
        """
        gap = self.column("loss") - self.column("loss_infimum")
        return (gap >= 0) & (gap <= self._rounding)

    @property
    def loss_infima(self) -> Tensor:
        """The infima l of the probes; before there is one, the l that the monitor was given."""
        stated = self.run.get("loss", {}).get("infimum")
        return (
            self.column("loss_infimum")
            if len(self.table) or stated is None
            else torch.tensor([stated]).double()
        )

    @property
    def smoothness(self) -> float:
        """L: the largest over the probes of ‖g‖²/(2(a − l)), a lower estimate; a − l as large as rounding may have made it 0.

        Infinite where a loss is below the infimum, or so near to it that only rounding can make its gradient possible.
        """
        columns = self.table.columns("grad_sq_norm", "loss", "loss_infimum")
        own = F.smoothness_ratio(**columns)
        known = float(own[~self.rounded_away].max()) if not bool(self.rounded_away.all()) else 0.0
        least = own[self.rounded_away].minimum(
            self.column("grad_sq_norm")[self.rounded_away] / (2 * self._rounding)
        )
        return known if bool((least <= known).all()) else math.inf

    @property
    def _rounding(self) -> float:
        return FLOAT32_ROUNDING * float((self.column("loss") - self.column("loss_infimum")).max())

    @property
    def full_batch_smoothness(self) -> float:
        """L of gradient descent: the largest ‖∇f‖²/(2(f − f(x_p))) over the probes above the reference."""
        above = self.column("loss") > self.column("reference_loss")
        columns = self.table.columns("grad_sq_norm", "loss", "reference_loss")
        ratio = columns["grad_sq_norm"] / (2 * (columns["loss"] - columns["reference_loss"]))
        return float(ratio[above].max()) if bool(above.any()) else 0.0

    @property
    def interpolation_error(self) -> float:
        """σ²: the mean of b − l."""
        return float(
            F.interpolation_error(**self.table.columns("reference_loss", "loss_infimum"))[0]
        )

    @property
    def sq_distance(self) -> float:
        """D_0²."""
        return float(self.column("sq_distance")[0])

    @property
    def max_sq_distance(self) -> float:
        """The largest D_k² over the probes, a lower estimate of that over every step."""
        return float(self.column("sq_distance").max())

    @property
    def grad_bound(self) -> float:
        """The largest ‖g_k‖ over the probes, a lower estimate of that over every step."""
        return math.sqrt(float(self.column("grad_sq_norm").max()))

    # ------------------------------------------------------------------------------------------------------------- steps

    @property
    def first_step(self) -> int:
        """The step of the first probe: its iterate is x_0."""
        return int(self.table[0].step)

    @property
    def steps(self) -> int:
        """K: updates from x_0 on."""
        return int(self.run["steps"]) - self.first_step

    @cached_property
    def spans(self) -> Tensor:
        """Steps from each probe to the next, and from the last one to the end, shape ``(n,)``."""
        return self.spans_until(self.steps)

    def spans_until(self, steps: int) -> Tensor:
        """Return the spans within the first steps from x_0 on; 0 for later probes."""
        offsets = (self.column("step") - self.first_step).clamp(max=steps)
        return torch.cat([offsets, offsets.new_tensor([steps])]).diff().clamp(min=0)

    @cached_property
    def weights(self) -> Tensor:
        """How much each probe counts in an estimate of a sum over steps, shape ``(n,)``; 1 where every step is a probe."""
        return interpolation_weights(self.spans)

    @property
    def every_step(self) -> bool:
        """Whether every step from x_0 on is a probe."""
        return len(self.table) == self.steps

    @cached_property
    def moving(self) -> Tensor:
        """Which probes have a gradient, and so a step size, bool, shape ``(n,)``."""
        return self.column("grad_sq_norm") > 0

    @cached_property
    def residual_bound(self) -> float:
        """R = Σ (½‖e_k‖² + ‖e_k‖ D_k), estimated from the probes."""
        rest, distance = self.column("step_residual"), self.column("sq_distance").sqrt()
        return float((self.weights * (rest.square() / 2 + rest * distance)).sum())

    @cached_property
    def residual_share(self) -> float:
        """R beside what the steps along the gradient did: ``R / (|D_0² − D_K²|/2 + ½ Σ η_k² G_k²)``."""
        squares = self.column("step_size").square() * self.column("grad_sq_norm")
        moved = (
            abs(self.sq_distance - self.final_sq_distance) / 2
            + float((self.weights * squares).sum()) / 2
        )
        return self.residual_bound / moved if moved else (math.inf if self.residual_bound else 0.0)

    @property
    def final_sq_distance(self) -> float:
        """D_K²."""
        value = self.run["reference"].get("final_sq_distance")
        return math.nan if value is None else float(value)

    @cached_property
    def jump(self) -> int | None:
        """Step after which the parameters were not where the step had left them: a hook moved them. None if seen nowhere.

        ``D_{k+1}² = D_k² − 2 η_k p_k + η_k² G_k²`` up to ``2 ‖e_k‖ D_k + ‖e_k‖²``, where consecutive steps are probes.
        """
        before, rest = self.column("sq_distance"), self.column("step_residual")
        along = 2 * self.column("step_size") * self.column("inner_product")
        squares = self.column("step_size").square() * self.column("grad_sq_norm")
        after = torch.cat([before[1:], before.new_tensor([self.final_sq_distance])])
        size = before + after + along.abs() + squares
        off = (
            before - along + squares - after
        ).abs() > 2 * rest * before.sqrt() + rest.square() + 1e-4 * size
        rows = (off & (self.spans == 1)).nonzero().flatten()
        return int(self.table[int(rows[0])].step) if len(rows) else None

    def departure(self, expected: Tensor) -> int | None:
        """Return the step of the first probe whose step size is not the expected one up to its rounding; None if all are.

        A step size is read off the parameters, which round: its uncertainty is at most about ‖e_k‖/‖g_k‖.
        """
        found, squares = self.column("step_size"), self.column("grad_sq_norm")
        rounding = self.column("step_residual") / squares.sqrt()
        off = (found - expected).abs() > STEP_TOLERANCE * expected.abs() + rounding
        rows = (off & self.moving).nonzero().flatten()
        return int(self.table[int(rows[0])].step) if len(rows) else None

    # --------------------------------------------------------------------------------------------------------- the method

    @property
    def optimizer(self) -> str:
        """Class of the optimiser."""
        return str(self.run["optimizer"]["class"])

    def is_from(self, package: str) -> bool:
        """Return whether the optimiser's class is of a package, as far as the run says."""
        module = str(self.run["optimizer"].get("module", package))
        return module == package or module.startswith(f"{package}.")

    def option(self, name: str) -> Any:
        """Return an option of the optimiser's first parameter group, its default where groups were not recorded, or None."""
        groups = self.run["optimizer"].get("groups") or [{}]
        return groups[0].get(name, self.run["optimizer"]["defaults"].get(name))

    @property
    def learning_rate(self) -> float:
        """The optimiser's learning rate before any scheduler changed it."""
        initial = self.option("initial_lr")
        return self.number("lr") if initial is None else float(initial)

    def number(self, name: str) -> float:
        """Return an option of the optimiser that is a number.

        Raises:
            ValueError: if there is none.
        """
        value = self.option(name)
        if not isinstance(value, (int, float)):
            raise ValueError(
                f"{self.optimizer} has no option `{name}` that is a number, but {value!r}"
            )
        return float(value)

    @property
    def learning_rates(self) -> tuple[float, float] | None:
        """The smallest and the largest learning rate over the probes; None where parameter groups had several, or unknown."""
        seen = self.run.get("learning_rates")
        return (
            None
            if seen is None or seen["min"] is None
            else (float(seen["min"]), float(seen["max"]))
        )

    @property
    def gradient_difference(self) -> float | None:
        """How far gradients that the optimiser got were from those of the loss, relatively; None if not compared."""
        difference = self.run.get("fidelity", {}).get("gradient")
        return None if difference is None else float(difference)

    @property
    def several_rates(self) -> bool:
        """Whether parameter groups have learning rates of their own, as far as the run says."""
        groups = self.run["optimizer"].get("groups") or []
        return len({str(group["lr"]) for group in groups if "lr" in group}) > 1

    @property
    def declared(self) -> list[str]:
        """Options of the optimiser that add to its steps what is not along the gradient."""
        groups = self.run["optimizer"].get("groups") or [{}]
        options = [{**self.run["optimizer"]["defaults"], **group} for group in groups]
        return [
            f"{name}={value}"
            for name in ("momentum", "weight_decay")
            for value in sorted(
                {
                    str(option[name])
                    for option in options
                    if option.get(name) not in (None, 0, False)
                }
            )
        ]


def interpolation_weights(spans: Tensor) -> Tensor:
    """Return the weights with which values at probes, straight lines between them, sum up over every step.

    Args:
        spans: h_k, steps from each probe to the next, shape ``(n,)``; after the last one its value stays. A span of 0 is of
            a probe that does not count.

    Example:
        >>> import torch
        >>> interpolation_weights(torch.tensor([3.0, 1.0, 2.0]))  # a, (2a + b)/3, (a + 2b)/3, b, c, c
        tensor([2., 2., 2.])
    """
    left, right = (spans + 1) / 2, (spans - 1).clamp(min=0) / 2
    weights = torch.where(spans > 0, left, 0.0)
    last = int((spans > 0).nonzero().max()) if bool((spans > 0).any()) else 0
    weights[last] = spans[last]
    weights[1 : last + 1] += right[:last]
    return weights
