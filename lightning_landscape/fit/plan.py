"""What is said before the first step: the plan of the run, and its results to the loggers."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_landscape.evaluation.reference import FINAL
from lightning_landscape.fit.session import Session
from lightning_landscape.reporting import tensorboard
from lightning_landscape.reporting.preflight import Plan, expected_probes, preflight
from lightning_landscape.settings import Settings
from lightning_landscape.store.codecs import NATIVE, bytes_of_probe, bytes_of_start
from lightning_landscape.training import lightning_compat
from lightning_landscape.training.description import describe_run, planned_steps
from lightning_landscape.training.failures import said
from lightning_landscape.vectors.parameters import local_values


def say_the_plan(session: Session) -> None:
    """Say what is measured, what it costs, and which theorems can apply; never stop a run."""
    try:
        rank_zero_info(preflight(_plan(session)))
    except Exception as error:
        rank_zero_warn(f"LandscapeMonitor could not say what it will measure: {said(error)}")


def _plan(session: Session) -> Plan:
    settings, training, reference = session.settings, session.training, session.reference
    trainer, module = training.trainer, training.module
    steps = planned_steps(trainer) - trainer.global_step
    x = local_values(training.parameters())
    # with x_p at hand x_0 alone is stored, natively
    dtype = settings.store.dtype if reference is None else NATIVE
    every, most = settings.every_n_steps, settings.max_probes
    expected = expected_probes(steps, every, most)
    x_p = {"kind": FINAL}
    if reference is not None:
        x_p = {"kind": reference.kind, "path": str(reference.path)}
    return Plan(
        run={
            **describe_run(trainer, module, training.optimizer),
            "loss": session.loss_meaning,
            "reference": x_p,
        },
        steps=steps,
        every_n_steps=every,
        max_probes=most,
        max_overhead=settings.max_overhead,
        module_parameters=sum(parameter.numel() for parameter in module.parameters()),
        probe_bytes=bytes_of_probe(x, dtype),
        base_bytes=bytes_of_start(x, dtype),
        store_bytes=session.kept.store.budget,
        folder=None if session.reporter.temporary else str(session.reporter.folder.path),
        keep_store=settings.store.keep,
        evaluations=session.evaluation.evaluations(expected[0] if expected else most),
        beside=[what for extra in session.extras if (what := extra.describe())],
        of_samples=session.evaluator.replay.of_samples,
    )


def declare_results(trainer: Trainer, settings: Settings) -> None:
    """Tell loggers, before training, which results there will be; never stop a run."""
    try:
        hparams = lightning_compat.declared_hyperparameters(trainer)
        tensorboard.declare(
            trainer.loggers,
            settings.prefix,
            with_layout=settings.report.layout,
            live_losses=settings.live_losses,
            hparams=hparams,
        )
    except Exception as error:
        rank_zero_warn(
            f"LandscapeMonitor could not declare its results to the loggers: {said(error)}"
        )
