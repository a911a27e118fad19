"""What is said and drawn of held-out batches, against brute force over rows made by hand."""

import pytest
import torch

from lightning_landscape import HeldOut
from lightning_landscape.extras.held_out import FixedBatchRow
from lightning_landscape.functional import (
    alpha_beta_margin,
    alpha_beta_violations,
    beta_min,
)
from lightning_landscape.probes import ProbeTable
from lightning_landscape.reporting.summary import summarise
from tests.reporting.test_summary import RUN, informative
from tests.test_probes import row

COLUMNS = ("loss", "reference_loss", "inner_product", "loss_infimum")


def others(*products):
    """Return rows of one held-out batch a probe, with these inner products."""
    return [row(2 * k, inner_product=product) for k, product in enumerate(products)]


def fixed(*products):
    """Return rows of fixed batches: for each probe, the inner product of each batch."""
    return [
        FixedBatchRow(2 * k, 2 * k, i, 2.0, 1.0, product, 4.0)
        for k, of_batches in enumerate(products)
        for i, product in enumerate(of_batches)
    ]


def found(held_out=(), fixed_batches=(), table=None):
    """Return the extra and the summary of a run with these rows."""
    extra = HeldOut().start()
    for step in {one.step for one in (*held_out, *fixed_batches)}:
        extra.add(step, [one for one in (*held_out, *fixed_batches) if one.step == step])
    probes = ProbeTable(informative() if table is None else table)
    return extra, summarise(
        probes, {**RUN, "loss": {"infimum": 0.0}, "probes": len(probes)}, 2, [extra]
    )


def columns_of(rows):
    """Return the columns of rows of fixed batches."""
    columns = {
        name: torch.tensor([getattr(one, name) for one in rows], dtype=torch.float64)
        for name in COLUMNS[:3]
    }
    return {**columns, "loss_infimum": torch.zeros(len(rows), dtype=torch.float64)}


def test_the_pair_of_the_run_is_tested_on_held_out_batches():
    rows = others(0.5, 0.25, 1.0, 0.125)
    _, summary = found(rows)
    pair, entry = summary["conditions"]["alpha_beta"], summary["held_out"]
    columns = ProbeTable(rows).columns(*COLUMNS)
    violated = alpha_beta_violations(pair["alpha"], pair["beta"], **columns)
    assert entry["probes"] == 4
    assert entry["violated"] == int(violated.sum()) == 2
    assert entry["violated_share"] == 0.5
    margins = alpha_beta_margin(pair["alpha"], pair["beta"], **columns)
    assert entry["smallest_margin"] == {"value": float(margins.min()), "step": 6}
    for name, tables in (("alpha_beta", [rows]), ("together", [rows, informative()])):
        both = entry[name]
        for table in tables:
            columns = ProbeTable(table).columns(*COLUMNS)
            assert not alpha_beta_violations(both["alpha"], both["beta"], **columns).any()
    both = entry["together"]
    assert "The same pair is violated on 2 (50%) of 4 held-out batches." in summary["verdict"]
    assert (
        f"The pair α = {both['alpha']:.4g}, β = {both['beta']:.4g} holds on both"
        in (summary["verdict"])
    )
    assert "fixed_batches" not in summary


def test_a_pair_that_holds_on_all_of_them():
    _, summary = found(others(0.5, 0.75))
    assert summary["held_out"]["violated"] == 0
    assert "The same pair holds on all 2 held-out batches." in summary["verdict"]


def test_fixed_batches_are_all_i_at_one_iterate():
    rows = fixed((0.5, 0.75, 1.0), (0.5, 0.125, 0.25))
    _, summary = found(fixed_batches=rows)
    entry, pair = summary["fixed_batches"], summary["conditions"]["alpha_beta"]
    assert (entry["batches"], entry["probes"]) == (3, 2)
    assert [step["step"] for step in entry["steps"]] == [0, 2]
    assert [step["batch"] for step in entry["steps"]] == [0, 1]
    assert [step["violated_share"] for step in entry["steps"]] == [0.0, pytest.approx(2 / 3)]
    for step in entry["steps"]:
        here = [one for one in rows if one.step == step["step"]]
        worst = max(float(beta_min(pair["rate"], **columns_of([one]))) for one in here)
        assert step["beta"] == pytest.approx(worst)
        margins = alpha_beta_margin(pair["alpha"], pair["beta"], **columns_of(here))
        assert step["smallest_margin"] == float(margins.min())
    together = entry["alpha_beta"]
    all_of_them = columns_of(rows)
    assert not alpha_beta_violations(together["alpha"], together["beta"], **all_of_them).any()
    said = "3 batches were evaluated at every probe; some violate it at 1 of 2 probes."
    assert said in summary["verdict"]
    assert "held_out" not in summary


def test_without_rows_nothing_is_said():
    extra, summary = found()
    assert not {"held_out", "fixed_batches"} & set(summary)
    assert extra.sentence(summary) == ""


def test_why_there_is_nothing_to_test():
    nothing = [row(0, loss=0.5)]  # not above the loss at the reference: every pair holds
    extra, summary = found(others(0.5), fixed((0.5,)), table=nothing)
    for key in ("held_out", "fixed_batches"):
        assert summary[key]["reason"] == "there is no pair to test"
    assert summary["held_out"]["violated"] is None
    assert summary["fixed_batches"]["steps"] == []
    assert extra.sentence(summary) == ""
    below = [row(0, loss=-0.5)]
    low = [FixedBatchRow(0, 0, 0, -0.5, 1.0, 0.5, 4.0)]
    _, summary = found(below, low)
    assert "loss -0.5 at step 0 is below loss_infimum 0" in summary["held_out"]["reason"]
    assert "a loss is below loss_infimum=0" in summary["fixed_batches"]["reason"]


def test_they_are_beside_the_margins_of_the_run():
    pytest.importorskip("matplotlib")
    from lightning_landscape.reporting.figures import FIGURES, Drawn
    from tests.helpers.pictures import check_whole, labelled, points

    held_out, batches = others(0.5, 0.25, 1.0, 0.125), fixed((0.5, 0.75), (0.5, 0.125))
    extra, summary = found(held_out, batches)
    run = Drawn(
        ProbeTable(informative()), summary, {name: extra.rows(name) for name in extra.tables}
    )
    figure = HeldOut.figures(run)["held_out"]
    check_whole(figure)
    (axes,) = figure.axes
    pair = summary["conditions"]["alpha_beta"]
    columns = ProbeTable(held_out).columns(*COLUMNS)
    margins = alpha_beta_margin(pair["alpha"], pair["beta"], **columns).tolist()
    lines = labelled(axes)
    assert points(lines["held out, 2 violated"]) == list(zip([0, 2, 4, 6], margins, strict=True))
    lowest = [step["smallest_margin"] for step in summary["fixed_batches"]["steps"]]
    assert points(lines["smallest over 2 fixed batches"]) == list(zip([0, 2], lowest, strict=True))
    assert points(lines["holds"]) == points(labelled(FIGURES["margin"](run).axes[0])["holds"])
    assert list(labelled(FIGURES["margin"](run).axes[0])) == ["holds"]


def test_the_picture_of_a_run_without_them_is_that_of_the_margins():
    pytest.importorskip("matplotlib")
    from tests.helpers.pictures import case, check_whole, labelled, said

    figure = HeldOut.figures(case("informative"))["held_out"]
    check_whole(figure)
    assert list(labelled(figure.axes[0])) == ["holds"]
    assert "no pair, so no margin" in said(HeldOut.figures(case("vacuous"))["held_out"])
