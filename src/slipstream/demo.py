"""The main job in a minute: train on digits, record the run, transfer it to three new starts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from slipstream.evaluation import Task, evaluate
from slipstream.named_task import NamedTask
from slipstream.report.figures import plot_along
from slipstream.storage.new_run import NewRun
from slipstream.training import TrainingPlan, record_training, train
from slipstream.trajectory import Trajectory
from slipstream.transfer import Comparison, Target, TransferPlan, compare_methods, rivals
from slipstream.transfer.plan import Method
from slipstream.weights import Weights, clone, load_weights_, weights_of

SETUP = NamedTask("mlp", "digits", width=256, options={"hidden_layers": 2}, batch_size=32)
TRAINING = TrainingPlan(epochs=20, lr=0.05)
GRADIENT_BATCH = 128
FURTHER_RATES = (0.05, 0.01, 0.002)
METHODS: tuple[Method, ...] = (
    "naive",
    "activations",
    "activations-signed",
    "fgmt-signed",
    "oracle",
)
RIVALS = ("sign-descent", "muon")  # that know no source, with as many gradients as the default


@dataclass(frozen=True)
class Demo:
    """Result of `run_demo`."""

    run: Path  # the recorded source
    figure: Path  # accuracy along the transfer
    training_seconds: float  # of one training from scratch, recording included
    comparison: Comparison


def run_demo(
    folder: str | Path,
    *,
    targets: int = 3,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Demo:
    """Train and record a network, transfer the run to new starts, and compare with training them.

    Args:
        folder: Where the run and the figure go; a run that is there is replaced.
        targets: How many new starts.
        seed: Of the source; the targets take the seeds that follow.
        progress: Called with what is being done, the number of the piece and how many there are.

    Returns:
        Where the files are, and the comparison.
    """
    report = progress or (lambda *_: None)
    folder = Path(folder)
    rows = len(METHODS) + len(RIVALS) + 2
    pieces = 1 + targets + targets * rows
    report("training the source", 0, pieces)
    setup = replace(SETUP, seed=seed)
    recorded = record_training(
        setup.build(),
        replace(TRAINING, seed=seed),
        run_folder=NewRun(folder / "source", overwrite=True),
    )
    experiment = setup.build()
    starts = []
    for number in range(1, targets + 1):
        report(f"training target {number}, to compare with", number, pieces)
        start = weights_of(setup.build(seed=seed + number).model)
        trained = _train_on(experiment, start, epochs=TRAINING.epochs, lr=TRAINING.lr)
        starts.append(Target(start, trained))
    comparison = compare_methods(
        Trajectory.open(folder / "source"),
        starts,
        replace(experiment, data=replace(setup, batch_size=GRADIENT_BATCH).build().data),
        plans={
            **{method: TransferPlan(method, seed=seed) for method in METHODS},
            **{name: rivals(TransferPlan().gradients)[name] for name in RIVALS},
        },
        further=lambda weights: _best_epoch(experiment, weights),
        progress=lambda name, done, _: report(name, 1 + targets + done, pieces),
    )
    figure = folder / "accuracy_along_the_transfer.png"
    plot_along(comparison, figure)
    return Demo(folder / "source", figure, recorded.seconds, comparison)


def _best_epoch(experiment: Task, start: Weights) -> Weights:
    """One more epoch at the rate that is best on the validation data: no start suits all rates."""
    found = [_train_on(experiment, start, epochs=1, lr=rate) for rate in FURTHER_RATES]
    loss = {"loss": experiment.loss}
    losses = [
        evaluate(experiment.model, loss, weights=weights, data=experiment.part("validation"))[
            "loss"
        ]
        for weights in found
    ]
    return found[losses.index(min(losses))]


def _train_on(experiment: Task, start: Weights, *, epochs: int, lr: float) -> Weights:
    load_weights_(experiment.model, start)
    train(experiment, replace(TRAINING, epochs=epochs, lr=lr))
    return clone(weights_of(experiment.model))
