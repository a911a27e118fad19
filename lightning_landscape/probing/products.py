"""Inner products and norms over all parameters of a run: subtracted first, summed by blocks, blocks summed in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_landscape.probing.processes import Processes

_BLOCK = {"cpu": 1 << 17}  # elements worked on at a time, which bounds every temporary: on a CPU they stay in its cache
_OTHER_BLOCK = 1 << 22  # elsewhere it is the number of kernels that costs
_CANCELS = 1e-3  # a difference below this share of what it is the difference of is rounding in part
_PASSES = 4

_Parts = Iterator[tuple[str, tuple[Tensor | None, ...]]]
"""Parameter names, each with an addend of each sum, block by block"""


class StepMeasures(NamedTuple):
    """What one step of the optimiser looked like, in float64."""

    grad_sq_norm: float
    step_size: float
    residual: float


class Products:
    """Inner products over parameters by name, of which each process has all, or (FSDP2) a part.

    Args:
        processes: the processes among which parameters are sharded; None where each has them whole.
        shares: by name what part of a sum this process adds; of a parameter that several hold, each adds its share.
    """

    def __init__(self, processes: Processes | None = None, shares: Mapping[str, float] | None = None) -> None:
        self._processes, self._shares = processes, shares or {}

    @torch.no_grad()
    def step(
        self,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        gradient: Mapping[str, Tensor],
        factor: float,
        expected: float = 0.0,
    ) -> StepMeasures:
        r"""Measure G², η and the residual of a step, in one pass where η is about what was expected.

        .. math:: \eta = \langle x_k - x_{k+1}, g\rangle/G^2, \qquad \|x_k - x_{k+1} - \eta g\|

        With :math:`r = x_k - x_{k+1} - \eta_0 g` the former is :math:`\eta_0 + \langle r, g\rangle/G^2` and the square of the
        latter :math:`\|r\|^2 - \langle r, g\rangle^2/G^2`. Where that cancels, another pass starts from the η that was found.

        Args:
            before: x_k by name.
            after: x_{k+1} by name; the same names and shapes.
            gradient: g/factor by name; a name that is missing has no gradient, g = 0 there.
            factor: the number that turns ``gradient`` into g.
            expected: η_0; any number will do.

        Returns:
            G², η (0 where G = 0) and the residual.
        """
        guess = expected if math.isfinite(expected) else 0.0
        for _ in range(_PASSES):
            squares, products, rests = self._totals(3, _along(before, after, gradient, guess * factor))
            grad_sq_norm = squares * factor**2
            if not grad_sq_norm > 0:
                return StepMeasures(grad_sq_norm, 0.0, math.sqrt(rests))
            step_size = guess + products / (squares * factor)
            rest = rests - products * (products / squares)
            if not rest < _CANCELS * rests:
                return StepMeasures(grad_sq_norm, step_size, math.sqrt(rest))
            guess = step_size
        return StepMeasures(grad_sq_norm, step_size, math.sqrt(rests))  # r is rounding, as of a single parameter

    @torch.no_grad()
    def inner_product_and_distance(
        self, here: Mapping[str, Tensor], there: Mapping[str, Tensor], gradient: Mapping[str, Tensor], factor: float
    ) -> tuple[float, float]:
        r"""Measure ``<g, x − x_p>`` and ``‖x − x_p‖²``.

        Args:
            here: x by name.
            there: x_p by name; may hold more names than ``here``.
            gradient: g/factor by name; a name that is missing has no gradient, g = 0 there.
            factor: the number that turns ``gradient`` into g.

        Returns:
            The inner product and the squared distance.
        """
        products, squares = self._totals(2, _apart(here, there, gradient))
        return products * factor, squares

    @torch.no_grad()
    def sq_change(
        self, left: Mapping[str, Tensor], left_factor: float, right: Mapping[str, Tensor], right_factor: float
    ) -> float:
        r"""Measure ``‖left_factor · left − right_factor · right‖²``.

        Args:
            left: by name; a name that is missing on one side is zero there.
            left_factor: the number that multiplies it.
            right: by name.
            right_factor: the number that multiplies it.
        """
        (squares,) = self._totals(1, _changes(left, left_factor, right, right_factor))
        return squares

    def _totals(self, count: int, parts: _Parts) -> list[float]:
        """Return the sums over all parameters, of all processes.

        Args:
            count: how many sums there are.
            parts: yields, block by block, a parameter's name and its addends, one for each sum; None is zero.
        """
        columns: list[list[Tensor]] = [[] for _ in range(count)]
        with _without_autocast():
            for name, addends in parts:
                share = self._shares.get(name, 1.0)
                for column, addend in zip(columns, addends, strict=True):
                    if addend is not None:
                        column.append(addend if share == 1.0 else addend * share)
        sums = [float(torch.stack(column).sum(dtype=torch.float64)) if column else 0.0 for column in columns]
        if self._processes is None:
            return sums
        return [math.fsum(column) for column in zip(*self._processes.exchange(*sums), strict=True)]


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Keep autocast from rounding: under manual optimisation a step is measured inside of ``training_step``."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _along(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], gradient: Mapping[str, Tensor], step_size: float
) -> _Parts:
    """Yield the addends of ‖g‖², ⟨r, g⟩ and ‖r‖², where r = x_k − x_{k+1} − step_size · g."""
    for name, start in before.items():
        raw = gradient.get(name)
        for x, y, *g in _blocks(start, after[name], *(() if raw is None else (raw,))):
            rest = x - y
            if not g:
                yield name, (None, None, _dot(rest, rest))
                continue
            if step_size:
                rest -= step_size * g[0]
            yield name, (_dot(g[0], g[0]), _dot(rest, g[0]), _dot(rest, rest))


def _apart(here: Mapping[str, Tensor], there: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> _Parts:
    """Yield the addends of ⟨x − x_p, g⟩ and ‖x − x_p‖²."""
    for name, x in here.items():
        raw = gradient.get(name)
        for a, b, *g in _blocks(x, there[name], *(() if raw is None else (raw,))):
            difference = a - b
            yield name, (_dot(difference, g[0]) if g else None, _dot(difference, difference))


def _changes(left: Mapping[str, Tensor], left_factor: float, right: Mapping[str, Tensor], right_factor: float) -> _Parts:
    """Yield the addends of the squared norm of a difference."""
    for name in dict.fromkeys((*left, *right)):
        sides = [(side[name], factor) for side, factor in ((left, left_factor), (right, right_factor)) if name in side]
        for pieces in _blocks(*(tensor for tensor, _ in sides)):
            scaled = [piece * factor for piece, (_, factor) in zip(pieces, sides, strict=True)]
            difference = scaled[0] - scaled[1] if len(scaled) == 2 else scaled[0]
            yield name, (_dot(difference, difference),)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape into flat blocks in the working precision: float64 stays, all else becomes float32."""
    device = tensors[0].device
    flat = [tensor.detach().to(device).reshape(-1) for tensor in tensors]
    dtype = torch.float64 if flat[0].dtype == torch.float64 else torch.float32
    block = _BLOCK.get(device.type, _OTHER_BLOCK)
    for start in range(0, flat[0].numel(), block):
        yield tuple(piece[start : start + block].to(dtype) for piece in flat)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product of two flat blocks in the working precision.

    The products of a block are added up in a cascade, whose error grows with the logarithm of their number; that of a BLAS dot
    product grows with the number itself, and equal terms drift.
    """
    return (left * right).sum()
