"""Costs: ratios by hand, the schedule counted, a training timed with and without the monitor."""

import itertools
import statistics
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from benchmarks import floors, growth, overhead
from benchmarks.overhead import (
    CASES,
    PERIOD,
    Case,
    fit,
    images,
    mlp,
    probe_costs,
    probes_made,
    reckoned,
    report,
    target_of,
)


def steps(probed, after, plain=2.0):
    return [plain * probed, plain * after, *[plain] * (PERIOD - 2)]


def test_costs_are_in_plain_steps():
    assert probe_costs([9.0] * PERIOD + steps(1.5, 1.25)) == (0.5, 0.75)
    assert probe_costs(steps(1.5, 1.0), first=0) == (0.5, 0.5)


def test_one_slow_moment_moves_no_cost():
    usual, slow = steps(1.5, 1.25), steps(50.0, 90.0)
    assert probe_costs([*usual, *usual, *slow, *usual], first=0) == (0.5, 0.75)


def test_a_machine_that_becomes_slower_moves_no_cost():
    assert probe_costs([*steps(1.5, 1.25), *steps(1.5, 1.25, plain=20.0)], first=0) == (0.5, 0.75)


@pytest.mark.parametrize("length", [1, 10, 500, 1280, 1281, 20_000])
def test_probes_are_those_of_the_schedule(length):
    kept, stride, made = [], 10, 0
    for step in range(length):
        if kept and step < kept[-1] + stride:
            continue
        if len(kept) == 128:
            kept, stride = kept[::2], 2 * stride
            if step < kept[-1] + stride:
                continue
        kept.append(step)
        made += 1
    assert probes_made(length) == (made, len(kept))


def test_a_long_training_is_reckoned_from_its_probes():
    made, kept = probes_made(20_000)
    training, whole = reckoned(20_000, probe=0.2, finalisation=0.5)
    assert training == pytest.approx((1 + 0.2 * made / 20_000) * 1.005)
    assert whole == pytest.approx(training + 0.5 * kept / 20_000)


def test_within_the_first_epoch_nothing_is_compared():
    made, kept = probes_made(499)
    assert reckoned(499, probe=0.2, finalisation=0.5) == pytest.approx(
        (1 + 0.2 * made / 499, 1 + (0.2 * made + 0.5 * kept) / 499)
    )


def test_a_large_network_has_fewer_probes():
    made, kept = probes_made(20_000, most=46)
    assert kept <= 46 < made < probes_made(20_000)[0]
    training, whole = reckoned(20_000, probe=0.2, finalisation=0.5, most=46)
    assert training == pytest.approx((1 + 0.2 * made / 20_000) * 1.005)
    assert whole == pytest.approx(training + 0.5 * kept / 20_000)


def test_a_training_is_timed_and_is_the_same_with_and_without(tmp_path):
    case = Case(lambda: mlp(4), images(784))
    timed = fit(case, PERIOD + 1, tmp_path, every_n_steps=PERIOD, live_epochs=None)
    plain = fit(case, PERIOD + 1, tmp_path)
    assert plain.monitor is None
    assert [row.step for row in timed.monitor.table] == [0, PERIOD]
    for one in (timed, plain):
        assert len(one.steps) == PERIOD + 1
        assert min(one.steps) > 0
        assert sum(one.steps) == pytest.approx(one.training)
        assert one.peak > 2**20
    assert timed.finalisation > plain.finalisation


def test_two_trainings_take_turns_and_a_clock_stands_still_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(overhead, "TURN", 3)
    order, note = [], overhead.Start.on_train_batch_start

    def noting(start, *args):
        note(start, *args)
        order.append(threading.current_thread().name)

    monkeypatch.setattr(overhead.Start, "on_train_batch_start", noting)
    found = overhead.in_turn(Case(lambda: mlp(4), images(784)), 7, 2, tmp_path)
    assert [len(list(group)) for _, group in itertools.groupby(order)] == [3, 3, 3, 3, 1, 1] * 2
    measured, plain = found["seconds"]
    assert len(measured) == len(plain) == 6
    assert min(*measured, *plain) > 0
    assert found["training"] == pytest.approx(sum(measured) / sum(plain))
    assert found["whole"] > found["training"]  # the end of a plain training takes next to nothing


def test_a_training_that_fails_does_not_keep_the_others_waiting():
    turns, done = overhead.Turns(2), []

    def train(place):
        with turns.taking(place):
            turns.let_others(place)
            if place == 0:
                raise RuntimeError("broken on purpose")
            turns.let_others(place)
            done.append(place)

    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(train, place) for place in range(2)]
        with pytest.raises(RuntimeError, match="on purpose"):
            both[0].result(timeout=60)
        both[1].result(timeout=60)
    assert done == [1]


