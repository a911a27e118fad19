"""The certificate of one trajectory: no smoothness, no expectation, any optimiser. Proof: ``docs/theory.md``, section 6."""

from __future__ import annotations

from torch import Tensor

from lightning_landscape.bounds.functional._arguments import Number, non_negative, positive, value
from lightning_landscape.functional._fractional import LinearFractional


def trajectory_shape(
    *,
    step_size_sum: Number,
    sq_step_sum: Number,
    excess_sum: Number,
    sq_distance: Number,
    final_sq_distance: Number,
    residual: Number = 0.0,
) -> LinearFractional:
    """Return `trajectory` as a function of the pair."""
    start, end = (
        non_negative("sq_distance", sq_distance),
        non_negative("final_sq_distance", final_sq_distance),
    )
    return LinearFractional(
        distance=(start - end) / 2,
        noise=non_negative("sq_step_sum", sq_step_sum) / 2 + non_negative("residual", residual),
        spread=non_negative("excess_sum", excess_sum),
        slope=positive("step_size_sum", step_size_sum),
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
    r"""Bound on the η-weighted mean of ``f_{i_k}(x_k) − f_{i_k}(x_p)`` along one run of ``x_{k+1} = x_k − η_k g_k − e_k``.

    .. math:: \frac{\sum_k\eta_k(a_k-b_k)}{\sum_k\eta_k} \le \frac{(D_0^2-D_K^2)/2 + \frac12\sum_k\eta_k^2G_k^2 + R
              + \beta\sum_k\eta_k(b_k-l_k)}{\delta\sum_k\eta_k}, \qquad R = \sum_k\bigl(\tfrac12\|e_k\|^2 + \|e_k\|D_k\bigr)

    It holds for the run itself, for every ``η_k ≥ 0``, every reference x_p, and every pair that holds at all K probes.

    Args:
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        step_size_sum: Σ η_k.
        sq_step_sum: Σ η_k² G_k².
        excess_sum: Σ η_k (b_k − l_k).
        sq_distance: D_0² = ‖x_0 − x_p‖².
        final_sq_distance: D_K² = ‖x_K − x_p‖².
        residual: R, what of the steps was not along −g_k.

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range.

    Source:
        ``docs/theory.md``, section 6.

    Example:
        >>> sums = {"step_size_sum": 10.0, "sq_step_sum": 0.5, "excess_sum": 1.0}
        >>> trajectory(alpha=1.0, beta=0.0, sq_distance=1.0, final_sq_distance=0.0, **sums)
        tensor(0.0750, dtype=torch.float64)
    """
    shape = trajectory_shape(
        step_size_sum=step_size_sum,
        sq_step_sum=sq_step_sum,
        excess_sum=excess_sum,
        sq_distance=sq_distance,
        final_sq_distance=final_sq_distance,
        residual=residual,
    )
    return value(shape, alpha, beta, "α > β")
