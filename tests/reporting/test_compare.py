"""A comparison of real runs against brute force on their CSV files, without the package."""

import csv
import itertools
import json
from fractions import Fraction

import pytest

from lightning_landscape import load
from lightning_landscape.probes import ProbeTable
from lightning_landscape.reading.load import find_runs
from lightning_landscape.reporting.compare import as_dict, as_table, compare
from lightning_landscape.reporting.grouping import key_of, names_of
from lightning_landscape.run import Run
from tests.test_probes import row

# -------------------------------------------------------------------------- brute force, from files


def rows_of(files):
    """Return (a − b, b − l, p) of every row of some files, and the mean drop of each file."""
    rows, drops = [], []
    for file in files:
        found = list(csv.DictReader(file.read_text().splitlines()))
        rows += [
            (
                Fraction(float(r["loss"])) - Fraction(float(r["reference_loss"])),
                Fraction(float(r["reference_loss"])) - Fraction(float(r["loss_infimum"])),
                Fraction(float(r["inner_product"])),
            )
            for r in found
        ]
        starts = [
            float(r["initial_loss"]) - float(r["reference_loss"])
            for r in found
            if r["initial_loss"]
        ]
        drops.append(sum(starts) / len(starts))
    return rows, drops


def smallest_beta(rows, rate):
    return max(Fraction(0), *((rate * rise - p) / excess for rise, excess, p in rows))


def best_pair(rows):
    """Try every δ at which two demands meet, or one meets β = 0; ties go to the largest."""
    lines = [(rise / excess, -p / excess) for rise, excess, p in rows] + [
        (Fraction(0), Fraction(0))
    ]
    rates = {(c - d) / (b - a) for (a, c), (b, d) in itertools.combinations(lines, 2) if a != b}
    found = [(smallest_beta(rows, rate) / rate, -rate) for rate in rates if rate > 0]
    ratio, rate = min(found)
    assert ratio < max(slope for slope, _ in lines)  # else it would only be approached as δ → ∞
    return -rate, smallest_beta(rows, -rate)


def expected(files):
    rows, drops = rows_of(files)
    rate, beta = best_pair(rows)
    sigma = sum(excess for _, excess, _ in rows) / len(rows)
    size = float(beta / rate * sigma)
    drop = sum(drops) / len(drops)
    return {
        "alpha": float(rate + beta),
        "beta": float(beta),
        "rate": float(rate),
        "interpolation_error": float(sigma),
        "neighbourhood": size,
        "beta_min": pytest.approx(
            [float(smallest_beta(rows, Fraction(rate))) for rate in ("0.1", "1")], rel=1e-12
        ),
        "drop": pytest.approx(drop, rel=1e-12),
        "informativeness": pytest.approx(size / drop, rel=1e-12),
        "probes": len(rows),
    }


def shown(group):
    names = "alpha beta rate interpolation_error neighbourhood beta_min drop informativeness probes"
    return {name: getattr(group, name) for name in names.split()}


@pytest.fixture(scope="module")
def runs(grid):
    return [load(folder) for folder in find_runs(grid)]


def files(grid, width="*", seed="*"):
    return sorted(grid.glob(f"width_{width}/seed_{seed}/landscape/probes.csv"))


def test_groups_are_the_brute_force_ones(grid, runs):
    comparison = compare(runs, "width")
    assert [group.key for group in comparison.groups] == [
        3,
        24,
    ]  # as numbers: as text it would be 24 first
    for group in comparison.groups:
        assert len(files(grid, group.key)) == 2
        assert shown(group) == expected(files(grid, group.key))
        assert len(group.runs) == 2
    assert any(group.beta > 0 for group in comparison.groups)  # else little was tested
    assert comparison.pooled is None


def test_without_a_key_every_run_and_all_of_them(grid, runs):
    comparison = compare(runs)
    assert [group.key for group in comparison.groups] == [
        f"width_{w}/seed_{s}" for w in (3, 24) for s in (0, 1)
    ]
    for group in comparison.groups:
        width, seed = (part.split("_")[1] for part in group.key.split("/"))
        assert shown(group) == expected(files(grid, width, seed))
    assert shown(comparison.pooled) == expected(files(grid))
    assert comparison.pooled.beta_min[1] == max(group.beta_min[1] for group in comparison.groups)


def test_one_run_is_what_its_summary_says(runs):
    (group,) = compare(runs[:1]).rows
    found = runs[0].summary["conditions"]["alpha_beta"]
    for name in ("alpha", "beta", "rate", "attained"):
        assert getattr(group, name) == found[name]
    for name in ("neighbourhood", "interpolation_error", "informativeness"):
        assert getattr(group, name) == pytest.approx(found[name], rel=1e-12)


def test_the_order_of_runs_does_not_matter(runs):
    assert [shown(g) for g in compare(runs[::-1], "width").groups] == [
        shown(g) for g in compare(runs, "width").groups
    ]


def test_what_else_differs_within_a_group_is_said(runs):
    (note,) = compare(runs, "optimizer").notes
    assert "also differ in training, width" in note
    assert compare(runs, "width").notes == ()  # seeds are what is pooled over


# ----------------------------------------------------------------------------------- keys and names


