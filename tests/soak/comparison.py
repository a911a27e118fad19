"""A measured table against the recomputed one; tolerances are bounds on rounding, by dtype."""

import math

import torch


def schedule(one, entries):
    """Return the steps that must have a row, by the rule of the documentation."""
    kept, due, stride = [], 0, one.every_n_steps
    for entry in entries:
        while entry.step >= due and len(kept) >= one.max_probes:
            kept, stride = kept[::2], stride * 2
            due = kept[-1] + stride
        if entry.step < due:
            continue
        if measurable(entry):
            kept.append(entry.step)
            due = entry.step + stride
        else:
            due = entry.step + (stride if kept else 1)
    return kept


def measurable(entry):
    gradient, _, _ = entry.gradient
    return (
        math.isfinite(entry.loss)
        and bool(gradient)
        and all(bool(g.isfinite().all()) for g in gradient.values())
    )


def dot(left, right):
    return sum(
        float((left[name].double() * right[name].double()).sum()) for name in left if name in right
    )


def difference(left, right):
    return {name: left[name].double() - right[name].double() for name in left}


def norm(vector):
    return math.sqrt(dot(vector, vector))


def error(gradient, parameters):
    """Return a bound on the norm of a gradient's rounding error.

    It is summed in its own dtype, with one rounding for each micro-batch and process beyond the
    first. Products of its entries are summed in float32 (float64 for float64), in blocks whose
    roundings grow far slower than the 64 here.
    """
    _, addends, count = gradient
    dtypes = {p.dtype for p in parameters.values()}
    own = max(torch.finfo(dtype).eps for dtype in dtypes)
    working = torch.finfo(torch.float64 if dtypes == {torch.float64} else torch.float32).eps
    return addends * (own * (2 * count if count > 1 else 0) + 64 * working)


def near(found, expected, tolerance, what):
    assert found is not None, f"{what}: nothing, expected {expected}"
    assert abs(found - expected) <= tolerance, (
        f"{what}: {found}, expected {expected} ± {tolerance:.3g}"
    )


def compare(one, run, recording):
    """Assert that a run's tables are the recomputed ones."""
    entries, names, reference = recording
    by_step = {entry.step: entry for entry in entries}
    expected = [
        step for step in schedule(one, entries) if math.isfinite(by_step[step].reference_loss)
    ]
    steps = [probe.step for probe in run.table]
    if one.max_overhead is None:
        assert steps == expected, f"steps {steps}, expected {expected}"
    assert steps, "no rows"
    assert steps[0] == expected[0], f"first step {steps[0]}, expected {expected[0]}"
    for probe in run.table:
        compare_row(one, run, probe, by_step[probe.step], names, reference)
    assert any(probe.initial_loss is not None for probe in run.table), "no loss at x_0"
    if one.segments:
        first = by_step[steps[0]]
        points = run.tables["segments"]
        assert len({point.step for point in points}) <= one.segments, "too many segments"
        line = [point.loss for point in points if point.step == steps[0]]
        assert line == [first.loss, *first.line, first.reference_loss], (
            f"line {line}, expected {first.line}"
        )
    fidelity = run.summary["run"]["fidelity"]
    assert fidelity["exact"] is True, f"fidelity {fidelity}"
    assert run.summary["run"]["complete"] is True, "not complete"


def compare_row(one, run, probe, entry, names, reference):
    where = f"step {probe.step}, "
    for column in ("epoch", "logged_step", "loss", "reference_loss", "initial_loss"):
        found, wanted = getattr(probe, column), getattr(entry, column)
        if (column == "logged_step" and wanted is None) or (
            column == "initial_loss" and found is None
        ):
            continue
        assert found == wanted, f"{where}{column}: {found}, expected {wanted}"
    gradient = entry.gradient[0]
    before, after = ({name: side[name] for name in names} for side in (entry.before, entry.after))
    off, size = error(entry.gradient, before), norm(gradient)
    away, moved = difference(before, reference), difference(before, after)
    far, long = norm(away), norm(moved)
    working = 1e-12 if all(p.dtype == torch.float64 for p in before.values()) else 1e-6
    squares = size * size
    step_size = dot(moved, gradient) / squares if squares else 0.0
    near(probe.grad_sq_norm, squares, 2 * size * off + off * off, where + "grad_sq_norm")
    near(probe.sq_distance, far * far, working * far * far, where + "sq_distance")
    near(
        probe.inner_product,
        dot(away, gradient),
        (off + working * size) * far,
        where + "inner_product",
    )
    if squares:
        near(
            probe.step_size,
            step_size,
            (3 * off / size + working) * long / size,
            where + "step_size",
        )
        rest = {
            name: m - step_size * gradient.get(name, torch.zeros(())).double()
            for name, m in moved.items()
        }
        near(
            probe.step_residual,
            norm(rest),
            (4 * off / size + working) * long,
            where + "step_residual",
        )
    if one.secant:
        there = entry.next_gradient[0]
        change = {
            n: there.get(n, torch.zeros(())) - gradient.get(n, torch.zeros(()))
            for n in {**there, **gradient}
        }
        both, length = off + error(entry.next_gradient, before), norm(change)
        secants = {row.step: row.grad_sq_change for row in run.tables["secant"]}
        near(
            secants.get(probe.step),
            length * length,
            2 * length * both + both * both,
            where + "secant",
        )
    if one.layers:
        rows = [row for row in run.tables["layers"] if row.step == probe.step]
        covered = []
        for row in rows:
            part = [n for n in names if n == row.layer or n.startswith(row.layer + ".")]
            covered += part
            g, a = {n: gradient[n] for n in part if n in gradient}, {n: away[n] for n in part}
            near(
                row.grad_sq_norm,
                dot(g, g),
                2 * norm(g) * off + off * off,
                f"{where}{row.layer}, grad_sq_norm",
            )
            near(
                row.inner_product,
                dot(a, g),
                (off + working * size) * norm(a),
                f"{where}{row.layer}, inner_product",
            )
        assert sorted(covered) == sorted(names), f"{where}layers cover {covered}"
