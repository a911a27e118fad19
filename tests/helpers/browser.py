"""TensorBoard on a port of its own, and a headless browser that looks at it."""

import contextlib
import re
import shutil
import subprocess
import sys
import time

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
]
SECONDS = 60


def chromium():
    """Return the path of an installed Chromium, or None."""
    return (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )


@contextlib.contextmanager
def tensorboard(logdir, log):
    """Serve a folder of runs on a free port of this machine alone; yield the address."""
    with log.open("w") as file:
        command = [
            sys.executable,
            "-m",
            "tensorboard.main",
            "--logdir",
            str(logdir),
            "--host",
            "127.0.0.1",
            "--port",
            "0",
        ]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield found[0]
    finally:
        process.terminate()
        process.wait(SECONDS)


@contextlib.contextmanager
def page(width=1400, height=1000):
    """Yield a page of a headless browser, and the list of addresses it asks for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(1000 * SECONDS)
            asked = []
            page.on("request", lambda request: asked.append(request.url))
            yield page, asked
        finally:
            browser.close()
