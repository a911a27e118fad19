"""Every sample of a probe's mini-batches by itself: f_j(x_k), f_j(x_p) and <∇f_j(x_k), x_k − x_p>, without a gradient of each.

The losses of all samples are differentiated at once in the one direction that the condition asks for, by forward mode. What has
no forward derivative (custom functions, some fused kernels, sharded parameters) is differentiated by central differences of two
widths, whose disagreement is the estimate of their error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_landscape.evaluation.replay import Replayer, batch_of
from lightning_landscape.evaluation.sample_losses import tensors_in, with_first_half_replaced
from lightning_landscape.evaluation.stored_probes import Itself
from lightning_landscape.extras.held_out import replaced
from lightning_landscape.probes import Probe
from lightning_landscape.recording.freezing import Frozen, thaw
from lightning_landscape.training import lightning_compat
from lightning_landscape.training.failures import FailedElsewhere, NotMeasurable, said
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.parameters import Swap, copied, named_parameters
from lightning_landscape.vectors.products import Products

FORWARD, DIFFERENCES = "forward mode", "finite difference"
MIXING = "mixing"
"""What users pass who know that samples mix, and want each one's loss with the rest of its mini-batch as it is"""
SAME_LOSS = 1e-5
"""Losses that differ by more than this part of them are not the same function"""


class _Slopes(NamedTuple):
    """Of one micro-batch: losses at x_k, and <∇f_j(x_k), x_k − x_p>."""

    losses: Tensor
    products: Tensor
    error: Tensor
    """Of each of the latter, at most about; 0 where they are exact to rounding"""


class _Line(NamedTuple):
    """The line from x_k to x_p."""

    x: dict[str, Tensor]
    direction: dict[str, Tensor]
    """v = x_k − x_p by name"""
    length: float = 0.0
    """‖v‖, where differences are taken"""
    step: float = 0.0
    """h, the width of the central difference along v/‖v‖"""


