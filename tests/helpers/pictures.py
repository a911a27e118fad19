"""Runs to be drawn, what the panels of a picture say and show, and a check of any picture."""

import random

import torch

from lightning_landscape.probes import ProbeTable
from lightning_landscape.reporting.figures import Drawn
from tests.reporting.test_summary import informative, steady, summary_of, vacuous
from tests.test_probes import row


def quadratic(count=10, seed=4):
    """Return probes of SGD, some pulled away from the reference: corners, bounds that apply."""
    draw = random.Random(seed)
    return [
        row(
            3 * k,
            loss=3.0 - 0.15 * k,
            reference_loss=0.5 + 0.2 * draw.random(),
            inner_product=2.0 - 0.3 * k + draw.random(),
            grad_sq_norm=1.0 + draw.random(),
            sq_distance=9.0 / (1 + 0.1 * k),
            initial_loss=3.0,
        )
        for k in range(count)
    ]


def unlike_any():
    return [
        row(k, loss=1.7e308, reference_loss=1e-300, inner_product=-1e300, initial_loss=1.0)
        for k in (0, 2)
    ]


def bounded():
    """Return probes with b = l, which bound δ by 0.1/3, and others."""
    return [
        row(0, loss=3.0, reference_loss=0.0, inner_product=0.1, initial_loss=3.0),
        row(2, initial_loss=3.0),
        row(4),
    ]


CASES = {
    "usual": (quadratic(), {"steps": 30}),
    "steady": (
        steady(loss=3.0, inner_product=2.0, grad_sq_norm=1.0, sq_distance=2.0),
        {"steps": 16},
    ),
    "informative": (informative(), {}),
    "one probe": ([row(0, initial_loss=2.0)], {}),
    "one row evaluated": (
        [row(0), row(2, reference_loss=None, inner_product=None, sq_distance=None)],
        {},
    ),
    "none evaluated": (
        [row(0, reference_loss=None, inner_product=None, sq_distance=None)],
        {"complete": False},
    ),
    "zero probes": ([], {}),
    "empty envelope": (
        [row(0, reference_loss=0.0, inner_product=-1.0, initial_loss=2.0), row(2)],
        {},
    ),
    "bounded": (bounded(), {}),
    "vacuous": (vacuous(), {}),
    "below infimum": ([row(0, loss=-0.5), row(2, initial_loss=2.0)], {}),
    "no drop": ([row(0, initial_loss=1.0), row(2, initial_loss=0.5)], {}),
    "drop not measured": ([row(2 * k) for k in range(8)], {"steps": 16}),
    "never above": ([row(k, loss=0.5, initial_loss=3.0) for k in (0, 2)], {}),
    "no noise": (
        [row(k, reference_loss=0.0, inner_product=2.5, initial_loss=3.0) for k in (0, 2, 4)],
        {},
    ),
    "no theorem": (
        [row(2 * k, step_residual=1.0, initial_loss=3.0) for k in range(8)],
        {"steps": 16},
    ),
    "no angle": (
        [row(0, sq_distance=0.0, inner_product=0.0), row(2, grad_sq_norm=0.0, inner_product=0.0)],
        {},
    ),
    "violations": (
        [row(k, inner_product=-1.0 if k in (2, 4) else 1.0, initial_loss=9.0) for k in range(8)],
        {},
    ),
    "not exact": (informative(), {"fidelity": {"exact": False, "max_abs": 0.25, "steps": [0]}}),
    "beyond float64": (unlike_any(), {}),
    "resumed late": (
        [probe.with_values(step=probe.step + 5000) for probe in quadratic()],
        {"steps": 5030},
    ),
}


def drawn_of(rows, tables=None, **run):
    """Return a run as the pictures need it; ``tables`` are the rows of extras, by name."""
    return Drawn(ProbeTable(rows), summary_of(*rows, **run), tables or {})


def case(name, tables_of=None):
    """Return one of `CASES`; ``tables_of`` makes the rows of extras from the probes."""
    rows, run = CASES[name]
    return drawn_of(rows, tables_of and tables_of(rows), **run)


def check_whole(figure):
    """Check that a picture has no title, that no panel is empty, and that it holds its legends."""
    figure.draw_without_rendering()  # scales, ticks and layout are worked out here, and warn here
    assert not figure.get_suptitle()
    for axes in figure.axes:
        assert [axes.get_title(where) for where in ("left", "center", "right")] == ["", "", ""]
        assert texts(axes) or axes.lines or axes.collections
        # what is above the axes stays in the picture
        box = (axes.get_legend() or axes).get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1


def texts(axes):
    """Return all sentences of a panel, on one line each; the notes are the head of its key."""
    key = axes.get_legend()
    said = [text.get_text() for text in axes.texts] + ([key.get_title().get_text()] if key else [])
    return "\n".join(" ".join(text.split()) for text in said if text)


def said(figure):
    return "\n".join(texts(axes) for axes in figure.axes)


def labelled(axes):
    """Return artists by their label in the key."""
    return {
        artist.get_label(): artist
        for artist in (*axes.lines, *axes.collections)
        if not artist.get_label().startswith("_")
    }


def points(line):
    return list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))


def same(found, expected):
    """Whether two lists are equal, ``nan`` where ``nan``."""
    first, second = (
        torch.tensor([float(value) for value in values], dtype=torch.float64)
        for values in (found, expected)
    )
    return torch.equal(first.nan_to_num(7e77), second.nan_to_num(7e77))
