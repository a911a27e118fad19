"""``summary.json`` as titled tables of text, for terminals, pages, papers and TensorBoard.

A summary may lack entries: an earlier version wrote it, or the file is damaged. The cell of a
missing entry says so.
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
    """A titled table. Every row has one cell a header."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below the table."""

    @property
    def columns(self) -> list[tuple[str, ...]]:
        """The columns, each with its header."""
        return list(zip(self.headers, *self.rows, strict=True))

    @property
    def sides(self) -> list[Literal["left", "right"]]:
        """The side of each column's alignment: the right for numbers, the left for text."""
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
            escape: function that is called on the text of each cell.
            widths: largest number of characters of each column; None for no limit.
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
    """Return the measurement and the constants of the α-β-condition."""
    run, found = at(summary, "run") or {}, at(summary, "conditions", "alpha_beta") or {}
    angle = at(summary, "conditions", "gradient_angle") or {}
    drop, drop_error = at(run, "drop", "value"), at(run, "drop", "standard_error")
    sigma, sigma_error = found.get("interpolation_error"), found.get("interpolation_error_se")
    rows = [
        ("probes", "", _probes(run)),
        ("reference", "x_p", _reference(run)),
        ("replays of recorded losses", "", _fidelity(run)),
        ("alpha", "α", shown(found.get("alpha"))),
        ("beta", "β", shown(found.get("beta"))),
        ("rate", "δ = α − β", shown(found.get("rate"))),
        ("interpolation error", "σ²", with_error(sigma, sigma_error)),
        ("neighbourhood", "(β/δ) σ²", _neighbourhood(found)),
        ("drop achieved by training", "f(x_0) − f(x_p)", with_error(drop, drop_error)),
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
    """Return the constant of every other condition, with the probes that attain or violate it."""
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
    """Return the bound of every theorem as the sum of its terms.

    A note gives the reason if a bound is an estimate, or if there is no bound.
    """
    bounds = at(summary, "bounds") or {}
    reasons: dict[str, int] = {}
    rows = []
    for key, bound in sorted(bounds.items(), key=lambda item: not item[1].get("applies")):
        terms = [shown(at(bound, "terms", term)) if bound.get("applies") else "" for term in TERMS]
        worth = bound.get("informativeness")
        status = str(bound.get("status") or NONE).replace("_", " ")
        reason = str(bound.get("reason") or "").removeprefix("estimate: ")
        note = f"({reasons.setdefault(reason, len(reasons) + 1)})" if reason else ""
        ratio = "" if worth is None else f"{worth:.2g}"
        rows.append((key, shown(bound.get("value")), *terms, ratio, status, note))
    headers = ("theorem", "bound", "= distance", "+ noise", "+ β σ²", "/ drop", "status", "why")
    notes = [f"({number}) {reason}." for reason, number in reasons.items()]
    force = summary.get("bound_in_force")
    best = (
        f"{force} has the smallest bound on the best iterate."
        if force
        else "No theorem bounds the best iterate."
    )
    title = "Theorems: bound = distance of the start + noise of the step size + neighbourhood"
    return TextTable(title, headers, tuple(rows), (best, *notes) if rows else ())


# ------------------------------------------------------------------------------------------ cells

SYMBOLS = {"theta": "θ", "mu": "μ", "cosine": "cos", "share": "share", "L": "L"}


def _are_numbers(cells: Sequence[str]) -> bool:
    """Return whether a column holds numbers. Some of its cells may be empty or "none"."""
    return not {*cells} <= {"", NONE} and all(map(_may_be_number, cells))


def _may_be_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell in ("", NONE)
    return True


def at(entry: Any, *keys: str) -> Any:
    """Return the value under nested keys; None if a key is missing."""
    for key in keys:
        if not isinstance(entry, Mapping):
            return None
        entry = entry.get(key)
    return entry


def shown(value: float | None) -> str:
    """Return a number with four digits, or "none"."""
    return NONE if value is None else f"{value:.4g}"


def with_error(value: float | None, error: float | None) -> str:
    """Return a number with its standard error, if there is one."""
    return shown(value) if value is None or error is None else f"{value:.4g} ± {error:.2g}"


def _probes(run: Mapping[str, Any]) -> str:
    text = f"{_count(run.get('probes'))} over {_count(run.get('steps'))} steps"
    return f"{text}, every {run['stride']}" if run.get("stride") is not None else text


def _count(value: Any) -> str:
    return "?" if value is None else str(value)


def _reference(run: Mapping[str, Any]) -> str:
    if at(run, "reference", "kind") == "final":
        return "the run's last iterate"
    return str(at(run, "reference", "path") or "not known")


def _fidelity(run: Mapping[str, Any]) -> str:
    exact, size = at(run, "fidelity", "exact"), at(run, "fidelity", "max_abs")
    if exact is None:
        return "not checked"
    if exact:
        return "exact"
    return f"off by {'a number that is not finite' if size is None else f'{size:.2g}'}"


def _neighbourhood(found: Mapping[str, Any]) -> str:
    approached = found.get("attained") is False and found.get("neighbourhood") is not None
    return shown(found.get("neighbourhood")) + (", approached as δ → ∞" if approached else "")


def _informativeness(found: Mapping[str, Any], drop: float | None) -> str:
    if found.get("informativeness") is None:
        return "vacuous, no drop" if drop is not None and drop <= 0 else NONE
    judgement = "informative" if found.get("informative") else "vacuous"
    return f"{found['informativeness']:.2g}, {judgement}"


def _coverage(share: str, pair: Mapping[str, Any]) -> tuple[str, str, str]:
    alpha, beta, size = (shown(pair.get(key)) for key in ("alpha", "beta", "neighbourhood"))
    name = f"best pair at {100 * float(share):.0f} % of the probes"
    return name, "α, β", f"α = {alpha}, β = {beta}, neighbourhood {size}"


def _violations(found: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    count = found.get("violated")
    return NONE if count is None else f"{count} of {_count(run.get('probes'))}"


def _angle(angle: Mapping[str, Any]) -> str:
    if angle.get("value") is None:
        return NONE
    median = at(angle, "quantiles", "0.5")
    rest = "" if median is None else f", {median:.3f} median"
    return f"{angle['value']:.3f} smallest{rest}"


def _overhead(run: Mapping[str, Any]) -> str:
    keys = ("training", "finalisation_s", "total")
    share, seconds, total = (at(run, "overhead", key) for key in keys)
    if share is None or seconds is None:
        return "not known"
    rest = "" if total is None else f": {100 * total:.1f} % in all"
    return f"{100 * share:.1f} %, then {seconds:.1f} s of evaluation{rest}"


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
    steps = f"at step {first}" if first == last else f"in steps {first} to {last}"
    return f"{entry['violated']}, {steps}"
