"""The schedule against a simulation that keeps everything."""

from hypothesis import given
from hypothesis import strategies as st

from lightning_landscape.recording.schedule import Schedule, evenly


def simulate(stride, max_probes, steps, missing=()):
    """Run a schedule over training; return it and, after each step, what was kept."""
    schedule, history = Schedule(stride, max_probes), []
    for step in range(steps):
        schedule.make_room(step)
        if schedule.due(step):
            schedule.skip(step) if step in missing else schedule.keep(step)
        history.append((list(schedule.kept), schedule.stride))
    return schedule, history


@given(st.integers(1, 7), st.integers(2, 12), st.integers(1, 300))
def test_bounded_regular_and_near(stride, max_probes, steps):
    _, history = simulate(stride, max_probes, steps)
    for step, (kept, now) in enumerate(history):
        assert kept[0] == 0
        assert len(kept) <= max_probes
        assert kept == list(range(0, kept[-1] + 1, now))
        assert step - kept[-1] < now or step - kept[-1] <= now
        assert now in {stride * 2**k for k in range(12)}


@given(st.integers(1, 5), st.integers(2, 50), st.integers(1, 50))
def test_everything_is_kept_while_it_fits(stride, max_probes, count):
    schedule, _ = simulate(stride, max_probes, stride * (min(count, max_probes) - 1) + 1)
    assert schedule.kept == [stride * k for k in range(min(count, max_probes))]
    assert schedule.stride == stride


@given(st.sets(st.integers(0, 20)), st.integers(2, 6))
def test_the_first_measurable_probe_is_kept_for_ever(missing, max_probes):
    schedule, history = simulate(3, max_probes, 60, missing)
    first = next(step for step in range(60) if step not in missing)
    assert schedule.kept[0] == first
    assert all(kept[0] == first for kept, _ in history if kept)
    assert not set(schedule.kept) & missing


def test_a_budget_lowers_the_limit_and_the_next_due_probe_thins():
    schedule, _ = simulate(1, 100, 10)
    schedule.limit(4)
    assert schedule.make_room(10) == [1, 3, 5, 7, 9, 2, 6]
    assert schedule.kept == [0, 4, 8]
    schedule.limit(0)
    assert schedule.max_probes == 2


@given(st.integers(1, 4), st.integers(2, 20), st.integers(2, 200), st.integers(1, 8))
def test_what_was_chosen_before_suffices_for_what_is_chosen_later(
    stride, max_probes, steps, at_most
):
    _, history = simulate(stride, max_probes, steps)
    available = set()
    for kept, _ in history:
        chosen = evenly(kept, at_most)
        assert len(chosen) <= at_most
        assert len(chosen) * 2 >= min(at_most, len(kept))
        assert chosen[0] == kept[0]
        assert set(chosen) <= available | {kept[-1]}
        available = set(chosen)
