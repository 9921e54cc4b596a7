from dataclasses import replace

import numpy as np
import pytest
import torch
from small_networks import Interrupt, same, same_runs
from torch import nn

from slipstream.averaging import LAWA, average_run
from slipstream.comparison import compare_checkpoints
from slipstream.evaluation import Task, TaskBatch, classification_loss
from slipstream.recipes import AfterStream, MetaNeuron, NeuronPlan, judge_tasks, live, train_neuron
from slipstream.recipes.meta_neuron.controls import ClassMeans, OnlineSGD
from slipstream.recipes.meta_neuron.neuron import NetworkState
from slipstream.recipes.meta_neuron.streams import as_streams, losses_along

# One generation, whose candidates no result shows.
from slipstream.recipes.meta_neuron.training import _Population
from slipstream.report.report import write_report
from slipstream.storage.new_run import NewRun
from slipstream.testbed import TaskForm
from slipstream.testbed.tasks import ClassTasks
from slipstream.training import TrainingPlan
from slipstream.trajectory import Trajectory, check_run

SIZES = (6, 5, 4, 3)
FORM = TaskForm(ways=3, shots=4, queries=2, tasks=4, batches=3)
SHORT = NeuronPlan(unroll=5, descent=TrainingPlan(epochs=2, optimizer="adam", lr=1e-2))


