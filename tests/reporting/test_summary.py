"""The verdict in every case."""

import json

import pytest

from lightning_landscape.probes import ProbeTable
from lightning_landscape.reporting.summary import summarise
from tests.test_probes import row

FINAL = {"kind": "final", "final_sq_distance": 0.0}
RUN = {
    "reference": {"kind": "file", "final_sq_distance": 0.5},
    "optimizer": {"class": "SGD", "defaults": {"lr": 0.1, "momentum": 0, "weight_decay": 0}},
    "sampling": "with_replacement",
    "accumulate_grad_batches": 1,
    "precision": "32-true",
    "steps": 8,
    "probes": 0,
    "fidelity": {"exact": True, "max_abs": 0.0, "steps": [0]},
    "complete": True,
    "stopped_by": "end of training",
}


def summary_of(*rows, windows=2, **run):
    table = ProbeTable(rows)
    summary = summarise(table, {**RUN, "probes": len(table), **run}, windows)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    return summary


def informative():
    # the gradient points away from the reference: (0.5, 0) holds; the loss at x_0 was 2 above
    return [row(0, initial_loss=3.0), row(2, initial_loss=3.0), row(4), row(6)]


def vacuous():
    # p < 0 while the loss is well above: only a large β/δ can hold
    return [row(0, inner_product=-1.0, initial_loss=2.0), row(2, initial_loss=2.0), row(4), row(6)]


def test_informative():
    summary = summary_of(*informative())
    found = summary["conditions"]["alpha_beta"]
    assert (found["alpha"], found["beta"], found["attained"], found["informative"]) == (
        0.5,
        0.0,
        True,
        True,
    )
    assert summary["run"]["drop"] == {
        "value": 2.0,
        "standard_error": 0.0,
        "rows": 2,
        "reason": None,
    }
    holds = "holds at all 4 probes with α = 0.5, β = 0. It is informative: its neighbourhood"
    assert holds in summary["verdict"]
    assert "is 0, the smallest possible; the drop f(x_0) − f(x_p) is 2." in summary["verdict"]


def test_vacuous_is_called_so():
    summary = summary_of(*vacuous())
    found = summary["conditions"]["alpha_beta"]
    assert found["neighbourhood"] == 1.0  # at infinity: σ² max (a − b)/(b − l)
    assert found["attained"] is False
    assert found["informativeness"] == 1.0
    assert found["informative"] is False
    assert "vacuous" in summary["verdict"]
    assert "(β/δ) σ² = 1 is 100 % of the drop f(x_0) − f(x_p) = 1." in summary["verdict"]
    assert "only as δ → ∞" in found["reason"]


def test_no_drop_is_vacuous():
    summary = summary_of(row(0, initial_loss=1.0), row(2, initial_loss=0.5))
    assert summary["conditions"]["alpha_beta"]["informativeness"] is None
    assert (
        "lower the loss: f(x_0) − f(x_p) = -0.25" in summary["conditions"]["alpha_beta"]["reason"]
    )
    assert "vacuous: training did not lower the loss, f(x_0) − f(x_p) = -0.25" in summary["verdict"]


def test_never_above_the_reference_says_nothing():
    summary = summary_of(*(row(k, loss=0.5, initial_loss=3.0) for k in (0, 2)))
    found = summary["conditions"]["alpha_beta"]
    assert (found["alpha"], found["informative"]) == (None, False)
    assert "the condition says nothing" in summary["verdict"]
    assert "informative:" not in summary["verdict"]


def test_an_empty_set():
    summary = summary_of(row(0, reference_loss=0.0, inner_product=-1.0), row(2))
    found = summary["conditions"]["alpha_beta"]
    assert (
        found["alpha"],
        found["neighbourhood"],
        found["violated"],
        found["degenerate_rows"],
    ) == (None, None, 1, 1)
    assert "no pair holds at 1 probe, where" in summary["verdict"]


def test_nothing_evaluated():
    summary = summary_of(row(0, reference_loss=None), complete=False)
    assert "no probe was evaluated" in summary["verdict"]
    assert summary["run"]["drop"]["value"] is None
    assert summary["conditions"]["alpha_beta"]["vertices"] == []
    assert summary_of()["conditions"]["alpha_beta"]["alpha"] is None


