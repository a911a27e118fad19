"""Functions of ours fail, in one process of two or in both.

``python -m tests.soak.failures [--seed S] [--only N] [--count C]``

Two processes train together. One meets an error in a function drawn from all that the monitor
calls, at a call that is drawn. In every third case the other process meets one as well, at about
the same time. None of these may stop the user's training: it has to end as without the monitor, to
the last bit. No process may wait for another, and the rows of the table have to be right. Only
before the first step the run may end, in both processes.
"""

import argparse
import collections
import functools
import importlib
import inspect
import itertools
import logging
import math
import os
import pkgutil
import random
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

import lightning_landscape
from lightning_landscape import LandscapeMonitor, Layers, Secant, Segments, load
from lightning_landscape.training.failures import NotMeasurable
from tests.helpers.distributed import train
from tests.integration.test_bit_identity import assert_same
from tests.soak.processes import isolated

SECONDS = 60
KINDS = (RuntimeError, OSError, KeyError, NotMeasurable, MisconfigurationException)
ERRORS = {kind.__name__: kind for kind in KINDS}
COLUMNS = (
    "loss",
    "grad_sq_norm",
    "step_size",
    "reference_loss",
    "inner_product",
    "sq_distance",
    "initial_loss",
)
ARGUMENTS = {
    "every_n_steps": 1,
    "max_probes": 8,
    "every_step": True,
    "extras": [Secant(), Layers(), Segments()],
}

# what processes talk with, and what puts the user's things back: an error there is not one of
# measuring
_NOT_IN = (
    *("monitor", "training.interrupts", "settings", "cli", "command_line", "loading", "optim"),
    *("training.processes", "training.failures"),
)
_NOT = {
    *("abandon", "look_away", "leave", "close", "recover", "restore", "assign", "reshard"),
    *("put_back", "discard", "note", "write_random_state", "write_counters", "kept_cuda_generator"),
    "in_step",  # it begins a block of `Processes.agreed`: all processes have to be in it
}


@dataclass(frozen=True)
class Case:
    """One error."""

    function: str
    rank: int
    call: int
    error: str

    def __str__(self):
        return f"{self.error} in {self.function}, process {self.rank}, call {self.call}"


def functions():
    """Yield (name, holder, attribute, function) of every function of ours."""
    for _, name, _ in pkgutil.walk_packages(lightning_landscape.__path__, "lightning_landscape."):
        short = name.partition(".")[2]
        if name.endswith("__main__") or any(
            short == part or short.startswith(f"{part}.") for part in _NOT_IN
        ):
            continue
        module = importlib.import_module(name)
        for attribute, value in list(vars(module).items()):
            if inspect.isfunction(value) and value.__module__ == name:
                yield f"{short}.{attribute}", module, attribute, value
            elif inspect.isclass(value) and value.__module__ == name:
                for method, found in list(vars(value).items()):
                    if inspect.isfunction(found) and (
                        not method.startswith("__") or method == "__init__"
                    ):
                        yield f"{short}.{attribute}.{method}", value, method, found


def candidates():
    """Return `functions` without the excluded ones."""
    return [
        entry for entry in functions() if entry[2] not in _NOT and entry[2].lstrip("_") not in _NOT
    ]


def replace(function, by):
    """Replace a function in every module of ours that holds it."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "lightning_landscape":
            for attribute, value in list(vars(module).items()):
                if value is function:
                    setattr(module, attribute, by)


def wrapped(function, before):
    @functools.wraps(function)
    def called(*args, **kwargs):
        before()
        return function(*args, **kwargs)

    return called


class AtSetup(Callback):
    """Wraps functions in each process, from before the monitor's setup until its teardown."""

    def __init__(self, folder, case=None):
        self.folder, self.case = folder, case
        self.calls = collections.Counter()
        self.undo = []

    def setup(self, trainer, pl_module, stage):
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, holder, attribute, function in candidates():
            if self.case is None:
                self.wrap(holder, attribute, function, functools.partial(self.count, name))
            elif name == self.case.function and trainer.global_rank == self.case.rank:
                self.wrap(holder, attribute, function, self.fail)

    def wrap(self, holder, attribute, function, before):
        by = wrapped(function, before)
        if inspect.isclass(holder):
            setattr(holder, attribute, by)
            self.undo.append(functools.partial(setattr, holder, attribute, function))
        else:
            replace(function, by)
            self.undo.append(functools.partial(replace, by, function))

    def count(self, name):
        self.calls[name] += 1

    def fail(self):
        self.calls["failing"] += 1
        if self.calls["failing"] == self.case.call:
            (self.folder / "failed").touch()
            raise ERRORS[self.case.error]("on purpose")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step:
            (self.folder / f"stepped-{trainer.global_rank}").touch()

    def teardown(self, trainer, pl_module, stage):
        for undo in self.undo:
            undo()
        torch.save(self.calls, self.folder / f"calls-{trainer.global_rank}.pt")


