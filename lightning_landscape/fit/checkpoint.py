"""The state of a run in a checkpoint, and a run that goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_landscape.evaluation.extra import Extra
from lightning_landscape.files import STORE, store_of
from lightning_landscape.fit.session import Session
from lightning_landscape.probes import SCHEMA
from lightning_landscape.reading.load import load
from lightning_landscape.training import refusals


def state_of(session: Session, step: int) -> dict[str, Any]:
    """Return what a checkpoint holds of a run: plain values.

    Args:
        session: the run.
        step: number of steps that the optimizer made.
    """
    return {
        "schema": SCHEMA,
        "step": step,
        "global_step": session.training.trainer.global_step,
        "run_id": session.run_id,
        "folder": str(session.reporter.folder.path.absolute()),
        "reference": session.reference_identity,
        "processes": session.training.processes.size,
        "fidelity": session.evaluation.fidelity.found.state(),
        "gradients_enabled": session.evaluator.replay.gradients_enabled,
        "extras": {_name_of(extra): extra.state() for extra in session.extras},
        **session.clock.state(),
        **session.recorder.state(),
        **session.kept.state(),
    }


def resume(session: Session, state: Mapping[str, Any]) -> None:
    """Go on with the probes before the checkpoint, if they can be evaluated."""
    folder, processes = Path(state["folder"]), session.training.processes
    reason = processes.of_first(lambda: _reason_for_a_new_table(session, state, folder))
    if reason is not None:
        rank_zero_info(
            f"LandscapeMonitor: {reason}; a new table starts at step {session.first_step}"
        )
        return
    _adopt(session, state, folder / store_of(processes.rank))
    if (folder / STORE).exists():
        rank_zero_info(
            f"LandscapeMonitor goes on from {folder / STORE}, which is not changed; remove it "
            "when all is well"
        )
    session.run_id = state["run_id"]
    if not session.clock.adopt(state):
        session.recorder.seconds = 0.0  # without a clock, there is no time of training beside it
    session.reporter.follow(session.kept.table)
    if folder.parent != session.reporter.folder.path.parent.absolute():
        # a new log folder: its curves start with the old ones
        session.reporter.curves.repeat(session.kept.table)


def _adopt(session: Session, state: Mapping[str, Any], store: Path) -> None:
    session.recorder.adopt(state)
    session.kept.adopt(state, store)
    fidelity = session.evaluation.fidelity
    fidelity.found = fidelity.found.of(state["fidelity"])
    session.evaluator.replay.gradients_enabled = state["gradients_enabled"]
    for extra in session.extras:
        known = state["extras"].get(_name_of(extra))
        if known is not None:
            extra.adopt(known)
            extra.leave_only(session.kept.steps)


def _name_of(extra: Extra) -> str:
    """Return the name of an extra in a checkpoint: two of one class have tables of their own."""
    return ", ".join([type(extra).__name__, *extra.tables])


def _reason_for_a_new_table(session: Session, state: Mapping[str, Any], folder: Path) -> str | None:
    if state["schema"] != SCHEMA:
        return f"the checkpoint holds schema {state['schema']}, supported is {SCHEMA}"
    size, prefix = session.training.processes.size, session.settings.prefix
    refusals.check_same_processes(state.get("processes", 1), size, prefix)
    if state["reference"] != session.reference_identity:
        return "the checkpoint was measured against another reference"
    if session.reference is None and not (folder / STORE).exists() and _is_complete(folder):
        return (
            "the checkpoint is of a finished run whose store was removed "
            "(Store(keep=True) keeps it)"
        )
    return None


def _is_complete(folder: Path) -> bool:
    try:
        summary = load(folder).summary
    except (OSError, ValueError):
        return False
    return summary is not None and bool(summary["run"]["complete"])
