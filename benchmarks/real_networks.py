"""Porting fine-tunes between real pre-trained networks: is it worth more than a few labels?

    pip install ase
    pip download --no-deps torchani==2.0
    python benchmarks/real_networks.py torchani-2.0-py3-none-any.whl --output real_networks

Eight networks of different seeds (ANI-1x) have each been fine-tuned by others (ANI-1ccx). The
fine-tune of one is carried to another, whose own fine-tune says what could be reached. Labels are
the mean of the eight fine-tunes. Networks 0 to 3 are for development; what is reported is carried
between networks 4 to 7. Strengths, rates and methods are chosen on validation geometries, which are
a quarter of the labels. A run with the same output goes on after the last port.
"""

import argparse
import copy
import functools
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ani_networks import (
    BASES,
    FINE_TUNES,
    AtomicNetworks,
    Geometry,
    Molecule,
    Resources,
    geometries,
    inputs_of,
    molecules,
)
from common import machine, machine_line, table, write
from slipstream.evaluation import Batch, Task
from slipstream.landscape.line import loss_barrier
from slipstream.matching import match_activations, match_weights
from slipstream.matching.activations import covariances_of
from slipstream.porting import FineTune, PortPlan, port_fine_tune
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.training import Loop, TrainingPlan
from slipstream.transfer.transfer_state import BatchStream
from slipstream.weights import Weights, clone, inner, load_weights_, norm, weights_of

LABELS = (32, 128, 512)
UNLABELLED = 500
TEST = 1000
JITTER = 0.05  # angstrom
BATCH = 32
VALIDATION = 4  # of so many labels, one is kept to choose by
PARTS = 16  # of the validation geometries
NEW = 5  # of so many molecules, one is only seen in a test of its own
BUDGET = 30  # gradients of descent
PORTS = {"development": range(4), "test": range(4, 8), "all": range(8)}
RATES = {
    "Adam": (0.003, 0.001, 0.0003, 0.0001),
    "SGD": (1e-5, 3e-6, 1e-6, 3e-7),
    "sign descent": (0.001, 0.0003, 0.0001, 0.00003),
}
AUTO, AUTO_FEW = "auto", f"auto, {BUDGET} gradients in all"
PLANS = {
    **{
        method: PortPlan(method)
        for method in (
            *("identity", "weights", "activations", "procrustes", "bico"),
            *("fgmt-signed", "output-bias", "function", "distil"),
            *("weights+function", "weights+few-shot", "function+few-shot"),
        )
    },
    "activations-signed": PortPlan("activations-signed", stages=BUDGET),
    # With the rates that few-shot fine-tuning by sign descent has.
    AUTO_FEW: PortPlan(budget=BUDGET, rates=RATES["sign descent"]),
    # As many gradients as few-shot fine-tuning takes to find its rate.
    AUTO: PortPlan(budget=BUDGET * len(RATES["sign descent"]), rates=RATES["sign descent"]),
}
UNTOUCHED, OWN, SOURCE = "untouched", "its own fine-tune", "the source's fine-tune"
FEW_SHOT = "few-shot"
ERROR, COST = "rmse", "cost"
SHUFFLED, RANDOM = "displacement shuffled", "random permutation"
CONTROLS = (
    *((SHUFFLED, method) for method in ("identity", "activations-signed", "auto")),
    *((RANDOM, method) for method in ("identity", "identity-signed")),
)
CARRIED = (*PLANS, *(f"{method}, {control}" for control, method in CONTROLS))
Row = dict[str, Any]


