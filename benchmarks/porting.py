"""What porting a fine-tune is worth, beside few-shot fine-tuning with the same data and budget.

    python benchmarks/porting.py --mnist DIR --text tinyshakespeare.txt --output porting

Two bases of different seeds (and, for the language model, different texts) are fine-tuned on a
task that neither has seen; every method then gives the first one's fine-tune to the second, with
the same few labelled examples. A continued lineage is the same with a second base that goes on from
the first one. All that is chosen (strength, method, rate of the controls) is chosen on validation
data. Results are written after every pair, and a run with the same output goes on after the last.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import machine, machine_line, table, write
from porting_cases import Case, Shuffled, cases
from slipstream.evaluation import Task, evaluate
from slipstream.porting import FineTune, PortPlan, port_fine_tune
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.transfer import SignWeights
from slipstream.weights import Weights, weights_of

STAGES = 10
BUDGET = 3 * STAGES  # gradients of `fgmt-signed`
# The gradients of `fgmt-signed`, all spent on signed steps; the rule was chosen on validation data
# of a pair that is not among those measured.
ALL_SIGNED = "activations-signed, as many gradients"
PLANS = {
    **{
        method: PortPlan(method, stages=STAGES)
        for method in (
            *("identity", "weights", "activations", "procrustes", "sign-mask", "fgmt"),
            *("weights-signed", "activations-signed", "fgmt-signed", "auto"),
        )
    },
    ALL_SIGNED: PortPlan(
        "activations-signed", stages=BUDGET, signs=SignWeights(first=1.0, last=4.0)
    ),
}
RATES = {"sgd": (0.3, 0.1, 0.03, 0.01), "adam": (0.01, 0.003, 0.001, 0.0003)}
ZERO_SHOT, FEW_SHOT, FULL = "zero-shot", "few-shot fine-tuning", "full fine-tuning"
SOURCE = "the first base's fine-tune"
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
            if earlier and all(method in earlier[False]["test"] for method in PLANS):
                continue
            began = time.process_time()
            found = [
                {"case": name, "pair": pair, **part} for part in _run(known[name](), pair, earlier)
            ]
            results = [r for r in results if (r["case"], r["pair"]) != (name, pair)]
            results += [{**part, "seconds": time.process_time() - began} for part in found]
            minutes = sum(r["seconds"] for r in results if not r["lineage"]) / 60
            note = f"{machine_line(facts)} {minutes:.0f} minutes of processor time in all."
            text = _report(results, known) + f"\n\n{note}"
            write(arguments.output, text, {"machine": facts, "results": results})


def _before(output: Path | None) -> list[dict[str, Any]]:
    """What an earlier run has measured."""
    if output is None or not output.with_suffix(".json").is_file():
        return []
    found: list[dict[str, Any]] = json.loads(output.with_suffix(".json").read_text())["results"]
    return found


def _run(case: Case, pair: int, earlier: dict[bool, Any]) -> Iterator[dict[str, Any]]:
    """Train two bases and their fine-tunes; port, and measure on the test data.

    What an earlier run has measured is kept: only methods that are new since then are run.
    """
    first, second = case.build(2 * pair), case.build(2 * pair + 1)
    for model, examples in zip((first, second), case.pretraining, strict=True):
        case.training.run(model, case.loss, Shuffled(examples, case.batch, pair))
    tuned = _tuned(case, first, seed=pair)
    if earlier:
        missing = [method for method in PLANS if method not in earlier[False]["test"]]
        found = _ported(case, first, tuned, second, missing, seed=pair)
        for part in ("test", "chosen"):
            found[part] = earlier[False][part] | found[part]
        yield earlier[False] | found
        yield earlier[True]
        return
    found = _ported(case, first, tuned, second, list(PLANS), seed=pair)
    found["test"] |= {
        FULL: _test(case, second, weights_of(_tuned(case, second, seed=pair))),
        SOURCE: _test(case, first, weights_of(tuned)),
        FEW_SHOT: _few_shot(case, second, seed=pair),
    }
    yield {"lineage": False, **found}
    onward = copy.deepcopy(first)
    data = Shuffled(case.pretraining[1], case.batch, pair + 100)
    case.training.run(onward, case.loss, data, share=0.5)
    yield {"lineage": True, **_ported(case, first, tuned, onward, KEPT, seed=pair)}


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
    measured = {ZERO_SHOT: _test(case, second, weights_of(second))}
    chosen = {}
    for method in methods:
        result = port_fine_tune(
            FineTune(weights_of(first), weights_of(tuned), weights_of(second)),
            Task(
                second,
                case.labelled(seed),
                case.loss,
                validation=case.validation.batches(256),
            ),
            plan=PLANS[method],
            groups=groups,
        )
        measured[method] = _test(case, second, result.weights)
        chosen[method] = [result.method, result.strength, result.gradient_evaluations]
    return {"regime": result.regime, "test": measured, "chosen": chosen}


def _tuned(case: Case, base: nn.Module, *, seed: int) -> nn.Module:
    model = copy.deepcopy(base)
    data = Shuffled(case.full, case.batch, seed)
    case.training.run(model, case.loss, data, share=0.5)
    return model


def _few_shot(case: Case, model: nn.Module, *, seed: int) -> float:
    """As many gradients as fgmt-signed takes, on the same data; the rate by validation loss."""
    best = (float("inf"), float("nan"))
    for name, rates in RATES.items():
        for rate in rates:
            trained = copy.deepcopy(model)
            kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
            options = {"momentum": 0.9} if name == "sgd" else {}
            optimizer = kinds[name](trained.parameters(), lr=rate, **options)
            trained.train()
            for _, batch in zip(range(BUDGET), case.labelled(seed), strict=False):
                optimizer.zero_grad()
                case.loss(trained, batch).backward()
                optimizer.step()
            validation = case.validation.batches(256)
            loss = evaluate(trained, {"loss": case.loss}, data=validation)["loss"]
            if loss < best[0]:
                best = loss, _test(case, trained, weights_of(trained))
    return best[1]


def _test(case: Case, model: nn.Module, weights: Weights) -> float:
    found = evaluate(model, case.metrics, weights=weights, data=case.test.batches(500))
    return found[case.metric]


def _report(results: list[dict[str, Any]], known: dict[str, Any]) -> str:
    names = [name for name in known if any(r["case"] == name for r in results)]
    rows = [ZERO_SHOT, *PLANS, FEW_SHOT, FULL, SOURCE]
    apart = _table(results, names, rows, lineage=False)
    kept = _table(results, names, [ZERO_SHOT, *KEPT], lineage=True)
    shares = [_kept(results, name) for name in names]
    lines = [
        "Test accuracy (for gpt the loss, in nats a letter) of the second base: mean and standard "
        "deviation over the pairs.",
        "",
        "Independent bases:",
        "",
        apart,
        "",
        f"Pairs: {_pairs(results, names)}; a spread of 0.000 is that of one pair.",
        "",
        f"Mean over the cases of images: {_average(results)}.",
        "",
        "A continued lineage:",
        "",
        kept,
        "",
        "Share of the identity's gain that auto keeps: "
        + ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True)),
    ]
    return "\n".join(lines)


def _average(results: list[dict[str, Any]]) -> str:
    """Accuracy over all image cases, each with its pairs that have been measured in full."""
    rows = ("sign-mask", "activations-signed", "fgmt-signed", ALL_SIGNED, "auto", FEW_SHOT)
    whole: dict[str, list[dict[str, float]]] = {}
    for result in results:
        apart = not result["lineage"] and result["case"] != "gpt, one play"
        if apart and set(rows) <= result["test"].keys():
            whole.setdefault(result["case"], []).append(result["test"])
    means = {
        row: statistics.mean(statistics.mean(t[row] for t in tests) for tests in whole.values())
        for row in rows
        if whole
    }
    return ", ".join(f"{row} {mean:.3f}" for row, mean in means.items())


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
