"""Files, arguments and code that the documentation names are there."""

import inspect
import re
from pathlib import Path

import pytest

import lightning_landscape
from lightning_landscape import LandscapeMonitor

ROOT = Path(__file__).parents[1]
PACKAGE = Path(lightning_landscape.__file__).parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "demos" / "README.md",
    *sorted((ROOT / "demos" / "pages").glob("*.md")),
]
GONE = re.compile(
    r"\b(?:store_dtype|store_gib|keep_store|exact_sums|per_layer|per_sample|held_out|secant"
    r"|fixed_batches|segments|figures|figure)=|\brun\.(?:segments|layers|held_out|secants)\b|\bprobing/"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page):
    text = page.read_text()
    for name in re.findall(r"`([\w./]+\.py)`", text):
        bases = (PACKAGE, ROOT, page.parent, *(ROOT / "tests").iterdir())
        assert any((base / name).is_file() for base in bases), name
    for name in re.findall(r"`([a-z_]+/)`", text):
        above = (PACKAGE, ROOT, ROOT / "tests")
        of_a_run = {"store/", "figures/", "reference/", "runs/", "landscape/"}
        assert name in of_a_run or any((base / name).is_dir() for base in above), name
    for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_an_argument_that_is_gone(page):
    assert not GONE.findall(page.read_text())


def test_every_argument_is_in_a_page():
    """The constructor's own help says what each does; a page says when to use it."""
    text = "\n".join(page.read_text() for page in PAGES)
    for name in inspect.signature(LandscapeMonitor).parameters:
        assert re.search(rf"\b{name}=|`{name}`", text), name


def blocks_of(page):
    """Return the Python blocks of a page that are whole programs."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [block for block in blocks if block.startswith(("from ", "import "))]


@pytest.mark.parametrize("page", [ROOT / "docs" / "how-it-works.md"], ids=lambda page: page.name)
def test_programs_of_a_page_run(page):
    for block in blocks_of(page):
        exec(compile(block, str(page), "exec"), {"__name__": "page"})
