"""After a training: which average of its snapshots is best, and how small the run becomes.

Shows: `Averages` beside training, `choose_average` on the recorded run, and `compress_run`.
Takes: about ten seconds on one core of a laptop; no download, no GPU; needs the extra zstd.

    python examples/average_and_compress.py
"""

import tempfile

import torch

from slipstream import Averages, Recorder, Schedule, Trajectory, classification_loss, evaluate
from slipstream.averaging import EMA, SWA, average_candidates, choose_average
from slipstream.named_task import NamedTask
from slipstream.trajectory import compress_run

EPOCHS = 20


def main() -> None:
    """Train with a large learning rate, so that there is something to average."""
    experiment = NamedTask("mlp", "digits", width=256, options={"hidden_layers": 2}).build()
    model, metrics = experiment.model, experiment.measured
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    beside = Averages(model, [EMA(0.99), SWA(start=100)]).attach(optimizer)
    with tempfile.TemporaryDirectory() as folder:
        with Recorder(folder, model, schedule=Schedule.every(10)).attach(optimizer):
            for epoch in range(EPOCHS):
                for batch in experiment.data.epoch(epoch):
                    optimizer.zero_grad()
                    torch.autograd.backward(classification_loss(model, batch))
                    optimizer.step()
        smaller = compress_run(folder)
        choice = choose_average(average_candidates(Trajectory.open(folder)), experiment)
    print(f"{smaller.snapshots} snapshots take {smaller.share:.0%} of what they took")
    for name, weights in {
        "last": None,
        f"{choice.best.name}, best on validation data": choice.weights,
        **{f"{rule} over all steps": beside.weights(rule) for rule in beside.rules},
    }.items():
        found = evaluate(model, metrics, weights=weights, data=experiment.test)
        print(f"{name}: test accuracy {found['accuracy']:.4f}, loss {found['loss']:.4f}")


if __name__ == "__main__":
    main()
