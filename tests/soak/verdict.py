"""One configuration from start to verdict."""

import traceback
import warnings

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_landscape import load
from tests.integration.test_bit_identity import assert_same
from tests.soak import comparison, processes, recording, training

AGREES, REFUSED, NOT_RUNNABLE, FAILED = "agrees", "refused", "not runnable", "FAILED"


def judge(one, folder, corrupt=lambda run: run):
    """Return a verdict and its reason; ``corrupt`` changes the measured run."""
    if one.strategy == "fsdp2":
        from tests.soak import sharded

        return sharded.judge(one, folder)
    try:
        recording.record(one, folder / "recorded")
    except Exception as error:
        return judge_broken(one, folder, error)
    try:
        training.fit(one, folder / "run", training.monitors(one, folder / "recorded"))
    except Exception as error:
        return judge_refusal(folder / "run", error)
    for rank in range(one.processes):
        ends = (
            torch.load(folder / kind / f"end-{rank}.pt", weights_only=False)
            for kind in ("recorded", "run")
        )
        assert_same(*ends, f"end of process {rank}")
    for player in one.players or (None,):
        run = load(folder / "run" / "run" / (f"landscape-{player}" if player else "landscape"))
        comparison.compare(one, corrupt(run), recording.read(one, folder / "recorded", player))
    return AGREES, ""


def judge_broken(one, folder, error):
    """Return the verdict on a failed recording: not runnable only if plain training fails too."""
    said = "".join(traceback.format_exception(error))
    try:
        training.fit(one, folder / "plain", [])
    except Exception as again:
        return NOT_RUNNABLE, f"{type(again).__name__}: {again}".splitlines()[0][:160]
    return FAILED, f"runs, but cannot be recorded: {said}"


def judge_refusal(folder, error):
    said = f"{type(error).__name__}: {error}"
    of_ours = isinstance(error, MisconfigurationException) or "MisconfigurationException" in said
    if not (of_ours and "LandscapeMonitor" in said and "upported" in said):
        return FAILED, "".join(traceback.format_exception(error))
    marks = [path.read_text() for path in folder.glob("broke-off-*")]
    return (
        (FAILED, f"refused after the first step: {said}")
        if "moved" in marks
        else (REFUSED, said.splitlines()[-1][:160])
    )


def quietly(one, folder, corrupt):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        return judge(one, folder, corrupt)
    except Exception:
        return FAILED, traceback.format_exc()


def isolated(one, seconds, corrupt=lambda run: run):
    """Return the verdict on a configuration and its reason, from a process of its own."""
    verdict, said = processes.isolated(lambda folder: quietly(one, folder, corrupt), seconds)
    return tuple(verdict) if verdict is not None else (FAILED, said)
