import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from cases import CASES
from slipstream import find_neuron_groups
from slipstream.evaluation import Task, accuracy, classification_loss, evaluate
from slipstream.recipes import (
    Iterand,
    IterandPlan,
    load_ticket,
    save_ticket,
    select,
    ticket_size,
    train_iterand,
)
from slipstream.storage import resumable_state as checkpoint
from slipstream.storage.new_run import NewRun
from slipstream.symmetry.permutation import Permutation
from slipstream.training import TrainingPlan
from slipstream.trajectory import Trajectory, check_run
from slipstream.transfer import TransferPlan, transfer_trajectory
from slipstream.weights import clone, weights_of

SHORT = TrainingPlan.cosine(epochs=6, lr=1.0)
PLAN = IterandPlan(every=2, redrawn=0.3, seed=4, descent=SHORT)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
        )


def batches(count=30):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, 3, generator=generator)
    return list(zip(inputs.split(8), (inputs[:, 0] > 0).long().split(8), strict=True))


def train(plan=PLAN, **given):
    return train_iterand(Task(network(), batches()), plan=plan, **given)


def same(first, second):
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


def test_it_learns_and_leaves_the_model_as_it_was():
    model = network()
    classification_loss(model, batches()[0]).backward()
    before = clone(weights_of(model))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    plan = IterandPlan(descent=TrainingPlan.cosine(epochs=40, lr=0.3))
    found = train_iterand(Task(model, batches()), plan=plan)
    assert same(before, weights_of(model))
    assert same(gradients, {n: p.grad for n, p in model.named_parameters()})
    assert all(p.requires_grad for p in model.parameters())
    assert found.steps == 160
    assert found.rounds == 160
    assert len(found.losses) == len(found.churn) == 40
    assert 0 < sum(found.churn) < 40
    assert found.ticket.pruned == {"0.weight": 0.5, "4.weight": 0.5}
    metrics = {"accuracy": accuracy}
    at = evaluate(model, metrics, weights=found.ticket.weights, data=batches())["accuracy"]
    assert at > 0.9


def test_edge_popup_is_without_randomisation():
    found = train(IterandPlan(redrawn=0.0, every=1, seed=4, descent=SHORT))
    assert found.rounds == 0
    start = Iterand(network(), PLAN).ticket()
    assert same(found.ticket.random, start.random)
    assert ticket_size(found.ticket).births == 0


def test_a_run_is_ordinary_weights(tmp_path):
    model, folder = network(), tmp_path / "run"
    found = train_iterand(
        Task(model, batches(), validation=batches(), metrics={"accuracy": accuracy}),
        plan=PLAN,
        run_folder=NewRun(folder, configuration={"name": "test"}),
    )
    assert check_run(folder) == []
    run = Trajectory.open(folder)
    assert run.steps == [0, 4, 8, 12, 16, 20, 24]
    assert same(run[-1].weights, found.ticket.weights)
    assert run[-1].metrics["churn"] == found.churn[-1]
    assert run[-1].metrics["train_loss"] == found.losses[-1]
    last = evaluate(model, {"a": accuracy}, weights=found.ticket.weights, data=batches())["a"]
    assert run[-1].metrics["validation_accuracy"] == last
    configuration = run.description["configuration"]
    assert configuration["name"] == "test"
    assert configuration["recipe"]["iterand"]["biases"] == "zero"
    loaded = load_ticket(folder)
    assert same(loaded.weights, found.ticket.weights)
    assert same(loaded.scores, found.ticket.scores)
    assert sorted(p.name for p in folder.iterdir()) == [
        "recipe.pt", "run.json", "scores.safetensors", "snapshots", "snapshots.jsonl",
        "ticket.safetensors",
    ]  # fmt: skip


def test_a_run_is_transferred(tmp_path):
    train(run_folder=tmp_path / "run")
    source, target = Trajectory.open(tmp_path / "run"), network(7)
    result = transfer_trajectory(
        source, weights_of(target), Task(target, batches()),
        plan=TransferPlan("fgmt", stages=2),
    )  # fmt: skip
    assert not same(result.weights, weights_of(target))


