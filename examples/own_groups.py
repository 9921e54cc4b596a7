"""Neuron groups by hand, for a model that no tracer takes.

Shows: what the tracer says, how groups are written down, proven and used in a transfer.
Takes: about ten seconds on one core of a laptop; no download, no GPU.

    python examples/own_groups.py
"""

import torch
from torch import Tensor, nn

from slipstream import (
    NeuronGroups,
    Task,
    Trajectory,
    TransferPlan,
    accuracy,
    classification_loss,
    evaluate,
    find_neuron_groups,
    transfer_trajectory,
    weights_of,
)
from slipstream.symmetry.neuron_groups import Block, NeuronGroup
from slipstream.symmetry.proof import check
from slipstream.testbed import load_data
from slipstream.training import TrainingPlan, train
from slipstream.weights import clone


class Settling(nn.Module):
    """Applies its middle layer until the state settles: how often depends on the numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(64, width)
        self.middle = nn.Linear(width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 1, 8, 8) to (batch, classes)."""
        state = torch.relu(self.embed(x.flatten(1)))
        for _ in range(3):
            new = torch.tanh(self.middle(state))
            moved = (new - state).square().mean().item()  # a number: no tracer can follow it
            state = new
            if moved < 1e-3:
                break
        return self.head(state)


def groups_of(model: Settling) -> NeuronGroups:
    """The state is one list of neurons: written by two layers, read by two, one of them both."""
    state = ("state",)
    shapes = {name: tuple(value.shape) for name, value in weights_of(model).items()}
    return NeuronGroups(
        groups=(NeuronGroup("state", model.middle.out_features),),
        blocks=(
            Block("embed.weight", 0, 0, state),  # tensor, axis, first place, what is listed
            Block("embed.bias", 0, 0, state),
            Block("middle.weight", 0, 0, state),
            Block("middle.weight", 1, 0, state),
            Block("middle.bias", 0, 0, state),
            Block("head.weight", 1, 0, state),
        ),
        shapes=shapes,
    )


def network(seed: int) -> Settling:
    """A network with weights of its own."""
    torch.manual_seed(seed)
    return Settling(width=128)


def main() -> None:
    """Ask the tracer, write the groups by hand, prove them, transfer with them."""
    data = load_data("digits")
    batches = data.train.batches(128, seed=0)
    example = next(iter(batches))[0]
    model, target = network(seed=0), network(seed=1)
    try:
        find_neuron_groups(model, example)
    except ValueError as error:
        print(f"the tracer: {error}\n")

    groups = check(model, groups_of(model), example)
    print(f"by hand, proven:\n{groups}\n")

    start = clone(weights_of(model))
    train(Task(model, batches), TrainingPlan(epochs=15, lr=0.05))
    source = Trajectory.from_weights([start, clone(weights_of(model))])
    found = {"trained source": weights_of(model), "target start": weights_of(target)}
    for method in ("naive", "fgmt", "fgmt-signed"):
        found[method] = transfer_trajectory(
            source,
            weights_of(target),
            Task(target, batches, classification_loss),
            plan=TransferPlan(method),
            groups=groups,
        ).weights
    for name, weights in found.items():
        test = data.test.batches(500)
        share = evaluate(model, {"accuracy": accuracy}, weights=weights, data=test)
        print(f"{name:>14}: test accuracy {share['accuracy']:.3f}")


if __name__ == "__main__":
    main()
