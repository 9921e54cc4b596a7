"""The study `methods` of transfer.py: every method and rival at several numbers of gradients."""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from common import table
from slipstream.evaluation import evaluate
from slipstream.report.tables import markdown, savings_rows
from slipstream.trajectory import Trajectory
from slipstream.transfer import (
    Comparison,
    ContinuedTransfer,
    DescentPlan,
    Outcome,
    Target,
    TransferPlan,
    at_gradients,
    descend,
    rivals,
    shuffled_source,
    transfer_trajectory,
)
from slipstream.transfer.comparison import TARGET_START, TRAINED_TARGET
from slipstream.transfer.plan import Method, SignWeights
from slipstream.transfer.rivals import Distance
from slipstream.weights import Weights
from transfer_cases import Case, Networks, Pair

SOURCE, SHUFFLED, EARLIER = "source", "shuffled-signed", "fgmt-signed of 0.1"
DEFAULT = TransferPlan().method
METHODS: tuple[Method, ...] = get_args(Method)
FIRST = ("activations", "fgmt", "naive", "random")
SIGNED = sorted(m for m in METHODS if m.removesuffix("-signed") in FIRST and "-" in m)
UNSIGNED = [method for method in METHODS if method in FIRST and method != "fgmt"]
WITHOUT_SOURCE = tuple(name for name in rivals() if name != "distillation")
DISTANCE: dict[str, Distance] = {
    "accuracy": "auto",
    "loss": "divergence",
}  # a loss here is that of the next character

Row = dict[str, Any]


