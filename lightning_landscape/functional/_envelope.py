"""The exact feasible set of the α-β-condition, in rational arithmetic.

At a probe with ``b > l`` the condition is ``β ≥ (δ(a − b) − p)/(b − l)``, a line in δ = α − β. The
smallest admissible β is the upper envelope of these lines and of zero. The envelope is convex and
piecewise linear.

Three questions depend on the sign of a difference: which line is on top, where two nearly parallel
lines cross, and whether an intercept is zero. Float64 can get such a sign wrong, so this module
computes with rationals. Its callers round each result once, at the end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import NamedTuple

from lightning_landscape.functional._fractional import RATIO, LinearFractional


class Row(NamedTuple):
    """The numbers of one probe: ``a − b``, ``b − l`` and ``p``."""

    rise: Fraction
    excess: Fraction
    inner_product: Fraction

    @property
    def line(self) -> Line:
        """The smallest β as a function of δ; defined only for ``b > l``."""
        return Line(self.rise / self.excess, -self.inner_product / self.excess)

    @property
    def impossible(self) -> bool:
        """Whether no pair holds at this row; possible only at a degenerate row, ``b = l``."""
        if self.excess > 0:
            return False
        return self.inner_product <= 0 if self.rise > 0 else self.inner_product < 0


class Line(NamedTuple):
    """``β = slope · δ + intercept``."""

    slope: Fraction
    intercept: Fraction

    def at(self, rate: Fraction) -> Fraction:
        """Return the line's β at δ = ``rate``."""
        return self.slope * rate + self.intercept


ZERO = Line(Fraction(0), Fraction(0))


def as_float(value: Fraction) -> float:
    """Round once to float64; a value beyond its range becomes infinite."""
    try:
        return float(value)
    except OverflowError:
        return inf if value > 0 else -inf


def crossing(flat: Line, steep: Line) -> Fraction:
    """Return the δ at which two lines of different slopes meet."""
    return (flat.intercept - steep.intercept) / (steep.slope - flat.slope)


def upper_envelope(lines: Iterable[Line]) -> list[Line]:
    """Return the lines that are on top somewhere in δ > 0, by increasing slope."""
    hull: list[Line] = []
    for line in sorted(set(lines)):
        if hull and hull[-1].slope == line.slope:
            # Lines are sorted by intercept within a slope: the later one is higher.
            hull.pop()
        # The last line is covered once the new one overtakes it before it overtakes its neighbor.
        while len(hull) > 1 and crossing(hull[-1], line) <= crossing(hull[-2], hull[-1]):
            hull.pop()
        hull.append(line)
    # The flattest lines may be on top for δ ≤ 0 only, and α > β means δ > 0.
    while len(hull) > 1 and crossing(hull[0], hull[1]) <= 0:
        hull.pop(0)
    return hull


class Best(NamedTuple):
    """The pair that minimizes β/δ, or a bound, over a feasible set."""

    pair: tuple[Fraction, Fraction] | None
    """(δ, β); None if no finite pair attains the infimum"""
    value: Fraction | None
    """The infimum; None if no pair is admissible"""
    end: tuple[Fraction, Fraction] | None = None
    """The excluded (δ, β) at which the infimum is approached, if no pair attains it.

    None if it is approached as δ → ∞, or if there is no infimum.
    """


