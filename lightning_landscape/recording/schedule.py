"""Which steps are probed: a bounded number, however long training is."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Schedule:
    """Probe every ``stride`` steps. When the table is full, drop every second probe.

    Then the stride doubles. Until the first probe is kept, every step is tried, because the first
    probe is the x_0 of all bounds. The newest kept probe is at most one stride old.

    Args:
        stride: steps between probes, at least 1.
        max_probes: largest number of kept probes, at least 2.
        next_step: the next step to probe.
        kept: steps of the kept probes, ascending.

    Example:
        >>> schedule = Schedule(stride=1, max_probes=4)
        >>> for step in range(9):
        ...     dropped = schedule.make_room(step)
        ...     if schedule.due(step):
        ...         schedule.keep(step)
        >>> schedule.kept, schedule.stride
        ([0, 4, 8], 4)
    """

    stride: int
    max_probes: int
    next_step: int = 0
    kept: list[int] = field(default_factory=list)

    def due(self, step: int) -> bool:
        """Return whether to probe a step."""
        return step >= self.next_step

    def make_room(self, step: int, spacing: float = 0.0) -> list[int]:
        """Thin the table while it is full or too dense, and ``step`` is due.

        After thinning, the step may no longer be due.

        Args:
            step: the step that is about to be made.
            spacing: smallest number of steps between probes that the budget allows.

        Returns:
            The dropped steps.
        """
        dropped: list[int] = []
        while self.due(step) and self.kept and self._too_many(spacing):
            dropped += self.thin()
        return dropped

    def _too_many(self, spacing: float) -> bool:
        return len(self.kept) >= self.max_probes or self.stride < spacing

    def keep(self, step: int) -> None:
        """Note that the probe of a step is kept."""
        self.kept.append(step)
        self.next_step = step + self.stride

    def skip(self, step: int) -> None:
        """Note that the probe of a step could not be measured."""
        self.next_step = step + (self.stride if self.kept else 1)

    def limit(self, max_probes: int) -> None:
        """Lower the largest number of kept probes, from the next due probe on."""
        self.max_probes = min(self.max_probes, max(2, max_probes))

    def thin(self) -> list[int]:
        """Drop every second kept probe, never the first, and double the stride.

        Returns:
            The dropped steps.
        """
        dropped = self.kept[1::2]
        self.kept = self.kept[::2]
        self.stride *= 2
        self.next_step = self.kept[-1] + self.stride
        return dropped


def evenly(kept: list[int], at_most: int) -> list[int]:
    """Choose every q-th of the kept steps, at most ``at_most`` of them.

    q is the smallest power of two that is large enough. A step that is not chosen now is not chosen
    later either, after more probes or after thinning. So a caller may discard the data of all other
    steps.

    Args:
        kept: steps in ascending order.
        at_most: largest number of chosen steps, at least 1.

    Example:
        >>> evenly([0, 10, 20, 30, 40], 2)
        [0, 40]
    """
    spacing = 1
    while len(range(0, len(kept), spacing)) > at_most:
        spacing *= 2
    return kept[::spacing]
