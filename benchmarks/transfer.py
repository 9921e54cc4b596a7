"""What a transferred run is worth, beside every baseline: accuracy without any training.

    python benchmarks/transfer.py methods --case digits-2 --output transfer_digits-2
    python benchmarks/transfer.py methods --case mnist-conv --mnist DIR --pairs 3
    python benchmarks/transfer.py sensitivity --case digits-3
    python benchmarks/transfer.py ensembles --case digits-3

The networks of a case form a ring: each is the source of one pair and the target of another.
Rates are chosen on validation data, the tables show test data.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import machine, machine_line, table, write
from slipstream.evaluation import Task, evaluate, recalibrate_batchnorm, to_device, weights_in
from slipstream.named_task import NamedTask
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.training import TrainingPlan, train
from slipstream.trajectory import Trajectory
from slipstream.transfer import Target, TransferPlan, TransferResult, transfer_trajectory
from slipstream.weights import Weights, clone, load_weights_, weights_of

RATES = {"sgd": (0.1, 0.03, 0.01), "adam": (0.01, 0.003, 0.001)}
METHODS = ("naive", "random", "gmt", "fgmt", "oracle")
TRAINED_ON = ("target start", "naive", "fgmt", "fgmt-signed", "trained target")
SIGNED = ("naive-signed", "random-signed", "oracle-signed", "fgmt-signed")


@dataclass(frozen=True)
class Case:
    """A network on a data set, how it is trained, and on what batches gradients are matched."""

    setup: NamedTask
    training: TrainingPlan
    gradient_batch: int = 128
    stages: int = 10
    gmt: bool = True  # quadratic in the stages: left out where it takes long
    further_rates: tuple[float, ...] = (0.05, 0.01, 0.002)  # for training on


def cases(mnist: str, cifar10: str) -> dict[str, Case]:
    """Return the cases by name; those on MNIST and CIFAR-10 need the folders."""
    bn = {"channels": [32, 64, 128], "batchnorm": True}
    digits = TrainingPlan(epochs=20, lr=0.05)
    conv = TrainingPlan(epochs=3, lr=0.02, schedule="cosine")
    cifar = TrainingPlan(epochs=8, lr=0.1, weight_decay=5e-4, schedule="cosine")
    return {
        "digits-2": Case(NamedTask("mlp", "digits", width=512, batch_size=32), digits),
        "digits-3": Case(
            NamedTask("mlp", "digits", width=512, options={"hidden_layers": 2}, batch_size=32),
            digits,
        ),
        "mnist-mlp": Case(
            NamedTask("mlp", f"mnist:{mnist}", width=1024, batch_size=64),
            TrainingPlan(epochs=3, lr=0.02),
            further_rates=(0.02, 0.005),
        ),
        "mnist-conv": Case(
            NamedTask("conv_net", f"mnist:{mnist}", examples=10_000, batch_size=64),
            conv,
            256,
            gmt=False,
        ),
        "mnist-conv-bn": Case(
            NamedTask("conv_net", f"mnist:{mnist}", options=bn, examples=10_000, batch_size=64),
            conv,
            256,
        ),
        "cifar10-conv8": Case(
            NamedTask("conv8", f"cifar10:{cifar10}", width=0.125, examples=25_000),
            cifar,
            256,
            stages=20,
            gmt=False,
        ),
        "cifar10-resnet18": Case(
            NamedTask("resnet18", f"cifar10:{cifar10}", width=0.125, examples=25_000),
            cifar,
            256,
            stages=20,
            gmt=False,
        ),
    }


@dataclass(frozen=True)
class Pair:
    """A trained source and a target's start, with the target's own training's end."""

    experiment: Task
    batches: Iterable[Any]  # for gradients
    groups: NeuronGroups
    source: Trajectory
    start: Weights
    trained: Weights
    training_seconds: float

    def test(self, weights: Weights) -> float:
        """Return the test accuracy."""
        return self._accuracy(weights, self.experiment.test)

    def validation(self, weights: Weights) -> float:
        """Return the validation accuracy."""
        return self._accuracy(weights, self.experiment.validation)

    def _accuracy(self, weights: Weights, data: Iterable[Any]) -> float:
        metrics = {"accuracy": self.experiment.measured["accuracy"]}
        return evaluate(self.experiment.model, metrics, weights=weights, data=data)["accuracy"]

    def transfer(self, plan: TransferPlan) -> TransferResult:
        """Transfer the source to the target."""
        return transfer_trajectory(
            self.source,
            Target(self.start, self.trained),
            replace(self.experiment, data=self.batches, validation=None),
            plan=plan,
            groups=self.groups,
        )


