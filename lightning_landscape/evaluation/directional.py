"""Derivatives of many losses in one direction of the parameters, by forward mode: one pass gives those of all samples."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lightning_landscape.vectors.parameters import plain_name


def along(
    module: nn.Module,
    loss: Callable[[Any, Any], Any],
    batch: Any,
    direction: Mapping[str, Tensor],
    read: Callable[[Any], Tensor],
    *,
    with_graph: bool,
) -> tuple[Tensor, Tensor]:
    r"""Return losses and their derivatives in a direction of the parameters.

    .. math:: f_j(x), \qquad \langle\nabla f_j(x), v\rangle = \frac{d}{dt} f_j(x + t v)\Big|_{t=0}

    Args:
        module: whose parameters are x; they are left as they are.
        loss: a function of (module, batch).
        batch: its second argument.
        direction: v by plain name, in any floating dtype; zero for parameters that it does not name.
        read: returns the vector of losses, shape ``(B,)``, in what ``loss`` returned.
        with_graph: whether autograd records meanwhile: the fast path of transformers, which has no forward derivative, is taken
            where it does not.

    Returns:
        f and its derivatives, both of shape ``(B,)`` and detached.

    Raises:
        RuntimeError: if something in the loss has no forward derivative (NotImplementedError is one).

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> direction = {"weight": torch.tensor([[1.0, 2.0]])}
        >>> samples = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> along(layer, lambda m, x: m(x)[:, 0], samples, direction, lambda out: out, with_graph=False)[1]
        tensor([1., 2.])
    """
    with forward_ad.dual_level(), _with_derivatives(module), _StopsWhereAutogradDoes():
        duals = {}
        for name, parameter in module.named_parameters():
            if (tangent := direction.get(plain_name(name))) is not None:
                primal = parameter if with_graph else parameter.detach()
                duals[f"module.{name}"] = forward_ad.make_dual(primal, tangent.to(parameter))  # type: ignore[no-untyped-call]
        output = read(torch.func.functional_call(_Evaluated(module, loss), duals, (batch,)))
        values, slopes = forward_ad.unpack_dual(output)  # type: ignore[no-untyped-call]
    values = values.detach()
    return values, torch.zeros_like(values) if slopes is None else slopes.detach()


class _Evaluated(nn.Module):
    """A loss as a module that holds the user's, for which ``functional_call`` puts other parameters in."""

    def __init__(self, module: nn.Module, loss: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.module, self._loss = module, loss

    def forward(self, batch: Any) -> Any:
        return self._loss(self.module, batch)


@contextmanager
def _with_derivatives(module: nn.Module) -> Iterator[None]:
    """Choose kernels that have a forward derivative, where there are such: they round differently, and that is all."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the fused ones of attention have none
        if any(
            isinstance(part, nn.RNNBase) for part in module.modules()
        ):  # nor have those of oneDNN and cuDNN
            stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
            torch._C._set_mkldnn_enabled(
                False
            )  # alone: its public context sets, and warns of, other things as well
            cudnn = torch.backends.cudnn
            kept = {
                "benchmark": cudnn.benchmark,
                "deterministic": cudnn.deterministic,
                "allow_tf32": cudnn.allow_tf32,
            }
            stack.enter_context(cudnn.flags(enabled=False, **kept))
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            stack.enter_context(
                torch.compiler.set_stance("force_eager")
            )  # compiled code was made for other tensors
        yield


class _StopsWhereAutogradDoes(TorchFunctionMode):
    """Inside of the user's ``torch.no_grad()`` nothing has a derivative: forward mode alone would go on there."""

    def __enter__(self) -> _StopsWhereAutogradDoes:
        self._before = torch._C._is_fwd_grad_enabled()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch._C._set_fwd_grad_enabled(self._before)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch._C._set_grad_enabled:
            torch._C._set_fwd_grad_enabled(bool(args[0]))
        return result
