"""The thread that writes: order, back-pressure, nothing lost, no process that hangs."""

import os
import subprocess
import sys
import threading
import time

import pytest

from lightning_landscape.store import background as module
from lightning_landscape.store.background import Background


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "LandscapeMonitor"]


def test_jobs_are_done_in_order_by_another_thread_that_ends():
    background, done = Background(most=2), []
    for number in range(50):
        background.do(lambda number=number: done.append((number, threading.current_thread())))
    background.wait()
    assert [number for number, _ in done] == list(range(50))
    assert threading.main_thread() not in {thread for _, thread in done}
    for _, thread in done:
        thread.join(5)
    assert not threads()


def test_whoever_brings_too_many_waits():
    background, go = Background(most=2), threading.Event()
    background.do(go.wait)
    background.do(lambda: None)
    started = time.monotonic()
    threading.Timer(0.3, go.set).start()
    background.do(lambda: None)
    assert time.monotonic() - started >= 0.25
    background.wait()


def test_an_error_of_a_job_hangs_nobody(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    background, done = Background(most=1), []
    background.do(lambda: 1 / 0)
    background.do(lambda: done.append(1))
    background.wait()
    assert done == [1]


def test_without_a_thread_jobs_are_done_at_once(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    background, done = Background(most=2), []
    background.do(lambda: done.append(threading.current_thread()))
    assert done == [threading.current_thread()]
    background.wait()


def test_a_fork_waits_for_nothing_and_does_nothing(tmp_path):
    background, go = Background(most=2), threading.Event()
    background.do(go.wait)
    background.do(lambda: (tmp_path / str(os.getpid())).touch())
    child = os.fork()
    if not child:
        background.wait()
        os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    go.set()
    background.wait()
    assert [path.name for path in tmp_path.iterdir()] == [str(os.getpid())]


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise KeyboardInterrupt"])
def test_a_process_that_ends_has_written_everything(ending, tmp_path):
    program = f"""
import pathlib, runpy, sys, time
Background = runpy.run_path({module.__file__!r})["Background"]  # without all that the package imports
background = Background(most=2)
background.do(lambda: time.sleep(0.5))
background.do(lambda: pathlib.Path({str(tmp_path / "written")!r}).touch())
{ending}
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, check=False)
    assert (tmp_path / "written").exists()
