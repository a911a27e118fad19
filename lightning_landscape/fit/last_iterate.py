"""x_K, taken before anybody else can change it."""

from __future__ import annotations

from torch import Tensor

from lightning_landscape.training.training import Training


class LastIterate:
    """Keeps a copy of x_K between the end of training and the evaluation.

    Args:
        training: the run.
        may_be_overwritten: whether another callback may change the parameters in ``on_train_end``
            (SWA, EMA). Then a copy is made at the end of each epoch, before any of them.
    """

    def __init__(self, training: Training, *, may_be_overwritten: bool) -> None:
        self._training, self._may_be_overwritten = training, may_be_overwritten
        self._copy: dict[str, Tensor] | None = None
        self._lost = self._ended = False

    def note_epoch_end(self) -> None:
        """Copy x where it may be overwritten before `note_end`."""
        if self._may_be_overwritten:
            self._copy, self._lost = None, True  # the copy of an earlier epoch is no x_K
            self._copy = self._training.present()
            self._lost = False

    def note_end(self, moved: bool) -> None:
        """Copy x_K at the end of training.

        Args:
            moved: whether the optimizer has stepped since `note_epoch_end`.
        """
        if not self._lost and (self._copy is None or moved):
            self._copy = self._training.present()
        self._ended = True

    def values(self, *, moved: bool) -> dict[str, Tensor]:
        """Return x_K by name.

        Args:
            moved: as of `note_end`, for a run that ended without it.

        Raises:
            RuntimeError: if it could not be copied in time.
        """
        if self._lost:
            raise RuntimeError(
                "the last iterate could not be copied before other callbacks may have changed it"
            )
        if self._copy is not None and (self._ended or not moved):
            return self._copy
        return self._training.present()
