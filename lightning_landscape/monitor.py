"""`LandscapeMonitor`: Lightning's hooks in the order of a training step, each a few lines."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from torch.optim import Optimizer
from typing_extensions import override

from lightning_landscape.evaluation.reference import (
    FINAL,
    Reference,
    check_reference_file,
    load_reference,
)
from lightning_landscape.probes import ProbeTable
from lightning_landscape.recording.every_step import StepSums
from lightning_landscape.reporting.folder import parent_folder
from lightning_landscape.session import Session, declare_results
from lightning_landscape.settings import Settings
from lightning_landscape.training import interrupts
from lightning_landscape.training import refusals as checks
from lightning_landscape.training.failures import said, warn_once
from lightning_landscape.training.part import part_of, trained_elsewhere
from lightning_landscape.training.processes import Processes
from lightning_landscape.vectors.parameters import named_parameters, optimized_parameters

_NEVER = 2**62


class LandscapeMonitor(Callback):
    """Measures the loss landscape along a training run, and the exact α-β-condition (Islamov et al., NeurIPS 2024).

    At chosen steps x_k the mini-batch loss, its gradient and the step that was made are taken; when training ends (or at
    once, where a reference is given) the same mini-batches are evaluated at the reference x_p. Training is not changed by
    it, to the last bit. Results: curves in the loggers, ``probes.csv`` and ``summary.json`` in ``<dirpath>/<prefix>/``,
    and after ``fit`` the attributes ``table`` and ``summary``.

    Args:
        reference: The point x_p. "final": the parameters after the last optimizer step of this run, evaluated when training
            ends; or the path of a Lightning .ckpt, a state_dict or a .safetensors file of the same module, or of a folder
            that a sharded run wrote: every curve live.
        every_n_steps: Optimizer steps between probes, at first.
        max_probes: When that many probes are kept and another is due, every second one is dropped and the stride doubles.
        max_overhead: Largest share of the time of training, the evaluation at its end included, that the monitor may take:
            the stride doubles until it fits. None: which steps are probed does not depend on the clock.
        loss_infimum: A lower bound of every mini-batch loss, the f_i^* of the theory; 0 for cross-entropy and squared error.
        loss: A function of (module, batch) that returns the loss to measure, as a tensor with one element, by import path on
            the command line; by default the loss of training_step. Needed for manual optimization, where it is evaluated when
            the optimizer steps (the first time in a batch): at all parameters as they are then, with buffers, attributes and
            random numbers as they were when training_step began.
        parameters: Dotted name of the submodule whose parameters are x, as "generator"; by default all that the optimizer
            holds. With several optimizers it says which one is measured: one monitor, with a prefix= of its own, for each
            player of a GAN, and ``step`` counts the steps of that optimizer. All other parameters, those that the same
            optimizer holds among them, are for each probe as they were at its step.
        store_dtype: How parameters and gradients are stored until x_p is known. "native" is exact; "bfloat16" takes half of
            that, "int8" (numbers of 8 bits in groups of 128 with a scale, rounded at random so that nothing is biased) a little
            more than a quarter, of what is float32. Losses, norms of gradients and steps stay exact; how far inner products and
            distances can be off is measured and reported.
        store_gib: Largest size of that store on disk in GiB; half of the free disk is another limit.
        dirpath: Where the folder <prefix>/ is written; by default the logger's folder, without one default_root_dir.
        prefix: Name of that folder and group of all tags.
        save_reference: Write the last iterate as reference.safetensors (sharded: a folder, reference), for a second run to take
            as its reference.
        keep_store: Keep the store after a good end, to extend the run from its checkpoint. It holds training batches.
        windows: Number of equal slices of training for which constants are reported as well.
        secant: Measure smoothness between consecutive iterates too: one more forward and backward pass a probe.
        exact_sums: Measure every step, so that the sums over steps in the trajectory's certificate are exact and not estimated
            from the probes: two copies of the parameters and three passes over them at every step.
        per_layer: Tell the parts of the module apart, which sum to the whole: curves ``layers/…`` and ``layers.csv``.
        segments: From so many iterates, x_0 among them, the loss is evaluated along the straight line to x_p; 0 for none.
        held_out: Batches that did not make the trajectory, each evaluated at one probe in the place of its own
            (``held_out.csv``): "val" for the validation loader's, or a function of the trainer, by import path on the command
            line, that returns an iterable of batches such as ``training_step`` takes. Each costs two forward passes and a
            backward one, when training ends (with a reference: at the probe).
        fixed_batches: So many of the first of these are evaluated at every probe (``fixed_batches.csv``): all i at one x.
        per_sample: Evaluate every sample of a probe's mini-batches by itself (``per_sample.csv``): f_j(x_k), f_j(x_p) and
            <∇f_j(x_k), x_k − x_p>. Then loss= returns one loss a sample, a tensor of shape (B,), and the measured mini-batch
            loss is their mean. Refused where the loss of one sample depends on others (BatchNorm in
            training mode), unless this is "mixing". About three forward passes a probe, when training ends (with a reference:
            at the probe).
        live_epochs: After which epochs the probes so far are evaluated at the present iterate, in the place of x_p, to see the
            conditions settle (curves ``live/…``); "doubling" is 1, 2, 4, 8, …; None for never.
        layout: Write charts for TensorBoard's tab "Custom scalars"; a layout that the module, or another monitor, writes later
            replaces them.
        figures: Draw pictures at the end, as files and for loggers that take them, where matplotlib is installed.
        progress_bar: Show two values in the progress bar.

    Raises:
        MisconfigurationException: before the first optimizer step, where a run cannot be measured; it says what is supported.

    Example:
        >>> from lightning_landscape import LandscapeMonitor
        >>> monitor = LandscapeMonitor(every_n_steps=5)  # then Trainer(callbacks=[monitor])
    """

    def __init__(
        self,
        reference: str = FINAL,
        every_n_steps: int = 10,
        max_probes: int = 256,
        max_overhead: float | None = None,
        loss_infimum: float = 0.0,
        loss: Callable[[LightningModule, Any], Any]
        | None = None,  # jsonargparse would ask for annotated functions
        parameters: str | None = None,
        store_dtype: Literal["native", "bfloat16", "int8"] = "native",
        store_gib: float = 4.0,
        dirpath: str | os.PathLike[str] | None = None,
        prefix: str = "landscape",
        save_reference: bool = True,
        keep_store: bool = False,
        windows: int = 4,
        secant: bool = False,
        exact_sums: bool = False,
        per_layer: bool = False,
        segments: int = 4,
        held_out: Literal["val"] | Callable[[Trainer], Any] | None = None,
        fixed_batches: int = 0,
        per_sample: bool | Literal["mixing"] = False,
        live_epochs: Literal["doubling"] | list[int] | None = "doubling",
        layout: bool = True,
        figures: bool = True,
        progress_bar: bool = False,
    ) -> None:
        super().__init__()
        self.reference = reference
        self.every_n_steps = every_n_steps
        self.max_probes = max_probes
        self.max_overhead = max_overhead
        self.loss_infimum = loss_infimum
        self.loss = loss
        self.parameters = parameters
        self.store_dtype = store_dtype
        self.store_gib = store_gib
        self.dirpath = dirpath
        self.prefix = prefix
        self.save_reference = save_reference
        self.keep_store = keep_store
        self.windows = windows
        self.secant = secant
        self.exact_sums = exact_sums
        self.per_layer = per_layer
        self.segments = segments
        self.held_out = held_out
        self.fixed_batches = fixed_batches
        self.per_sample = per_sample
        self.live_epochs = live_epochs
        self.layout = layout
        self.figures = figures
        self.progress_bar = progress_bar
        self.table: ProbeTable | None = None
        """The table of probes, after ``fit``"""
        self.summary: dict[str, Any] | None = None
        """The content of ``summary.json``, after ``fit``"""
        self._session: Session | None = None
        self._optimizer: Optimizer | None = None
        self._several = False
        """Whether the run has other optimisers beside the measured one"""
        self._reference: Reference | None = None
        self._resumed: dict[str, Any] = {}
        """State from the checkpoint that this fit goes on from"""
        self._ended: dict[str, Any] = {}
        """State at the end of the last fit, for a checkpoint that is saved after it"""
        self._step = 0
        self._next_step = _NEVER
        self._watching = False
        self._just_probed = False
        self._sums: StepSums | None = None
        """Where every step is measured"""
        self._moved = False
        self._backward = False
        """Whether there was a backward pass since the last step"""
        self._idle_steps = 0
        """Steps without a backward pass: training_step returned None, or a callback skipped it"""
        self._first_step = self._first_global_step = 0
        self._may_refuse = True
        self._began = False
        """Whether training came to its first batch"""
        self._processes = Processes()

    # --------------------------------------------------------------------------------------------------- before training

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._session, self._sums, self._next_step, self._watching = None, None, _NEVER, False
        self._resumed = {}  # what an earlier fit left is no checkpoint of this one
        self._began = False
        self._settings().check()
        checks.check_strategy(trainer)
        self._processes = Processes(trainer.strategy)
        with self._processes.agreed():  # a file or a folder may be missing on one machine alone
            checks.check_module(pl_module, self.loss)
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            checks.check_prefixes([c.prefix for c in callbacks if isinstance(c, LandscapeMonitor)])
            checks.check_folder(parent_folder(trainer, self.dirpath))
            check_reference_file(self.reference)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._processes.agreed():
            self._look_at(trainer, pl_module)
        declare_results(trainer, self._settings())

    def _look_at(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the optimiser and x_p, or refuse."""
        checks.check_batches(trainer.limit_train_batches)
        self._optimizer = checks.check_optimizers(trainer.optimizers, pl_module, self.parameters)
        self._several = len(trainer.optimizers) > 1
        trained = optimized_parameters(
            pl_module, part_of(self._optimizer, pl_module, self.parameters)
        )
        checks.check_parameters(trained, self._optimizer)
        checks.check_shards(trainer, trained)
        checks.check_held_out(trainer, self.held_out)
        self._reference = None
        if self.reference != FINAL:
            moving = trained_elsewhere(pl_module, trainer.optimizers, trained)
            others = {
                n: p
                for n, p in named_parameters(pl_module).items()
                if n not in trained and n not in moving
            }
            self._reference = load_reference(self.reference, trained, others, self._processes)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.table, self.summary = None, None
        self._began = True
        self._step = self._first_step = self._steps_before(trainer)
        self._first_global_step = trainer.global_step
        self._idle_steps, self._backward = 0, False
        self._moved, self._may_refuse, self._just_probed = False, True, False
        self._session = self._new_session(trainer, pl_module)
        if self._resumed and self._step > 0:
            self._resume(trainer, pl_module)
        self._resumed = {}
        self._next_step = max(self._session.measurement.schedule.next_step, self._step)
        self._sums = self._session.measurement.sums
        self._session.say_what_is_to_come()

    def _new_session(self, trainer: Trainer, pl_module: LightningModule) -> Session:
        assert self._optimizer is not None
        with self._processes.agreed():
            return Session(
                self._settings(),
                trainer,
                pl_module,
                self._optimizer,
                self._reference,
                first_step=self._step,
                processes=self._processes,
                may_be_overwritten=any(map(_may_overwrite_parameters, trainer.callbacks)),  # type: ignore[attr-defined]
            )

    def _resume(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from the checkpoint's table; where that cannot be had, a new one starts, and training goes on all the same."""
        session = self._require_session()
        try:
            with self._processes.agreed():
                session.resume(self._resumed)
        except Exception as error:
            session.discard()
            self._session = None
            if isinstance(error, MisconfigurationException):
                raise
            self._session = self._new_session(trainer, pl_module)
            warn_once(
                error,
                f"LandscapeMonitor could not go on from the table of the checkpoint: {said(error)}. A new table starts at step "
                f"{self._step}",
            )

    def _steps_before(self, trainer: Trainer) -> int:
        """Return how many steps the measured optimiser has made; Lightning counts those of all optimisers together.

        Where nobody counted them, as in a checkpoint of a run without the monitor, they are counted from here.
        """
        if not self._several:
            return trainer.global_step
        known = self._resumed or self._ended
        return int(known["step"]) if known.get("global_step") == trainer.global_step else 0

    # ---------------------------------------------------------------------------------------------------- while training

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._just_probed:
            self._just_probed = False
            self._alone(self._require_session().measurement.check_nothing_moved)
        if (
            self._watching and self._require_session().measurement.gradient_taken
        ):  # it stepped after the batch had ended
            self._together(self._finish_probe)
        if self._step >= self._next_step:
            self._together(self._watch)

    @override
    def on_before_zero_grad(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._several and optimizer is not self._optimizer:
            return
        if self._watching:
            self._alone(self._require_session().measurement.forget_gradients)
        if self._sums is not None:
            self._alone(self._sums.forget_gradients)

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._moved = self._backward = True
        if self._sums is not None:
            self._alone(self._sums.count_backward)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if not (self._several and optimizer is not self._optimizer):
            self._before_step()
        if not pl_module.automatic_optimization:
            self._may_refuse = False  # whatever comes, a step is made

    def _before_step(self) -> None:
        if self._watching:
            self._together(self._read_gradient)
        if self._sums is not None:
            self._summing(self._require_session().measurement.take_sums)
        self._step += 1
        if self._backward:
            self._backward = False
        else:
            self._idle_steps += 1

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._may_refuse = self._may_refuse and trainer.global_step == self._first_global_step
        if self._watching:
            self._together(self._finish_probe)
        if self._sums is not None:
            self._summing(self._require_session().measurement.count_step, self._step - 1)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._session is not None and self._moved:
            self._alone(self._note_epoch_end)
        if self._session is not None and self._next_step != _NEVER:
            self._together(self._session.evaluate_provisionally)

    def _note_epoch_end(self) -> None:
        self._require_session().note_epoch_end()
        self._moved = False

    def _watch(self) -> None:
        session = self._require_session()
        session.watch(self._step, may_refuse=self._may_refuse)
        self._watching = session.measurement.watching
        self._next_step = self._step if self._watching else session.measurement.schedule.next_step

    def _read_gradient(self) -> None:
        session = self._require_session()
        measurement = session.measurement
        if measurement.gradient_taken and session.automatic:
            raise MisconfigurationException(
                "LandscapeMonitor found an optimizer that evaluates loss and gradient more than once a step; supported are "
                "optimizers that take one gradient a step, as SGD and Adam do: use one of these"
            )
        if measurement.gradient_taken:  # manual optimisation: another step within the same batch
            self._finish_probe()
            self._just_probed = False  # the step that is about to be made moves what that one left
        if session.automatic and not self._backward:
            # not even where there are losses and gradients: SWA makes such a step after its pass for BatchNorm, on averages and
            # with the gradients of the step before
            measurement.forget_batches()
        with interrupts.put_off():  # the first probe is replayed there
            measurement.read_gradient()

    def _finish_probe(self) -> None:
        session = self._require_session()
        session.measurement.look_away()
        if not session.measurement.gradient_taken:
            return
        shown = session.finish_probe()
        self._just_probed = True
        self._watching, self._next_step = False, session.measurement.schedule.next_step
        if self.progress_bar and shown:
            # the user's own values may have plain names, and schedulers and callbacks look values up by name
            session.module.log_dict(
                {f"{self.prefix}/{k}": v for k, v in shown.items()}, prog_bar=True, logger=False
            )

    # ------------------------------------------------------------------------------------------------------- at the end

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("should_stop" if trainer.should_stop else "end of training", complete=True)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._session is None:
            return
        self._session.measurement.abandon()
        if isinstance(exception, MisconfigurationException) and self._may_refuse:
            self._session.discard()
            self._session = None
        elif isinstance(exception, KeyboardInterrupt):
            with (
                interrupts.let_through()
            ):  # other processes may be gone already: nothing that waits for them
                self._end("KeyboardInterrupt", complete=False, evaluate=self._processes.size == 1)
        else:
            self._end(type(exception).__name__, complete=False, evaluate=False)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (
            not self._began
        ):  # on_train_start is not called without batches, nor when nothing is left to train
            checks.check_batches(trainer.num_training_batches)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._session is not None:
            self._session.close()
        self._session, self._sums, self._next_step, self._watching = None, None, _NEVER, False

    def _end(self, stopped_by: str, *, complete: bool, evaluate: bool = True) -> None:
        """Evaluate what waits for x_p, write files and curves; a failure leaves what was written before."""
        session = self._session
        if session is None:
            return
        self._next_step, self._watching, self._sums, self._session = _NEVER, False, None, None
        try:
            session.measurement.abandon()
            session.settle(together=evaluate)
            self._ended = self._state_of(session)
            self.table, self.summary = session.end(
                stopped_by,
                steps=self._step,
                idle_steps=self._idle_steps,
                complete=complete,
                evaluate=evaluate,
                moved=self._moved,
            )
        except Exception as error:
            session.measurement.abandon()
            self.table = session.measurement.table
            warn_once(
                error,
                f"LandscapeMonitor could not finish its report: {said(error)}; {session.folder.path} holds the rest",
            )

    # --------------------------------------------------------------------------------------------------- stop and resume

    @property
    @override
    def state_key(self) -> str:
        part = {} if self.parameters is None else {"parameters": self.parameters}
        return self._generate_state_key(prefix=self.prefix, **part)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._state_of(self._session) if self._session is not None else dict(self._ended)

    def _state_of(self, session: Session) -> dict[str, Any]:
        try:
            return session.state(self._step)
        except Exception as error:  # a checkpoint is worth more than the table
            warn_once(
                error,
                f"LandscapeMonitor could not write its state into the checkpoint: {said(error)}; who resumes starts anew",
            )
            return {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    # ---------------------------------------------------------------------------------------------------------- failures

    def _together(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function in all processes: what fails in one stops measuring in all, and nothing else."""
        # a process that goes at once would leave the others waiting
        without_interrupt = interrupts.put_off() if self._processes.size > 1 else nullcontext()
        try:
            with without_interrupt, self._processes.agreed():
                function(*args)
        except Exception as error:
            self._stop(error)

    def _alone(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function that waits for no other process; they are told of a failure at the next probe."""
        try:
            function(*args)
        except Exception as error:
            if self._processes.size > 1:
                self._require_session().measurement.note(error)
            else:
                self._stop(error)

    def _summing(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function of the sums over all steps: a matter of all processes where each has a part of the parameters."""
        call = self._together if self._require_session().measurement.sharded else self._alone
        call(function, *args)

    def _stop(self, error: Exception) -> None:
        """Let no failure of ours reach the user's training, but refusals before the first optimizer step."""
        session = self._require_session()
        session.measurement.abandon()
        self._next_step, self._watching, self._just_probed, self._sums = _NEVER, False, False, None
        if isinstance(error, MisconfigurationException) and self._may_refuse:
            session.discard()  # at once: under some launchers ``on_exception`` is called in the parent process alone
            self._session = None
            raise error
        session.failure = said(error)
        warn_once(
            error,
            f"LandscapeMonitor stopped measuring at step {self._step}: {session.failure}. Training goes on; what was measured "
            f"is kept in {session.folder.path}",
        )

    def _settings(self) -> Settings:
        return Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})

    def _require_session(self) -> Session:
        assert self._session is not None, "hooks of training come after on_train_start"
        return self._session


def _may_overwrite_parameters(callback: Callback) -> bool:
    """Tell whether a callback (SWA, EMA) may change the parameters in ``on_train_end``, where x_K is taken."""
    if isinstance(callback, (LandscapeMonitor, Checkpoint, ProgressBar)):
        return False
    return type(callback).on_train_end is not Callback.on_train_end