@dataclass
class Methods:
    """The rows of a case, each measured once: what is in the file is not measured again."""

    case: Case
    networks: Networks
    pairs: int
    rows: list[Row] = field(default_factory=list)
    only: tuple[str, ...] = ()  # of the rows that depend on a method
    _pairs: dict[int, Pair] = field(default_factory=dict)

    def study(self) -> Iterator[dict[str, Any]]:
        """Measure row by row; what is known is given after each."""
        phases = [self._levels, self._budgets, *([] if self.only else [self._ladder])]
        for phase in phases:
            for number in range(self.pairs):
                for name, gradients, make in phase(number):
                    if self._wanted(name) and self._row(number, name, gradients) is None:
                        self._measure(number, name, gradients, make)
                        yield {"rows": self.rows, "pairs": self.pairs}
        yield {"rows": self.rows, "pairs": self.pairs}

    def _wanted(self, name: str) -> bool:
        return not self.only or name in (*self.only, SOURCE, TARGET_START, TRAINED_TARGET)

    def _pair(self, number: int) -> Pair:
        if number not in self._pairs:
            self._pairs = {number: self.networks.pair(number, self.case.pairs)}
        return self._pairs[number]

    def _row(self, number: int, name: str, gradients: int) -> Row | None:
        for row in self.rows:
            if (row["pair"], row["name"], row["budget"]) == (number, name, gradients):
                return row
        return None

    def _measure(
        self, number: int, name: str, budget: int, make: Callable[[Pair], "Made | None"]
    ) -> None:
        pair, metric = self._pair(number), self.case.metric
        made = make(pair)
        if made is None:
            return
        task = pair.task
        metrics = {metric: task.measured[metric]}
        found = {
            split: evaluate(task.model, metrics, weights=made.weights, data=task.part(split))
            for split in ("validation", "test")
        }
        row = {
            **{"pair": number, "name": name, "budget": budget, "gradients": made.gradients},
            **{split: values[metric] for split, values in found.items()},
            **{"seconds": made.seconds, "rate": made.rate, "tuning": made.tuning},
        }
        self.rows.append(row)
        print(f"  {row}", flush=True)

    def _levels(self, number: int) -> "Iterator[tuple[str, int, Make]]":
        yield SOURCE, 0, lambda pair: Made(dict(pair.source[-1].weights))
        yield TARGET_START, 0, lambda pair: Made(pair.start)
        yield TRAINED_TARGET, 0, lambda pair: Made(pair.trained, seconds=pair.training_seconds)
        for method in UNSIGNED:
            yield method, 0, _transfer(TransferPlan(method, seed=number))

    def _budgets(self, number: int) -> "Iterator[tuple[str, int, Make]]":
        for budget in self.case.budgets:
            for method in SIGNED:
                plan = TransferPlan(method, seed=number)
                yield method, budget, _transfer(*at_gradients(plan, (budget,)))
            if budget >= 20:  # with fewer stages it is worse than nothing
                earlier = TransferPlan("fgmt-signed", signs=SignWeights())
                yield EARLIER, budget, _transfer(*at_gradients(earlier, (budget,)))
            shuffled = at_gradients(TransferPlan("naive-signed"), (budget,))
            yield SHUFFLED, budget, _transfer(*shuffled, shuffled=number)
            for name in rivals():
                yield name, budget, self._descent(number, name, budget)

    def _ladder(self, number: int) -> "Iterator[tuple[str, int, Make]]":
        """The best optimiser on, and after the default transfer, until 99 % is reached."""
        best = self._best_rival(self.case.budgets[-1])
        goal = self._goal(number)
        for budget in self.case.ladder:
            if not self._reached(number, (*WITHOUT_SOURCE,), goal):
                yield best, budget, self._descent(number, best, budget)
        first = self.case.budgets[1]
        for budget in (*self.case.budgets[2:], *self.case.ladder):
            names = [DEFAULT, *(f"{DEFAULT}, then {name}" for name in (best, "adam"))]
            for name in dict.fromkeys((best, "adam")):
                if not self._reached(number, names, goal):
                    whole = f"{DEFAULT}, then {name}"
                    yield whole, budget, self._continued(number, whole, first, budget)

    def _descent(self, number: int, name: str, budget: int) -> "Make":
        def make(pair: Pair) -> Made:
            plan = self._tuned(number, name, budget, rivals(budget)[name])
            return _descended(pair, pair.start, plan)

        return make

    def _continued(self, number: int, name: str, first: int, budget: int) -> "Make":
        def make(pair: Pair) -> Made | None:
            (carry,) = at_gradients(TransferPlan(), (first,))
            descent = rivals()[name.rpartition(" ")[2]]
            continued = at_gradients(ContinuedTransfer(carry, descent), (budget,))
            if not continued:
                return None
            carried = _transfer(carry)(pair)
            plan = self._tuned(number, name, budget, continued[0].descent)
            after = _descended(pair, carried.weights, plan)
            seconds, gradients = carried.seconds + after.seconds, carried.gradients + plan.gradients
            return replace(after, seconds=seconds, gradients=gradients)

        return make

    def _tuned(self, number: int, name: str, budget: int, plan: DescentPlan) -> DescentPlan:
        """Search the rate on the first pair, from that of fewer gradients; later it is known."""
        plan = replace(plan, refine=False, distance=DISTANCE[self.case.metric])
        known = self._row(0, name, budget)
        if number and known is not None and not self.case.tune_all:
            return replace(plan, rates=(known["rate"],))
        before = [r for r in self.rows if r["name"] == name and r["pair"] == number and r["rate"]]
        if not before:
            return plan
        rate = max(before, key=lambda row: row["budget"])["rate"]
        return replace(plan, rates=(rate / 2, rate))

    def _best_rival(self, budget: int) -> str:
        """By validation data, over all pairs."""
        means = {
            name: self._mean(name, budget, "validation")
            for name in WITHOUT_SOURCE
            if self._row(0, name, budget)
        }
        return max(means, key=means.__getitem__)

    def _mean(self, name: str, budget: int, split: str) -> float:
        """The mean over the pairs; the larger the better."""
        found = [r[split] for r in self.rows if (r["name"], r["budget"]) == (name, budget)]
        return statistics.fmean(found) * (1 if self.case.metric == "accuracy" else -1)

    def _goal(self, number: int) -> float:
        trained = self._row(number, TRAINED_TARGET, 0)
        assert trained is not None
        share = 0.99 if self.case.metric == "accuracy" else 1 / 0.99
        return float(trained["validation"] * share)

    def _reached(self, number: int, names: tuple[str, ...] | list[str], goal: float) -> bool:
        sign = 1 if self.case.metric == "accuracy" else -1
        return any(
            sign * (row["validation"] - goal) >= 0
            for row in self.rows
            if row["pair"] == number and row["name"] in names
        )


@dataclass(frozen=True)
class Made:
    """What a method leads to, and its cost."""

    weights: Weights
    gradients: int = 0
    seconds: float = 0.0
    rate: float | None = None
    tuning: int = 0  # gradients at the rates that were not taken


Make = Callable[[Pair], Made | None]


def _transfer(plan: Any = None, *, shuffled: int | None = None) -> Callable[[Pair], Any]:
    """Return what transfers by a plan; nothing if no plan fits the budget."""

    def make(pair: Pair) -> Made | None:
        if plan is None:
            return None
        source: Trajectory = pair.source
        if shuffled is not None:
            source = shuffled_source(source, seed=shuffled)
        target, task = Target(pair.start, pair.trained), replace(pair.task, validation=None)
        began = time.perf_counter()
        found = transfer_trajectory(source, target, task, plan=plan, groups=pair.groups)
        seconds = time.perf_counter() - began
        return Made(found.weights, found.cost.gradient_evaluations, seconds)

    return make


def _descended(pair: Pair, start: Weights, plan: DescentPlan) -> Made:
    found = descend(start, pair.task, plan, source=pair.source[-1].weights)
    tuning = found.gradients_of_all - found.gradients
    return Made(found.weights, found.gradients, found.seconds, found.rate, tuning)


