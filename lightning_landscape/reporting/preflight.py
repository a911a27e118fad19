"""The message at the start of training: measured quantities, cost, theorems that may apply."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_landscape.bounds import THEOREMS
from lightning_landscape.bounds.theorem import OtherOptimizer
from lightning_landscape.reporting.certificates import own_theorem
from lightning_landscape.reporting.conditions import metrics

WIDTH = 118
_INDENT = "  "


@dataclass(frozen=True, slots=True)
class Plan:
    """The facts about a monitored run that are known before its first step."""

    run: Mapping[str, Any]
    """The ``run`` part of the summary, as far as it is known"""
    steps: float
    """Number of optimizer steps; ``inf`` if unknown"""
    every_n_steps: int
    max_probes: int
    max_overhead: float | None
    module_parameters: int
    """Number of all parameters of the module, with or without the optimizer"""
    probe_bytes: int
    """Stored size of the parameters and the gradient of one probe"""
    store_bytes: int
    """Largest size of the store"""
    folder: str | None
    """Folder of the results; None if nothing is written"""
    keep_store: bool
    evaluations: int
    """Loss evaluations at the end of training, for the expected number of probes"""
    base_bytes: int = 0
    """By how much the first probe, which is stored natively, exceeds another one"""
    beside: Sequence[str] = ()
    """What the extras measure at each probe"""
    of_samples: bool = False
    """Whether the loss is the mean over the losses of single samples"""


def expected_probes(steps: float, every_n_steps: int, max_probes: int) -> tuple[int, int] | None:
    """Return the number of kept probes and their stride, by the rule of the schedule.

    Returns:
        Number and stride; None if the number of steps is unknown.

    Example:
        >>> expected_probes(1000, 10, 256), expected_probes(100_000, 10, 256)
        ((100, 10), (157, 640))
        >>> expected_probes(math.inf, 10, 256) is None
        True
    """
    if math.isinf(steps):
        return None
    stride = every_n_steps
    # A full table drops every second probe, and the stride doubles.
    while (count := math.ceil(steps / stride)) > max_probes:
        stride *= 2
    return max(count, 1), stride


def preflight(plan: Plan) -> str:
    """Return the message: f_i, x, x_p, probes, disk, cost at the end, conditions and theorems."""
    lines = [
        _loss(plan.run["loss"], plan.run["world_size"], of_samples=plan.of_samples),
        _parameters(plan),
        _reference(plan.run["reference"]),
        _probes(plan),
        _disk(plan),
    ]
    lines += [
        _end(plan),
        f"conditions: α-β, {', '.join(map(_words, metrics()))}",
        *_theorems(plan.run),
    ]
    wrapper = textwrap.TextWrapper(WIDTH, initial_indent=_INDENT, subsequent_indent=2 * _INDENT)
    # Paths stay whole, so that they can be copied.
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    wrapped = map(wrapper.fill, lines)
    return "\n".join(["LandscapeMonitor is going to measure:", *wrapped])


def _words(key: str) -> str:
    return key.replace("polyak_lojasiewicz", "Polyak-Łojasiewicz").replace("_", " ")


def _loss(loss: Mapping[str, Any], processes: int, *, of_samples: bool) -> str:
    """Return the line on f_i and on everything it depends on besides the parameters."""
    mode = "training" if loss["training_mode"] else "evaluation"
    what = "the mean of the sample losses of" if of_samples else "the loss of"
    said = f"f_i: {what} {loss['source']} in {mode} mode on a mini-batch with its augmentation"
    if processes > 1:
        said += f", averaged over {processes} processes"
    said += f"; f_i ≥ {loss['infimum']:g} (loss_infimum)"
    if loss["dropout"]:
        said += "; dropout: each step draws a new mask, and replays draw the same mask again"
    if loss["batch_norm"]:
        said += "; BatchNorm uses batch statistics, so f_i depends on the whole mini-batch"
    return said


def _parameters(plan: Plan) -> str:
    measured, others = plan.run["parameters"], plan.module_parameters - plan.run["parameters"]
    said = f"x: the {measured:,} parameters of {plan.run['optimizer']['class']}"
    return said + (
        f"; {others:,} other parameters of the module are not measured"
        if others > 0
        else ", which are all of the module"
    )


def _reference(reference: Mapping[str, Any]) -> str:
    if reference["kind"] == "final":
        return "x_p: the last iterate of this run; losses at x_p are evaluated when training ends"
    return f"x_p: {reference['path']}; every curve is logged during training"


def _probes(plan: Plan) -> str:
    expected = expected_probes(plan.steps, plan.every_n_steps, plan.max_probes)
    if expected is None:
        said = (
            f"probes: every {_th(plan.every_n_steps)} step at first, at most {plan.max_probes} in "
            "all; the number of steps is not known"
        )
    else:
        count, stride = expected
        said = f"probes: about {count} in {plan.steps:,.0f} steps, {stride} steps apart at the end"
    if plan.max_overhead is not None:
        said += (
            f"; fewer if measuring would take more than {100 * plan.max_overhead:.3g} % of the "
            "time (max_overhead)"
        )
    return said


def _th(number: int) -> str:
    if number == 1:
        return "single"
    ending = (
        "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number}{ending}"


def _disk(plan: Plan) -> str:
    """Return the line on the stored data: contents, size, lifetime and folder."""
    where = (
        "a temporary folder, removed at the end (fast_dev_run)"
        if plan.folder is None
        else plan.folder
    )
    if plan.run["reference"]["kind"] != "final":
        what = f"one of your mini-batches and x_0, {_size(plan.probe_bytes // 2)}"
    else:
        expected = expected_probes(plan.steps, plan.every_n_steps, plan.max_probes)
        count = expected[0] if expected else plan.max_probes
        # The size of mini-batches is unknown before the first one, so this is a lower bound.
        total = min(count * plan.probe_bytes + plan.base_bytes, plan.store_bytes)
        once = f", {_size(plan.base_bytes)} more for x_0" if plan.base_bytes else ""
        parts = f"{_size(plan.probe_bytes)} per probe{once}, and your mini-batches"
        what = f"{parts}; {_size(total)} or more, at most {_size(plan.store_bytes)}"
    fate = "kept (Store(keep=True))" if plan.keep_store else "removed at the end"
    return f"disk: {what}{f'; {fate}' if plan.folder else ''}; in {where}"


def _size(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def _end(plan: Plan) -> str:
    """Say when losses are evaluated, and how often."""
    beside = " and ".join(plan.beside)
    if plan.run["reference"]["kind"] != "final":
        said = "evaluation: after the step of each probe, which calls training_step again"
        return f"{said}; also {beside} a probe" if beside else said
    about = "up to" if math.isinf(plan.steps) else "about"
    said = f"at the end: {about} {plan.evaluations} forward passes, at x_p and x_0"
    return f"{said}, and {beside} a probe (a backward pass counts as two)" if beside else said


def _theorems(run: Mapping[str, Any]) -> list[str]:
    """Return the lines on theorems that may apply and on those for this optimizer that cannot."""
    foreseen = {theorem.name: theorem.foreseen(run) for theorem in THEOREMS}
    titles = {theorem.name: theorem.title for theorem in THEOREMS}
    possible = [titles[name] for name, reason in foreseen.items() if reason is None]
    groups: dict[str, list[str]] = {}
    for name, reason in foreseen.items():
        # It is no news that a theorem on another optimizer does not apply.
        if reason is not None and not isinstance(reason, OtherOptimizer):
            groups.setdefault(str(reason), []).append(titles[name])
    if not possible:
        reasons = [*groups] or [str(foreseen[own_theorem(dict(run))])]
        return [f"theory: no theorem can apply: {'; '.join(reasons)}"]
    lines = [f"theory that may apply: {', '.join(_bases(possible))}"]
    if groups:
        excluded = [f"{_joined(_bases(names))} ({reason})" for reason, names in groups.items()]
        lines.append(f"theory that cannot apply: {'; '.join(excluded)}")
    return lines


def _bases(titles: list[str]) -> list[str]:
    """Return the titles without the sharper version of a theorem that is in the list itself."""
    return [
        title
        for title in titles
        if title.removesuffix(", sharper") == title or title.removesuffix(", sharper") not in titles
    ]


def _joined(titles: list[str]) -> str:
    return " and ".join([", ".join(titles[:-1]), titles[-1]] if len(titles) > 1 else titles)
