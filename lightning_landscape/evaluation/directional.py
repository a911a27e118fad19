"""Directional derivatives of many losses in the parameters, by one pass in forward mode."""

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
    r"""Return the losses f_j and their derivatives in a direction v of the parameters x.

    .. math:: f_j(x), \qquad \langle\nabla f_j(x), v\rangle = \frac{d}{dt} f_j(x + t v)\Big|_{t=0}

    Args:
        module: the module with the parameters x, which do not change.
        loss: a function of (module, batch).
        batch: the second argument of ``loss``.
        direction: v by plain name, in any floating dtype; zero for missing names.
        read: takes the result of ``loss`` and returns the losses, shape ``(B,)``.
        with_graph: whether autograd records the pass. Without recording, transformer layers use
            their fast path, which has no forward derivative.

    Returns:
        Losses and derivatives, both detached and of shape ``(B,)``.

    Raises:
        RuntimeError: if an operation in the loss has no forward derivative. torch may raise its
            subclass NotImplementedError.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> direction = {"weight": torch.tensor([[1.0, 2.0]])}
        >>> samples = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> first = lambda module, batch: module(batch)[:, 0]
        >>> along(layer, first, samples, direction, lambda out: out, with_graph=False)[1]
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
    """The loss as a module, because ``functional_call`` replaces the parameters of a module."""

    def __init__(self, module: nn.Module, loss: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.module, self._loss = module, loss

    def forward(self, batch: Any) -> Any:
        return self._loss(self.module, batch)


@contextmanager
def _with_derivatives(module: nn.Module) -> Iterator[None]:
    """Use kernels that have a forward derivative. They only round differently."""
    with ExitStack() as stack:
        # The fused kernels of attention have no forward derivative.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(layer, nn.RNNBase) for layer in module.modules()):
            _without_fused_recurrence(stack)
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            # Compiled code was compiled for tensors without a forward derivative.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _without_fused_recurrence(stack: ExitStack) -> None:
    """Switch off recurrent kernels of oneDNN and cuDNN, which have no forward derivative."""
    # torch.backends.mkldnn.flags would also set other flags, and warn about them.
    stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
    torch._C._set_mkldnn_enabled(False)
    cudnn = torch.backends.cudnn
    unchanged = {
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
        "allow_tf32": cudnn.allow_tf32,
    }
    stack.enter_context(cudnn.flags(enabled=False, **unchanged))


class _StopsWhereAutogradDoes(TorchFunctionMode):
    """Stop forward mode inside the user's ``torch.no_grad()``, where it would go on by itself."""

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