class PerSample:
    """Evaluates single samples; inside ``replayer.silence()``, by all processes alike.

    Args:
        trainer: the trainer.
        module: the module.
        replayer: evaluates losses and their derivatives.
        processes: those of the run, each with samples of its own.
        products: measures norms.
        sharded: whether each process has its own part of the parameters, through which forward mode does not go.
        mixing: whether samples may depend on each other.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        *,
        replayer: Replayer,
        processes: Processes,
        products: Products,
        sharded: bool,
        mixing: bool,
    ) -> None:
        self._module, self._replayer, self._processes, self._products = (
            module,
            replayer,
            processes,
            products,
        )
        self._sharded, self._mixing = sharded, mixing
        self._swap = Swap(module)
        self._counts = lightning_compat.has_batches_of_its_own(trainer)
        self._graph: bool | None = None
        """Whether forward mode runs while autograd records; None while neither has been tried"""
        self.about: dict[str, Any] = {
            "method": DIFFERENCES if sharded else None,
            "method_reason": "forward mode does not go through sharded parameters"
            if sharded
            else None,
            "step": None,
            "error": {"absolute": 0.0, "relative": 0.0},
            "rounding": None,
            "mixing": "allowed" if mixing else None,
            "training_loss": None,
            "stopped_by": None,
            "fidelity": {"loss": 0.0, "inner_product": 0.0},
        }
        """How it was done, for ``summary.json``: plain values"""

    @property
    def passes(self) -> int:
        """How many forward passes a probe takes: values and derivatives at x_k, values at x_p."""
        differences = self.about["method"] == DIFFERENCES
        return 6 if differences else 3

    def adopt(self, about: Mapping[str, Any] | None) -> None:
        """Go on from what a checkpoint holds; which way to take is found again."""
        if about is not None:
            self.about |= {
                key: about[key] for key in about if key not in ("method", "method_reason")
            }

    # ---------------------------------------------------------------------------------------------------- at the first probe

    def check(self, moment: Frozen, loss: float, training_loss: float | None) -> None:
        """See whether samples mix, and whether their mean is the loss of training; at the first probe, by all processes.

        Args:
            moment: its first micro-batch.
            loss: the mean loss of its samples.
            training_loss: what ``training_step`` returned, mean over the same; None under manual optimisation.

        Raises:
            MisconfigurationException: if the loss of one sample depends on others.
        """
        if training_loss is not None:
            off = abs(loss - training_loss) / max(abs(loss), abs(training_loss), 1e-300)
            rounding = self._replayer.rounding(named_parameters(self._module).values())
            self.about["training_loss"] = {
                "samples": loss,
                "training_step": training_loss,
                "relative_difference": off,
                "same": off <= max(SAME_LOSS, 8 * rounding),
            }
        if self._mixing:
            return
        try:
            with self._processes.agreed():
                change, seen = self._change_of_others(moment)
                found = self._processes.exchange(change, float(seen))
        except Exception:  # a loss may not take a batch of repeated samples
            return
        if any(row[1] for row in found):
            self.about["mixing"] = any(row[0] > 0 for row in found)
        if self.about["mixing"]:
            norms = sorted(
                {
                    type(m).__name__
                    for m in self._module.modules()
                    if isinstance(m, nn.modules.batchnorm._BatchNorm)
                }
            )
            raise MisconfigurationException(
                "LandscapeMonitor(per_sample=True) replaced some samples of the first mini-batch, and losses of others changed"
                f"{f', with {norms[0]} in the module' if norms else ''}: the loss of one sample has no meaning by itself. "
                "Supported are losses in which samples do not mix: use GroupNorm or LayerNorm in the place of BatchNorm, put "
                f"BatchNorm into eval mode, or pass per_sample={MIXING!r} to measure each sample's loss with the rest of its "
                "mini-batch as it is"
            )

    def _change_of_others(self, moment: Frozen) -> tuple[float, bool]:
        """Return by how much losses of samples that stay change when the others are replaced, and whether these could be."""
        here = copied(named_parameters(self._module))
        with self._swap.to(here):
            losses = self._replayer.sample_losses(moment)
        state = thaw(moment, self._module.device)
        own = batch_of(state["args"], state["kwargs"])
        batch = with_first_half_replaced(own, len(losses))
        seen = any(
            not torch.equal(a, b) for a, b in zip(tensors_in(own), tensors_in(batch), strict=True)
        )
        with self._swap.to(here):
            others = self._replayer.sample_losses(replaced(moment, batch))
        half = len(losses) // 2
        scale = 16 * torch.finfo(torch.float32).eps * float(losses.abs().max())
        change = float((others - losses)[half:].abs().max())
        return (change if change > scale else 0.0), seen

    # --------------------------------------------------------------------------------------------------------- at a probe

    def at(self, probe: Probe, itself: Itself, reference: Mapping[str, Tensor]) -> Tensor:
        """Return the samples of a probe, of all processes.

        Args:
            probe: its row.
            itself: its micro-batches, and what puts the module to x_k.
            reference: x_p by name.

        Returns:
            f_j(x_k), f_j(x_p), <∇f_j(x_k), x_k − x_p>, float64 of shape ``(samples, 3)`` on the CPU: process after process, in
            each micro-batch after micro-batch.

        Raises:
            NotMeasurable: if the number of losses is not the same at x_k and at x_p.
        """
        line = self._line(itself, reference)
        if self.about["method"] is None:
            self._decide(itself.moments[0], itself, line)
        if self.about["method"] == DIFFERENCES:
            line = self._with_step(line)
        rows, errors = [], []
        for moment in itself.moments:
            here = self._slopes(moment, itself, line)
            with itself.there(reference):
                there = self._replayer.sample_losses(moment)
            if len(there) != len(here.losses):
                raise NotMeasurable(f"{len(here.losses)} samples at x_k and {len(there)} at x_p")
            rows.append(torch.stack([here.losses, there, here.products], dim=1))
            errors.append(here.error)
        self._note(probe, rows, torch.cat(errors), line)
        mine = torch.cat(rows) if self._counts else torch.zeros(0, 3, dtype=torch.float64)
        return torch.cat(self._processes.of_each(mine))

    def _line(self, itself: Itself, reference: Mapping[str, Tensor]) -> _Line:
        own = None if itself.differentiated is None else sorted(itself.differentiated)
        names = (own if self._sharded else self._processes.of_first(lambda: own)) or []
        x = {name: itself.x[name].to(self._module.device) for name in names}
        working = {
            name: value.double() if value.dtype == torch.float64 else value.float()
            for name, value in x.items()
        }
        direction = {name: value - reference[name].to(value) for name, value in working.items()}
        self.about["rounding"] = self._replayer.rounding(x.values()) if x else 1.0
        return _Line(x, direction)

    def _with_step(self, line: _Line) -> _Line:
        length, size = (
            self._products.sq_change(vector, 1.0, {}, 1.0) ** 0.5
            for vector in (line.direction, line.x)
        )
        # truncation falls with h² and rounding grows with 1/h: they meet at the cube root of the rounding error, beside ‖x‖
        return line._replace(
            length=length, step=self.about["rounding"] ** (1 / 3) * max(size, length)
        )

    def _slopes(self, moment: Frozen, itself: Itself, line: _Line) -> _Slopes:
        if self.about["method"] == DIFFERENCES:
            return self._by_differences(moment, itself, line)
        return self._by_forward_mode(moment, itself, line, bool(self._graph))

    def _decide(self, moment: Frozen, itself: Itself, line: _Line) -> None:
        """Choose forward mode if it gives losses of the same function, else differences, for this process and all others."""
        problem: str | None = None
        for graph in sorted({self._replayer.gradients_enabled, True}):
            try:
                with self._processes.agreed():
                    losses = self._by_forward_mode(moment, itself, line, graph).losses
            except (
                RuntimeError,
                FailedElsewhere,
            ) as error:  # NotImplementedError is a RuntimeError
                problem = problem or said(error).partition("\n")[0].partition(". ")[0].rstrip(".")
                continue
            with itself.there():
                plain = self._replayer.sample_losses(moment)
            near = self._replayer.rounding(line.x.values()) ** 0.5
            same = len(plain) == len(losses) and torch.allclose(
                plain, losses, rtol=near, atol=near, equal_nan=True
            )
            if self._processes.everywhere(same):
                self._graph, self.about["method"] = graph, FORWARD
                return
            problem = (
                problem
                or "other losses: kernels that have forward derivatives draw other random numbers"
            )
        self.about |= {"method": DIFFERENCES, "method_reason": f"forward mode failed: {problem}"}
        rank_zero_warn(
            f"LandscapeMonitor(per_sample=...) takes finite differences, because forward mode failed: {problem}. Their largest "
            "error is estimated, and stands in summary.json"
        )

    def _by_forward_mode(self, moment: Frozen, itself: Itself, line: _Line, graph: bool) -> _Slopes:
        with itself.there():
            losses, products = self._replayer.sample_derivatives(
                moment, line.direction, with_graph=graph
            )
        return _Slopes(losses, products, torch.zeros_like(products))

    def _by_differences(self, moment: Frozen, itself: Itself, line: _Line) -> _Slopes:
        r"""Return slopes from losses at four points of the line beside that at x_k.

        .. math:: (4 D(h) - D(2h))/3, \qquad D(h) = (f(x+h\hat v) - f(x-h\hat v)) \|v\|/(2h)

        The error is estimated by :math:`|D(h) - D(2h)|`, by :math:`|2S(h) - S(2h)|` with
        :math:`S(h) = (f(x+h\hat v) - 2f(x) + f(x-h\hat v)) \|v\|/h`, and by rounding. A kink near x moves D(h) and D(2h) alike;
        S, which is proportional to h where f is smooth, is there the jump of the slope.
        """
        with itself.there():
            losses = self._replayer.sample_losses(moment)
        if not line.length:
            return _Slopes(losses, torch.zeros_like(losses), torch.zeros_like(losses))
        slopes, bends = [], []
        for width in (line.step, 2 * line.step):
            ahead, behind = (
                self._at(moment, itself, line, sign * width / line.length) for sign in (1, -1)
            )
            slopes.append((ahead - behind) * (line.length / (2 * width)))
            bends.append((ahead - 2 * losses + behind) * (line.length / width))
        rounding = (
            8
            * self._replayer.rounding(line.x.values())
            * float(losses.abs().max())
            * line.length
            / line.step
        )
        error = (slopes[0] - slopes[1]).abs() + (2 * bends[0] - bends[1]).abs() + rounding
        return _Slopes(losses, (4 * slopes[0] - slopes[1]) / 3, error)

    def _at(self, moment: Frozen, itself: Itself, line: _Line, share: float) -> Tensor:
        """Return the losses at x_k + share · v."""
        point = {name: x + (share * line.direction[name]).to(x) for name, x in line.x.items()}
        with itself.there(point):
            return self._replayer.sample_losses(moment)

    def _note(self, probe: Probe, rows: list[Tensor], error: Tensor, line: _Line) -> None:
        """Note errors, and how far the means over the samples are from the columns of the probe."""
        loss, _, product = (sum(row[:, i].mean() for row in rows) / len(rows) for i in range(3))
        largest = max(float(row[:, 2].abs().max()) for row in rows)
        found = self._processes.exchange(float(loss), float(product), float(error.max()), largest)
        means = [sum(row[i] for row in found) / len(found) for i in (0, 1)]
        absolute, largest = (max(row[i] for row in found) for i in (2, 3))
        assert probe.inner_product is not None, "evaluated at x_p before"
        assert probe.sq_distance is not None, "evaluated at x_p before"
        size = (probe.grad_sq_norm * probe.sq_distance) ** 0.5
        fidelity, known = self.about["fidelity"], self.about["error"]
        fidelity["loss"] = max(fidelity["loss"], abs(means[0] - probe.loss))
        if size:
            fidelity["inner_product"] = max(
                fidelity["inner_product"], abs(means[1] - probe.inner_product) / size
            )
        if self.about["method"] == DIFFERENCES:
            self.about["step"] = max(self.about["step"] or 0.0, line.step)
            known["absolute"] = max(known["absolute"], absolute)
            known["relative"] = max(known["relative"], absolute / largest if largest else 0.0)
