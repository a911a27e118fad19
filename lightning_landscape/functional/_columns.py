"""Checks of the columns that every condition receives: one-dimensional, of one length, finite."""

from fractions import Fraction

from torch import Tensor


def check_columns(**columns: Tensor) -> None:
    """Raise ``ValueError`` unless all columns are finite, 1-D and of one length of at least 1."""
    sizes = {name: tuple(column.shape) for name, column in columns.items()}
    if len(set(sizes.values())) > 1 or any(
        len(size) != 1 or size[0] == 0 for size in sizes.values()
    ):
        raise ValueError(
            f"found columns of shapes {sizes}; supported are non-empty 1-D tensors of one length"
        )
    for name, column in columns.items():
        if not bool(column.isfinite().all()):
            row = int((~column.isfinite()).nonzero()[0])
            raise ValueError(
                f"`{name}` is {float(column[row])} in row {row}; "
                "conditions are defined for finite values: drop such rows"
            )


def check_infimum(loss: Tensor, reference_loss: Tensor, loss_infimum: Tensor) -> None:
    """Raise ``ValueError`` at the first row where ``loss_infimum`` exceeds one of the losses."""
    for name, column in (("loss", loss), ("reference_loss", reference_loss)):
        below = column.double() < loss_infimum.double()
        if bool(below.any()):
            row = int(below.nonzero()[0])
            raise ValueError(
                f"`loss_infimum` {float(loss_infimum[row])} is no lower bound of `{name}` "
                f"{float(column[row])} in row {row}; pass as loss_infimum= a value that no "
                "mini-batch loss falls below"
            )


def like(loss_infimum: Tensor | float, loss: Tensor) -> Tensor:
    """Return ``loss_infimum`` (a number or a column) as a float64 column as long as ``loss``."""
    if isinstance(loss_infimum, Tensor) and loss_infimum.ndim == 1:
        return loss_infimum.double()
    return loss.double().new_full(loss.shape, float(loss_infimum))


def exact(column: Tensor) -> list[Fraction]:
    """Return the values of a finite column as exact rational numbers."""
    return [Fraction(value) for value in column.double().tolist()]