@pytest.mark.parametrize("at", [1, 9, 13, 24])
def test_an_interrupted_training_ends_in_the_same_bits(tmp_path, at, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)  # a state after every epoch

    def stop(done, total):
        assert total == 24
        if done == at:
            raise KeyboardInterrupt

    whole = train(run_folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(run_folder=tmp_path / "run", progress=stop)
    with pytest.raises(FileNotFoundError, match="there is no finished ticket"):
        load_ticket(tmp_path / "run")
    resumed = train(run_folder=NewRun(tmp_path / "run", resume=True))
    assert same(whole.ticket.weights, resumed.ticket.weights)
    assert same(whole.ticket.scores, resumed.ticket.scores)
    assert same(whole.ticket.births, resumed.ticket.births)
    assert (whole.losses, whole.churn) == (resumed.losses, resumed.churn)
    for one, other in zip(*(Trajectory.open(tmp_path / n) for n in ("whole", "run")), strict=True):
        assert one.step == other.step
        assert same(one.weights, other.weights)
    for file in ("ticket.safetensors", "scores.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    again = train(run_folder=NewRun(tmp_path / "run", resume=True))
    assert same(again.ticket.weights, whole.ticket.weights)
    assert (again.losses, again.steps, again.rounds) == (whole.losses, 24, 12)
    other = IterandPlan(pruned=0.3, descent=SHORT)
    with pytest.raises(ValueError, match=r"its iterand.pruned is 0.5, here it is 0.3"):
        train(other, run_folder=NewRun(tmp_path / "run", resume=True))


def test_another_training_is_not_resumed(tmp_path):
    def stop(done, _):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run_folder=tmp_path, progress=stop)
    other = IterandPlan(every=2, redrawn=0.3, pruned=0.4, seed=4, descent=SHORT)
    with pytest.raises(ValueError, match=r"its iterand.pruned is 0.5, here it is 0.4"):
        train(other, run_folder=NewRun(tmp_path, resume=True))
    with pytest.raises(FileExistsError):
        train(run_folder=tmp_path)
    train(run_folder=NewRun(tmp_path, overwrite=True))
    assert not (tmp_path / "unfinished.pt").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("initial", ["kaiming-uniform", "signed-constant", "kaiming-normal"])
def test_a_seed_and_a_mask_give_the_weights(tmp_path, initial, dtype):
    model = network().to(dtype)
    plan = IterandPlan(initial=initial, pruned_in={"4.*": 0.25}, biases="frozen")
    iterand = Iterand(model, plan)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        iterand.randomize()
        for score in iterand.scores.values():
            score.data = torch.rand(score.shape, generator=generator).to(score.dtype)
        iterand.load_state_dict(iterand.state_dict())  # the masks of these scores
    ticket = iterand.ticket()
    size = save_ticket(ticket, tmp_path / "deep" / "ticket.safetensors")
    loaded = load_ticket(tmp_path / "deep" / "ticket.safetensors")
    assert same(loaded.weights, ticket.weights)
    assert same(loaded.weights, weights_of(model))
    assert same(loaded.masks, ticket.masks)
    assert loaded.scores is None
    assert any(b.max() > 0 for b in loaded.births.values())
    assert size == ticket_size(loaded)
    assert size.mask == math.ceil((3 * 8 + 8 * 2) / 8)
    assert size.file == (tmp_path / "deep" / "ticket.safetensors").stat().st_size
    assert size.weights == sum(v.nbytes for v in weights_of(model).values())
    # Biases are the only tensors that are neither drawn nor all one number.
    assert size.others == (8 + 2) * dtype.itemsize


def test_damaged_files_say_so(tmp_path):
    file = tmp_path / "ticket.safetensors"
    save_ticket(train().ticket, file)
    content = file.read_bytes()
    for damaged in (b"", content[:30], content[:-3], content.replace(b'"names', b'"nomes')):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"ticket.safetensors holds no ticket"):
            load_ticket(file)
    for before, after in ((b"[8, 3]", b"[8, 9]"), (b"[8, 3]", b"[9e9]"), (b"float32", b"float99")):
        assert before in content
        file.write_bytes(content.replace(before, after))
        with pytest.raises(ValueError, match=r"ticket.safetensors holds no ticket"):
            load_ticket(file)
    file.write_bytes(content.replace(b'seed\\": 4', b'seed\\": 5'))
    with pytest.raises(ValueError, match="the seed gave other values than here"):
        load_ticket(file)
    with pytest.raises(FileNotFoundError, match="there is no finished ticket"):
        load_ticket(tmp_path / "none")


def test_torch_prune_takes_the_ticket():
    ticket = train().ticket
    inputs = batches()[0][0]
    plain = network().eval()
    plain.load_state_dict(ticket.weights)
    pruned = network().eval()
    ticket.prune_(pruned)
    assert prune.is_pruned(pruned)
    assert torch.equal(pruned(inputs), plain(inputs))
    assert set(pruned.state_dict()) == set(ticket.prune_state())
    assert all(torch.equal(v, ticket.prune_state()[n]) for n, v in pruned.state_dict().items())
    other = network(3).eval()
    for layer in (other[0], other[4]):
        prune.identity(layer, "weight")
    other.load_state_dict(ticket.prune_state())
    assert torch.equal(other(inputs), plain(inputs))
    for layer in (other[0], other[4]):
        prune.remove(layer, "weight")
    assert same(weights_of(plain), {n: other.state_dict()[n] for n in weights_of(plain)})


@pytest.mark.parametrize("name", ["mlp", "residual", "grouped_conv", "sequence", "layer_norm_mlp"])
@pytest.mark.parametrize("ranking", ["raw", "absolute"])
def test_a_permuted_ticket_is_a_ticket_with_the_same_accuracy(name, ranking):
    case = CASES[name]
    model, data = case.model(), case.batches()
    plan = IterandPlan(
        pruned=0.25, ranking=ranking, every=1, descent=TrainingPlan.cosine(epochs=3, lr=1.0)
    )
    ticket = train_iterand(Task(model, data), plan=plan).ticket
    groups = find_neuron_groups(model, case.inputs())
    permutation = Permutation.random(groups, seed=1)
    moved = ticket.permute(permutation)
    assert not same(moved.weights, ticket.weights)
    assert same(moved.weights, permutation.apply(ticket.weights))
    again = select(moved.scores, dict.fromkeys(moved.scores, 0.25), ranking=ranking)
    assert same(again, moved.masks)
    metrics = {"accuracy": accuracy, "loss": classification_loss}
    one, other = (evaluate(model, metrics, weights=t.weights, data=data) for t in (ticket, moved))
    assert one["accuracy"] == other["accuracy"]
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert same(moved.permute(permutation.invert()).weights, ticket.weights)
    with pytest.raises(ValueError, match="A permuted ticket has no seed"):
        ticket_size(moved)


def test_training_that_cannot_be():
    with pytest.raises(ValueError, match="data is empty"):
        train_iterand(Task(network(), []), plan=PLAN)
    with pytest.raises(ValueError, match=r"The loss at step 1 is nan: try a smaller lr"):
        train_iterand(Task(network(), batches(), lambda m, b: m(b[0]).sum() * math.nan), plan=PLAN)
    model = nn.Sequential(nn.Flatten(), nn.ReLU())
    with pytest.raises(ValueError, match="Sequential has no weight to mask"):
        train_iterand(Task(model, batches()), plan=PLAN)
