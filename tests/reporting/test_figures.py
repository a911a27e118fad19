"""Every picture of every kind of run: what is drawn is what the table says, and where there is nothing it says why."""

import io

import numpy as np
import pytest
import torch
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_landscape import functional as F
from lightning_landscape.probes import ProbeTable
from lightning_landscape.records import SegmentPoint
from lightning_landscape.reporting import scalars
from lightning_landscape.reporting.figures import FIGURES, draw_all, overview, save
from lightning_landscape.reporting.figures._style import Drawn
from lightning_landscape.reporting.figures.feasible_pairs import boundary
from tests.reporting.test_summary import informative, steady, summary_of, vacuous
from tests.test_probes import row

UNKNOWN = {"reference_loss": None, "inner_product": None, "sq_distance": None}
LINES = [SegmentPoint(step, t / 4, 3.0 - step / 10 - t / 4) for step in (0, 8) for t in range(5)]


def rich():
    """Return rows of a run to which theorems apply, with a feasible set of several corners."""
    products = [2.0, 0.6, 1.1, 0.2, 0.9, 0.3, 0.2, 0.1]
    losses = [3.0, 2.6, 2.4, 1.9, 1.6, 1.4, 0.9, 1.05]
    common = {"step_size": 0.1, "initial_loss": 3.0, "grad_sq_norm": 1.0, "sq_distance": 2.0}
    return [
        row(2 * k, loss=losses[k], inner_product=products[k], reference_loss=1 + 1e-3 * (k % 2), **common) for k in range(8)
    ]


CASES = {
    "rich": (rich(), {"steps": 16}),
    "one probe": ([row(0, initial_loss=3.0)], {}),
    "informative": (informative(), {}),
    "vacuous": (vacuous(), {}),
    "no probe": ([], {}),
    "unevaluated rows": ([*informative(), row(8, **UNKNOWN), row(10, **UNKNOWN)], {}),
    "nothing evaluated": ([row(0, **UNKNOWN), row(2, **UNKNOWN)], {}),
    "infeasible": ([row(0, reference_loss=0.0, loss=1.0, inner_product=-1.0, initial_loss=1.0), row(2)], {}),
    "below the infimum": ([row(0, loss=-1.0, initial_loss=3.0), row(2)], {}),
    "no drop": ([row(0, initial_loss=0.5), row(2, initial_loss=0.5)], {}),
    "no drop measured": ([row(0), row(2)], {}),
    "interpolating": ([row(2 * k, reference_loss=0.0, initial_loss=3.0, inner_product=1.0 + k) for k in range(4)], {}),
    "at the reference": ([row(0, sq_distance=0.0, inner_product=0.0, loss=1.0, grad_sq_norm=0.0)], {}),
    "sequential": (steady(sq_distance=2.0), {"sampling": "sequential", "steps": 16}),
    "huge numbers": ([p.with_values(loss=1e30, inner_product=1e-30, grad_sq_norm=1e20) for p in rich()], {"steps": 16}),
}


def drawn(case, lines=()):
    rows, run = CASES[case]
    table = ProbeTable(rows)
    summary = summary_of(*rows, **run)
    return table, summary, draw_all(table, summary, list(lines))


def texts(figure):
    """Return all that is written in a figure, as one text with single spaces."""
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())


def curves(figure):
    """Return {label: (x, y)} of the labelled lines."""
    return {
        line.get_label(): (np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float))
        for axes in figure.axes
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


@pytest.mark.parametrize("case", CASES)
def test_every_picture_of_every_run_is_drawn_and_has_no_title(case):
    before = dict(rcParams)
    figures = drawn(case)[2]
    assert dict(rcParams) == before  # nobody else's settings
    assert list(figures) == list(FIGURES)
    for figure in figures.values():
        assert isinstance(figure, Figure)
        assert figure.get_suptitle() == ""
        assert not any(axes.get_title(loc) for axes in figure.axes for loc in ("left", "center", "right"))
        with io.BytesIO() as file:
            figure.savefig(file, format="png", dpi=40)
            assert file.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize("case", ["rich", "one probe"])
def test_pictures_are_saved_for_papers_and_for_screens(case, tmp_path):
    figures = drawn(case, LINES)[2]
    paths = save(figures, tmp_path / "figures")
    assert sorted(paths) == sorted((tmp_path / "figures").iterdir())
    assert {path.name for path in paths} == {f"{name}.{kind}" for name in FIGURES for kind in ("pdf", "png")}
    assert all(path.read_bytes().startswith(b"%PDF" if path.suffix == ".pdf" else b"\x89PNG") for path in paths)
    assert b"/Type0" in (tmp_path / "figures" / "bounds.pdf").read_bytes()  # letters, not outlines