def neuron(sizes=SIZES, *, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MetaNeuron(sizes)


def tasks(form=FORM, *, seed=0, shape=(6,)):
    generator = torch.Generator().manual_seed(7)
    centres = torch.randn(5, 1, *shape, generator=generator) * 2
    return ClassTasks(centres + torch.randn(5, 12, *shape, generator=generator), form, seed=seed)


def stream(neuron, count=9):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(2, count, neuron.sizes[0], generator=generator).to(neuron.rate)
    labels = torch.randint(neuron.sizes[-1], (2, count), generator=generator)
    return neuron.born(2, generator), inputs, labels


def test_permuted_units_stay_permuted():
    rule = neuron().double()
    state, inputs, labels = stream(rule)
    orders = [torch.randperm(size) for size in SIZES]

    def moved(state):
        pairs = zip(state.weights, orders[:-1], orders[1:], strict=True)
        parts = zip(state.units.split(SIZES[1:], 1), orders[1:], strict=True)
        units = torch.cat([part[:, order] for part, order in parts], 1)
        return NetworkState(tuple(w[:, a][:, :, b] for w, a, b in pairs), units)

    renamed = orders[-1].argsort()[labels]
    queries = inputs[:, :4]
    after, answers = rule(state, inputs, labels, queries)
    found, own = rule(moved(state), inputs[..., orders[0]], renamed, queries[..., orders[0]])
    torch.testing.assert_close(own, answers[..., orders[-1]])
    torch.testing.assert_close(found.units, moved(after).units)
    for first, second in zip(found.weights, moved(after).weights, strict=True):
        torch.testing.assert_close(first, second)


def test_answers_leave_no_trace_and_streams_do_not_meet():
    rule = neuron().double()
    state, inputs, labels = stream(rule)
    after, answers = rule(state, inputs, labels, inputs)
    order = torch.randperm(inputs.shape[1])
    torch.testing.assert_close(rule.logits(after, inputs[:, order]), answers[:, order])
    alone = NetworkState(tuple(w[1:] for w in state.weights), state.units[1:])
    found, _ = rule(alone, inputs[1:], labels[1:], inputs[1:])
    torch.testing.assert_close(found.units, after.units[1:])


def test_one_layer_whose_states_depend_on_the_label_alone_forgets_the_order():
    rule = neuron((6, 3)).double()
    with torch.no_grad():
        rule.maps["inner"][0].weight[:, :10] = 0.0  # of h and z; the rest is of the label
        rule.rate.fill_(0.02)  # below the bound of the weights
    state, inputs, labels = stream(rule)
    ordered, _ = rule(state, inputs, labels, inputs)
    at = torch.randperm(inputs.shape[1])
    shuffled, _ = rule(state, inputs[:, at], labels[:, at], inputs)
    torch.testing.assert_close(ordered.weights[0], shuffled.weights[0])
    assert not torch.allclose(ordered.weights[0], state.weights[0])


def test_an_update_is_what_the_page_says_unit_by_unit():
    rule = neuron().double()
    state, inputs, labels = stream(rule, 2)
    state = rule.update(state, inputs[:, 0], labels[:, 0])  # states are no longer 0
    found = rule.update(state, inputs[:, 1], labels[:, 1])
    maps = {
        name: lambda v, m=m: m(torch.as_tensor(v)).detach().numpy() for name, m in rule.maps.items()
    }

    def norm(values):
        values = values - values.mean(0)
        return values / np.sqrt((values**2).mean(0) + 1e-6)

    weights = [w[1].numpy() for w in map(torch.Tensor.detach, state.weights)]
    units = [u.detach().numpy()[1] for u in state.units.split(SIZES[1:], 1)]
    x = inputs[1, 1].numpy()
    y, sums = np.stack([maps["expand"]([v]) for v in x]), []
    for w, h in zip(weights, units, strict=True):
        sums.append(norm(w.T @ y))
        y = np.stack([maps["act"](np.concatenate(pair)) for pair in zip(sums[-1], h, strict=True)])
    back = np.zeros((3, 5))
    back[labels[1, 1]] = 1.0
    new = []
    for w, h, z in list(zip(weights, units, sums, strict=True))[::-1]:
        rows = [maps["inner"](np.concatenate(row)) for row in zip(h, z, back, strict=True)]
        new.insert(0, np.clip(rows, -1, 1))
        back = norm(w @ back)
    before = np.stack([maps["first"]([v]) for v in x])
    for own, w, h in zip(found.weights, weights, new, strict=True):
        u = np.stack([maps["prev"](row) for row in before])
        v = np.stack([maps["next"](row) for row in h])
        u, v = u / np.linalg.norm(u, axis=0), v / np.linalg.norm(v, axis=0)
        expected = np.clip(w + rule.rate.item() * u @ v.T, -3, 3)
        np.testing.assert_allclose(own[1].detach().numpy(), expected, atol=1e-9)
        before = h


def test_streams_have_names_of_their_own_and_the_order_that_is_asked_for():
    batch = tasks().batch(0)
    for order in ("class", "random"):
        found = as_streams(batch, order, torch.Generator().manual_seed(0))
        names = [dict(zip(*pair, strict=True)) for pair in zip(
            batch.query[1].tolist(), found.query[1].tolist(), strict=True
        )]  # fmt: skip
        assert len({tuple(sorted(one.items())) for one in names}) > 1
        assert all(sorted(one.values()) == [0, 1, 2] for one in names)
        ordered = [len(torch.unique_consecutive(row)) == 3 for row in found.support[1]]
        assert all(ordered) == (order == "class")
        for number, name in enumerate(names):
            for inputs, label in zip(*(part[number] for part in batch.support), strict=True):
                at = (found.support[0][number] == inputs).all(-1).nonzero().item()
                assert found.support[1][number, at] == name[int(label)]


def test_only_classes_that_came_are_asked_for_and_gradients_end_with_a_piece():
    rule = neuron()
    batch, seen = tasks().batch(0), []

    def call(state, inputs, labels, queries):
        seen.append(state)
        return rule(state, inputs, labels, queries)

    state = rule.born(4, torch.Generator())
    first, *_, last = losses_along(call, state, batch, 4)
    assert len(seen) == 3
    assert not any(one.units.requires_grad or one.weights[0].requires_grad for one in seen)
    _, logits = rule(state, batch.support[0][:, :4], batch.support[1][:, :4], batch.query[0])
    own = batch.query[1] == 0  # the only class in the first piece
    expected = nn.functional.cross_entropy(logits[own], batch.query[1][own])
    torch.testing.assert_close(first, expected)
    after = AfterStream()
    assert after(rule, batch).shape == last.shape


def test_a_search_by_gradient_learns_to_absorb_streams():
    form = replace(FORM, tasks=16, batches=15)
    rule = neuron((6, 8, 3))
    plan = NeuronPlan(unroll=12, descent=TrainingPlan.cosine(2, "adam", 0.03))
    found = train_neuron(Task(rule, tasks(form)), plan=plan)
    judged = Task(rule, tasks(replace(form, batches=4), seed=5))
    metric = AfterStream(metric="accuracy")
    before, after = (judge_tasks(metric, judged, weights=w).mean for w in (None, found.weights))
    assert after > max(0.6, before + 0.2)
    assert same(rule.state_dict(), neuron((6, 8, 3)).state_dict())


@pytest.mark.parametrize("search", ["gradient", "population"])
def test_an_interrupted_search_ends_like_a_whole_one(tmp_path, search):
    plan = replace(SHORT, search=search, population=4)
    given = {"plan": plan, "run_folder": tmp_path / "whole"}
    task = Task(neuron(), tasks(), validation=tasks(seed=1))
    whole = train_neuron(task, **given)
    given["run_folder"] = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_neuron(task, **given, progress=Interrupt(4))
    given["run_folder"] = NewRun(tmp_path / "run", resume=True)
    resumed = train_neuron(task, **given)
    assert same(resumed.weights, whole.weights)
    assert resumed.losses == whole.losses
    assert same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_population_keeps_its_better_half():
    plan = replace(SHORT, search="population", population=6)
    batch, rule = tasks().batch(0), neuron()
    training = _Population(rule, plan)
    training.generator = np.random.default_rng(0)
    state, streams = training.born_for(batch)
    losses = []
    for number in range(6):
        own = {name: value[number] for name, value in training.candidates.items()}

        def call(*given, own=own):
            return torch.func.functional_call(rule, own, given)

        losses.append(float(torch.stack(list(losses_along(call, state, streams, 5))).mean()))
    before = dict(training.candidates)
    training.generator = np.random.default_rng(0)
    found = training.update(lambda batch: torch.zeros(()), batch)
    assert found == pytest.approx(min(losses), rel=1e-5)
    best = np.argsort(losses)[:3]
    for name, value in rule.named_parameters():
        torch.testing.assert_close(training.candidates[name][:3], before[name][best])
        assert torch.equal(value, training.candidates[name][0])


def test_a_life_is_a_run_like_any_other(tmp_path):
    rule = neuron()
    _, inputs, labels = stream(rule, 10)
    held = [(inputs[0, :5], labels[0, :5])]
    task = Task(rule, [(inputs[0, :7], labels[0, :7]), (inputs[0, 7:], labels[0, 7:])])
    task = replace(task, validation=held)
    found = live(task, every=4, seed=2, run_folder=tmp_path / "life")
    born = rule.born(1, torch.Generator().manual_seed(2))
    after, answers = rule(born, inputs[:1], labels[:1], inputs[:1, :5])
    torch.testing.assert_close(found.weights["layers.0"], after.weights[0][0])
    torch.testing.assert_close(found.network(inputs[0, :5]), answers[0])
    run = Trajectory.open(tmp_path / "life")
    assert run.steps == [0, 4, 8, 10]
    assert same(run[-1].weights, found.weights)
    assert list(run[-1].weights) == ["layers.0", "layers.1", "layers.2", "units"]
    expected = classification_loss(found.network, held[0]).item()
    assert run[-1].metrics["validation_loss"] == pytest.approx(expected)
    other = live(task, every=4, seed=3, run_folder=tmp_path / "other")
    assert check_run(tmp_path / "life") == []
    averaged = average_run(run, LAWA(2))
    torch.testing.assert_close(
        averaged["layers.1"], (run[-1].weights["layers.1"] + run[-2].weights["layers.1"]) / 2
    )
    compared = compare_checkpoints([tmp_path / "life", tmp_path / "other"])
    assert str(compared)
    assert not same(other.weights, found.weights)
    write_report([tmp_path / "life", tmp_path / "other"], tmp_path / "page.html")
    assert b"meta-neuron" in (tmp_path / "page.html").read_bytes()


def test_online_sgd_is_sgd():
    rule, batch = neuron((6, 5, 3)), tasks().batch(0)
    control = OnlineSGD(0.1, replay=2, seed=1)
    found = control(rule, batch)
    generator = torch.Generator().manual_seed(1)
    (inputs, labels), (queries, truth) = as_streams(batch, "class", generator)
    starts = [torch.randn(4, *s, generator=generator) * (2 / s[0]) ** 0.5 for s in ((6, 5), (5, 3))]
    kept, networks = [], []
    for row in range(4):
        layers = nn.Linear(6, 5), nn.Linear(5, 3)
        for layer, start in zip(layers, starts, strict=True):
            layer.weight.data, layer.bias.data = start[row].T.clone(), torch.zeros(len(layer.bias))
        networks.append(nn.Sequential(layers[0], nn.ReLU(), layers[1]))
    for step in range(labels.shape[1]):
        at = [step, *kept]
        for row, network in enumerate(networks):
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[row, at]), labels[row, at]).backward()
            optimizer.step()
        control._keep(kept, step, generator)  # which examples: no result shows them
    right = [network(queries[row]).argmax(-1) == truth[row] for row, network in enumerate(networks)]
    assert found == torch.stack(right).float().mean()


