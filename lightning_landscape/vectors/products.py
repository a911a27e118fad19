"""Inner products and norms over all parameters of a run.

Differences are taken first, because differences of inner products would cancel. Products are summed
block by block in float32 (float64 for float64 parameters), and the sums of the blocks in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = {"cpu": 1 << 17}
"""Elements in a block, which bounds every temporary. On a CPU a block stays in the cache"""
_OTHER_BLOCK = 1 << 22
"""Elements in a block on other devices, where each kernel call costs time"""
_SMALL = 8
"""Tensors of less than 1/8 of a block are joined, because each operation costs time"""
_CANCELS = 1e-2
"""A difference that is smaller than this share of its terms is partly rounding error"""
_PASSES = 4

Exchange = Callable[..., list[tuple[float, ...]]]
"""Takes this process's numbers and returns those of each process"""
_Block = tuple[Tensor, ...]
"""Flat pieces of the same length, one for each side of a product"""
_Addends = Callable[..., _Block]
"""Takes work memory and the pieces of a block; returns the block's addend of each sum"""


class StepMeasures(NamedTuple):
    """Size of one optimizer step along the gradient, in float64."""

    grad_sq_norm: float
    step_size: float
    residual: float


class Products:
    """Inner products over parameters by name, whole or sharded (FSDP2).

    Args:
        exchange: returns the numbers of all processes. None if each process has all parameters
            whole.
        shares: by name, the factor of this process's part in a sum over all processes: 1 over the
            number of processes that hold the same elements. By default 1.
    """

    def __init__(
        self, exchange: Exchange | None = None, shares: Mapping[str, float] | None = None
    ) -> None:
        self._exchange, self._shares = exchange, shares or {}
        self._memory: dict[torch.dtype, _Block] = {}
        """Work memory on a CPU, reused because new pages cost more time than the products"""

    @torch.no_grad()
    def step(
        self,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        gradient: Mapping[str, Tensor],
        factor: float,
        expected: float = 0.0,
    ) -> StepMeasures:
        r"""Measure the squared gradient norm, the size and the residual of a step.

        .. math:: G^2 = \|g\|^2, \qquad \eta = \langle x_k - x_{k+1}, g\rangle/G^2,
           \qquad \|x_k - x_{k+1} - \eta g\|

        One pass over the parameters is enough if η is close to the expected η_0. With
        :math:`r = x_k - x_{k+1} - \eta_0 g`, the size is
        :math:`\eta = \eta_0 + \langle r, g\rangle/G^2`, and the squared residual is
        :math:`\|r\|^2 - \langle r, g\rangle^2/G^2`. If this difference cancels, another pass starts
        from the η just found.

        Args:
            before: x_k by name.
            after: x_{k+1} by name, with the names and shapes of ``before``.
            gradient: g/factor by name; g = 0 for a missing name.
            factor: the number that turns ``gradient`` into g.
            expected: η_0, such as the learning rate. A bad guess only costs time.

        Returns:
            G², η (0 if G = 0) and the residual.

        Raises:
            KeyError: if ``after`` lacks a name.
        """
        after = {name: after[name] for name in before}  # only gradients may lack names
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
        # r is rounding error, for example in a module with a single parameter.
        return StepMeasures(grad_sq_norm, step_size, math.sqrt(rests))

    @torch.no_grad()
    def inner_product_and_distance(
        self,
        x: Mapping[str, Tensor],
        x_p: Mapping[str, Tensor],
        gradient: Mapping[str, Tensor],
        factor: float,
    ) -> tuple[float, float]:
        r"""Measure the inner product ``<g, x − x_p>`` and the squared distance ``‖x − x_p‖²``.

        Args:
            x: the iterate by name.
            x_p: the reference by name; it may hold more names than ``x``.
            gradient: g/factor by name; g = 0 for a missing name.
            factor: the number that turns ``gradient`` into g.

        Returns:
            The inner product and the squared distance.

        Raises:
            KeyError: if ``x_p`` lacks a name.
        """
        x_p = {name: x_p[name] for name in x}  # only gradients may lack names
        products, squares = self._totals(2, _apart, x, (x, x_p, gradient))
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
            left: tensors by name; a tensor that one side lacks is zero.
            left_factor: the number that multiplies ``left``.
            right: tensors by name.
            right_factor: the number that multiplies ``right``.
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
        """Return sums over all parameters and all processes.

        Args:
            count: number of sums.
            addends: returns the addend of each sum for one block.
            names: names of the parameters.
            sides: tensors by name; a tensor that a side lacks is zero.
        """
        found: list[Tensor] = []
        with _without_autocast():
            for share, block in self._blocks(names, sides):
                new = addends(self._memory_for(block[0]), *block)
                found += new if share == 1.0 else [addend * share for addend in new]
        sums = [0.0] * count
        if found:  # no names, no blocks
            sums = torch.stack(found).view(-1, count).sum(0, dtype=torch.float64).tolist()
        if self._exchange is None:
            return sums
        return [math.fsum(column) for column in zip(*self._exchange(*sums), strict=True)]

    def _blocks(
        self, names: Iterable[str], sides: Sequence[Mapping[str, Tensor]]
    ) -> Iterator[tuple[float, _Block]]:
        """Yield blocks in the working precision, each with this process's share.

        Large tensors are cut into several blocks, and small ones are joined into one.
        """
        small: dict[tuple[float, torch.device, torch.dtype], list[_Block]] = {}
        for name in names:
            flat, share = _flat([side.get(name) for side in sides]), self._shares.get(name, 1.0)
            first, dtype, most = flat[0], _working(flat[0].dtype), _most(flat[0].device)
            if first.numel() < most // _SMALL:
                small.setdefault((share, first.device, dtype), []).append(flat)
                continue
            for pieces in zip(*(torch.split(side, most) for side in flat), strict=True):
                yield share, tuple(piece.to(dtype) for piece in pieces)
        for (share, device, dtype), tensors in small.items():
            for group in _grouped(tensors, _most(device)):
                yield share, tuple(torch.cat(side).to(dtype) for side in zip(*group, strict=True))

    def _memory_for(self, piece: Tensor) -> _Block:
        """Return two rows of work memory, each as long as a piece."""
        size = piece.numel()
        if piece.device.type != "cpu":  # torch itself reuses memory of other devices
            return piece.new_empty(2, size).unbind()
        if piece.dtype not in self._memory:
            self._memory[piece.dtype] = piece.new_empty(2, _most(piece.device)).unbind()
        rows = self._memory[piece.dtype]
        return rows if size == rows[0].numel() else tuple(row[:size] for row in rows)


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Switch autocast off, which would round the products."""
    # Under manual optimization a step is measured inside ``training_step``, where it may be on.
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _along(step_size: float, memory: _Block, x: Tensor, y: Tensor, g: Tensor) -> _Block:
    """Return the addends of ‖g‖², ⟨r, g⟩ and ‖r‖² with r = x − y − step_size · g."""
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
    # A fused multiply-subtract would round only one side, so that equal sides would differ.
    difference.sub_(product)
    return (_dot(difference, difference, product),)


def _dot(left: Tensor, right: Tensor, product: Tensor) -> Tensor:
    """Return the inner product of two flat blocks in the working precision.

    Args:
        left: shape ``(n,)``.
        right: shape ``(n,)``.
        product: work memory of shape ``(n,)``, which is overwritten.
    """
    # torch sums in a cascade, whose error grows with log n. The error of a BLAS dot product grows
    # with n, and a long sum of equal terms drifts.
    return torch.mul(left, right, out=product).sum()


def _flat(tensors: Sequence[Tensor | None]) -> _Block:
    """Return tensors of one shape as flat tensors on the device of the first; None is zero."""
    first = next(tensor for tensor in tensors if tensor is not None)
    return tuple(
        first.new_zeros(1).expand(first.numel())
        if tensor is None
        else tensor.to(first.device).reshape(-1)
        for tensor in tensors
    )


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _most(device: torch.device) -> int:
    return _BLOCK.get(device.type, _OTHER_BLOCK)


def _grouped(tensors: Iterable[_Block], most: int) -> Iterator[list[_Block]]:
    """Yield groups of small tensors, each with no more elements than a block."""
    group: list[_Block] = []
    size = 0
    for flat in tensors:
        if size + flat[0].numel() > most:
            yield group
            group, size = [], 0
        group.append(flat)
        size += flat[0].numel()
    yield group
