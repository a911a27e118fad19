"""The certificate of one trajectory, for any optimizer. Proof: ``docs/theory.md``, section 6."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lightning_landscape.bounds.functional._bound import Bound, NonNegative, Number, Positive
from lightning_landscape.functional._fractional import LinearFractional


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory(Bound):
    r"""Bound on the mean gap of one run of ``x_{k+1} = x_k − η_k g_k − e_k``.

    .. math:: \frac{\sum_k\eta_k(a_k-b_k)}{\sum_k\eta_k} \le
              \frac{(D_0^2-D_K^2)/2 + \frac12\sum_k\eta_k^2G_k^2 + R
              + \beta\sum_k\eta_k(b_k-l_k)}{\delta\sum_k\eta_k},
              \qquad R = \sum_k\bigl(\tfrac12\|e_k\|^2 + \|e_k\|D_k\bigr)

    The gap is ``f_{i_k}(x_k) − f_{i_k}(x_p)``, and η_k weighs it. The bound holds for the run
    itself, for every ``η_k ≥ 0``, every reference x_p, and every pair that holds at all K probes.
    It needs no smoothness and no expectation.

    Args:
        step_size_sum: Σ η_k > 0.
        sq_step_sum: Σ η_k² G_k².
        excess_sum: Σ η_k (b_k − l_k).
        sq_distance: D_0² = ‖x_0 − x_p‖².
        final_sq_distance: D_K² = ‖x_K − x_p‖².
        residual: R, from the parts e_k of the steps that are not along −g_k.

    Source:
        ``docs/theory.md``, section 6.
    """

    step_size_sum: Positive
    sq_step_sum: NonNegative
    excess_sum: NonNegative
    sq_distance: NonNegative
    final_sq_distance: NonNegative
    residual: NonNegative = 0.0

    condition = "α > β"

    @override
    def shape(self) -> LinearFractional:
        sum_η, sum_η_sq, sum_excess, D_sq, D_K_sq, R = self.exact()
        return LinearFractional(
            distance=(D_sq - D_K_sq) / 2,
            noise=sum_η_sq / 2 + R,
            spread=sum_excess,
            slope=sum_η,
        )


def trajectory(
    *,
    alpha: Number,
    beta: Number,
    step_size_sum: Number,
    sq_step_sum: Number,
    excess_sum: Number,
    sq_distance: Number,
    final_sq_distance: Number,
    residual: Number = 0.0,
) -> Tensor:
    """Return the certificate of one trajectory at a pair; see `Trajectory`.

    Example:
        >>> sums = {"step_size_sum": 10.0, "sq_step_sum": 0.5, "excess_sum": 1.0}
        >>> trajectory(alpha=1.0, beta=0.0, sq_distance=1.0, final_sq_distance=0.0, **sums)
        tensor(0.0750, dtype=torch.float64)
    """
    return Trajectory.value(**locals())