def test_an_infimum_that_is_none_names_step_and_values():
    summary = summary_of(row(0), row(2, reference_loss=-0.5))
    assert (
        "reference_loss -0.5 at step 2 is below loss_infimum 0"
        in summary["conditions"]["alpha_beta"]["reason"]
    )


def test_numbers_beyond_float64_are_said_not_printed():
    huge = summary_of(
        *(
            row(k, loss=1.7e308, reference_loss=1e-300, inner_product=-1e300, initial_loss=1.0)
            for k in (0, 2)
        )
    )
    found = huge["conditions"]["alpha_beta"]
    assert found["neighbourhood"] is None or found["neighbourhood"] >= 0
    assert "None" not in huge["verdict"]


def test_a_neighbourhood_whose_ratio_to_the_drop_exceeds_float64_is_vacuous():
    steep = {"loss": 1e300, "inner_product": -1.0, "initial_loss": 1 + 1e-10}
    summary = summary_of(row(0, **steep), row(2, **steep))
    found = summary["conditions"]["alpha_beta"]
    assert found["neighbourhood"] == pytest.approx(1e300)
    assert found["informativeness"] is None
    assert found["informative"] is False
    assert "It is vacuous: its neighbourhood (β/δ) σ² = 1e+300 is beyond" in summary["verdict"]


def test_one_probe():
    summary = summary_of(row(0, initial_loss=2.0))
    assert summary["run"]["drop"]["standard_error"] is None
    assert summary["run"]["drop"]["reason"] == "the standard error needs two rows"
    assert summary["conditions"]["alpha_beta"]["interpolation_error_se"] is None


def test_an_inexact_replay_marks_the_verdict():
    off = summary_of(*informative(), fidelity={"exact": False, "max_abs": 0.25, "steps": [0]})
    assert off["verdict"].startswith(
        "Do not rely on these results: replays differ from the recorded losses by up to 0.25."
    )
    assert off["conditions"]["alpha_beta"]["informative"] is False
    assert "replays differ" in off["conditions"]["alpha_beta"]["reason"]
    rounding = summary_of(*informative(), fidelity={"exact": False, "max_abs": 1e-6, "steps": [0]})
    assert rounding["conditions"]["alpha_beta"]["informative"] is True
    assert (
        "By rounding alone, replays differ from the recorded losses by up to 1e-06."
        in rounding["verdict"]
    )
    assert "Do not rely on" not in rounding["verdict"]
    assert (
        "by a non-finite number"
        in summary_of(*informative(), fidelity={"exact": False, "max_abs": None, "steps": [0]})[
            "verdict"
        ]
    )


def test_a_reference_above_the_late_losses_is_said():
    rows = [row(0, initial_loss=3.0), row(4, loss=0.2), row(5, loss=0.21), row(6, loss=0.19)]
    said = "From step 4 on the mini-batch losses were 0.8 lower than at x_p"
    assert said in summary_of(*rows)["verdict"]
    assert "Caution" in summary_of(*rows)["verdict"]
    assert "Caution" not in summary_of(*informative())["verdict"]


def test_the_end_of_the_same_run_and_few_probes_are_said():
    own = summary_of(*informative(), reference=FINAL)["verdict"]
    assert "x_p is this run's own last iterate" in own
    assert "Only 4 probes were evaluated" in own
    assert "own last iterate" not in summary_of(*informative())["verdict"]
    many = [row(k, initial_loss=3.0) for k in range(12)]
    assert "were evaluated" not in summary_of(*many)["verdict"]
    assert "holds at the only probe" in summary_of(row(0, initial_loss=2.0))["verdict"]


def test_windows_are_the_same_question_on_a_slice():
    windows = summary_of(*vacuous(), windows=4)["conditions"]["alpha_beta"]["windows"]
    assert [(w["from"], w["to"], w["probes"]) for w in windows] == [
        (0, 2, 1),
        (2, 4, 1),
        (4, 6, 1),
        (6, 8, 1),
    ]
    assert windows[0]["attained"] is False
    assert (windows[1]["alpha"], windows[1]["beta"]) == (0.5, 0.0)
    empty = summary_of(row(0), windows=4)["conditions"]["alpha_beta"]["windows"][3]
    assert empty["reason"] == "no probe was evaluated at the reference"


