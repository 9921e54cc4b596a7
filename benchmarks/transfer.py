"""What a transferred run is worth, beside all rivals and baselines.

    python benchmarks/transfer.py methods --case digits-3 --output transfer_digits-3
    python benchmarks/transfer.py methods --case mnist-conv --mnist DIR --networks DIR
    python benchmarks/transfer.py steps --case digits-3
    python benchmarks/transfer.py sensitivity --case digits-3
    python benchmarks/transfer.py ensembles --case digits-3

The networks of a case form a ring: each is the source of one pair and the target of another.
Everything is chosen on validation data; the tables show test data. `methods` is resumed from the
rows in its output, `--networks` keeps the trained networks.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import machine, machine_line, table, write
from slipstream.evaluation import evaluate, weights_in
from slipstream.named_task import NamedTask
from slipstream.trajectory import Trajectory
from slipstream.transfer import (
    DescentPlan,
    SignSteps,
    SignWeights,
    Target,
    TransferPlan,
    TransferResult,
    at_gradients,
    descend,
    shuffled_source,
    transfer_trajectory,
)
from slipstream.weights import Weights
from transfer_cases import Case, Networks, Pair, cases
from transfer_methods import Methods, methods_text, read_rows

MEMBERS, CARRY, FURTHER = 5, 20, 40  # of an ensemble; gradients of each member, and after it
BINS = 15  # of the calibration error
STEPS = (6, 20)  # gradients of the study of the same name
SHUFFLED, HALVES = "source's displacement shuffled", "matched again half way"
FGMT: dict[str, Any] = {"method": "fgmt-signed"}
CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "neurons as they are": {"method": "naive-signed"},
    "random permutation": {"method": "random-signed"},
    "matched with the trained target": {"method": "oracle-signed"},
    SHUFFLED: {"method": "naive-signed"},
    "starts matched": {"observed": "start"},
    HALVES: {"segments": 2},
    "3 sign steps before matching": {"descent_steps": 3},
    "matched by gradients": FGMT,
    "matched by gradients and activations": {**FGMT, "activation_weight": 1.0},
    "steps half as large": {"signs": SignSteps(size=SignSteps().size / 2)},
    "steps twice as large": {"signs": SignSteps(size=SignSteps().size * 2)},
    "each weight its own size": {"signs": SignSteps(smoothing=0.0)},
    "one size per tensor": {"signs": SignSteps(smoothing=1.0)},
    "no momentum": {"signs": SignSteps(momentum=0.0)},
    "steps beside the carry, as in 0.1": {"signs": SignWeights()},
}


def transferred(pair: Pair, plan: TransferPlan) -> TransferResult:
    """Transfer the source of a pair to its target."""
    target, task = Target(pair.start, pair.trained), replace(pair.task, validation=None)
    return transfer_trajectory(pair.source, target, task, plan=plan, groups=pair.groups)


def accuracy(pair: Pair, weights: Weights, split: str = "test") -> float:
    """Return the accuracy on all data of a split."""
    task = pair.experiment
    metrics = {"accuracy": task.measured["accuracy"]}
    return evaluate(task.model, metrics, weights=weights, data=task.part(split))["accuracy"]


def spread(values: list[float], digits: int = 3) -> str:
    """Return mean and sample standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def sensitivity(case: Case, pairs: int, folder: Path | None) -> Iterator[dict[str, Any]]:
    """Vary one thing at a time: what the transfer does, then what the networks are."""
    if not isinstance(case.setup, NamedTask):
        raise SystemExit("Sensitivity is measured where the width is an option: of the testbed.")
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
        networks = Networks(changed, folder if not setting else None)
        for number in range(pairs):
            pair = networks.pair(number, pairs, scale=scale)
            for name, plan in (changed_plans if not setting else {setting: base}).items():
                for method in ("naive", "fgmt", "fgmt-signed", "oracle"):
                    result = transferred(pair, replace(plan, method=method))
                    cell = rows.setdefault(name, {}).setdefault(method, [])
                    cell.append(accuracy(pair, result.weights))
                rows[name].setdefault("trained", []).append(accuracy(pair, pair.trained))
            print(setting or "plans", number, flush=True)
    yield {"rows": rows, "pairs": pairs}


def sensitivity_text(found: dict[str, Any], _: Case) -> str:
    """Return the table of `sensitivity`."""
    names = list(next(iter(found["rows"].values())))
    rows = [[name, *(spread(cells[n]) for n in names)] for name, cells in found["rows"].items()]
    return table(["changed", *names], rows)


