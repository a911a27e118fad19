"""`LandscapeMonitor`: Lightning's hooks in the order of a training step, each a few lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from torch.optim import Optimizer
from typing_extensions import override

from lightning_landscape.evaluation.extra import Extra
from lightning_landscape.evaluation.reference import (
    FINAL,
    Reference,
    check_reference_file,
    load_reference,
)
from lightning_landscape.fit import checkpoint
from lightning_landscape.fit.ending import Ending, Outcome
from lightning_landscape.fit.plan import declare_results, say_the_plan
from lightning_landscape.fit.session import Session
from lightning_landscape.probes import ProbeTable
from lightning_landscape.recording.counter import StepCounter
from lightning_landscape.recording.every_step import StepSums
from lightning_landscape.reporting.folder import parent_folder
from lightning_landscape.settings import Report, Settings, Store
from lightning_landscape.training import interrupts, refusals
from lightning_landscape.training.failures import said, warn_once
from lightning_landscape.training.part import trained_elsewhere, whole_of
from lightning_landscape.training.processes import Processes
from lightning_landscape.training.training import Training
from lightning_landscape.vectors.parameters import named_parameters

_NEVER = 2**62


class Phase(Enum):
    """Where a monitor stands in a ``fit``."""

    IDLE = "no fit, or training has not begun"
    WAITING = "between two probes"
    RECORDING = "the batches of a probed step are watched"
    STOPPED = "measuring has failed; training goes on"
    ENDED = "training is over; the evaluation comes in on_fit_end"


class LandscapeMonitor(Callback):
    """Measures the loss landscape along a training run, and the exact α-β-condition.

    While training, it copies probed steps: the iterate x_k, its mini-batch, loss and gradient, and
    the step that was made. After training, the same mini-batches are evaluated at the reference
    x_p, each in the state of its step. Training is not changed by it, to the last bit: no code of
    the user's is called before the last callback's ``on_train_end`` has run. Results: curves in the
    loggers, ``probes.csv`` and ``summary.json`` in ``<dirpath>/<prefix>/``, and after ``fit`` the
    attributes ``table`` and ``summary``. The condition is that of Islamov, Ajroldi, Orvieto and
    Lucchi (NeurIPS 2024).

    Args:
        reference: The point x_p. "final": the parameters after the last optimizer step of this run.
            Or the path of a Lightning .ckpt, a state_dict or a .safetensors file of the same
            module, or of a folder that a sharded run wrote: then each probe is evaluated right
            after its step, and every curve is live. This calls ``training_step`` again while
            training; effects that it has outside the module happen again.
        every_n_steps: Number of optimizer steps between probes, at first.
        max_probes: Largest number of kept probes. When another is due, every second one is dropped
            and the stride doubles.
        every_step: Measure every step, so that the sums over steps in the trajectory certificate
            are exact: two copies of the parameters, and three passes over them, at every step.
        loss: A function of (module, batch) that returns the loss to measure, as a tensor with one
            element, by import path on the command line; by default the loss of training_step. It is
            called at probed steps, when the optimizer steps: with all parameters as they are then,
            and with buffers, attributes and random numbers as they were when training_step began.
            Manual optimization needs it.
        loss_infimum: A lower bound of every mini-batch loss, the f_i^* of the theory; 0 for
            cross-entropy and squared error.
        parameters: Dotted name of the submodule whose parameters are x, as "generator"; by default
            all parameters of the optimizer. With several optimizers it says which one is measured:
            each player of a GAN has a monitor of its own, with a prefix= of its own, and ``step``
            counts the steps of its optimizer. All other parameters are for each probe as they were
            at its step.
        live_epochs: Epochs after which some probes are compared with the present iterate, in the
            place of x_p (curves ``live/…``): inner product, cosine, distance, restricted secant and
            error bounds, from copies alone. "doubling" is 1, 2, 4, 8, …; None for never.
        live_losses: Evaluate losses at the present iterate as well, hence α and β. This calls
            ``training_step`` again while training; effects that it has outside the module happen
            again.
        max_overhead: Largest share of the time of training, the evaluation at its end included,
            that the monitor may take: the stride doubles until it fits. None: which steps are
            probed does not depend on the clock.
        extras: Optional measurements of each probe: Segments(), Layers(), HeldOut(), PerSample(),
            Secant(), or your own subclass of Extra.
        store: How records wait on disk until x_p is known.
        report: What is shown of the run.
        dirpath: Where the folder <prefix>/ is written; by default the logger's folder, without a
            logger default_root_dir.
        prefix: Name of that folder and group of all tags.

    Raises:
        MisconfigurationException: for an argument outside its range; and before the first optimizer
            step, where a run cannot be measured. The message says what is supported.

    Example:
        >>> from lightning_landscape import LandscapeMonitor
        >>> monitor = LandscapeMonitor(every_n_steps=5)  # then Trainer(callbacks=[monitor])
    """

    def __init__(
        self,
        reference: str | Path = FINAL,
        *,
        every_n_steps: int = 10,
        max_probes: int = 128,
        every_step: bool = False,
        loss: Callable[[LightningModule, Any], Any] | None = None,
        loss_infimum: float = 0.0,
        parameters: str | None = None,
        live_epochs: Literal["doubling"] | list[int] | None = "doubling",
        live_losses: bool = False,
        max_overhead: float | None = None,
        extras: Sequence[Extra] = (),
        store: Store = Store(),
        report: Report = Report(),
        dirpath: str | os.PathLike[str] | None = None,
        prefix: str = "landscape",
    ) -> None:
        super().__init__()
        self.settings = Settings(
            reference=reference,
            every_n_steps=every_n_steps,
            max_probes=max_probes,
            every_step=every_step,
            loss=loss,
            loss_infimum=loss_infimum,
            parameters=parameters,
            live_epochs=live_epochs,
            live_losses=live_losses,
            max_overhead=max_overhead,
            extras=extras,
            store=store,
            report=report,
            dirpath=dirpath,
            prefix=prefix,
        )
        self.table: ProbeTable | None = None
        """The table of probes, after ``fit``"""
        self.summary: dict[str, Any] | None = None
        """The content of ``summary.json``, after ``fit``"""
        self._phase = Phase.IDLE
        self._count = StepCounter()
        self._next_step = _NEVER
        """The step at which something is to be done; compared before every batch"""
        self._sums: StepSums | None = None
        """The sums over all steps, while every step is measured"""
        self._session: Session | None = None
        self._training: Training | None = None
        self._reference: Reference | None = None
        self._resumed: dict[str, Any] = {}
        """State from the checkpoint that this fit goes on from"""
        self._ended: dict[str, Any] = {}
        """State at the end of the last fit, for a checkpoint that is saved after it"""
        self._stopped_by = ""
        """What ended training"""

    # --------------------------------------------------------------------------- before training

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._leave(Phase.IDLE)
        self._session, self._training = None, None
        self._resumed = {}  # a state that an earlier fit left belongs to no checkpoint
        settings = self.settings
        refusals.check_strategy(trainer)
        processes = Processes(trainer.strategy)
        with processes.agreed():  # a file or a folder may be missing on one machine alone
            refusals.check_module(pl_module, settings.loss)
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            monitors = [c for c in callbacks if isinstance(c, LandscapeMonitor)]
            refusals.check_prefixes([monitor.settings.prefix for monitor in monitors])
            refusals.check_folder(parent_folder(trainer, settings.dirpath))
            check_reference_file(settings.reference)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        processes = Processes(trainer.strategy)
        with processes.agreed():
            self._look_at(trainer, pl_module, processes)
        declare_results(trainer, self.settings)

    def _look_at(self, trainer: Trainer, module: LightningModule, processes: Processes) -> None:
        """Find the optimizer and x_p, or refuse."""
        settings = self.settings
        refusals.check_batches(trainer.limit_train_batches)
        optimizer = refusals.check_optimizers(trainer.optimizers, module, settings.parameters)
        training = Training.of(trainer, module, optimizer, processes, settings.parameters)
        trained = training.parameters()
        refusals.check_parameters(trained, optimizer)
        refusals.check_shards(trainer, trained)
        for extra in settings.extras:
            extra.start().check(training)
        self._training, self._reference = training, None
        if settings.reference != FINAL:
            moving = trained_elsewhere(module, trainer.optimizers, trained)
            frozen = {
                name: parameter
                for name, parameter in named_parameters(module).items()
                if name not in trained and name not in moving
            }
            self._reference = load_reference(settings.reference, trained, frozen, processes)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.table, self.summary = None, None
        step = self._steps_before(trainer)
        self._count = StepCounter(step, trainer.global_step)
        self._session = self._new_session(trainer)
        if self._resumed and step > 0:
            self._resume(trainer)
        self._resumed = {}
        self._phase, self._sums = Phase.WAITING, self._session.recorder.sums
        self._next_step = max(self._session.kept.schedule.next_step, step)
        say_the_plan(self._session)

    def _new_session(self, trainer: Trainer) -> Session:
        training = self._require_training()
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        with training.processes.agreed():
            return Session(
                self.settings,
                training,
                self._reference,
                first_step=self._count.step,
                may_be_overwritten=any(map(_may_overwrite_parameters, callbacks)),
            )

    def _resume(self, trainer: Trainer) -> None:
        """Go on from the checkpoint's table; where that fails, a new one starts."""
        session = self._require_session()
        try:
            with session.training.processes.agreed():
                checkpoint.resume(session, self._resumed)
        except Exception as error:
            session.discard()
            self._session = None
            if isinstance(error, MisconfigurationException):
                raise
            self._session = self._new_session(trainer)
            warn_once(
                error,
                "LandscapeMonitor could not go on from the table of the checkpoint: "
                f"{said(error)}. A new table starts at step {self._count.step}",
            )

    def _steps_before(self, trainer: Trainer) -> int:
        """Return how many steps the measured optimizer has made.

        Lightning counts those of all optimizers together. Where nobody counted them, as in a
        checkpoint of a run without the monitor, they are counted from here.
        """
        if len(trainer.optimizers) == 1:
            return trainer.global_step
        known = self._resumed or self._ended
        return int(known["step"]) if known.get("global_step") == trainer.global_step else 0

    # ---------------------------------------------------------------------------- while training

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._count.step >= self._next_step:
            self._before_batch()

    def _before_batch(self) -> None:
        session = self._require_session()
        self._alone(session.recorder.check_nothing_moved)
        if self._phase is Phase.RECORDING and session.recorder.stepping:
            self._together(self._finish_probe)  # the optimizer stepped after the batch had ended
        if self._phase in (Phase.WAITING, Phase.RECORDING):
            self._next_step = session.kept.schedule.next_step
            if self._phase is Phase.RECORDING or self._count.step >= self._next_step:
                self._together(self._watch)

    @override
    def on_before_zero_grad(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        recording = self._phase is Phase.RECORDING
        if not (recording or self._sums is not None) or not self._is_measured(optimizer):
            return
        if recording:
            self._alone(self._require_session().recorder.forget_gradients)
        if self._sums is not None:
            self._alone(self._sums.forget_gradients)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count.note_backward()
        if self._sums is not None:
            self._alone(self._sums.count_backward)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._is_measured(optimizer):
            if self._phase is Phase.RECORDING:
                self._together(self._read_gradient)
            if self._sums is not None:
                self._summing(self._require_session().recorder.take_sums)
            self._count.note_step()
        if not pl_module.automatic_optimization:
            self._count.may_refuse = False  # a step is made, whatever comes

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._count.may_refuse:
            self._count.may_refuse = trainer.global_step == self._count.first_global_step
        if self._phase is Phase.RECORDING:
            self._together(self._finish_probe)
        if self._sums is not None:
            self._summing(self._require_session().recorder.count_step, self._count.step - 1)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._session is None:
            return
        if self._count.moved:
            self._alone(self._session.last.note_epoch_end)
            self._count.moved = False
        if self._phase in (Phase.WAITING, Phase.RECORDING):
            self._together(self._session.compare_with_present)

    def _watch(self) -> None:
        session = self._require_session()
        session.watch(self._count.step, may_refuse=self._count.may_refuse)
        if session.recorder.watching:
            self._phase, self._next_step = Phase.RECORDING, self._count.step
        else:
            self._phase, self._next_step = Phase.WAITING, session.kept.schedule.next_step

    def _read_gradient(self) -> None:
        session = self._require_session()
        recorder = session.recorder
        if recorder.stepping and session.automatic:
            raise MisconfigurationException(
                "LandscapeMonitor found an optimizer that evaluates loss and gradient more than "
                "once a step; supported are optimizers that take one gradient a step, as SGD and "
                "Adam do: use one of these"
            )
        if recorder.stepping:  # manual optimization: another step within the same batch
            self._finish_probe()
            recorder.forget_movement()  # the coming step moves what that one left
        if session.automatic and not self._count.backward:
            # SWA makes such a step after its pass for BatchNorm, on averages and with the
            # gradients of the step before
            recorder.forget_batches()
        session.read_gradient(may_refuse=self._count.may_refuse)

    def _finish_probe(self) -> None:
        session = self._require_session()
        session.recorder.look_away()
        if not session.recorder.stepping:
            return
        shown = session.finish_probe()
        # the next batch shows whether anything else has moved the parameters
        self._phase, self._next_step = Phase.WAITING, self._count.step
        if self.settings.report.progress_bar and shown:
            # with the prefix: schedulers and callbacks look the user's own values up by plain names
            values = {f"{self.settings.prefix}/{name}": value for name, value in shown.items()}
            session.training.module.log_dict(values, prog_bar=True, logger=False)

    # -------------------------------------------------------------------------------- at the end

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy x_K; nothing is evaluated before every callback's ``on_train_end`` has run."""
        if self._session is None:
            return
        self._stopped_by = "should_stop" if trainer.should_stop else "end of training"
        self._alone(self._session.abandon)
        self._alone(self._session.last.note_end, self._count.moved)
        self._leave(Phase.ENDED)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._phase is Phase.ENDED:
            self._end(self._stopped_by, complete=True)
        elif self._phase is Phase.IDLE:
            # on_train_start is not called without batches, nor when nothing is left to train
            refusals.check_batches(trainer.num_training_batches)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._session is None:
            return
        self._session.abandon()
        if isinstance(exception, MisconfigurationException) and self._count.may_refuse:
            self._session.discard()
            self._session = None
        elif isinstance(exception, KeyboardInterrupt):
            alone = self._session.training.processes.size == 1  # others may be gone already
            with interrupts.let_through():
                self._end("KeyboardInterrupt", complete=False, evaluate=alone)
        else:
            self._end(type(exception).__name__, complete=False, evaluate=False)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._session is not None:
            self._session.close()
        self._leave(Phase.IDLE)
        self._session, self._training = None, None

    def _end(self, stopped_by: str, *, complete: bool, evaluate: bool = True) -> None:
        """Evaluate, write files and curves; a failure leaves what was written before."""
        session = self._require_session()
        try:
            session.abandon()
            session.settle(together=evaluate)
            self._ended = self._state_of(session)
            self._session = None
            outcome = Outcome(stopped_by, self._count.step, self._count.idle, complete)
            ending = Ending(session, outcome, evaluate=evaluate)
            self.table, self.summary = ending.write(moved=self._count.moved)
        except Exception as error:
            session.abandon()
            self.table = session.kept.table
            warn_once(
                error,
                f"LandscapeMonitor could not finish its report: {said(error)}; "
                f"{session.reporter.folder.path} holds the rest",
            )
        finally:
            self._session = None
            self._leave(Phase.IDLE)

    def _leave(self, phase: Phase) -> None:
        """Enter a phase in which no batch is watched."""
        self._phase, self._next_step, self._sums = phase, _NEVER, None

    # --------------------------------------------------------------------------- stop and resume

    @property
    @override
    def state_key(self) -> str:
        name = self.settings.parameters
        part = {} if name is None else {"parameters": name}
        return self._generate_state_key(prefix=self.settings.prefix, **part)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._state_of(self._session) if self._session is not None else dict(self._ended)

    def _state_of(self, session: Session) -> dict[str, Any]:
        try:
            return checkpoint.state_of(session, self._count.step)
        except Exception as error:  # a checkpoint is worth more than the table
            warn_once(
                error,
                "LandscapeMonitor could not write its state into the checkpoint: "
                f"{said(error)}; a resumed run starts a new table",
            )
            return {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    # ---------------------------------------------------------------------------------- failures

    def _together(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function in all processes: a failure in one stops measuring in all."""
        processes = self._require_session().training.processes
        # a process that leaves at once would let the others wait
        without_interrupt = interrupts.put_off() if processes.size > 1 else nullcontext()
        try:
            with without_interrupt, processes.agreed():
                function(*args)
        except Exception as error:
            self._stop(error)

    def _alone(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function that waits for no other process; they learn of a failure later."""
        session = self._require_session()
        try:
            function(*args)
        except Exception as error:
            if session.training.processes.size > 1:
                session.recorder.note(error)
            else:
                self._stop(error)

    def _summing(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function of the sums over all steps."""
        sharded = self._require_session().training.sharded  # then each process has a part of them
        call = self._together if sharded else self._alone
        call(function, *args)

    def _stop(self, error: Exception) -> None:
        """Keep our failures out of the user's training, but refusals before its first step."""
        session = self._require_session()
        session.abandon()
        self._leave(Phase.STOPPED)
        if isinstance(error, MisconfigurationException) and self._count.may_refuse:
            # at once: some launchers call on_exception in the parent process alone
            self._leave(Phase.IDLE)
            session.discard()
            self._session = None
            raise error
        session.failure = said(error)
        warn_once(
            error,
            f"LandscapeMonitor stopped measuring at step {self._count.step}: {session.failure}. "
            "Training goes on; the probes so far are kept in "
            f"{session.reporter.folder.path}",
        )

    def _is_measured(self, optimizer: Optimizer) -> bool:
        """Return whether a step is one of the measured optimizer."""
        training = self._training
        if training is None or len(training.trainer.optimizers) == 1:
            return True
        return optimizer is whole_of(training.optimizer)

    def _require_session(self) -> Session:
        assert self._session is not None, "hooks of training come after on_train_start"
        return self._session

    def _require_training(self) -> Training:
        assert self._training is not None, "training comes after on_fit_start"
        return self._training


def _may_overwrite_parameters(callback: Callback) -> bool:
    """Return whether a callback (SWA, EMA) may change the parameters in ``on_train_end``."""
    if isinstance(callback, (LandscapeMonitor, Checkpoint, ProgressBar)):
        return False
    return type(callback).on_train_end is not Callback.on_train_end
