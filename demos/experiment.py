"""What the experiments share: their command line, one measured training run, findings, tables of results."""

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

from lightning_landscape import LandscapeMonitor, load
from lightning_landscape.loading import Run

RESULTS = Path(__file__).parent / "results"
"""Small tables and pictures of larger runs, which are kept with the code"""


Setting = Literal["small", "larger", "full"]


@dataclass(frozen=True, slots=True)
class Options:
    """What every experiment can be told on its command line."""

    setting: Setting
    """What two cores do in a minute or two; what they do in half an hour; the paper's sizes, seeds and epochs"""
    out: Path
    """Folder of the experiment's runs, table and pictures"""
    seeds: tuple[int, ...]
    root: Path | None
    """Folder with the files of a data set"""
    arguments: argparse.Namespace
    """All of the command line, those arguments too that one experiment alone has"""

    @property
    def full(self) -> bool:
        """Whether sizes, seeds and epochs are the paper's."""
        return self.setting == "full"

    def pick(self, small: Any, full: Any, larger: Any = None) -> Any:
        """Return the value of the setting; the larger one has the small one's where there is no other."""
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
        name: of the experiment, and of its folder under ``--out``.
        description: what ``--help`` says: the file's docstring.
        small_seeds: number of seeds of the small setting.
        full_seeds: number of seeds of the full setting.
        larger_seeds: number of seeds of a setting in between, ``--larger``; None if the experiment has none.
        full: what the full setting has, for ``--help``.
        add: adds arguments that this experiment alone has.
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
    """Train and measure one run, or read it back where it is there and complete: what was stopped goes on with the next one.

    Args:
        folder: where the run goes; its last part is the run's name, as "seed-0".
        module: makes the module; called when everything is seeded.
        data: makes the training loader, or a datamodule.
        seed: of the module, the data's order, and all else that is random.
        monitor: arguments of `LandscapeMonitor`.
        callbacks: others, after the monitor.
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
    settings: dict[str, Any] = {"figures": False, **(monitor or {})}
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
    """One finding, of the paper or of what it is asked here, held against the runs."""

    finding: str
    """In a few words"""
    verdict: Literal["seen", "not seen", "needs --full"]
    numbers: str
    """What was measured"""


def seen(holds: bool | None) -> Literal["seen", "not seen", "needs --full"]:
    """Return a verdict; None where this setting cannot tell."""
    return "needs --full" if holds is None else "seen" if holds else "not seen"


def conclude(
    name: str, chosen: Options, rows: Sequence[Mapping[str, Any]], findings: Sequence[Finding]
) -> None:
    """Write the table of an experiment, and its findings; print the latter.

    Args:
        name: of the experiment.
        chosen: its options.
        rows: one mapping a row, all with the same keys.
        findings: in the order in which they are to be read.
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