def test_losses_of_samples_have_the_mean_of_the_batch():
    for name, case in CASES.items():
        if not case.mixes:
            module, (inputs, targets) = overhead.Module(case.net()), case.batch()
            batch = (inputs[:4], targets[:4])
            assert torch.allclose(
                overhead.sample_losses(module, batch).mean(), module.training_step(batch, 0)
            ), name


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is read as Linux tells it"
)
def test_a_training_that_is_measured_takes_two_copies_more_and_five_with_a_reference(tmp_path):
    name = "MLP 784-3000-3000-10"
    fit(CASES[name], 2, tmp_path, every_n_steps=1)
    reference = tmp_path / "landscape" / "reference.safetensors"
    copy = 4 * sum(p.numel() for p in CASES[name].net().parameters())
    plain = overhead.peak_memory(name, "plain", None)
    # with a reference: x_p; x_k and g_k; x_{k+1} while the module is at x_p; and then x_0, or at
    # probes 0, 1, 2, 4, … a gradient that is taken again. Three are aimed at
    for kind, copies in {"deferred": 2, "live": 5}.items():
        above = overhead.peak_memory(name, kind, reference) - plain
        assert (copies - 0.1) * copy < above < copies * copy + overhead.BUFFERS


def test_floors_are_in_plain_steps_and_timed_within_a_training(tmp_path):
    floor = floors.Floor(PERIOD)
    timed = fit(Case(lambda: mlp(64), images(784)), 3 * PERIOD, tmp_path, beside=[floor])
    assert len(floor.forward) == len(floor.copies) == 3
    for place, forward in enumerate(floor.forward):
        assert 0 < forward + floor.copies[place] < timed.steps[PERIOD * place]
    floor.forward, floor.copies = [9.0, 1.0, 6.0], [0.9, 0.1, 0.6]
    steps = [*[7.0] * 5, *[1.0] * 3, *[7.0] * 5, *[1.0] * 3, *[7.0] * 5, *[2.0] * 3]
    assert floor.ratios(steps, after=5) == pytest.approx(
        (2.0, 0.2)
    )  # the first one warms up: ratios 1 and 3


def test_shares_of_the_bandwidth_are_of_what_is_read(monkeypatch):
    monkeypatch.setattr(floors, "SHAPES", {"x": (100, 10)})
    called = []

    def one_second(call):
        called.append(call())
        return 1.0

    monkeypatch.setattr(floors, "seconds", one_second)
    found = floors.bandwidth(rounds=2)
    assert len(called) == 8
    assert list(found.values()) == [
        2 * 4000 / 1e9,
        1.0,
        1.5,
        1.5,
    ]  # a copy reads and writes: two times its bytes


def test_cockpit_is_set_beside_it_or_said_to_be_missing():
    result = {"parameters": 2**20, **dict.fromkeys(overhead.ROWS, 0.01)}
    here, gone = (
        {**result, "cockpit": {"tracked": 130.4}},
        {**result, "cockpit": {"failed": "no module"}},
    )
    said = report({"CNN": here, "ResNet18, 32 × 32": gone}, 3.0, {"copy, GB/s": 20.0})
    assert "Cockpit, economy, CNN: 130 plain steps a tracked step" in said
    assert "Cockpit, economy, ResNet18, 32 × 32: no module" in said


def test_what_is_aimed_at():
    assert target_of("CNN", "deferred") == 0.05
    assert target_of("MLP 784-256-256-10", "live") == 0.9
    assert target_of("CNN", "memory_live_copies") == 3
    assert target_of("CNN", "slow_down_2000") == 1.03
    assert target_of("ResNet18, 32 × 32", "deferred") is None


def test_the_table_marks_what_was_missed():
    result = dict.fromkeys(overhead.ROWS, 0.01) | {
        "deferred": 0.3,
        "slow_down_20000": 1.004,
        "slow_down_20000_how": "reckoned",
    }
    result |= {"slow_down_2000": 1.024, "slow_down_2000_error": 0.004, "parameters": 2**20}
    result |= {"memory_deferred_copies": 5.9, "memory_live_copies": 7.1}
    said = report({"CNN": result}, 3.0, {"copy, GB/s": 20.0, "inner product and distance": 0.61})
    assert "0.3 ≤ 0.05 !" in said
    assert "~1.004 ≤ 1.01\n" in said
    assert "1.024 ± 0.004 ≤ 1.03\n" in said
    assert "5.9 ≤ 2\n" in said  # with 16 MiB beside them
    assert "7.1 ≤ 3 !\n" in said
    assert "3.0 µs ≤ 20 µs\n" in said
    assert "a copy (20 GB/s): inner product and distance 61%; aimed at 60%" in said
    assert said.count(" !") == 2 + 1  # and the legend


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_network_takes_its_batch(case):
    torch.manual_seed(0)
    inputs, targets = case.batch()
    outputs = case.net()(inputs[:2])
    assert outputs.shape[:-1] == targets[:2].shape


@pytest.mark.parametrize("parameters", growth.PARAMETERS)
def test_widths_give_about_so_many_parameters(parameters):
    width = growth.width_for(parameters)
    assert width**2 + 796 * width + 10 == pytest.approx(parameters, rel=0.1)


def test_the_table_that_grows_looks_like_a_run():
    columns = growth.table(64)
    assert statistics.mean(columns["loss"].tolist()) > statistics.mean(
        columns["reference_loss"].tolist()
    )
    found = growth.with_probes(64)
    assert found["probes"] == 64
    assert found["best_pair_s"] > 0
