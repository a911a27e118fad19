"""`ProbedStep`: one recorded step, as an extra gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_landscape.evaluation.evaluator import Evaluator
from lightning_landscape.probes import Probe
from lightning_landscape.store.record import Record
from lightning_landscape.training.training import Training
from lightning_landscape.vectors.gradients import Gradient


@dataclass(frozen=True, slots=True, eq=False)
class ProbedStep:
    """The step of one probe: its row, and everything to evaluate its mini-batch again.

    All processes of a run have the same steps in the same order. Methods wait for all of them.
    """

    record: Record
    """The recorded micro-batches with their state. Where ``training.measures``: x_k and g_k too"""
    probe: Probe
    """The row in the table of probes, with the columns that depend on x_p"""
    reference: Mapping[str, Tensor]
    """x_p by parameter name"""
    evaluator: Evaluator

    @property
    def training(self) -> Training:
        """Trainer, module, optimizer, processes."""
        return self.evaluator.training

    @property
    def number(self) -> int:
        """k, the number of optimizer steps made before it."""
        return self.record.step

    def x(self) -> dict[str, Tensor]:
        """Return x_k by parameter name, in every process; of shards, this process's part."""
        return self.evaluator.iterate(self.record)

    def loss(self, x: Mapping[str, Tensor] | None = None) -> float:
        """Return f_i(x), the loss of the step's mini-batch.

        Args:
            x: parameters by name; None for x_k.
        """
        return self.evaluator.loss(self.record, x)

    def gradient(self, x: Mapping[str, Tensor] | None = None) -> tuple[float, Gradient]:
        """Return f_i(x) and ∇f_i(x), computed now: a forward and a backward pass.

        Both are means over the processes. Of sharded parameters, the gradient is this process's
        part, which may be empty; `Evaluator.sq_norm` adds the parts up. The recorded gradient g_k
        is ``record.gradient`` and costs nothing.

        Args:
            x: parameters by name; None for x_k.
        """
        return self.evaluator.gradient(self.record, x)

    def with_batch(self, batch: Any) -> ProbedStep:
        """Return the step with another batch in the place of its own, in the same state.

        Args:
            batch: as a data loader yields it.
        """
        record = self.evaluator.with_batch(self.record, batch)
        return ProbedStep(record, self.probe, self.reference, self.evaluator)
