"""Pictures show the numbers of the table and the summary; what they cannot show, they say."""

import ast
import itertools
import json
import math

import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex

from lightning_landscape import Segments
from lightning_landscape import functional as F
from lightning_landscape.reporting import figures
from lightning_landscape.reporting.figures import FIGURES, draw_all, overview, save
from lightning_landscape.reporting.figures._style import SERIES
from lightning_landscape.reporting.scalars import bound_curves
from tests.helpers.pictures import (
    CASES,
    case,
    check_whole,
    drawn_of,
    labelled,
    points,
    quadratic,
    said,
    same,
    texts,
)
from tests.helpers.slow import some
from tests.reporting.test_summary import informative
from tests.test_probes import row
from tests.test_rooms import FILES

COLUMNS = ("loss", "reference_loss", "inner_product", "loss_infimum")
NO_PROBE = "no probe was evaluated at the reference"
NAMES = ["feasible_pairs", "bounds", "angle", "constants", "margin"]


def outlines(collection):
    return [[tuple(point) for point in path.vertices] for path in collection.get_paths()]


def area(polygon):
    return (
        abs(
            sum(
                x * v - u * y
                for (x, y), (u, v) in zip(polygon, polygon[1:] + polygon[:1], strict=True)
            )
        )
        / 2
    )


# ------------------------------------------------------------------------------------ every picture


def test_pictures_are_named_in_the_order_in_which_they_are_shown():
    assert list(FIGURES) == NAMES
    run = drawn_of([row(0)])
    assert list(draw_all(run)) == NAMES
    assert list(draw_all(run, [Segments])) == [*NAMES, "segments"]


@pytest.mark.parametrize(
    ("of", "name"), some([(of, name) for of in CASES for name in NAMES], every=8)
)
def test_every_picture_of_every_run_is_drawn_whole_without_a_title_and_without_a_warning(of, name):
    run = case(of)
    before = json.dumps(run.summary)
    figure = FIGURES[name](run)
    check_whole(figure)
    assert json.dumps(run.summary) == before


def test_without_rows_of_an_extra_the_others_are_drawn():
    found = draw_all(drawn_of(informative()), [Segments])
    assert said(found["segments"]) == "no segment was evaluated"
    assert "informative" in said(found["feasible_pairs"])


def test_no_setting_of_matplotlib_outlives_a_call():
    import matplotlib
    import matplotlib.style

    with matplotlib.style.context({"font.size": 31.0, "axes.titlesize": 3.0}):
        before = dict(matplotlib.rcParams)
        figure = FIGURES["angle"](case("usual"))
        save({"angle": figure}, "pictures")
        assert dict(matplotlib.rcParams) == before
        assert (
            figure.axes[0].xaxis.label.get_fontsize() == 9
        )  # nor do the user's settings change a picture


def names_of(nodes):
    """Return the full names of everything that some statements import."""
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_matplotlib_is_imported_by_the_pictures_alone_and_pyplot_by_nothing():
    drawing = {"figures", "compare_figure", "_sample_figure"}
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert not any("pyplot" in name for name in names_of([*ast.walk(tree)])), path
        if not drawing & {*path.parts, path.stem}:
            # statements of the module: not those for types, nor those in a function that draws
            for name in names_of(tree.body):
                assert not {"matplotlib", *drawing} & set(name.split(".")), (path, name)


