"""The parameters x of a run: which they are, swapping them in place, and exact inner products over them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

_BLOCK = 1 << 20  # elements worked on at a time: what bounds every temporary
_ROW = 1 << 11  # elements summed in the working precision before their sum goes on in float64


def plain_name(name: str) -> str:
    """Return a parameter's name without the marks that ``torch.compile`` leaves in it."""
    return name.replace("_orig_mod.", "")


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters of a module by their plain names."""
    return {plain_name(name): parameter for name, parameter in module.named_parameters()}


def optimized_parameters(module: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return the parameters that the optimiser holds, by name, in the module's order.

    Others are left out: they are neither zeroed nor unscaled by Lightning and do not move along a gradient.

    Raises:
        MisconfigurationException: if the optimiser holds parameters that are not registered in the module.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    named = {name: parameter for name, parameter in named_parameters(module).items() if id(parameter) in held}
    if len(named) < len(held):
        raise MisconfigurationException(
            f"LandscapeMonitor found {len(held) - len(named)} parameters in {type(optimizer).__name__} that are not "
            f"registered in {type(module).__name__}; supported are the module's own parameters: assign the layers that own "
            "them to attributes of the module (or to a ModuleList), so that `named_parameters()` lists them"
        )
    return named


@torch.no_grad()
def copied(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached copies, on the same device, that later steps do not change."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


@torch.no_grad()
def fingerprint(parameters: Mapping[str, Tensor]) -> Tensor:
    """Return up to 1,024 elements of each parameter, as one tensor: enough to see that something moved them."""
    flat = [parameter.detach().reshape(-1) for parameter in parameters.values()]
    return torch.cat([values[:: max(1, values.numel() // 1024)].to(flat[0].device, torch.float64) for values in flat])


@torch.no_grad()
def assign(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values into parameters in place: the same tensors, so that nothing that holds them is misled.

    Through ``data``, of which autograd takes no note: whoever writes here puts the values back, and under manual optimisation
    a graph that the user goes backward through later may wait meanwhile.
    """
    for name, value in values.items():
        parameters[name].data.copy_(value)


