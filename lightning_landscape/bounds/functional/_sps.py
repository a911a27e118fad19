"""The stochastic Polyak step sizes SPS_max and DecSPS. Proofs: ``docs/theory.md``, section 5."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from torch import Tensor

from lightning_landscape.bounds.functional._arguments import (
    Number,
    inverse_steps,
    non_negative,
    positive,
    value,
)
from lightning_landscape.functional._fractional import LinearFractional


def sps_max_shape(
    *,
    steps: float,
    c: Number,
    step_size_bound: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> LinearFractional:
    """Return `sps_max` as a function of the pair."""
    scale, gamma_b = positive("c", c), positive("step_size_bound", step_size_bound)
    big_l = non_negative("smoothness", smoothness)
    d_sq, sigma_sq = (
        non_negative("sq_distance", sq_distance),
        non_negative("interpolation_error", interpolation_error),
    )
    gamma_min = min(1 / (2 * scale * big_l), gamma_b) if big_l else gamma_b
    return LinearFractional(
        distance=scale * d_sq * inverse_steps(steps),
        noise_rate=2 * scale * gamma_b * sigma_sq,
        spread=2 * scale * gamma_b * sigma_sq,
        slope=2 * scale * gamma_min,
        offset=gamma_min,
        least_rate=1 / (2 * scale),
    )


def sps_max(
    *,
    steps: float,
    c: Number,
    step_size_bound: Number,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> Tensor:
    r"""Bound on ``min_{k<K} E[f(x_k) − f*]`` for SPS_max, ``γ_k = min{(f_i − f_i^*)/(c‖∇f_i‖²), γ_b}``, ``c > 1/(2δ)``.

    .. math:: c_1\frac{D_0^2}{K} + 2\alpha c_1\gamma_b\sigma^2, \qquad c_1 = \frac{c}{\gamma_{\min}(2\delta c - 1)}, \quad
              \gamma_{\min} = \min\{1/(2cL), \gamma_b\}

    With α = 1, β = 0 it is the bound of Loizou et al. for convex functions.

    Args:
        steps: K, number of updates; ``math.inf`` for the neighbourhood that is left as K → ∞.
        c: c > 1/(2δ), δ = α − β.
        step_size_bound: γ_b, the largest step.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``.
        sq_distance: D_0² = ‖x_0 − x_p‖².
        interpolation_error: σ² = E[f_i(x_p) − f_i^*], with the f_i^* that the optimiser uses.

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or the condition on c.

    Source:
        Islamov et al. 2024, Theorem 2; Loizou, Vaswani, Laradji, Lacoste-Julien 2021.

    Example:
        >>> constants = {"smoothness": 0.5, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> sps_max(steps=100, c=1.0, step_size_bound=2.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.0100, dtype=torch.float64)
    """
    shape = sps_max_shape(
        steps=steps,
        c=c,
        step_size_bound=step_size_bound,
        smoothness=smoothness,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
    )
    return value(shape, alpha, beta, "c > 1/(2(α − β))")


def sps_max_sharp_shape(
    *,
    steps: float,
    c: Number,
    step_size_bound: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> LinearFractional:
    """Return `sps_max_sharp` as a function of the pair."""
    shape = sps_max_shape(
        steps=steps,
        c=c,
        step_size_bound=step_size_bound,
        smoothness=smoothness,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
    )
    return minus(shape, Fraction(float(interpolation_error)))


def minus(shape: LinearFractional, number: Fraction) -> LinearFractional:
    """Return the bound minus a number, as a function of the pair."""
    return replace(
        shape,
        noise=shape.noise + number * shape.offset,
        noise_rate=shape.noise_rate - number * shape.slope,
    )


def sps_max_sharp(
    *,
    steps: float,
    c: Number,
    step_size_bound: Number,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> Tensor:
    r"""Sharper bound on ``min_{k<K} E[f(x_k) − f*]`` for SPS_max: that of `sps_max` minus σ².

    .. math:: c_1\frac{D_0^2}{K} + (2\alpha c_1\gamma_b - 1)\sigma^2

    The proof bounds the mean of ``f_i(x_k) − f_i^*``, which is the gap and σ².

    Args:
        steps: K, number of updates; ``math.inf`` for the neighbourhood that is left as K → ∞.
        c: c > 1/(2δ), δ = α − β.
        step_size_bound: γ_b, the largest step.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``.
        sq_distance: D_0² = ‖x_0 − x_p‖².
        interpolation_error: σ² = E[f_i(x_p) − f_i^*], with the f_i^* that the optimiser uses.

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or the condition on c.

    Source:
        ``docs/theory.md``, section 5.

    Example:
        >>> constants = {"smoothness": 0.5, "sq_distance": 1.0, "interpolation_error": 0.25}
        >>> sps_max_sharp(steps=100, c=1.0, step_size_bound=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.2600, dtype=torch.float64)
    """
    shape = sps_max_sharp_shape(
        steps=steps,
        c=c,
        step_size_bound=step_size_bound,
        smoothness=smoothness,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
    )
    return value(shape, alpha, beta, "c > 1/(2(α − β))")


def dec_sps_shape(
    *,
    steps: float,
    c_init: Number,
    c_last: Number,
    inverse_c_sum: Number,
    step_size_bound: Number,
    smoothness: Number,
    max_sq_distance: Number,
    interpolation_error: Number,
) -> LinearFractional:
    """Return `dec_sps` as a function of the pair."""
    initial, mean_inverse_c, c_0, sigma_sq = _dec_sps(
        steps,
        c_init,
        c_last,
        inverse_c_sum,
        step_size_bound,
        smoothness,
        max_sq_distance,
        interpolation_error,
    )
    return LinearFractional(
        distance=initial,
        noise=mean_inverse_c * sigma_sq,
        spread=2 * sigma_sq,
        least_rate=1 / c_0,
        closed=True,
    )


def dec_sps(
    *,
    steps: float,
    c_init: Number,
    c_last: Number,
    inverse_c_sum: Number,
    step_size_bound: Number,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    max_sq_distance: Number,
    interpolation_error: Number,
) -> Tensor:
    r"""Bound on ``min_{k<K} E[f(x_k) − f*]`` for DecSPS, ``γ_k = min{(f_i − f_i^*)/‖∇f_i‖², c_{k−1}γ_{k−1}}/c_k``.

    .. math:: \frac{2\tilde LD^2c_{K-1}}{K\delta} + \frac{2\beta\sigma^2}{\delta} + \frac1K\sum_k\frac{\sigma^2}{\delta c_k},
              \qquad \tilde L = \max\{L, 1/(2c_0\gamma_b)\}

    It needs c_k that do not decrease and ``c_0 ≥ 1/δ``, δ = α − β.

    Args:
        steps: K, number of updates; ``math.inf`` for what is left as K → ∞ where c_k → ∞ more slowly than k.
        c_init: c_0.
        c_last: c_{K−1}.
        inverse_c_sum: Σ_k 1/c_k over all K updates.
        step_size_bound: γ_b, which stands for γ_{−1}; c_{−1} = c_0.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``.
        max_sq_distance: D² = E max_k ‖x_k − x_p‖² over every step.
        interpolation_error: σ² = E[f_i(x_p) − f_i^*], with the f_i^* that the optimiser uses.

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or the condition on c.

    Source:
        Islamov et al. 2024, Theorem 5; Orvieto, Lacoste-Julien, Loizou 2022.

    Example:
        >>> constants = {"smoothness": 0.5, "max_sq_distance": 1.0, "interpolation_error": 0.0, "step_size_bound": 1.0}
        >>> dec_sps(steps=100, c_init=1.0, c_last=10.0, inverse_c_sum=18.59, alpha=1.0, beta=0.0, **constants)
        tensor(0.1000, dtype=torch.float64)
    """
    shape = dec_sps_shape(
        steps=steps,
        c_init=c_init,
        c_last=c_last,
        inverse_c_sum=inverse_c_sum,
        step_size_bound=step_size_bound,
        smoothness=smoothness,
        max_sq_distance=max_sq_distance,
        interpolation_error=interpolation_error,
    )
    return value(shape, alpha, beta, "c_init ≥ 1/(α − β)")


def dec_sps_sharp_shape(
    *,
    steps: float,
    c_init: Number,
    c_last: Number,
    inverse_c_sum: Number,
    step_size_bound: Number,
    smoothness: Number,
    max_sq_distance: Number,
    interpolation_error: Number,
) -> LinearFractional:
    """Return `dec_sps_sharp` as a function of the pair."""
    initial, mean_inverse_c, c_0, sigma_sq = _dec_sps(
        steps,
        c_init,
        c_last,
        inverse_c_sum,
        step_size_bound,
        smoothness,
        max_sq_distance,
        interpolation_error,
    )
    return LinearFractional(
        distance=initial,
        noise=mean_inverse_c * sigma_sq,
        spread=2 * sigma_sq,
        slope=Fraction(2),
        offset=mean_inverse_c,
        least_rate=1 / (2 * c_0),
        closed=True,
    )


def dec_sps_sharp(
    *,
    steps: float,
    c_init: Number,
    c_last: Number,
    inverse_c_sum: Number,
    step_size_bound: Number,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    max_sq_distance: Number,
    interpolation_error: Number,
) -> Tensor:
    r"""Sharper bound on ``min_{k<K} E[f(x_k) − f*]`` for DecSPS, for ``δ ≥ 1/(2c_0)``, δ = α − β.

    .. math:: \frac{2\tilde LD^2c_{K-1} + (2\beta K + \sum_k 1/c_k)\sigma^2}{2\delta K - \sum_k 1/c_k},
              \qquad \tilde L = \max\{L, 1/(2c_0\gamma_b)\}

    Args:
        steps: K, number of updates; ``math.inf`` for what is left as K → ∞ where c_k → ∞ more slowly than k.
        c_init: c_0.
        c_last: c_{K−1}.
        inverse_c_sum: Σ_k 1/c_k over all K updates, below 2δK.
        step_size_bound: γ_b, which stands for γ_{−1}; c_{−1} = c_0.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``.
        max_sq_distance: D² = E max_k ‖x_k − x_p‖² over every step.
        interpolation_error: σ² = E[f_i(x_p) − f_i^*], with the f_i^* that the optimiser uses.

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or the condition on c.

    Source:
        ``docs/theory.md``, section 5.

    Example:
        >>> constants = {"smoothness": 0.5, "max_sq_distance": 1.0, "interpolation_error": 0.0, "step_size_bound": 1.0}
        >>> dec_sps_sharp(steps=100, c_init=1.0, c_last=10.0, inverse_c_sum=100.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.1000, dtype=torch.float64)
    """
    shape = dec_sps_sharp_shape(
        steps=steps,
        c_init=c_init,
        c_last=c_last,
        inverse_c_sum=inverse_c_sum,
        step_size_bound=step_size_bound,
        smoothness=smoothness,
        max_sq_distance=max_sq_distance,
        interpolation_error=interpolation_error,
    )
    return value(shape, alpha, beta, "c_init ≥ 1/(2(α − β)) and inverse_c_sum < 2(α − β)K")


def _dec_sps(
    steps: float,
    c_init: Number,
    c_last: Number,
    inverse_c_sum: Number,
    step_size_bound: Number,
    smoothness: Number,
    max_sq_distance: Number,
    interpolation_error: Number,
) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """Return 2L̃D²c_{K−1}/K, (Σ 1/c_k)/K, c_0 and σ²."""
    c_0, gamma_b = positive("c_init", c_init), positive("step_size_bound", step_size_bound)
    big_l = max(non_negative("smoothness", smoothness), 1 / (2 * c_0 * gamma_b))
    d_sq = non_negative("max_sq_distance", max_sq_distance)
    sigma_sq = non_negative("interpolation_error", interpolation_error)
    inverse = inverse_steps(steps)
    if math.isinf(steps):
        return Fraction(0), Fraction(0), c_0, sigma_sq
    c_end, total = positive("c_last", c_last), positive("inverse_c_sum", inverse_c_sum)
    if c_end < c_0:
        raise ValueError(
            f"`c_last` is {float(c_end)}, below `c_init` {float(c_0)}; supported are c_k that do not decrease"
        )
    return 2 * big_l * d_sq * c_end * inverse, total * inverse, c_0, sigma_sq
