"""The non-negative Gauss-Newton step NGN. Proofs: ``docs/theory.md``, section 5."""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

from lightning_landscape.bounds.functional._arguments import (
    Number,
    decay,
    inverse_steps,
    non_negative,
    positive,
    value,
)
from lightning_landscape.functional._fractional import ONE, LinearFractional


def ngn_shape(
    *,
    steps: float,
    step_size: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
    positivity_error: Number,
) -> LinearFractional:
    """Return `ngn` as a function of the pair."""
    gamma, q, d_sq, sigma_sq, positivity = _read(
        step_size, smoothness, sq_distance, interpolation_error, positivity_error
    )
    return LinearFractional(
        distance=d_sq * (1 + 2 * q) ** 2 * inverse_steps(steps) / (2 * gamma),
        noise=q * max(2 * q - 1, Fraction(0)) * positivity,
        noise_rate=3 * q * (1 + q) * sigma_sq,
        spread=3 * q * (1 + q) * sigma_sq + sigma_sq,
        slope=1 + 2 * q,
        offset=2 * q,
        least_rate=ONE,
        closed=True,
    )


def ngn(
    *,
    steps: float,
    step_size: Number,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
    positivity_error: Number,
) -> Tensor:
    r"""Bound on ``min_{k<K} E[f(x_k) − f*]`` for NGN, ``γ_k = γ/(1 + γ‖∇f_i‖²/(2f_i))``, with any γ, for ``α ≥ β + 1``.

    .. math:: \frac{D_0^2(1+2\gamma L)^2}{2\gamma Kc_2} + \frac{3L\gamma\alpha(1+\gamma L)\sigma^2}{c_2}
              + \frac{\gamma L}{c_2}\max\{2\gamma L-1, 0\}\sigma_{\rm pos}^2 + \frac{\beta\sigma^2}{c_2}, \qquad
              c_2 = 2\gamma L(\delta-1) + \delta

    Args:
        steps: K, number of updates; ``math.inf`` for the neighbourhood that is left as K → ∞.
        step_size: γ > 0.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, at most α − 1.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``.
        sq_distance: D_0² = ‖x_0 − x_p‖².
        interpolation_error: σ² = E[f_i(x_p) − f_i^*].
        positivity_error: σ_pos² = E f_i^*, with f_i^* ≥ 0.

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or α ≥ β + 1.

    Source:
        Islamov et al. 2024, Theorem 3; Orvieto and Xiao 2024. The factor of the third term is that of the proof.

    Example:
        >>> constants = {"smoothness": 0.5, "sq_distance": 1.0, "interpolation_error": 0.0, "positivity_error": 0.0}
        >>> ngn(steps=100, step_size=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.0200, dtype=torch.float64)
    """
    shape = ngn_shape(
        steps=steps,
        step_size=step_size,
        smoothness=smoothness,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
        positivity_error=positivity_error,
    )
    return value(shape, alpha, beta, "α ≥ β + 1")


def ngn_sharp_shape(
    *,
    steps: float,
    step_size: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
    positivity_error: Number,
) -> LinearFractional:
    """Return `ngn_sharp` as a function of the pair."""
    gamma, q, d_sq, sigma_sq, positivity = _read(
        step_size, smoothness, sq_distance, interpolation_error, positivity_error
    )
    return LinearFractional(
        distance=d_sq * (1 + q) * (1 + 2 * q) * inverse_steps(steps) / (2 * gamma),
        noise=q * max(2 * q - 1, Fraction(0)) * positivity + 2 * q * sigma_sq,
        noise_rate=(1 + q) * (1 + 2 * q) * sigma_sq - (1 + 2 * q) * sigma_sq,
        spread=(1 + q) * (1 + 2 * q) * sigma_sq,
        slope=1 + 2 * q,
        offset=2 * q,
        least_rate=2 * q / (1 + 2 * q),
    )


