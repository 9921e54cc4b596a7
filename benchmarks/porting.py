"""What porting a fine-tune is worth, beside rivals with the same data and as many gradients.

    python benchmarks/porting.py --mnist DIR --text tinyshakespeare.txt --output porting

Two bases of different seeds (and, for the language model, different texts) are fine-tuned on a
task that neither has seen; every method then gives the first one's fine-tune to the second, with
the same few labelled examples and the same inputs without labels. A continued lineage is the same
with a second base that goes on from the first one. The rivals take 30 gradients at rates that fall
along a cosine: descent on the labels and distillation of the first base's fine-tune, each by SGD,
Adam, sign descent, Lion or Muon, and signed steps with the displacement shuffled within each
tensor. All that is chosen (strength, method, rate of the rivals) is chosen on validation data; the
gradients of the rivals' other rates are not counted, those of `auto`'s other candidates are.
Results are written after every pair, and a run with the same output goes on after the last.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from common import machine, machine_line, table, write
from porting_cases import Case, Shuffled, cases
from slipstream.evaluation import Task, evaluate
from slipstream.porting import FineTune, PortPlan, port_fine_tune
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer import Descent, SignWeights, descend, rivals, shuffled_source
from slipstream.weights import Weights, weights_of

BUDGET = 30  # gradients
PLANS = {
    **{name: PortPlan(name) for name in ("identity", "weights", "activations", "procrustes")},
    **{name: PortPlan(name) for name in ("bico", "function", "function-outputs")},
    "fgmt-signed, 30": PortPlan("fgmt-signed", budget=BUDGET),
    "activations-signed, 30": PortPlan(
        "activations-signed", budget=BUDGET, signs=SignWeights(first=1.0, last=4.0)
    ),
    "auto, 0": PortPlan(budget=0),
    "auto, 30": PortPlan(budget=BUDGET),
    "auto": PortPlan(),
}
ZERO_SHOT, FULL, SOURCE = "zero-shot", "full fine-tuning", "the first base's fine-tune"
FEW_SHOT, DISTILLED = "few-shot fine-tuning, 30", "distillation, 30"
SHUFFLED = "activations-signed, shuffled, 30"
RIVALS = (FEW_SHOT, DISTILLED, SHUFFLED)
KEPT = ("identity", "auto")  # measured in a lineage


def main() -> None:
    """Read the arguments, run the cases, write the table after each pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", default="data", help="the folder of MNIST")
    parser.add_argument("--text", default="tinyshakespeare.txt", help="tiny Shakespeare")
    parser.add_argument("--cases", nargs="*", help="some of the cases; all by default")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    facts = machine()
    known = cases(arguments.mnist, arguments.text)
    results = _before(arguments.output)
    for name in arguments.cases or known:
        for pair in range(arguments.pairs):
            earlier = {r["lineage"]: r for r in results if (r["case"], r["pair"]) == (name, pair)}
            if earlier and all(map(_complete, earlier.values())):
                continue
            began = time.process_time()
            found = [
                {"case": name, "pair": pair, **part} for part in _run(known[name](), pair, earlier)
            ]
            results = [r for r in results if (r["case"], r["pair"]) != (name, pair)]
            results += [{**part, "seconds": time.process_time() - began} for part in found]
            minutes = sum(r["seconds"] for r in results if not r["lineage"]) / 60
            note = f"{machine_line(facts)} {minutes:.0f} minutes of processor time in all."
            text = _report(list(filter(_complete, results)), known) + f"\n\n{note}"
            write(arguments.output, text, {"machine": facts, "results": results})


def _before(output: Path | None) -> list[dict[str, Any]]:
    """What an earlier run has measured."""
    if output is None or not output.with_suffix(".json").is_file():
        return []
    found: list[dict[str, Any]] = json.loads(output.with_suffix(".json").read_text())["results"]
    return found


def _complete(result: dict[str, Any]) -> bool:
    return all(method in result["test"] for method in (KEPT if result["lineage"] else PLANS))


