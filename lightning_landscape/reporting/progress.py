"""A progress bar for the evaluation at the end of training, where the Trainer shows one too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lightning.pytorch import Trainer
from tqdm.auto import tqdm


def tracker(trainer: Trainer) -> Callable[[Sequence[int], str], Iterable[int]]:
    """Return a function that shows progress over steps under a label."""
    shown = trainer.progress_bar_callback is not None and trainer.is_global_zero

    def track(steps: Sequence[int], label: str) -> Iterable[int]:
        bar: Iterable[int] = tqdm(steps, desc=f"landscape: {label}", disable=not (shown and steps), leave=False, unit="probe")
        return bar

    return track
