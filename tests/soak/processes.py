"""Run a function in a separate process with a watchdog, so that a hang is a named failure."""

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path


def isolated(function, seconds):
    """Run a function in a new process, which is killed with its children when its time is over.

    Args:
        function: called with an empty folder; its result must be JSON.
        seconds: time limit.

    Returns:
        The result of the function, or None with a description of the failure.
    """
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(folder)
            (folder / "returned.json").write_text(json.dumps(function(folder)))
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    ended = False
    while not ended and time.monotonic() < deadline:
        ended = os.waitpid(child, os.WNOHANG)[0] == child
        time.sleep(0.02)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        if (folder / "returned.json").exists():
            return json.loads((folder / "returned.json").read_text()), ""
        log = (folder / "log").read_text()[-800:] if (folder / "log").exists() else ""
        return (
            None,
            f"hung: no verdict after {seconds:.0f} s\n{log}"
            if not ended
            else f"ended without a verdict\n{log}",
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
