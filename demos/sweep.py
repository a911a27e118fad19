"""Common parts of experiments with several values of one hyper-parameter: constants, pictures."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_landscape import Store
from lightning_landscape.reporting.compare import RATES, Comparison, Group, compare, pool
from lightning_landscape.reporting.compare_figure import COLOURS, LINES, MARKERS
from lightning_landscape.reporting.grouping import key_of
from lightning_landscape.run import Run

if __package__:
    from demos.experiment import Finding, Options, seen
else:
    from experiment import Finding, Options, seen

SLIGHT = 1e-3
"""Smaller constants count as 0: they are rounding of float32 losses and do not change a bound"""
LEVEL = 0.1
"""Numbers that differ by less than this share of the largest count as equal"""
MONITOR: dict[str, Any] = {
    "max_probes": 256,
    "live_epochs": None,
    "store": Store(save_reference=False),
}
"""Arguments of the monitor: a sweep needs only constants of whole runs, so the rest is off"""
NAMES = {
    **{f"beta at {rate:g}": f"smallest β at δ = {rate:g}" for rate in RATES},
    "alpha": "α of the pair",
    "beta": "β of the pair",
    "rate": "α − β of the pair",
}
"""Names of the numbers of a group; "the pair" is the one with the smallest β/δ"""


def add_epochs(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the length of every run."""
    parser.add_argument(
        "--epochs", type=int, help="epochs of every run, in place of the setting's own"
    )


def settled(chosen: Options, needed: str) -> Options:
    """Return the options with a separate folder for each data set and length of training.

    Args:
        chosen: the given options.
        needed: files that ``--full`` needs, for the message if ``--root`` is missing.
    """
    if chosen.full and chosen.root is None:
        raise SystemExit(
            f"found --full without --root; add --root DIR, a folder with {needed} (see "
            "demos/README.md)"
        )
    files = "-files" if chosen.root and not chosen.full else ""
    length = f"-{chosen.arguments.epochs}-epochs" if chosen.arguments.epochs else ""
    return replace(chosen, out=chosen.out.with_name(f"{chosen.out.name}{files}{length}"))