@dataclass(frozen=True)
class Trained:
    """A network's run: its snapshots at the start and after each epoch."""

    snapshots: list[dict[str, Tensor]]
    seconds: float


_trained: dict[str, Trained] = {}


def make_run(case: Case, seed: int, scale: float) -> Trained:
    """Train a network once; another pair that needs it gets it again."""
    key = f"{case} {seed} {scale}"
    if key not in _trained:
        experiment = case.setup.build(seed=case.setup.seed + seed)
        snapshots = [scaled(experiment.model, scale)]
        began = time.perf_counter()
        run_training(experiment, case.training, snapshots=snapshots)
        _trained[key] = Trained(snapshots, time.perf_counter() - began)
        print(
            f"  trained {case.setup.model}, seed {seed}: {_trained[key].seconds:.0f} s", flush=True
        )
    return _trained[key]


def make_pair(case: Case, number: int, pairs: int, *, scale: float = 1.0) -> Pair:
    """Pair network `number` of a ring with the next one; both starts are multiplied by `scale`."""
    source = make_run(case, number, scale)
    target = make_run(case, (number + 1) % pairs, scale)
    setup = replace(case.setup, seed=case.setup.seed + number)
    experiment = setup.build()
    return Pair(
        experiment,
        replace(setup, batch_size=case.gradient_batch).build().data,
        find_neuron_groups(experiment.model, next(iter(experiment.data))[0]),
        Trajectory.from_weights(source.snapshots),
        target.snapshots[0],
        target.snapshots[-1],
        target.seconds,
    )


def scaled(model: nn.Module, scale: float) -> dict[str, Tensor]:
    """Multiply all matrices and filters of a model, and return a copy of its weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return clone(weights_of(model))


def run_training(
    experiment: Task, plan: TrainingPlan, *, snapshots: list[dict[str, Tensor]]
) -> None:
    """Train from where the model is; a snapshot at the end of every epoch."""
    train(
        experiment,
        plan,
        on_epoch=lambda *_: snapshots.append(clone(weights_of(experiment.model))),
    )


def few_steps(
    pair: Pair, optimizer: str, steps: int, rates: Iterable[float]
) -> tuple[Weights, float]:
    """Train for as many steps as a transfer takes gradients, at the rate best on validation."""
    found = {rate: _steps(pair, optimizer, steps, rate) for rate in rates}
    best = max(found, key=lambda rate: pair.validation(found[rate]))
    return found[best], best


def _steps(pair: Pair, optimizer: str, steps: int, rate: float) -> Weights:
    model = pair.experiment.model
    load_weights_(model, pair.start)
    model.train()
    chosen: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        if optimizer == "sgd"
        else torch.optim.Adam(model.parameters(), lr=rate)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(chosen, steps)
    batches = iter(())
    for _ in range(steps):
        batch = next(batches, None)
        if batch is None:
            batches = iter(pair.batches)
            batch = next(batches)
        chosen.zero_grad()
        torch.autograd.backward(pair.experiment.loss(model, to_device(batch, "cpu")))
        chosen.step()
        schedule.step()
    weights = clone(weights_of(model))
    calibration = [batch for batch, _ in zip(pair.batches, range(4), strict=False)]
    return {**weights, **recalibrate_batchnorm(model, weights=weights, data=calibration)}


@dataclass(frozen=True)
class Further:
    """Training on from some weights."""

    rate: float
    validation: list[float]  # accuracy after each epoch
    first: Weights  # after one epoch


def train_on(pair: Pair, start: Weights, *, epochs: int, rates: Iterable[float]) -> list[Further]:
    """Train on at each rate."""
    found = []
    for rate in rates:
        load_weights_(pair.experiment.model, start)
        snapshots: list[dict[str, Tensor]] = []
        plan = TrainingPlan(epochs=epochs, lr=rate)
        run_training(pair.experiment, plan, snapshots=snapshots)
        found.append(Further(rate, [pair.validation(w) for w in snapshots], snapshots[0]))
    return found


def best_epoch(found: list[Further]) -> Further:
    """Return the training that was best on the validation data after one epoch."""
    return max(found, key=lambda further: further.validation[0])


def spread(values: list[float], digits: int = 3) -> str:
    """Return mean and sample standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def plans(case: Case) -> dict[str, TransferPlan]:
    """Return what is compared, by the name of its row."""
    named = {m: TransferPlan(m, stages=case.stages) for m in (*METHODS, *SIGNED)}
    if not case.gmt:
        del named["gmt"]
    fgmt = named["fgmt"]
    return {
        **named,
        "fgmt, uniform line": replace(fgmt, schedule="uniform"),
        "fgmt, normalised pairs": replace(fgmt, pairs="normalised"),
    }


