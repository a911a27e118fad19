r"""Star convexity ``<∇f, x − x*> ≥ f − f*``: quasar convexity with θ = 1."""

from torch import Tensor

from lightning_landscape.functional._columns import check_columns


def star_convexity_holds(*, loss: Tensor, reference_loss: Tensor, inner_product: Tensor) -> Tensor:
    r"""Whether the inequality holds at each probe.

    .. math:: p_k \ge a_k - b_k

    Args:
        loss: ``a_k``, shape ``(n,)``.
        reference_loss: ``b_k``, shape ``(n,)``.
        inner_product: ``p_k``, shape ``(n,)``.

    Returns:
        bool, shape ``(n,)``. The comparison is made in float64, without a tolerance.

    Raises:
        ValueError: if a column is malformed.

    Source:
        Nesterov and Polyak 2006. Zhou et al. 2019 measure it along runs of SGD.

    Example:
        >>> import torch
        >>> star_convexity_holds(
        ...     loss=torch.tensor([3.0, 3.0]),
        ...     reference_loss=torch.ones(2),
        ...     inner_product=torch.tensor([2.0, 1.0]),
        ... )
        tensor([ True, False])
    """
    check_columns(loss=loss, reference_loss=reference_loss, inner_product=inner_product)
    return inner_product.double() >= loss.double() - reference_loss.double()