def epochs(chosen: Options, steps_of_epoch: int, steps: int, full_epochs: int) -> int:
    """Return the epochs of a run: as given, of the full setting, or for at most some steps."""
    return chosen.arguments.epochs or chosen.pick(max(1, steps // steps_of_epoch), full_epochs)


def quiet() -> None:
    """Silence Lightning's messages at the start of each run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Constants of runs that differ in one hyper-parameter."""

    parameter: str
    seeds: tuple[tuple[str, Group], ...]
    """Name of the seed and constants of its run, for every run"""
    comparison: Comparison
    """Constants that hold over all seeds"""

    @property
    def keys(self) -> list[Any]:
        """Values of the hyper-parameter, ascending."""
        return [group.key for group in self.comparison.groups]

    def values(self, name: str) -> list[float | None]:
        """Return a number of `NAMES` over all seeds, for each key."""
        return [value_of(group, name) for group in self.comparison.groups]

    def rows(self, **first: Any) -> Iterator[dict[str, Any]]:
        """Yield rows of a table: each key over all seeds, then each single run."""
        for seed, group in [*(("all", group) for group in self.comparison.groups), *self.seeds]:
            yield {
                **first,
                self.parameter: group.key,
                "seed": seed,
                "probes": group.probes,
                **{name: _short(value_of(group, name)) for name in NAMES},
                "interpolation error": _short(group.interpolation_error),
                "neighbourhood": _short(group.neighbourhood),
                "drop": _short(group.drop),
                "neighbourhood / drop": _short(group.informativeness),
                "note": group.reason or "",
            }


def sweep(runs: Sequence[Run], parameter: str) -> Sweep:
    """Pool the probes of all runs with the same value of a hyper-parameter.

    Args:
        runs: each in a folder named after its seed.
        parameter: name of the hyper-parameter, as `compare` takes it.
    """
    alone = []
    for run in runs:
        key, name = key_of(run, parameter), run.path.parent.name
        assert key is not None, f"{run.path} does not know its {parameter}"
        alone.append((name, pool(key, {name: run})))
    return Sweep(parameter.removeprefix("hparams."), tuple(alone), compare(runs, parameter))


def value_of(group: Group, name: str) -> float | None:
    """Return a number of `NAMES` of a group; None if it has none."""
    if name.startswith("beta at "):
        return group.beta_min[[f"beta at {rate:g}" for rate in RATES].index(name)]
    value: float | None = getattr(group, name)
    return value


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


# ----------------------------------------------------------------------------------------- in words


def slight(values: Sequence[float | None]) -> bool:
    """Whether values are missing or all 0 up to rounding, so that they have no trend."""
    return any(value is None or not math.isfinite(value) for value in values) or all(
        abs(value or 0) < SLIGHT for value in values
    )


def turns(values: Sequence[float | None], way: int = 1) -> bool | None:
    """Whether values first rise, then fall (way = 1), or first fall, then rise (way = −1).

    Args:
        values: values in order.
        way: 1 or −1.

    Returns:
        True if the extreme value is neither the first nor the last, and values tend to it before
        and away from it after, each by at least a tenth of the largest absolute value. None if
        fewer than three values are given, one is missing, or all are 0 up to rounding.
    """
    if len(values) < 3 or slight(values):
        return None
    known = [value or 0.0 for value in values]
    place = max(range(len(known)), key=lambda place: way * known[place])
    least = LEVEL * max(map(abs, known))
    if any(way * (known[place] - known[end]) < least for end in (0, -1)):
        return False
    return bool(tends(values[: place + 1], way) and tends(values[place:], -way))


def tendency(values: Sequence[float | None]) -> float | None:
    """Return Kendall's τ of values and their order: share of rising minus share of falling pairs.

    Example:
        >>> tendency([3.0, 2.0, 1.0, 1.0])
        -0.8333333333333334
    """
    if None in values or len(values) < 2:
        return None
    known = [value for value in values if value is not None]
    pairs = [(a < b) - (a > b) for place, a in enumerate(known) for b in known[place + 1 :]]
    return sum(pairs) / len(pairs)


def tends(values: Sequence[float | None], way: int, least: float = 0.5) -> bool | None:
    """Whether values tend to rise (way = 1) or to fall (way = −1): |τ| > 0.5 in that direction."""
    tau = tendency(values)
    return None if tau is None or slight(values) else way * tau > least


def judged(holds: bool | None, full: bool) -> Literal["seen", "not seen", "needs --full"]:
    """Return a verdict; an undecided finding of the full setting counts as not seen."""
    return seen(False if holds is None and full else holds)


def listed(keys: Sequence[Any], values: Sequence[float | None]) -> str:
    """Return values with their keys as text."""
    return ", ".join(
        f"{key}: {'none' if value is None else f'{value:.3g}'}"
        for key, value in zip(keys, values, strict=True)
    )


def course(keys: Sequence[Any], values: Sequence[float | None]) -> str:
    """Return the trend of values in words."""
    if None in values:
        return "is not known everywhere"
    known = [value for value in values if value is not None]
    if slight(known):
        return "is 0 but for rounding" if any(known) else "is 0 throughout"
    if max(known) - min(known) < LEVEL * max(map(abs, known)):
        return f"is between {min(known):.3g} and {max(known):.3g}"
    tau, up, down = tendency(values) or 0.0, turns(values, 1), turns(values, -1)
    if abs(tau) >= 0.9:
        return ("rises" if tau > 0 else "falls") + (
            " throughout" if abs(tau) == 1 else " nearly throughout"
        )
    if up:
        return f"rises up to {keys[known.index(max(known))]}, then falls"
    if down:
        return f"falls as far as {keys[known.index(min(known))]}, then rises"
    if abs(tau) <= 0.5:
        return "goes up and down"
    return ("rises" if tau > 0 else "falls") + ", with exceptions"


def turning(found: Sweep, name: str, way: int, what: str, full: bool) -> Finding:
    """Compare a number with "first rises, then falls", or the opposite."""
    first, then = ("rises", "falls") if way > 0 else ("falls", "rises")
    values = found.values(name)
    return Finding(
        f"{what}: first {first}, then {then}",
        judged(turns(values, way), full),
        listed(found.keys, values),
    )


# ------------------------------------------------------------------------------------- as a picture


def draw(
    path: Path,
    title: str,
    xlabel: str,
    panels: Mapping[str, Mapping[str, tuple[Sweep, str]]],
    unit: str = "",
) -> None:
    """Draw numbers of sweeps over their keys: lines over all seeds, faint dots for single seeds.

    Args:
        path: path of the picture.
        title: title of the picture.
        xlabel: name of the hyper-parameter.
        panels: curves by panel; the key is the label of the vertical axis. A curve has a name, a
            sweep and the name of a number in `NAMES`.
        unit: explanation of lines and dots, written below the title.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(title, fontsize=13)
    for axes, (ylabel, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for place, (label, (found, name)) in enumerate(curves.items()):
            colour, marker, line = (
                style[place % len(style)] for style in (COLOURS, MARKERS, LINES)
            )
            axes.plot(
                found.keys,
                _drawn(found.values(name)),
                color=colour,
                marker=marker,
                linestyle=line,
                label=label,
            )
            single = [value_of(group, name) for _, group in found.seeds]
            places = [group.key for _, group in found.seeds]
            axes.plot(
                places,
                _drawn(single),
                color=colour,
                marker=marker,
                linestyle="none",
                alpha=0.6,
                fillstyle="none",
            )
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _scale(
            axes,
            next(iter(curves.values()))[0].keys,
            [v for found, name in curves.values() for v in found.values(name)],
        )
        if len(curves) > 1:
            axes.legend(fontsize="small")
    figure.text(0.995, 0.005, unit, ha="right", va="bottom", fontsize=8, color="#666666")
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))  # type: ignore[union-attr]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"  picture   {path}")


def _drawn(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _scale(axes: Axes, keys: Sequence[Any], values: Sequence[float | None]) -> None:
    """Choose axes on which both small and large values are visible."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(keys, [f"{key:g}" for key in keys])
    axes.spines[["top", "right"]].set_visible(False)
    sizes = [abs(value) for value in values if value and abs(value) >= SLIGHT]
    if not sizes:
        axes.set(ylim=(-1.0, 1.0), yticks=[0.0])
        axes.text(
            0.5,
            0.55,
            f"all below {SLIGHT:g}",
            transform=axes.transAxes,
            ha="center",
            color="#666666",
        )
    elif max(sizes) > 30 * min(sizes):
        linear = max(min(sizes), 1e-3 * max(sizes))
        axes.set_yscale("symlog", linthresh=linear)
        if all((value or 0.0) >= 0 for value in values):
            axes.set_ylim(-0.3 * linear, 2 * max(sizes))
    axes.axhline(0, color="#666666", linewidth=0.6)
