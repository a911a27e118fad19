"""TensorBoard on a run of the demo in a headless browser: every tab, and no outside requests."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_landscape import load
from lightning_landscape.reporting.tensorboard import layout
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
pytestmark = [
    pytest.mark.slow,  # a browser takes half a minute to start
    pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}"),
    # One worker makes the run and starts TensorBoard and the browser.
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Yield a function that opens a tab and returns its page; no other host may be contacted."""
    folder = tmp_path_factory.mktemp("tensorboard")
    command = [
        sys.executable,
        str(ROOT / "demos" / "mlp.py"),
        "--epochs",
        "12",
        "--out",
        str(folder / "runs"),
    ]
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with tensorboard(folder / "runs", folder / "log") as address, page() as (browser, asked):

        def open_tab(name, width=1400, height=1000):
            browser.set_viewport_size({"width": width, "height": height})
            browser.goto("about:blank")
            browser.goto(f"{address}#{name}")
            return browser

        open_tab.run = load(folder / "runs" / "mlp-digits" / "version_0")
        yield open_tab
        assert {url.split("/")[2] for url in asked if url.startswith("http")} == {
            address.split("/")[2]
        }


def picture(browser, name):
    """Save a screenshot, such as those of the README, if LANDSCAPE_SCREENSHOTS names a folder."""
    folder = os.environ.get("LANDSCAPE_SCREENSHOTS")
    if folder:
        browser.wait_for_timeout(1500)  # curves are drawn with an animation
        browser.screenshot(path=str(Path(folder) / f"tensorboard_{name}.png"))


def assert_visible(browser, *texts):
    """Assert that each text appears on the page, shadow roots included, while the page loads."""
    for text in texts:
        browser.get_by_text(text, exact=True).first.wait_for(state="visible")
        assert browser.get_by_text(text, exact=True).first.is_visible(), text


def test_time_series_have_our_group_beside_lightnings_curves(shown):
    browser = shown("timeseries")
    names = ("gap", "cosine", "alpha_beta/margin", "bound/in_force")
    browser.get_by_role("combobox", name="Filter tags (regex)").fill(
        f"^train_loss|landscape/({'|'.join(names)})$"
    )
    browser.locator("mat-option").first.wait_for(state="visible")
    browser.keyboard.press("Escape")  # closes the suggestions, which have the same names
    browser.locator("mat-option").first.wait_for(state="detached")
    assert_visible(browser, "train_loss", *(f"landscape/{name}" for name in names))
    assert browser.get_by_text("5 cards").is_visible()
    picture(browser, "timeseries")


def test_custom_scalars_have_our_charts_and_none_is_an_error(shown):
    browser = shown("custom_scalars", height=1600)
    charts = layout("landscape")["Loss landscape"]
    assert_visible(browser, *charts)
    found = browser.get_by_text("Matches (")
    found.nth(len(charts) - 1).wait_for()  # every chart has looked for its curves
    browser.wait_for_timeout(2000)
    assert found.count() == len(charts)
    assert browser.get_by_text("Matches (0)").count() == 0
    # TensorBoard says so if the curves of a margin chart have different steps.
    assert browser.get_by_text("do not match").count() == 0
    picture(browser, "custom_scalars")


def test_images_have_our_pictures(shown):
    browser = shown("images", height=1600)
    names = sorted(path.stem for path in (shown.run.path / "figures").glob("*.png"))
    assert names
    assert_visible(browser, *(f"landscape/{name}" for name in names))
    images = browser.locator("img")  # in shadow roots too
    images.nth(len(names) - 1).wait_for()
    browser.wait_for_timeout(2000)
    sizes = images.evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len([size for size in sizes if size >= 400]) == len(names)
    picture(browser, "images")


def test_text_has_the_verdict_and_its_tables(shown):
    browser = shown("text", height=1600)
    browser.get_by_text(shown.run.summary["verdict"][:60]).first.wait_for()
    alpha = shown.run.summary["conditions"]["alpha_beta"]["alpha"]
    assert_visible(browser, f"{alpha:.4g}", "polyak_lojasiewicz", "sgd_sharp")
    picture(browser, "text")


@pytest.mark.slow
def test_hparams_have_our_results_beside_hp_metric(shown):
    browser = shown("hparams", width=2100)
    assert_visible(
        browser,
        "landscape/alpha_beta/alpha",
        "landscape/bound/final",
        "hp_metric",
        "width",
        "lr",
        "optimizer",
    )
    bound = shown.run.summary["bounds"][shown.run.summary["bound_in_force"]]["value"]
    alpha = shown.run.summary["conditions"]["alpha_beta"]["alpha"]
    assert_visible(browser, f"{alpha:#.5g}", f"{bound:#.5g}", "SGD")
    picture(browser, "hparams")