def test_steps_are_written_in_full():
    rows = [probe.with_values(step=probe.step * 50 + 100_000) for probe in informative()]
    figure = FIGURES["margin"](drawn_of(rows, steps=100_400))
    figure.draw_without_rendering()
    assert "100040" in [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_series_differ_in_grey_as_well():
    assert len({(line, marker) for _, line, marker in SERIES}) == len(SERIES)


@pytest.mark.slow
def test_files_are_whole_and_the_same_for_the_same_run(tmp_path):
    run = case("usual")
    found = draw_all(run)
    paths = save(found, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        f"{name}.{kind}" for name in NAMES for kind in ("pdf", "png")
    ]
    assert sorted(paths) == sorted(
        (tmp_path / "new" / "folder").iterdir()
    )  # no temporary file is left
    first = {path: path.read_bytes() for path in paths}
    for path, content in first.items():
        assert content.startswith(b"%PDF" if path.suffix == ".pdf" else b"\x89PNG")
        assert b"/Type3" not in content
    again = save(draw_all(run), tmp_path / "new" / "folder")
    assert {path: path.read_bytes() for path in again} == first


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    figure = FIGURES["margin"](case("usual"))
    (old,) = (path for path in save({"margin": figure}, tmp_path) if path.suffix == ".pdf")
    before = old.read_bytes()

    def broken(file, **_):
        file.write_bytes(b"%PDF half of")
        raise OSError("no space left")

    monkeypatch.setattr(figure, "savefig", broken)
    with pytest.raises(OSError, match="no space left"):
        save({"margin": figure}, tmp_path)
    assert old.read_bytes() == before


# ----------------------------------------------------------------------------------- feasible pairs


@pytest.mark.parametrize(
    "of", ["usual", "informative", "vacuous", "bounded", "violations", "one probe"]
)
def test_the_envelope_is_exact_at_its_corners_and_straight_between(of):
    run = case(of)
    (axes,) = FIGURES["feasible_pairs"](run).axes
    line = points(labelled(axes)[r"$\beta_{\min}(\delta)$, exact"])
    columns = run.rows.columns(*COLUMNS)
    corners = {tuple(corner) for corner in F.alpha_beta_vertices(**columns).tolist()}
    assert corners & set(line) == {corner for corner in corners if corner[0] < axes.get_xlim()[1]}
    for rate, beta in line:
        if (rate, beta) not in corners:
            assert beta == F.beta_min(rate, **columns)
    for (r, b), (s, c) in itertools.pairwise(line):
        middle = (r + s) / 2
        assert float(F.beta_min(middle, **columns)) == pytest.approx((b + c) / 2, abs=1e-12)


def test_the_usual_case_has_corners_to_be_exact_at():
    assert len(case("usual").alpha_beta["vertices"]) >= 2


def test_the_reported_pair_is_marked():
    run = case("usual")
    (axes,) = FIGURES["feasible_pairs"](run).axes
    marked = points(labelled(axes)[r"smallest $\beta/\delta$"])
    assert marked == [(run.alpha_beta["rate"], run.alpha_beta["beta"])]


@pytest.mark.parametrize("of", ["usual", "informative", "steady", "violations"])
def test_the_informative_region_is_that_of_the_certificate(of):
    run = case(of)
    (axes,) = FIGURES["feasible_pairs"](run).axes
    (region,) = outlines(labelled(axes)[r"informative: $(\beta/\delta)\,\sigma^2 <$ drop"])
    columns, error = run.rows.columns(*COLUMNS), run.alpha_beta["interpolation_error"]
    for rate, beta in region:
        low = float(F.beta_min(max(rate, 1e-12), **columns))
        assert low - 1e-9 <= beta <= rate * run.drop / error + 1e-9
    top, end = axes.get_ylim()[1], axes.get_xlim()[1]
    widths = [(k + 0.5) * end / 2000 for k in range(2000)]
    lows = F.beta_min(torch.tensor(widths, dtype=torch.float64), **columns).tolist()
    heights = [
        max(0.0, min(top, rate * run.drop / error) - low)
        for rate, low in zip(widths, lows, strict=True)
    ]
    assert area(region) == pytest.approx(sum(heights) * end / 2000, rel=1e-3)


def test_without_an_interpolation_error_all_pairs_inform():
    run = case("no noise")
    (axes,) = FIGURES["feasible_pairs"](run).axes
    assert run.alpha_beta["interpolation_error"] == 0
    (region,) = outlines(labelled(axes)[r"informative: $(\beta/\delta)\,\sigma^2 <$ drop"])
    (all_pairs,) = outlines(labelled(axes)["holds at every probe"])
    assert set(region) == set(all_pairs)


@pytest.mark.parametrize(
    "of", ["vacuous", "no drop", "drop not measured", "not exact", "never above"]
)
def test_where_nothing_informs_no_region_is_said_to(of):
    (axes,) = FIGURES["feasible_pairs"](case(of)).axes
    regions = [label for label in labelled(axes) if label.startswith("informative")]
    if of == "vacuous":  # σ² max (a − b)/(b − l) is the drop itself: no pair is below it
        worth = "vacuous: smallest (β/δ) σ² = 1, 100 % of the drop 1, approached only as δ → ∞"
        assert worth in texts(axes)
    assert regions == []


def test_a_bound_of_δ_is_a_wall():
    run = case("bounded")
    (axes,) = FIGURES["feasible_pairs"](run).axes
    last = run.alpha_beta["vertices"][-1]
    assert last[0] == pytest.approx(0.1 / 3)
    walls = [
        line
        for line in axes.lines
        if set(line.get_xdata()) == {last[0]} and len(line.get_xdata()) == 2
    ]
    assert [points(wall) for wall in walls] == [[tuple(last), (last[0], axes.get_ylim()[1])]]


def test_lines_of_equal_ratio_have_the_ratio_that_is_written():
    (axes,) = FIGURES["feasible_pairs"](case("usual")).axes
    dotted = [line for line in axes.lines if to_hex(line.get_color()) == "#666666"]
    written = [float(text.get_text()) for text in axes.texts if text.get_text()[0].isdigit()]
    slopes = [line.get_ydata()[1] / line.get_xdata()[1] for line in dotted]
    assert len(dotted) == len(written) >= 3
    assert slopes == pytest.approx(written)


def test_each_theorems_pair_is_marked_where_it_is_in_view():
    run = case("steady")
    (axes,) = FIGURES["feasible_pairs"](run).axes
    best = {
        " ".join(label.split()).removeprefix("best for "): line
        for label, line in labelled(axes).items()
        if "best" in label
    }
    marked = {key: points(line) for keys, line in best.items() for key in keys.split(", ")}
    in_view = {
        key: [(bound["alpha"] - bound["beta"], bound["beta"])]
        for key, bound in run.applying.items()
        if bound["alpha"] is not None
        and bound["alpha"] - bound["beta"] <= axes.get_xlim()[1]
        and bound["beta"] <= axes.get_ylim()[1]
    }
    assert marked == in_view
    assert marked


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        (
            "informative",
            "informative: smallest (β/δ) σ² = 0, the smallest possible; the drop is 2",
        ),
        ("no drop", "vacuous: training did not lower the loss, f(x_0) − f(x_p) = -0.25"),
        ("drop not measured", "the drop f(x_0) − f(x_p) to compare it with was not measured"),
        (
            "empty envelope",
            "no pair holds at 1 probe, where the loss at the reference equals loss_infimum",
        ),
        ("below infimum", "loss -0.5 at step 0 is below loss_infimum 0"),
        (
            "never above",
            "every pair holds: no probe has a loss above its loss at the reference",
        ),
        (
            "not exact",
            "not reliable: replays differ from the recorded losses by up to 0.25 "
            "smallest (β/δ) σ² = 0",
        ),
        ("zero probes", NO_PROBE),
        ("none evaluated", NO_PROBE),
        ("beyond float64", "approached only as δ → ∞"),
    ],
)
def test_the_panel_of_pairs_says_what_it_is_worth(of, sentence):
    assert sentence in said(FIGURES["feasible_pairs"](case(of)))