def _run(case: Case, pair: int, earlier: dict[bool, Any]) -> Iterator[dict[str, Any]]:
    """Train two bases and their fine-tunes; port, and measure on the test data.

    What an earlier run has measured is kept: only methods that are new since then are run.
    """
    first, second = case.build(2 * pair), case.build(2 * pair + 1)
    for model, examples in zip((first, second), case.pretraining, strict=True):
        case.training.run(model, case.loss, Shuffled(examples, case.batch, pair))
    tuned = _tuned(case, first, seed=pair)
    for lineage, methods in ((False, list(PLANS)), (True, KEPT)):
        before = earlier.get(lineage, {"test": {}, "chosen": {}})
        missing = [method for method in methods if method not in before["test"]]
        other = second
        if lineage and missing:
            other = copy.deepcopy(first)
            data = Shuffled(case.pretraining[1], case.batch, pair + 100)
            case.training.run(other, case.loss, data, share=0.5)
        found = _ported(case, first, tuned, other, missing, seed=pair) if missing else {}
        for part in ("test", "chosen"):
            found[part] = before[part] | found.get(part, {})
        if not lineage and FULL not in found["test"]:
            rivals_of = partial(_descended, case, second, seed=pair)
            found["test"] |= {
                FULL: _test(case, second, weights_of(_tuned(case, second, seed=pair))),
                SOURCE: _test(case, first, weights_of(tuned)),
                FEW_SHOT: rivals_of(),
                DISTILLED: rivals_of(source=weights_of(tuned)),
                SHUFFLED: _shuffled(case, first, tuned, second, seed=pair),
            }
        yield {**before, "lineage": lineage, **found}


def _ported(
    case: Case,
    first: nn.Module,
    tuned: nn.Module,
    second: nn.Module,
    methods: Sequence[str],
    *,
    seed: int,
) -> dict[str, Any]:
    groups = find_neuron_groups(second, case.tuning.inputs[:2])
    given = FineTune(weights_of(first), weights_of(tuned), weights_of(second))
    measured, chosen = {ZERO_SHOT: _test(case, second, weights_of(second))}, {}
    for method in methods:
        began = time.process_time()
        result = port_fine_tune(given, _task(case, second, seed), plan=PLANS[method], groups=groups)
        took = time.process_time() - began
        measured[method] = _test(case, second, result.weights)
        chosen[method] = [result.method, result.strength, result.gradient_evaluations, took]
    return {"regime": result.regime, "test": measured, "chosen": chosen}


def _task(case: Case, model: nn.Module, seed: int) -> Task:
    validation = case.validation.batches(256)
    return Task(
        model,
        case.labelled(seed),
        case.loss,
        validation=validation,
        unlabelled=case.unlabelled,
        metrics={},
    )


def _tuned(case: Case, base: nn.Module, *, seed: int) -> nn.Module:
    model = copy.deepcopy(base)
    data = Shuffled(case.full, case.batch, seed)
    case.training.run(model, case.loss, data, share=0.5)
    return model


def _descended(case: Case, model: nn.Module, *, seed: int, source: Weights | None = None) -> float:
    """What 30 gradients reach without a port, at the optimiser and rate best on validation.

    With a source its outputs are learned instead of labels.
    """
    task = _task(case, model, seed)
    best: Descent | None = None
    for plan in rivals(BUDGET).values():
        if plan.answers == "source":
            continue
        if source is not None:
            plan = replace(plan, answers="source", distance="divergence")
        found = descend(weights_of(model), task, plan, source=source)
        if best is None or found.validation["loss"] < best.validation["loss"]:
            best = found
    assert best is not None  # there are optimisers
    return _test(case, model, best.weights)


def _shuffled(
    case: Case, first: nn.Module, tuned: nn.Module, second: nn.Module, *, seed: int
) -> float:
    """Signed steps whose sizes are those of the displacement, in another order."""
    run = Trajectory.from_weights([weights_of(first), weights_of(tuned)])
    mixed = shuffled_source(run, seed=seed)[-1].weights | dict(tuned.named_buffers())
    given = FineTune(weights_of(first), mixed, weights_of(second))
    groups = find_neuron_groups(second, case.tuning.inputs[:2])
    plan = PLANS["activations-signed, 30"]
    result = port_fine_tune(given, _task(case, second, seed), plan=plan, groups=groups)
    return _test(case, second, result.weights)


