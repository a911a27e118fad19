"""``lightning-landscape``: show, compare, draw and clean measured runs, from their files alone.

lightning-landscape summary RUN                      show the results of one run
lightning-landscape compare RUN... --group-by width  compare groups of runs, such as seeds
lightning-landscape plot RUN --out DIR               draw the pictures of one run
lightning-landscape clean RUN...                     remove the training batches that runs left
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from lightning_landscape.extras import measured
from lightning_landscape.files import STORE
from lightning_landscape.reading.load import find_runs
from lightning_landscape.reading.partial import Found, read
from lightning_landscape.reporting.compare import as_dict, as_table
from lightning_landscape.reporting.compare import compare as pooled
from lightning_landscape.reporting.grouping import names_of
from lightning_landscape.reporting.stores import leftover
from lightning_landscape.reporting.tables import of_summary
from lightning_landscape.reporting.text import render

Format = Literal["terminal", "markdown", "json", "latex"]
NOTHING, WRONG_USAGE = 1, 2


class Refusal(Exception):
    """End a command with one line on stderr.

    Args:
        sentence: the line.
        status: the exit status.
    """

    def __init__(self, sentence: str, status: int = NOTHING) -> None:
        super().__init__(" ".join(sentence.split()))
        self.status = status


def summary(run: str, format: Format = "terminal") -> None:
    """Show the results of one run: verdict, α-β-condition, other conditions and theorems.

    Args:
        run: Log directory, the monitor's folder in it, a file in that folder, or a folder above
            a single run.
        format: Output format. The format json prints the content of summary.json.
    """
    found = _one(run)
    content = found.summary
    if content is None:
        raise Refusal(f"nothing can be shown of {found.run.path}: {' '.join(found.notes)}")
    if format == "json":
        _warn(*found.notes)
        _print_json(content)
    else:
        verdict = str(content.get("verdict") or "There is no verdict.")
        print(render(format, [*found.notes, verdict], of_summary(content)))


def compare(
    runs: list[str],
    group_by: str | None = None,
    format: Format = "terminal",
    picture: str | None = None,
) -> None:
    """Compare runs or groups of runs: find the pair (α, β) that holds at all probes of a group.

    Args:
        runs: Log directories, monitors' folders, or directory trees with any number of runs.
        group_by: Hyper-parameter that defines the groups, such as width. Write a nested one with
            dots, such as model.width. "optimizer" is the class of the optimizer. By default each
            run is a group, and one more row pools all runs.
        format: Output format.
        picture: File for a picture of the comparison, .pdf or .png. Needs matplotlib.
    """
    target = None if picture is None else _picture_path(picture)
    folders = _folders(runs)
    found = [read(folder) for folder in folders]
    named = zip(names_of(folders), found, strict=True)
    notes = [f"{name}: {note}" for name, one in named for note in one.notes]
    if not any(len(one.run.table) for one in found):
        raise Refusal(f"nothing can be compared: {' '.join(notes)}")
    try:
        comparison = pooled([one.run for one in found], group_by)
    except ValueError as error:
        raise Refusal(str(error), WRONG_USAGE) from error
    if format == "json":
        _warn(*notes)
        _print_json(as_dict(comparison))
    else:
        print(render(format, notes, [as_table(comparison)]))
    if target is not None:
        draw = import_module("lightning_landscape.reporting.compare_figure").draw
        target.parent.mkdir(parents=True, exist_ok=True)
        draw(comparison).savefig(target, dpi=150)
        _warn(f"The picture is in {target}.")


def plot(run: str, *, out: str) -> None:
    """Draw the pictures of one run. Needs matplotlib.

    Args:
        run: Log directory, the monitor's folder in it, a file in that folder, or a folder above
            a single run.
        out: Folder for the pictures. The command creates it if necessary.
    """
    _require("matplotlib", "plots")
    found = _one(run)
    content = found.summary
    if content is None or not len(found.run.table):
        raise Refusal(f"nothing can be drawn of {found.run.path}: {' '.join(found.notes)}")
    _warn(*found.notes)
    figures = import_module("lightning_landscape.reporting.figures")
    drawn_run = figures.Drawn(found.run.table, content, found.run.tables)
    drawn = figures.draw_all(drawn_run, measured(found.run.tables))
    for path in figures.save(drawn, Path(out)):
        print(path)


def clean(
    runs: list[str], dry_run: bool = False, recursive: bool = False, force: bool = False
) -> None:
    """Remove the stores of runs, with their training batches. Tables and summaries stay.

    Args:
        runs: Log directories or monitors' folders. A directory tree with several runs needs
            --recursive.
        dry_run: List the stores, but remove none.
        recursive: Remove the stores of all runs in a directory tree.
        force: Also remove the stores of runs without summary.json. Such a run was killed, or it is
            still training and needs its store.
    """
    folders = _folders(runs)
    if not (recursive or dry_run):
        _refuse_trees(runs)
    stores = {folder / STORE: leftover(folder) for folder in folders if (folder / STORE).is_dir()}
    chosen = []
    for path, store in stores.items():
        if store is None:
            _warn(f"{path} stays: it holds files that no monitor wrote")
        elif store.ended or force:
            chosen.append(store)
        else:
            _warn(
                f"{path} stays: without summary.json its run was killed, or is still training; "
                "--force removes it"
            )
    if stores and not chosen:
        raise Refusal(
            f"nothing was removed: {_counted(len(stores), 'store')} found, none to remove"
        )
    for store in chosen:
        if not dry_run:
            store.remove()
        print(f"{'would remove' if dry_run else 'removed'} {store.path}, {store.nbytes:,} bytes")
    if not chosen:
        print(f"there is no store in {_counted(len(folders), 'run')}: nothing to remove")
    elif len(chosen) > 1:
        total = sum(store.nbytes for store in chosen)
        print(f"{_counted(len(chosen), 'store')}, {total:,} bytes in all")


def _refuse_trees(paths: Sequence[str]) -> None:
    """Refuse a directory with several runs: the user may have named a parent by mistake."""
    for path in paths:
        found = find_runs(path)
        if len(found) > 1:
            raise Refusal(
                f"nothing was removed: found {len(found)} runs in {path}; name each run, or pass "
                "--recursive for all of them (--dry-run lists them)",
                WRONG_USAGE,
            )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


# ------------------------------------------------------------------------------------------- runs


def _one(path: str) -> Found:
    folders = _folders([path])
    if len(folders) > 1:
        raise Refusal(
            f"found {len(folders)} runs in {path}: {', '.join(names_of(folders))}; "
            "name one of them, or compare them",
            WRONG_USAGE,
        )
    return read(folders[0])


def _folders(paths: Sequence[str]) -> list[Path]:
    """Return the folders of all runs below some paths, each folder once."""
    folders: dict[Path, Path] = {}
    for path in paths:
        found = find_runs(path)
        if not found:
            reason = "no run in it" if Path(path).exists() else "no such file or folder"
            raise Refusal(
                f"{path}: {reason}; a run is a folder with probes.csv, probes.jsonl or "
                "summary.json of LandscapeMonitor"
            )
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


# ----------------------------------------------------------------------------------------- output


def _warn(*sentences: str) -> None:
    for sentence in sentences:
        print(sentence, file=sys.stderr)


def _print_json(content: dict[str, Any]) -> None:
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    print(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=plain))


def _picture_path(name: str) -> Path:
    path = Path(name)
    if path.suffix.lower() not in (".pdf", ".png"):
        raise Refusal(f"found picture={name}; supported are files in .pdf or .png", WRONG_USAGE)
    _require("matplotlib", "plots")
    return path


def _require(module: str, extra: str) -> None:
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        install = f"pip install 'lightning-landscape[{extra}]'"
        raise Refusal(f"found no {module}; install it with: {install}") from error


# ------------------------------------------------------------------------------------------- main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the arguments after the program's name; by default those of this process.

    Returns:
        The exit status: 0, 1 if there is nothing to show, or 2 for wrong usage.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console may have no Greek letters
    try:
        _require("jsonargparse", "cli")
        _require("pylatexenc", "cli")
        line = import_module("lightning_landscape.command_line")
        line.run([summary, compare, plot, clean], __doc__, arguments)
        sys.stdout.flush()
    except Refusal as refusal:
        _warn(f"lightning-landscape: {refusal}")
        return refusal.status
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _warn(f"lightning-landscape: {error}")
        return NOTHING
    except Exception as error:  # a file of the run has other content than it should
        found = " ".join(f"{type(error).__name__}: {error}".split())
        _warn(f"lightning-landscape: a file of the run cannot be read ({found})")
        return NOTHING
    return 0


if __name__ == "__main__":
    sys.exit(main())
