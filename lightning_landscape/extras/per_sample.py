"""`PerSample`: every sample of a probe's mini-batches by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from typing_extensions import override

from lightning_landscape.evaluation.evaluator import with_batch
from lightning_landscape.evaluation.extra import SAMPLES, Extra
from lightning_landscape.evaluation.sample_losses import tensors_in, with_first_half_replaced
from lightning_landscape.evaluation.slopes import DIFFERENCES, Line, SampleSlopes
from lightning_landscape.extras._sample_summary import (
    PerSampleRow,
    per_sample_entry,
    per_sample_sentence,
)
from lightning_landscape.extras.settings import refuse
from lightning_landscape.probes import Probe
from lightning_landscape.reporting.findings import Findings
from lightning_landscape.store.freezing import thaw
from lightning_landscape.training import lightning_compat
from lightning_landscape.training.failures import NotMeasurable
from lightning_landscape.training.loss import batch_of
from lightning_landscape.training.training import Training
from lightning_landscape.vectors.parameters import named_parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from lightning_landscape.evaluation.evaluator import Evaluator
    from lightning_landscape.evaluation.probed_step import ProbedStep
    from lightning_landscape.reporting.figures import Drawn
    from lightning_landscape.store.record import Record

SAME_LOSS = 1e-5
"""Two losses with a larger relative difference are losses of different functions"""


class PerSample(Extra):
    """Evaluates f_j(x_k), f_j(x_p) and <∇f_j(x_k), x_k − x_p> of every sample of each probe.

    It needs a ``loss=`` that returns one loss a sample, a tensor of shape (B,). The measured
    mini-batch loss is then their mean. About three forward passes a probe.

    Args:
        mixing: Whether samples may depend on each other, as with BatchNorm in training mode. Each
            sample's loss is then measured with the rest of its mini-batch as it is. By default
            such a run is refused.

    Raises:
        MisconfigurationException: at the first probe, if the loss of one sample depends on others.
    """

    tables = {"per_sample": PerSampleRow}
    needs = frozenset({SAMPLES})

    def __init__(self, mixing: bool = False) -> None:
        if not isinstance(mixing, bool):
            refuse("PerSample", "mixing", mixing, "True and False")
        self.mixing = mixing

    @override
    def check(self, training: Training) -> None:
        self._slopes: SampleSlopes | None = None
        self._has_own_batches = lightning_compat.has_batches_of_its_own(training.trainer)
        self._about: dict[str, Any] = {
            "method": None,
            "method_reason": None,
            "step": None,
            "error": {"absolute": 0.0, "relative": 0.0},
            "rounding": None,
            "mixing": "allowed" if self.mixing else None,
            "training_loss": None,
            "fidelity": {"loss": 0.0, "inner_product": 0.0},
        }

    # ----------------------------------------------------------------------------- first probe

    @override
    def check_first(
        self, record: Record, evaluator: Evaluator, training_loss: float | None
    ) -> None:
        processes = evaluator.training.processes
        if processes.everywhere(training_loss is not None) and training_loss is not None:
            self._compare(processes.mean(record.loss), processes.mean(training_loss), evaluator)
        if self.mixing:
            return
        try:
            with processes.agreed():
                change, seen = self._change_of_others(record, evaluator)
                found = processes.exchange(change, float(seen))
        except Exception:
            return  # a loss may refuse a batch of repeated samples
        if any(row[1] for row in found):
            self._about["mixing"] = any(row[0] > 0 for row in found)
        if self._about["mixing"]:
            raise MisconfigurationException(_mixing_message(evaluator.training.module))

    def _compare(self, loss: float, training_loss: float, evaluator: Evaluator) -> None:
        """Note whether the mean over the samples is the loss of training."""
        off = abs(loss - training_loss) / max(abs(loss), abs(training_loss), 1e-300)
        parameters = named_parameters(evaluator.training.module).values()
        rounding = evaluator.replay.rounding(parameters)
        self._about["training_loss"] = {
            "samples": loss,
            "training_step": training_loss,
            "relative_difference": off,
            "same": off <= max(SAME_LOSS, 8 * rounding),
        }

    def _change_of_others(self, record: Record, evaluator: Evaluator) -> tuple[float, bool]:
        """Replace half of the samples; return the change of the others' losses.

        Returns:
            The largest change beyond rounding, and whether any sample could be replaced.
        """
        moment, sample_losses = record.moments[0], evaluator.replay.sample_losses
        with evaluator.at(record):
            losses = sample_losses(moment)
        state = thaw(moment, evaluator.training.module.device)
        own = batch_of(state["args"], state["kwargs"])
        batch = with_first_half_replaced(own, len(losses))
        pairs = zip(tensors_in(own), tensors_in(batch), strict=True)
        seen = any(not torch.equal(a, b) for a, b in pairs)
        with evaluator.at(record):
            others = sample_losses(with_batch(moment, batch))
        half = len(losses) // 2
        rounding = 16 * torch.finfo(torch.float32).eps * float(losses.abs().max())
        change = float((others - losses)[half:].abs().max())
        return (change if change > rounding else 0.0), seen

    # ------------------------------------------------------------------------------ one record

    @override
    def at(self, step: ProbedStep) -> Iterable[PerSampleRow]:
        if self._slopes is None:
            self._slopes = SampleSlopes(step.evaluator)
        record, slopes, found, errors = step.record, self._slopes, [], []
        line = slopes.line(record, step.reference)
        for moment in record.moments:
            here = slopes.at(record, moment, line)
            there = slopes.losses(record, moment, step.reference)
            if len(there) != len(here.losses):
                raise NotMeasurable(f"{len(here.losses)} samples at x_k and {len(there)} at x_p")
            found.append(torch.stack([here.losses, there, here.products], dim=1))
            errors.append(here.error)
        self._note(step.probe, found, torch.cat(errors), line, step.evaluator)
        none = torch.zeros(0, 3, dtype=torch.float64)
        mine = torch.cat(found) if self._has_own_batches else none
        samples = torch.cat(step.training.processes.of_each(mine)).tolist()
        logged = step.probe.logged_step
        return [PerSampleRow(step.number, logged, j, *f) for j, f in enumerate(samples)]

    def _note(
        self,
        probe: Probe,
        rows: list[Tensor],
        error: Tensor,
        line: Line,
        evaluator: Evaluator,
    ) -> None:
        """Note errors, and how far the means over the samples are from the probe's columns."""
        assert self._slopes is not None, "called after it was made"
        loss, _, product = (
            float(sum(row[:, i].mean() for row in rows)) / len(rows) for i in range(3)
        )
        largest = max(float(row[:, 2].abs().max()) for row in rows)
        exchange = evaluator.training.processes.exchange
        found = exchange(loss, product, float(error.max()), largest)
        means = [sum(row[i] for row in found) / len(found) for i in (0, 1)]
        absolute, largest = (max(row[i] for row in found) for i in (2, 3))
        size = (probe.grad_sq_norm * (probe.sq_distance or 0.0)) ** 0.5
        fidelity, known = self._about["fidelity"], self._about["error"]
        fidelity["loss"] = max(fidelity["loss"], abs(means[0] - probe.loss))
        if size and probe.inner_product is not None:
            off = abs(means[1] - probe.inner_product) / size
            fidelity["inner_product"] = max(fidelity["inner_product"], off)
        slopes = self._slopes
        self._about |= {"method": slopes.method, "method_reason": slopes.reason}
        self._about["rounding"] = slopes.rounding
        if slopes.method == DIFFERENCES:
            self._about["step"] = max(self._about["step"] or 0.0, line.step)
            known["absolute"] = max(known["absolute"], absolute)
            relative = absolute / largest if largest else 0.0
            known["relative"] = max(known["relative"], relative)

    @override
    def evaluations(self, records: int) -> int:
        return 3 * records  # values and derivatives at x_k, values at x_p

    @override
    def describe(self) -> str:
        return "every single sample (3 passes)"

    @override
    def failed(self, error: str, step: int) -> str:
        return (
            f"LandscapeMonitor: PerSample could not evaluate the samples of step {step}, {error}. "
            "Supported are losses that give as many numbers at the reference as at the iterate. "
            "PerSample ends; all else goes on"
        )

    # --------------------------------------------------------------------------------- summary

    @override
    def summary(self, findings: Findings) -> dict[str, Any]:
        about = {**self._about, "stopped_by": self.stopped_by}
        rows = self.rows("per_sample")
        return {"per_sample": per_sample_entry(rows, about, findings)}

    @override
    def sentence(self, summary: Mapping[str, Any]) -> str:
        return per_sample_sentence(summary.get("per_sample"))

    @classmethod
    @override
    def figures(cls, drawn: Drawn) -> Mapping[str, Figure]:
        from lightning_landscape.extras import _sample_figure

        return {"per_sample": _sample_figure.figure(drawn)}

    @override
    def state(self) -> dict[str, Any]:
        return {**super().state(), "about": self._about, "stopped_by": self.stopped_by}

    @override
    def adopt(self, state: Mapping[str, Any]) -> None:
        super().adopt(state)
        known = {k: v for k, v in state["about"].items() if k not in ("method", "method_reason")}
        self._about |= known
        self.stopped_by = state["stopped_by"]


def _mixing_message(module: nn.Module) -> str:
    batch_norm = nn.modules.batchnorm._BatchNorm
    norms = sorted({type(m).__name__ for m in module.modules() if isinstance(m, batch_norm)})
    has = f" The module has {norms[0]}." if norms else ""
    return (
        "PerSample() replaced some samples of the first mini-batch, and losses of others changed."
        f"{has} The loss of one sample has no meaning by itself. Supported are losses in which "
        "samples do not mix: use GroupNorm or LayerNorm in the place of BatchNorm, put BatchNorm "
        "into eval mode, or pass PerSample(mixing=True) to measure each sample's loss with the "
        "rest of its mini-batch as it is"
    )
