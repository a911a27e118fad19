"""AdaGrad-norm-max. Proof: ``docs/theory.md``, section 5."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_landscape.bounds.functional._bound import (
    Bound,
    NonNegative,
    Number,
    Positive,
    inverse_steps,
    minus,
    non_negative,
    root,
)
from lightning_landscape.functional._fractional import ZERO, LinearFractional


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaGradNormMax(Bound):
    r"""Bound of AdaGrad-norm-max, ``γ_k = γ/b_k``, for ``b_{−1} ≥ 2Lγ/δ``.

    .. math:: \sqrt{b_{-1}^2+G^2K}\,\Bigl\{\frac{D_0^2}{\gamma\delta K}
              + \frac{4\alpha\sigma^2}{\delta(\sqrt{b_{-1}^2+D^2K}+b_{-1})}\Bigr\}

    where ``b_k² = b_{k−1}² + c_k²`` and ``c_k² = max{c_{k−1}², ‖∇f_i‖²}``, c_{−1} = 0.

    Args:
        steps: K; ``math.inf`` for the limit K → ∞, which is infinite if D = 0 and σ² > 0.
        b_init: b_{−1} > 0.
        grad_bound: G ≥ D, the largest ‖∇f_i(x_k)‖ of the run.
        grad_min: D ≥ 0, the smallest ‖∇f_i(x_0)‖ over all i; 0 is always right.
        smoothness: L, for the step-size condition; by default L = 0, which meets it. The other
            arguments are as in `SGD`.

    Source:
        Islamov et al. 2024, Theorem 7, with the constants of its proof.
    """

    steps: float
    step_size: Positive
    b_init: Positive
    sq_distance: NonNegative
    interpolation_error: NonNegative
    grad_bound: NonNegative
    grad_min: NonNegative
    smoothness: NonNegative = 0.0

    condition = "b_init ≥ 2 smoothness step_size/(α − β)"

    @override
    def shape(self) -> LinearFractional:
        γ, b, D_sq, σ_sq, G, D, L = self.exact()
        if D > G:
            raise ValueError(
                f"`grad_min` is {float(D)}, above `grad_bound` {float(G)}; supported is at most "
                "`grad_bound`"
            )
        over_K = inverse_steps(self.steps)
        if over_K:
            last_b = root(b**2 + G**2 / over_K)
            growth = 4 * last_b / (root(b**2 + D**2 / over_K) + b)
        elif D or not σ_sq:
            last_b, growth = ZERO, 4 * G / (D or 1)
        else:
            raise ValueError(
                "`grad_min` is 0; supported as K → ∞ is a number above 0, because with 0 the bound "
                "tends to infinity"
            )
        return LinearFractional(
            distance=last_b * D_sq * over_K / γ,
            noise_rate=growth * σ_sq,
            spread=growth * σ_sq,
            least_rate=2 * L * γ / b,
            closed=True,
        )

    @override
    def at(self, alpha: Number, beta: Number) -> Tensor:
        if math.isinf(self.steps) and self.grad_min == 0 and self.interpolation_error > 0:
            return torch.tensor(math.inf, dtype=torch.float64)
        return Bound.at(self, alpha, beta)  # super() does not work in a class with slots=True


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaGradNormMaxSharp(AdaGradNormMax):
    r"""Sharper bound of AdaGrad-norm-max: `AdaGradNormMax`, with the same arguments, minus σ².

    .. math:: \sqrt{b_{-1}^2+G^2K}\,\Bigl\{\frac{D_0^2}{\gamma\delta K}
              + \frac{4\alpha\sigma^2}{\delta(\sqrt{b_{-1}^2+D^2K}+b_{-1})}\Bigr\} - \sigma^2

    The proof bounds the mean of ``f_i(x_k) − f_i^*``, which is the gap plus σ².

    Source:
        ``docs/theory.md``, section 5.
    """

    @override
    def shape(self) -> LinearFractional:
        σ_sq = non_negative("interpolation_error", self.interpolation_error)
        return minus(AdaGradNormMax.shape(self), σ_sq)


def adagrad_norm_max(
    *,
    steps: float,
    step_size: Number,
    b_init: Number,
    alpha: Number,
    beta: Number,
    sq_distance: Number,
    interpolation_error: Number,
    grad_bound: Number,
    grad_min: Number,
    smoothness: Number = 0.0,
) -> Tensor:
    """Return the bound of AdaGrad-norm-max at a pair; see `AdaGradNormMax`.

    Example:
        >>> constants = {"sq_distance": 1.0, "interpolation_error": 0.0, "b_init": 1.0}
        >>> constants |= {"grad_bound": 1.0, "grad_min": 0.0}
        >>> adagrad_norm_max(steps=99, step_size=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.1010, dtype=torch.float64)
    """
    return AdaGradNormMax.value(**locals())


def adagrad_norm_max_sharp(
    *,
    steps: float,
    step_size: Number,
    b_init: Number,
    alpha: Number,
    beta: Number,
    sq_distance: Number,
    interpolation_error: Number,
    grad_bound: Number,
    grad_min: Number,
    smoothness: Number = 0.0,
) -> Tensor:
    """Return the sharper bound of AdaGrad-norm-max at a pair; see `AdaGradNormMaxSharp`.

    Example:
        >>> constants = {"sq_distance": 1.0, "interpolation_error": 0.5, "b_init": 1.0}
        >>> constants |= {"grad_bound": 1.0, "grad_min": 1.0}
        >>> adagrad_norm_max_sharp(steps=99, step_size=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(1.4192, dtype=torch.float64)
    """
    # rounded twice: AdaGradNormMaxSharp.at rounds once, and may differ in the last digit
    return AdaGradNormMax.value(**locals()) - float(interpolation_error)
