"""SPS_max: the stochastic Polyak step size with a cap."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT

from lightning_landscape.optim._measured import ratio
from lightning_landscape.optim._scalar_step import Numbers, ScalarStep


class SPSMax(ScalarStep):
    r"""SGD with the stochastic Polyak step size, capped.

    .. math:: \gamma_k = \min\bigl\{(f_i(x_k) - l)\,/\,(c\,\|\nabla f_i(x_k)\|^2),\ \gamma_b\bigr\}

    One γ_k for all parameters of all groups; 0 where the loss is l, γ_b where the gradient is 0. A step whose loss or
    gradient is not finite is skipped. Under DDP the loss is the mean over ranks, as the gradient is.

    Outside the theorems: gradient clipping (g is no longer the gradient of the loss); gradient accumulation, where the
    closure returns the last micro-batch's loss / N (call ``step(loss=...)`` with the loss of the window); a GradScaler
    (``precision="16-mixed"``), which passes no closure and is refused.

    Args:
        params: parameters or groups of them; groups share every constant.
        lr: γ_b > 0, the largest step. Named ``lr`` so that schedulers, ``LearningRateMonitor`` and ``LightningCLI`` treat
            it as any optimiser's; a scheduler may take it to 0.
        c: > 0; the larger, the shorter the steps. Under the α-β-condition the theorem asks for c > 1/(2(α − β)). The
            paper takes 1 for convex losses, 1/2 for strongly convex ones and 0.2 for deep networks; 1, the default, is the
            cautious one of these and is in the theorem's range wherever α − β > 1/2.
        loss_infimum: l, a lower bound of every mini-batch loss.

    Raises:
        ValueError: if a constant is out of range, groups disagree, or a loss is below ``loss_infimum``.
        RuntimeError: at a step without a loss, or with different gradients on the ranks (FSDP).

    Source:
        Loizou, Vaswani, Laradji, Lacoste-Julien, AISTATS 2021; under the α-β-condition Islamov et al., NeurIPS 2024,
        Theorem 2.

    Example:
        >>> import torch
        >>> x = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = SPSMax([x])
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (0.5 * x**2).sum()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item(), optimizer.step_size, x.item()
        (2.0, 0.5, 1.0)
    """

    constants = ("lr", "c", "loss_infimum")

    def __init__(
        self, params: ParamsT, lr: float = 1.0, c: float = 1.0, loss_infimum: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, c=c, loss_infimum=loss_infimum)

    def _next(
        self, shared: Numbers, options: Numbers, excess: float, sq_norm: float
    ) -> dict[str, float]:
        return {"step_size": min(ratio(excess / options["c"], sq_norm), options["lr"])}
