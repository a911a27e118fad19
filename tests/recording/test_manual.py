"""`Traces`: which micro-batches belong to a step of manual optimization."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_landscape.recording.manual import Traces


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def traces_of(net, names=None):
    """Return traces of a run whose x are some parameters of a module."""
    x = {n: p for n, p in net.named_parameters() if names is None or n in names}
    return Traces(SimpleNamespace(parameters=lambda: x))


def micro_batch(traces, net, moments, name, *, backward=True, part=None):
    """Pass one micro-batch through the traces; return the micro-batches of the window."""
    kept = traces.begin(moments)
    if backward:
        x = torch.randn(4, 3)
        (net(x) if part is None else net[part](x)).sum().backward()
    return [*kept, name] if traces.end() else kept


def test_micro_batches_accumulate_until_the_step(net):
    traces, moments = traces_of(net), []
    for name in "abc":
        moments = micro_batch(traces, net, moments, name)
    assert traces.step(moments) == ["a", "b", "c"]


def test_after_zero_grad_only_later_ones_are_left(net):
    traces = traces_of(net)
    moments = micro_batch(traces, net, [], "a")
    net.zero_grad()
    moments = micro_batch(traces, net, moments, "b")
    assert traces.step(moments) == ["b"]


def test_zero_grad_before_the_step_leaves_nothing(net):
    traces = traces_of(net)
    moments = micro_batch(traces, net, [], "a")
    net.zero_grad()
    assert traces.step(moments) == []


def test_a_micro_batch_without_a_backward_pass_does_not_belong_to_the_step(net):
    traces = traces_of(net)
    moments = micro_batch(traces, net, [], "a", backward=False)
    moments = micro_batch(traces, net, moments, "b")
    assert traces.step(moments) == ["b"]


def test_a_micro_batch_of_another_optimizer_does_not_belong_to_the_step(net):
    """It adds to the gradients of the first layer alone, and x is the second one."""
    traces = traces_of(net, ["1.weight", "1.bias"])
    moments = micro_batch(traces, net, [], "a", part=0)
    assert moments == []
    moments = micro_batch(traces, net, moments, "b")
    assert traces.step(moments) == ["b"]


def test_the_trace_of_a_step_is_forgotten_after_it(net):
    traces = traces_of(net)
    moments = traces.step(micro_batch(traces, net, [], "a"))
    assert moments == ["a"]
    net.zero_grad()
    assert traces.step(micro_batch(traces, net, [], "b")) == ["b"]


@pytest.mark.parametrize("seed", range(10))
def test_they_are_those_since_gradients_were_zeroed(seed):
    """Random events, against a list that is emptied where ``zero_grad`` is called."""
    torch.manual_seed(seed)
    net, generator = nn.Linear(3, 1), random.Random(seed)
    traces, moments, expected = traces_of(net), [], []
    for number in range(30):
        event = generator.choice(["batch", "batch", "no backward", "zero", "step"])
        if event == "zero":
            net.zero_grad()
            expected = []
        elif event == "step":
            assert traces.step(moments) == expected
            net.zero_grad()
            moments, expected = [], []
        else:
            backward = event == "batch"
            moments = micro_batch(traces, net, moments, number, backward=backward)
            expected = [*expected, number] if backward else expected
    assert traces.step(moments) == expected


def test_a_sparse_gradient_is_seen():
    net = nn.Embedding(5, 2, sparse=True)
    traces = traces_of(net)
    traces.begin([])
    net(torch.tensor([1, 2])).sum().backward()
    assert traces.end()
    traces.begin(["a"])
    assert not traces.end()