# ------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("of", ["usual", "steady", "resumed late"])
def test_bounds_are_those_of_the_curves_and_gaps_those_of_the_table(of):
    run = case(of)
    above, _ = FIGURES["bounds"](run).axes
    lines = labelled(above)
    updates = [probe.step - run.rows[0].step for probe in run.rows]
    assert same(
        list(lines["gap of a probe"].get_ydata()),
        (run.rows.column("loss") - run.rows.column("reference_loss")).tolist(),
    )
    gaps = (run.rows.column("loss") - run.rows.column("reference_loss")).tolist()
    assert list(lines["gap of a probe"].get_ydata()) == gaps
    means = [sum(gaps[: k + 1]) / (k + 1) for k in range(len(gaps))]
    assert list(lines["running mean of gaps"].get_ydata()) == pytest.approx(means)
    curves = bound_curves(run.rows, run.summary["run"])
    margin = {"lower", "gap", "in_force"}
    assert {key for key in run.applying if key in lines} == {
        tag.removeprefix("bound/") for tag in curves
    } - margin
    for key in run.applying:
        assert list(lines[key].get_xdata()) == updates
        expected = [
            value if 0 < value < 1e100 else math.nan for value in curves[f"bound/{key}"].tolist()
        ]
        assert same(list(lines[key].get_ydata()), expected)
    assert run.applying
    assert above.get_yscale() == "log"