def _test(case: Case, model: nn.Module, weights: Weights) -> float:
    found = evaluate(model, case.metrics, weights=weights, data=case.test.batches(500))
    return found[case.metric]


def _report(results: list[dict[str, Any]], known: dict[str, Any]) -> str:
    names = [name for name in known if any(r["case"] == name for r in results)]
    rows = [ZERO_SHOT, *PLANS, *RIVALS, FULL, SOURCE]
    shares = [_kept(results, name) for name in names]
    lines = [
        "# Porting a fine-tune\n",
        "Test accuracy (for gpt the loss, in nats a letter) of the second base: mean and standard "
        "deviation over the pairs. A number behind a method is its gradients in all; auto without "
        "one takes 160 at most. The fine-tunes saw 8000 examples, the ports 256 labels and 512 "
        "inputs without.",
        "",
        "Independent bases:",
        "",
        _table(results, names, rows, lineage=False),
        "",
        f"Pairs: {_pairs(results, names)}; a spread of 0.000 is that of one pair.",
        "",
        f"auto with 30 gradients above the best rival, in pairs: {_above(results, names)}.",
        "",
        f"Seconds: {_seconds(results)}.",
        "",
        "What auto with 30 gradients chose:",
        "",
        *(f"- {name}: {_choices(results, name)}" for name in names),
        "",
        "A continued lineage:",
        "",
        _table(results, names, [ZERO_SHOT, *KEPT], lineage=True),
        "",
        "Share of the identity's gain that auto keeps: "
        + ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True)),
    ]
    return "\n".join(lines)


def _apart(results: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [r for r in results if r["case"] == name and not r["lineage"]]


def _above(results: list[dict[str, Any]], names: list[str]) -> str:
    """In how many pairs auto beats few-shot fine-tuning, and in how many every rival."""
    told = []
    for name in names:
        sign = -1 if name.startswith("gpt") else 1
        tests = [r["test"] for r in _apart(results, name)]
        gains = [sign * t["auto, 30"] - max(sign * t[r] for r in RIVALS) for t in tests]
        few = [sign * (t["auto, 30"] - t[FEW_SHOT]) for t in tests]
        wins, over = (sum(gain > 0 for gain in found) for found in (gains, few))
        told.append(f"{name} {wins} of {len(tests)} (few-shot {over})")
    return ", ".join(told)


def _choices(results: list[dict[str, Any]], name: str) -> str:
    return ", ".join(r["chosen"]["auto, 30"][0] for r in _apart(results, name))


def _seconds(results: list[dict[str, Any]]) -> str:
    """What the methods took, in the mean over all cases."""
    found = {
        method: [
            r["chosen"][method][3] for r in results if not r["lineage"] and method in r["chosen"]
        ]
        for method in PLANS
    }
    return ", ".join(f"{m} {statistics.mean(took):.1f}" for m, took in found.items() if took)


def _pairs(results: list[dict[str, Any]], names: list[str]) -> str:
    counted = (
        (name, sum(r["case"] == name and not r["lineage"] for r in results)) for name in names
    )
    return ", ".join(f"{name} {pairs}" for name, pairs in counted)


def _table(
    results: list[dict[str, Any]], names: list[str], rows: list[str], *, lineage: bool
) -> str:
    def cell(case: str, row: str) -> str:
        here = [r["test"] for r in results if (r["case"], r["lineage"]) == (case, lineage)]
        values = [test[row] for test in here if row in test]
        if not values:
            return "-"
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.3f} ± {spread:.3f}"

    return table(["", *names], [[row, *(cell(name, row) for name in names)] for row in rows])


def _kept(results: list[dict[str, Any]], name: str) -> float:
    """What auto gains over zero-shot, over what the identity gains."""
    tests = [r["test"] for r in results if r["case"] == name and r["lineage"]]
    gains = [sum(t[m] - t[ZERO_SHOT] for t in tests) for m in ("auto", "identity")]
    return gains[0] / gains[1] if gains[1] else 1.0


if __name__ == "__main__":
    main()
