r"""The α-β-condition (Islamov, Ajroldi, Orvieto, Lucchi, NeurIPS 2024) and its exact feasible set.

.. math:: \langle\nabla f_i(x), x-x_p\rangle
    \ge \alpha\,(f_i(x)-f_i(x_p)) - \beta\,(f_i(x)-f_i^*), \quad \alpha>\beta>0

For a probe let a be its loss, b its loss at the reference, l its infimum and p its inner product,
and let δ = α − β. Then the condition is ``p ≥ δ(a − b) − β(b − l)``. Every function below takes
these four columns and uses ``l`` as ``f_i^*``. Results are computed in exact rational arithmetic
and rounded once to float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from lightning_landscape.functional._columns import check_columns, check_infimum, exact, like
from lightning_landscape.functional._envelope import (
    Best,
    FeasibleSet,
    Row,
    as_float,
    largest_agreeing,
)
from lightning_landscape.functional._hull import near_envelope

_Columns = tuple[Tensor, Tensor, Tensor, Tensor]
"""a, b, p and l, float64, shape ``(n,)``"""
_FEW, _MANY = 24, 4096
"""Up to `_FEW` probes skip the float64 filter. Results for more than `_MANY` are not cached"""
_LARGE = Fraction(10) ** 300
"""The float64 search for a share finds values below this one"""


def beta_min(
    rate: Tensor | float,
    *,
    loss: Tensor,
    reference_loss: Tensor,
    inner_product: Tensor,
    loss_infimum: Tensor | float = 0.0,
) -> Tensor:
    r"""Smallest β with which the α-β-condition holds at every probe, for a given δ = α − β.

    .. math:: \beta_{\min}(\delta) = \max\bigl(0, \max_k [\delta(a_k-b_k) - p_k]/(b_k-l_k)\bigr)

    Args:
        rate: δ > 0, a number or a tensor of shape ``()`` or ``(m,)``.
        loss: ``a_k``, mini-batch losses at the iterates, shape ``(n,)``.
        reference_loss: ``b_k``, the same mini-batches' losses at the reference, shape ``(n,)``.
        inner_product: ``p_k = <∇f_k(x_k), x_k − x_p>``, shape ``(n,)``.
        loss_infimum: ``l_k``, a lower bound of each loss, a number or shape ``(n,)``.

    Returns:
        β_min, float64, shape of ``rate``; ``inf`` where no β is admissible, which only probes with
        ``b_k = l_k`` can cause.

    Raises:
        ValueError: if a rate is not positive, a column is malformed, or ``l_k`` is no lower bound.

    Source:
        Islamov et al. 2024, Definition 1; the envelope: ``docs/theory.md``, section 2.

    Example:
        >>> import torch
        >>> columns = {"loss": torch.tensor([2.0, 3.0]), "reference_loss": torch.ones(2)}
        >>> beta_min(1.0, inner_product=torch.tensor([0.5, 3.0]), **columns)
        tensor(0.5000, dtype=torch.float64)
        >>> beta_min(torch.tensor([2.0, 4.0]), inner_product=torch.tensor([0.5, 3.0]), **columns)
        tensor([1.5000, 5.0000], dtype=torch.float64)
    """
    rates = torch.as_tensor(rate, dtype=torch.float64)
    if rates.ndim > 1 or not bool((rates > 0).all()) or not bool(rates.isfinite().all()):
        raise ValueError(
            f"`rate` is {rate}; supported are positive finite values of α − β of shape () or (m,)"
        )
    region = feasible_set(
        loss=loss,
        reference_loss=reference_loss,
        inner_product=inner_product,
        loss_infimum=loss_infimum,
    )
    betas = [region.beta_min(Fraction(value)) for value in rates.flatten().tolist()]
    return _tensor([float("inf") if beta is None else as_float(beta) for beta in betas]).reshape(
        rates.shape
    )


def alpha_beta_vertices(
    *,
    loss: Tensor,
    reference_loss: Tensor,
    inner_product: Tensor,
    loss_infimum: Tensor | float = 0.0,
) -> Tensor:
    """Corners (δ, β) of β_min over δ > 0, by increasing δ.

    If δ is bounded, the last corner is at its largest value.

    Args:
        loss: ``a_k``, shape ``(n,)``.
        reference_loss: ``b_k``, shape ``(n,)``.
        inner_product: ``p_k``, shape ``(n,)``.
        loss_infimum: ``l_k``, a number or shape ``(n,)``.

    Returns:
        float64, shape ``(m, 2)``; m = 0 if β_min has no corner or the feasible set is empty.

    Raises:
        ValueError: as `beta_min`.

    Example:
        >>> import torch
        >>> alpha_beta_vertices(
        ...     loss=torch.tensor([2.0, 3.0]),
        ...     reference_loss=torch.ones(2),
        ...     inner_product=torch.tensor([0.5, 3.0]),
        ... )
        tensor([[0.5000, 0.0000],
                [2.5000, 2.0000]], dtype=torch.float64)
    """
    region = feasible_set(
        loss=loss,
        reference_loss=reference_loss,
        inner_product=inner_product,
        loss_infimum=loss_infimum,
    )
    return _tensor([[as_float(rate), as_float(beta)] for rate, beta in region.vertices()]).reshape(
        -1, 2
    )


@dataclass(frozen=True, slots=True)
class AlphaBetaPair:
    """A pair of the α-β-condition; tensors are float64 of shape ``()``, ``nan`` without a pair."""

    alpha: Tensor
    beta: Tensor
    rate: Tensor
    """δ = α − β"""
    ratio: Tensor
    """The infimum of β/δ over the feasible set; finite also if it is approached only as δ → ∞"""
    attained: bool
    """Whether (α, β) attains the infimum"""


def best_alpha_beta(
    *,
    loss: Tensor,
    reference_loss: Tensor,
    inner_product: Tensor,
    loss_infimum: Tensor | float = 0.0,
    share: float = 1.0,
) -> AlphaBetaPair:
    r"""Pair (α, β) with the smallest β/δ among all pairs that hold at a share of the probes.

    .. math:: \min_{\delta > 0} \beta_{\min}(\delta)/\delta

    This minimum times σ² is the *neighbourhood*: the part of every bound that does not vanish with
    more steps. A bounded tie gives its largest δ, an unbounded one its left end. There is no pair
    if the infimum is approached only as δ → ∞, or if β_min ≡ 0 on (0, ∞). The latter means that no
    probe had a loss above the one at the reference.

    Args:
        loss: ``a_k``, shape ``(n,)``.
        reference_loss: ``b_k``, shape ``(n,)``.
        inner_product: ``p_k``, shape ``(n,)``.
        loss_infimum: ``l_k``, a number or shape ``(n,)``.
        share: in (0, 1]; the pair holds at some ``ceil(share · n)`` probes, chosen to minimize β/δ.

    Returns:
        The pair, its δ and its ratio β/δ.

    Raises:
        ValueError: as `beta_min`, or if ``share`` is outside (0, 1].

    Source:
        ``docs/theory.md``, section 2.

    Example:
        >>> import torch
        >>> columns = {"loss": torch.tensor([2.0, 3.0]), "reference_loss": torch.ones(2)}
        >>> pair = best_alpha_beta(inner_product=torch.tensor([-0.5, 1.0]), **columns)
        >>> pair.alpha.item(), pair.beta.item(), pair.rate.item()
        (3.5, 2.0, 1.5)
    """
    if not 0 < share <= 1:
        raise ValueError(f"`share` is {share}; supported are shares of the probes in (0, 1]")
    columns = _checked(loss, reference_loss, inner_product, loss_infimum)
    count = ceil(Fraction(share) * len(loss))
    if count == len(loss):
        best = _region(columns).best()
        # With a share < 1, values above `_LARGE` go through the float64 search for every count.
        if share == 1 or (best.value is not None and best.value < _LARGE):
            return _pair(best)
    chosen = largest_agreeing(_remembered_rows(columns), count)
    return _pair(FeasibleSet.of(chosen).best() if chosen is not None else Best(None, None))


class RunningBestAlphaBeta:
    """`best_alpha_beta` over a growing number of probes.

    A line below the envelope of the first probes stays below the envelope of all probes. So each
    new probe is compared only with the few lines of the current envelope.

    Example:
        >>> running = RunningBestAlphaBeta()
        >>> running.add(loss=2.0, reference_loss=1.0, inner_product=-0.5).attained
        False
        >>> running.add(loss=3.0, reference_loss=1.0, inner_product=1.0).beta
        tensor(2., dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._region = FeasibleSet()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(
        self, *, loss: float, reference_loss: float, inner_product: float, loss_infimum: float = 0.0
    ) -> AlphaBetaPair:
        """Add one probe and return the best pair over all probes so far.

        Args:
            loss: a_k.
            reference_loss: b_k.
            inner_product: p_k.
            loss_infimum: l_k.

        Returns:
            The result of `best_alpha_beta` for the probes so far.

        Raises:
            ValueError: as `beta_min`; then the probe is not added.
        """
        columns = _checked(
            *(_tensor([value]) for value in (loss, reference_loss, inner_product, loss_infimum))
        )
        self._region = self._region.intersect(FeasibleSet.of(_rows(columns)))
        self._count += 1
        return _pair(self._region.best())


def alpha_beta_margin(
    alpha: Tensor | float,
    beta: Tensor | float,
    *,
    loss: Tensor,
    reference_loss: Tensor,
    inner_product: Tensor,
    loss_infimum: Tensor | float = 0.0,
) -> Tensor:
    r"""Margin of each probe for a given pair; negative where the pair violates the condition.

    .. math:: T_k = p_k - \alpha(a_k-b_k) + \beta(a_k-l_k)

    Args:
        alpha: α, a number or shape ``()``.
        beta: β, a number or shape ``()``.
        loss: ``a_k``, shape ``(n,)``.
        reference_loss: ``b_k``, shape ``(n,)``.
        inner_product: ``p_k``, shape ``(n,)``.
        loss_infimum: ``l_k``, a number or shape ``(n,)``.

    Returns:
        float64, shape ``(n,)``, in units of the loss.

    Raises:
        ValueError: if a column is malformed.

    Example:
        >>> import torch
        >>> alpha_beta_margin(
        ...     1.5,
        ...     0.5,
        ...     loss=torch.tensor([2.0, 3.0]),
        ...     reference_loss=torch.ones(2),
        ...     inner_product=torch.tensor([0.5, 3.0]),
        ... )
        tensor([0.0000, 1.5000], dtype=torch.float64)
    """
    infimum = like(loss_infimum, loss)
    check_columns(
        loss=loss, reference_loss=reference_loss, inner_product=inner_product, loss_infimum=infimum
    )
    a, b, p = loss.double(), reference_loss.double(), inner_product.double()
    return p - alpha * (a - b) + beta * (a - infimum)


def alpha_beta_violations(
    alpha: Tensor | float,
    beta: Tensor | float,
    *,
    loss: Tensor,
    reference_loss: Tensor,
    inner_product: Tensor,
    loss_infimum: Tensor | float = 0.0,
) -> Tensor:
    """Whether each probe violates the condition for a given pair by more than rounding.

    A probe violates it if its margin is below −4ε times the sum of the absolute values of its
    terms.

    Args:
        alpha: α, a number or shape ``()``.
        beta: β, a number or shape ``()``.
        loss: ``a_k``, shape ``(n,)``.
        reference_loss: ``b_k``, shape ``(n,)``.
        inner_product: ``p_k``, shape ``(n,)``.
        loss_infimum: ``l_k``, a number or shape ``(n,)``.

    Returns:
        bool, shape ``(n,)``.

    Raises:
        ValueError: if a column is malformed.

    Example:
        >>> import torch
        >>> alpha_beta_violations(
        ...     2.0,
        ...     0.5,
        ...     loss=torch.tensor([2.0, 3.0]),
        ...     reference_loss=torch.ones(2),
        ...     inner_product=torch.tensor([0.5, 3.0]),
        ... )
        tensor([ True, False])
    """
    # A pair that attains the infimum has margins of 0, which rounding makes slightly negative.
    columns = {"loss": loss, "reference_loss": reference_loss, "inner_product": inner_product}
    margin = alpha_beta_margin(alpha, beta, loss_infimum=loss_infimum, **columns)
    a, b, p, low = (
        column.double().abs() for column in (*columns.values(), like(loss_infimum, loss))
    )
    scale = p + torch.as_tensor(alpha).abs() * (a + b) + torch.as_tensor(beta).abs() * (a + low)
    return margin < -4 * torch.finfo(torch.float64).eps * scale


def alpha_beta_impossible(
    *,
    loss: Tensor,
    reference_loss: Tensor,
    inner_product: Tensor,
    loss_infimum: Tensor | float = 0.0,
) -> Tensor:
    """Whether each probe excludes every pair.

    That is so if ``b = l`` and either ``a > b, p ≤ 0`` or ``a = b, p < 0``.

    Args:
        loss: ``a_k``, shape ``(n,)``.
        reference_loss: ``b_k``, shape ``(n,)``.
        inner_product: ``p_k``, shape ``(n,)``.
        loss_infimum: ``l_k``, a number or shape ``(n,)``.

    Returns:
        bool, shape ``(n,)``; the feasible set is empty if and only if one entry is True.

    Raises:
        ValueError: as `beta_min`.

    Example:
        >>> import torch
        >>> alpha_beta_impossible(
        ...     loss=torch.ones(2),
        ...     reference_loss=torch.zeros(2),
        ...     inner_product=torch.tensor([1.0, -1.0]),
        ... )
        tensor([False,  True])
    """
    a, b, p, low = _checked(loss, reference_loss, inner_product, loss_infimum)
    return (b <= low) & torch.where(a > b, p <= 0, p < 0)


def interpolation_error(
    *, reference_loss: Tensor, loss_infimum: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Estimate of the interpolation error and its standard error.

    .. math:: \sigma^2 = \mathrm{mean}_k\,(b_k - l_k)

    Args:
        reference_loss: ``b_k``, shape ``(n,)``.
        loss_infimum: ``l_k``, a number or shape ``(n,)``.

    Returns:
        σ² and its standard error, float64, shape ``()``; the error is ``nan`` for a single probe.

    Raises:
        ValueError: if a column is malformed.

    Example:
        >>> import torch
        >>> value, error = interpolation_error(reference_loss=torch.tensor([1.0, 3.0]))
        >>> value.item(), error.item()
        (2.0, 1.0)
    """
    infimum = like(loss_infimum, reference_loss)
    check_columns(reference_loss=reference_loss, loss_infimum=infimum)
    return mean_and_error(reference_loss.double() - infimum)


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard error of a float64 column; the error of one value is ``nan``."""
    if len(values) < 2:
        return values.mean(), values.new_tensor(float("nan"))
    return values.mean(), values.std() / len(values) ** 0.5


def feasible_set(
    *,
    loss: Tensor,
    reference_loss: Tensor,
    inner_product: Tensor,
    loss_infimum: Tensor | float = 0.0,
) -> FeasibleSet:
    """Return the exact set of all feasible (δ, β); the arguments are those of `beta_min`."""
    return _region(_checked(loss, reference_loss, inner_product, loss_infimum))


def _checked(
    loss: Tensor, reference_loss: Tensor, inner_product: Tensor, loss_infimum: Tensor | float
) -> _Columns:
    """Return the four columns as float64, or raise ``ValueError``."""
    infimum = like(loss_infimum, loss)
    check_columns(
        loss=loss, reference_loss=reference_loss, inner_product=inner_product, loss_infimum=infimum
    )
    check_infimum(loss, reference_loss, infimum)
    return loss.double(), reference_loss.double(), inner_product.double(), infimum


def _region(columns: _Columns) -> FeasibleSet:
    """Return the exact feasible set of the columns."""
    a, b, p, low = columns
    if len(a) > _FEW:
        # Rational arithmetic is slow, so drop the probes that are clearly below the envelope.
        near = near_envelope(loss=a, reference_loss=b, inner_product=p, loss_infimum=low)
        columns = a[near], b[near], p[near], low[near]
    if len(columns[0]) > _MANY:
        return FeasibleSet.of(_rows(columns))
    return _remembered_region(*(tuple(column.tolist()) for column in columns))


def _rows(columns: _Columns) -> list[Row]:
    return _exact_rows(*(exact(column) for column in columns))


def _remembered_rows(columns: _Columns) -> Sequence[Row]:
    if len(columns[0]) > _MANY:
        return _rows(columns)
    return _remembered(*(tuple(column.tolist()) for column in columns))


@lru_cache(maxsize=8)
def _remembered_region(*columns: tuple[float, ...]) -> FeasibleSet:
    """Return the feasible set; cached, since callers ask for pair, corners and bounds in turn."""
    return FeasibleSet.of(_remembered(*columns))


@lru_cache(maxsize=8)
def _remembered(*columns: tuple[float, ...]) -> tuple[Row, ...]:
    return tuple(_exact_rows(*(map(Fraction, column) for column in columns)))


def _exact_rows(*columns: Iterable[Fraction]) -> list[Row]:
    return [Row(a - b, b - low, p) for a, b, p, low in zip(*columns, strict=True)]


def _pair(best: Best) -> AlphaBetaPair:
    ratio = _tensor(float("nan") if best.value is None else as_float(best.value))
    if best.pair is None:
        missing = _tensor(float("nan"))
        return AlphaBetaPair(missing, missing, missing, ratio, attained=False)
    rate, beta = best.pair
    return AlphaBetaPair(
        _tensor(as_float(rate + beta)),
        _tensor(as_float(beta)),
        _tensor(as_float(rate)),
        ratio,
        True,
    )


def _tensor(values: float | Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