def methods(case: Case, pairs: int, *, epochs: int) -> Iterator[dict[str, Any]]:
    """Compare all methods and controls over pairs, and training on from each end.

    What is known is given after every pair, so that a long study that is stopped leaves a table.

    The rate of further training is the best of the case's on validation data, for each pair, for
    the accuracy after one epoch and for the number of epochs apart.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    rates: dict[str, float] = {}  # found on the first pair

    def note(name: str, pair: Pair, weights: Weights, seconds: float, gradients: int) -> None:
        row = {"test": pair.test(weights), "seconds": seconds, "gradients": gradients}
        if epochs and name in TRAINED_ON:
            found = train_on(pair, weights, epochs=epochs, rates=case.further_rates)
            goal = 0.99 * pair.validation(pair.trained)
            reached = [
                epoch
                for further in found
                for epoch, accuracy in enumerate([pair.validation(weights), *further.validation])
                if accuracy >= goal
            ]
            row["test_after_an_epoch"] = pair.test(best_epoch(found).first)
            row["epochs_to_99_percent"] = min(reached, default=None)
        rows.setdefault(name, []).append(row)
        print(f"  {name}: {row}", flush=True)

    for number in range(pairs):
        pair = make_pair(case, number, pairs)
        note("source", pair, pair.source[-1].weights, 0.0, 0)
        note("target start", pair, pair.start, 0.0, 0)
        for name, plan in plans(case).items():
            result = pair.transfer(replace(plan, seed=number))
            cost = result.cost
            note(name, pair, result.weights, cost.total_seconds, cost.gradient_evaluations)
        for steps in (case.stages, 3 * case.stages):
            for optimizer in RATES:
                name = f"{optimizer}, {steps} steps"
                chosen = [rates[name]] if name in rates else RATES[optimizer]
                began = time.perf_counter()
                weights, rates[name] = few_steps(pair, optimizer, steps, chosen)
                seconds = (time.perf_counter() - began) / len(chosen)
                note(name, pair, weights, seconds, steps)
        note("trained target", pair, pair.trained, pair.training_seconds, 0)
        yield {"rows": rows, "epochs": epochs, "pairs": number + 1}


def methods_text(found: dict[str, Any]) -> str:
    """Return the table of `methods`."""
    rows = []
    for name, values in found["rows"].items():
        cells = [name, spread([v["test"] for v in values])]
        if found["epochs"]:
            cells += _further_cells(values, found["epochs"])
        cells += [f"{statistics.fmean(v['seconds'] for v in values):.2f}"]
        rows.append([*cells, str(values[0]["gradients"] or "")])
    header = ["", "test accuracy, no training"]
    if found["epochs"]:
        header += ["after one epoch", "epochs to 99 % of the trained target, pair by pair"]
    return table([*header, "seconds", "gradients"], rows)


def _further_cells(values: list[dict[str, Any]], epochs: int) -> list[str]:
    if "test_after_an_epoch" not in values[0]:
        return ["", ""]
    reached = [v["epochs_to_99_percent"] for v in values]
    shown = [str(epoch) if epoch is not None else f">{epochs}" for epoch in reached]
    return [spread([v["test_after_an_epoch"] for v in values]), ", ".join(shown)]


def sensitivity(case: Case, pairs: int) -> Iterator[dict[str, Any]]:
    """Vary one thing at a time: what the transfer does, then what the networks are."""
    base = TransferPlan("fgmt", stages=case.stages)
    changed_plans = {"as it is": base}
    changed_plans |= {f"T = {t}": replace(base, stages=t) for t in (3, 5, 30)}
    changed_plans |= {
        f"{b} batches a gradient": replace(base, batches_per_gradient=b) for b in (2, 4)
    }
    changed_plans |= {
        "uniform line": replace(base, schedule="uniform"),
        "recorded": replace(base, path="recorded", stages=min(case.stages, case.training.epochs)),
        "2 segments": replace(base, segments=2, stages=case.stages // 2),
        "cold start of each matching": replace(base, warm_start=False),
        "at most 4 sweeps": replace(base, max_sweeps=4),
    }
    settings: dict[str, tuple[Case, float]] = {"": (case, 1.0)}
    settings |= {f"start x {s}": (case, s) for s in (0.5, 2.0)}
    adam = replace(case.training, optimizer="adam", lr=0.001)
    settings["Adam source"] = replace(case, training=adam), 1.0
    width = case.setup.width or 1.0
    for factor in (0.25, 0.5, 2.0):
        wider = replace(case.setup, width=width * factor)
        settings[f"width {width * factor:g}"] = replace(case, setup=wider), 1.0
    rows: dict[str, dict[str, list[float]]] = {}
    for setting, (changed, scale) in settings.items():
        for number in range(pairs):
            pair = make_pair(changed, number, pairs, scale=scale)
            for name, plan in (changed_plans if not setting else {setting: base}).items():
                for method in ("naive", "fgmt", "fgmt-signed", "oracle"):
                    result = pair.transfer(replace(plan, method=method))
                    cell = rows.setdefault(name, {}).setdefault(method, [])
                    cell.append(pair.test(result.weights))
                rows[name].setdefault("trained", []).append(pair.test(pair.trained))
            print(setting or "plans", number, flush=True)
    yield {"rows": rows, "pairs": pairs}


def sensitivity_text(found: dict[str, Any]) -> str:
    """Return the table of `sensitivity`."""
    names = list(next(iter(found["rows"].values())))
    rows = [[name, *(spread(cells[n]) for n in names)] for name, cells in found["rows"].items()]
    return table(["changed", *names], rows)


def ensembles(case: Case, pairs: int, *, members: int = 5) -> Iterator[dict[str, Any]]:
    """Compare an ensemble of transferred networks with one of trained networks."""
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(pairs):
        ways: dict[str, list[Weights]] = {}
        seconds: dict[str, float] = {}
        ring = members + 1
        seeded = replace(case, setup=replace(case.setup, seed=ring * number))
        first = make_pair(seeded, 0, ring)
        for member in range(members):
            other = make_pair(seeded, member, ring)
            target = replace(other, source=first.source)
            ways.setdefault("trained", []).append(other.trained)
            seconds["trained"] = seconds.get("trained", 0.0) + other.training_seconds
            for method in ("fgmt", "fgmt-signed"):
                result = target.transfer(TransferPlan(method, stages=case.stages))
                further, one = f"{method} + 1 epoch", result.cost.total_seconds
                ways.setdefault(method, []).append(result.weights)
                seconds[method] = seconds.get(method, first.training_seconds) + one
                began = time.perf_counter()
                trained_on = train_on(target, result.weights, epochs=1, rates=case.further_rates)
                ways.setdefault(further, []).append(best_epoch(trained_on).first)
                epoch = (time.perf_counter() - began) / len(case.further_rates)
                seconds[further] = seconds.get(further, first.training_seconds) + one + epoch
        ways["the source alone"] = [first.source[-1].weights]
        seconds["the source alone"] = first.training_seconds
        for name, weights in ways.items():
            found.setdefault(name, []).append({**judge(first, weights), "seconds": seconds[name]})
        print(number, {name: values[-1] for name, values in found.items()}, flush=True)
        yield {"rows": found, "members": members, "pairs": number + 1}


def judge(pair: Pair, members: list[Weights]) -> dict[str, float]:
    """Accuracy, negative log-likelihood and disagreement of an ensemble on the test data."""
    labels = torch.cat([batch[1] for batch in pair.experiment.test])
    outputs = []
    for weights in members:
        model = pair.experiment.model.eval()
        with weights_in(model, weights), torch.no_grad():
            parts = [model(batch[0]).softmax(-1) for batch in pair.experiment.test]
        outputs.append(torch.cat(parts))
    mean = torch.stack(outputs).mean(0)
    votes = torch.stack([output.argmax(-1) for output in outputs])
    apart = [
        (votes[a] != votes[b]).float().mean().item()
        for a in range(len(votes))
        for b in range(a + 1, len(votes))
    ]
    single = (votes == labels).float().mean().item()
    return {
        "accuracy": (mean.argmax(-1) == labels).float().mean().item(),
        "nll": nn.functional.nll_loss(mean.clamp_min(1e-12).log(), labels).item(),
        "member_accuracy": single,
        "disagreement": statistics.fmean(apart) if apart else 0.0,
    }


def ensembles_text(found: dict[str, Any]) -> str:
    """Return the table of `ensembles`."""
    keys = ("accuracy", "nll", "member_accuracy", "disagreement", "seconds")
    rows = [
        [name, *(spread([v[key] for v in values]) for key in keys)]
        for name, values in found["rows"].items()
    ]
    header = ["", "ensemble accuracy", "negative log-likelihood", "member accuracy", "disagreement"]
    return table([*header, "total seconds"], rows)


def main() -> None:
    """Run one study of one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("methods", "sensitivity", "ensembles"))
    parser.add_argument("--case", required=True, choices=list(cases("", "")))
    parser.add_argument("--mnist", default="", help="folder of MNIST")
    parser.add_argument("--cifar10", default="", help="folder of CIFAR-10")
    parser.add_argument("--pairs", type=int, default=5, help="seed pairs")
    parser.add_argument("--epochs", type=int, default=5, help="to wait for 99 percent")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    options = parser.parse_args()
    facts = machine()
    case = cases(options.mnist, options.cifar10)[options.case]
    studies: dict[str, tuple[Callable[..., Iterator[dict[str, Any]]], Callable[..., str]]] = {
        "methods": (methods, methods_text),
        "sensitivity": (sensitivity, sensitivity_text),
        "ensembles": (ensembles, ensembles_text),
    }
    study, as_text = studies[options.study]
    extra = {"epochs": options.epochs} if options.study == "methods" else {}
    what = asdict(case)
    what["setup"]["data"] = what["setup"]["data"].partition(":")[0]
    for found in study(case, options.pairs, **extra):
        text = (
            f"# {options.study}: {options.case}, {found['pairs']} seed pairs\n\n"
            f"{as_text(found)}\n\n"
            f"Mean ± sample standard deviation over the pairs. {machine_line(facts)}\n\n"
            f"Case: `{what}`"
        )
        write(options.output, text, {"machine": facts, "case": what, **found})


if __name__ == "__main__":
    main()
