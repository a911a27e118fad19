"""Every condition with one constant: against its inequality, on a quadratic, in undefined cases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from lightning_landscape import conditions as C
from lightning_landscape.functional import QUANTILES

number = st.floats(-10, 10).map(lambda x: round(x, 3))
size = st.floats(0, 10).map(lambda x: round(x, 3))
row = st.fixed_dictionaries(
    {
        "loss": size,
        "reference_loss": size,
        "inner_product": number,
        "grad_sq_norm": size,
        "sq_distance": size,
        "loss_infimum": st.just(0.0),
    }
)
tables = st.lists(row, min_size=1, max_size=8)

LARGEST = {
    "aiming": (C.Aiming, lambda r, c: r["inner_product"] >= c * (r["loss"] - r["loss_infimum"])),
    "polyak_lojasiewicz": (
        C.PolyakLojasiewicz,
        lambda r, c: r["grad_sq_norm"] >= 2 * c * (r["loss"] - r["loss_infimum"]),
    ),
    "relaxed_polyak_lojasiewicz": (
        C.RelaxedPolyakLojasiewicz,  # ‖∇f‖ ≥ (2μ)^½ (f − f*)
        lambda r, c: (
            c <= 0
            or math.sqrt(r["grad_sq_norm"]) >= math.sqrt(2 * c) * (r["loss"] - r["reference_loss"])
        ),
    ),
    "restricted_secant": (
        C.RestrictedSecant,
        lambda r, c: r["inner_product"] >= c * r["sq_distance"],
    ),
    "error_bound": (
        C.ErrorBound,
        lambda r, c: math.sqrt(r["grad_sq_norm"]) >= c * math.sqrt(r["sq_distance"]),
    ),
    "quadratic_growth": (
        C.QuadraticGrowth,
        lambda r, c: r["loss"] - r["reference_loss"] >= c / 2 * r["sq_distance"],
    ),
    "weak_strong_convexity": (
        C.WeakStrongConvexity,
        lambda r, c: (
            r["reference_loss"] >= r["loss"] - r["inner_product"] + c / 2 * r["sq_distance"]
        ),
    ),
    "gradient_angle": (
        C.GradientAngle,
        lambda r, c: (
            r["grad_sq_norm"] * r["sq_distance"] == 0
            or r["inner_product"] >= c * math.sqrt(r["grad_sq_norm"]) * math.sqrt(r["sq_distance"])
        ),
    ),
}
SMALLEST = {
    "smoothness": (
        C.Smoothness,
        lambda r, c: r["grad_sq_norm"] <= 2 * c * (r["loss"] - r["loss_infimum"]),
    ),
    "upper_error_bound": (
        C.UpperErrorBound,
        lambda r, c: math.sqrt(r["grad_sq_norm"]) <= c * math.sqrt(r["sq_distance"]),
    ),
}


def measured(metric, rows):
    """Return the result of a metric after updates row by row."""
    for each in rows:
        metric.update(**{name: each[name] for name in metric.columns})
    return metric.compute()


@pytest.mark.parametrize("name", LARGEST)
@given(rows=tables)
def test_the_constant_is_the_largest_with_which_the_inequality_holds_everywhere(name, rows):
    kind, holds = LARGEST[name]
    result = measured(kind(), rows)
    value, slack = float(result["value"]), 1e-9
    if math.isnan(value):  # every constant holds
        assert all(holds(r, c) for r in rows for c in (-1e3, 0.0, 1e6) if name != "gradient_angle")
        assert result["row"] is None
        return
    if math.isinf(value):  # none does
        assert not all(holds(r, -1e12) for r in rows)
        return
    smaller, larger = value - slack * max(1, abs(value)), value + slack * max(1, abs(value))
    assert all(holds(r, smaller) for r in rows)
    assert not holds(rows[result["row"]], larger)
    alone = [float(measured(kind(), [r])["value"]) for r in rows]
    assert result["ratio"].reshape(-1).tolist() == pytest.approx(alone, nan_ok=True)
    assert result["violated"].reshape(-1).tolist() == [a < 0 for a in alone]
    assert float(result["violated_share"]) == pytest.approx(sum(a < 0 for a in alone) / len(rows))
    asking = sorted(a for a in alone if not math.isnan(a))
    assert result["quantiles"].tolist() == [
        asking[round(share * (len(asking) - 1))] for share in QUANTILES
    ]


@pytest.mark.parametrize("name", SMALLEST)
@given(rows=tables)
def test_the_constant_is_the_smallest_with_which_the_inequality_holds_everywhere(name, rows):
    kind, holds = SMALLEST[name]
    result = measured(kind(), rows)
    value, slack = float(result["value"]), 1e-9
    if math.isinf(value):
        assert not all(holds(r, 1e12) for r in rows)
        assert bool(result["violated"].any())
        return
    assert all(holds(r, value * (1 + slack) + slack) for r in rows)
    assert value == 0 or not holds(rows[result["row"]], value * (1 - slack))
    assert not bool(result["violated"].any())


@given(rows=tables)
def test_quasar_convexity_is_an_interval(rows):
    result = measured(C.QuasarConvexity(), rows)
    lower, upper = float(result["lower"]), float(result["value"])

    def holds(theta):
        return all(
            r["inner_product"] >= theta * (r["loss"] - r["reference_loss"]) - 1e-9 for r in rows
        )

    candidates = [10.0**k for k in range(-9, 10)]
    if math.isnan(upper):
        assert math.isnan(lower)
        assert not any(
            all(r["inner_product"] >= t * (r["loss"] - r["reference_loss"]) for r in rows)
            for t in candidates
        )
        return
    inside = [t for t in candidates if lower <= t <= upper] + (
        [upper] if math.isfinite(upper) else [lower]
    )
    assert all(holds(t) for t in inside)
    if math.isfinite(upper):
        assert not all(
            r["inner_product"] >= upper * 1.001 * (r["loss"] - r["reference_loss"]) + 1e-12
            for r in rows
        )


@given(rows=tables)
def test_star_convexity_is_a_share(rows):
    result = measured(C.StarConvexity(), rows)
    holds = [r["inner_product"] >= r["loss"] - r["reference_loss"] for r in rows]
    assert float(result["value"]) == pytest.approx(sum(holds) / len(rows))
    assert result["row"] == (holds.index(False) if False in holds else None)


def test_the_relaxed_inequality_with_exponent_two_is_that_of_polyak_and_lojasiewicz():
    generator = torch.Generator().manual_seed(0)
    loss, reference, squares = (torch.rand(30, generator=generator).double() for _ in range(3))
    relaxed, plain = C.RelaxedPolyakLojasiewicz(exponent=2.0), C.PolyakLojasiewicz()
    relaxed.update(loss=loss, reference_loss=reference, grad_sq_norm=squares)
    above = loss > reference
    plain.update(loss=loss[above], grad_sq_norm=squares[above], loss_infimum=reference[above])
    assert float(relaxed.compute()["value"]) == pytest.approx(float(plain.compute()["value"]))
    with pytest.raises(ValueError, match="exponents in"):
        bad = C.RelaxedPolyakLojasiewicz(exponent=0.5)
        bad.update(loss=1.0, reference_loss=0.5, grad_sq_norm=1.0)
        bad.compute()


def quadratic(points=200):
    """Return the columns of f = ½ xᵀAx, eigenvalues 0.5, 2, 7, at eigen- and random vectors."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    eigenvalues = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    A = basis @ torch.diag(eigenvalues) @ basis.T
    x = torch.cat([3 * basis.T, torch.randn(points, 3, generator=generator, dtype=torch.float64)])
    g = x @ A
    return {
        "loss": (x * g).sum(1) / 2,
        "reference_loss": torch.zeros(len(x), dtype=torch.float64),
        "loss_infimum": torch.zeros(len(x), dtype=torch.float64),
        "inner_product": (x * g).sum(1),
        "grad_sq_norm": g.square().sum(1),
        "sq_distance": x.square().sum(1),
    }


