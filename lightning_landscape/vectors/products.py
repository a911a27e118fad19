"""Inner products and norms over all parameters of a run: subtracted first, summed by blocks, blocks summed in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = {
    "cpu": 1 << 17
}  # elements worked on at a time, which bounds every temporary: on a CPU they stay in its cache
_OTHER_BLOCK = 1 << 22  # elsewhere it is the number of kernels that costs
_SMALL = 8  # tensors below this part of a block are joined first: of them it is the number of operations that costs
_CANCELS = 1e-2  # a difference below this share of what it is the difference of is rounding in part
_PASSES = 4

Exchange = Callable[..., list[tuple[float, ...]]]
"""Takes this process's numbers and returns those of each process"""
_Block = tuple[Tensor, ...]
"""Flat pieces of one length, one of each side"""
_Addends = Callable[..., _Block]
"""From memory to work in and the pieces of a block to its addend of each sum"""


class StepMeasures(NamedTuple):
    """What one step of the optimiser looked like, in float64."""

    grad_sq_norm: float
    step_size: float
    residual: float


class Products:
    """Inner products over parameters by name, of which each process has all, or (FSDP2) a part.

    Args:
        exchange: gives each process the numbers of all, where parameters are sharded. None: every
            process has them whole.
        shares: by name, the factor of this process's part in a sum over all processes: 1 over the
            number of processes that hold the same elements.
    """

    def __init__(
        self, exchange: Exchange | None = None, shares: Mapping[str, float] | None = None
    ) -> None:
        self._exchange, self._shares = exchange, shares or {}
        self._memory: dict[torch.dtype, _Block] = {}
        """To work in, on a CPU: new memory is handed out page by page, which takes longer than to compute what goes there"""

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

        Raises:
            KeyError: if x_{k+1} lacks a name.
        """
        after = {
            name: after[name] for name in before
        }  # there must be all of them: only a gradient may lack some
        guess = expected if math.isfinite(expected) else 0.0
        for _ in range(_PASSES):
            along = functools.partial(_along, guess * factor)
            squares, products, rests = self._totals(3, along, before, (before, after, gradient))
            grad_sq_norm = squares * factor**2
            if not grad_sq_norm > 0:
                return StepMeasures(grad_sq_norm, 0.0, math.sqrt(rests))
            step_size = guess + products / (squares * factor)
            rest = rests - products * (products / squares)
            if not rest < _CANCELS * rests:
                return StepMeasures(grad_sq_norm, step_size, math.sqrt(rest))
            guess = step_size
        return StepMeasures(
            grad_sq_norm, step_size, math.sqrt(rests)
        )  # r is rounding, as of a single parameter

    @torch.no_grad()
    def inner_product_and_distance(
        self,
        here: Mapping[str, Tensor],
        there: Mapping[str, Tensor],
        gradient: Mapping[str, Tensor],
        factor: float,
    ) -> tuple[float, float]:
        r"""Measure ``<g, x − x_p>`` and ``‖x − x_p‖²``.

        Args:
            here: x by name.
            there: x_p by name; may hold more names than ``here``.
            gradient: g/factor by name; a name that is missing has no gradient, g = 0 there.
            factor: the number that turns ``gradient`` into g.

        Returns:
            The inner product and the squared distance.

        Raises:
            KeyError: if x_p lacks a name.
        """
        there = {name: there[name] for name in here}
        products, squares = self._totals(2, _apart, here, (here, there, gradient))
        return products * factor, squares

    @torch.no_grad()
    def sq_change(
        self,
        left: Mapping[str, Tensor],
        left_factor: float,
        right: Mapping[str, Tensor],
        right_factor: float,
    ) -> float:
        r"""Measure ``‖left_factor · left − right_factor · right‖²``.

        Args:
            left: by name; a name that is missing on one side is zero there.
            left_factor: the number that multiplies it.
            right: by name.
            right_factor: the number that multiplies it.
        """
        change = functools.partial(_change, left_factor, right_factor)
        (squares,) = self._totals(1, change, {**left, **right}, (left, right))
        return squares

    def _totals(
        self,
        count: int,
        addends: _Addends,
        names: Iterable[str],
        sides: Sequence[Mapping[str, Tensor]],
    ) -> list[float]:
        """Return the sums over all parameters, of all processes.

        Args:
            count: how many sums there are.
            addends: gives an addend of each, block by block.
            names: of the parameters.
            sides: tensors by name; one that a side lacks is zero.
        """
        found: list[Tensor] = []
        with _without_autocast():
            for share, block in self._blocks(names, sides):
                new = addends(self._memory_for(block[0]), *block)
                found += new if share == 1.0 else [addend * share for addend in new]
        sums = (
            torch.stack(found).view(-1, count).sum(0, dtype=torch.float64).tolist()
            if found
            else [0.0] * count
        )
        if self._exchange is None:
            return sums
        return [math.fsum(column) for column in zip(*self._exchange(*sums), strict=True)]

    def _blocks(
        self, names: Iterable[str], sides: Sequence[Mapping[str, Tensor]]
    ) -> Iterator[tuple[float, _Block]]:
        """Yield blocks in the working precision, each with this process's share: large tensors in pieces, small ones joined."""
        small: dict[tuple[float, torch.device, torch.dtype], list[_Block]] = {}
        for name in names:
            flat, share = _flat([side.get(name) for side in sides]), self._shares.get(name, 1.0)
            first, dtype, most = flat[0], _working(flat[0].dtype), _most(flat[0].device)
            if first.numel() < most // _SMALL:
                small.setdefault((share, first.device, dtype), []).append(flat)
                continue
            for pieces in zip(*(torch.split(side, most) for side in flat), strict=True):
                yield (
                    share,
                    tuple(piece if piece.dtype == dtype else piece.to(dtype) for piece in pieces),
                )
        for (share, device, dtype), tensors in small.items():
            for group in _grouped(tensors, _most(device)):
                yield share, tuple(torch.cat(side).to(dtype) for side in zip(*group, strict=True))

    def _memory_for(self, piece: Tensor) -> _Block:
        """Return two rows of the length of a piece."""
        size = piece.numel()
        if piece.device.type != "cpu":  # there torch keeps what was freed
            return piece.new_empty(2, size).unbind()
        if piece.dtype not in self._memory:
            self._memory[piece.dtype] = piece.new_empty(2, _most(piece.device)).unbind()
        rows = self._memory[piece.dtype]
        return rows if size == rows[0].numel() else tuple(row[:size] for row in rows)


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Keep autocast from rounding: under manual optimisation a step is measured inside of ``training_step``."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _along(step_size: float, memory: _Block, x: Tensor, y: Tensor, g: Tensor) -> _Block:
    """Return the addends of ‖g‖², ⟨r, g⟩ and ‖r‖², where r = x − y − step_size · g."""
    rest, product = memory
    torch.sub(x, y, out=rest)
    if step_size:
        rest.sub_(g, alpha=step_size)
    return _dot(g, g, product), _dot(rest, g, product), _dot(rest, rest, product)


