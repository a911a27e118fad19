"""What is said and drawn of single samples, against brute force over rows made by hand."""

import json

import pytest
import torch

from lightning_landscape import PerSample
from lightning_landscape.extras._sample_summary import (
    PerSampleRow,
    per_sample_entry,
    per_sample_sentence,
)
from lightning_landscape.functional import (
    alpha_beta_margin,
    alpha_beta_violations,
    beta_min,
)
from lightning_landscape.probes import ProbeTable
from lightning_landscape.reporting.findings import Findings
from tests.reporting.test_summary import RUN, informative, summary_of, vacuous

ABOUT = {
    "mixing": None,
    "rounding": 1e-7,
    "training_loss": None,
    "fidelity": {"loss": 0.0, "inner_product": 0.0},
    "stopped_by": None,
}
PAIR = {"alpha": 0.5, "beta": 0.0, "rate": 0.5}


def samples(*of_steps):
    """Return rows: for each probe (loss, reference loss, inner product) of each sample."""
    return [
        PerSampleRow(2 * k, 2 * k, j, *values)
        for k, of_step in enumerate(of_steps)
        for j, values in enumerate(of_step)
    ]


SAMPLES = samples(
    [(2.0, 1.0, 0.5), (3.0, 1.0, 0.75), (1.5, 0.5, 2.0)],
    [(2.0, 1.0, -0.5), (1.0, 0.25, 1.0), (0.5, 1.0, -0.25)],
)


def entry_of(rows, about=None, pair=None, table=None):
    """Return the entry of rows, on the probes of an informative run."""
    run = {**RUN, "loss": {"infimum": 0.0}}
    findings = Findings(ProbeTable(informative() if table is None else table), run, pair or PAIR)
    entry = per_sample_entry(rows, {**ABOUT, **(about or {})}, findings)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    return entry


def columns_of(rows):
    names = ("loss", "reference_loss", "inner_product")
    columns = {
        name: torch.tensor([getattr(one, name) for one in rows], dtype=torch.float64)
        for name in names
    }
    return {**columns, "loss_infimum": torch.zeros(len(rows), dtype=torch.float64)}


def test_the_pair_of_the_mini_batches_is_tested_on_every_sample():
    entry = entry_of(SAMPLES)
    columns = columns_of(SAMPLES)
    margins = alpha_beta_margin(0.5, 0.0, **columns)
    violated = alpha_beta_violations(0.5, 0.0, **columns)
    assert (entry["samples"], entry["probes"], entry["not_finite"]) == (6, 2, 0)
    assert entry["violated"] == int(violated.sum()) == 2
    tight = int(margins.argmin())
    assert entry["smallest_margin"] == {
        "value": float(margins.min()),
        "step": SAMPLES[tight].step,
        "sample": SAMPLES[tight].sample,
    }
    assert [step["violated_share"] for step in entry["steps"]] == [1 / 3, 1 / 3]
    for step in entry["steps"]:
        here = columns_of([one for one in SAMPLES if one.step == step["step"]])
        assert step["beta"] == pytest.approx(float(beta_min(0.5, **here)))
    for rate, beta in entry["beta_min"].items():
        assert beta == pytest.approx(float(beta_min(float(rate), **columns)))
    of_all = entry["alpha_beta"]
    assert not alpha_beta_violations(of_all["alpha"], of_all["beta"], **columns).any()
    said = per_sample_sentence(entry)
    assert "The same pair is violated by 2 (33.33%) of 6 single samples." in said
    assert "For all of them, α = " in said


def test_samples_that_are_not_finite_are_counted_and_left_out():
    entry = entry_of([*SAMPLES, PerSampleRow(2, 2, 3, float("inf"), 1.0, 0.0)])
    assert (entry["samples"], entry["not_finite"]) == (6, 1)


def test_samples_of_a_probe_that_was_dropped_do_not_count():
    assert entry_of([*SAMPLES, PerSampleRow(99, 99, 0, 1.0, 1.0, 9.0)])["samples"] == 6


def test_a_sample_below_the_infimum():
    entry = entry_of(samples([(2.0, -1.0, 0.5)]))
    assert "loss -1 of sample 0 at step 0 is below loss_infimum 0" in entry["reason"]
    assert entry["violated"] is None
    assert "Nothing can be said of single samples: the loss -1" in per_sample_sentence(entry)


@pytest.mark.parametrize(
    ("rows", "about", "said"),
    [
        (samples([(2.0, 1.0, 0.5)]), {}, "The same pair holds for all 1 single samples."),
        ([], {"stopped_by": "KeyError"}, "No single sample was evaluated: KeyError."),
        (SAMPLES, {"stopped_by": "KeyError"}, "Single samples were evaluated in part (KeyError)."),
        (SAMPLES, {"mixing": "allowed"}, "A single sample's loss may depend on the rest"),
        (
            SAMPLES,
            {"training_loss": {"samples": 2.0, "training_step": 1.0, "same": False}},
            "the mean of their losses was 2, and the loss of training_step was 1.",
        ),
        (
            SAMPLES,
            {"fidelity": {"loss": 0.0, "inner_product": 0.25}},
            "their inner products differ from those of the mini-batches by 0.25",
        ),
    ],
)
def test_sentences(rows, about, said):
    assert said in per_sample_sentence(entry_of(rows, about))


def test_without_a_pair_there_is_nothing_to_test():
    entry = entry_of(SAMPLES, pair={"alpha": None, "beta": None, "rate": None})
    assert entry["reason"] == "there is no pair to test"
    assert per_sample_sentence(None) == ""


def drawn(entry):
    """Return the picture of a run with this entry."""
    pytest.importorskip("matplotlib")
    from lightning_landscape.reporting.figures import Drawn
    from tests.helpers.pictures import check_whole

    summary = summary_of(*informative())
    if entry is not None:
        summary["per_sample"] = entry
    figure = PerSample.figures(Drawn(ProbeTable(informative()), summary))["per_sample"]
    check_whole(figure)
    return figure


def test_the_picture_shows_quantiles_and_the_share_of_violations():
    entry = entry_of(SAMPLES)
    margins, violations = drawn(entry).axes
    assert margins.get_legend_handles_labels()[1] == [
        "all samples",
        "5 % to 95 %",
        "25 % to 75 %",
        "median",
    ]
    shares = [100 * step["violated_share"] for step in entry["steps"]]
    assert violations.lines[0].get_ydata().tolist() == shares
    (median,) = (line for line in margins.lines if line.get_label() == "median")
    assert median.get_ydata().tolist() == [step["quantiles"]["0.5"] for step in entry["steps"]]


def test_a_picture_without_samples_says_why():
    from tests.helpers.pictures import said

    assert "no single samples were evaluated" in said(drawn(None))
    below = entry_of(samples([(2.0, -1.0, 0.5)]))
    assert "no margins of single samples: the loss -1 of sample 0" in said(drawn(below))
    assert "no violations by single samples to draw" in said(drawn(below))


def test_a_vacuous_run_has_no_pair():
    found = summary_of(*vacuous())["conditions"]["alpha_beta"]
    entry = entry_of(SAMPLES, pair=found, table=vacuous())
    assert entry["violated"] is None
