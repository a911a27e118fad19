"""Gradient descent on the full batch. Proof: ``docs/theory.md``, section 5."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lightning_landscape.bounds.functional._bound import BoundOfOneStepSize, Number, inverse_steps
from lightning_landscape.functional._fractional import LinearFractional


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientDescent(BoundOfOneStepSize):
    r"""Bound on ``min_{k<K} f(x_k) − f(x_p)`` for full-batch gradient descent with ``γ < δ/L``.

    .. math:: \frac{D_0^2/(2\gamma K) + \beta\sigma^2}{\delta - L\gamma}

    It holds for the run itself, without an expectation. It holds for the last iterate if the loss
    never rises.

    Args:
        smoothness: L, with ``‖∇f(x_k)‖² ≤ 2L(f(x_k) − f(x_p))`` at every step. This inequality is
            stronger than ``‖∇f‖² ≤ 2L(f − f^*)``; for the L of the latter use `SGDSharp`.
        interpolation_error: σ² = f(x_p) − l, with the l of the α-β-condition. The other arguments
            are as in `SGD`.

    Source:
        ``docs/theory.md``, section 5.
    """

    condition = "step_size < (α − β)/smoothness"

    @override
    def shape(self) -> LinearFractional:
        γ, L, D_sq, σ_sq = self.exact()
        return LinearFractional(
            distance=D_sq * inverse_steps(self.steps) / (2 * γ),
            spread=σ_sq,
            offset=L * γ,
            least_rate=L * γ,
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
    """Return the bound of full-batch gradient descent at a pair; see `GradientDescent`.

    Example:
        >>> constants = {"smoothness": 1.0, "sq_distance": 1.0, "interpolation_error": 0.0}
        >>> gradient_descent(steps=100, step_size=0.5, alpha=1.0, beta=0.0, **constants)
        tensor(0.0200, dtype=torch.float64)
    """
    return GradientDescent.value(**locals())
