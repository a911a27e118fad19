"""The steps of the measured optimizer, counted by its own hooks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class StepCounter:
    """Counts the steps of one ``fit``.

    Lightning's ``global_step`` counts the steps of all optimizers together.
    """

    step: int = 0
    """Number of steps made, those before this fit included: k of the coming step"""
    first_global_step: int = 0
    """Lightning's ``global_step`` when this fit began"""
    idle: int = 0
    """Steps without a backward pass: ``training_step`` returned None, or a callback skipped it"""
    backward: bool = False
    """Whether there was a backward pass since the last step"""
    moved: bool = False
    """Whether there was one since the last epoch's end"""
    may_refuse: bool = True
    """Whether no step was made in this fit yet"""

    def note_backward(self) -> None:
        """Count a backward pass."""
        self.backward = self.moved = True

    def note_step(self) -> None:
        """Count a step that is about to be made."""
        self.step += 1
        self.idle += not self.backward
        self.backward = False
