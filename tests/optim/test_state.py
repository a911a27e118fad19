"""State of the optimizers: resumed, copied and pickled runs equal the uninterrupted one bitwise."""

import copy
import pickle

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from tests.optim.problems import METHODS, Perceptron, closure_of, leaves


def groups(parameters):
    return [{"params": parameters[:1]}, {"params": parameters[1:]}]


def train(optimizer, problem, parameters, batches):
    return [
        (optimizer.step(closure_of(optimizer, problem, parameters, b)).item(), optimizer.step_size)
        for b in batches
    ]


def by_torch_save(optimizer, parameters, folder):
    torch.save(
        {"optimizer": optimizer.state_dict(), "x": [p.detach() for p in parameters]},
        folder / "state.pt",
    )
    saved = torch.load(folder / "state.pt", weights_only=True)
    fresh = [torch.nn.Parameter(p.clone()) for p in saved["x"]]
    resumed = type(optimizer)(groups(fresh))  # other constants, which the checkpoint overrides
    resumed.load_state_dict(saved["optimizer"])
    return resumed, fresh


def by_deepcopy(optimizer, parameters, folder):
    resumed = copy.deepcopy(optimizer)
    return resumed, [p for group in resumed.param_groups for p in group["params"]]


def by_pickle(optimizer, parameters, folder):
    resumed = pickle.loads(pickle.dumps(optimizer))
    return resumed, [p for group in resumed.param_groups for p in group["params"]]


@pytest.mark.parametrize("how", [by_torch_save, by_deepcopy, by_pickle])
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_is_the_uninterrupted_run(name, how, tmp_path):
    problem = Perceptron()
    batches = [problem.draw() for _ in range(20)]
    parameters = leaves(problem)
    optimizer = METHODS[name](groups(parameters), lr=0.8)
    train(optimizer, problem, parameters, batches[:9])
    resumed, fresh = how(optimizer, parameters, tmp_path)
    assert resumed.step_size == optimizer.step_size
    assert fresh[0] is not parameters[0]
    expected = train(optimizer, problem, parameters, batches[9:])
    assert train(resumed, problem, fresh, batches[9:]) == expected
    assert all(torch.equal(p, q) for p, q in zip(parameters, fresh, strict=True))


@pytest.mark.parametrize("name", ["DecSPS", "AdaGradNormMax"])
def test_the_resume_above_needs_the_state(name):
    problem = Perceptron()
    batches = [problem.draw() for _ in range(20)]
    parameters = leaves(problem)
    optimizer = METHODS[name](parameters, lr=0.8)
    train(optimizer, problem, parameters, batches[:9])
    forgetful = copy.deepcopy(optimizer)
    for group in forgetful.param_groups:
        group.update(forgetful.memory)
    fresh = forgetful.param_groups[0]["params"]
    assert train(forgetful, problem, fresh, batches[9:10]) != train(
        optimizer, problem, parameters, batches[9:10]
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_state_dict_is_plain_numbers_and_stays_what_it_was(name):
    problem = Perceptron()
    parameters = leaves(problem)
    optimizer = METHODS[name](parameters)
    assert optimizer.step_size is None
    train(optimizer, problem, parameters, [problem.draw() for _ in range(3)])
    saved = optimizer.state_dict()
    assert saved["state"] == {}
    (group,) = saved["param_groups"]
    assert {type(group[key]) for key in optimizer.memory} <= {int, float}
    assert group["step_size"] == optimizer.step_size
    before = copy.deepcopy(saved)
    twin = METHODS[name](leaves(problem))
    twin.load_state_dict(saved)
    train(optimizer, problem, parameters, [problem.draw()])
    assert saved == before
    assert twin.step_size == before["param_groups"][0]["step_size"]


@pytest.mark.parametrize("when", ["before the first step", "later"])
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_distributed_checkpoints_hold_what_an_optimizer_remembers(name, flatten, when):
    problem, options = Perceptron(), StateDictOptions(flatten_optimizer_state_dict=flatten)
    batches = [problem.draw() for _ in range(8)]
    module = torch.nn.ParameterList(leaves(problem))
    optimizer = METHODS[name](list(module), lr=0.8)
    untouched = copy.deepcopy(module)
    first = get_optimizer_state_dict(module, optimizer, options=options)
    if when == "later":
        train(optimizer, problem, list(module), batches[:4])
        optimizer.zero_grad()
        first = get_optimizer_state_dict(module, optimizer, options=options)
        untouched = copy.deepcopy(module)
    assert all(torch.equal(p, q) for p, q in zip(module, untouched, strict=True))
    resumed = METHODS[name](list(untouched), lr=0.1)
    set_optimizer_state_dict(untouched, resumed, copy.deepcopy(first), options=options)
    assert train(resumed, problem, list(untouched), batches[4:]) == train(
        optimizer, problem, list(module), batches[4:]
    )
    assert all(torch.equal(p, q) for p, q in zip(module, untouched, strict=True))


def test_the_step_size_is_read_only():
    optimizer = METHODS["NGN"](leaves(Perceptron()))
    with pytest.raises(AttributeError):
        optimizer.step_size = 1.0


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("SPSMax", {"lr": 1.0, "c": 1.0, "loss_infimum": 0.0}),
        ("DecSPS", {"lr": 1.0, "c_init": 1.0, "loss_infimum": 0.0}),
        ("NGN", {"lr": 1.0, "loss_infimum": 0.0}),
        ("AdaGradNormMax", {"lr": 1.0, "b_init": 1.0}),
    ],
)
def test_the_constants_are_the_defaults(name, defaults):
    assert METHODS[name](leaves(Perceptron())).defaults == defaults