@pytest.mark.parametrize(
    ("case", "name", "said"),
    [
        ("no probe", "feasible_pairs", "no probe was evaluated at the reference"),
        ("no probe", "bounds", "no probe was evaluated at the reference"),
        ("no probe", "angle", "no probe was evaluated at the reference"),
        ("no probe", "constants", "no probe was evaluated at the reference"),
        ("no probe", "margin", "there is no reported pair"),
        ("nothing evaluated", "feasible_pairs", "no probe was evaluated at the reference"),
        ("infeasible", "feasible_pairs", "no pair"),
        ("infeasible", "margin", "there is no reported pair"),
        ("vacuous", "feasible_pairs", "vacuous: the neighbourhood 1 is not below the drop"),
        ("vacuous", "margin", "there is no reported pair: "),
        ("below the infimum", "feasible_pairs", "below loss_infimum 0"),
        ("below the infimum", "angle", "below loss_infimum 0"),
        ("sequential", "bounds", "the certificate of this trajectory"),
        ("at the reference", "angle", "defined at no probe"),
        ("one probe", "segments", "no line to the reference was evaluated"),
        ("rich", "margin", "α = "),
    ],
)
def test_a_picture_with_nothing_to_show_says_why(case, name, said):
    assert said in texts(drawn(case)[2][name])


def test_the_boundary_is_beta_min_at_its_corners_and_the_pair_is_the_reported_one():
    table, summary, figures = drawn("rich")
    shown = curves(figures["feasible_pairs"])
    rates, betas = shown["β_min(δ), exact"]
    columns = table.columns("loss", "reference_loss", "inner_product", "loss_infimum")
    assert betas.tolist() == F.beta_min(torch.as_tensor(rates), **columns).tolist()
    corners = [rate for rate, _ in summary["conditions"]["alpha_beta"]["vertices"]]
    assert set(corners) & set(rates.tolist()) == {rate for rate in corners if rate < rates[-1]}
    found = summary["conditions"]["alpha_beta"]
    assert [value.tolist() for value in shown["smallest β/δ"]] == [[found["rate"]], [found["beta"]]]
    # between two neighbouring corners β_min is a straight line: nothing was cut off
    end, exact, _ = boundary(Drawn(table, summary))
    middle = (exact[1:] + exact[:-1]) / 2
    between = torch.as_tensor(np.interp(middle, rates, betas))
    torch.testing.assert_close(F.beta_min(middle, **columns), between)
    assert end == rates[-1]


def test_gaps_and_bounds_are_those_of_the_table_and_of_the_curves():
    table, summary, figures = drawn("rich")
    shown = curves(figures["bounds"])
    gap = (table.column("loss") - table.column("reference_loss")).numpy()
    assert shown["gap of a probe"][1].tolist() == gap[gap > 0].tolist()
    assert "not shown: 1 with a gap of 0 or less" in texts(figures["bounds"])
    expected = scalars.bound_curves(table, summary["run"])
    applying = {key: bound for key, bound in summary["bounds"].items() if bound["applies"]}
    assert len(applying) >= 3
    for key, bound in applying.items():
        values = expected[f"bound/{key}"]
        steps, heights = shown[bound["title"]]
        assert heights.tolist() == values[values.isfinite()].tolist()
        assert steps.tolist() == [2 * k for k in range(1, 8)]


def test_stacked_terms_sum_to_the_bound():
    _, summary, figures = drawn("rich")
    axes = figures["bounds"].axes[1]
    applying = [bound for bound in summary["bounds"].values() if bound["applies"]]
    sums = np.zeros(len(applying))
    for patch in axes.patches:
        sums[round(patch.get_y() + patch.get_height() / 2)] += patch.get_width()
    assert sums.tolist() == pytest.approx([bound["value"] for bound in applying])
    (drop,) = [line for line in axes.lines if line.get_label() == "drop of training"]
    assert list(drop.get_xdata()) == [summary["run"]["drop"]["value"]] * 2
    for bound in applying:
        assert f"{bound['value']:.3g}" in texts(figures["bounds"])


def test_angles_margins_and_lines_are_those_of_the_table():
    table, summary, figures = drawn("rich", LINES)
    upper = figures["angle"].axes[0].lines
    cosines = F.cosine(**table.columns("inner_product", "grad_sq_norm", "sq_distance"))
    assert upper[1].get_ydata().tolist() == cosines.tolist()
    found = summary["conditions"]["alpha_beta"]
    margins = F.alpha_beta_margin(
        found["alpha"], found["beta"], **table.columns("loss", "reference_loss", "inner_product", "loss_infimum")
    )
    assert any(list(line.get_ydata()) == margins.tolist() for line in figures["margin"].axes[0].lines)
    shown = curves(figures["segments"])
    for step in (0, 8):
        points = [(p.fraction, p.loss) for p in LINES if p.step == step]
        assert list(zip(*shown[f"from step {step}"], strict=True)) == points


def test_negative_angles_are_marked_and_counted():
    rows = [row(k, inner_product=-1.0 if k < 3 else 1.0) for k in range(8)]
    figure = draw_all(ProbeTable(rows), summary_of(*rows))["angle"]
    assert "3 of 8 probes are negative" in texts(figure)


def test_windows_are_drawn_with_their_constants():
    _, summary, figures = drawn("rich")
    panels = dict(zip([key for key in summary["conditions"] if key != "alpha_beta"], figures["constants"].axes, strict=False))
    for key, axes in panels.items():
        condition = summary["conditions"][key]
        heights = [line.get_ydata()[0] for line in axes.lines if line.get_linewidth() == 2.5]
        assert heights == [w["value"] for w in condition["windows"] if w["value"] is not None]


@pytest.mark.parametrize("case", CASES)
def test_the_overview_has_three_panels(case):
    table, summary, _ = drawn(case)
    assert len(overview(table, summary).axes) == 3
