"""The facts of a run that theorems use, from its table of probes and its summary."""

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
"""Largest R, as a share of the movement along the gradient, of a run that moves along it"""

FLOAT32_ROUNDING = float(torch.finfo(torch.float32).eps)
"""Losses of this size, relative to the largest one, are rounding"""

STEP_TOLERANCE = 1e-3
"""Largest relative difference of a measured step size from a rule, beside its own rounding"""


class Evidence:
    """A measured run, for theorems.

    Args:
        table: its table of probes; rows with unknown reference columns are left out.
        run: the ``run`` part of its summary.
    """

    def __init__(self, table: ProbeTable, run: Mapping[str, Any]) -> None:
        self.table = table.evaluated
        self.run = run

    def column(self, name: str) -> Tensor:
        """Return a column of the table as float64, shape ``(n,)``."""
        return self.table.column(name)

    # the landscape

    @cached_property
    def feasible(self) -> FeasibleSet:
        """All pairs with which the α-β-condition holds at every probe."""
        return feasible_set(
            **self.table.columns("loss", "reference_loss", "inner_product", "loss_infimum")
        )

    @cached_property
    def full_batch(self) -> bool:
        """Whether all probes are of one function: their losses at x_p and at x_0 are equal.

        Losses are equal up to rounding, relative to their own size and to the drop from x_0 to
        x_p. Equal losses prove nothing in two cases, where the answer is no unless a step takes
        all batches of an epoch: if all losses are at the infimum, because the model interpolates;
        and if the batches have an order and every probe falls on the same batch of an epoch.
        """
        starts, ends = self.column("initial_loss"), self.column("reference_loss")
        starts = starts[~starts.isnan()]
        if len(starts) < 2 or len(ends) < 2:
            return False
        drop = float((starts.mean() - ends.mean()).abs())
        if not (_equal(starts, drop) and _equal(ends, drop)):
            return False
        if self.steps_per_epoch == 1:
            return True
        in_order = self.run.get("sampling") not in ("reshuffled", "with_replacement")
        if in_order and self.steps_per_epoch:
            places = {int(step) % self.steps_per_epoch for step in self.column("step")}
            if len(places) == 1:
                return False
        return bool((ends > self.column("loss_infimum")).any())

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of an epoch; None if the number of its batches is unknown."""
        batches = self.run.get("batches_per_epoch")
        if not isinstance(batches, int):
            return None
        return max(1, math.ceil(batches / int(self.run["accumulate_grad_batches"])))

    @cached_property
    def rounded_away(self) -> Tensor:
        """Mask of probes whose loss is at the infimum to float32 rounding, shape ``(n,)``.

        The rounding is that of the largest loss. In float32 a tiny cross-entropy is 0, although its
        gradient is not.
        """
        gap = self.column("loss") - self.column("loss_infimum")
        return (gap >= 0) & (gap <= self._rounding)

    @property
    def loss_infima(self) -> Tensor:
        """The infima l of the probes; without a probe, the l that the monitor was given."""
        stated = self.run.get("loss", {}).get("infimum")
        if len(self.table) or stated is None:
            return self.column("loss_infimum")
        return torch.tensor([stated], dtype=torch.float64)

    @property
    def smoothness(self) -> float:
        """L: the largest ‖g‖²/(2(a − l)) over the probes, a lower estimate.

        A loss that rounds to the infimum does not count, because its a − l is unknown. L is
        infinite if such a loss contradicts the other probes even with the largest a − l that
        rounds to zero, or if a loss is below the infimum.
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
        """L of gradient descent: the largest ‖∇f‖²/(2(f − f(x_p))) of probes with f > f(x_p)."""
        above = self.column("loss") > self.column("reference_loss")
        columns = self.table.columns("grad_sq_norm", "loss", "reference_loss")
        ratio = columns["grad_sq_norm"] / (2 * (columns["loss"] - columns["reference_loss"]))
        return float(ratio[above].max()) if bool(above.any()) else 0.0

    @property
    def interpolation_error(self) -> float:
        """σ²: the mean of b − l."""
        columns = self.table.columns("reference_loss", "loss_infimum")
        return float(F.interpolation_error(**columns)[0])

    @property
    def sq_distance(self) -> float:
        """D_0²."""
        return float(self.column("sq_distance")[0])

    @property
    def max_sq_distance(self) -> float:
        """The largest D_k² over the probes, a lower estimate of the largest over all steps."""
        return float(self.column("sq_distance").max())

    @property
    def grad_bound(self) -> float:
        """The largest ‖g_k‖ over the probes, a lower estimate of the largest over all steps."""
        return math.sqrt(float(self.column("grad_sq_norm").max()))

    # the steps

    @property
    def first_step(self) -> int:
        """Step of the first probe, whose iterate is x_0."""
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
        """Return the spans within the first steps after x_0; 0 for later probes."""
        offsets = (self.column("step") - self.first_step).clamp(max=steps)
        return torch.cat([offsets, offsets.new_tensor([steps])]).diff().clamp(min=0)

    @cached_property
    def weights(self) -> Tensor:
        """Weight of each probe in an estimated sum over steps, shape ``(n,)``."""
        return interpolation_weights(self.spans)

    @property
    def every_step(self) -> bool:
        """Whether every step from x_0 on is a probe."""
        return len(self.table) == self.steps

    @cached_property
    def moving(self) -> Tensor:
        """Mask of probes with a gradient, and so with a step size, shape ``(n,)``."""
        return self.column("grad_sq_norm") > 0

    @cached_property
    def residual_bound(self) -> float:
        """R = Σ (½‖e_k‖² + ‖e_k‖ D_k), estimated from the probes."""
        rest, distance = self.column("step_residual"), self.column("sq_distance").sqrt()
        return float((self.weights * (rest.square() / 2 + rest * distance)).sum())

    @cached_property
    def residual_share(self) -> float:
        """R as a share of the movement along the gradient: ``R/(|D_0² − D_K²|/2 + ½ Σ η²G²)``."""
        squares = self.column("step_size").square() * self.column("grad_sq_norm")
        approach = abs(self.sq_distance - self.final_sq_distance) / 2
        moved = approach + float((self.weights * squares).sum()) / 2
        return self.residual_bound / moved if moved else (math.inf if self.residual_bound else 0.0)

    @property
    def final_sq_distance(self) -> float:
        """D_K²."""
        value = self.run["reference"].get("final_sq_distance")
        return math.nan if value is None else float(value)

    @cached_property
    def jump(self) -> int | None:
        """Step after which something else moved the parameters; None if no probe shows it.

        If consecutive steps are probes, then ``D_{k+1}² = D_k² − 2 η_k p_k + η_k² G_k²`` up to
        ``2 ‖e_k‖ D_k + ‖e_k‖²``, unless a hook moved the parameters.
        """
        before, rest = self.column("sq_distance"), self.column("step_residual")
        along = 2 * self.column("step_size") * self.column("inner_product")
        squares = self.column("step_size").square() * self.column("grad_sq_norm")
        after = torch.cat([before[1:], before.new_tensor([self.final_sq_distance])])
        size = before + after + along.abs() + squares
        allowed = 2 * rest * before.sqrt() + rest.square() + 1e-4 * size
        off = (before - along + squares - after).abs() > allowed
        rows = (off & (self.spans == 1)).nonzero().flatten()
        return int(self.table[int(rows[0])].step) if len(rows) else None

    def departure(self, expected: Tensor) -> int | None:
        """Return the step of the first probe with an unexpected step size; None if there is none.

        A measured step size is uncertain by about ‖e_k‖/‖g_k‖, because parameters are rounded.
        """
        found, squares = self.column("step_size"), self.column("grad_sq_norm")
        rounding = self.column("step_residual") / squares.sqrt()
        off = (found - expected).abs() > STEP_TOLERANCE * expected.abs() + rounding
        rows = (off & self.moving).nonzero().flatten()
        return int(self.table[int(rows[0])].step) if len(rows) else None

    # the method

    @property
    def optimizer(self) -> str:
        """Class of the optimizer."""
        return str(self.run["optimizer"]["class"])

    def is_from(self, package: str) -> bool:
        """Return whether the optimizer's class is of a package; yes if the run does not say."""
        module = str(self.run["optimizer"].get("module", package))
        return module == package or module.startswith(f"{package}.")

    def option(self, name: str) -> Any:
        """Return an option of the optimizer: of its first group, else its default, else None."""
        groups = self.run["optimizer"].get("groups") or [{}]
        return groups[0].get(name, self.run["optimizer"]["defaults"].get(name))

    @property
    def learning_rate(self) -> float:
        """The optimizer's learning rate before any scheduler changed it."""
        initial = self.option("initial_lr")
        return self.number("lr") if initial is None else float(initial)

    def number(self, name: str) -> float:
        """Return an option of the optimizer that is a number.

        Raises:
            ValueError: if there is none.
        """
        value = self.option(name)
        if not isinstance(value, (int, float)):
            raise ValueError(
                f"the option `{name}` of {self.optimizer} is {value!r}; supported are numbers"
            )
        return float(value)

    @property
    def learning_rates(self) -> tuple[float, float] | None:
        """Smallest and largest lr over the probes; None if unknown, or if groups differ."""
        seen = self.run.get("learning_rates")
        if seen is None or seen["min"] is None:
            return None
        return float(seen["min"]), float(seen["max"])

    @property
    def gradient_difference(self) -> float | None:
        """Relative difference of the optimizer's gradients from the loss's; None if unknown."""
        difference = self.run.get("fidelity", {}).get("gradient")
        return None if difference is None else float(difference)

    @property
    def several_rates(self) -> bool:
        """Whether parameter groups have different learning rates; no if the run does not say."""
        groups = self.run["optimizer"].get("groups") or []
        return len({str(group["lr"]) for group in groups if "lr" in group}) > 1

    @property
    def declared(self) -> list[str]:
        """Options of the optimizer that turn its steps off the gradient, as ``name=value``."""
        defaults = self.run["optimizer"]["defaults"]
        groups = self.run["optimizer"].get("groups") or [{}]
        found = []
        for name in ("momentum", "weight_decay"):
            values = [{**defaults, **group}.get(name) for group in groups]
            found += sorted(
                {f"{name}={value}" for value in values if value not in (None, 0, False)}
            )
        return found


def _equal(values: Tensor, drop: float) -> bool:
    """Return whether losses are equal up to rounding, relative to their size and to the drop."""
    spread, size = float(values.max() - values.min()), float(values.abs().max())
    return not (spread > 1e-5 * size or (drop > 0 and spread > 1e-3 * drop))


def interpolation_weights(spans: Tensor) -> Tensor:
    """Return the weights of probes in a sum over all steps, with straight lines between probes.

    Args:
        spans: h_k, steps from each probe to the next, shape ``(n,)``. After the last probe its
            value stays. A probe with a span of 0 does not count.

    Example:
        >>> import torch
        >>> spans = torch.tensor([3.0, 1.0, 2.0])  # a, (2a + b)/3, (a + 2b)/3, b, c, c
        >>> interpolation_weights(spans)
        tensor([2., 2., 2.])
    """
    left, right = (spans + 1) / 2, (spans - 1).clamp(min=0) / 2
    weights = torch.where(spans > 0, left, 0.0)
    last = int((spans > 0).nonzero().max()) if bool((spans > 0).any()) else 0
    weights[last] = spans[last]
    weights[1 : last + 1] += right[:last]
    return weights
