"""A replay in the state of step k, and nothing to be seen of it afterwards."""

import collections
import random
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from lightning_landscape.evaluation.untouched import _set_contents, untouched
from lightning_landscape.recording.random_state import read_random_state, write_random_state
from lightning_landscape.recording.state import capture, put_back
from lightning_landscape.store.freezing import freeze, thaw
from tests.helpers.modules import Meter, Plain

Pair = collections.namedtuple("Pair", ["x", "items"])


class Rich(Plain):
    """Holds one of everything that a module may keep in plain Python."""

    def __init__(self):
        super().__init__()
        shared = [1, 2]
        self.shared, self.again = shared, {"same": shared}
        self.deque, self.default = (
            collections.deque([1, [2]], maxlen=4),
            collections.defaultdict(list, a=[1]),
        )
        self.pair, self.itself = Pair(torch.zeros(2), [3]), []
        self.itself.append(self.itself)
        self.array, self.tensors = np.zeros(3), {"deep": [[torch.zeros(2)]]}
        self.hidden = [nn.BatchNorm1d(2)]
        self.namespace = SimpleNamespace(n=1, items=[])
        self.own, self.rng, self.python = (
            torch.Generator(),
            np.random.default_rng(0),
            random.Random(0),
        )
        self.register_buffer("overlapping", torch.ones(1).expand(4))
        self.register_buffer("absent", None)
        self.lazily = None

    def change_everything(self):
        """Do to each of them what a training_step may do."""
        self.shared.append(3)
        self.deque.append(9)
        self.deque[1].append(9)
        self.default["b"].append(1)
        self.pair.x.add_(1)
        self.pair.items.append(4)
        self.array += 1
        self.tensors["deep"][0][0].add_(1)
        self.hidden[0].running_mean.add_(1)
        self.hidden[0].eval()
        self.namespace.items.append(1)
        self.namespace.n = 2
        self.meter.update(5.0)
        torch.rand(1, generator=self.own)
        self.rng.random(), self.python.random(), random.random(), np.random.rand(), torch.rand(1)
        self.net[1].running_mean.add_(1)
        self.net[1].num_batches_tracked += 1
        self.net[1].running_var = torch.full((16,), 7.0)
        self.net.eval()
        self.accuracy.update(torch.eye(4), torch.arange(4))
        self.running += 1
        self.lazily = torch.ones(3)
        self.new_attribute = [1]
        self.register_buffer("new_buffer", torch.ones(1))
        for p in self.net.parameters():
            p.grad = torch.ones_like(p) if p.grad is None else p.grad.add_(1)
        self.trainer.should_stop = True
        self.trainer.fit_loop.epoch_progress.current.completed += 3
        loop = self.trainer.fit_loop.epoch_loop
        loop.automatic_optimization.optim_progress.optimizer.step.total.completed += 5
        loop.batch_progress.current.ready += 2


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = Rich()
    module.trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1
    )
    return module


def picture(value, seen=()):
    """Return everything that is reachable from a value, as nested plain data."""
    if id(value) in seen:
        return "cycle"
    seen = (*seen, id(value))
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), value.tolist())
    if isinstance(value, np.ndarray):
        return ("array", value.tolist())
    if isinstance(value, torch.Generator):
        return ("generator", value.get_state().tolist())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, dict):
        return {key: picture(item, seen) for key, item in value.items()}
    if isinstance(value, (list, tuple, collections.deque)):
        return [picture(item, seen) for item in value]
    if isinstance(value, nn.Module):
        return {
            key: picture(item, seen)
            for key, item in vars(value).items()
            if key not in ("_trainer", "_compiler_ctx")
        }
    if isinstance(value, (Meter, SimpleNamespace)):
        return picture(vars(value), seen)
    return value if isinstance(value, (int, float, str, bool, type(None))) else type(value).__name__


def everything(module):
    trainer = module.trainer
    counters = (
        trainer.global_step,
        trainer.current_epoch,
        trainer.fit_loop.epoch_loop.batch_progress.current.ready,
    )
    rng = (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state()))
    gradients = [None if p.grad is None else p.grad.tolist() for p in module.parameters()]
    return picture(module), counters, trainer.should_stop, rng, gradients


def test_untouched_undoes_everything(module):
    before = everything(module)
    with untouched(module.trainer, module):
        module.change_everything()
        assert everything(module) != before
    assert everything(module) == before


def test_untouched_undoes_everything_after_an_error_and_with_gradients(module):
    module.net(torch.randn(3, 12)).sum().backward()
    before = everything(module)
    with pytest.raises(ValueError, match="own"), untouched(module.trainer, module):
        module.change_everything()
        raise ValueError("own")
    assert everything(module) == before


def test_untouched_leaves_values_alone_that_the_block_puts_back(module):
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    names = list(before)
    with untouched(module.trainer, module, restored=names[:1]), torch.no_grad():
        for parameter in module.parameters():
            parameter.data += 1
    after = dict(module.named_parameters())
    assert [name for name in names if not torch.equal(after[name], before[name])] == names[:1]


