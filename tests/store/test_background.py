"""The thread that writes: order, a bound, nothing lost, no process that hangs."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

from lightning_landscape.store import background as module
from lightning_landscape.store.background import Background


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("LandscapeMonitor")]


def test_jobs_are_done_in_order_by_another_thread_that_ends():
    background, done = Background(most=2), []
    for number in range(50):
        background.do(lambda number=number: done.append((number, threading.current_thread())))
    background.wait()
    assert [number for number, _ in done] == list(range(50))
    assert threading.main_thread() not in {thread for _, thread in done}
    assert len({thread for _, thread in done}) == 1
    assert not threads()
    background.do(lambda: done.append((50, threading.current_thread())))
    background.wait()
    assert done[-1][0] == 50
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


def test_an_error_of_a_job_hangs_nobody():
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
    monkeypatch.undo()
    background.do(lambda: done.append(threading.current_thread()))
    background.wait()
    assert len(done) == 2
    assert done[1] is not threading.current_thread()


class Large:
    """Something that a job holds."""


def test_a_job_that_is_done_holds_nothing():
    background = Background(most=1)
    for _ in range(3):
        held = Large()
        there, done = weakref.ref(held), threading.Event()
        background.do(lambda held=held, done=done: done.set())
        del held
        background.do(lambda: None)  # now the job before is done
        gc.collect()
        assert done.is_set()
        assert there() is None
    background.wait()


def test_an_interrupt_while_waiting_loses_no_job(monkeypatch):
    background, go, done, wait = Background(most=1), threading.Event(), [], module.wait

    def interrupted(futures, **how):
        raise KeyboardInterrupt

    background.do(lambda: go.wait() and done.append(0))
    monkeypatch.setattr(module, "wait", interrupted)
    for waiting in (lambda: background.do(lambda: done.append(1)), background.wait):
        with pytest.raises(KeyboardInterrupt):
            waiting()
    monkeypatch.setattr(module, "wait", wait)
    go.set()
    background.do(lambda: done.append(2))
    background.wait()
    assert done == [0, 1, 2]


@pytest.mark.parametrize("started", [True, False])
def test_an_interrupt_while_a_thread_is_started_loses_no_job(started, monkeypatch):
    background, done, start = Background(most=2), [], threading.Thread.start

    def interrupted(thread):
        if started:
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        background.do(lambda: done.append(0))
    monkeypatch.undo()
    background.wait()
    for thread in threads():  # as at the end of Python
        thread.join(5)
    assert done == [0]
    assert not threads()


def test_a_fork_waits_for_nothing_and_does_nothing(tmp_path):
    background, go = Background(most=2), threading.Event()
    background.do(go.wait)
    background.do(lambda: (tmp_path / str(os.getpid())).touch())
    child = os.fork()
    if not child:
        signal.alarm(30)  # ends a child that hangs
        background.wait()
        background.do(lambda: None)
        background.wait()
        os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    go.set()
    background.wait()
    assert [path.name for path in tmp_path.iterdir()] == [str(os.getpid())]


@pytest.mark.parametrize("busy", [True, False])
def test_a_fork_that_ends_as_any_python_does(busy, tmp_path):
    program = f"""
import os, pathlib, runpy, signal, sys, time
Background = runpy.run_path({module.__file__!r})["Background"]
background = Background(most=2)
background.do(lambda: time.sleep(1.0 if {busy} else 0.0))
if {busy}:
    background.do(lambda: pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch())
else:
    time.sleep(0.3)  # the thread waits for another job
child = os.fork()
if not child:
    signal.alarm(30)
    sys.exit(7)
_, status = os.waitpid(child, 0)
background.wait()
sys.exit(os.waitstatus_to_exitcode(status))
"""
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert ended.returncode == 7
    assert len(list(tmp_path.iterdir())) == busy


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise KeyboardInterrupt"])
def test_a_process_that_ends_has_written_everything(ending, tmp_path):
    program = f"""
import pathlib, runpy, sys, time
Background = runpy.run_path({module.__file__!r})["Background"]
background = Background(most=2)
background.do(lambda: time.sleep(0.5))
background.do(lambda: pathlib.Path({str(tmp_path / "written")!r}).touch())
{ending}
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, check=False)
    assert (tmp_path / "written").exists()
