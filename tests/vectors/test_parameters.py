"""The optimizer's parameters, and swaps of them whatever comes in between."""

import pytest
import torch
from torch import nn

from lightning_landscape.vectors.parameters import (
    Swap,
    copied,
    named_parameters,
    optimized_parameters,
)


def test_optimized_parameters_are_the_optimizers_by_plain_names():
    module = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"), nn.Linear(2, 2))
    optimizer = torch.optim.SGD([*module[0].parameters(), module[1].bias], lr=0.1)
    assert list(optimized_parameters(module, optimizer)) == ["0.weight", "0.bias", "1.bias"]


def test_swap_puts_back_after_an_error_and_nested():
    module = nn.Linear(2, 2)
    swap, before = Swap(module), copied(named_parameters(module))
    with pytest.raises(RuntimeError), swap.to({"weight": torch.zeros(2, 2)}):
        assert not module.weight.any()
        with swap.to({"weight": torch.ones(2, 2)}, {"bias": torch.ones(2)}):
            assert module.weight.sum() == 4
        assert not module.weight.any()
        assert torch.equal(module.bias, before["bias"])
        raise RuntimeError
    assert all(torch.equal(value, before[name]) for name, value in named_parameters(module).items())


def test_recover_puts_back_what_an_interrupted_restore_left(monkeypatch):
    from lightning_landscape.vectors import parameters

    module = nn.Linear(2, 2)
    swap, before = Swap(module), copied(named_parameters(module))
    original, calls = parameters.assign, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(parameters, "assign", interrupted)
    with pytest.raises(KeyboardInterrupt), swap.to({"weight": torch.zeros(2, 2)}):
        pass
    assert not module.weight.any()
    swap.recover()
    assert torch.equal(module.weight, before["weight"])


def test_values_one_after_another_are_assigned_anew_and_the_originals_are_back_at_the_end():
    module = nn.Linear(2, 2)
    swap, before = Swap(module), copied(named_parameters(module))
    with pytest.raises(RuntimeError), swap.one_after_another():
        with swap.to({"weight": torch.zeros(2, 2), "bias": torch.ones(2)}):
            with swap.to({"bias": torch.zeros(2)}):
                assert not module.bias.any()
            assert module.bias.sum() == 2
            module.weight.data.fill_(7)  # as a loss may that has a momentum encoder
        with swap.to({"weight": torch.zeros(2, 2)}):
            assert not module.weight.any()
            assert torch.equal(module.bias, before["bias"])  # of this block's values it is none
        with swap.to({"bias": torch.full((2,), 3.0)}):
            assert torch.equal(module.weight, before["weight"])
            raise RuntimeError
    assert all(torch.equal(value, before[name]) for name, value in named_parameters(module).items())
    with swap.to({"weight": torch.zeros(2, 2)}):
        pass
    assert torch.equal(module.weight, before["weight"])


def test_recover_puts_back_what_was_moved_one_after_another(monkeypatch):
    from lightning_landscape.vectors import parameters

    module = nn.Linear(2, 2)
    swap, before = Swap(module), copied(named_parameters(module))
    original, calls = parameters.assign, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:  # to put the originals back
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(parameters, "assign", interrupted)
    with pytest.raises(KeyboardInterrupt), swap.one_after_another():
        for number in range(2):
            with swap.to({"weight": torch.full((2, 2), float(number))}):
                pass
    assert module.weight.sum() == 4
    swap.recover()
    assert torch.equal(module.weight, before["weight"])
