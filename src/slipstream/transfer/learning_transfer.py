"""Carry the learning trajectory of one network to the start of another."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from torch import nn

from slipstream.evaluation import Batch, Loss, Metric, device_of, inputs_of
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer import methods
from slipstream.transfer.checks import (
    check_choices,
    check_finite,
    check_loss,
    check_source,
    complete,
    measured_with,
    repeatable,
)
from slipstream.transfer.gradient_store import GradientStore
from slipstream.transfer.methods import Step
from slipstream.transfer.paths import paths
from slipstream.transfer.plan import TransferPlan
from slipstream.transfer.processes import from_main_process
from slipstream.transfer.result import TransferCost, TransferResult
from slipstream.transfer.stage_log import SUMMARY, Ledger, finished_transfer
from slipstream.transfer.transfer_state import BatchStream, Networks, Stopwatch
from slipstream.weights import Weights, check_shapes, parameter_names, weights_of

Progress = Callable[[int, int], None]  # steps of work done, and in all


def transfer_trajectory(
    source: Trajectory,
    target: Weights,
    *,
    model: nn.Module,
    loss: Loss,
    data: Iterable[Batch],
    plan: TransferPlan | None = None,
    groups: NeuronGroups | None = None,
    example_input: Any = None,
    trained_target: Weights | None = None,
    validation: Iterable[Batch] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    keep: Literal["last", "best"] = "last",
    run_folder: str | Path | None = None,
    configuration: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TransferResult:
    """Synthesise the run that `target` would have had, from the run that `source` did have.

    The source's displacement is laid over the target's neurons by a permutation that is chosen so
    that the gradients of both networks agree along the way: two gradients a stage, no training.

    Args:
        source: The run to transfer; its first snapshot is the start, its last one the end.
        target: The start it is carried to: parameters of the same architecture; buffers that it
            lacks are the model's own.
        model: The architecture; left as it was. Its device is where the work is done.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        data: Batches for gradients and BatchNorm statistics, in an order that repeats; under
            `torchrun` each process brings its own and the gradients are averaged.
        plan: What to do; `TransferPlan()` is FGMT in ten stages along the straight line.
        groups: What may be permuted; found and proven when not given.
        example_input: An input of the model, for finding the groups; by default that of the first
            batch.
        trained_target: The end of the target's own training: for the method `oracle` only.
        validation: Batches on which every stage is measured; never test data.
        metrics: What to measure beside `loss`: name to a function of the model and a batch.
        keep: Which weights to go on with: of the last stage, or of the least validation loss.
        run_folder: Where to write the transferred trajectory, a run like any other. Without it the
            stages are kept in memory and an interruption loses them.
        configuration: What the run folder should say of the model and the data, as plain data.
        resume: Go on with the unfinished transfer in `run_folder`, if there is one.
        progress: Called after each stage of work.

    Returns:
        Every stage, the permutations, the cost, and the weights to go on with.

    Raises:
        ValueError: If layouts differ, source or target holds a NaN, data is empty, the loss is not
            deterministic, no neuron group could be matched, or `run_folder` holds another transfer.
        FileExistsError: If `run_folder` is not empty, and not to be resumed.

    Source: "Transferring Learning Trajectories of Neural Networks" (Chijiwa, 2024); the sign
    weights of `fgmt-signed` are this project's, after GradFix (Rinaldi et al., 2025).
    """
    plan = TransferPlan() if plan is None else plan
    folder = from_main_process(None if run_folder is None else Path(run_folder))
    check_choices(keep, validation, folder, resume)
    start = complete(model, target, "target")
    if folder is not None and from_main_process(resume and (folder / SUMMARY).is_file()):
        parameters = {name: start[name] for name in parameter_names(model)}
        return finished_transfer(folder, plan=plan, start=parameters, keep=keep)
    excluded = plan.excluded(parameter_names(model))
    check_source(source, start, excluded)
    segments = paths(source, plan)
    check_finite(segments, plan, [n for n in parameter_names(model) if n not in excluded])
    if plan.matching == "oracle":
        if trained_target is None:
            raise ValueError("The oracle matches a trained target: pass trained_target=...")
        trained_target = complete(model, trained_target, "trained_target")
    stream = BatchStream(data)
    first = BatchStream(data).take(plan.batchnorm_batches)
    check_loss(model, loss, start, first[0])
    groups = _groups(model, groups, plan, inputs_of(first[0]), example_input)
    clock = Stopwatch()
    measured = measured_with(loss, metrics or {})
    held = repeatable(validation)
    ledger = Ledger(plan, model, clock, measured, held, folder, resume, configuration or {})
    with ledger:
        store = GradientStore(folder, device=device_of(model))
        networks = Networks(
            model, loss, start, excluded, stream, plan.batches_per_gradient, first, store, clock
        )
        counter = _Counter(plan, progress)
        _run(networks, segments, groups, plan, trained_target, ledger, counter)
        cost = TransferCost(
            networks.sampler.evaluations, dict(clock.seconds), store.reused, networks.kept_bytes
        )
        result = ledger.close(cost, keep=keep)
        store.remove()
    return result


def transfer_to_many(
    source: Trajectory,
    targets: Sequence[Weights],
    *,
    model: nn.Module,
    data: Iterable[Batch],
    executor: Executor | None = None,
    run_folders: Sequence[str | Path] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[TransferResult]:
    """Transfer one run to many starts, independently and, with an executor, at once.

    Args:
        source: The run to transfer.
        targets: The starts.
        model: The architecture; every transfer works on a copy.
        data: Batches for gradients, the same for all; several threads go through it at once.
        executor: Any `concurrent.futures.Executor`; with processes, the arguments must pickle.
        run_folders: Where to write the transferred runs, one for each target.
        progress: Called when another target is done.
        **options: Passed on to `transfer_trajectory`, the same for all.

    Returns:
        The results, in the order of the targets.

    Raises:
        ValueError: If `run_folders` and `targets` differ in number.
    """
    folders: Sequence[str | Path | None] = run_folders or [None] * len(targets)
    if len(folders) != len(targets):
        raise ValueError(f"{len(targets)} targets need as many run_folders, got {len(folders)}.")
    plan = options.get("plan") or TransferPlan()
    # Once for all: tracing is slow, and no two threads can do it at a time.
    groups = _groups(
        model,
        options.pop("groups", None),
        plan,
        inputs_of(BatchStream(data).take(1)[0]),
        options.pop("example_input", None),
    )
    jobs: list[dict[str, Any]] = [
        {"target": target, "model": deepcopy(model), "data": data}
        | {"run_folder": folder, "groups": groups, **options}
        for target, folder in zip(targets, folders, strict=True)
    ]
    if executor is None:
        results = []
        for number, job in enumerate(jobs, start=1):
            results.append(transfer_trajectory(source, **job))
            if progress is not None:
                progress(number, len(jobs))
        return results
    futures = [executor.submit(transfer_trajectory, source, **job) for job in jobs]
    for number, _ in enumerate(as_completed(futures), start=1):
        if progress is not None:
            progress(number, len(jobs))
    return [future.result() for future in futures]


def _run(
    networks: Networks,
    segments: list[Trajectory],
    groups: NeuronGroups,
    plan: TransferPlan,
    trained_target: Weights | None,
    ledger: Ledger,
    counter: "_Counter",
) -> None:
    weights: Weights = networks.start
    ledger.enter(0, networks.calibrated(weights), None)
    permutation = Permutation.identity(groups)
    if plan.matching == "random":
        permutation = Permutation.random(groups, seed=plan.seed)
    if plan.matching == "oracle" and trained_target is not None:
        permutation = _oracle(networks, segments, groups, trained_target)
    stage = 0
    for path in segments:
        for step in _steps(networks, path, weights, permutation, plan, counter):
            stage += 1
            last = step
            ledger.enter(stage, networks.calibrated(step.weights), step)
            counter.tick()
        weights = last.weights
        permutation = last.source_to_target


def _steps(
    networks: Networks,
    path: Trajectory,
    start: Weights,
    permutation: Permutation,
    plan: TransferPlan,
    counter: "_Counter",
) -> Iterator[Step]:
    ways = {"gmt": methods.gmt, "fgmt": methods.fgmt}
    if plan.matching in ways:
        matched = ways[plan.matching](networks, path, start, permutation, plan)
        chosen = _timed(matched, networks.clock)
    else:
        chosen = methods.fixed(networks, path, start, permutation)
    if not plan.signed:
        yield from chosen
        return
    # Late permutations are better than early ones: match along the whole path, then set out anew.
    for step in chosen:
        counter.tick()
        last = step
    yield from methods.signed(networks, path, start, last, plan.signs)


def _timed(steps: Iterable[Step], clock: Stopwatch) -> Iterator[Step]:
    for step in steps:
        if step.matching is not None:
            clock.add("products", step.matching.seconds_products)
            clock.add("assignments", step.matching.seconds_assignments)
        yield step


class _Counter:
    """Tells the caller how much work is done."""

    def __init__(self, plan: TransferPlan, progress: Progress | None) -> None:
        passes = 2 if plan.signed else 1
        self._total = passes * plan.total_stages
        self._done = 0
        self._progress = progress

    def tick(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _oracle(
    networks: Networks, segments: list[Trajectory], groups: NeuronGroups, trained: Weights
) -> Permutation:
    whole = Trajectory.line(segments[0][0], segments[-1][-1], stages=1)
    matching = methods.oracle(whole, networks.start, trained, groups, networks.carried)
    networks.clock.add("products", matching.seconds_products)
    networks.clock.add("assignments", matching.seconds_assignments)
    return matching.source_to_target


def _groups(
    model: nn.Module,
    groups: NeuronGroups | None,
    plan: TransferPlan,
    inputs: Any,
    example_input: Any,
) -> NeuronGroups:
    if groups is not None:
        check_shapes(weights_of(model), groups.shapes)
        return groups
    if plan.matching == "naive":
        shapes = {name: tuple(value.shape) for name, value in weights_of(model).items()}
        return NeuronGroups((), (), shapes)
    found = find_neuron_groups(model, inputs if example_input is None else example_input)
    if not len(found):
        raise ValueError(f"No neurons of this model may change places:\n{found}")
    return found
