import pytest
import torch
from torch import nn

from cases import mlp
from slipstream.evaluation import Ensemble, accuracy, classification_loss, evaluate
from slipstream.weights import clone, weights_of


def members(count):
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append(clone(weights_of(mlp())))
    return found


def test_it_answers_with_the_mean_of_the_probabilities_and_trains_nothing():
    model, inputs = mlp(), torch.randn(5, 6)
    own = members(3)
    before = clone(weights_of(model))
    alone = []
    for member in own:
        other = mlp()
        other.load_state_dict(member)
        alone.append(other(inputs).softmax(-1))
    answer = Ensemble(model, own)(inputs)
    torch.testing.assert_close(answer.exp(), torch.stack(alone).mean(0))
    assert not answer.requires_grad
    assert all(torch.equal(before[n], v) for n, v in weights_of(model).items())


def test_metrics_for_one_network_take_it():
    model, data = mlp(), [(torch.randn(n, 6), torch.randint(3, (n,))) for n in (4, 2)]
    metrics = {"accuracy": accuracy, "loss": classification_loss}
    (only,) = members(1)
    together = evaluate(Ensemble(model, [only, only]), metrics, data=data)
    assert together == pytest.approx(evaluate(model, metrics, weights=only, data=data))


def test_dropout_is_off_in_evaluation():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))
    ensemble = Ensemble(model, [weights_of(model)], average="outputs")
    data, metric = [torch.ones(4, 3)], {"sum": lambda model, batch: model(batch).sum()}
    assert evaluate(ensemble, metric, data=data) == evaluate(model, metric, data=data)


def test_what_is_no_ensemble():
    model = mlp()
    with pytest.raises(ValueError, match="members is empty"):
        Ensemble(model, [])
    with pytest.raises(ValueError, match="average must be probabilities or outputs, got 'votes'"):
        Ensemble(model, members(1), average="votes")
    with pytest.raises(ValueError, match="no tensor named 'other'"):
        Ensemble(model, [{"other": torch.ones(1)}])