@pytest.mark.parametrize("of", ["usual", "steady", "drop not measured"])
def test_the_stacked_parts_of_a_bound_sum_to_its_value(of):
    run = case(of)
    _, below = FIGURES["bounds"](run).axes
    keys = [label.get_text() for label in below.get_yticklabels()]
    assert keys == list(run.applying)
    widths = {key: [] for key in keys}
    for bar in below.patches:
        widths[keys[round(bar.get_y() + bar.get_height() / 2)]].append(bar.get_width())
    for key, bound in run.applying.items():
        assert sorted(widths[key]) == pytest.approx(sorted(bound["terms"].values()))
        assert sum(widths[key]) == pytest.approx(bound["value"])
        assert f" {bound['value']:.3g}" in [
            text.get_text() for text in below.texts
        ]  # without an arrow: all are in view


def with_terms(**bounds):
    """Return a run whose theorems' parts are given."""
    run = case("steady")
    template = next(iter(run.applying.values()))
    names = ("initial_distance", "step_size_noise", "neighbourhood")
    run.summary["bounds"] = {
        key: {**template, "value": sum(parts), "terms": dict(zip(names, parts, strict=True))}
        for key, parts in bounds.items()
    }
    return run


def test_a_part_below_zero_is_to_the_left_and_the_value_is_marked():
    _, below = FIGURES["bounds"](with_terms(sgd=(2.0, -1.0, 3.0))).axes
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in below.patches)
    assert [(min(span), max(span)) for span in spans] == [(-1.0, 0.0), (0.0, 2.0), (2.0, 5.0)]
    assert [points(line) for line in below.lines if line.get_marker() == "d"] == [[(4.0, 0.0)]]
    assert below.get_xlim()[0] < -1


def test_a_bound_far_beyond_the_others_leaves_the_view_and_says_its_value():
    figure = FIGURES["bounds"](with_terms(sgd=(0.0, 1e6, 0.0), sgd_sharp=(1.0, 0.0, 1.0)))
    figure.draw_without_rendering()
    _, below = figure.axes
    assert below.get_xlim()[1] < 100
    assert [text.get_text() for text in below.texts] == ["1e+06 →", " 2"]


def test_what_training_achieved_is_a_line_in_both_panels():
    run = case("steady")
    above, below = FIGURES["bounds"](run).axes
    label = "drop (beyond: vacuous)"
    assert (
        set(labelled(above)[label].get_ydata())
        == set(labelled(below)[label].get_xdata())
        == {run.drop}
    )


@pytest.mark.parametrize(
    ("of", "panel", "sentence"),
    [
        (
            "no theorem",
            1,
            "no theorem applies: steps of SGD were not along the mini-batch gradient",
        ),
        ("no theorem", 0, "no theorem applies"),
        (
            "empty envelope",
            1,
            "no theorem applies: no pair of the α-β-condition holds at every probe",
        ),
        ("never above", 0, "no probe has a loss above its loss at the reference"),
        (
            "drop not measured",
            1,
            "the drop f(x_0) − f(x_p) to compare bounds with was not measured",
        ),
        ("below infimum", 0, "1 probe with a gap of 0 or below, not on the log axis"),
        ("beyond float64", 0, "the gaps are too large to draw"),
        ("zero probes", 0, NO_PROBE),
        ("none evaluated", 0, NO_PROBE),
        ("not exact", 0, "not reliable: replays differ"),
    ],
)
def test_the_panels_of_bounds_say_what_is_not_there(of, panel, sentence):
    assert sentence in texts(FIGURES["bounds"](case(of)).axes[panel])


def test_the_theorems_are_certified_once_for_a_set_of_pictures(monkeypatch):
    calls = []
    monkeypatch.setattr(figures._drawn, "bound_curves", lambda *given: calls.append(given) or {})
    run = case("steady")
    for name in NAMES:
        FIGURES[name](run)
    assert len(calls) == 1


# --------------------------------------------------------------------------------- angle and margin