@dataclass(frozen=True, slots=True)
class FeasibleSet:
    """All pairs (δ, β) that hold at every probe: ``0 < δ ≤ rate_max``, ``β ≥ max(lines at δ)``."""

    lines: tuple[Line, ...] = (ZERO,)
    rate_max: Fraction | None = None
    """Largest admissible δ; None if δ is unbounded"""
    empty: bool = False

    @classmethod
    def of(cls, rows: Sequence[Row]) -> FeasibleSet:
        """Build the set of a table of probes."""
        lines = upper_envelope([ZERO, *(row.line for row in rows if row.excess > 0)])
        bounds = [row.inner_product / row.rise for row in rows if row.excess == 0 and row.rise > 0]
        return cls(tuple(lines), min(bounds, default=None), any(row.impossible for row in rows))

    def intersect(self, other: FeasibleSet) -> FeasibleSet:
        """Return the pairs that lie in both sets."""
        bounds = [bound for bound in (self.rate_max, other.rate_max) if bound is not None]
        lines = upper_envelope([*self.lines, *other.lines])
        return FeasibleSet(tuple(lines), min(bounds, default=None), self.empty or other.empty)

    def beta_min(self, rate: Fraction) -> Fraction | None:
        """Return the smallest admissible β at δ = ``rate``; None if there is none."""
        if self.empty or (self.rate_max is not None and rate > self.rate_max):
            return None
        return max(line.at(rate) for line in self.lines)

    def vertices(self) -> list[tuple[Fraction, Fraction]]:
        """Return the corners (δ, β) of the lower boundary with δ > 0, by increasing δ.

        Where δ is bounded, the last corner is at ``rate_max``.
        """
        if self.empty:
            return []
        corners = [
            (rate, line.at(rate)) for rate, line in zip(self._breaks(), self.lines[1:], strict=True)
        ]
        if self.rate_max is None:
            return corners
        end = (self.rate_max, max(line.at(self.rate_max) for line in self.lines))
        return [*(corner for corner in corners if corner[0] < self.rate_max), end]

    def best(self) -> Best:
        """Minimize β/δ exactly."""
        return self.minimise(RATIO)

    def minimise(self, bound: LinearFractional) -> Best:
        """Minimize a bound exactly over the pairs that meet its step-size condition.

        On one line the bound is monotone in δ. Along the convex envelope it first falls and then
        rises. So the minimum is at the corner where that changes or at an end of the admissible δ,
        or it is approached as δ → ∞.

        Ties lie on one line. A bounded tie gives its largest δ, an unbounded one its left end. An
        unbounded tie without a left end gives no pair.
        """
        ends = [self.rate_max] if self.rate_max is not None else []
        if self.empty or (ends and not bound.allows(ends[0])):
            return Best(None, None)
        breaks = self._breaks()
        for line, left, right in zip(
            self.lines, [ZERO.slope, *breaks], [*breaks, None], strict=True
        ):
            # On this line the step-size condition fails everywhere.
            if right is not None and right <= bound.least_rate:
                continue
            # This line starts beyond the largest admissible δ.
            if ends and left >= ends[0]:
                break
            start = max(left, bound.least_rate)
            growth = bound.grows_along(*line)
            # The first line on which the bound does not fall decides: it rises on all later ones.
            if growth == 0 and (right is not None or ends):
                return self._at(min(end for end in (right, *ends) if end is not None), bound)
            if growth >= 0 and bound.allows(start):
                return self._at(start, bound)
            if growth >= 0:
                return self._approached(line, start, bound)
        return (
            self._at(ends[0], bound)
            if ends
            else Best(None, bound.at_infinity(self.lines[-1].slope))
        )

    def _approached(self, line: Line, start: Fraction, bound: LinearFractional) -> Best:
        """Return the limit of a bound at the open left end of a line; None if it is −∞."""
        if bound.slope * start > bound.offset:
            end = (start, line.at(start))
            return Best(None, bound.at(*end), end)
        return Best(None, bound.at_infinity(line.slope) if bound.grows_along(*line) == 0 else None)

    def _breaks(self) -> list[Fraction]:
        return [
            crossing(flat, steep) for flat, steep in zip(self.lines, self.lines[1:], strict=False)
        ]

    def _at(self, rate: Fraction, bound: LinearFractional) -> Best:
        beta = max(line.at(rate) for line in self.lines)
        return Best((rate, beta), bound.at(rate, beta))


def largest_agreeing(rows: Sequence[Row], count: int) -> list[Row] | None:
    """Return at least ``count`` rows that share a pair with the smallest possible β/δ.

    In u = 1/δ and v = β/δ a row is ``v ≥ slope + intercept · u``: for fixed v an interval of u. The
    largest number of rows that share one u grows with v, so bisection over the floats finds v to
    the last bit (63 halvings). Only the choice of rows is taken from this search:
    `FeasibleSet.best` of the chosen rows is exact. The result is None if no pair exists.
    """
    active = [row for row in rows if not row.impossible]
    if len(active) < count:
        return None
    lines = [_float_line(row) for row in active]
    low, high = 0, _as_int(1.7e308)
    if _deepest(lines, _as_float(low))[0] >= count:
        high = low
    while high - low > 1:
        middle = (low + high) // 2
        if _deepest(lines, _as_float(middle))[0] >= count:
            high = middle
        else:
            low = middle
    value = _as_float(high)
    _, inverse_rate = _deepest(lines, value)
    spans = [_span(*line, value) for line in lines]
    return [
        row
        for row, (first, last) in zip(active, spans, strict=True)
        if first <= inverse_rate <= last
    ]


def _float_line(row: Row) -> tuple[float, float, float]:
    """Return slope, intercept and smallest u of a row."""
    if row.excess > 0:
        return as_float(row.line.slope), as_float(row.line.intercept), 0.0
    # A degenerate row has no line. Its bound δ ≤ p/(a − b) is one on u = 1/δ from below.
    return -inf, 0.0, as_float(row.rise / row.inner_product) if row.rise > 0 else 0.0


def _span(slope: float, intercept: float, smallest: float, value: float) -> tuple[float, float]:
    """Return the first and last u > 0 at which a row holds for v = ``value``; (inf, 0) if none."""
    tiny = 5e-324  # the smallest positive float64, in place of the excluded u = 0
    if intercept > 0:
        return (tiny, (value - slope) / intercept) if value > slope else (inf, 0.0)
    if value >= slope:
        return max(smallest, tiny), inf
    return ((value - slope) / intercept, inf) if intercept < 0 else (inf, 0.0)


def _deepest(lines: Sequence[tuple[float, float, float]], value: float) -> tuple[int, float]:
    """Return the largest number of rows that hold at one u, and the first such u."""
    spans = [
        (first, last) for first, last in (_span(*line, value) for line in lines) if first <= last
    ]
    openings, ends = sorted(first for first, _ in spans), sorted(last for _, last in spans)
    ended, best, where = 0, 0, inf
    for opened, position in enumerate(openings, start=1):
        # Intervals are closed, so at a tie an opening comes before an end.
        while ends[ended] < position:
            ended += 1
        if opened - ended > best:
            best, where = opened - ended, position
    return best, where


def _as_int(value: float) -> int:
    """Return the bits of a non-negative float as an integer; this keeps the order of floats."""
    return int.from_bytes(struct.pack(">d", value), "big")


def _as_float(bits: int) -> float:
    return float(struct.unpack(">d", bits.to_bytes(8, "big"))[0])
