"""`Training`: one run as the monitor sees it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_landscape.training.processes import Processes
from lightning_landscape.training.training import Training
from tests.helpers.steps import flat


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 1)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def training_of(net, parameters=None, part=None, processes=None):
    optimizer = torch.optim.SGD(list(parameters or net.parameters()), lr=0.1)
    trainer = SimpleNamespace(optimizers=[optimizer])
    return Training.of(trainer, net, optimizer, processes, part)


def test_x_are_the_parameters_of_the_optimizer(net):
    training = training_of(net, net.second.parameters())
    assert list(training.parameters()) == ["second.weight", "second.bias"]
    assert training.parameters()["second.weight"] is net.second.weight


def test_a_part_is_the_parameters_of_one_submodule(net):
    training = training_of(net, part="first")
    assert list(training.parameters()) == ["first.weight", "first.bias"]
    assert set(training.others()) == {"second.weight", "second.bias", "frozen"}


def test_x_and_others_are_all_parameters_once(net):
    for held in (net.first.parameters(), net.second.parameters(), None):
        training = training_of(net, held)
        names = [*training.parameters(), *training.others()]
        assert sorted(names) == sorted(name for name, _ in net.named_parameters())


def test_present_values_are_a_copy(net):
    training = training_of(net)
    present = training.present()
    before = flat(present)
    with torch.no_grad():
        net.first.weight.add_(1)
    assert torch.equal(flat(present), before)
    assert not torch.equal(flat(training.present()), before)
    assert not any(value.requires_grad for value in present.values())


def test_values_are_in_the_memory_of_training(net):
    training = training_of(net)
    values = training.values_of({"first.weight": None})
    assert list(values) == ["first.weight"]
    assert values["first.weight"].data_ptr() == net.first.weight.data_ptr()
    others = training_of(net, net.first.parameters()).others()
    assert others["second.bias"].data_ptr() == net.second.bias.data_ptr()


def test_values_by_a_name_that_is_gone_are_an_error(net):
    with pytest.raises(KeyError):
        training_of(net).values_of({"third.weight": None})


def test_a_parameter_that_joins_the_optimizer_joins_x(net):
    training = training_of(net, net.first.parameters())
    training.optimizer.add_param_group({"params": [net.second.bias]})
    assert "second.bias" in training.parameters()
    assert "second.bias" not in training.others()


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_first_one_measures(net, rank):
    processes = SimpleNamespace(first=rank == 0, size=2, rank=rank)
    assert training_of(net, processes=processes).measures == (rank == 0)


def test_one_process_measures_and_nothing_is_sharded(net):
    training = training_of(net)
    assert training.measures
    assert not training.sharded
    assert training.shares == {}
    assert training.processes.size == Processes().size == 1


def test_it_cannot_be_changed(net):
    training = training_of(net)
    with pytest.raises(AttributeError):
        training.sharded = True


def test_products_are_those_of_flat_vectors(net):
    training = training_of(net)
    x, y = training.present(), {n: p + 1 for n, p in training.present().items()}
    product, distance = training.products.inner_product_and_distance(x, y, dict(x), 2.0)
    away = flat(x) - flat(y)
    assert product == pytest.approx(float(2 * torch.dot(flat(x), away)), rel=1e-6)
    assert distance == pytest.approx(float(torch.dot(away, away)), rel=1e-6)
