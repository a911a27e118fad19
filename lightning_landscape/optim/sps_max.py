"""SPS_max: the stochastic Polyak step size with a cap."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT

from lightning_landscape.optim._measured import ratio
from lightning_landscape.optim._scalar_step import Numbers, ScalarStep


class SPSMax(ScalarStep):
    r"""SGD with the capped stochastic Polyak step size.

    .. math:: \gamma_k = \min\bigl\{(f_i(x_k) - l)\,/\,(c\,\|\nabla f_i(x_k)\|^2),\ \gamma_b\bigr\}

    One γ_k for all parameters of all groups. It is γ_b where the gradient is 0, and otherwise 0
    where the loss is l. A step with a non-finite loss or gradient is skipped. Under DDP the loss is
    averaged over ranks, like the gradient.

    Outside the theorems:

    - gradient clipping, because g is no longer the gradient of the loss;
    - gradient accumulation, because Lightning's closure returns the loss of the last micro-batch
      divided by their number; call ``step(loss=...)`` with the loss of the window instead;
    - a GradScaler (``precision="16-mixed"``), which passes no closure; ``step`` refuses it.

    Args:
        params: parameters or parameter groups; groups share every constant.
        lr: γ_b > 0, the largest step; a scheduler may decrease it to 0. The name is ``lr`` so that
            schedulers, ``LearningRateMonitor`` and ``LightningCLI`` work as with other optimizers.
        c: c > 0; a larger value makes steps shorter. Under the α-β-condition the theorem assumes
            c > 1/(2(α − β)). The paper uses 1 for convex losses, 1/2 for strongly convex losses and
            0.2 for deep networks. The default 1 gives the shortest steps of these; the theorem
            covers it if α − β > 1/2.
        loss_infimum: l, a lower bound of every mini-batch loss.

    Raises:
        ValueError: if a constant is out of range or differs between groups, or if a loss is below
            ``loss_infimum``.
        RuntimeError: at a step without a loss, or where the ranks have different gradients (FSDP).

    Source:
        Loizou, Vaswani, Laradji, Lacoste-Julien, AISTATS 2021. Under the α-β-condition: Islamov et
        al., NeurIPS 2024, Theorem 2.

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
