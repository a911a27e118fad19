"""Runs one configuration to one of four outcomes, in a process of its own that a watchdog may end."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_landscape import load
from tests.helpers import distributed
from tests.helpers.brute_force import recorded
from tests.helpers.modules import plain_loss
from tests.soak import judging, training

AGREES, REFUSED, NOT_RUNNABLE, FAILED = "agrees", "refused", "not runnable without the monitor", "FAILED"
ROOT = Path(__file__).parents[2]
_CONTEXT = multiprocessing.get_context("fork")


@dataclass
class Outcome:
    kind: str
    said: str = ""


def judge(configuration, folder):
    """Train without the monitor, with it, and recording everything; return the outcome."""
    if configuration.strategy == "fsdp2":
        return _judge_shards(configuration, folder)
    processes = 2 if configuration.strategy == "ddp" else 1
    try:
        training.train(configuration, folder, [judging.Ends(folder / "without")])
    except Exception as error:
        return Outcome(NOT_RUNNABLE, _first_line(error))
    reference = _reference(configuration, folder) if configuration.reference == "file" else None
    monitor = training.monitor_of(configuration, folder / "monitor", reference)
    try:
        training.train(configuration, folder, [judging.Ends(folder / "with"), monitor])
    except Exception as error:
        return _refusal(error, folder / "with")
    difference = judging.same_ends(folder / "without", folder / "with", processes)
    if difference:
        return Outcome(FAILED, f"training was moved: {difference}")
    run = load(folder / "monitor" / "landscape")
    problem = _problem(run)
    if problem:
        return Outcome(FAILED, problem)
    _record(configuration, folder)
    rows = judging.rows_of(folder / "recorded", processes)
    problem = judging.disagreement(run.table, rows, judging.TOLERANCE[configuration.precision], exact=True)
    return Outcome(FAILED, problem) if problem else Outcome(AGREES, f"{len(run.table)} probes")


def _problem(run):
    """Return what the monitor itself says went wrong."""
    summary = run.summary["run"]
    if not summary["complete"]:
        return f"the monitor stopped: {summary['stopped_by']}"
    if summary["fidelity"]["exact"] is not True:
        return f"replays are off by {summary['fidelity']['max_abs']}"
    if not all(probe.evaluated for probe in run.table):
        return "some probes were not evaluated"
    return None


def _record(configuration, folder):
    """Train without the monitor and compute every row of the table from scratch."""
    autocast = training.autocast_of(configuration)
    if configuration.player is not None:
        training.train(configuration, folder, [judging.PlayersRows(folder / "recorded", configuration.player, autocast)])
        return
    kind = training.module_class(configuration)
    recorder = judging.Rows(folder / "recorded", kind, autocast, plain_loss if configuration.loss else None)
    recording_kind = recorded(kind)
    recording_kind.recording = recorder
    training.train(configuration, folder, [recorder], recording_kind)


def _reference(configuration, folder):
    """Write a reference that is not the last iterate: every parameter in training a little off where it started."""
    start = torch.load(folder / "without" / "start-0.pt", weights_only=False)["module"]
    generator = torch.Generator().manual_seed(configuration.number)
    module = training.module_class(configuration)()
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    values = {}
    for name, value in start.items():
        noise = torch.randn(value.shape, generator=generator).to(value.dtype) if name in trained else 0
        values[name] = value + 0.01 * noise if name in trained else value
    (folder / "recorded").mkdir(parents=True)
    torch.save({name: values[name] for name in trained if name in values}, folder / "recorded" / "reference.pt")
    return folder / "recorded" / "reference.pt"


def _refusal(error, ends):
    """Tell a refusal before the first step from a failure."""
    said = str(error)
    if "MisconfigurationException" not in type(error).__name__ + said or "LandscapeMonitor" not in said:
        return Outcome(FAILED, f"the monitor broke the run: {_first_line(error)}")
    if list(ends.glob("end-*")):
        return Outcome(FAILED, f"refused after training: {_first_line(error)}")
    return Outcome(REFUSED, _first_line(error))


def _first_line(error):
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {next((line for line in lines if 'LandscapeMonitor' in line), lines[-1])[:300]}"


def _judge_shards(configuration, folder):
    """Compare two processes that share the parameters with a recomputation from one that has them whole."""
    from tests.helpers.sharded_script import Sharded

    arguments = {"accumulate_grad_batches": configuration.accumulate, **configuration.trainer}
    if configuration.clip is not None:
        arguments |= {"gradient_clip_val": configuration.clip[1]}
    recorder = judging.Rows(folder / "recorded", Sharded, training.autocast_of(configuration), None)
    kind = recorded(Sharded)
    kind.recording = recorder
    distributed.train(folder / "whole", [recorder], processes=1, module=kind, strategy=None, **arguments)
    asked = {"every_n_steps": configuration.every, **configuration.monitor}
    jobs = {"without": {"without": True, "trainer": arguments}, "with": {"monitor": asked, "trainer": arguments}}
    clean = {key: value for key, value in os.environ.items() if "RANK" not in key and not key.startswith(("MASTER", "PL_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.sharded_script", str(folder), "2", "1", json.dumps(jobs)],
        cwd=ROOT,
        env=clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return Outcome(FAILED, done.stderr.strip().splitlines()[-1])
    difference = judging.same_ends(folder / "without", folder / "with", 2)
    if difference:
        return Outcome(FAILED, f"training was moved: {difference}")
    run = load(folder / "with" / "run")
    problem = _problem(run) or judging.disagreement(
        run.table, judging.rows_of(folder / "recorded", 1), judging.TOLERANCE["32-true"], exact=False
    )
    return Outcome(FAILED, problem) if problem else Outcome(AGREES, f"{len(run.table)} probes")


class Child:
    """One configuration in a process, and a process group, of its own."""

    def __init__(self, configuration, folder, seconds):
        self.configuration, self._folder = configuration, folder
        self._deadline = time.monotonic() + seconds
        folder.mkdir(parents=True)
        self._process = _CONTEXT.Process(target=self._run)
        self._process.start()

    def _run(self):
        os.setsid()
        log = os.open(self._folder / "log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        os.chdir(self._folder)
        try:
            outcome = judge(self.configuration, self._folder)
        except BaseException:
            outcome = Outcome(FAILED, traceback.format_exc().strip())
        (self._folder / "outcome.json").write_text(json.dumps([outcome.kind, outcome.said]))

    def outcome(self):
        """Return the outcome, None while there is none; what takes too long has failed."""
        result = self._folder / "outcome.json"
        if self._process.is_alive() and time.monotonic() < self._deadline:
            return None
        ended = not self._process.is_alive()
        self._end_group()
        self._process.join()
        if ended and result.exists():
            kind, said = json.loads(result.read_text())
            if kind != FAILED:
                shutil.rmtree(self._folder)
            return Outcome(kind, said)
        return Outcome(FAILED, "the process died" if ended else "took too long: it hangs")

    def _end_group(self):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
