"""DecSPS: the stochastic Polyak step size with decreasing steps."""

from __future__ import annotations

from math import nan, sqrt
from typing import ClassVar

from torch.optim.optimizer import ParamsT

from lightning_landscape.optim._measured import ratio
from lightning_landscape.optim._scalar_step import Numbers, ScalarStep, check_positive


class DecSPS(ScalarStep):
    r"""SGD with the decreasing stochastic Polyak step size.

    .. math:: \gamma_k = \frac{1}{c_k}
        \min\bigl\{(f_i(x_k) - l)\,/\,\|\nabla f_i(x_k)\|^2,\ c_{k-1}\gamma_{k-1}\bigr\},
        \quad c_k = c_0\sqrt{k+1},\ c_{-1} = c_0,\ \gamma_{-1} = \gamma_b

    One γ_k for all parameters of all groups. c_k γ_k never grows, so γ_k = O(1/√k) without a
    scheduler. If a mini-batch has loss l and a non-zero gradient, γ_k is 0 from then on. A step
    with a non-finite loss or gradient is skipped and not counted in k. Under DDP the loss is
    averaged over ranks, like the gradient.

    Outside the theorems:

    - gradient clipping, because g is no longer the gradient of the loss;
    - gradient accumulation, because Lightning's closure returns the loss of the last micro-batch
      divided by their number; call ``step(loss=...)`` with the loss of the window instead;
    - a GradScaler (``precision="16-mixed"``), which passes no closure; ``step`` refuses it.

    Args:
        params: parameters or parameter groups; groups share every constant.
        lr: γ_b > 0, the largest step. It is used at the first step only, so a scheduler has no
            effect.
        c_init: c_0 > 0; a larger value makes steps shorter.
        loss_infimum: l, a lower bound of every mini-batch loss.

    Raises:
        ValueError: if a constant is out of range or differs between groups, if ``lr`` is 0 at the
            first step, or if a loss is below ``loss_infimum``.
        RuntimeError: at a step without a loss, or where the ranks have different gradients (FSDP).

    Source:
        Orvieto, Lacoste-Julien, Loizou, *Dynamics of SGD with Stochastic Polyak Stepsizes: Truly
        Adaptive Variants and Convergence to Exact Solution*, NeurIPS 2022. Under the α-β-condition:
        Islamov et al., NeurIPS 2024, Theorem 5.

    Example:
        >>> import torch
        >>> x = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = DecSPS([x])
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (0.5 * x**2).sum()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item(), optimizer.step_size, x.item()
        (2.0, 0.5, 1.0)
        >>> optimizer.step(closure).item(), optimizer.step_size  # 0.5 / √2
        (0.5, 0.35355339059327373)
    """

    constants = ("lr", "c_init", "loss_infimum")
    memory: ClassVar[dict[str, float]] = {"step_size": nan, "k": 0, "bound": nan}

    def __init__(
        self, params: ParamsT, lr: float = 1.0, c_init: float = 1.0, loss_infimum: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, c_init=c_init, loss_infimum=loss_infimum)

    def _check(self, options: Numbers) -> None:
        super()._check(options)
        check_positive("c_init · lr", options["c_init"] * options["lr"])

    def _next(
        self, shared: Numbers, options: Numbers, excess: float, sq_norm: float
    ) -> dict[str, float]:
        k, bound = int(shared["k"]), shared["bound"]
        if not k:
            # The bound never grows, so a warm-up from 0 would stay at 0.
            check_positive("lr at the first step", options["lr"])
            bound = options["c_init"] * options["lr"]
        # `bound` is c_k γ_k; a zero gradient has the ratio inf and leaves it as it is.
        bound = min(ratio(excess, sq_norm), bound)
        return {"step_size": bound / (options["c_init"] * sqrt(k + 1)), "k": k + 1, "bound": bound}
