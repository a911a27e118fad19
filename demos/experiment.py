"""Common parts of the experiments: command line, measured training runs, findings, tables."""

from __future__ import annotations

import argparse
import csv
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_landscape import LandscapeMonitor, Report, load
from lightning_landscape.run import Run

RESULTS = Path(__file__).parent / "results"
"""Small tables and pictures of larger runs, which are kept with the code"""


Setting = Literal["small", "larger", "full"]


@dataclass(frozen=True, slots=True)
class Options:
    """The command-line options of every experiment."""

    setting: Setting
    """small: a minute or two on two cores; larger: half an hour; full: the setting of the paper"""
    out: Path
    """Folder of runs, table and pictures"""
    seeds: tuple[int, ...]
    root: Path | None
    """Folder with the files of a data set"""
    arguments: argparse.Namespace
    """All arguments, including those of a single experiment"""

    @property
    def full(self) -> bool:
        """Whether sizes, seeds and epochs are the paper's."""
        return self.setting == "full"

    def pick(self, small: Any, full: Any, larger: Any = None) -> Any:
        """Return the value for the setting; ``larger=None`` means the small value."""
        return (
            full
            if self.full
            else larger
            if self.setting == "larger" and larger is not None
            else small
        )


def options(
    name: str,
    description: str | None,
    *,
    small_seeds: int,
    full_seeds: int,
    larger_seeds: int | None = None,
    full: str = "the paper's sizes, seeds and epochs",
    add: Callable[[argparse.ArgumentParser], None] | None = None,
) -> Options:
    """Read the command line.

    Args:
        name: name of the experiment and of its folder under ``--out``.
        description: text of ``--help``, the docstring of the file.
        small_seeds: number of seeds of the small setting.
        full_seeds: number of seeds of the full setting.
        larger_seeds: number of seeds of ``--larger``; None if the experiment has no such setting.
        full: description of the full setting for ``--help``.
        add: adds the arguments of this experiment to the parser.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    setting = parser.add_mutually_exclusive_group()
    setting.add_argument("--full", action="store_const", dest="setting", const="full", help=full)
    seeds = {"small": small_seeds, "larger": larger_seeds, "full": full_seeds}
    if larger_seeds is not None:
        text = "longer and larger than the small setting, for two cores and half an hour"
        setting.add_argument(
            "--larger", action="store_const", dest="setting", const="larger", help=text
        )
    parser.set_defaults(setting="small")
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of the runs (default: runs)"
    )
    counts = ", ".join(
        f"{count} in the {name} setting" for name, count in seeds.items() if count is not None
    )
    parser.add_argument("--seeds", type=int, help=f"number of seeds (default: {counts})")
    parser.add_argument(
        "--root", type=Path, help="folder with the files of a data set, see demos/README.md"
    )
    if add is not None:
        add(parser)
    given = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.`")
    chosen = range(given.seeds or seeds[given.setting])
    return Options(
        given.setting, given.out / name / given.setting, tuple(chosen), given.root, given
    )


def measured(
    folder: Path,
    module: Callable[[], pl.LightningModule],
    data: Callable[[], Any],
    *,
    seed: int,
    monitor: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    **trainer: Any,
) -> Run:
    """Train and measure one run, or load it if it exists and is complete.

    So an experiment that was stopped continues where it was.

    Args:
        folder: folder of the run; its last part is the run's name, such as "seed-0".
        module: makes the module; called after seeding.
        data: makes the training loader or a datamodule.
        seed: seed of all random numbers.
        monitor: arguments of `LandscapeMonitor`.
        callbacks: further callbacks, after the monitor.
        trainer: arguments of Lightning's Trainer.

    Returns:
        The run, as `lightning_landscape.load` reads it.
    """
    if (folder / "landscape").is_dir():
        run = load(folder)
        if run.summary is not None and run.summary["run"]["complete"]:
            print(f"  {folder} is there already")
            return run
        print(f"  {folder} was stopped before its end: it is trained again")
        shutil.rmtree(folder)
    pl.seed_everything(seed, verbose=False)
    settings: dict[str, Any] = {"report": Report(images=None), **(monitor or {})}
    fit = pl.Trainer(
        **{
            "logger": TensorBoardLogger(folder.parent, name="", version=folder.name),
            "log_every_n_steps": 20,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "callbacks": [LandscapeMonitor(**settings), *callbacks],
            **trainer,
        }
    )
    fit.fit(module(), data())
    return load(folder)


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of the paper, or a question of ours, compared with the runs."""

    finding: str
    """In a few words"""
    verdict: Literal["seen", "not seen", "needs --full"]
    numbers: str
    """What was measured"""


def seen(holds: bool | None) -> Literal["seen", "not seen", "needs --full"]:
    """Return a verdict; ``holds`` is None if this setting cannot decide."""
    return "needs --full" if holds is None else "seen" if holds else "not seen"


def conclude(
    name: str, chosen: Options, rows: Sequence[Mapping[str, Any]], findings: Sequence[Finding]
) -> None:
    """Write the table of an experiment; write and print its findings.

    Args:
        name: name of the experiment.
        chosen: options of the experiment.
        rows: rows of the table, mappings with the same keys.
        findings: findings in reading order.
    """
    chosen.out.mkdir(parents=True, exist_ok=True)
    table = chosen.out / f"{name}.csv"
    _write(table, rows)
    _write(
        chosen.out / "findings.csv",
        [{"finding": f.finding, "verdict": f.verdict, "numbers": f.numbers} for f in findings],
    )
    print(f"\nFindings ({name}, {chosen.setting} setting)")
    for found in findings:
        print(f"  {found.verdict:13s} {found.finding}\n                {found.numbers}")
    print(f"\n  table     {table}\n  compare   lightning-landscape compare {chosen.out}")


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