def test_class_means_do_not_know_the_order():
    batch = tasks().batch(0)
    shuffled = as_streams(batch, "random", torch.Generator())
    ordered = as_streams(batch, "class", torch.Generator())
    assert ClassMeans()(nn.Identity(), shuffled) == ClassMeans()(nn.Identity(), ordered)


def test_mistakes_are_named():
    rule, batch = neuron(), tasks().batch(0)
    with pytest.raises(TypeError, match="takes a MetaNeuron and a TaskBatch, got a Linear and a"):
        AfterStream()(nn.Linear(1, 1), batch)
    with pytest.raises(TypeError, match="must hold TaskBatches, got a tuple"):
        train_neuron(Task(rule, [tuple(batch)]), plan=SHORT)
    with pytest.raises(TypeError, match="must be a MetaNeuron, got a Linear"):
        train_neuron(Task(nn.Linear(1, 1), [batch]))
    with pytest.raises(TypeError, match="must be a MetaNeuron, got a Linear"):
        live(Task(nn.Linear(1, 1), [batch.support]))
    with pytest.raises(TypeError, match="takes a MetaNeuron, got a Identity"):
        OnlineSGD(0.1)(nn.Identity(), batch)
    with pytest.raises(ValueError, match="must be even and at least 2, got 3"):
        NeuronPlan(population=3)
    with pytest.raises(ValueError, match="sizes must be those of inputs and classes"):
        MetaNeuron((3,))
    with pytest.raises(ValueError, match="unroll must be at least 1 update, got 0"):
        NeuronPlan(unroll=0)
    with pytest.raises(ValueError, match="mutation must be above 0, got -1"):
        NeuronPlan(mutation=-1)
    one = torch.zeros(2, 6)
    with pytest.raises(ValueError, match="labels 0 to 3, but the networks have 3 classes"):
        live(Task(rule, [(one, torch.tensor([0, 3]))]))
    with pytest.raises(ValueError, match="holds a NaN"):
        live(Task(rule, [(one * torch.nan, torch.tensor([0, 1]))]))
    with pytest.raises(ValueError, match="nothing to absorb"):
        live(Task(rule, []))
    broken = TaskBatch((batch.support[0] * torch.nan, batch.support[1]), batch.query)
    with pytest.raises(ValueError, match="loss at step 1 is nan"):
        train_neuron(Task(rule, [broken]), plan=SHORT)
    with pytest.raises(ValueError, match="data is empty"):
        train_neuron(Task(rule, []), plan=SHORT)