def main() -> None:
    """Read the arguments, run the ports, write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", type=Path, help="the wheel torchani 2.0, or its resources")
    parser.add_argument("--ports", choices=PORTS, default="test", help="between which networks")
    parser.add_argument("--labels", type=int, nargs="*", default=LABELS)
    parser.add_argument("--rows", nargs="*", choices=CARRIED, default=CARRIED)
    parser.add_argument("--again", action="store_true", help="measure these rows again")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    facts = machine()
    found = _before(arguments.output)
    ports = Ports(Resources(arguments.networks))
    members = [m for m in PORTS[arguments.ports] if m < len(ports.bases)]
    for key, measure in _work(ports, members, arguments.labels):
        known = found.get(key, {})
        if arguments.again and key.startswith("port"):
            known = {name: row for name, row in known.items() if name not in arguments.rows}
        wanted = arguments.rows if key.startswith("port") else ()
        if not known or set(wanted) - known.keys():
            began = time.process_time()
            more = measure([name for name in wanted if name not in known])
            seconds = time.process_time() - began + known.get(COST, {}).get("seconds", 0.0)
            found[key] = {**known, **more, COST: {"seconds": seconds}}
            minutes = sum(part[COST]["seconds"] for part in found.values()) / 60
            note = f"{machine_line(facts)} {minutes:.0f} minutes of processor time in all."
            text = f"{_report(found, arguments.labels)}\n\n{note}"
            write(arguments.output, text, {"machine": facts, "results": found})


def _before(output: Path | None) -> dict[str, Row]:
    """What an earlier run has measured."""
    if output is None or not output.with_suffix(".json").is_file():
        return {}
    found: dict[str, Row] = json.loads(output.with_suffix(".json").read_text())["results"]
    return found


def _work(
    ports: "Ports", members: Sequence[int], labels: Iterable[int]
) -> Iterator[tuple[str, Callable[[Sequence[str]], Row]]]:
    """What there is to measure: pairs of bases, bases with their labels, and ports."""
    for source, target in itertools.combinations(members, 2):
        yield f"bases {source} {target}", lambda _, s=source, t=target: ports.apart(s, t)
    for count in labels:
        for target in members:
            yield f"labels {target} {count}", lambda _, t=target, k=count: ports.alone(t, k)
        for source, target in itertools.permutations(members, 2):
            key = f"port {source} {target} {count}"
            yield key, lambda rows, s=source, t=target, k=count: ports.carried(s, t, k, rows)


class Ports:
    """The networks, and the geometries that all ports share."""

    def __init__(self, resources: Resources) -> None:
        names = resources.members(BASES)
        self.bases = [resources.weights(BASES, name) for name in names]
        self.fine_tunes = [resources.weights(FINE_TUNES, name) for name in names]
        self.model = AtomicNetworks(resources.sizes())
        self._functions = resources.symmetry_functions()
        every = molecules()
        self._known = [m for number, m in enumerate(every) if number % NEW != NEW - 1]
        self._tests = {
            ERROR: self._batch(self._drawn(TEST, 1000, self._known)),
            f"{ERROR}, new molecules": self._batch(self._drawn(TEST, 1001, every[NEW - 1 :: NEW])),
        }
        example = inputs_of(self._drawn(BATCH, 1002, self._known))
        self._groups = find_neuron_groups(self.model, example)

    def carried(self, source: int, target: int, labels: int, rows: Sequence[str]) -> dict[str, Row]:
        """Port the fine-tune of one network to another, in several ways."""
        base, tuned = self.bases[source], self.fine_tunes[source]
        order = Permutation.random(self._groups, seed=10 * source + target)
        given = {
            "": FineTune(base, tuned, self.bases[target]),
            SHUFFLED: FineTune(base, _shuffled(base, tuned, seed=source), self.bases[target]),
            RANDOM: FineTune(order.apply(base), order.apply(tuned), self.bases[target]),
        }
        task = self._task(target, labels)
        work = {name: ("", plan) for name, plan in PLANS.items()}
        for control, method in CONTROLS:
            work[f"{method}, {control}"] = control, PLANS.get(method, PortPlan(method))
        found = {name: self._ported(given[work[name][0]], task, work[name][1]) for name in rows}
        return {**found, SOURCE: self._tested(tuned)}

    def alone(self, target: int, labels: int) -> dict[str, Row]:
        """What the labels give a network by themselves: each optimiser, its rate by validation."""
        task, start = self._task(target, labels), self.bases[target]
        found = {
            UNTOUCHED: self._tested(start),
            OWN: self._tested(self.fine_tunes[target]),
        }
        for name, rates in RATES.items():
            began = time.perf_counter()
            tried = [(_descended(task, start, name, rate), rate) for rate in rates]
            losses = [_validated(task, weights) for weights, _ in tried]
            best = min(range(len(rates)), key=losses.__getitem__)
            found[f"{FEW_SHOT}, {name}"] = {
                **self._tested(tried[best][0]),
                "validation": losses[best],
                "chosen": f"rate {rates[best]:g}",
                "gradients": BUDGET,
                "seconds": (time.perf_counter() - began) / len(rates),
            }
        rivals = [found[f"{FEW_SHOT}, {name}"] for name in RATES]
        found[FEW_SHOT] = min(rivals, key=lambda row: row["validation"])
        return found

    def apart(self, source: int, target: int) -> dict[str, Row]:
        """How alike two bases are, as they are and matched: cosine, correlation, barrier."""
        first, second = self.bases[source], self.bases[target]
        drawn = inputs_of(self._drawn(UNLABELLED, 1003, self._known))
        energies = torch.stack([_energies(self.model, w, drawn) for w in self.bases]).mean(0)
        task = Task(self.model, [(drawn, energies)], lambda m, b: _squared(m, b).sqrt())
        by_weights = match_weights(first, second, groups=self._groups).source_to_target
        matched = match_activations(first, second, task, groups=self._groups, start=by_weights)
        orders = {
            "identity": Permutation.identity(self._groups),
            "random": Permutation.random(self._groups, seed=10 * source + target),
            "weights": by_weights,
            "activations": matched.source_to_target,
        }
        return {
            name: self._agreement(order.apply(first), second, task)
            for name, order in orders.items()
        }

    def _agreement(self, first: Weights, second: Weights, task: Task) -> Row:
        seen = covariances_of(first, second, task, groups=self._groups)
        units = torch.cat([found.correlation().diagonal() for found in seen.values()])
        matrices = {name for name, value in first.items() if value.dim() > 1}
        ends = [{n: w[n] for n in matrices} for w in (first, second)]
        return {
            "cosine": inner(*ends) / (norm(ends[0]) * norm(ends[1])),
            "correlation": float(units.mean()),
            "barrier": loss_barrier(first, second, task, points=11).height,
        }

    def _ported(self, fine_tune: FineTune[Weights], task: Task, plan: PortPlan) -> Row:
        began = time.perf_counter()
        result = port_fine_tune(fine_tune, task, plan=plan, groups=self._groups)
        seconds = time.perf_counter() - began
        chosen = min(
            (
                c
                for c in result.candidates
                if (c.method, c.strength) == (result.method, result.strength)
            ),
            key=lambda candidate: candidate.loss,
        )
        return {
            **self._tested(result.weights),
            "chosen": chosen.name,
            "gradients": result.gradient_evaluations,
            "seconds": seconds,
        }

    @functools.cache  # ruff: ignore[cached-instance-method]  # as long-lived as the program
    def _task(self, target: int, labels: int) -> Task:
        """The labelled geometries of a target: more are those of fewer, and others."""
        drawn = self._drawn(max(LABELS), target, self._known)[:labels]
        held = drawn[::VALIDATION]
        learned = [g for number, g in enumerate(drawn) if number % VALIDATION]
        seen = self._drawn(UNLABELLED, 100 + target, self._known)
        return Task(
            self.model,
            [self._batch(part) for part in _parts(learned, BATCH)],
            _squared,
            validation=[self._batch(part) for part in _parts(held, -(-len(held) // PARTS))],
            unlabelled=[(inputs_of(part),) for part in _parts(seen, BATCH)],
            metrics={},
        )

    def _drawn(self, count: int, seed: int, known: Sequence[Molecule]) -> list[Geometry]:
        return geometries(known, self._functions, count=count, jitter=JITTER, seed=seed)

    def _batch(self, drawn: Sequence[Geometry]) -> Batch:
        """Geometries with their labels, the mean of the fine-tunes."""
        inputs = inputs_of(drawn)
        labels = [_energies(self.model, weights, inputs) for weights in self.fine_tunes]
        return inputs, torch.stack(labels).mean(0)

    def _tested(self, weights: Weights) -> Row:
        return {
            name: float((_energies(self.model, weights, inputs) - labels).square().mean().sqrt())
            for name, (inputs, labels) in self._tests.items()
        }


def _squared(model: nn.Module, batch: Batch) -> Tensor:
    inputs, labels = batch
    return (model(**inputs) - labels).square().mean()


@torch.no_grad()
def _energies(model: nn.Module, weights: Weights, inputs: dict[str, Any]) -> Tensor:
    found: Tensor = torch.func.functional_call(model, dict(weights), (), inputs)
    return found


def _parts(drawn: Sequence[Geometry], size: int) -> list[Sequence[Geometry]]:
    return [drawn[at : at + size] for at in range(0, len(drawn), size)]


def _shuffled(base: Weights, tuned: Weights, *, seed: int) -> Weights:
    """The fine-tune with the entries of its displacement in another order within each tensor."""
    random = torch.Generator().manual_seed(seed)
    shuffled = {}
    for name, start in base.items():
        moved = (tuned[name] - start).flatten()
        order = torch.randperm(moved.numel(), generator=random)
        shuffled[name] = start + moved[order].view(start.shape)
    return shuffled


def _descended(task: Task, start: Weights, name: str, rate: float) -> Weights:
    """A network after its budget of gradients, the rate falling along a cosine."""
    model = copy.deepcopy(task.model)
    load_weights_(model, start)
    optimizer = "adam" if name == "Adam" else "sgd"
    momentum = 0.9 if name == "SGD" else 0.0
    if name == "sign descent":
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(_keep_sign)
    plan = TrainingPlan(
        epochs=1, optimizer=optimizer, lr=rate, momentum=momentum, schedule="cosine"
    )
    batches = BatchStream(task.data).take(BUDGET)
    try:
        Loop(model, plan).run(lambda batch: task.loss(model, batch), data=batches)
    except ValueError:  # it diverges
        return start
    return clone(weights_of(model))


def _keep_sign(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.sign_()


def _validated(task: Task, weights: Weights) -> float:
    return task.evaluate(weights=weights, split="validation")["loss"]


def _report(found: dict[str, Row], labels: Sequence[int]) -> str:
    return "\n\n".join(
        [
            "# Porting fine-tunes between real pre-trained networks",
            "Error of the energies, in kcal/mol per atom (root of the mean square over "
            f"{TEST} geometries): mean and standard deviation over the ports. New molecules are of "
            "kinds that no labelled or unlabelled geometry shows. Gradients and seconds are those "
            "of the largest number of labels, for all that was tried; few-shot's are those of one "
            f"rate of {', '.join(str(len(rates)) for rates in RATES.values())}.",
            _methods(found, labels),
            _sentences(found, labels),
            "Bases beside each other: the cosine of their matrices, the correlation of units that "
            "meet, and how far the error rises above the line between their ends, in kcal/mol per "
            "atom:",
            _bases([rows for key, rows in found.items() if key.startswith("bases")]),
        ]
    )


def _rows_of(found: dict[str, Row], labels: int) -> list[dict[str, Row]]:
    """The rows of each port, with those of its target alone."""
    ports = [key.split() for key in found if key.startswith("port") and key.endswith(f" {labels}")]
    return [found[f"labels {p[2]} {labels}"] | found[" ".join(p)] for p in ports]


def _methods(found: dict[str, Row], labels: Sequence[int]) -> str:
    ports = {count: rows for count in labels if (rows := _rows_of(found, count))}
    if not ports:
        return ""
    names = [UNTOUCHED, *CARRIED, *(f"{FEW_SHOT}, {name}" for name in RATES), FEW_SHOT, SOURCE, OWN]
    names = [
        name for name in names if any(name in rows for rows in itertools.chain(*ports.values()))
    ]
    new = f"{ERROR}, new molecules"
    columns = [(ERROR, count) for count in ports] + [(new, count) for count in ports]

    def row(name: str) -> list[str]:
        known = {k: [rows[name] for rows in ports[k] if name in rows] for k in ports}
        cells = [_spread([found[kind] for found in known[k]]) for kind, k in columns]
        last = [found for found in known[max(ports)] if "gradients" in found]
        costs = (
            [_mean([r[cost] for r in last]) for cost in ("gradients", "seconds")] if last else []
        )
        return [name, *cells, *(f"{cost:.3g}" for cost in costs or (0, 0))]

    head = [*(f"{k} labels" for k in ports), *(f"new molecules, {k} labels" for k in ports)]
    return table(["", *head, "gradients", "seconds"], [row(name) for name in names])


def _sentences(found: dict[str, Row], labels: Sequence[int]) -> str:
    """What auto chose, and how it fares beside few-shot fine-tuning and doing nothing."""
    lines = []
    for count in labels:
        ports = [rows for rows in _rows_of(found, count) if AUTO in rows]
        beside = {
            other: [rows[AUTO][ERROR] / rows[other][ERROR] for rows in ports]
            for other in (FEW_SHOT, UNTOUCHED)
        }
        chosen = Counter(rows[AUTO]["chosen"].partition(" at ")[0] for rows in ports)
        listed = ", ".join(f"{name} {times}" for name, times in chosen.most_common())
        if ports:
            lines.append(
                f"- {count} labels, {len(ports)} ports: auto's error is "
                f"{_mean(beside[FEW_SHOT]):.2f} of few-shot's ({min(beside[FEW_SHOT]):.2f} to "
                f"{max(beside[FEW_SHOT]):.2f}), at most {max(beside[UNTOUCHED]):.2f} of the "
                f"untouched base's. It chose {listed}."
            )
    return "\n".join(lines)


def _bases(pairs: Sequence[dict[str, Row]]) -> str:
    kinds = ("cosine", "correlation", "barrier")
    orders = [name for name in (pairs[0] if pairs else {}) if name != COST]
    rows = [[o, *(_spread([p[o][kind] for p in pairs]) for kind in kinds)] for o in orders]
    return table(["matched by", *kinds], rows)


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values) if values else float("nan")


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{_mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"


if __name__ == "__main__":
    main()
