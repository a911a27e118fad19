"""``summary.json`` as titled tables of text: what a terminal, a page, a paper or TensorBoard's text tab shows.

Whatever a summary does not hold, because an earlier version wrote it or a file is damaged, is a cell that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tabulate import tabulate

from lightning_landscape.reporting.certificates import TERMS

NONE = "none"


@dataclass(frozen=True, slots=True)
class TextTable:
    """A titled table; every row has as many cells as there are headers."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below the table"""

    @property
    def columns(self) -> list[tuple[str, ...]]:
        """The columns, each with its header."""
        return list(zip(self.headers, *self.rows, strict=True))

    @property
    def sides(self) -> list[Literal["left", "right"]]:
        """The side at which each column is aligned: the right for numbers, the left for text."""
        return ["right" if _are_numbers(cells) else "left" for _, *cells in self.columns]

    def grid(
        self,
        form: str,
        escape: Callable[[str], str] = str,
        widths: Sequence[int | None] | None = None,
    ) -> str:
        """Return the headers and rows as text, without title and notes.

        Args:
            form: ``tablefmt`` of tabulate, such as "simple" or "pipe".
            escape: Called on the text of each cell.
            widths: Characters of each column at most; None for as many as it needs.
        """
        headers, *rows = (tuple(map(escape, cells)) for cells in (self.headers, *self.rows))
        text: str = tabulate(
            rows,
            headers,
            tablefmt=form,
            disable_numparse=True,
            colalign=self.sides if rows else None,
            maxcolwidths=widths if rows else None,
        )
        return text


def of_summary(summary: Mapping[str, Any]) -> list[TextTable]:
    """Return all tables of one run.

    Args:
        summary: the content of ``summary.json``.
    """
    return [findings(summary), conditions(summary), theorems(summary)]


def findings(summary: Mapping[str, Any]) -> TextTable:
    """Return what was measured, and what the α-β-condition says of it."""
    run, found = at(summary, "run") or {}, at(summary, "conditions", "alpha_beta") or {}
    angle = at(summary, "conditions", "gradient_angle") or {}
    drop, sigma, error = (
        at(run, "drop", "value"),
        found.get("interpolation_error"),
        found.get("interpolation_error_se"),
    )
    rows = [
        ("probes", "", _probes(run)),
        ("reference", "x_p", _reference(run)),
        ("replays of recorded losses", "", _fidelity(run)),
        ("alpha", "α", shown(found.get("alpha"))),
        ("beta", "β", shown(found.get("beta"))),
        ("rate", "δ = α − β", shown(found.get("rate"))),
        ("interpolation error", "σ²", with_error(sigma, error)),
        ("neighbourhood", "(β/δ) σ²", _neighbourhood(found)),
        (
            "drop achieved by training",
            "f(x_0) − f(x_p)",
            with_error(drop, at(run, "drop", "standard_error")),
        ),
        ("informativeness", "neighbourhood / drop", _informativeness(found, drop)),
        *(_coverage(share, pair) for share, pair in (found.get("coverage") or {}).items()),
        ("probes that violate the pair", "", _violations(found, run)),
        ("cosine of gradient and x − x_p", "", _angle(angle)),
        ("overhead while training", "", _overhead(run)),
    ]
    reason = found.get("reason")
    return TextTable(
        "Findings: the α-β-condition along this run",
        ("quantity", "symbol", "value"),
        tuple(rows),
        (reason,) if reason else (),
    )


def conditions(summary: Mapping[str, Any]) -> TextTable:
    """Return the constant of every other condition, where it is attained, and how often it is violated."""
    found = at(summary, "conditions") or {}
    rows = [
        (
            key,
            SYMBOLS.get(str(entry.get("constant")), str(entry.get("constant"))),
            shown(entry.get("value")),
            _where(entry),
            _violated(entry),
        )
        for key, entry in found.items()
        if key != "alpha_beta"
    ]
    title = "Other conditions: the constant that holds at every probe"
    return TextTable(title, ("condition", "constant", "value", "attained", "violated"), tuple(rows))