def read_rows(output: Path | None, case: Any) -> list[Row]:
    """Return the rows of a study that was stopped, if it was of the same case."""
    file = None if output is None else output.with_suffix(".json")
    if file is None or not file.is_file():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    same = found.get("case") == json.loads(json.dumps(case))
    return list(found["rows"]) if same and isinstance(found["rows"], list) else []


def methods_text(found: dict[str, Any], case: Case) -> str:
    """Return the tables of `methods`."""
    rows, metric = found["rows"], case.metric
    counts = sorted({row["budget"] for row in rows})
    names = list(dict.fromkeys(row["name"] for row in rows))
    held: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        held.setdefault((row["name"], row["budget"]), []).append(row)
    body = [
        [
            f"**{name}**" if name == DEFAULT else name,
            *(_spread([r["test"] for r in held.get((name, count), [])]) for count in counts),
        ]
        for name in names
    ]
    parts = [
        f"Test {metric} at the end, by the gradients that were taken; bold is the default.",
        table(["", *map(str, counts)], body),
        "The default beside the best method without a source, which is chosen by validation data "
        "for each number of gradients; the difference pair by pair, ± two standard errors; and the "
        "method without a source that happened to be the best on test data. Seconds are those of "
        "the default and of the best rival at its rate.",
        table(
            [
                "gradients",
                "pairs",
                "default",
                "best rival",
                "",
                "difference",
                "best on test",
                "seconds",
            ],
            [line for count in case.budgets if (line := _beside(held, count, case))],
        ),
    ]
    saved = _saved(rows, case)
    if saved:
        parts += [
            "Gradients to 99 % of the trained target on validation data, of the numbers that were "
            "tried; the transfer is included, and the training after it.",
            saved,
        ]
    return "\n\n".join(parts)


def _beside(held: dict[tuple[str, int], list[Row]], count: int, case: Case) -> list[str] | None:
    """The default and the best rival at a number of gradients."""
    sign = 1 if case.metric == "accuracy" else -1
    own = {row["pair"]: row for row in held.get((DEFAULT, count), [])}
    others = {n: {r["pair"]: r for r in held.get((n, count), [])} for n in WITHOUT_SOURCE}
    # Only where every rival is known: the best one may be the last to be measured.
    own = {p: row for p, row in own.items() if all(p in found for found in others.values())}
    if not own:
        return None
    best = max(
        others, key=lambda n: sign * statistics.fmean(others[n][p]["validation"] for p in own)
    )
    apart = [sign * (own[pair]["test"] - others[best][pair]["test"]) for pair in own]
    error = 2 * statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
    seconds = [statistics.fmean(found[p]["seconds"] for p in own) for found in (own, others[best])]
    means = {n: statistics.fmean(found[p]["test"] for p in own) for n, found in others.items()}
    highest = max(means, key=lambda name: sign * means[name])
    return [
        str(count),
        str(len(own)),
        _spread([row["test"] for row in own.values()]),
        _spread([others[best][pair]["test"] for pair in own]),
        best,
        f"{statistics.fmean(apart):+.3f}" + (f" ± {error:.3f}" if len(apart) > 1 else ""),
        f"{means[highest]:.3f} ({highest})",
        f"{seconds[0]:.2f}, {seconds[1]:.2f}",
    ]


def _saved(rows: list[Row], case: Case) -> str:
    """The table of what is saved, of the pairs on which all rivals are known."""
    metric, there = case.metric, {(row["pair"], row["name"], row["budget"]) for row in rows}
    needed = [(name, budget) for name in (DEFAULT, *WITHOUT_SOURCE) for budget in case.budgets]
    known = {
        pair
        for pair in {row["pair"] for row in rows}
        if all((pair, *one) in there for one in [(TRAINED_TARGET, 0), *needed])
    }
    if not known:
        return ""
    outcomes = [
        Outcome(
            row["name"],
            row["pair"],
            metrics={metric: row["test"]},
            further={},
            seconds=row["seconds"],
            gradient_evaluations=row["gradients"],
            validation={metric: row["validation"]},
            without_source=row["name"] in WITHOUT_SOURCE,
        )
        for row in rows
        if row["pair"] in known and row["name"] != SOURCE
    ]
    comparison = Comparison(tuple(outcomes))
    names = [name for name in comparison.names if name.startswith(DEFAULT)]
    if not names or not comparison.rivals:
        return ""
    savings = comparison.savings(names, metric=metric)
    written = markdown(savings_rows(savings))
    if "not reached" not in written:
        written += f"\n\nMedian: {savings.least_ratio:.3g} times fewer gradients, at least."
    return written


def _spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean
