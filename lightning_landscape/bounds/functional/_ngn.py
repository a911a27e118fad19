"""The non-negative Gauss-Newton step NGN. Proofs: ``docs/theory.md``, section 5."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor
from typing_extensions import override

from lightning_landscape.bounds.functional._bound import (
    BoundOfOneStepSize,
    NonNegative,
    Number,
    decay,
    inverse_steps,
)
from lightning_landscape.functional._fractional import ONE, ZERO, LinearFractional


@dataclass(frozen=True, slots=True, kw_only=True)
class NGN(BoundOfOneStepSize):
    r"""Bound of NGN, ``γ_k = γ/(1 + γ‖∇f_i‖²/(2f_i))``, with any γ, for ``α ≥ β + 1``.

    .. math:: \frac{D_0^2(1+2\gamma L)^2}{2\gamma Kc_2}
              + \frac{3L\gamma\alpha(1+\gamma L)\sigma^2}{c_2}
              + \frac{\gamma L}{c_2}\max\{2\gamma L-1, 0\}\sigma_{\rm pos}^2
              + \frac{\beta\sigma^2}{c_2}, \qquad c_2 = 2\gamma L(\delta-1) + \delta

    Args:
        positivity_error: σ_pos² = E f_i^*, with f_i^* ≥ 0; the other arguments are as in `SGD`.

    Source:
        Islamov et al. 2024, Theorem 3; Orvieto and Xiao 2024. The factor of the third term is
        that of the proof.
    """

    positivity_error: NonNegative

    condition = "α ≥ β + 1"

    @override
    def shape(self) -> LinearFractional:
        γ, q, D_sq, σ_sq, σ_pos_sq = self._exact()
        return LinearFractional(
            distance=D_sq * (1 + 2 * q) ** 2 * inverse_steps(self.steps) / (2 * γ),
            noise=q * max(2 * q - 1, ZERO) * σ_pos_sq,
            noise_rate=3 * q * (1 + q) * σ_sq,
            spread=3 * q * (1 + q) * σ_sq + σ_sq,
            slope=1 + 2 * q,
            offset=2 * q,
            least_rate=ONE,
            closed=True,
        )

    def _exact(self) -> tuple[Fraction, Fraction, Fraction, Fraction, Fraction]:
        """Return γ, q = γL, D_0², σ² and σ_pos² exactly."""
        γ, L, D_sq, σ_sq, σ_pos_sq = self.exact()
        return γ, γ * L, D_sq, σ_sq, σ_pos_sq


@dataclass(frozen=True, slots=True, kw_only=True)
class NGNSharp(NGN):
    r"""Sharper bound of NGN, for any ``δ > 2γL/(1 + 2γL)``; arguments as in `NGN`.

    .. math:: \frac1{c_2}\Bigl\{\frac{D_0^2(1+\gamma L)(1+2\gamma L)}{2\gamma K}
              + [\alpha(1+\gamma L)(1+2\gamma L) - c_2]\sigma^2
              + \gamma L\max\{2\gamma L-1, 0\}\sigma_{\rm pos}^2\Bigr\},
              \qquad c_2 = 2\gamma L(\delta-1) + \delta

    Source:
        ``docs/theory.md``, section 5.
    """

    condition = "α − β > 2γL/(1 + 2γL), γ = step_size, L = smoothness"

    @override
    def shape(self) -> LinearFractional:
        γ, q, D_sq, σ_sq, σ_pos_sq = self._exact()
        return LinearFractional(
            distance=D_sq * (1 + q) * (1 + 2 * q) * inverse_steps(self.steps) / (2 * γ),
            noise=q * max(2 * q - 1, ZERO) * σ_pos_sq + 2 * q * σ_sq,
            noise_rate=(1 + q) * (1 + 2 * q) * σ_sq - (1 + 2 * q) * σ_sq,
            spread=(1 + q) * (1 + 2 * q) * σ_sq,
            slope=1 + 2 * q,
            offset=2 * q,
            least_rate=2 * q / (1 + 2 * q),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NGNDecreasing(NGN):
    r"""Bound of NGN with ``γ/√(k+1)`` for γ, for ``α ≥ β + 1``; arguments as in `NGN`.

    .. math:: \frac1\delta\Bigl\{\frac{C_1D_0^2}{\sqrt K}
              + C_2\frac{\log(K+1)}{\sqrt K}\alpha\sigma^2 + C_3\beta\sigma^2
              + C_4\frac{\log(K+1)}{\sqrt K}\sigma_{\rm pos}^2\Bigr\}

    with q = γL, ``C_1 = 5(1+q)(1+2q)/(8γ)``, ``C_2 = 15q(1+q)(1+2q)/2``, ``C_3 = (1+q)(1+2q)`` and
    ``C_4 = 5(1+q)(1+2q)q·max{2q−1, 0}/2``.

    Source:
        Islamov et al. 2024, Theorem 6, with the 1/δ of its proof.
    """

    condition = "α ≥ β + 1"

    @override
    def shape(self) -> LinearFractional:
        γ, q, D_sq, σ_sq, σ_pos_sq = self._exact()
        slow, slower = decay(self.steps)
        C_1 = 5 * (1 + q) * (1 + 2 * q) / (8 * γ)
        C_2 = 15 * q * (1 + q) * (1 + 2 * q) / 2
        C_3 = (1 + q) * (1 + 2 * q)
        C_4 = 5 * (1 + q) * (1 + 2 * q) * q * max(2 * q - 1, ZERO) / 2
        return LinearFractional(
            distance=C_1 * D_sq * slow,
            noise=C_4 * slower * σ_pos_sq,
            noise_rate=C_2 * slower * σ_sq,
            spread=C_2 * slower * σ_sq + C_3 * σ_sq,
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
    """Return the bound of NGN at a pair; see `NGN`.

    Example:
        >>> constants = {"smoothness": 0.5, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> constants["positivity_error"] = 0.0
        >>> ngn(steps=100, step_size=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.0200, dtype=torch.float64)
    """
    return NGN.value(**locals())


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
    """Return the sharper bound of NGN at a pair; see `NGNSharp`.

    Example:
        >>> constants = {"smoothness": 0.5, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> constants["positivity_error"] = 0.0
        >>> ngn_sharp(steps=100, step_size=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.0150, dtype=torch.float64)
    """
    return NGNSharp.value(**locals())


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
    """Return the bound of NGN with a γ that falls as 1/√(k+1) at a pair; see `NGNDecreasing`.

    Example:
        >>> constants = {"smoothness": 0.5, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> constants["positivity_error"] = 0.0
        >>> ngn_decreasing(steps=100, step_size=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.1875, dtype=torch.float64)
    """
    return NGNDecreasing.value(**locals())
