"""Gradient descent on the full batch. Proof: ``docs/theory.md``, section 5."""

from __future__ import annotations

from torch import Tensor

from lightning_landscape.bounds.functional._arguments import (
    Number,
    inverse_steps,
    non_negative,
    positive,
    value,
)
from lightning_landscape.functional._fractional import LinearFractional


def gradient_descent_shape(
    *,
    steps: float,
    step_size: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> LinearFractional:
    """Return `gradient_descent` as a function of the pair."""
    gamma, big_l = positive("step_size", step_size), non_negative("smoothness", smoothness)
    d_sq, sigma_sq = (
        non_negative("sq_distance", sq_distance),
        non_negative("interpolation_error", interpolation_error),
    )
    return LinearFractional(
        distance=d_sq * inverse_steps(steps) / (2 * gamma),
        spread=sigma_sq,
        offset=big_l * gamma,
        least_rate=big_l * gamma,
    )


def gradient_descent(
    *,
    steps: float,
    step_size: Number,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> Tensor:
    r"""Bound on ``min_{k<K} f(x_k) − f(x_p)`` for full-batch gradient descent with ``γ < δ/L``, δ = α − β.

    .. math:: \frac{D_0^2/(2\gamma K) + \beta\sigma^2}{\delta - L\gamma}

    It holds for the run itself, without an expectation, and for its last iterate where the loss never rises.

    Args:
        steps: K, number of updates; ``math.inf`` for the neighbourhood that is left as K → ∞.
        step_size: γ > 0.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        smoothness: L, with ``‖∇f(x_k)‖² ≤ 2L(f(x_k) − f(x_p))`` at every step: of the full batch and against the reference,
            which is more than ``‖∇f‖² ≤ 2L(f − f^*)`` asks for. With the latter use `sgd_sharp`.
        sq_distance: D_0² = ‖x_0 − x_p‖².
        interpolation_error: σ² = f(x_p) − l, with the l of the α-β-condition.

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or the step-size condition.

    Source:
        ``docs/theory.md``, section 5.

    Example:
        >>> constants = {"smoothness": 1.0, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> gradient_descent(steps=100, step_size=0.5, alpha=1.0, beta=0.0, **constants)
        tensor(0.0200, dtype=torch.float64)
    """
    shape = gradient_descent_shape(
        steps=steps,
        step_size=step_size,
        smoothness=smoothness,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
    )
    return value(shape, alpha, beta, "step_size < (α − β)/smoothness")