def run(folder, callbacks):
    """Train in two processes; return the error."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        train(folder, callbacks, accumulate_grad_batches=2)
    except Exception as error:
        return error
    return None


def prepared(folder):
    """Run without the monitor and with it, undisturbed; return the calls of each process."""
    counting = AtSetup(folder)
    for name, callbacks in (("without", []), ("with", [counting, LandscapeMonitor(**ARGUMENTS)])):
        problem = run(folder / name if name == "without" else folder, callbacks)
        if problem is not None:
            raise problem
    return [dict(torch.load(folder / f"calls-{rank}.pt", weights_only=False)) for rank in range(2)]


def judge(cases, undisturbed, folder):
    """Return a description of what is wrong, or ""."""
    warnings.simplefilter("ignore")
    try:
        at_setup = [AtSetup(folder / f"error-{case.rank}", case) for case in cases]
        problem = run(folder, [*at_setup, LandscapeMonitor(**ARGUMENTS)])
        if not any(folder.glob("error-*/failed")):
            return "" if problem is None else f"failed without the error: {problem}"
        if problem is not None:
            said = "".join(traceback.format_exception(problem))
            stepped = any(folder.glob("error-*/stepped-*"))
            return f"stopped training: {said}" if stepped or "on purpose" not in said else ""
        for rank in range(2):
            ends = (
                torch.load(where / f"end-{rank}.pt", weights_only=False)
                for where in (undisturbed / "without", folder)
            )
            assert_same(*ends, f"end of process {rank}")
        compare(load(undisturbed / "run").table, folder)
    except Exception:
        return traceback.format_exc()
    return ""


def compare(expected, folder):
    """Assert that each row written is the row that is written without the error."""
    if not (folder / "run" / "landscape").is_dir():
        return
    table = load(folder / "run").table
    known = {probe.step: probe for probe in expected}
    for probe in table:
        if probe.step in known:
            for column in COLUMNS:
                value, right = getattr(probe, column), getattr(known[probe.step], column)
                assert (
                    value is None
                    or right is None
                    or math.isclose(value, right, rel_tol=1e-6, abs_tol=1e-9)
                ), column


def draw(seed, count, calls):
    """Return ``count`` cases: every function of ours that a process calls, in turn."""
    chance = random.Random(seed)
    places = sorted((name, rank) for rank in range(2) for name in calls[rank])
    chance.shuffle(places)

    def case(name, rank, when):
        return Case(
            name, rank, max(1, round(when * calls[rank][name])), chance.choice(list(ERRORS))
        )

    drawn = []
    for number, (name, rank) in enumerate(itertools.islice(itertools.cycle(places), count)):
        when = chance.random()
        cases = [case(name, rank, when)]
        near = sorted(
            other for other in calls[1 - rank] if other.rsplit(".", 1)[0] == name.rsplit(".", 1)[0]
        )
        if number % 3 == 0 and near:
            cases.append(case(chance.choice(near), 1 - rank, when))
        drawn.append(cases)
    return drawn


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.soak.failures", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=250, help="errors")
    parser.add_argument("--only", type=int, default=None, help="judge one alone")
    parser.add_argument("--matching", default="", help="only functions whose names contain this")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    with tempfile.TemporaryDirectory(prefix="failures-") as name:
        undisturbed = Path(name)
        calls, said = isolated(lambda _: prepared(undisturbed), SECONDS)
        if calls is None:
            print(said)
            return 1
        drawn = draw(options.seed, options.count, calls)
        started, wrong = time.monotonic(), 0
        for number, cases in enumerate(drawn):
            if options.only is not None and number != options.only:
                continue
            if not any(options.matching in case.function for case in cases):
                continue
            found, said = isolated(functools.partial(judge, cases, undisturbed), SECONDS)
            said = said if found is None else found
            wrong += bool(said)
            verdict = "FAILED" if said else "as without"
            print(f"{number:4d}  {verdict:10s} {', '.join(map(str, cases))}", flush=True)
            if said:
                again = f"python -m tests.soak.failures --seed {options.seed} --only {number}"
                print(f"     {again}\n{said}", flush=True)
        print(f"cases {len(drawn)}, FAILED {wrong} in {time.monotonic() - started:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
