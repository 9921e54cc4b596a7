"""Train once, record the run, and transfer it to a new initialisation.

Shows: a recorder in your own loop, a transfer, and what it is worth beside the naive baseline.
Takes: about ten seconds on one core of a laptop; no download, no GPU.

    python examples/record_and_transfer.py
"""

import tempfile

import torch
from torch import nn

from slipstream import (
    Recorder,
    Task,
    Trajectory,
    TransferPlan,
    accuracy,
    classification_loss,
    evaluate,
    transfer_trajectory,
    weights_of,
)
from slipstream.testbed import load_data


def network(seed: int) -> nn.Module:
    """A 3-layer perceptron with weights of its own."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def main() -> None:
    """Train, record, transfer, and compare."""
    data = load_data("digits")
    batches = data.train.batches(128, seed=0)
    test = data.test.batches(500)
    model = network(seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    with tempfile.TemporaryDirectory() as folder:
        with Recorder(folder, model).attach(optimizer):  # the only line that Slipstream adds
            for epoch in range(20):
                for batch in batches.epoch(epoch):
                    optimizer.zero_grad()
                    classification_loss(model, batch).backward()
                    optimizer.step()

        source = Trajectory.open(folder)
        print(f"recorded steps {source.steps}")
        target = network(seed=1)
        found = {"trained source": weights_of(model), "target start": weights_of(target)}
        for method in ("naive", "fgmt", "fgmt-signed"):
            result = transfer_trajectory(
                source,
                weights_of(target),
                Task(target, batches, classification_loss),
                plan=TransferPlan(method),
            )
            found[method] = result.weights
        for name, weights in found.items():
            share = evaluate(target, {"accuracy": accuracy}, weights=weights, data=test)
            print(f"{name:>14}: test accuracy {share['accuracy']:.3f}")


if __name__ == "__main__":
    main()
