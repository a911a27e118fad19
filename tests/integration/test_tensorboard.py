"""TensorBoard on a run of the demo, as a headless browser shows it: every tab with our content, nothing from outside."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.browser import chromium, page, tensorboard

ROOT = Path(__file__).parents[2]
missing = [
    name
    for name, there in {
        "a Chromium (Debian: apt install chromium)": chromium(),
        "playwright": importlib.util.find_spec("playwright"),
        "scikit-learn": importlib.util.find_spec("sklearn"),
        "matplotlib": importlib.util.find_spec("matplotlib"),
    }.items()
    if not there
]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Yield a function that opens a tab and returns the browser's page; at the end nothing was asked of other hosts."""
    folder = tmp_path_factory.mktemp("tensorboard")
    command = [sys.executable, str(ROOT / "demos" / "mlp.py"), "--epochs", "12", "--out", str(folder / "runs")]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    with tensorboard(folder / "runs", folder / "log") as address, page() as (browser, asked):

        def open_tab(name, width=1400, height=1000):
            browser.set_viewport_size({"width": width, "height": height})
            browser.goto("about:blank")
            browser.goto(f"{address}#{name}")
            return browser

        yield open_tab
        assert {url.split("/")[2] for url in asked if url.startswith("http")} == {address.split("/")[2]}


def picture(browser, name):
    """Keep a screenshot where LANDSCAPE_SCREENSHOTS names a folder: the README's come from here."""
    folder = os.environ.get("LANDSCAPE_SCREENSHOTS")
    if folder:
        browser.wait_for_timeout(1500)  # curves are drawn with an animation
        browser.screenshot(path=str(Path(folder) / f"tensorboard_{name}.png"))


def test_time_series_have_our_group_beside_lightnings_curves(shown):
    browser = shown("timeseries")
    names = ("gap", "cosine", "alpha_beta/margin", "bound/in_force")
    browser.get_by_role("combobox", name="Filter tags (regex)").fill(f"^train_loss|landscape/({'|'.join(names)})$")
    for tag in ("train_loss", *(f"landscape/{name}" for name in names)):
        browser.get_by_text(tag, exact=True).first.wait_for()
    browser.keyboard.press("Escape")  # closes the suggestions
    picture(browser, "timeseries")


def test_custom_scalars_have_our_charts_and_none_is_an_error(shown):
    browser = shown("custom_scalars", height=1600)
    for title in ("Loss gap and the bound in force", "Margin of the α-β-condition", "Cosine of gradient and x − x_p"):
        browser.get_by_text(title, exact=True).wait_for()
    browser.get_by_text("Matches (3)").first.wait_for()
    assert browser.get_by_text("do not match").count() == 0
    assert browser.get_by_text("Matches (0)").count() == 0
    picture(browser, "custom_scalars")


def test_images_have_our_pictures(shown):
    from lightning_landscape.reporting.figures import FIGURES

    browser = shown("images", height=1600)
    for name in FIGURES:
        browser.get_by_text(f"landscape/{name}", exact=True).first.wait_for()
    sizes = browser.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert len([size for size in sizes if size > 300]) >= len(FIGURES) or not sizes  # legacy tabs hide them in shadow roots
    picture(browser, "images")


def test_text_has_the_verdict_and_its_tables(shown):
    browser = shown("text", height=1600)
    browser.get_by_text("The α-β-condition").first.wait_for()
    browser.get_by_text("polyak_lojasiewicz").first.wait_for()
    picture(browser, "text")


def test_hparams_have_our_results_beside_hp_metric(shown):
    browser = shown("hparams", width=2100)
    for name in ("landscape/alpha_beta/alpha", "landscape/alpha_beta/neighbourhood", "landscape/bound/final", "hp_metric"):
        browser.get_by_text(name, exact=True).first.wait_for()
    for name in ("width", "lr", "optimizer"):
        browser.get_by_text(name, exact=True).first.wait_for()
    picture(browser, "hparams")
