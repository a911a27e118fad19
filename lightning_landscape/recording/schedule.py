"""Which steps are probed: bounded in number, whatever the length of training."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Schedule:
    """Every ``stride`` steps; before a probe more than ``max_probes`` every second one is dropped and the stride doubles.

    Until a first probe is kept every step is tried, because that probe is the x_0 of every bound. The newest kept probe is
    never further than one stride from the present.

    Args:
        stride: steps between probes, at least 1.
        max_probes: largest number of kept probes, at least 2.

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
        """Return whether ``step`` is to be probed."""
        return step >= self.next_step

    def make_room(self, step: int, spacing: float = 0.0) -> list[int]:
        """Thin a table that is full, or denser than asked for, if ``step`` is due; return the dropped steps.

        After it the step may be due no longer: then the rest is decided when the next one is.

        Args:
            step: the step that is about to be made.
            spacing: steps between probes that a budget asks for, at least.
        """
        dropped: list[int] = []
        while (
            self.due(step)
            and self.kept
            and (len(self.kept) >= self.max_probes or self.stride < spacing)
        ):
            dropped += self.thin()
        return dropped

    def keep(self, step: int) -> None:
        """Note that the probe of ``step`` is kept."""
        self.kept.append(step)
        self.next_step = step + self.stride

    def skip(self, step: int) -> None:
        """Note that the probe of ``step`` could not be measured."""
        self.next_step = step + (self.stride if self.kept else 1)

    def limit(self, max_probes: int) -> None:
        """Lower the largest number of kept probes; it takes effect when the next one is due."""
        self.max_probes = min(self.max_probes, max(2, max_probes))

    def thin(self) -> list[int]:
        """Drop every second kept probe, never the first, and double the stride; return the dropped steps."""
        dropped = self.kept[1::2]
        self.kept = self.kept[::2]
        self.stride *= 2
        self.next_step = self.kept[-1] + self.stride
        return dropped


def evenly(kept: list[int], at_most: int) -> list[int]:
    """Choose at most ``at_most`` of the kept steps, every q-th with q the smallest power of two that does.

    What is chosen now is a superset of what will be chosen of these after more probes, or after a thinning: a caller that
    keeps something for the chosen ones only never needs what it has already thrown away.

    Example:
        >>> evenly([0, 10, 20, 30, 40], 2)
        [0, 40]
    """
    spacing = 1
    while len(range(0, len(kept), spacing)) > at_most:
        spacing *= 2
    return kept[::spacing]
