"""`LandscapeMonitor`: Lightning's hooks in the order of a training step. The only file that sees both ends of the hourglass."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_landscape.loading import load
from lightning_landscape.probes import SCHEMA, Probe, ProbeTable
from lightning_landscape.probing import checks, lightning_compat
from lightning_landscape.probing.description import describe_run
from lightning_landscape.probing.measurement import Measurement
from lightning_landscape.probing.parameters import named_parameters, optimized_parameters
from lightning_landscape.probing.reference import (
    FINAL,
    Reference,
    check_reference_file,
    last_iterate,
    load_reference,
    sq_distance,
)
from lightning_landscape.probing.schedule import Schedule
from lightning_landscape.probing.store import ProbeStore
from lightning_landscape.reporting import scalars
from lightning_landscape.reporting.folder import RunFolder, free_folder, parent_folder
from lightning_landscape.reporting.progress import tracker
from lightning_landscape.reporting.summary import number, summarise

STORE = "store"
_NEVER = 2**62


class LandscapeMonitor(Callback):
    """Measures the loss landscape along a training run, and the exact α-β-condition (Islamov et al., NeurIPS 2024).

    At chosen steps x_k the mini-batch loss, its gradient and the step that was made are taken; when training ends (or at
    once, where a reference is given) the same mini-batches are evaluated at the reference x_p. Training is not changed by
    it, to the last bit. Results: curves in the loggers, ``probes.csv`` and ``summary.json`` in ``<dirpath>/<prefix>/``,
    and after ``fit`` the attributes ``table`` and ``summary``.

    Args:
        reference: The point x_p. "final": the parameters after the last optimizer step of this run, evaluated when training
            ends; or the path of a Lightning .ckpt, a state_dict or a .safetensors file of the same module: every curve live.
        every_n_steps: Optimizer steps between probes, at first.
        max_probes: When that many probes are kept and another is due, every second one is dropped and the stride doubles.
        loss_infimum: A lower bound of every mini-batch loss, the f_i^* of the theory; 0 for cross-entropy and squared error.
        loss: A function of (module, batch) that returns the loss to measure, as a tensor with one element, by import path on
            the command line; by default the loss of training_step. Needed for manual optimization.
        store_dtype: How parameters and gradients are stored until x_p is known; "native" is exact.
        store_gib: Largest size of that store on disk in GiB; half of the free disk is another limit.
        dirpath: Where the folder <prefix>/ is written; by default the logger's folder, without one default_root_dir.
        prefix: Name of that folder and group of all tags.
        save_reference: Write the last iterate as reference.safetensors, for a second run to take as its reference.
        keep_store: Keep the store after a good end, to extend the run from its checkpoint. It holds training batches.
        windows: Number of equal slices of training for which constants are reported as well.

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
        loss_infimum: float = 0.0,
        loss: Callable[[LightningModule, Any], Any] | None = None,  # jsonargparse would ask for annotated functions
        store_dtype: Literal["native"] = "native",
        store_gib: float = 4.0,
        dirpath: str | os.PathLike[str] | None = None,
        prefix: str = "landscape",
        save_reference: bool = True,
        keep_store: bool = False,
        windows: int = 4,
    ) -> None:
        super().__init__()
        self.reference = reference
        self.every_n_steps = every_n_steps
        self.max_probes = max_probes
        self.loss_infimum = loss_infimum
        self.loss = loss
        self.store_dtype = store_dtype
        self.store_gib = store_gib
        self.dirpath = dirpath
        self.prefix = prefix
        self.save_reference = save_reference
        self.keep_store = keep_store
        self.windows = windows
        self.table: ProbeTable | None = None
        """The table of probes, after ``fit``"""
        self.summary: dict[str, Any] | None = None
        """The content of ``summary.json``, after ``fit``"""
        self._session: _Session | None = None
        self._optimizer: Optimizer | None = None
        self._reference: Reference | None = None
        self._resumed: dict[str, Any] = {}
        self._step = 0
        self._next_step = _NEVER
        self._watching = False
        self._moved = False

    # --------------------------------------------------------------------------------------------------- before training

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._session, self._next_step, self._watching = None, _NEVER, False
        checks.check_arguments(
            every_n_steps=self.every_n_steps,
            max_probes=self.max_probes,
            loss_infimum=self.loss_infimum,
            store_dtype=self.store_dtype,
            store_gib=self.store_gib,
            prefix=self.prefix,
            windows=self.windows,
        )
        checks.check_strategy(trainer)
        checks.check_module(pl_module, self.loss)
        checks.check_folder(parent_folder(trainer, self.dirpath))
        check_reference_file(self.reference)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checks.check_batches(trainer.limit_train_batches)
        self._optimizer = checks.check_optimizers(trainer.optimizers)
        trained = optimized_parameters(pl_module, self._optimizer)
        checks.check_parameters(trained, self._optimizer)
        self._reference = None
        if self.reference != FINAL:
            others = {name: p for name, p in named_parameters(pl_module).items() if name not in trained}
            self._reference = load_reference(self.reference, trained, others)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._optimizer is not None
        self.table, self.summary = None, None
        self._session = _Session(self, trainer, pl_module, self._optimizer, self._reference)
        self._step, self._moved = trainer.global_step, False
        if self._resumed and self._step > 0:
            self._session.resume(self._resumed)
        self._resumed = {}
        self._next_step = max(self._session.measurement.schedule.next_step, self._step)

    # ---------------------------------------------------------------------------------------------------- while training

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._step >= self._next_step:
            self._guarded(self._watch)()

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._moved = True

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._watching:
            self._guarded(self._read_gradient)()
        self._step += 1

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._watching:
            self._guarded(self._finish_probe)()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._session is not None and self._moved:
            self._guarded(self._session.note_epoch_end)()
            self._moved = False

    def _watch(self) -> None:
        session = self._require_session()
        session.watch(self._step)
        self._watching = session.measurement.watching
        self._next_step = self._step if self._watching else session.measurement.schedule.next_step

    def _read_gradient(self) -> None:
        measurement = self._require_session().measurement
        if measurement.gradient_taken:  # manual optimisation: another step within the same batch
            self._finish_probe()
        measurement.read_gradient()

    def _finish_probe(self) -> None:
        session = self._require_session()
        session.measurement.look_away()
        if session.measurement.gradient_taken:
            session.finish_probe()
            self._watching, self._next_step = False, session.measurement.schedule.next_step

    # ------------------------------------------------------------------------------------------------------- at the end

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("should_stop" if trainer.should_stop else "end of training", complete=True)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._session is None:
            return
        self._session.measurement.abandon()
        if isinstance(exception, KeyboardInterrupt):
            with _interruptible():
                self._end("KeyboardInterrupt", complete=False)
        else:
            self._end(type(exception).__name__, complete=False, evaluate=False)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._session is None:  # on_train_start is not called without batches, nor when nothing is left to train
            checks.check_batches(trainer.num_training_batches)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._session is not None:
            self._session.measurement.abandon()
        self._session, self._next_step, self._watching = None, _NEVER, False

    def _end(self, stopped_by: str, *, complete: bool, evaluate: bool = True) -> None:
        """Evaluate what waits for x_p, write files and curves; a failure leaves what was written before."""
        session = self._session
        if session is None:
            return
        self._next_step, self._watching, self._session = _NEVER, False, None
        session.measurement.abandon()
        self._resumed = session.state()  # for a checkpoint that is saved after fit
        try:
            self.table, self.summary = session.end(stopped_by, steps=self._step, complete=complete, evaluate=evaluate)
        except Exception as error:
            session.measurement.abandon()
            rank_zero_warn(
                f"LandscapeMonitor could not finish its report: {_said(error)}; {session.folder.path} holds the rest"
            )

    # --------------------------------------------------------------------------------------------------- stop and resume

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(prefix=self.prefix)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._session.state() if self._session is not None else dict(self._resumed)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    # ---------------------------------------------------------------------------------------------------------- failures

    def _guarded(self, function: Callable[..., None]) -> Callable[..., None]:
        """Let no failure of ours reach the user's training, but refusals before the first optimizer step."""

        @functools.wraps(function)
        def guarded(*args: Any) -> None:
            try:
                function(*args)
            except Exception as error:
                session = self._require_session()
                session.measurement.abandon()
                self._next_step, self._watching = _NEVER, False
                if isinstance(error, MisconfigurationException) and self._step == session.first_step:
                    raise
                session.failure = _said(error)
                rank_zero_warn(
                    f"LandscapeMonitor stopped measuring at step {self._step}: {session.failure}. Training goes on; what was "
                    f"measured is kept in {session.folder.path}"
                )

        return guarded

    def _require_session(self) -> _Session:
        assert self._session is not None, "hooks of training come after on_train_start"
        return self._session