def test_untouched_keeps_identities(module):
    held = dict(vars(module).items())
    inner, buffer, gradient = (
        module.again["same"],
        module.net[1].running_var,
        module.net[0].weight.grad,
    )
    with untouched(module.trainer, module):
        assert module.shared is not held["shared"]
        assert module.shared is module.again["same"]  # aliases stay aliases in the copies
        module.change_everything()
    assert all(vars(module)[name] is value for name, value in held.items())
    assert module.again["same"] is inner
    assert module.net[1].running_var is buffer
    assert module.net[0].weight.grad is gradient


class Loud:
    """Fails when a container of it is copied, read or written through its own methods."""

    def fail(self, *arguments, **values):
        raise AssertionError("called")

    __copy__ = __reduce_ex__ = __iter__ = __setitem__ = __len__ = fail
    append = extend = clear = update = items = keys = pop = fail


CONTAINERS = [
    (list, [[1], 2]),
    (dict, {"a": [1], "b": 2}),
    (collections.OrderedDict, {"a": [1], "b": 2}),
    (collections.defaultdict, {"a": [1], "b": 2}),
    (set, [1, 2]),
    (collections.deque, [[1], 2]),
]


def shown(kind, value):
    return repr(list((kind.items if issubclass(kind, dict) else kind.__iter__)(value)))


@pytest.mark.parametrize(("kind", "contents"), CONTAINERS)
def test_untouched_does_not_call_a_container_of_the_users_own_class(kind, contents, module):
    """Its contents are exchanged, since to copy it would run code of the user's."""
    value = type("Own", (Loud, kind), {})()
    _set_contents(kind, value, contents.items() if isinstance(contents, dict) else contents)
    module.own, value.note = value, [1]
    before, key = shown(kind, value), "a" if isinstance(contents, dict) else 0
    inner = None if kind is set else kind.__getitem__(value, key)
    with untouched(module.trainer, module):
        assert module.own is value
        value.note.append(2)
        if kind is not set:
            twin = kind.__getitem__(value, key)
            assert twin == inner
            assert twin is not inner
            twin.append(7)
        kind.clear(value)
    assert shown(kind, value) == before
    assert value.note == [1]
    if kind is not set:
        assert kind.__getitem__(value, key) is inner


def test_put_back_is_the_state_of_then(module):
    then = everything(module)
    frozen = freeze(capture(module.trainer, module))
    module.change_everything()
    now = everything(module)
    with untouched(module.trainer, module):
        put_back(module.trainer, module, thaw(frozen))
        restored = everything(module)
        # Not stored, so as they are now: the user's objects, metrics, modules in lists, gradients.
        for kept in ("meter", "namespace", "hidden"):
            then[0].pop(kept), restored[0].pop(kept)
        then[0]["_modules"].pop("accuracy"), restored[0]["_modules"].pop("accuracy")
        for p in (then, restored):
            p[0]["_modules"]["net"] = strip_parameters(p[0]["_modules"]["net"])
        assert restored[0].keys() == then[0].keys()
        for key in then[0]:
            if key not in ("pair", "itself", "default"):
                assert restored[0][key] == then[0][key], key
        assert restored[1] == then[1]
        assert restored[3] == then[3]
    assert everything(module) == now


def strip_parameters(net):
    return {
        path: {k: v for k, v in part.items() if k != "_parameters"}
        for path, part in net["_modules"].items()
    }


def test_put_back_writes_buffers_in_place(module):
    frozen = freeze(capture(module.trainer, module))
    buffer = module.net[1].running_mean
    with torch.no_grad():
        buffer.add_(1)
    with untouched(module.trainer, module):
        put_back(module.trainer, module, thaw(frozen))
        assert module.net[1].running_mean is buffer
        assert not buffer.any()
    assert buffer.sum() == 16


def test_large_attributes_are_not_stored_with_every_probe(module):
    module.small, module.large = [[1, 2], {"a": 3}], [[k] for k in range(6000)]
    state = capture(module.trainer, module)["modules"][""]
    assert "small" in state["attributes"]
    assert "large" not in state["attributes"]
    assert "large" in state["names"]


def test_objects_of_libraries_are_left_alone(module):
    module.dataset = torch.utils.data.TensorDataset(torch.zeros(3))
    tensors = module.dataset.tensors
    with untouched(module.trainer, module):
        assert module.dataset.tensors is tensors
        assert module.trainer is module._trainer


def test_random_numbers_go_on_as_they_would_have():
    """Also after a normal draw: Python's and numpy's generators keep a second one."""
    for seed in range(3):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        random.gauss(0, 1), np.random.randn()
        state = thaw(freeze(read_random_state(torch.device("cpu"))))
        own = random.getstate()
        drawn = [
            random.gauss(0, 1),
            random.random(),
            np.random.randn(),
            np.random.rand(),
            float(torch.rand(())),
        ]
        write_random_state(state, torch.device("cpu"))
        assert random.getstate() == own
        again = [
            random.gauss(0, 1),
            random.random(),
            np.random.randn(),
            np.random.rand(),
            float(torch.rand(())),
        ]
        assert again == drawn
