"""Exchanges of several real processes: numbers, objects, tensors, failures; nobody waits."""

import math
import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_landscape.training.failures import FailedElsewhere, NotMeasurable, RefusedElsewhere
from lightning_landscape.training.processes import Processes

SIZE = 3


class Strategy:
    """The part of Lightning's strategy that is used."""

    world_size, root_device = SIZE, torch.device("cpu")

    def __init__(self, rank):
        self.global_rank = rank


def _start(rank, function, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=SIZE,
        timeout=timedelta(seconds=30),
    )
    torch.save(function(Processes(Strategy(rank))), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def in_processes(function, folder):
    """Run a function in real processes; return what each returned."""
    mp.start_processes(_start, (function, str(folder)), nprocs=SIZE, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]


def _numbers(processes):
    rank = processes.rank
    many = [float(rank * 100 + i) for i in range(40)]  # more than one exchange carries
    return {
        "rows": processes.exchange(rank, math.inf if rank == 1 else -rank),
        "many": processes.exchange(*many),
        "mean": processes.mean(2.0**rank),
        "nan": processes.mean(math.nan if rank == 2 else 1.0),
        "everywhere": (processes.everywhere(True), processes.everywhere(rank != 1)),
        "first": processes.of_first(lambda: f"from {rank}"),
        "each": processes.of_each({rank}),
    }


def test_numbers_and_objects(tmp_path):
    for found in in_processes(_numbers, tmp_path):
        assert found["rows"] == [(0.0, 0.0), (1.0, math.inf), (2.0, -2.0)]
        assert found["many"] == [
            tuple(float(rank * 100 + i) for i in range(40)) for rank in range(SIZE)
        ]
        assert found["mean"] == pytest.approx(7 / 3)
        assert math.isnan(found["nan"])
        assert found["everywhere"] == (True, False)
        assert found["first"] == "from 0"
        assert found["each"] == [{0}, {1}, {2}]


def _tensors(processes):
    rank = processes.rank
    like = {"a": torch.zeros(2, 3), "b": torch.zeros(5), "c": torch.zeros(1)}
    mine = {"a": torch.full((2, 3), float(rank))}
    if rank == 1:
        mine["b"] = torch.ones(5)
    given = (
        {"x": torch.arange(6.0).reshape(2, 3).t(), "y": torch.ones(2, dtype=torch.bfloat16)}
        if rank == 0
        else None
    )
    return {
        "means": processes.mean_of(mine, like),
        "first": processes.tensors_of_first(given),
        "none": processes.tensors_of_first(None),
    }


def test_tensors(tmp_path):
    for found in in_processes(_tensors, tmp_path):
        assert set(found["means"]) == {"a", "b"}  # of "c" no process has any
        assert torch.allclose(found["means"]["a"], torch.ones(2, 3))
        assert torch.allclose(found["means"]["b"], torch.full((5,), 1 / 3))
        assert torch.equal(found["first"]["x"], torch.arange(6.0).reshape(2, 3).t())
        assert found["first"]["y"].dtype == torch.bfloat16
        assert found["none"] is None


WHERE = ["before", "exchange", "object", "mean_of", "after"]


ERRORS = {
    "failed": (ValueError("broken"), FailedElsewhere),
    "refused": (MisconfigurationException("unsupported"), RefusedElsewhere),
    "lacking": (NotMeasurable("gone"), NotMeasurable),
}


def _failing(processes):
    """Fail in one process at each place in turn; return what each process saw."""
    seen = []
    for place in WHERE:
        for name, (error, _) in ERRORS.items():
            try:
                with processes.agreed():
                    _some_work(processes, place, error)
            except Exception as problem:
                seen.append((place, name, type(problem), str(problem)))
            _at_the_same_point(processes)
    return seen


def _at_the_same_point(processes):
    with processes.agreed():
        assert processes.mean(processes.rank) == 1.0


def _some_work(processes, place, error):
    def perhaps(here):
        if place == here and processes.rank == 1:
            raise error

    perhaps("before")
    processes.exchange(1.0)
    perhaps("exchange")
    processes.of_each(processes.rank)
    perhaps("object")
    processes.mean_of({"a": torch.ones(2)}, {"a": torch.ones(2)})
    perhaps("mean_of")
    processes.everywhere(True)
    perhaps("after")


def test_a_failure_in_one_process_is_one_in_all_and_nobody_waits(tmp_path):
    for rank, seen in enumerate(in_processes(_failing, tmp_path)):
        assert [(place, name) for place, name, _, _ in seen] == [
            (place, name) for place in WHERE for name in ERRORS
        ]
        for _, name, kind, text in seen:
            own, elsewhere = ERRORS[name]
            assert kind is (type(own) if rank == 1 else elsewhere)
            assert str(own) in text  # everyone can say what happened


def _nested(processes):
    """Fail in the outer block while other processes are in an inner one that handles failures."""
    seen = []
    for place in ("outer", "inner", "both"):
        try:
            with processes.agreed():
                if processes.rank == 1 and place in ("outer", "both"):
                    raise ValueError("of the outer block")
                try:
                    with processes.agreed():
                        if processes.rank == 2 and place in ("inner", "both"):
                            raise KeyError("of the inner block")
                        processes.everywhere(True)
                except Exception as problem:
                    seen.append((place, "handled", type(problem)))
                processes.everywhere(True)
        except Exception as problem:
            seen.append((place, "ended", type(problem)))
        _at_the_same_point(processes)
    return seen


def test_a_handler_of_an_inner_block_does_not_swallow_what_ends_the_outer_one(tmp_path):
    first, second, third = in_processes(_nested, tmp_path)
    assert first == [
        ("outer", "ended", FailedElsewhere),
        ("inner", "handled", FailedElsewhere),
        ("both", "ended", FailedElsewhere),
    ]
    assert second == [
        ("outer", "ended", ValueError),
        ("inner", "handled", FailedElsewhere),
        ("both", "ended", ValueError),
    ]
    # In the last case its own failure ends the inner block, and it learns of the outer one's end.
    assert third == [
        ("outer", "ended", FailedElsewhere),
        ("inner", "handled", KeyError),
        ("both", "ended", FailedElsewhere),
    ]


def _out_of_step(processes):
    try:
        with processes.agreed():
            processes.exchange(*[1.0] * (1 + processes.rank))
    except Exception as problem:
        return str(problem)


def test_processes_at_different_places_are_found_out(tmp_path):
    for found in in_processes(_out_of_step, tmp_path):
        assert "different places" in found


def _several_fail(processes):
    try:
        with processes.agreed():
            if processes.rank:
                raise ValueError(f"in {processes.rank}")
    except Exception as problem:
        _at_the_same_point(processes)
        return str(problem)


def test_several_failures_at_once(tmp_path):
    assert in_processes(_several_fail, tmp_path) == [
        "process 1 failed, ValueError: in 1",
        "in 1",
        "in 2",
    ]


def _kinds_fail(processes):
    """Each process fails with an error of another kind; the kinds decide how all go on."""
    try:
        with processes.agreed():
            raise [
                NotMeasurable("gone"),
                MisconfigurationException("unsupported"),
                ValueError("broken"),
            ][processes.rank]
    except Exception as problem:
        _at_the_same_point(processes)
        return type(problem)


def test_of_several_failures_the_gravest_one_is_that_of_all(tmp_path):
    assert in_processes(_kinds_fail, tmp_path) == [
        RefusedElsewhere,
        MisconfigurationException,
        RefusedElsewhere,
    ]


def _no_memory(processes):
    """One process has no memory for what the others are about to send."""

    def empty(shape, **kwargs):
        if shape == torch.Size([3]):
            raise RuntimeError("out of memory")
        return original[0](shape, **kwargs)

    def zeros_like(like):
        raise RuntimeError("out of memory")

    seen = []
    original = torch.empty, torch.zeros_like
    for function in (
        lambda: processes.tensors_of_first({"x": torch.ones(3)} if processes.first else None),
        lambda: processes.mean_of(
            {"x": torch.ones(3)} if processes.first else {}, {"x": torch.ones(3)}
        ),
    ):
        if processes.rank == 2:
            torch.empty, torch.zeros_like = empty, zeros_like
        try:
            with processes.agreed():
                function()
        except Exception as problem:
            seen.append(type(problem))
        torch.empty, torch.zeros_like = original
        _at_the_same_point(processes)
    return seen


def test_tensors_are_sent_only_once_there_is_room_in_all(tmp_path):
    assert in_processes(_no_memory, tmp_path) == [
        [FailedElsewhere] * 2,
        [FailedElsewhere] * 2,
        [RuntimeError] * 2,
    ]


def test_one_process_asks_nobody():
    alone = Processes()
    assert alone.first
    assert alone.exchange(1.0, 2.0) == [(1.0, 2.0)]
    assert alone.of_each("x") == ["x"]
    assert alone.mean(3.0) == 3.0
    with pytest.raises(ValueError, match="mine"), alone.agreed():
        raise ValueError("mine")
    assert not dist.is_initialized()
    assert "LOCAL_RANK" not in os.environ