CONDITIONS = {
    "quasar_convexity": "theta",
    "star_convexity": "share",
    "aiming": "theta",
    "polyak_lojasiewicz": "mu",
    "relaxed_polyak_lojasiewicz": "mu",
    "restricted_secant": "mu",
    "error_bound": "mu",
    "upper_error_bound": "L",
    "quadratic_growth": "mu",
    "weak_strong_convexity": "mu",
    "gradient_angle": "cosine",
    "smoothness": "L",
}
BOUNDS = {
    "sgd",
    "sgd_sharp",
    "sgd_decreasing",
    "sps_max",
    "dec_sps",
    "ngn",
    "ngn_decreasing",
    "adagrad_norm_max",
}
BOUNDS |= {"gradient_descent", "trajectory"}


@pytest.mark.parametrize(
    "rows",
    [
        informative(),
        vacuous(),
        [],
        [row(0)],
        [row(0, reference_loss=-1.0), row(2, sq_distance=0.0)],
    ],
)
def test_every_key_of_the_contract_is_there_with_a_value_or_a_reason(rows):
    summary = summary_of(*rows)
    for key, constant in CONDITIONS.items():
        found = summary["conditions"][key]
        assert found["constant"] == constant
        assert {"value", "step", "measured_on", "violated", "windows", "reason"} <= set(found)
        assert (found["value"] is None) == (found["reason"] is not None), key
        assert len(found["windows"]) == 2
    assert set(summary["bounds"]) >= BOUNDS
    for key, bound in summary["bounds"].items():
        assert {
            "value",
            "status",
            "applies",
            "reason",
            "alpha",
            "beta",
            "constants",
            "terms",
            "informativeness",
        } <= set(bound)
        assert set(bound["terms"]) == {"initial_distance", "step_size_noise", "neighbourhood"}
        assert bound["applies"] is (bound["value"] is not None), key
        assert (bound["status"] == "does_not_apply") is (bound["value"] is None), key
        assert bound["reason"], key


def test_an_infimum_that_is_none_costs_only_what_uses_it():
    found = summary_of(row(0, loss=-0.5), row(2))["conditions"]
    for key in ("aiming", "polyak_lojasiewicz", "smoothness"):
        assert "loss -0.5 at step 0 is below loss_infimum 0" in found[key]["reason"]
    assert found["restricted_secant"]["value"] == 0.5


def test_violations_have_a_place():
    rows = [row(k, inner_product=-1.0 if k in (2, 4) else 1.0) for k in range(8)]
    found = summary_of(*rows)["conditions"]["restricted_secant"]
    assert (found["violated"], found["violated_share"], found["violated_between"]) == (
        2,
        0.25,
        [2, 4],
    )
    assert (found["value"], found["step"]) == (-1.0, 2)
    assert [(w["value"], w["violated"]) for w in found["windows"]] == [(-1.0, 1), (-1.0, 1)]
    alone = summary_of(row(0, inner_product=-1.0))["conditions"]["restricted_secant"]
    assert (alone["violated"], alone["violated_between"]) == (1, [0, 0])


def test_conditions_without_a_constant_say_why():
    below = summary_of(row(0, loss=0.5, inner_product=1.0), row(2, loss=0.5))["conditions"]
    above = "no probe has a loss above its loss at the reference: every θ holds"
    assert below["quasar_convexity"]["reason"] == above
    there = summary_of(row(0, sq_distance=0.0, inner_product=0.0, loss=1.0))["conditions"]
    every = "no probe restricts the constant: every value holds"
    assert there["restricted_secant"]["reason"] == every
    assert there["upper_error_bound"]["reason"] == "no constant holds at step 0"
    away = summary_of(row(0, inner_product=-1.0))["conditions"]
    assert away["quasar_convexity"]["reason"] == "no θ > 0 holds at every probe"


def steady(**values):
    """Return a run of plain SGD with steps of 0.1, every second one probed."""
    return [
        row(2 * k, step_size=0.1, initial_loss=3.0, reference_loss=1 + 1e-3 * (k % 2), **values)
        for k in range(8)
    ]