def theorems(summary: Mapping[str, Any]) -> TextTable:
    """Return the bound of every theorem as the sum of its parts; why it is an estimate, or none, is in the notes."""
    bounds = at(summary, "bounds") or {}
    reasons: dict[str, int] = {}
    rows = []
    for key, bound in sorted(bounds.items(), key=lambda item: not item[1].get("applies")):
        reason = str(bound.get("reason") or "").removeprefix("estimate: ")
        rows.append(
            (
                key,
                shown(bound.get("value")),
                *(
                    shown(at(bound, "terms", term)) if bound.get("applies") else ""
                    for term in TERMS
                ),
                "" if bound.get("informativeness") is None else f"{bound['informativeness']:.2g}",
                str(bound.get("status") or NONE).replace("_", " "),
                f"({reasons.setdefault(reason, len(reasons) + 1)})" if reason else "",
            )
        )
    headers = ("theorem", "bound", "= distance", "+ noise", "+ β σ²", "/ drop", "status", "why")
    notes = [f"({number}) {reason}." for reason, number in reasons.items()]
    force = summary.get("bound_in_force")
    said = (
        f"The smallest bound on the best iterate is that of {force}."
        if force
        else "No bound is in force."
    )
    return TextTable(
        "Theorems: bound = distance of the start + noise of the step size + neighbourhood",
        headers,
        tuple(rows),
        (said, *notes) if rows else (),
    )


# ------------------------------------------------------------------------------------------------------------- cells

SYMBOLS = {"theta": "θ", "mu": "μ", "cosine": "cos", "share": "share", "L": "L"}


def _are_numbers(cells: Sequence[str]) -> bool:
    """Return whether cells hold numbers, at least one; a cell may also be empty or "none"."""
    return not {*cells} <= {"", NONE} and all(map(_may_be_number, cells))


def _may_be_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell in ("", NONE)
    return True


def at(entry: Any, *keys: str) -> Any:
    """Return what is under nested keys; None where any of them is missing."""
    for key in keys:
        if not isinstance(entry, Mapping):
            return None
        entry = entry.get(key)
    return entry


def shown(value: float | None) -> str:
    """Return a number with four digits, or that there is none."""
    return NONE if value is None else f"{value:.4g}"


def with_error(value: float | None, error: float | None) -> str:
    """Return a number with its standard error, where it has one."""
    return shown(value) if value is None or error is None else f"{value:.4g} ± {error:.2g}"


def _probes(run: Mapping[str, Any]) -> str:
    said = f"{_count(run.get('probes'))} over {_count(run.get('steps'))} steps"
    return f"{said}, every {run['stride']}" if run.get("stride") is not None else said


def _count(value: Any) -> str:
    return "an unknown number of" if value is None else str(value)


def _reference(run: Mapping[str, Any]) -> str:
    if at(run, "reference", "kind") == "final":
        return "the run's last iterate"
    return str(at(run, "reference", "path") or "not known")


def _fidelity(run: Mapping[str, Any]) -> str:
    exact, size = at(run, "fidelity", "exact"), at(run, "fidelity", "max_abs")
    if exact is None:
        return "not checked"
    return (
        "exact"
        if exact
        else f"off by {'a number that is not finite' if size is None else f'{size:.2g}'}"
    )


def _neighbourhood(found: Mapping[str, Any]) -> str:
    approached = found.get("attained") is False and found.get("neighbourhood") is not None
    return shown(found.get("neighbourhood")) + (", approached as δ → ∞" if approached else "")


def _informativeness(found: Mapping[str, Any], drop: float | None) -> str:
    if found.get("informativeness") is None:
        return "vacuous, no drop" if drop is not None and drop <= 0 else NONE
    return f"{found['informativeness']:.2g}, {'informative' if found.get('informative') else 'vacuous'}"


def _coverage(share: str, pair: Mapping[str, Any]) -> tuple[str, str, str]:
    values = "α = {}, β = {}, neighbourhood {}".format(
        *(shown(pair.get(key)) for key in ("alpha", "beta", "neighbourhood"))
    )
    return f"best pair at {float(share):.0%} of the probes", "α, β", values


def _violations(found: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    return (
        NONE
        if found.get("violated") is None
        else f"{found['violated']} of {_count(run.get('probes'))}"
    )


def _angle(angle: Mapping[str, Any]) -> str:
    if angle.get("value") is None:
        return NONE
    median = at(angle, "quantiles", "0.5")
    return f"{angle['value']:.3f} smallest" + (
        f", {median:.3f} median" if median is not None else ""
    )


def _overhead(run: Mapping[str, Any]) -> str:
    share, seconds, total = (
        at(run, "overhead", key) for key in ("training", "finalisation_s", "total")
    )
    if share is None or seconds is None:
        return "not known"
    return f"{share:.1%}, then {seconds:.1f} s of evaluation" + (
        f": {total:.1%} in all" if total is not None else ""
    )


def _where(entry: Mapping[str, Any]) -> str:
    if entry.get("step") is not None:
        return f"step {entry['step']}"
    return str(entry.get("reason") or "at no single probe")


def _violated(entry: Mapping[str, Any]) -> str:
    if entry.get("violated") is None:
        return NONE
    between = entry.get("violated_between")
    if not between:
        return str(entry["violated"])
    first, last = between
    return f"{entry['violated']}, " + (
        f"at step {first}" if first == last else f"in steps {first} to {last}"
    )