def steps(case: Case, pairs: int, folder: Path | None) -> Iterator[dict[str, Any]]:
    """Change one thing of the default at a time, at equal gradients: what is it that helps?"""
    networks = Networks(case, folder)
    rows: dict[str, dict[str, list[float]]] = {}
    for number in range(pairs):
        pair = networks.pair(number, pairs)
        ends = pair.source[0], pair.source[-1]
        halves = Trajectory.line(*ends, stages=2, schedule="uniform")
        others = {SHUFFLED: shuffled_source(pair.source, seed=number), HALVES: halves}
        metrics = {case.metric: pair.task.measured[case.metric]}
        for budget in STEPS:
            for name, changes in CHANGES.items():
                plan = TransferPlan.for_budget(budget, **{"seed": number, **changes})
                there = replace(pair, source=others.get(name, pair.source))
                weights = transferred(there, plan).weights
                data = pair.task.part("test")
                found = evaluate(pair.task.model, metrics, weights=weights, data=data)
                rows.setdefault(name, {}).setdefault(str(budget), []).append(found[case.metric])
        yield {"rows": rows, "pairs": number + 1, "metric": case.metric}


def steps_text(found: dict[str, Any], _: Case) -> str:
    """Return the table of `steps`."""
    header = [f"test {found['metric']}, by gradients", *map(str, STEPS)]
    rows = [
        [name, *(spread(cells[str(n)]) for n in STEPS)] for name, cells in found["rows"].items()
    ]
    return table(header, rows)


def ensembles(case: Case, pairs: int, folder: Path | None) -> Iterator[dict[str, Any]]:
    """Compare an ensemble of transferred networks with others, at equal total gradients.

    Members that are not the source take `CARRY + FURTHER` gradients each, of batches in an order of
    their own, except where all are transferred or trained and nothing follows.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(pairs):
        ring = MEMBERS + 1
        seeded = replace(case, setup=replace(case.setup, seed=ring * number))
        networks = Networks(seeded, folder / f"ensemble{number}" if folder else None)
        first = networks.pair(0, ring)
        ways: dict[str, list[Member]] = {"the source alone": [source_of(first)]}
        for member in range(MEMBERS):
            own = networks.pair(member, ring)
            ways.setdefault("trained", []).append(Member(own.trained, 0, own.training_seconds))
            for name, one in members(replace(own, source=first.source)).items():
                ways.setdefault(name, []).append(one)
        few = MEMBERS - 1
        for name in ("transferred, then trained", "short trainings"):
            ways[f"the source and {few}: {name}"] = [source_of(first), *ways[name][:few]]
        for name, several in ways.items():
            cost = {
                "gradients": float(sum(m.gradients for m in several)),
                "seconds": sum(m.seconds for m in several),
            }
            judged = judge(first, [member.weights for member in several])
            found.setdefault(name, []).append({**judged, **cost})
        print(number, {name: values[-1] for name, values in found.items()}, flush=True)
        yield {"rows": found, "members": MEMBERS, "pairs": number + 1}


@dataclass(frozen=True)
class Member:
    """A network of an ensemble, and its own cost: without the training of the source."""

    weights: Weights
    gradients: int
    seconds: float


def source_of(pair: Pair) -> Member:
    """Return the source as a member."""
    return Member(dict(pair.source[-1].weights), 0, 0.0)


def members(pair: Pair) -> dict[str, Member]:
    """Return what one target becomes in several ways."""
    (plan,) = at_gradients(TransferPlan(), (CARRY,))
    began = time.perf_counter()
    result = transferred(pair, plan)
    seconds = time.perf_counter() - began
    carried = Member(result.weights, result.cost.gradient_evaluations, seconds)
    after = descended(pair, carried.weights, FURTHER)
    both = replace(
        after,
        gradients=carried.gradients + after.gradients,
        seconds=carried.seconds + after.seconds,
    )
    alone = descended(pair, pair.start, CARRY + FURTHER)
    return {"transferred": carried, "transferred, then trained": both, "short trainings": alone}


def descended(pair: Pair, start: Weights, gradients: int) -> Member:
    """Train on; of Adam, SGD and sign descent the best on validation data."""
    tries = [
        descend(start, pair.task, DescentPlan(optimizer, gradients, refine=False))
        for optimizer in ("adam", "sgd", "sign-descent")
    ]
    best = max(tries, key=lambda found: found.validation["accuracy"])
    return Member(best.weights, best.gradients, best.seconds)


def judge(pair: Pair, several: list[Weights]) -> dict[str, float]:
    """Accuracy, likelihood, calibration and disagreement of an ensemble on the test data."""
    labels = torch.cat([batch[1] for batch in pair.experiment.part("test")])
    outputs = []
    for weights in several:
        model = pair.experiment.model.eval()
        with weights_in(model, weights), torch.no_grad():
            parts = [model(batch[0]).softmax(-1) for batch in pair.experiment.part("test")]
        outputs.append(torch.cat(parts))
    mean = torch.stack(outputs).mean(0)
    votes = torch.stack([output.argmax(-1) for output in outputs])
    apart = [
        (votes[a] != votes[b]).float().mean().item()
        for a in range(len(votes))
        for b in range(a + 1, len(votes))
    ]
    return {
        "accuracy": (mean.argmax(-1) == labels).float().mean().item(),
        "nll": nn.functional.nll_loss(mean.clamp_min(1e-12).log(), labels).item(),
        "calibration_error": calibration_error(mean, labels),
        "member_accuracy": (votes == labels).float().mean().item(),
        "disagreement": statistics.fmean(apart) if apart else 0.0,
    }


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the expected calibration error: |accuracy - confidence|, over bins of confidence."""
    confidence, votes = probabilities.max(-1)
    right = (votes == labels).float()
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    gaps = [
        (right[bins == number] - confidence[bins == number]).sum().abs() for number in range(BINS)
    ]
    return float(torch.stack(gaps).sum() / len(labels))


