r"""The relaxed Polyak-Łojasiewicz inequality ``‖∇f‖^δ' ≥ (2μ)^{δ'/2}(f − f*)``, δ' in [1, 2]."""

from torch import Tensor

from lightning_landscape.functional._columns import check_columns
from lightning_landscape.functional._ratio import largest_factor

EXPONENTS = (1.0, 1.5, 2.0)
"""The reported exponents: 1 is the weakest inequality near a minimizer, 2 is Polyak-Łojasiewicz"""


def relaxed_polyak_lojasiewicz_ratio(
    *, grad_sq_norm: Tensor, loss: Tensor, reference_loss: Tensor, exponent: float = 1.0
) -> Tensor:
    r"""Largest μ with which the inequality holds at each probe.

    .. math:: \mu_k = G_k^2 / (2(a_k - b_k)^{2/\delta'})

    Args:
        grad_sq_norm: ``G_k²``, shape ``(n,)``.
        loss: ``a_k``, shape ``(n,)``.
        reference_loss: ``b_k``, shape ``(n,)``.
        exponent: δ' in [1, 2]; 2 is the Polyak-Łojasiewicz inequality with f(x_p) for f*.

    Returns:
        float64, shape ``(n,)``; ``nan`` where ``a_k ≤ b_k``, where every μ holds. The unit is that
        of the loss to the power ``2 − 2/δ'``, over squared length.

    Raises:
        ValueError: if a column is malformed or the exponent is outside [1, 2].

    Source:
        Islamov et al. 2024, Appendix A.

    Example:
        >>> import torch
        >>> columns = {"loss": torch.tensor([3.0, 1.0]), "reference_loss": torch.ones(2)}
        >>> relaxed_polyak_lojasiewicz_ratio(
        ...     grad_sq_norm=torch.tensor([8.0, 1.0]), exponent=1.0, **columns
        ... )
        tensor([1., nan], dtype=torch.float64)
    """
    if not 1 <= exponent <= 2:
        raise ValueError(f"`exponent` is {exponent}; supported are exponents in [1, 2]")
    check_columns(grad_sq_norm=grad_sq_norm, loss=loss, reference_loss=reference_loss)
    # A negative gap has no power 2/δ'. Like a gap of 0 it does not restrict μ.
    gap = (loss.double() - reference_loss.double()).clamp(min=0)
    return largest_factor(grad_sq_norm, 2 * gap ** (2 / exponent))