class Swap:
    """Puts other values into a module's parameters and, whatever happens in between, the original ones back.

    Args:
        module: the module whose parameters are swapped.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._originals: dict[str, Tensor] = {}

    @contextmanager
    def to(self, *values: Mapping[str, Tensor]) -> Iterator[None]:
        """Hold the parameters at ``values`` (later mappings win) inside the block; blocks can be nested."""
        parameters = named_parameters(self._module)
        wanted = {name: value for mapping in values for name, value in mapping.items()}
        outer = self._originals
        before = copied({name: parameters[name] for name in wanted})
        self._originals = {**before, **outer}
        try:
            assign(parameters, wanted)
            yield
        finally:
            assign(parameters, before)
            self._originals = outer

    def recover(self) -> None:
        """Put the originals back if an interrupt came in the middle of putting them back."""
        if self._originals:
            assign(named_parameters(self._module), self._originals)
            self._originals = {}


class StepMeasures(NamedTuple):
    """What one step of the optimiser looked like, in float64."""

    grad_sq_norm: float
    step_size: float
    residual: float


@torch.no_grad()
def measure_step(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], gradient: Mapping[str, Tensor], factor: float
) -> StepMeasures:
    r"""Measure G², η and the residual of a step.

    .. math:: \eta = \langle x_k - x_{k+1}, g\rangle/G^2, \qquad \|x_k - x_{k+1} - \eta g\|

    Args:
        before: x_k by name.
        after: x_{k+1} by name; the same names and shapes.
        gradient: g/factor by name; a name that is missing has no gradient, g = 0 there.
        factor: the number that turns ``gradient`` into g.

    Returns:
        G², η (0 where G = 0) and the residual.
    """
    squares, products = [], []
    for name, raw in gradient.items():
        for g, x, y in _blocks(raw, before[name], after[name]):
            squares.append(_dot(g, g))
            products.append(_dot(x - y, g))
    grad_sq_norm = _total(squares) * factor**2
    step_size = _total(products) * factor / grad_sq_norm if grad_sq_norm > 0 else 0.0
    rests = [_rest(before[name], after[name], gradient.get(name), step_size * factor) for name in before]
    return StepMeasures(grad_sq_norm, step_size, math.sqrt(_total(rest for parts in rests for rest in parts)))


def _rest(before: Tensor, after: Tensor, gradient: Tensor | None, step_size: float) -> Iterator[Tensor]:
    """Yield the squared norms, block by block, of what of a step is not along the gradient.

    Taken from the vector itself: ‖x_k − x_{k+1}‖² − η²G² would cancel to rounding of the larger numbers.
    """
    for x, y, *g in _blocks(before, after, *(() if gradient is None else (gradient,))):
        rest = x - y
        if g:
            rest -= step_size * g[0]
        yield _dot(rest, rest)


@torch.no_grad()
def inner_product_and_distance(
    here: Mapping[str, Tensor], there: Mapping[str, Tensor], gradient: Mapping[str, Tensor], factor: float
) -> tuple[float, float]:
    r"""Measure ``<g, x − x_p>`` and ``‖x − x_p‖²``: subtracted first, then summed in float64.

    Args:
        here: x by name.
        there: x_p by name; may hold more names than ``here``.
        gradient: g/factor by name; a name that is missing has no gradient, g = 0 there.
        factor: the number that turns ``gradient`` into g.

    Returns:
        The inner product and the squared distance.
    """
    products, squares = [], []
    for name, x in here.items():
        raw = gradient.get(name)
        for a, b, *g in _blocks(x, there[name], *(() if raw is None else (raw,))):
            difference = a - b
            squares.append(_dot(difference, difference))
            if g:
                products.append(_dot(difference, g[0]))
    return _total(products) * factor, _total(squares)


@torch.no_grad()
def sq_change(left: Mapping[str, Tensor], left_factor: float, right: Mapping[str, Tensor], right_factor: float) -> float:
    r"""Measure ``‖left_factor · left − right_factor · right‖²``: subtracted first, then summed in float64.

    Args:
        left: by name; a name that is missing on one side is zero there.
        left_factor: the number that multiplies it.
        right: by name.
        right_factor: the number that multiplies it.
    """
    squares = []
    for name in left.keys() | right.keys():
        a, b = left.get(name), right.get(name)
        for pair in _blocks(*(tensor for tensor in (a, b) if tensor is not None)):
            scaled = [piece * f for piece, f in zip(pair, _factors(a, b, left_factor, right_factor), strict=True)]
            difference = scaled[0] - scaled[1] if len(scaled) == 2 else scaled[0]
            squares.append(_dot(difference, difference))
    return _total(squares)


def _factors(a: Tensor | None, b: Tensor | None, left: float, right: float) -> list[float]:
    return [factor for tensor, factor in ((a, left), (b, right)) if tensor is not None]


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape into flat blocks in the working precision: float64 stays, all else becomes float32."""
    device = tensors[0].device
    flat = [tensor.detach().to(device).reshape(-1) for tensor in tensors]
    dtype = torch.float64 if flat[0].dtype == torch.float64 else torch.float32
    for start in range(0, flat[0].numel(), _BLOCK):
        yield tuple(piece[start : start + _BLOCK].to(dtype) for piece in flat)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product of two flat blocks: rows of 2,048 in the working precision, their sum in float64."""
    whole = left.numel() // _ROW * _ROW
    rows: Tensor = torch.linalg.vecdot(left[:whole].view(-1, _ROW), right[:whole].view(-1, _ROW))
    rest: Tensor = torch.linalg.vecdot(left[whole:], right[whole:])
    return rows.sum(dtype=torch.float64) + rest.double()


def _total(parts: Iterable[Tensor]) -> float:
    values = list(parts)
    return float(torch.stack(values).sum()) if values else 0.0
