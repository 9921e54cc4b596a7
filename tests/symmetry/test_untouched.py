"""A search leaves no trace: not in attributes, on classes, in globals, in hooks, nor in caches."""

import functools
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.symmetry.untouched import Memory, left_as_it_was

INPUTS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
TABLES = {}


@functools.lru_cache
def positions(count):
    return torch.arange(count) * 0.1


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.second(self.first(x).relu()) + self.table(len(x))[:, None]


class Attribute(Layers):
    stored = None

    def table(self, count):
        if self.stored is None or len(self.stored) != count:
            self.stored = torch.arange(count) * 0.1
        return self.stored


class Helper:
    def __init__(self):
        self.tables = {}


class InHelper(Layers):
    def __init__(self):
        super().__init__()
        self.helper = Helper()

    def table(self, count):
        return self.helper.tables.setdefault(count, torch.arange(count) * 0.1)


class OnClass(Layers):
    shared = None

    def table(self, count):
        if OnClass.shared is None:
            OnClass.shared = torch.arange(count) * 0.1
        return OnClass.shared


class Global(Layers):
    def table(self, count):
        if count not in TABLES:
            TABLES[count] = torch.arange(count) * 0.1
        return TABLES[count]


class Default(Layers):
    def table(self, count, tables={}):  # ruff: ignore[mutable-argument-default] - such models exist
        return tables.setdefault(count, torch.arange(count) * 0.1)


class Cached(Layers):
    def table(self, count):
        return positions(count)


class Locked(Attribute):
    """Holds what cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock, self.computed = threading.Lock(), self.first.weight * 2


class Uncopied(Attribute):
    """Refuses to be copied."""

    def __deepcopy__(self, memo):
        raise NotImplementedError("there is only one")


class Same(InHelper):
    """Says that it is its own copy."""

    def __deepcopy__(self, memo):
        return self


KINDS = [Attribute, InHelper, OnClass, Global, Default, Cached, Locked, Uncopied, Same]


@pytest.mark.parametrize("kind", KINDS)
def test_tables_that_a_model_fills_are_as_before(kind):
    model = kind()
    assert find_neuron_groups(model, INPUTS).sizes() == {"first.weight:0": 8}
    assert vars(model).get("stored") is None
    assert (OnClass.shared, TABLES) == (None, {})
    assert not getattr(model, "helper", Helper()).tables
    assert all(module.training for module in model.modules())
    result = model(INPUTS)
    assert type(result) is torch.Tensor
    expected = model.second(model.first(INPUTS).relu()) + torch.arange(4)[:, None] * 0.1
    torch.testing.assert_close(result, expected)
    positions.cache_clear()
    TABLES.clear()
    OnClass.shared = None
    Default.table.__defaults__[0].clear()


@pytest.mark.parametrize("kind", KINDS)
def test_tables_that_were_there_stay(kind):
    model = kind()
    before = model(INPUTS)
    assert find_neuron_groups(model, INPUTS).sizes() == {"first.weight:0": 8}
    assert torch.equal(model(INPUTS), before)
    TABLES.clear()
    OnClass.shared = None


def test_what_hooks_collect_is_as_before():
    model, seen, by_name = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), [], {}
    model[0].register_forward_hook(lambda _, inputs, output: seen.append(output))
    model[1].register_forward_hook(lambda _, inputs, output: by_name.update({"relu": output}))
    assert find_neuron_groups(model, INPUTS).sizes() == {"0.weight:0": 8}
    assert (seen, by_name) == ([], {})


def test_a_cache_that_grows_is_no_reason_to_refuse():
    """A state that every evaluation begins with in the same way is no chance."""

    class Growing(Layers):
        def __init__(self):
            super().__init__()
            self.past, self.calls = [], 0
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.past.append(self.first(x))
            self.calls += 1
            self.count += 1
            return self.second(torch.stack(self.past).sum(0).relu()) * self.count * self.calls

    model = Growing()
    assert find_neuron_groups(model, INPUTS).sizes() == {"first.weight:0": 8}
    assert (model.past, model.calls, float(model.count)) == ([], 0, 0)


def test_generators_are_as_before():
    class Noisy(Layers):
        def forward(self, x):
            if self.training and random.random() + np.random.rand() < 5:
                x = x + torch.randn_like(x)
            return self.second(self.first(x).relu())

    model = Noisy()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    find_neuron_groups(model, INPUTS)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_a_model_that_refuses_to_be_copied_keeps_its_weights_and_buffers():
    class Written(Uncopied):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))
            self.plain = torch.zeros(3)

        def forward(self, x):
            self.seen += 1
            self.plain += 1
            return super().forward(x) + self.seen + self.plain

    model = Written().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert len(find_neuron_groups(model, INPUTS)) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.plain, torch.zeros(3))
    assert type(model.seen) is torch.Tensor


def test_one_memory_puts_everything_back_every_time():
    model = InHelper()
    model.listed, model.named = [1, 2], {"a": INPUTS, "b": 2.0}
    before = (list(model.listed), dict(model.named))
    memory = Memory(model)
    for spoil in (
        lambda: model.named.update(a=INPUTS.clone()),
        lambda: model.named.update(c=1),
        lambda: model.named.pop("a"),
        lambda: model.listed.append(3),
        lambda: model.listed.__setitem__(0, 5),
        lambda: model.helper.tables.update({3: 4}),
    ):
        with left_as_it_was(memory):
            spoil()
        assert model.listed == before[0]
        assert model.named.keys() == before[1].keys()
        assert all(model.named[name] is value for name, value in before[1].items())
        assert not model.helper.tables


def test_the_trace_of_training_begins_like_the_one_of_evaluation():
    class Filled(Layers):
        def __init__(self):
            super().__init__()
            self.seen = []

        def table(self, count):
            if self.seen:
                raise AssertionError("a trace has left something")
            self.seen.append(count)
            return torch.zeros(count)

    groups = find_neuron_groups(Filled(), INPUTS)
    assert not groups.caveats


def test_modules_at_any_depth_are_put_back():
    inner = InHelper()
    model = inner
    for _ in range(6):
        model = nn.Sequential(model)
    with left_as_it_was(model):
        model(INPUTS)
        assert inner.helper.tables
    assert not inner.helper.tables


class Converting(Layers):
    def forward(self, x):
        self.second = self.second.to(torch.float32)  # as routers of mixtures of experts do
        return super().forward(x)

    def table(self, count):
        return torch.zeros(count)


def test_a_forward_that_converts_a_module_keeps_its_weights():
    model = Converting().eval()
    weights = dict(model.named_parameters())
    assert find_neuron_groups(model, INPUTS).sizes() == {"first.weight:0": 8}
    assert all(value is weights[name] for name, value in model.named_parameters())
