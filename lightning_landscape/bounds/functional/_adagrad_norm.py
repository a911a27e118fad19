"""AdaGrad-norm-max. Proof: ``docs/theory.md``, section 5."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from lightning_landscape.bounds.functional._arguments import (
    Number,
    inverse_steps,
    non_negative,
    positive,
    root,
    value,
)
from lightning_landscape.bounds.functional._sps import minus
from lightning_landscape.functional._fractional import LinearFractional


def adagrad_norm_max_shape(
    *,
    steps: float,
    step_size: Number,
    b_init: Number,
    sq_distance: Number,
    interpolation_error: Number,
    grad_bound: Number,
    grad_min: Number,
    smoothness: Number = 0.0,
) -> LinearFractional:
    """Return `adagrad_norm_max` as a function of the pair; there is none where D = 0 and K = ∞."""
    gamma, b = positive("step_size", step_size), positive("b_init", b_init)
    sigma_sq = non_negative("interpolation_error", interpolation_error)
    largest, smallest = non_negative("grad_bound", grad_bound), non_negative("grad_min", grad_min)
    if smallest > largest:
        raise ValueError(
            f"`grad_min` is {float(smallest)}, above `grad_bound` {float(largest)}; supported is at most that"
        )
    inverse, d_sq = inverse_steps(steps), non_negative("sq_distance", sq_distance)
    if inverse:
        last_b = root(b**2 + largest**2 / inverse)
        growth = 4 * last_b / (root(b**2 + smallest**2 / inverse) + b)
    elif smallest or not sigma_sq:
        last_b, growth = Fraction(0), 4 * largest / (smallest or 1)
    else:
        raise ValueError(
            "`grad_min` is 0; supported as K → ∞ is a positive one, with 0 the bound grows without end"
        )
    return LinearFractional(
        distance=last_b * d_sq * inverse / gamma,
        noise_rate=growth * sigma_sq,
        spread=growth * sigma_sq,
        least_rate=2 * non_negative("smoothness", smoothness) * gamma / b,
        closed=True,
    )


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
    r"""Bound on ``min_{k<K} E[f(x_k) − f*]`` for AdaGrad-norm-max, ``γ_k = γ/b_k``, for ``b_{−1} ≥ 2Lγ/δ``, δ = α − β.

    .. math:: \sqrt{b_{-1}^2+G^2K}\,\Bigl\{\frac{D_0^2}{\gamma\delta K}
              + \frac{4\alpha\sigma^2}{\delta(\sqrt{b_{-1}^2+D^2K}+b_{-1})}\Bigr\}

    where ``b_k² = b_{k−1}² + c_k²`` and ``c_k² = max{c_{k−1}², ‖∇f_i‖²}``, c_{−1} = 0.

    Args:
        steps: K, number of updates; ``math.inf`` for what is left as K → ∞, infinite where D = 0.
        step_size: γ > 0.
        b_init: b_{−1} > 0.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        sq_distance: D_0² = ‖x_0 − x_p‖².
        interpolation_error: σ² = E[f_i(x_p) − f_i^*].
        grad_bound: G, the largest ‖∇f_i(x_k)‖ of the run.
        grad_min: D, the smallest ‖∇f_i(x_0)‖ over all i; 0 is always right.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``, for the step-size condition, which is not checked without it.

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or the step-size condition.

    Source:
        Islamov et al. 2024, Theorem 7, with the constants of its proof.

    Example:
        >>> constants = {"sq_distance": 1.0, "interpolation_error": 0.0, "grad_bound": 1.0, "grad_min": 0.0}
        >>> adagrad_norm_max(steps=99, step_size=1.0, b_init=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(0.1010, dtype=torch.float64)
    """
    if math.isinf(steps) and grad_min == 0 and interpolation_error > 0:
        return torch.tensor(math.inf, dtype=torch.float64)
    shape = adagrad_norm_max_shape(
        steps=steps,
        step_size=step_size,
        b_init=b_init,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
        grad_bound=grad_bound,
        grad_min=grad_min,
        smoothness=smoothness,
    )
    return value(shape, alpha, beta, "b_init ≥ 2 smoothness step_size/(α − β)")


def adagrad_norm_max_sharp_shape(
    *,
    steps: float,
    step_size: Number,
    b_init: Number,
    sq_distance: Number,
    interpolation_error: Number,
    grad_bound: Number,
    grad_min: Number,
    smoothness: Number = 0.0,
) -> LinearFractional:
    """Return `adagrad_norm_max` minus σ², which its proof allows, as a function of the pair."""
    shape = adagrad_norm_max_shape(
        steps=steps,
        step_size=step_size,
        b_init=b_init,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
        grad_bound=grad_bound,
        grad_min=grad_min,
        smoothness=smoothness,
    )
    return minus(shape, Fraction(float(interpolation_error)))


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
    r"""Sharper bound on ``min_{k<K} E[f(x_k) − f*]`` for AdaGrad-norm-max: that of `adagrad_norm_max` minus σ².

    .. math:: \sqrt{b_{-1}^2+G^2K}\,\Bigl\{\frac{D_0^2}{\gamma\delta K}
              + \frac{4\alpha\sigma^2}{\delta(\sqrt{b_{-1}^2+D^2K}+b_{-1})}\Bigr\} - \sigma^2

    The proof bounds the mean of ``f_i(x_k) − f_i^*``, which is the gap and σ².

    Args:
        steps: K, number of updates; ``math.inf`` for what is left as K → ∞, infinite where D = 0.
        step_size: γ > 0.
        b_init: b_{−1} > 0.
        alpha: α of the α-β-condition.
        beta: β ≥ 0, below α.
        sq_distance: D_0² = ‖x_0 − x_p‖².
        interpolation_error: σ² = E[f_i(x_p) − f_i^*].
        grad_bound: G, the largest ‖∇f_i(x_k)‖ of the run.
        grad_min: D, the smallest ‖∇f_i(x_0)‖ over all i; 0 is always right.
        smoothness: L, with ``‖∇f_i‖² ≤ 2L(f_i − f_i^*)``, for the step-size condition, which is not checked without it.

    Returns:
        float64, shape ``()``, in units of the loss.

    Raises:
        ValueError: naming the argument that is out of its range, or the step-size condition.

    Source:
        ``docs/theory.md``, section 5.

    Example:
        >>> constants = {"sq_distance": 1.0, "interpolation_error": 0.5, "grad_bound": 1.0, "grad_min": 1.0, "b_init": 1.0}
        >>> adagrad_norm_max_sharp(steps=99, step_size=1.0, alpha=1.0, beta=0.0, **constants)
        tensor(1.4192, dtype=torch.float64)
    """
    bound = adagrad_norm_max(
        steps=steps,
        step_size=step_size,
        b_init=b_init,
        alpha=alpha,
        beta=beta,
        sq_distance=sq_distance,
        interpolation_error=interpolation_error,
        grad_bound=grad_bound,
        grad_min=grad_min,
        smoothness=smoothness,
    )
    return bound - float(interpolation_error)
