"""SGD with any step sizes that are fixed before the run. Proofs: ``docs/theory.md``, section 5."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from typing_extensions import override

from lightning_landscape.bounds.functional._bound import (
    Bound,
    BoundOfOneStepSize,
    NonNegative,
    Number,
    decay,
    inverse_steps,
)
from lightning_landscape.functional._fractional import LinearFractional


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD(BoundOfOneStepSize):
    r"""Bound of SGD with a constant step ``γ ≤ δ/(2L)``.

    .. math:: \frac{D_0^2}{K\gamma\delta} + \frac{2L\gamma\sigma^2}{\delta}
              + \frac{2\beta\sigma^2}{\delta}

    Args:
        steps: K, number of updates; ``math.inf`` for the neighbourhood that remains as K → ∞.
        step_size: γ > 0.
        smoothness: L ≥ 0, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``.
        sq_distance: D_0², squared distance of x_0 to the minimizers. Any fixed x_p can stand for
            the minimizers: then f(x_p) stands for f*.
        interpolation_error: σ² = E[f_i(x_p) − f_i^*].

    Source:
        Islamov et al. 2024, Theorem 1.

    Example:
        >>> constants = {"smoothness": 1.0, "sq_distance": 1.0, "interpolation_error": 0.5}
        >>> bound = SGD(steps=100, step_size=0.1, **constants)
        >>> bound.at(alpha=1.5, beta=0.5)
        tensor(0.7000, dtype=torch.float64)
        >>> float(bound.shape().at(rate=Fraction(1), beta=Fraction(1, 2)))
        0.7
    """

    condition = "step_size ≤ (α − β)/(2 smoothness)"

    @override
    def shape(self) -> LinearFractional:
        γ, L, D_sq, σ_sq = self.exact()
        return LinearFractional(
            distance=D_sq * inverse_steps(self.steps) / γ,
            noise=2 * L * γ * σ_sq,
            spread=2 * σ_sq,
            least_rate=2 * L * γ,
            closed=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SGDSharp(BoundOfOneStepSize):
    r"""Sharper bound of SGD with any constant step ``γ < δ/L``; arguments as in `SGD`.

    .. math:: \frac{D_0^2/(2\gamma K) + (\beta + L\gamma)\sigma^2}{\delta - L\gamma}

    It is never above `SGD` where that applies. As γ → 0 and γK → ∞ the neighbourhood is βσ²/δ.

    Source:
        ``docs/theory.md``, section 5: Theorem 1 of Islamov et al. 2024 without its last estimate.
    """

    condition = "step_size < (α − β)/smoothness"

    @override
    def shape(self) -> LinearFractional:
        γ, L, D_sq, σ_sq = self.exact()
        return LinearFractional(
            distance=D_sq * inverse_steps(self.steps) / (2 * γ),
            noise=L * γ * σ_sq,
            spread=σ_sq,
            offset=L * γ,
            least_rate=L * γ,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SGDDecreasing(BoundOfOneStepSize):
    r"""Bound of SGD with ``γ_k = γ/√(k+1)``, for ``γ ≤ δ/(2L)``; arguments as in `SGD`.

    .. math:: \frac{5D_0^2}{4\delta\gamma\sqrt K}
              + \frac{5\gamma L\sigma^2}{\delta}\frac{\log(K+1)}{\sqrt K}
              + \frac{2\beta\sigma^2}{\delta}

    Source:
        Islamov et al. 2024, Theorem 4.
    """

    condition = "step_size ≤ (α − β)/(2 smoothness)"

    @override
    def shape(self) -> LinearFractional:
        γ, L, D_sq, σ_sq = self.exact()
        slow, slower = decay(self.steps)
        return LinearFractional(
            distance=5 * D_sq * slow / (4 * γ),
            noise=5 * γ * L * σ_sq * slower,
            spread=2 * σ_sq,
            least_rate=2 * L * γ,
            closed=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SGDSchedule(Bound):
    r"""Bound of SGD with any schedule that is fixed before the run, ``max γ_k ≤ δ/L``.

    .. math:: \frac{D_0^2/2 + \sigma^2 \sum_k \gamma_k(\beta + L\gamma_k)}
              {\sum_k \gamma_k(\delta - L\gamma_k)}

    Args:
        step_sizes: γ_k ≥ 0, shape ``(K,)``. A clipped step is no such γ_k, because it depends on
            its mini-batch.
        counts: number of steps of each size, shape ``(K,)``; 1 each by default. The other
            arguments are as in `SGD`.

    Source:
        ``docs/theory.md``, section 5.
    """

    step_sizes: Tensor
    smoothness: NonNegative
    sq_distance: NonNegative
    interpolation_error: NonNegative
    counts: Tensor | None = None

    condition = "max step_sizes ≤ (α − β)/smoothness, not all equal to it"

    @override
    def shape(self) -> LinearFractional:
        L, D_sq, σ_sq = self.exact()
        largest, sum_γ, sum_γ_sq = self._sums()
        return LinearFractional(
            distance=D_sq / 2,
            noise=σ_sq * L * sum_γ_sq,
            spread=σ_sq * sum_γ,
            slope=sum_γ,
            offset=L * sum_γ_sq,
            least_rate=L * largest,
            closed=True,
        )

    def _sums(self) -> tuple[Fraction, Fraction, Fraction]:
        """Return max γ_k, Σ γ_k and Σ γ_k²."""
        found = self.step_sizes
        if found.ndim != 1 or not len(found) or not bool((found.isfinite() & (found >= 0)).all()):
            raise ValueError(
                f"`step_sizes` is {found}; supported are finite numbers of 0 or more, shape (K,)"
            )
        γ = found.double()
        times = torch.ones_like(γ) if self.counts is None else self.counts.double()
        total = Fraction(float((times * γ).sum()))
        if not total:
            raise ValueError("`step_sizes` are all 0; supported is a schedule that moves")
        largest = Fraction(float(γ[times > 0].max()))
        return largest, total, Fraction(float((times * γ.square()).sum()))


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
    """Return the bound of SGD with a constant step at a pair; see `SGD`.

    Example:
        >>> constants = {"smoothness": 1.0, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> sgd(steps=100, step_size=0.1, alpha=1.0, beta=0.0, **constants)
        tensor(0.1000, dtype=torch.float64)
    """
    return SGD.value(**locals())


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
    """Return the sharper bound of SGD with a constant step at a pair; see `SGDSharp`.

    Example:
        >>> constants = {"smoothness": 1.0, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> sgd_sharp(steps=100, step_size=0.5, alpha=1.0, beta=0.0, **constants)
        tensor(0.0200, dtype=torch.float64)
    """
    return SGDSharp.value(**locals())


def sgd_schedule(
    *,
    step_sizes: Tensor,
    alpha: Number,
    beta: Number,
    smoothness: Number,
    sq_distance: Number,
    interpolation_error: Number,
) -> Tensor:
    """Return the bound of SGD with a fixed schedule at a pair; see `SGDSchedule`.

    Example:
        >>> import torch
        >>> constants = {"smoothness": 1.0, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> sgd_schedule(step_sizes=torch.full((100,), 0.5), alpha=1.0, beta=0.0, **constants)
        tensor(0.0200, dtype=torch.float64)
    """
    return SGDSchedule.value(**locals())


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
    """Return the bound of SGD with a step that falls as 1/√(k+1) at a pair; see `SGDDecreasing`.

    Example:
        >>> constants = {"smoothness": 1.0, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> sgd_decreasing(steps=25, step_size=0.5, alpha=1.0, beta=0.0, **constants)
        tensor(0.5000, dtype=torch.float64)
    """
    return SGDDecreasing.value(**locals())