def test_a_strongly_convex_quadratic_gives_its_mu_and_its_l():
    everything = MetricCollection(
        [
            C.PolyakLojasiewicz(),
            C.RelaxedPolyakLojasiewicz(exponent=2.0),
            C.RestrictedSecant(),
            C.ErrorBound(),
            C.QuadraticGrowth(),
            C.WeakStrongConvexity(),
            C.Smoothness(),
            C.UpperErrorBound(),
            C.QuasarConvexity(),
            C.StarConvexity(),
            C.GradientAngle(),
            C.AlphaBeta(),
        ],
        compute_groups=False,
    )
    everything.update(**quadratic())
    for name in (
        "PolyakLojasiewicz",
        "RelaxedPolyakLojasiewicz",
        "RestrictedSecant",
        "ErrorBound",
        "QuadraticGrowth",
    ):
        assert alone(everything, name)["value"].item() == pytest.approx(0.5), name
        assert alone(everything, name)["row"] == 0, name
    assert alone(everything, "WeakStrongConvexity")["value"].item() == pytest.approx(0.5)
    for name in ("Smoothness", "UpperErrorBound"):
        assert alone(everything, name)["value"].item() == pytest.approx(7.0), name
        assert alone(everything, name)["row"] == 2, name
    # <∇f, x> = 2f
    assert alone(everything, "QuasarConvexity")["value"].item() == pytest.approx(2.0)
    assert alone(everything, "StarConvexity")["value"].item() == 1.0
    # Kantorovich: cos ≥ 2√(μL)/(μ + L)
    assert (
        alone(everything, "GradientAngle")["value"].item() >= 2 * math.sqrt(0.5 * 7) / 7.5 - 1e-12
    )


