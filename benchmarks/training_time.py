"""Predicted training time beside real training: the steps to a half, quarter, tenth of the loss.

    python benchmarks/training_time.py --output benchmarks/results/training_time

Networks learn to tell scikit-learn's digits 0 to 4, get a new head, and are fine-tuned on 120
images of 5 to 9 (the images for training; nothing is tested here). The prediction never sees these
steps. Every finished fine-tuning is kept beside the output, so that an interrupted benchmark goes
on where it stopped.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import curve_fit
from scipy.stats import spearmanr
from torch import nn

from common import machine, machine_line, table, write
from slipstream.dynamics import PredictionPlan, TrainingTime, predict_training_time
from slipstream.evaluation import Loss, Task
from slipstream.testbed import Examples, load_data
from training_time_cases import LOSSES, RATE_SHARE, Case, cases, start_of

SHARES = (0.5, 0.25, 0.1)  # of the loss at the start, to be reached
EXAMPLES = 120
MAX_STEPS = 4000
FIRST = 10  # real steps from which curves are extrapolated


@dataclass(frozen=True)
class Real:
    """A real fine-tuning."""

    losses: list[float]  # over the data, before each step and at the end
    steps: list[int | None]  # to each threshold
    seconds: float  # of the steps alone


def really_train(
    model: nn.Module,
    loss: Loss,
    data: Examples,
    *,
    case: Case,
    rate: Callable[[int], float],
    thresholds: list[float],
    seed: int,
) -> Real:
    """Take steps until the last threshold is reached."""
    model, whole = deepcopy(model), (data.inputs, data.labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=case.momentum)
    size = case.batch_size or len(data)
    full, epoch, seconds = size == len(data), 0, 0.0
    losses: list[float] = []
    while len(losses) <= MAX_STEPS:
        for batch in data.batches(size, seed=None if full else seed).epoch(epoch):
            if not full:
                with torch.no_grad():
                    losses.append(loss(model, whole).item())
            started = time.perf_counter()
            value = loss(model, batch)
            if full:
                losses.append(value.item())
            if losses[-1] <= min(thresholds) or len(losses) > MAX_STEPS:
                return Real(losses, [_first(losses, one) for one in thresholds], seconds)
            optimizer.param_groups[0]["lr"] = rate(len(losses) - 1)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            seconds += time.perf_counter() - started
        epoch += 1
    return Real(losses, [_first(losses, one) for one in thresholds], seconds)


def _first(losses: list[float], threshold: float) -> int | None:
    return next((step for step, value in enumerate(losses) if value <= threshold), None)


def extrapolated(losses: list[float], thresholds: list[float], kind: str) -> list[int | None]:
    """Return the steps to each threshold on a curve that is fitted to the first losses.

    Args:
        losses: Of the first steps.
        thresholds: What to reach.
        kind: `exponential`, a straight line for the logarithm of the loss; or `power`, the loss as
            `a (1 + t / b)^-c`.

    Returns:
        Steps, None where the curve never gets there, or cannot be fitted.
    """
    times, logs = torch.arange(float(len(losses))), torch.tensor(losses).log()
    found: list[int | None] = []
    if kind == "exponential":
        spread = times - times.mean()
        slope = float((spread * logs).sum() / spread.square().sum())
        for threshold in thresholds:
            step = (math.log(threshold) - float(logs.mean())) / slope + float(times.mean())
            found.append(math.ceil(step) if slope < 0 and 0 < step < 1e6 else None)
        return found

    def curve(t: Any, log_a: float, log_b: float, log_c: float) -> Any:
        return log_a - math.exp(min(log_c, 50)) * (1 + t / math.exp(min(log_b, 50))).log()

    try:
        (log_a, log_b, log_c), _ = curve_fit(
            lambda t, *p: curve(torch.as_tensor(t), *p).numpy(),
            times.numpy(), logs.numpy(), p0=(float(logs[0]), 2.0, 0.0), maxfev=4000,
        )  # fmt: skip
    except RuntimeError:
        return [None] * len(thresholds)
    for threshold in thresholds:
        power = (log_a - math.log(threshold)) / math.exp(min(log_c, 50))
        step = math.exp(min(log_b, 50)) * (math.exp(min(power, 50)) - 1)
        found.append(math.ceil(step) if 0 < step < 1e6 else None)
    return found


@dataclass(frozen=True)
class Prediction:
    """What was predicted in one way."""

    steps: list[int | None]
    seconds: float
    path_error: float | None = None  # of `Trust`; an extrapolation has none
    output_error: float | None = None
    kernel_drift: float | None = None
    linearisations: int = 0


@dataclass(frozen=True)
class Result:
    """A fine-tuning, and all predictions of it."""

    case: str
    seed: int
    learned: float | None  # accuracy before the head was new
    rate: float
    real: list[int | None]
    seconds: float
    predictions: dict[str, Prediction]


WAYS: dict[str, dict[str, Any]] = {
    "linearised once": {"linearisations": 1},
    "linearised once, after 10 real steps": {
        "linearisations": 1,
        "warm_up": FIRST,
        "probe_steps": 1,
    },
    "linearised twice": {"linearisations": 2, "tolerance": 0.0, "probe_steps": 1},
    "linearised anew": {},
}


def run(case: Case, *, seed: int, known: Examples, new: Examples) -> Result:
    """Fine-tune a network for real, and predict it."""
    chosen = torch.randperm(len(new), generator=torch.Generator().manual_seed(seed))[:EXAMPLES]
    data = Examples(new.inputs[chosen], new.labels[chosen])
    loss = LOSSES[case.loss]
    model, learned = start_of(case, seed=seed, known=known)
    pairs = [(data.inputs, data.labels)]
    with torch.no_grad():
        initial = loss(model, pairs[0]).item()
    thresholds = [share * initial for share in SHARES]
    task, look = Task(model, pairs, loss), PredictionPlan(thresholds, momentum=case.momentum)
    glance = replace(look, lr=1e-9, max_steps=1, probe_steps=0)
    first = predict_training_time(task, plan=glance)
    peak = case.rate_share * first.stable_lr

    def rate(step: int) -> float:
        return peak * (1 + math.cos(math.pi * min(step / 2000, 1))) / 2 if case.cosine else peak

    real = really_train(model, loss, data, case=case, rate=rate, thresholds=thresholds, seed=seed)
    predictions = {}
    for way, settings in WAYS.items():
        plan = replace(
            look,
            lr=rate if case.cosine else peak,
            batch_size=case.batch_size,
            seed=seed,
            max_steps=MAX_STEPS,
            **settings,
        )
        predictions[way] = _prediction(predict_training_time(task, plan=plan))
    per_step = real.seconds / max(1, len(real.losses) - 1)
    affordable = round(predictions["linearised anew"].seconds / per_step)
    for name, count in (("10 steps", FIRST), ("the prediction's time", affordable)):
        seen = real.losses[: max(3, count) + 1]
        for kind in ("exponential", "power"):
            steps = extrapolated(seen, thresholds, kind)
            known_already = [_first(seen, one) for one in thresholds]
            merged = [a if a is not None else b for a, b in zip(known_already, steps, strict=True)]
            predictions[f"{kind}, from {name}"] = Prediction(merged, (len(seen) - 1) * per_step)
    return Result(case.name, seed, learned, peak, real.steps, real.seconds, predictions)


def _prediction(found: TrainingTime) -> Prediction:
    trust = found.trust
    return Prediction(
        [arrival.steps for arrival in found.arrivals],
        found.cost.seconds,
        trust.path_error,
        trust.output_error,
        trust.kernel_drift,
        found.linearisations,
    )


def percent(predicted: int | None, real: int | None) -> float | None:
    """Return the signed error of a predicted number of steps; None if there is none."""
    if predicted is None or real is None or real == 0:
        return None
    return 100 * (predicted / real - 1)


def errors(results: list[Result], way: str, place: int) -> list[float | None]:
    """Return the errors of some fine-tunings at one threshold, where it was really reached."""
    return [
        percent(result.predictions[way].steps[place], result.real[place])
        for result in results
        if result.real[place]
    ]


def spread(values: list[float | None]) -> str:
    """Return the mean, and the range of the seeds, of signed errors."""
    known = [value for value in values if value is not None]
    if not known:
        return "never" if values else "not reached"
    missing = f", {len(values) - len(known)} never" if len(known) < len(values) else ""
    low, high = min(known), max(known)
    around = f" ({low:+.0f} to {high:+.0f})" if round(low) != round(high) else ""
    return f"{statistics.mean(known):+.0f}{around}{missing}"


def case_rows(results: list[Result]) -> list[tuple[str, ...]]:
    """Return a row for each case: errors with one linearisation and with several."""
    rows = []
    for name in dict.fromkeys(result.case for result in results):
        own = [result for result in results if result.case == name]
        last = [result.real[-1] for result in own if result.real[-1]]
        row = [name, f"{statistics.mean(last):.0f}" if last else "not reached"]
        for way in ("linearised once", "linearised anew"):
            row += [spread(errors(own, way, place)) for place in range(len(SHARES))]
            cost = [result.predictions[way].seconds / result.seconds for result in own]
            row.append(f"{statistics.median(cost):.2f}")
        kernels = [result.predictions["linearised anew"].linearisations for result in own]
        rows.append((*row, f"{statistics.mean(kernels):.1f}"))
    return rows


def way_rows(results: list[Result]) -> list[tuple[str, ...]]:
    """Return a row for each way to predict, over all fine-tunings."""
    rows = []
    for way in results[0].predictions if results else ():
        cells = []
        for place in range(len(SHARES)):
            found = errors(results, way, place)
            sizes = [math.inf if one is None else abs(one) for one in found]
            middle = statistics.median_high(sizes)
            cells.append(f"{middle:.0f}" if math.isfinite(middle) else "never")
        last = errors(results, way, len(SHARES) - 1)
        good = sum(one is not None and abs(one) <= 20 for one in last)
        # What is never predicted counts as later than all others.
        pairs = [(r.predictions[way].steps[-1] or 10**9, r.real[-1]) for r in results if r.real[-1]]
        ranks = spearmanr(*zip(*pairs, strict=True)).statistic
        cost = statistics.median(r.predictions[way].seconds / r.seconds for r in results)
        never = sum(one is None for one in last)
        rows.append(
            (way, *cells, f"{good / len(last):.0%}", str(never), f"{ranks:.2f}", f"{cost:.2f}")
        )
    return rows


def trust_rows(results: list[Result], way: str) -> list[tuple[str, ...]]:
    """Return what the errors at the last threshold are, by what `Trust` says."""
    rows = []
    place = len(SHARES) - 1
    pairs = [(r.predictions[way], percent(r.predictions[way].steps[place], r.real[place]))
             for r in results if r.real[place]]  # fmt: skip
    bounds = (0.0, 0.02, 0.05, 0.2, math.inf)
    for low, high in pairwise(bounds):
        found = [error for one, error in pairs if low <= (one.path_error or 0.0) < high]
        sizes = sorted(math.inf if error is None else abs(error) for error in found)
        between = f"from {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
        if sizes:
            said = [f"{size:.0f}" if math.isfinite(size) else "never reached"
                    for size in (statistics.median_high(sizes), sizes[-1])]  # fmt: skip
            rows.append((between, str(len(sizes)), *said))
    return rows


def trust_line(results: list[Result], way: str) -> str:
    """Return the rank correlations of the figures of `Trust` with the size of the error."""
    pairs = [(r.predictions[way], r.predictions[way].steps[-1], r.real[-1])
             for r in results if r.real[-1]]  # fmt: skip
    sizes = [abs(math.log(p / r)) if p else math.inf for _, p, r in pairs]
    said = []
    for figure in ("path_error", "output_error", "kernel_drift"):
        values = [getattr(one, figure) for one, _, _ in pairs]
        said.append(f"{figure} {spearmanr(values, sizes).statistic:.2f}")
    return f"Rank correlation with the size of the error, {way}: {', '.join(said)}."


def trust_lines(results: list[Result]) -> list[str]:
    """Return the part of the page about `Trust`."""
    lines = ["## Trust", ""]
    ways = ("linearised once", "linearised anew")
    lines += [trust_line(results, way) for way in ways]
    for way in ways:
        header = (f"path_error, {way}", "fine-tunings", "median error, %", "largest, %")
        lines += ["", table(header, trust_rows(results, way))]
    return lines


def text_of(results: list[Result], facts: dict[str, Any]) -> str:
    """Return the page."""
    shares = [f"{share:.0%}" for share in SHARES]
    anew = "linearised anew"
    seeds = len({result.seed for result in results})
    header = ("", "steps to 10%", *(f"once, {s}" for s in shares), "time")
    header += (*(f"anew, {s}" for s in shares), "time", "kernels")
    names = ("", *(f"at {s}" for s in shares), "within 20%", "never", "Spearman", "time")
    cheap = [r for r in results if 2 * r.predictions[anew].seconds < r.seconds]
    learned = [result.learned for result in results if result.learned is not None]
    return "\n".join(
        [
            "# Predicted training time",
            "",
            machine_line(facts),
            "",
            f"{len(results)} fine-tunings, {seeds} seeds a row: scikit-learn's digits 5 to 9 with "
            f"a new head, {EXAMPLES} images, SGD at {RATE_SHARE:g} of the largest stable rate, "
            f"after training on 0 to 4 (accuracy there {min(learned):.2f} to {max(learned):.2f}). "
            "Errors of the predicted number of steps in percent, signed, mean and range of the "
            "seeds, at shares of the loss at the start. Time: of the prediction, relative to "
            "that of the real steps, median. Once: the paper's method. Anew: up to 16 "
            "linearisations, where outputs are 2% off.",
            "",
            table(header, case_rows(results)),
            "",
            "## All ways to predict",
            "",
            "Median of the size of the error in percent over all fine-tunings, share of them "
            "within 20% at the last threshold, how many are never predicted to reach it, rank "
            "correlation of predicted and real steps there, and time relative to training. "
            "The extrapolations are given the losses of real steps; what the curve has reached "
            "by then counts as known. Where the prediction takes longer than the training, "
            '"the prediction\'s time" is all of the training.',
            "",
            table(names, way_rows(results)),
            "",
            f"The same over the {len(cheap)} fine-tunings that take more than twice as long as "
            "their prediction (linearised anew): only there is anything to be gained.",
            "",
            table(names, way_rows(cheap)),
            "",
            *trust_lines(results),
        ]
    )


def save(output: Path, facts: dict[str, Any], results: list[Result]) -> None:
    """Write the page, and all fine-tunings beside it."""
    data = {"machine": facts, "results": [asdict(result) for result in results]}
    write(output, text_of(results, facts), data)


def main() -> None:
    """Run what has not been run yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--case", action="append", help="part of a case's name")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    kept = given.output.with_suffix(".json")
    data = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {"results": []}
    facts = data.get("machine") or machine()
    results = [
        Result(
            **{**one, "predictions": {n: Prediction(**p) for n, p in one["predictions"].items()}}
        )
        for one in data["results"]
    ]
    done = {(result.case, result.seed) for result in results}
    images = load_data("digits").train
    known, new = (Examples(images.inputs[part], images.labels[part] % 5)
                  for part in (images.labels < 5, images.labels >= 5))  # fmt: skip
    for seed in range(given.seeds):
        for case in cases():
            named = not given.case or any(part in case.name for part in given.case)
            if named and (case.name, seed) not in done:
                results.append(run(case, seed=seed, known=known, new=new))
                order = [one.name for one in cases()]
                results.sort(key=lambda result: (order.index(result.case), result.seed))
                save(given.output, facts, results)
    save(given.output, facts, results)


if __name__ == "__main__":
    main()