def test_angles_are_those_of_the_table_and_those_below_zero_are_marked():
    run = case("violations")
    above, below = FIGURES["angle"](run).axes
    cosines = F.cosine(**run.rows.columns("inner_product", "grad_sq_norm", "sq_distance")).tolist()
    thetas = F.aiming_ratio(**run.rows.columns("loss", "inner_product", "loss_infimum")).tolist()
    steps = [probe.step for probe in run.rows]
    for axes, values in ((above, cosines), (below, thetas)):
        curve = next(line for line in axes.lines if len(line.get_xdata()) == len(steps))
        assert points(curve) == list(zip(steps, values, strict=True))
        marked = points(labelled(axes)["gradient towards $x_p$: 2"])
        assert marked == [(2, values[2]), (4, values[4])]


def test_probes_without_an_angle_are_counted():
    above, below = FIGURES["angle"](case("no angle")).axes
    assert "2 probes without an angle: gradient or distance is 0" in texts(above)
    assert "1 probe without a θ" in texts(FIGURES["angle"](case("below infimum")).axes[1])
    assert texts(FIGURES["angle"](case("zero probes")).axes[0]) == NO_PROBE
    assert labelled(below)
    beyond = FIGURES["angle"](case("beyond float64")).axes[0]
    assert texts(beyond) == "2 probes not drawn: infinite or too large"


def test_margins_are_those_of_the_reported_pair():
    run = case("usual")
    (axes,) = FIGURES["margin"](run).axes
    found = run.alpha_beta
    expected = F.alpha_beta_margin(
        found["alpha"], found["beta"], **run.rows.columns(*COLUMNS)
    ).tolist()
    assert points(labelled(axes)["holds"]) == list(zip(run.steps, expected, strict=True))
    assert [label for label in labelled(axes) if label.startswith("violated")] == []
    assert f"at step {run.steps[expected.index(min(expected))]:.0f}" in texts(axes)


def test_a_pair_that_does_not_hold_everywhere_is_marked_where_it_does_not():
    run = case("violations")
    run.summary["conditions"]["alpha_beta"].update(alpha=0.5, beta=0.0)
    (axes,) = FIGURES["margin"](run).axes
    assert points(labelled(axes)["violated: 2"]) == [(2, -1.5), (4, -1.5)]


@pytest.mark.parametrize(
    "of", ["vacuous", "empty envelope", "below infimum", "zero probes", "never above"]
)
def test_without_a_pair_the_panel_of_margins_says_why(of):
    run = case(of)
    assert said(FIGURES["margin"](run)) == f"no pair, so no margin: {run.alpha_beta['reason']}"


# ---------------------------------------------------------------------------------------- constants


def test_constants_are_those_of_the_windows():
    run = case("violations")
    above, below = FIGURES["constants"](run).axes
    lines = {**labelled(above), **labelled(below)}
    names = {**figures.constants.CURVATURES, **figures.constants.SHARES}
    assert set(names) == set(run.summary["conditions"]) - {"alpha_beta"}
    for key, name in names.items():
        found = run.summary["conditions"][key]["windows"]
        values = [math.nan if window["value"] is None else window["value"] for window in found]
        if all(map(math.isnan, values)):
            assert f"no window has a constant of {name.split(' $')[0]}" in texts(above) + texts(
                below
            )
            continue
        assert list(lines[name].get_xdata()) == [
            (window["from"] + window["to"]) / 2 for window in found
        ]
        assert same(list(lines[name].get_ydata()), values)


def test_constants_of_both_signs_and_any_size_are_in_view():
    run = drawn_of([probe.with_values(grad_sq_norm=1e-3) for probe in quadratic()], steps=30)
    above, _ = FIGURES["constants"](run).axes
    values = [
        value
        for line in labelled(above).values()
        for value in line.get_ydata()
        if math.isfinite(value)
    ]
    assert above.get_yscale() == "symlog"
    assert above.get_ylim()[0] < min(values) < 0 < max(values) < above.get_ylim()[1]


def test_conditions_without_a_constant_are_named():
    run = case("no angle")
    _, below = FIGURES["constants"](run).axes
    assert "no window has a constant of quasar convexity, gradient angle" in texts(below)
    nothing = FIGURES["constants"](case("zero probes"))
    assert said(nothing).count(f"no window of training has a constant: {NO_PROBE}") == 2


@pytest.mark.parametrize("of", some(CASES, every=4))
def test_the_overview_of_every_run_is_drawn(of):
    run = case(of)
    figure = overview(run)
    figure.draw_without_rendering()
    assert len(figure.axes) == 3