def _apart(memory: _Block, x: Tensor, y: Tensor, g: Tensor) -> _Block:
    """Return the addends of ⟨x − y, g⟩ and ‖x − y‖²."""
    difference, product = memory
    torch.sub(x, y, out=difference)
    return _dot(difference, g, product), _dot(difference, difference, product)


def _change(
    left_factor: float, right_factor: float, memory: _Block, left: Tensor, right: Tensor
) -> _Block:
    """Return the addend of ‖left_factor · left − right_factor · right‖²."""
    difference, product = memory
    torch.mul(left, left_factor, out=difference)
    torch.mul(right, right_factor, out=product)
    difference.sub_(
        product
    )  # rounded on both sides alike, which a multiplication within the subtraction is not: equal is 0
    return (_dot(difference, difference, product),)


def _dot(left: Tensor, right: Tensor, product: Tensor) -> Tensor:
    """Return the inner product of two flat blocks in the working precision.

    The products of a block are added up in a cascade, whose error grows with the logarithm of their number; that of a BLAS dot
    product grows with the number itself, and equal terms drift.

    Args:
        left: shape ``(n,)``.
        right: shape ``(n,)``.
        product: shape ``(n,)``, written to.
    """
    return torch.mul(left, right, out=product).sum()


def _flat(tensors: Sequence[Tensor | None]) -> _Block:
    """Return tensors of one shape as flat ones on the first one's device; None is zero."""
    first = next(tensor for tensor in tensors if tensor is not None)
    device = first.device
    return tuple(
        first.new_zeros(1).expand(first.numel())
        if tensor is None
        else (tensor if tensor.device == device else tensor.to(device)).reshape(-1)
        for tensor in tensors
    )


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _most(device: torch.device) -> int:
    return _BLOCK.get(device.type, _OTHER_BLOCK)


def _grouped(tensors: Iterable[_Block], most: int) -> Iterator[list[_Block]]:
    """Yield groups of small tensors, each of no more elements than a block."""
    group: list[_Block] = []
    size = 0
    for flat in tensors:
        if size + flat[0].numel() > most:
            yield group
            group, size = [], 0
        group.append(flat)
        size += flat[0].numel()
    yield group
