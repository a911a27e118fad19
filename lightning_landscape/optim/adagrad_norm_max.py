"""AdaGrad-norm-max: AdaGrad with one step size that uses the largest gradient norm so far."""

from __future__ import annotations

from math import nan, sqrt
from typing import ClassVar

from torch.optim.optimizer import ParamsT

from lightning_landscape.optim._scalar_step import Numbers, ScalarStep, check_positive


class AdaGradNormMax(ScalarStep):
    r"""SGD with the step size of AdaGrad-norm, computed from the largest gradient norm so far.

    .. math:: \gamma_k = \gamma/b_k, \quad b_k^2 = b_{k-1}^2 + c_k^2, \quad
        c_k^2 = \max\{c_{k-1}^2, \|\nabla f_i(x_k)\|^2\}, \quad c_{-1} = 0

    One γ_k for all parameters of all groups. The method needs no loss, so it also trains with a
    GradScaler (``precision="16-mixed"``). A step with a non-finite gradient or a non-finite loss,
    if one is passed, is skipped and not counted.

    Outside the theorem: gradient clipping (g is no longer the gradient of the loss) and a
    GradScaler, which skips steps. With gradient accumulation g is the gradient of the mean loss of
    a window, so the theorem applies with windows in place of mini-batches. There Lightning's
    closure returns the loss of the last micro-batch divided by their number; that does no harm,
    because the optimizer only checks that it is finite.

    Args:
        params: parameters or parameter groups; groups share every constant.
        lr: γ > 0; a scheduler may decrease it to 0.
        b_init: b_{−1} > 0, in units of a gradient norm. The theorem assumes b_{−1} ≥ 2Lγ/(α − β).
            A value far below the gradient norms has little effect after the first steps.

    Raises:
        ValueError: if a constant is out of range or differs between groups.
        RuntimeError: at a step where the ranks have different gradients (FSDP).

    Source:
        Islamov, Ajroldi, Orvieto, Lucchi, NeurIPS 2024, Theorem 7.

    Example:
        >>> import torch
        >>> x = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = AdaGradNormMax([x], b_init=1.5)
        >>> (0.5 * x**2).sum().backward()
        >>> optimizer.step()
        >>> optimizer.step_size, round(x.item(), 6)
        (0.4, 1.2)
    """

    constants = ("lr", "b_init")
    memory: ClassVar[dict[str, float]] = {"step_size": nan, "c_sq": 0.0, "b_sq": 0.0}
    needs_loss = False

    def __init__(self, params: ParamsT, lr: float = 1.0, b_init: float = 1.0) -> None:
        super().__init__(params, lr=lr, b_init=b_init)

    def _check(self, options: Numbers) -> None:
        super()._check(options)
        # The square is what `_next` uses, and it can underflow to 0.
        check_positive("b_init²", options["b_init"] * options["b_init"])

    def _next(
        self, shared: Numbers, options: Numbers, excess: float, sq_norm: float
    ) -> dict[str, float]:
        c_sq = max(shared["c_sq"], sq_norm)
        # b_sq is 0 only before the first step.
        b_sq = (shared["b_sq"] or options["b_init"] * options["b_init"]) + c_sq
        return {"step_size": options["lr"] / sqrt(b_sq), "c_sq": c_sq, "b_sq": b_sq}