class _Session:
    """One ``fit``: the measurement above the waist, the folder and the loggers below it."""

    def __init__(
        self,
        monitor: LandscapeMonitor,
        trainer: Trainer,
        module: LightningModule,
        optimizer: Optimizer,
        reference: Reference | None,
    ) -> None:
        self._monitor, self._trainer, self._module, self._optimizer = monitor, trainer, module, optimizer
        self._temporary = bool(getattr(trainer, "fast_dev_run", False))
        parent = Path(tempfile.mkdtemp()) if self._temporary else parent_folder(trainer, monitor.dirpath)
        path = free_folder(parent, monitor.prefix)
        trained = optimized_parameters(module, optimizer)
        budget = checks.store_budget(path, monitor.store_gib, trained, stored=reference is None)
        self.folder = RunFolder(path)
        self.measurement = Measurement(
            trainer=trainer,
            module=module,
            optimizer=optimizer,
            schedule=Schedule(monitor.every_n_steps, monitor.max_probes),
            store=ProbeStore(path / STORE, budget),
            loss=monitor.loss,
            loss_infimum=monitor.loss_infimum,
            reference=reference,
            guard=monitor._guarded,
        )
        self.curves = scalars.CurveWriter(trainer.loggers, monitor.prefix)
        self.first_step = trainer.global_step
        self.failure: str | None = None
        self._live = reference is not None
        self._run_id = uuid.uuid4().hex
        self._started = time.perf_counter()
        self._loss_meaning = checks.describe_loss(module, monitor.loss, monitor.loss_infimum)
        self._running = scalars.RunningAlphaBeta()
        self._last: dict[str, Tensor] | None = None
        self._others_overwrite = any(map(_overwrites_parameters_at_the_end, trainer.callbacks))  # type: ignore[attr-defined]
        if path.name != monitor.prefix:
            rank_zero_info(f"LandscapeMonitor found another run in {parent / monitor.prefix} and writes to {path}")

    # ---------------------------------------------------------------------------------------------------- while training

    def watch(self, step: int) -> None:
        if self.measurement.watch(step):
            self._follow(self.measurement.table)

    def _follow(self, table: ProbeTable) -> None:
        """Write files anew and start the worst case anew, after rows were thinned out or taken over."""
        self.folder.rewrite(table)
        self._running = scalars.RunningAlphaBeta()
        for probe in table.evaluated:
            self._running.add(probe)

    def finish_probe(self) -> None:
        checked = bool(self.measurement.fidelity.steps)
        probe = self.measurement.finish()
        if not checked and self.measurement.fidelity.steps:
            self._warn_of_infidelity()
        if probe is not None:
            self.folder.append(probe, self.measurement.table)
            self._write_live(probe)

    def _write_live(self, probe: Probe) -> None:
        row = ProbeTable([probe])
        curves = scalars.known_while_training(row)
        if probe.evaluated:
            curves |= scalars.known_with_reference(row)
        values = {tag: float(curve[0]) for tag, curve in curves.items()}
        if probe.evaluated:
            values |= self._running.add(probe)
        self.curves.write_point(probe.logged_step, {**values, "overhead": self._overhead()})

    def _overhead(self) -> float:
        """Return the share of training time that was spent in the monitor so far."""
        return self.measurement.seconds / max(time.perf_counter() - self._started, 1e-9)

    def note_epoch_end(self) -> None:
        """Keep x_K where another callback may overwrite the parameters before our turn comes (SWA, EMA)."""
        if self._others_overwrite:
            self._last = self.measurement.current_parameters()

    def _warn_of_infidelity(self) -> None:
        fidelity = self.measurement.fidelity
        if not fidelity.exact:
            rank_zero_warn(
                f"LandscapeMonitor evaluated a mini-batch loss again in the state in which it was recorded and got another "
                f"value, off by {fidelity.max_abs:.3g}. Usual causes: a forward pass that is not deterministic, a state kept "
                "outside the module, a hook that edits the batch. Every number of this run is marked with it"
            )

    # ------------------------------------------------------------------------------------------------------- at the end

    def end(self, stopped_by: str, *, steps: int, complete: bool, evaluate: bool) -> tuple[ProbeTable, dict[str, Any]]:
        seconds = time.perf_counter() - self._started
        measurement, started = self.measurement, time.perf_counter()
        last = self._last if self._last is not None and not self._monitor._moved else measurement.current_parameters()
        reference, evaluated = self._reference_of(last, steps), False
        self.folder.rewrite(measurement.table)
        try:
            if evaluate:
                before = measurement.fidelity.max_abs
                measurement.evaluate(reference, tracker(self._trainer))
                evaluated = True
                if before == 0:
                    self._warn_of_infidelity()
        except KeyboardInterrupt:
            measurement.abandon()
            rank_zero_info("LandscapeMonitor: interrupted again, the rest of the probes stays unevaluated")
        run = self._describe(stopped_by, steps, complete and self.failure is None, reference, last, seconds, started)
        table, summary = measurement.table, summarise(measurement.table, run, self._monitor.windows)
        self.folder.finish(table, summary)
        if evaluated:
            self._write_curves(table, summary)
        if run["complete"] and not self._monitor.keep_store:
            measurement.store.remove()
        rank_zero_info(f"LandscapeMonitor: {summary['verdict']}")
        if self._temporary:
            shutil.rmtree(self.folder.path.parent, ignore_errors=True)
        elif len(table) or not complete:
            rank_zero_info(f"LandscapeMonitor: {len(table)} probes and their summary are in {self.folder.path}")
        return table, summary

    def _reference_of(self, last: Mapping[str, Tensor], steps: int) -> Reference:
        file = self.folder.path if self._monitor.save_reference else None
        final = last_iterate(last, file)
        return self.measurement.reference or final

    def _write_curves(self, table: ProbeTable, summary: dict[str, Any]) -> None:
        """Write what is known only now: all that needs x_p, or the report's own values after a live run."""
        rows, alpha_beta = table.evaluated, summary["conditions"]["alpha_beta"]
        running = scalars.running_alpha_beta(rows, summary["run"]["drop"]["value"])
        margin = scalars.alpha_beta_margin(rows, alpha_beta["alpha"], alpha_beta["beta"])
        if not self._live:
            self.curves.write(rows, {**scalars.known_with_reference(rows), **running, **margin})
            return
        self.curves.write(rows, margin)
        if len(rows):
            after = max(lightning_compat.batches_that_stepped(self._trainer), rows[-1].logged_step + 1)
            self.curves.write_point(after, {tag: float(curve[-1]) for tag, curve in running.items()})

    def _describe(
        self,
        stopped_by: str,
        steps: int,
        complete: bool,
        reference: Reference,
        last: Mapping[str, Tensor],
        seconds: float,
        finalisation_start: float,
    ) -> dict[str, Any]:
        measurement, table = self.measurement, self.measurement.table
        fidelity = measurement.fidelity
        return {
            "complete": complete,
            "stopped_by": stopped_by if self.failure is None else f"{stopped_by}; the monitor: {self.failure}",
            "id": self._run_id,
            "first_step": table[0].step if len(table) else None,
            "steps": steps,
            "probes": len(table),
            "stride": measurement.schedule.stride,
            "dropped": dict(measurement.dropped),
            "reference": {
                "kind": reference.kind,
                "path": reference.path,
                "sha256": reference.sha256,
                "step": steps if reference.kind == FINAL else None,
                "final_sq_distance": number(sq_distance(last, reference)),
            },
            "loss": self._loss_meaning,
            "fidelity": {
                "steps": fidelity.steps,
                "max_abs": number(fidelity.max_abs) if fidelity.steps else None,
                "exact": fidelity.exact if fidelity.steps else None,
                "autograd": measurement.replayer.gradients_enabled,
            },
            "overhead": {
                "training": measurement.seconds / max(seconds, 1e-9),
                "finalisation_s": time.perf_counter() - finalisation_start,
            },
            "store": {"dtype": self._monitor.store_dtype, "bytes": measurement.store.nbytes},
            **describe_run(self._trainer, self._module, self._optimizer),
        }

    # --------------------------------------------------------------------------------------------------- stop and resume

    def state(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "run_id": self._run_id,
            "folder": str(self.folder.path.absolute()),
            "reference": self._reference_identity(),
            **self.measurement.state(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on with the probes before the checkpoint; with another reference a new table starts."""
        folder = Path(state["folder"])
        reason = self._reason_for_a_new_table(state, folder)
        if reason is not None:
            rank_zero_info(f"LandscapeMonitor: {reason}; a new table starts at step {self.first_step}")
            return
        self.measurement.adopt(state, folder / STORE)
        self._run_id = state["run_id"]
        table = self.measurement.table
        self._follow(table)
        if folder.parent != self.folder.path.parent.absolute():  # a new log folder: its curves start with the old ones
            curves = scalars.known_while_training(table)
            if self._live:
                curves |= {**scalars.known_with_reference(table), **scalars.running_alpha_beta(table)}
            self.curves.write(table, curves)

    def _reason_for_a_new_table(self, state: Mapping[str, Any], folder: Path) -> str | None:
        if state["schema"] != SCHEMA:
            return f"the checkpoint holds schema {state['schema']}, supported is {SCHEMA}"
        if state["reference"] != self._reference_identity():
            return "the checkpoint was measured against another reference"
        if not self._live and not (folder / STORE).exists() and _is_complete(folder):
            return "the checkpoint is of a finished run whose store was removed (keep_store=True keeps it)"
        return None

    def _reference_identity(self) -> str:
        return FINAL if not self._live or self.measurement.reference is None else str(self.measurement.reference.sha256)


def _is_complete(folder: Path) -> bool:
    try:
        summary = load(folder).summary
    except (OSError, ValueError):
        return False
    return summary is not None and bool(summary["run"]["complete"])


def _overwrites_parameters_at_the_end(callback: Callback) -> bool:
    if isinstance(callback, (LandscapeMonitor, Checkpoint, ProgressBar)):
        return False
    return type(callback).on_train_end is not Callback.on_train_end


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a second Ctrl-C raise inside the block: Lightning ignores it while it shuts down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        with suppress(KeyboardInterrupt):
            signal.signal(signal.SIGINT, previous)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
