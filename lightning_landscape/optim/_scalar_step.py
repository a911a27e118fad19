"""Base class of the optimizers: x ← x − γ_k g with one γ_k for all parameters of all groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from math import inf, isfinite, isnan, nan
from typing import Any, ClassVar, TypeAlias, TypeVar, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from lightning_landscape.optim._measured import across_ranks, as_number, squared_norm

Numbers: TypeAlias = Mapping[str, float]
Loss = TypeVar("Loss", bound="float | Tensor")
Returned = TypeVar("Returned", bound="float | Tensor | None")


class ScalarStep(Optimizer, ABC):
    """Base class: a subclass computes γ_k in `_next`, a pure function of loss, G² and its state.

    The state of a method is the set of numbers named in `memory`. Every parameter group stores
    them next to its constants, because all checkpoint formats (torch.distributed's as well) keep
    numbers of groups, but not numbers without a parameter.
    """

    memory: ClassVar[dict[str, float]] = {"step_size": nan}
    """The state before the first step"""
    constants: ClassVar[tuple[str, ...]]
    """Names of the constructor's constants; every group has them"""
    needs_loss: ClassVar[bool] = True
    """Whether γ_k depends on the loss"""

    def __init__(self, params: ParamsT, **constants: float) -> None:
        super().__init__(params, {name: float(value) for name, value in constants.items()})

    @abstractmethod
    def _next(
        self, shared: Numbers, options: Numbers, excess: float, sq_norm: float
    ) -> dict[str, float]:
        """Return the state after this step; its ``step_size`` is γ_k.

        Args:
            shared: the state after the last step; `memory` before the first.
            options: the current constants of the groups.
            excess: ``a − l`` ≥ 0; undefined if `needs_loss` is False.
            sq_norm: ``G²`` ≥ 0, finite.
        """

    def _check(self, options: Numbers) -> None:
        """Raise ``ValueError`` if a constant is out of range."""
        for name, value in options.items():
            if name == "loss_infimum":
                if not isfinite(value):
                    raise ValueError(
                        f"`loss_infimum` is {value}; supported are finite numbers: pass 0 if no "
                        "loss is negative"
                    )
            else:
                check_positive(name, value)

    @property
    def step_size(self) -> float | None:
        """γ_k of the last step that was not skipped; ``None`` before the first."""
        size = self._shared()["step_size"]
        return None if isnan(size) else size

    @overload
    def step(self, closure: None = None, *, loss: None = None) -> None: ...
    @overload
    def step(self, closure: None = None, *, loss: Loss) -> Loss: ...
    @overload
    def step(self, closure: Callable[[], Returned], *, loss: None = None) -> Returned: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:
        """Take one step; skip it if the loss or the gradient norm is not finite.

        Args:
            closure: computes loss and gradients and returns the loss. If it returns ``None`` and
                computes no gradient, the step is skipped.
            loss: the loss that gave the gradients in ``p.grad``, a float or a 0-dim tensor. Pass it
                if no closure returns it.

        Returns:
            The value returned by the closure, or else ``loss``.

        Raises:
            RuntimeError: if the method needs a loss and has none, or if the ranks have different
                gradients.
            ValueError: if there are two losses, if the loss is below ``loss_infimum``, or if the
                constants of the groups differ.
        """
        options = self._options()
        if self.needs_loss and closure is None and loss is None:
            if options["lr"] == 0 and not any(
                bool(gradient.any()) for _, gradient in self._gradients()
            ):
                # torch.distributed.checkpoint takes such a step to initialize the state.
                return None
            raise self._no_loss("neither a closure nor loss=")
        loss = self._evaluate(closure, loss)
        gradients = self._gradients()
        # A rank without a loss or gradient communicates too, since the others wait for its numbers.
        # It sends nan, so that all ranks skip the step.
        missing = nan if self.needs_loss or not gradients else 0.0
        value, sq_norm = across_ranks(
            missing if loss is None else as_number(loss),
            squared_norm(gradient for _, gradient in gradients),
            self.param_groups[0]["params"][0].device,
        )
        if self.needs_loss and loss is None and gradients:
            raise self._no_loss("a closure that returned None, and gradients")
        if isfinite(value) and isfinite(sq_norm):
            self._move(gradients, options, value, sq_norm)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; constants that it does not name get the current values of the other groups.

        Raises:
            ValueError: if a constant is out of range or differs from that of the other groups.
        """
        # Optimizer.__init__ adds the first groups through this method.
        others = self.param_groups[0] if self.param_groups else self.defaults
        known = others if self.param_groups else self.memory
        group = (
            {name: others[name] for name in self.constants}
            | {name: known[name] for name in self.memory}
            | param_group
        )
        options = {name: float(group[name]) for name in self.constants}
        if self.param_groups:
            check_agreement(type(self).__name__, [self._options(), options])
        else:
            self._check(options)
        super().add_param_group(group)

    def _options(self) -> dict[str, float]:
        options = [
            {name: float(group[name]) for name in self.constants} for group in self.param_groups
        ]
        check_agreement(type(self).__name__, options)
        if not 0 <= options[0]["lr"] < inf:
            raise ValueError(
                f"`lr` is {options[0]['lr']}; supported are schedules with finite, non-negative "
                "values"
            )
        return options[0]

    def _evaluate(self, closure: Callable[[], Any] | None, loss: Any) -> Any:
        if closure is None:
            return loss
        # `step` itself runs without autograd.
        with torch.enable_grad():
            returned = closure()
        # In manual optimization Lightning adds a closure that does nothing and returns None.
        if returned is not None and loss is not None:
            raise ValueError(
                f"{type(self).__name__}.step found loss={loss} and a closure that returned "
                f"{returned}; supported is one of the two: drop loss=, or call step(loss=...) "
                "without a closure"
            )
        return loss if returned is None else returned

    def _gradients(self) -> list[tuple[Tensor, Tensor]]:
        parameters = [
            p for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        # A repeated index of a sparse gradient has to be summed before its norm is taken.
        return [(p, p.grad.coalesce() if p.grad.is_sparse else p.grad) for p in parameters]

    def _move(
        self, gradients: list[tuple[Tensor, Tensor]], options: Numbers, loss: float, sq_norm: float
    ) -> None:
        infimum = options.get("loss_infimum", 0.0)
        if self.needs_loss and loss < infimum:
            raise ValueError(
                f"{type(self).__name__} found a loss of {loss}, below loss_infimum={infimum}; "
                "supported is a lower bound of every mini-batch loss: pass a smaller loss_infimum="
            )
        shared = self._next(self._shared(), options, loss - infimum, sq_norm)
        for group in self.param_groups:
            group.update(shared)
        # With a zero gradient there is nothing to subtract.
        if sq_norm > 0:
            for parameter, gradient in gradients:
                descend(parameter, gradient, shared["step_size"])

    def _shared(self) -> Numbers:
        return {name: self.param_groups[0][name] for name in self.memory}

    def _no_loss(self, found: str) -> RuntimeError:
        name = type(self).__name__
        return RuntimeError(
            f"{name} computes its step from the loss of the mini-batch and found {found}. Usual "
            "causes: a GradScaler (precision='16-mixed'), which calls optimizers without their "
            "closure; a closure that does not return its loss; a training_step that returned None "
            "for the last micro-batch of an accumulation window. Train with precision='32-true' or "
            "'bf16-mixed', where Lightning calls step(closure), or call "
            f"{name}.step(loss=...) in manual optimization"
        )


def check_positive(name: str, value: float) -> None:
    """Raise ``ValueError`` if a constant is not positive and finite."""
    if not 0 < value < inf:
        raise ValueError(f"`{name}` is {value}; supported are positive finite numbers")


def check_agreement(optimizer: str, options: list[dict[str, float]]) -> None:
    """Raise ``ValueError`` at the first constant that differs between groups."""
    for name in options[0]:
        values = [group[name] for group in options]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"{optimizer} found `{name}` {values} in its parameter groups; supported is one "
                "value, because all groups share one scalar step size: give all groups the same "
                f"`{name}`, and a scheduler one lambda for all"
            )


def descend(parameter: Tensor, gradient: Tensor, step_size: float) -> None:
    """Subtract γ g from a parameter in place."""
    if parameter.dtype in (torch.float16, torch.bfloat16):
        # add_ rounds `alpha` to the parameter's dtype, where a small γ is 0 and a large one an
        # error.
        parameter.sub_(gradient.to_dense().float() * step_size)
    else:
        parameter.add_(gradient, alpha=-step_size)
