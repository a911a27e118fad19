"""``lightning-landscape``: what measured runs say, from their files alone, on any machine.

lightning-landscape summary RUN                           verdict, findings, conditions and theorems of one run
lightning-landscape compare RUN... --group-by width       the worst case over the runs of each group, such as seeds
lightning-landscape plot RUN --out DIR                    its pictures
lightning-landscape clean RUN...                          remove the training batches that runs left behind
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from lightning_landscape.files import STORE
from lightning_landscape.loading import find_runs
from lightning_landscape.reporting.compare import as_dict, as_table
from lightning_landscape.reporting.compare import compare as pooled
from lightning_landscape.reporting.grouping import names_of
from lightning_landscape.reporting.partial import Found, read
from lightning_landscape.reporting.stores import leftover
from lightning_landscape.reporting.tables import of_summary
from lightning_landscape.reporting.text import render

Format = Literal["terminal", "markdown", "json", "latex"]
NOTHING, WRONG_USAGE = 1, 2


class Refusal(Exception):
    """What ends a command with one line on stderr: a sentence, and the exit status."""

    def __init__(self, sentence: str, status: int = NOTHING) -> None:
        super().__init__(" ".join(sentence.split()))
        self.status = status


def summary(run: str, format: Format = "terminal") -> None:
    """Show what was found along one run: the verdict, the α-β-condition, the other conditions, the theorems.

    Args:
        run: Log directory, the monitor's folder in it, a file in that folder, or a folder above a single run.
        format: How to show it; json is the content of summary.json.
    """
    found = _one(run)
    content = found.summary
    if content is None:
        raise Refusal(f"nothing can be shown of {found.run.path}: {' '.join(found.notes)}")
    if format == "json":
        _warn(found.notes)
        _print_json(content)
        return
    print(
        render(
            format,
            [*found.notes, str(content.get("verdict") or "There is no verdict.")],
            of_summary(content),
        )
    )


def compare(
    runs: list[str],
    group_by: str | None = None,
    format: Format = "terminal",
    picture: str | None = None,
) -> None:
    """Compare runs, or groups of runs: the pair that holds over all runs of a group, and what it is worth.

    Args:
        runs: Log directories, monitors' folders, or directory trees with any number of runs.
        group_by: Hyper-parameter that the runs of a group share, dotted where it is nested, or "optimizer"; without it every
            run is shown, and all runs pooled.
        format: How to show it.
        picture: File to draw the comparison to, .pdf or .png; needs matplotlib.
    """
    target = None if picture is None else _picture_path(picture)
    names, found = _several(runs)
    notes = [
        f"{name}: {note}" for name, one in zip(names, found, strict=True) for note in one.notes
    ]
    if not any(len(one.run.table) for one in found):
        raise Refusal(f"nothing can be compared: {' '.join(notes)}")
    try:
        comparison = pooled([one.run for one in found], group_by)
    except ValueError as error:
        raise Refusal(str(error), WRONG_USAGE) from error
    if format == "json":
        _warn(notes)
        _print_json(as_dict(comparison))
    else:
        print(render(format, notes, [as_table(comparison)]))
    if target is not None:
        draw = import_module("lightning_landscape.reporting.compare_figure").draw
        target.parent.mkdir(parents=True, exist_ok=True)
        draw(comparison).savefig(target, dpi=150)
        _warn([f"The picture is in {target}."])


def plot(run: str, *, out: str) -> None:
    """Draw the pictures of one run; needs matplotlib.

    Args:
        run: Log directory, the monitor's folder in it, a file in that folder, or a folder above a single run.
        out: Folder for the pictures; made if it is not there.
    """
    _require("matplotlib", "plots")
    found = _one(run)
    content = found.summary
    if content is None or not len(found.run.table):
        raise Refusal(f"nothing can be drawn of {found.run.path}: {' '.join(found.notes)}")
    _warn(found.notes)
    figures = import_module("lightning_landscape.reporting.figures")
    for path in figures.save(
        figures.draw_all(found.run.table, content, found.run.segments, found.run.held_out),
        Path(out),
    ):
        print(path)


def clean(
    runs: list[str], dry_run: bool = False, recursive: bool = False, force: bool = False
) -> None:
    """Remove the store of runs: what was kept to evaluate probes or to resume, the training batches among it.

    Tables, summaries and references stay.

    Args:
        runs: Log directories or monitors' folders, each of one run; directory trees with several need recursive.
        dry_run: Only say what would be removed.
        recursive: Also of all runs below a directory that holds several.
        force: Also of runs without summary.json, which were killed, or are still training and need it.
    """
    folders = _folders(runs)
    if not (recursive or dry_run):
        _refuse_trees(runs)
    stores = [store for store in map(leftover, folders) if store is not None]
    foreign = [
        folder / STORE
        for folder in folders
        if (folder / STORE).is_dir() and leftover(folder) is None
    ]
    _warn([f"{path} stays: it holds what no monitor writes" for path in foreign])
    chosen = [store for store in stores if store.ended or force]
    waiting = [store.path for store in stores if store not in chosen]
    _warn(
        [
            f"{path} stays: without summary.json its run was killed, or is still training; --force removes it"
            for path in waiting
        ]
    )
    if foreign and not stores:
        raise Refusal(
            f"nothing was removed: {_counted(len(foreign), 'folder')} of that name, of no monitor"
        )
    if stores and not chosen:
        raise Refusal(
            f"nothing was removed: {_counted(len(stores), 'store')}, of runs that have not ended"
        )
    for store in chosen:
        if not dry_run:
            store.remove()
        print(f"{'would remove' if dry_run else 'removed'} {store.path}, {store.nbytes:,} bytes")
    if not chosen:
        print(f"there is no store in {_counted(len(folders), 'run')}: nothing to remove")
    elif len(chosen) > 1:
        print(
            f"{_counted(len(chosen), 'store')}, {sum(store.nbytes for store in chosen):,} bytes in all"
        )


def _refuse_trees(paths: Sequence[str]) -> None:
    """Refuse directories that hold several runs: a parent folder named by mistake would lose what all of them need."""
    for path in paths:
        found = find_runs(path)
        if len(found) > 1:
            raise Refusal(
                f"nothing was removed: found {len(found)} runs in {path}; name each, or pass --recursive for all of them, "
                "which --dry-run lists",
                WRONG_USAGE,
            )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


# ------------------------------------------------------------------------------------------------------------------- runs


def _one(path: str) -> Found:
    folders = _folders([path])
    if len(folders) > 1:
        raise Refusal(
            f"found {len(folders)} runs in {path}: {', '.join(names_of(folders))}; name one of them, or compare them",
            WRONG_USAGE,
        )
    return read(folders[0])


def _several(paths: Sequence[str]) -> tuple[list[str], list[Found]]:
    folders = _folders(paths)
    return names_of(folders), [read(folder) for folder in folders]


def _folders(paths: Sequence[str]) -> list[Path]:
    """Return the folders of all runs that paths name, each once."""
    folders: dict[Path, Path] = {}
    for path in paths:
        found = find_runs(path)
        if not found:
            what = "no run in it" if Path(path).exists() else "no such file or folder"
            raise Refusal(
                f"{path}: {what}; a run is a folder with probes.csv, probes.jsonl or summary.json of LandscapeMonitor"
            )
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


# ----------------------------------------------------------------------------------------------------------------- output


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(sentence, file=sys.stderr)


def _print_json(content: dict[str, Any]) -> None:
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    print(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=plain))


def _picture_path(name: str) -> Path:
    path = Path(name)
    if path.suffix.lower() not in (".pdf", ".png"):
        raise Refusal(
            f"found picture={name}; supported are files ending in .pdf or .png", WRONG_USAGE
        )
    _require("matplotlib", "plots")
    return path


def _require(module: str, extra: str) -> None:
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise Refusal(
            f"found no {module}; install it with: pip install 'lightning-landscape[{extra}]'"
        ) from error


# --------------------------------------------------------------------------------------------------------------- the line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 where nothing can be shown, 2 for wrong usage.

    Args:
        arguments: those after the program's name; by default the process's own.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console without Greek letters
    try:
        _require("jsonargparse", "cli")
        _require("pylatexenc", "cli")
        line = import_module("lightning_landscape.command_line")
        import_module("jsonargparse").auto_cli(
            [summary, compare, plot, clean],
            args=None if arguments is None else list(arguments),
            parser_class=line.Parser,
            prog=line.PROGRAM,
            description=(__doc__ or "").split("\n")[0].replace("``", ""),
        )
        sys.stdout.flush()
    except Refusal as refusal:
        print(f"lightning-landscape: {refusal}", file=sys.stderr)
        return refusal.status
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"lightning-landscape: {error}", file=sys.stderr)
        return NOTHING
    except Exception as error:  # of files that hold something else than what a run writes
        said = " ".join(f"{type(error).__name__}: {error}".split())
        print(
            f"lightning-landscape: a file does not hold what a run writes ({said})", file=sys.stderr
        )
        return NOTHING
    return 0


if __name__ == "__main__":
    sys.exit(main())