def ensembles_text(found: dict[str, Any], _: Case) -> str:
    """Return the table of `ensembles`."""
    keys = ("accuracy", "nll", "calibration_error", "member_accuracy", "disagreement")
    rows = [
        [
            name,
            *(spread([v[key] for v in values]) for key in keys),
            f"{statistics.fmean(v['gradients'] for v in values):.0f}",
            f"{statistics.fmean(v['seconds'] for v in values):.1f}",
        ]
        for name, values in found["rows"].items()
    ]
    header = ["", "ensemble accuracy", "negative log-likelihood", "calibration error"]
    header += ["member accuracy", "disagreement", "gradients", "seconds"]
    text = (
        f"Ensembles of {found['members']} networks. Gradients and seconds are those of all "
        "members, without the training of the source; trained members are trained in full."
    )
    return f"{text}\n\n{table(header, rows)}"


def main() -> None:
    """Run one study of one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("methods", "steps", "sensitivity", "ensembles"))
    parser.add_argument("--case", required=True, choices=list(cases("", "")))
    parser.add_argument("--mnist", default="", help="folder of MNIST")
    parser.add_argument("--cifar10", default="", help="folder of CIFAR-10")
    parser.add_argument("--text", default="", help="a text file")
    parser.add_argument("--pairs", type=int, help="seed pairs; by default the case's")
    parser.add_argument("--only", default="", help="rows of `methods`, such as sgd,adam")
    parser.add_argument("--networks", type=Path, help="folder that keeps the trained networks")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    options = parser.parse_args()
    facts = machine()
    case = cases(options.mnist, options.cifar10, options.text)[options.case]
    pairs, only = options.pairs or case.pairs, tuple(filter(None, options.only.split(",")))
    what = described(case)
    folder = None if options.networks is None else options.networks / options.case
    studies: dict[str, tuple[Callable[[], Iterator[dict[str, Any]]], Callable[..., str]]] = {
        "methods": (
            lambda: Methods(
                case, Networks(case, folder), pairs, read_rows(options.output, what), only
            ).study(),
            methods_text,
        ),
        "steps": (lambda: steps(case, pairs, folder), steps_text),
        "sensitivity": (lambda: sensitivity(case, pairs, folder), sensitivity_text),
        "ensembles": (lambda: ensembles(case, pairs, folder), ensembles_text),
    }
    study, as_text = studies[options.study]
    for found in study():
        text = (
            f"# {options.study}: {options.case}, {found['pairs']} seed pairs\n\n"
            f"{as_text(found, case)}\n\n"
            f"Mean ± sample standard deviation over the pairs. {machine_line(facts)}\n\n"
            f"{NOTES[options.study]}\n\nCase: `{what}`"
        )
        write(options.output, text, {"machine": facts, "case": what, **found})


NOTES = {
    "methods": (
        "Rates of rivals are tuned on validation data for each number of gradients, on the first "
        "pair, or on each (`tune_all`), and fall along a cosine. Validation and test data are as "
        "many batches of 500 images (128 texts) as the case says. Networks 0 to 2 were also used "
        "in development, by their validation data. Seconds are without the search for a rate, and "
        "at the load of the moment: rows of a resumed study may differ in it. Rows that were not "
        "measured, for want of time, are empty, and so are pairs beside which a rival is missing."
    ),
    "steps": "One thing of the default is changed at a time, at as many gradients or fewer.",
    "sensitivity": "One thing is changed at a time.",
    "ensembles": "Test data are all there are.",
}


def described(case: Case) -> dict[str, Any]:
    """Return a case as plain data, without folders."""
    what = asdict(case)
    setup = what["setup"]
    if "data" in setup:
        setup["data"] = setup["data"].partition(":")[0]
    if "text" in setup:
        setup["text"] = Path(setup["text"]).name
    return what


if __name__ == "__main__":
    main()
