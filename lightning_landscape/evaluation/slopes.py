"""Losses of single samples, and their slopes <∇f_j(x_k), x_k − x_p>, without a gradient of each.

All samples are differentiated at once in one direction, by forward mode. Parts without a forward
derivative (custom functions, some fused kernels, sharded parameters) are differentiated by central
differences of two widths; their disagreement estimates the error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_landscape.evaluation.evaluator import Evaluator
from lightning_landscape.store.freezing import Frozen
from lightning_landscape.store.record import Record
from lightning_landscape.training.failures import FailedElsewhere, said

FORWARD, DIFFERENCES = "forward mode", "finite difference"


class Slopes(NamedTuple):
    """The samples of one micro-batch; each float64, shape ``(B,)``."""

    losses: Tensor
    """f_j(x_k)"""
    products: Tensor
    """<∇f_j(x_k), x_k − x_p>"""
    error: Tensor
    """About the largest error of each product; 0 where they are exact to rounding"""


class Line(NamedTuple):
    """The line from x_k to x_p."""

    x: dict[str, Tensor]
    direction: dict[str, Tensor]
    """v = x_k − x_p by name"""
    length: float = 0.0
    """‖v‖, where differences are taken"""
    step: float = 0.0
    """h, the width of the central difference along v/‖v‖"""


class SampleSlopes:
    """Differentiates the losses of single samples; inside of `Evaluator.session`.

    Args:
        evaluator: evaluates records; its loss returns one number a sample.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator, self._replay = evaluator, evaluator.replay
        sharded = evaluator.training.sharded
        self.method: str | None = DIFFERENCES if sharded else None
        """None before the first record"""
        self.reason = "forward mode does not go through sharded parameters" if sharded else None
        """Why differences are taken"""
        self.rounding = 1.0
        """Largest relative rounding error of the forward pass"""
        self._graph = False
        """Whether forward mode runs while autograd records"""

    def line(self, record: Record, reference: Mapping[str, Tensor]) -> Line:
        """Return the line from x_k to x_p, along the parameters that had a gradient."""
        training = self._evaluator.training
        own = None if record.gradient is None else sorted(record.gradient.raw)
        names = own if training.sharded else training.processes.of_first(lambda: own)
        here, device = self._evaluator.iterate(record), training.module.device
        x = {name: here[name].to(device) for name in names or []}
        working = {n: v.double() if v.dtype == torch.float64 else v.float() for n, v in x.items()}
        direction = {name: value - reference[name].to(value) for name, value in working.items()}
        self.rounding = self._replay.rounding(x.values()) if x else 1.0
        line = Line(x, direction)
        if self.method is None:
            self._decide(record, line)
        return self._with_width(line) if self.method == DIFFERENCES else line

    def at(self, record: Record, moment: Frozen, line: Line) -> Slopes:
        """Return losses and slopes of the samples of one micro-batch, at x_k."""
        if self.method == DIFFERENCES:
            return self._by_differences(record, moment, line)
        return self._by_forward_mode(record, moment, line, self._graph)

    def losses(
        self, record: Record, moment: Frozen, x: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return f_j(x) of one micro-batch; at x_k by default."""
        with self._evaluator.at(record, x):
            return self._replay.sample_losses(moment)

    # -------------------------------------------------------------------------------- the method

    def _decide(self, record: Record, line: Line) -> None:
        """Choose forward mode if it gives the same losses in all processes; else differences."""
        moment, problem = record.moments[0], None
        for graph in sorted({self._replay.gradients_enabled, True}):
            try:
                with self._evaluator.training.processes.agreed():
                    losses = self._by_forward_mode(record, moment, line, graph).losses
            except (
                RuntimeError,
                FailedElsewhere,
            ) as error:  # NotImplementedError is a RuntimeError
                first_line = said(error).partition("\n")[0].partition(". ")[0].rstrip(".")
                problem = problem or first_line
                continue
            if self._are_the_same(self.losses(record, moment), losses):
                self._graph, self.method = graph, FORWARD
                return
            problem = problem or (
                "other losses: kernels with forward derivatives draw other random numbers"
            )
        self.method, self.reason = DIFFERENCES, f"forward mode failed: {problem}"
        rank_zero_warn(
            f"PerSample takes finite differences, because forward mode failed: {problem}. "
            "summary.json has an estimate of their largest error"
        )

    def _are_the_same(self, plain: Tensor, losses: Tensor) -> bool:
        near = self.rounding**0.5
        same = len(plain) == len(losses) and torch.allclose(
            plain, losses, rtol=near, atol=near, equal_nan=True
        )
        return self._evaluator.training.processes.everywhere(same)

    def _by_forward_mode(self, record: Record, moment: Frozen, line: Line, graph: bool) -> Slopes:
        with self._evaluator.at(record):
            found = self._replay.sample_derivatives(moment, line.direction, with_graph=graph)
        return Slopes(*found, torch.zeros_like(found[1]))

    # ------------------------------------------------------------------------------- differences

    def _with_width(self, line: Line) -> Line:
        sq_change = self._evaluator.training.products.sq_change
        length, size = (sq_change(v, 1.0, {}, 1.0) ** 0.5 for v in (line.direction, line.x))
        # truncation falls with h², rounding grows with 1/h: they meet at the cube root of the
        # rounding error, relative to ‖x‖
        return line._replace(length=length, step=self.rounding ** (1 / 3) * max(size, length))

    def _by_differences(self, record: Record, moment: Frozen, line: Line) -> Slopes:
        r"""Return slopes from the losses at four points of the line beside x_k.

        .. math:: (4 D(h) - D(2h))/3, \qquad D(h) = (f(x+h\hat v) - f(x-h\hat v)) \|v\|/(2h)

        The error is estimated by three terms: :math:`|D(h) - D(2h)|`; rounding; and
        :math:`|2S(h) - S(2h)|` with
        :math:`S(h) = (f(x+h\hat v) - 2f(x) + f(x-h\hat v)) \|v\|/h`. A kink near x moves D(h) and
        D(2h) alike. S is proportional to h where f is smooth, and the jump of the slope at a kink.
        """
        losses = self.losses(record, moment)
        if not line.length:
            return Slopes(losses, torch.zeros_like(losses), torch.zeros_like(losses))
        slopes, bends = [], []
        for width in (line.step, 2 * line.step):
            shares = (sign * width / line.length for sign in (1, -1))
            ahead, behind = (self._along(record, moment, line, share) for share in shares)
            slopes.append((ahead - behind) * (line.length / (2 * width)))
            bends.append((ahead - 2 * losses + behind) * (line.length / width))
        largest = float(losses.abs().max())
        rounding = 8 * self.rounding * largest * line.length / line.step
        error = (slopes[0] - slopes[1]).abs() + (2 * bends[0] - bends[1]).abs() + rounding
        return Slopes(losses, (4 * slopes[0] - slopes[1]) / 3, error)

    def _along(self, record: Record, moment: Frozen, line: Line, share: float) -> Tensor:
        """Return the losses at x_k + share · v."""
        moved = {n: x + (share * line.direction[n]).to(x) for n, x in line.x.items()}
        return self.losses(record, moment, {**self._evaluator.iterate(record), **moved})