def test_the_verdict_names_what_dominates_and_what_would_help():
    summary = summary_of(
        *steady(loss=3.0, inner_product=2.0, grad_sq_norm=1.0, sq_distance=2.0), steps=16
    )
    assert summary["bound_in_force"] == "sgd_sharp"
    best = summary["bounds"]["sgd_sharp"]
    bounds = f"bounds the smallest expected gap f(x_k) − f(x_p) by {best['value']:.4g}. That is"
    assert bounds in summary["verdict"]
    assert " % of it is the initial distance, which more steps shrink" in summary["verdict"]
    near = summary_of(
        *steady(loss=3.0, inner_product=2.0, grad_sq_norm=1.0, sq_distance=1e-6), steps=16
    )
    assert (
        "is step-size noise, which a smaller or a decreasing step size shrinks" in near["verdict"]
    )
    # δ ≤ 2Lγ = 0.4 asks for more than the pair with β = 0 has, δ = 0.05
    forced = summary_of(
        *steady(loss=3.0, inner_product=0.1, grad_sq_norm=12.0, sq_distance=1e-6), steps=16
    )
    assert (
        "the step size rules out the pair with the smallest β/δ, which a smaller step size would"
        in forced["verdict"]
    )


def test_the_verdict_without_a_theorem_gives_the_reason():
    summary = summary_of(*steady(sq_distance=2.0), sampling="sequential", steps=16)
    assert summary["bound_in_force"] == "trajectory"
    assert "No theorem applies: the training loader does not shuffle" in summary["verdict"]
    assert (
        "The certificate of this trajectory bounds the mean gap over its steps"
        in summary["verdict"]
    )
    adam = {"class": "Adam", "defaults": {"lr": 0.1, "betas": [0.9, 0.999], "weight_decay": 0}}
    off = summary_of(*(row(2 * k, step_residual=1.0) for k in range(8)), optimizer=adam, steps=16)
    assert off["bound_in_force"] is None
    assert (
        "No theorem applies: steps of Adam were not along the mini-batch gradient" in off["verdict"]
    )
    assert "trajectory bounds" not in off["verdict"]


def test_a_bound_beside_no_drop_is_vacuous():
    rows = [row(2 * k, initial_loss=0.5) for k in range(8)]
    said = "This bound is vacuous, because training did not lower the loss"
    assert said in summary_of(*rows, steps=16)["verdict"]
    unknown = [row(2 * k) for k in range(8)]
    said = "The drop f(x_0) − f(x_p) to compare this bound with was not measured"
    assert said in summary_of(*unknown, steps=16)["verdict"]


def test_losses_that_float32_rounds_to_the_infimum_leave_a_bound():
    rounded = row(
        16,
        loss=0.0,
        reference_loss=0.0,
        inner_product=0.0,
        grad_sq_norm=1e-8,
        step_size=0.1,
        initial_loss=3.0,
    )
    bound = summary_of(*steady(loss=3.0, inner_product=2.0, grad_sq_norm=1.0), rounded, steps=18)[
        "bounds"
    ]["sgd_sharp"]
    assert bound["applies"]
    assert bound["constants"]["smoothness"] == pytest.approx(1 / 6)
    assert "losses of 1 probes are at loss_infimum to float32 rounding" in bound["reason"]
    steep = rounded.with_values(
        grad_sq_norm=1.0
    )  # no rounding of a loss of 3 explains this gradient
    refused = summary_of(*steady(loss=3.0, inner_product=2.0, grad_sq_norm=1.0), steep, steps=18)[
        "bounds"
    ]["sgd_sharp"]
    assert (
        "a loss is at loss_infimum, or below, while its gradient is not zero" in refused["reason"]
    )


def test_a_run_that_was_cut_says_so_first():
    summary = summary_of(*informative(), complete=False, stopped_by="KeyboardInterrupt")
    assert summary["verdict"].startswith(
        "Incomplete: the run ended early (KeyboardInterrupt). The α-β-condition holds at"
    )


def test_advice_is_that_of_the_theorem():
    adaptive = {
        "class": "AdaGradNormMax",
        "module": "lightning_landscape.optim",
        "defaults": {"lr": 0.1, "b_init": 1.0},
    }
    rows = [
        row(
            2 * k,
            loss=3.0,
            reference_loss=2 + 0.1 * (k % 2),
            inner_product=4.0,
            grad_sq_norm=0.1,
            sq_distance=1e-6,
            initial_loss=9.0,
        )
        for k in range(8)
    ]
    rows = [p.with_values(step_size=0.1 / (1 + 0.1 * (p.step + 1)) ** 0.5) for p in rows]
    summary = summary_of(
        *rows, optimizer=adaptive, reference={"kind": "file", "final_sq_distance": 1e-6}, steps=16
    )
    assert summary["bound_in_force"] == "adagrad_norm_max"
    assert (
        "is step-size noise, which a larger b_init or larger batches shrink" in summary["verdict"]
    )