def test_keys(runs):
    assert [key_of(run, "width") for run in runs] == [3, 3, 24, 24]
    assert [key_of(run, "training.noise.scale") for run in runs] == [0.5, 0.5, 2, 2]
    assert key_of(runs[0], "rate") == 0.1  # text in the file, as YAML reads 1e-1
    assert key_of(runs[0], "optimizer") == "SGD"
    assert key_of(runs[0], "hparams.width") == 3
    assert key_of(runs[0], "training.noise.none") is None


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (True, "True"),
        ([1, 2], "[1, 2]"),
        ("inf", "inf"),
        ("relu", "relu"),
        (2**70, 2**70),
        (None, None),
    ],
)
def test_values_that_are_no_plain_numbers(value, key, tmp_path):
    run = Run(tmp_path, ProbeTable(), {"run": {"hparams": {"x": value}}})
    assert key_of(run, "x") == key


def test_names(tmp_path):
    assert names_of([tmp_path / "a" / "v" / "landscape", tmp_path / "b" / "v" / "landscape"]) == [
        "a/v",
        "b/v",
    ]
    assert names_of([tmp_path / "v" / "landscape", tmp_path / "v" / "landscape-1"]) == [
        "landscape",
        "landscape-1",
    ]
    assert names_of([tmp_path / "v" / "landscape"]) == ["v/landscape"]
    assert len(set(names_of([tmp_path / "v", tmp_path / "v" / "x"]))) == 2


def test_a_key_that_no_run_has_is_refused_with_those_there_are(runs):
    with pytest.raises(
        ValueError, match="'depth' in any run; supported are rate, seed, training, width, optimizer"
    ):
        compare(runs, "depth")


def test_a_run_twice_is_refused(runs):
    with pytest.raises(ValueError, match="same run twice"):
        compare([runs[0], runs[0]])


# -------------------------------------------------------------------- runs that have little to show


def made(path, *rows, **hparams):
    return Run(
        path,
        ProbeTable(rows),
        {"run": {"hparams": hparams, "fidelity": {"exact": True, "max_abs": 0.0}}},
    )


def test_a_run_without_hyper_parameters_is_left_out_by_name(runs, tmp_path):
    killed = Run(tmp_path, ProbeTable([row(0)]), None)
    comparison = compare([*runs, killed], "width")
    assert [len(group.runs) for group in comparison.groups] == [2, 2]
    assert "because the width is not known" in comparison.notes[0]


def test_unevaluated_runs_ask_nothing_and_are_named(tmp_path):
    comparison = compare(
        [
            made(tmp_path / "a", row(0, initial_loss=3.0)),
            made(tmp_path / "b", row(0, reference_loss=None)),
        ]
    )
    assert (comparison.pooled.alpha, comparison.pooled.probes, comparison.pooled.drop) == (
        0.5,
        1,
        2.0,
    )
    assert comparison.pooled.reason == "b: no probe was evaluated at the reference"
    assert comparison.groups[1].alpha is None
    json.dumps(as_dict(comparison), allow_nan=False)


def test_an_infimum_that_is_none_in_one_run_leaves_the_group_without_a_pair(tmp_path):
    comparison = compare([made(tmp_path / "a", row(0)), made(tmp_path / "b", row(4, loss=-0.5))])
    assert comparison.pooled.alpha is None
    assert "b: loss -0.5 at step 4 is below loss_infimum 0" in comparison.pooled.reason
    assert comparison.groups[0].alpha == 0.5


def test_groups_without_a_pair_say_why(tmp_path):
    below = compare([made(tmp_path, row(0, loss=0.5))]).groups[0]
    assert (below.alpha, below.neighbourhood, below.informativeness) == (None, 0, None)
    assert "says nothing" in below.reason
    empty = compare([made(tmp_path, row(0, reference_loss=0.0, inner_product=-1.0))]).groups[0]
    assert (empty.alpha, empty.neighbourhood, empty.beta_min) == (None, None, (None, None))
    assert "no pair holds" in empty.reason
    approached = compare([made(tmp_path, row(0, inner_product=-1.0, initial_loss=2.0))]).groups[0]
    assert (approached.alpha, approached.attained, approached.neighbourhood) == (None, False, 1.0)
    assert "only as δ → ∞" in approached.reason


def test_replays_that_are_off_mark_a_group(tmp_path):
    run = made(tmp_path, row(0, initial_loss=3.0))
    run.summary["run"]["fidelity"] = {"exact": False, "max_abs": 0.5}
    assert "not to be relied on" in compare([run]).groups[0].reason


def test_as_table(runs):
    table = as_table(compare(runs, "width"))
    assert table.headers[:3] == ("width", "runs", "probes")
    assert [cells[:2] for cells in table.rows] == [("3", "2"), ("24", "2")]
    assert all(len(cells) == len(table.headers) for cells in table.rows)
    assert as_table(compare(runs)).rows[-1][0] == "all runs"


def test_the_picture(runs, tmp_path):
    pytest.importorskip("matplotlib")
    from lightning_landscape.reporting.compare_figure import draw

    wide = [made(tmp_path / str(w), row(0, initial_loss=3.0), width=w) for w in (1, 8, 64)]
    for comparison, scale in (
        (compare(wide, "width"), "log"),
        (compare(runs, "width"), "linear"),
        (compare(runs), "linear"),
    ):
        figure = draw(comparison)
        figure.savefig(tmp_path / "picture.pdf")
        left, middle, right = figure.axes
        assert [line.get_label() for line in left.lines] == ["α", "β", "α − β"]
        assert list(left.lines[0].get_ydata()) == [group.alpha for group in comparison.groups]
        assert list(middle.lines[0].get_ydata()) == [
            group.neighbourhood for group in comparison.groups
        ]
        assert list(right.lines[1].get_ydata()) == [
            group.beta_min[1] for group in comparison.groups
        ]
        assert {axes.get_xscale() for axes in figure.axes} == {scale}
        assert {axes.get_title() for axes in figure.axes} == {""}
