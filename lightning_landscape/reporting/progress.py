"""A progress bar for the evaluation at the end, of the same kind as the Trainer's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lightning.pytorch import Trainer
from tqdm.auto import tqdm


def tracker(trainer: Trainer) -> Callable[[Sequence[int], str], Iterable[int]]:
    """Return a function that shows progress over steps under a label.

    It shows a bar only if the Trainer does.
    """
    bar = trainer.progress_bar_callback
    shown = bar is not None and trainer.is_global_zero
    # rich allows one live display per terminal, so a RichProgressBar has to share its own.
    display = getattr(bar, "progress", None)

    def track(steps: Sequence[int], label: str) -> Iterable[int]:
        described = f"landscape: {label}"
        if shown and steps and display is not None and display.live.is_started:
            return _in(display, steps, described)
        plain: Iterable[int] = tqdm(
            steps, desc=described, disable=not (shown and steps), leave=False, unit="probe"
        )
        return plain

    return track


def _in(display: Any, steps: Sequence[int], label: str) -> Iterator[int]:
    """Yield steps and show them as a line of a running ``rich.progress.Progress``."""
    task = display.add_task(label, total=len(steps))
    try:
        for step in steps:
            yield step
            display.advance(task)
            display.refresh()
    finally:
        display.remove_task(task)
