"""What experiments share that train one network at several values of a hyper-parameter: constants, words, a picture."""

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
from lightning_landscape.loading import Run
from lightning_landscape.reporting.compare import RATES, Comparison, Group, compare, pool
from lightning_landscape.reporting.compare_figure import COLOURS, LINES, MARKERS
from lightning_landscape.reporting.grouping import key_of

if __package__:
    from demos.experiment import Finding, Options, seen
else:
    from experiment import Finding, Options, seen

SLIGHT = 1e-3
"""Constants that are all smaller are called 0: of losses in single precision they are rounding, and they would move no bound"""
LEVEL = 0.1
"""Numbers that differ by less than this share of the largest are called level"""
MONITOR: dict[str, Any] = {"live_epochs": None, "store": Store(save_reference=False)}
"""Constants of whole runs are all that a sweep needs: the rest of what the monitor can do would cost time and disk"""
NAMES = {
    **{f"beta at {rate:g}": f"smallest β at δ = {rate:g}" for rate in RATES},
    "alpha": "α of the pair",
    "beta": "β of the pair",
    "rate": "α − β of the pair",
}
"""Numbers of a group, and how they are called; the pair is the one with the smallest β/δ"""


def add_epochs(parser: argparse.ArgumentParser) -> None:
    """Let the command line say how long every run trains."""
    parser.add_argument(
        "--epochs", type=int, help="epochs of every run, in place of the setting's own"
    )


def settled(chosen: Options, needed: str) -> Options:
    """Return the options with a folder of its own for every set of images and length of training: runs there are read back.

    Args:
        chosen: as given.
        needed: the files that ``--full`` needs, for the message if there is no folder for them.
    """
    if chosen.full and chosen.root is None:
        raise SystemExit(
            f"found --full without --root; add --root DIR, a folder with {needed} (see demos/README.md)"
        )
    files = "-files" if chosen.root and not chosen.full else ""
    length = f"-{chosen.arguments.epochs}-epochs" if chosen.arguments.epochs else ""
    return replace(chosen, out=chosen.out.with_name(f"{chosen.out.name}{files}{length}"))


def epochs(chosen: Options, steps_of_epoch: int, steps: int, full_epochs: int) -> int:
    """Return the epochs of a run: as told, or of the full setting, or as many as make no more than a number of steps."""
    return chosen.arguments.epochs or chosen.pick(max(1, steps // steps_of_epoch), full_epochs)


def quiet() -> None:
    """Keep Lightning from introducing each of many runs."""
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
        """Return a number of `NAMES` over all seeds, by key."""
        return [value_of(group, name) for group in self.comparison.groups]

    def rows(self, **first: Any) -> Iterator[dict[str, Any]]:
        """Yield rows of a table: each key over all seeds, then each run alone."""
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
    """Pool the runs of every value of a hyper-parameter, exactly.

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
    """Return a number of `NAMES` of a group; None where there is none."""
    if name.startswith("beta at "):
        return group.beta_min[[f"beta at {rate:g}" for rate in RATES].index(name)]
    value: float | None = getattr(group, name)
    return value


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


# -------------------------------------------------------------------------------------------------------------- in words


def slight(values: Sequence[float | None]) -> bool:
    """Whether values are missing or all as good as 0, so that they neither rise nor fall."""
    return any(value is None or not math.isfinite(value) for value in values) or all(
        abs(value or 0) < SLIGHT for value in values
    )


def turns(values: Sequence[float | None], way: int = 1) -> bool | None:
    """Whether values rise first and fall then (way = 1), or fall first and rise then (way = −1), from end to end.

    Args:
        values: in order.
        way: 1 or −1.

    Returns:
        True if the values tend one way up to the extreme one, which is neither first nor last, and the other way from it, each
        by a tenth of the largest size at least; None
        if that cannot be told: a value is missing, there are fewer than three, or all are 0 but for rounding.
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
    """Return Kendall's τ of values with their order: the share of pairs that rise minus that of pairs that fall.

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
    """Whether values tend to rise (way = 1) or to fall (way = −1): τ above 0.5, which one of four that differs cannot make."""
    tau = tendency(values)
    return None if tau is None or slight(values) else way * tau > least


def judged(holds: bool | None, full: bool) -> Literal["seen", "not seen", "needs --full"]:
    """Return a verdict; what the full setting cannot tell is not seen."""
    return seen(False if holds is None and full else holds)


def listed(keys: Sequence[Any], values: Sequence[float | None]) -> str:
    """Return values with their keys, to be read."""
    return ", ".join(
        f"{key}: {'none' if value is None else f'{value:.3g}'}"
        for key, value in zip(keys, values, strict=True)
    )


def course(keys: Sequence[Any], values: Sequence[float | None]) -> str:
    """Say how values go, in plain words."""
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
    """Hold a number against 'rises first, falls then', or the opposite."""
    first, then = ("rises", "falls") if way > 0 else ("falls", "rises")
    values = found.values(name)
    return Finding(
        f"{what}: first {first}, then {then}",
        judged(turns(values, way), full),
        listed(found.keys, values),
    )


# -------------------------------------------------------------------------------------------------------------- as a picture


def draw(
    path: Path,
    title: str,
    xlabel: str,
    panels: Mapping[str, Mapping[str, tuple[Sweep, str]]],
    unit: str = "",
) -> None:
    """Draw numbers of sweeps over their keys: lines over all seeds, faint dots for each seed alone.

    Args:
        path: of the picture.
        title: what is to be seen.
        xlabel: name of the hyper-parameter.
        panels: by what is on their vertical axis: curves by their name, each a sweep and the name of a number in `NAMES`.
        unit: what lines and dots are, written below the title.
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
    """Choose axes on which small and large values show."""
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
