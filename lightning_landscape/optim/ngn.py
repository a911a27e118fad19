"""NGN: the step size of the non-negative Gauss-Newton method."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT

from lightning_landscape.optim._measured import ratio
from lightning_landscape.optim._scalar_step import Numbers, ScalarStep


class NGN(ScalarStep):
    r"""SGD with the step size of the non-negative Gauss-Newton method.

    .. math:: \gamma_k = \gamma\,/\,
        \bigl(1 + \gamma\,\|\nabla f_i(x_k)\|^2\,/\,(2\,(f_i(x_k) - l))\bigr)

    One γ_k for all parameters of all groups. It is γ where the gradient is 0, and otherwise 0 where
    the loss is l. A step with a non-finite loss or gradient is skipped. Under DDP the loss is
    averaged over ranks, like the gradient.

    For the variant with γ/√(k+1) in place of γ (Islamov et al. 2024, Theorem 6) add
    ``LambdaLR(optimizer, lambda k: (k + 1) ** -0.5)`` and step it after every update.

    Outside the theorems:

    - gradient clipping, because g is no longer the gradient of the loss;
    - gradient accumulation, because Lightning's closure returns the loss of the last micro-batch
      divided by their number; call ``step(loss=...)`` with the loss of the window instead;
    - a GradScaler (``precision="16-mixed"``), which passes no closure; ``step`` refuses it.

    Args:
        params: parameters or parameter groups; groups share every constant.
        lr: γ > 0, the largest step; a scheduler may decrease it to 0.
        loss_infimum: l, a lower bound of every mini-batch loss. The paper assumes non-negative
            losses and l = 0; with another l the method is applied to the loss minus l.

    Raises:
        ValueError: if a constant is out of range or differs between groups, or if a loss is below
            ``loss_infimum``.
        RuntimeError: at a step without a loss, or where the ranks have different gradients (FSDP).

    Source:
        Orvieto, Xiao, *An Adaptive Stochastic Gradient Method with Non-negative Gauss-Newton
        Stepsizes*, 2024. Under the α-β-condition with α ≥ β + 1: Islamov et al., NeurIPS 2024,
        Theorem 3.

    Example:
        >>> import torch
        >>> x = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = NGN([x], lr=3.0)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (0.5 * x**2).sum()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item(), optimizer.step_size, x.item()
        (2.0, 0.75, 0.5)
    """

    constants = ("lr", "loss_infimum")

    def __init__(self, params: ParamsT, lr: float = 1.0, loss_infimum: float = 0.0) -> None:
        super().__init__(params, lr=lr, loss_infimum=loss_infimum)

    def _next(
        self, shared: Numbers, options: Numbers, excess: float, sq_norm: float
    ) -> dict[str, float]:
        gamma = options["lr"]
        if gamma == 0 or sq_norm == 0:
            # If the loss is l, the formula below is 0 · ∞ or 0/0 here.
            return {"step_size": gamma}
        return {"step_size": gamma / (1 + gamma * ratio(sq_norm, 2 * excess))}
