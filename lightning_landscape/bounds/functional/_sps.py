"""The stochastic Polyak steps SPS_max and DecSPS. Proofs: ``docs/theory.md``, section 5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor
from typing_extensions import override

from lightning_landscape.bounds.functional._bound import (
    Bound,
    NonNegative,
    Number,
    Positive,
    inverse_steps,
    minus,
    positive,
)
from lightning_landscape.functional._fractional import ZERO, LinearFractional


@dataclass(frozen=True, slots=True, kw_only=True)
class SPSMax(Bound):
    r"""Bound of SPS_max, ``γ_k = min{(f_i − f_i^*)/(c‖∇f_i‖²), γ_b}``, for ``c > 1/(2δ)``.

    .. math:: c_1\frac{D_0^2}{K} + 2\alpha c_1\gamma_b\sigma^2, \qquad
              c_1 = \frac{c}{\gamma_{\min}(2\delta c - 1)}, \quad
              \gamma_{\min} = \min\{1/(2cL), \gamma_b\}

    With α = 1, β = 0 it is the bound of Loizou et al. for convex functions.

    Args:
        c: c > 1/(2δ).
        step_size_bound: γ_b > 0, the largest step.
        interpolation_error: σ² with the f_i^* of the optimizer; the other arguments as in `SGD`.

    Source:
        Islamov et al. 2024, Theorem 2; Loizou, Vaswani, Laradji, Lacoste-Julien 2021.
    """

    steps: float
    c: Positive
    step_size_bound: Positive
    smoothness: NonNegative
    sq_distance: NonNegative
    interpolation_error: NonNegative

    condition = "c > 1/(2(α − β))"

    @override
    def shape(self) -> LinearFractional:
        c, γ_b, L, D_sq, σ_sq = self.exact()
        γ_min = min(1 / (2 * c * L), γ_b) if L else γ_b
        return LinearFractional(
            distance=c * D_sq * inverse_steps(self.steps),
            noise_rate=2 * c * γ_b * σ_sq,
            spread=2 * c * γ_b * σ_sq,
            slope=2 * c * γ_min,
            offset=γ_min,
            least_rate=1 / (2 * c),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SPSMaxSharp(SPSMax):
    r"""Sharper bound of SPS_max: that of `SPSMax`, with the same arguments, minus σ².

    .. math:: c_1\frac{D_0^2}{K} + (2\alpha c_1\gamma_b - 1)\sigma^2

    The proof bounds the mean of ``f_i(x_k) − f_i^*``, which is the gap plus σ².

    Source:
        ``docs/theory.md``, section 5.
    """

    @override
    def shape(self) -> LinearFractional:
        *_, σ_sq = self.exact()
        return minus(SPSMax.shape(self), σ_sq)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecSPS(Bound):
    r"""Bound of DecSPS, ``γ_k = min{(f_i − f_i^*)/‖∇f_i‖², c_{k−1}γ_{k−1}}/c_k``.

    .. math:: \frac{2\tilde LD^2c_{K-1}}{K\delta} + \frac{2\beta\sigma^2}{\delta}
              + \frac1K\sum_k\frac{\sigma^2}{\delta c_k},
              \qquad \tilde L = \max\{L, 1/(2c_0\gamma_b)\}

    It needs c_k that do not decrease and ``c_0 ≥ 1/δ``.

    Args:
        steps: K; ``math.inf`` for the limit K → ∞ of c_k that tend to ∞ more slowly than k.
        c_init: c_0 > 0.
        c_last: c_{K−1} ≥ c_0.
        inverse_c_sum: Σ_k 1/c_k over all K updates.
        step_size_bound: γ_b > 0, in the place of γ_{−1}; c_{−1} = c_0.
        max_sq_distance: D² = E max_k ‖x_k − x_p‖² over every step.
        interpolation_error: σ² with the f_i^* of the optimizer; smoothness as in `SGD`.

    Source:
        Islamov et al. 2024, Theorem 5; Orvieto, Lacoste-Julien, Loizou 2022.
    """

    steps: float
    c_init: Positive
    c_last: Number
    inverse_c_sum: Number
    step_size_bound: Positive
    smoothness: NonNegative
    max_sq_distance: NonNegative
    interpolation_error: NonNegative

    condition = "c_init ≥ 1/(α − β)"

    @override
    def shape(self) -> LinearFractional:
        c_0, *_, σ_sq = self.exact()
        distance, mean_inverse_c = self._parts()
        return LinearFractional(
            distance=distance,
            noise=mean_inverse_c * σ_sq,
            spread=2 * σ_sq,
            least_rate=1 / c_0,
            closed=True,
        )

    def _parts(self) -> tuple[Fraction, Fraction]:
        """Return 2L̃D²c_{K−1}/K and (Σ 1/c_k)/K."""
        c_0, γ_b, L, D_sq, _ = self.exact()
        over_K = inverse_steps(self.steps)
        if math.isinf(self.steps):
            return ZERO, ZERO
        c_last = positive("c_last", self.c_last)
        total = positive("inverse_c_sum", self.inverse_c_sum)
        if c_last < c_0:
            raise ValueError(
                f"`c_last` is {float(c_last)}, below `c_init` {float(c_0)}; supported are c_k that "
                "do not decrease"
            )
        return 2 * max(L, 1 / (2 * c_0 * γ_b)) * D_sq * c_last * over_K, total * over_K


@dataclass(frozen=True, slots=True, kw_only=True)
class DecSPSSharp(DecSPS):
    r"""Sharper bound of DecSPS, for ``δ ≥ 1/(2c_0)``; arguments as in `DecSPS`.

    .. math:: \frac{2\tilde LD^2c_{K-1} + (2\beta K + \sum_k 1/c_k)\sigma^2}
              {2\delta K - \sum_k 1/c_k}, \qquad \tilde L = \max\{L, 1/(2c_0\gamma_b)\}

    It needs ``Σ_k 1/c_k < 2δK``.

    Source:
        ``docs/theory.md``, section 5.
    """

    condition = "c_init ≥ 1/(2(α − β)) and inverse_c_sum < 2(α − β)K"

    @override
    def shape(self) -> LinearFractional:
        c_0, *_, σ_sq = self.exact()
        distance, mean_inverse_c = self._parts()
        return LinearFractional(
            distance=distance,
            noise=mean_inverse_c * σ_sq,
            spread=2 * σ_sq,
            slope=Fraction(2),
            offset=mean_inverse_c,
            least_rate=1 / (2 * c_0),
            closed=True,
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
    """Return the bound of SPS_max at a pair; see `SPSMax`.

    Example:
        >>> constants = {"smoothness": 0.5, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> sps_max(steps=100, c=1.0, step_size_bound=2.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.0100, dtype=torch.float64)
    """
    return SPSMax.value(**locals())


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
    """Return the sharper bound of SPS_max at a pair; see `SPSMaxSharp`.

    Example:
        >>> constants = {"smoothness": 0.5, "sq_distance": 1.0, "interpolation_error": 0.25}
        >>> sps_max_sharp(steps=100, c=1.0, step_size_bound=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.2600, dtype=torch.float64)
    """
    return SPSMaxSharp.value(**locals())


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
    """Return the bound of DecSPS at a pair; see `DecSPS`.

    Example:
        >>> constants = {"smoothness": 0.5, "max_sq_distance": 1.0, "interpolation_error": 0.0}
        >>> constants |= {"c_init": 1.0, "c_last": 10.0, "inverse_c_sum": 18.59}
        >>> dec_sps(steps=100, step_size_bound=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.1000, dtype=torch.float64)
    """
    return DecSPS.value(**locals())


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
    """Return the sharper bound of DecSPS at a pair; see `DecSPSSharp`.

    Example:
        >>> constants = {"smoothness": 0.5, "max_sq_distance": 1.0, "interpolation_error": 0.0}
        >>> constants |= {"c_init": 1.0, "c_last": 10.0, "inverse_c_sum": 100.0}
        >>> dec_sps_sharp(steps=100, step_size_bound=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.1000, dtype=torch.float64)
    """
    return DecSPSSharp.value(**locals())
