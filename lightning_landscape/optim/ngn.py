"""NGN: the step of non-negative Gauss-Newton."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT

from lightning_landscape.optim._measured import ratio
from lightning_landscape.optim._scalar_step import Numbers, ScalarStep


class NGN(ScalarStep):
    r"""SGD with the step of non-negative Gauss-Newton.

    .. math:: \gamma_k = \gamma\,/\,\bigl(1 + \gamma\,\|\nabla f_i(x_k)\|^2\,/\,(2\,(f_i(x_k) - l))\bigr)

    One γ_k for all parameters of all groups; 0, its limit, where the loss is l, and γ where the gradient is 0. A step whose
    loss or gradient is not finite is skipped. Under DDP the loss is the mean over ranks, as the gradient is.

    With ``LambdaLR(optimizer, lambda k: (k + 1) ** -0.5)``, stepped after every update, it is the variant with γ/√(k+1) in
    the place of γ (Islamov et al. 2024, Theorem 6).

    Outside the theorems: gradient clipping (g is no longer the gradient of the loss); gradient accumulation, where the
    closure returns the last micro-batch's loss / N (call ``step(loss=...)`` with the loss of the window); a GradScaler
    (``precision="16-mixed"``), which passes no closure and is refused.

    Args:
        params: parameters or groups of them; groups share every constant.
        lr: γ > 0, the largest step; a scheduler may take it to 0.
        loss_infimum: l, a lower bound of every mini-batch loss. The paper has l = 0, for losses that are not negative;
            another l shifts the loss.

    Raises:
        ValueError: if a constant is out of range, groups disagree, or a loss is below ``loss_infimum``.
        RuntimeError: at a step without a loss, or with different gradients on the ranks (FSDP).

    Source:
        Orvieto, Xiao, *An Adaptive Stochastic Gradient Method with Non-negative Gauss-Newton Stepsizes*, 2024; under the
        α-β-condition with α ≥ β + 1 Islamov et al., NeurIPS 2024, Theorem 3.

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
            # 0 · ∞ and 0/0 otherwise, where the loss is l
            return {"step_size": gamma}
        return {"step_size": gamma / (1 + gamma * ratio(sq_norm, 2 * excess))}