def ngn_sharp(
    *,
    steps: float,
    step_size: Number,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
    positivity_error: Number,
) -> Tensor:
    r"""Sharper bound on ``min_{k<K} E[f(x_k) − f*]`` for NGN, for any ``δ > 2γL/(1 + 2γL)``, δ = α − β.

    .. math:: \frac1{c_2}\Bigl\{\frac{D_0^2(1+\gamma L)(1+2\gamma L)}{2\gamma K}
              + [\alpha(1+\gamma L)(1+2\gamma L) - c_2]\sigma^2 + \gamma L\max\{2\gamma L-1, 0\}\sigma_{\rm pos}^2\Bigr\},
              \qquad c_2 = 2\gamma L(\delta-1) + \delta

    Args:
        steps: K, number of updates; ``math.inf`` for the neighbourhood that is left as K → ∞.
        step_size: γ > 0.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``.
        sq_distance: D_0² = ‖x_0 − x_p‖².
        interpolation_error: σ² = E[f_i(x_p) − f_i^*].
        positivity_error: σ_pos² = E f_i^*, with f_i^* ≥ 0.

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or the condition on δ.

    Source:
        ``docs/theory.md``, section 5.

    Example:
        >>> constants = {"smoothness": 0.5, "sq_distance": 1.0, "interpolation_error": 0.0, "positivity_error": 0.0}
        >>> ngn_sharp(steps=100, step_size=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.0150, dtype=torch.float64)
    """
    shape = ngn_sharp_shape(
        steps=steps,
        step_size=step_size,
        smoothness=smoothness,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
        positivity_error=positivity_error,
    )
    return value(shape, alpha, beta, "α − β > 2γL/(1 + 2γL), γ = step_size, L = smoothness")


def ngn_decreasing_shape(
    *,
    steps: float,
    step_size: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
    positivity_error: Number,
) -> LinearFractional:
    """Return `ngn_decreasing` as a function of the pair."""
    gamma, q, d_sq, sigma_sq, positivity = _read(
        step_size, smoothness, sq_distance, interpolation_error, positivity_error
    )
    slow, slower = decay(steps)
    c_1, c_2 = 5 * (1 + q) * (1 + 2 * q) / (8 * gamma), 15 * q * (1 + q) * (1 + 2 * q) / 2
    c_3, c_4 = (
        (1 + q) * (1 + 2 * q),
        5 * (1 + q) * (1 + 2 * q) * q * max(2 * q - 1, Fraction(0)) / 2,
    )
    return LinearFractional(
        distance=c_1 * d_sq * slow,
        noise=c_4 * slower * positivity,
        noise_rate=c_2 * slower * sigma_sq,
        spread=c_2 * slower * sigma_sq + c_3 * sigma_sq,
        least_rate=ONE,
        closed=True,
    )


def ngn_decreasing(
    *,
    steps: float,
    step_size: Number,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
    positivity_error: Number,
) -> Tensor:
    r"""Bound on ``min_{k<K} E[f(x_k) − f*]`` for NGN with ``γ/√(k+1)`` in the place of γ, for ``α ≥ β + 1``.

    .. math:: \frac1\delta\Bigl\{\frac{C_1D_0^2}{\sqrt K} + C_2\frac{\log(K+1)}{\sqrt K}\alpha\sigma^2 + C_3\beta\sigma^2
              + C_4\frac{\log(K+1)}{\sqrt K}\sigma_{\rm pos}^2\Bigr\}

    with q = γL, ``C_1 = 5(1+q)(1+2q)/(8γ)``, ``C_2 = 15q(1+q)(1+2q)/2``, ``C_3 = (1+q)(1+2q)`` and
    ``C_4 = 5(1+q)(1+2q)q·max{2q−1, 0}/2``.

    Args:
        steps: K, number of updates; ``math.inf`` for the neighbourhood that is left as K → ∞.
        step_size: γ > 0, of the first step.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, at most α − 1.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``.
        sq_distance: D_0² = ‖x_0 − x_p‖².
        interpolation_error: σ² = E[f_i(x_p) − f_i^*].
        positivity_error: σ_pos² = E f_i^*, with f_i^* ≥ 0.

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or α ≥ β + 1.

    Source:
        Islamov et al. 2024, Theorem 6, with the 1/δ of its proof.

    Example:
        >>> constants = {"smoothness": 0.5, "sq_distance": 1.0, "interpolation_error": 0.0, "positivity_error": 0.0}
        >>> ngn_decreasing(steps=100, step_size=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.1875, dtype=torch.float64)
    """
    shape = ngn_decreasing_shape(
        steps=steps,
        step_size=step_size,
        smoothness=smoothness,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
        positivity_error=positivity_error,
    )
    return value(shape, alpha, beta, "α ≥ β + 1")


def _read(
    step_size: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
    positivity_error: Number,
) -> tuple[Fraction, Fraction, Fraction, Fraction, Fraction]:
    """Return γ, q = γL, D_0², σ² and σ_pos² exactly."""
    gamma = positive("step_size", step_size)
    return (
        gamma,
        gamma * non_negative("smoothness", smoothness),
        non_negative("sq_distance", sq_distance),
        non_negative("interpolation_error", interpolation_error),
        non_negative("positivity_error", positivity_error),
    )
