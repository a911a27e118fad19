"""SGD with constant, decreasing and any other fixed step sizes. Proofs: ``docs/theory.md``, section 5."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from lightning_landscape.bounds.functional._arguments import (
    Number,
    decay,
    inverse_steps,
    non_negative,
    positive,
    value,
)
from lightning_landscape.functional._fractional import LinearFractional


def sgd_shape(
    *,
    steps: float,
    step_size: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> LinearFractional:
    """Return `sgd` as a function of the pair."""
    gamma, big_l = positive("step_size", step_size), non_negative("smoothness", smoothness)
    d_sq, sigma_sq = (
        non_negative("sq_distance", sq_distance),
        non_negative("interpolation_error", interpolation_error),
    )
    return LinearFractional(
        distance=d_sq * inverse_steps(steps) / gamma,
        noise=2 * big_l * gamma * sigma_sq,
        spread=2 * sigma_sq,
        least_rate=2 * big_l * gamma,
        closed=True,
    )


def sgd(
    *,
    steps: float,
    step_size: Number,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> Tensor:
    r"""Bound on ``min_{k<K} E[f(x_k) − f*]`` for SGD with a constant step ``γ ≤ δ/(2L)``, δ = α − β.

    .. math:: \frac{D_0^2}{K\gamma\delta} + \frac{2L\gamma\sigma^2}{\delta} + \frac{2\beta\sigma^2}{\delta}

    Args:
        steps: K, number of updates; ``math.inf`` for the neighbourhood that is left as K → ∞.
        step_size: γ > 0.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``.
        sq_distance: D_0², squared distance of x_0 to the minimisers, or to any fixed x_p with f(x_p) in the place of f*.
        interpolation_error: σ² = E[f_i(x_p) − f_i^*].

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or the step-size condition.

    Source:
        Islamov et al. 2024, Theorem 1.

    Example:
        >>> sgd(steps=100, step_size=0.1, alpha=1.0, beta=0.0, smoothness=1.0, sq_distance=1.0, interpolation_error=0.0)
        tensor(0.1000, dtype=torch.float64)
    """
    shape = sgd_shape(
        steps=steps,
        step_size=step_size,
        smoothness=smoothness,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
    )
    return value(shape, alpha, beta, "step_size ≤ (α − β)/(2 smoothness)")


def sgd_sharp_shape(
    *,
    steps: float,
    step_size: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> LinearFractional:
    """Return `sgd_sharp` as a function of the pair."""
    gamma, big_l = positive("step_size", step_size), non_negative("smoothness", smoothness)
    d_sq, sigma_sq = (
        non_negative("sq_distance", sq_distance),
        non_negative("interpolation_error", interpolation_error),
    )
    return LinearFractional(
        distance=d_sq * inverse_steps(steps) / (2 * gamma),
        noise=big_l * gamma * sigma_sq,
        spread=sigma_sq,
        offset=big_l * gamma,
        least_rate=big_l * gamma,
    )


def sgd_sharp(
    *,
    steps: float,
    step_size: Number,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> Tensor:
    r"""Sharper bound on ``min_{k<K} E[f(x_k) − f*]`` for SGD with any constant step ``γ < δ/L``, δ = α − β.

    .. math:: \frac{D_0^2/(2\gamma K) + (\beta + L\gamma)\sigma^2}{\delta - L\gamma}

    Never above `sgd` where that applies; as γ → 0 and γK → ∞ the neighbourhood is βσ²/δ.

    Args:
        steps: K, number of updates; ``math.inf`` for the neighbourhood that is left as K → ∞.
        step_size: γ > 0.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``.
        sq_distance: D_0² = ‖x_0 − x_p‖².
        interpolation_error: σ² = E[f_i(x_p) − f_i^*].

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or the step-size condition.

    Source:
        ``docs/theory.md``, section 5; the constant step of Islamov et al. 2024, Theorem 1, without its last estimate.

    Example:
        >>> sgd_sharp(steps=100, step_size=0.5, alpha=1.0, beta=0.0, smoothness=1.0, sq_distance=1.0, interpolation_error=0.0)
        tensor(0.0200, dtype=torch.float64)
    """
    shape = sgd_sharp_shape(
        steps=steps,
        step_size=step_size,
        smoothness=smoothness,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
    )
    return value(shape, alpha, beta, "step_size < (α − β)/smoothness")


def sgd_schedule_shape(
    *,
    step_sizes: Tensor,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
    counts: Tensor | None = None,
) -> LinearFractional:
    """Return `sgd_schedule` as a function of the pair; ``counts`` says how many steps each size was taken for, default 1."""
    if (
        step_sizes.ndim != 1
        or not len(step_sizes)
        or not bool((step_sizes.isfinite() & (step_sizes >= 0)).all())
    ):
        raise ValueError(
            f"`step_sizes` is {step_sizes}; supported are finite numbers of 0 or more, shape (K,)"
        )
    gammas, big_l = step_sizes.double(), non_negative("smoothness", smoothness)
    d_sq, sigma_sq = (
        non_negative("sq_distance", sq_distance),
        non_negative("interpolation_error", interpolation_error),
    )
    times = torch.ones_like(gammas) if counts is None else counts.double()
    total, squares = (
        Fraction(float((times * gammas).sum())),
        Fraction(float((times * gammas.square()).sum())),
    )
    if not total:
        raise ValueError("`step_sizes` are all 0; supported is a schedule that moves")
    return LinearFractional(
        distance=d_sq / 2,
        noise=sigma_sq * big_l * squares,
        spread=sigma_sq * total,
        slope=total,
        offset=big_l * squares,
        least_rate=big_l * Fraction(float(gammas[times > 0].max())),
        closed=True,
    )


def sgd_schedule(
    *,
    step_sizes: Tensor,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> Tensor:
    r"""Bound on ``min_{k<K} E[f(x_k) − f*]`` for SGD with any schedule that was fixed before, ``max γ_k ≤ δ/L``, δ = α − β.

    .. math:: \frac{D_0^2/2 + \sigma^2 \sum_k \gamma_k(\beta + L\gamma_k)}{\sum_k \gamma_k(\delta - L\gamma_k)}

    Args:
        step_sizes: γ_k, shape ``(K,)``; not a function of the mini-batches, as a clipped step is.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``.
        sq_distance: D_0² = ‖x_0 − x_p‖².
        interpolation_error: σ² = E[f_i(x_p) − f_i^*].

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or the step-size condition.

    Source:
        ``docs/theory.md``, section 5.

    Example:
        >>> import torch
        >>> constants = {"smoothness": 1.0, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> sgd_schedule(step_sizes=torch.full((100,), 0.5), alpha=1.0, beta=0.0, **constants)
        tensor(0.0200, dtype=torch.float64)
    """
    shape = sgd_schedule_shape(
        step_sizes=step_sizes,
        smoothness=smoothness,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
    )
    return value(shape, alpha, beta, "max step_sizes ≤ (α − β)/smoothness, not all equal to it")


def sgd_decreasing_shape(
    *,
    steps: float,
    step_size: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> LinearFractional:
    """Return `sgd_decreasing` as a function of the pair."""
    gamma, big_l = positive("step_size", step_size), non_negative("smoothness", smoothness)
    d_sq, sigma_sq = (
        non_negative("sq_distance", sq_distance),
        non_negative("interpolation_error", interpolation_error),
    )
    slow, slower = decay(steps)
    return LinearFractional(
        distance=5 * d_sq * slow / (4 * gamma),
        noise=5 * gamma * big_l * sigma_sq * slower,
        spread=2 * sigma_sq,
        least_rate=2 * big_l * gamma,
        closed=True,
    )


def sgd_decreasing(
    *,
    steps: float,
    step_size: Number,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> Tensor:
    r"""Bound on ``min_{k<K} E[f(x_k) − f*]`` for SGD with ``γ_k = γ_0/√(k+1)``, ``γ_0 ≤ δ/(2L)``, δ = α − β.

    .. math:: \frac{5D_0^2}{4\delta\gamma_0\sqrt K} + \frac{5\gamma_0L\sigma^2}{\delta}\frac{\log(K+1)}{\sqrt K}
              + \frac{2\beta\sigma^2}{\delta}

    Args:
        steps: K, number of updates; ``math.inf`` for the neighbourhood that is left as K → ∞.
        step_size: γ_0 > 0, the first step.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``.
        sq_distance: D_0² = ‖x_0 − x_p‖².
        interpolation_error: σ² = E[f_i(x_p) − f_i^*].

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or the step-size condition.

    Source:
        Islamov et al. 2024, Theorem 4.

    Example:
        >>> constants = {"smoothness": 1.0, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> sgd_decreasing(steps=25, step_size=0.5, alpha=1.0, beta=0.0, **constants)
        tensor(0.5000, dtype=torch.float64)
    """
    shape = sgd_decreasing_shape(
        steps=steps,
        step_size=step_size,
        smoothness=smoothness,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
    )
    return value(shape, alpha, beta, "step_size ≤ (α − β)/(2 smoothness)")
