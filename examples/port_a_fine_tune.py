"""Give a fine-tune to a base model of another seed, with 64 labelled examples.

Shows: what the plain displacement is worth there, what matching and signs add, what auto chooses.
Takes: about half a minute on one core of a laptop; no download, no GPU.

    python examples/port_a_fine_tune.py
"""

from torch import nn

from slipstream import Task, accuracy, classification_loss, evaluate, port_fine_tune, weights_of
from slipstream.porting import FineTune, PortPlan
from slipstream.testbed import build_network, load_data
from slipstream.testbed.datasets import DataSpec, Examples
from slipstream.training import TrainingPlan, train
from slipstream.weights import clone


def half(examples: Examples, first: int) -> Examples:
    """Five of the ten digits, as classes 0 to 4."""
    kept = (examples.labels >= first) & (examples.labels < first + 5)
    return Examples(examples.inputs[kept], examples.labels[kept] - first)


def trained_base(examples: Examples, seed: int) -> nn.Module:
    """A network that knows the digits 0 to 4."""
    model = build_network("mlp", data=DataSpec("half", (1, 8, 8), 5), width=256, seed=seed)
    train(Task(model, examples.batches(32, seed=seed)), TrainingPlan(epochs=15))
    return model


def main() -> None:
    """Train two bases, fine-tune the first on the other digits, port that to the second."""
    data = load_data("digits")
    model, other = (trained_base(half(data.train, 0), seed) for seed in (0, 1))
    from_base, to_base = clone(weights_of(model)), clone(weights_of(other))
    new = half(data.train, 5)
    train(Task(model, new.batches(32, seed=0)), TrainingPlan(epochs=15))

    test = half(data.test, 5).batches(500)
    found = {"the fine-tune": weights_of(model), "other base": to_base}
    for method in ("identity", "weights", "fgmt-signed", "auto"):
        result = port_fine_tune(
            FineTune(from_base, weights_of(model), to_base),
            Task(
                other,
                new.take(64).batches(32, seed=0),
                classification_loss,
                validation=half(data.validation, 5).batches(100),
            ),
            plan=PortPlan(method),
        )
        found[method] = result.weights
    print(f"{result}\n")
    for name, weights in found.items():
        share = evaluate(other, {"accuracy": accuracy}, weights=weights, data=test)["accuracy"]
        print(f"{name:>14}: test accuracy {share:.3f}")


if __name__ == "__main__":
    main()