def alone(collection, name):
    return collection[name].compute()


NOTHING = {
    "loss": 1.0,
    "reference_loss": 1.0,
    "loss_infimum": 1.0,
    "inner_product": 0.0,
    "grad_sq_norm": 0.0,
    "sq_distance": 0.0,
}


@pytest.mark.parametrize(
    ("kind", "change", "value"),
    [
        (C.Aiming, {}, math.nan),
        (C.Aiming, {"inner_product": -1.0}, -math.inf),
        # A loss below the infimum is tested elsewhere.
        (C.Aiming, {"loss": 0.5}, math.nan),
        (C.PolyakLojasiewicz, {}, math.nan),
        (C.RelaxedPolyakLojasiewicz, {"loss": 0.5}, math.nan),
        (C.RestrictedSecant, {}, math.nan),
        (C.ErrorBound, {"grad_sq_norm": 1.0}, math.nan),
        (C.QuadraticGrowth, {}, math.nan),
        (C.QuadraticGrowth, {"loss": 0.5}, -math.inf),
        (C.WeakStrongConvexity, {}, math.nan),
        (C.GradientAngle, {"grad_sq_norm": 1.0}, math.nan),
        (C.Smoothness, {}, 0.0),
        (C.Smoothness, {"grad_sq_norm": 1.0}, math.inf),
        (C.UpperErrorBound, {}, 0.0),
        (C.UpperErrorBound, {"grad_sq_norm": 1.0}, math.inf),
        (C.QuasarConvexity, {}, math.inf),
        (C.QuasarConvexity, {"inner_product": -1.0}, math.nan),
        (C.StarConvexity, {}, 1.0),
    ],
)
def test_every_undefined_case_is_decided(kind, change, value):
    result = measured(kind(), [{**NOTHING, **change}])
    assert result["value"].item() == pytest.approx(value, nan_ok=True)
    # A probe at which every constant holds changes nothing.
    if math.isnan(value) and kind is not C.QuasarConvexity:
        other = {"loss": 3.0, "reference_loss": 1.0, "loss_infimum": 0.0, "inner_product": 1.0}
        other |= {"grad_sq_norm": 2.0, "sq_distance": 4.0}
        both = measured(kind(), [{**NOTHING, **change}, other])
        assert both["value"] == measured(kind(), [other])["value"]
        assert both["row"] == 1


@pytest.mark.parametrize(
    "kind",
    [kind for kind, _ in {**LARGEST, **SMALLEST}.values()] + [C.QuasarConvexity, C.StarConvexity],
)
def test_columns_that_are_not_finite_are_refused_by_name(kind):
    metric = kind()
    rows = {**NOTHING, metric.columns[-1]: math.nan}
    metric.update(**{name: rows[name] for name in metric.columns})
    with pytest.raises(ValueError, match=f"`{metric.columns[-1]}` is nan in row 0"):
        metric.compute()


def test_batches_of_probes_and_single_ones_give_the_same():
    columns = quadratic(20)
    for kind, _ in {**LARGEST, **SMALLEST}.values():
        whole, parts = kind(), kind()
        chosen = {name: columns[name] for name in whole.columns}
        whole.update(**chosen)
        for k in range(len(columns["loss"])):
            parts.update(**{name: column[k] for name, column in chosen.items()})
        a, b = whole.compute(), parts.compute()
        assert a["value"] == b["value"]
        assert a["row"] == b["row"]
        parts.reset()
        parts.update(**chosen)
        assert parts.compute()["value"] == a["value"]
