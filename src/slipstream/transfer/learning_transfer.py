"""Carry the learning trajectory of one network to the start of another."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from slipstream.evaluation import Task, device_of, inputs_of, takes_task
from slipstream.evaluation.executors import spread
from slipstream.evaluation.processes import from_main_process
from slipstream.storage.new_run import NewRun
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer import methods
from slipstream.transfer.gradient_store import GradientStore
from slipstream.transfer.methods import Step
from slipstream.transfer.plan import SignSteps, TransferPlan
from slipstream.transfer.stage_log import (
    SUMMARY,
    StageLog,
    TransferCost,
    TransferResult,
    continued_plan,
    finished_transfer,
)
from slipstream.transfer.transfer_state import (
    Stopwatch,
    TransferState,
    complete_weights,
)
from slipstream.weights import (
    Weights,
    check_shapes,
    first_nonfinite,
    is_continuous,
    parameter_names,
    weights_of,
)

Progress = Callable[[int, int], None]  # steps of work done, and in all
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Target:
    """A start to transfer to, with what else is known of it."""

    start: Weights
    trained: Weights | None = None  # the end of its own training: what `oracle` matches
    run_folder: str | Path | NewRun | None = None  # where its transfer is recorded, of several


def _takes_target(function: F) -> F:
    """Let `trained_target` and `run_folders` be passed beside the targets, as in 0.1."""

    @wraps(function)
    def call(source: Trajectory, *rest: Any, **given: Any) -> Any:
        trained, folders = given.pop("trained_target", None), given.pop("run_folders", None)
        name = list(signature(function).parameters)[1]  # target, or targets
        if rest:
            given[name], *rest = rest  # type: ignore[assignment]
        if trained is not None:
            given[name] = Target(_target(given[name]).start, trained)
        if folders is not None:
            targets = [_target(target) for target in given[name]]
            if len(folders) != len(targets):
                raise ValueError(
                    f"{len(targets)} targets need as many run_folders, got {len(folders)}."
                )
            pairs = zip(targets, folders, strict=True)
            given[name] = [replace(target, run_folder=folder) for target, folder in pairs]
        return function(source, given.pop(name), *rest, **given)

    return call  # type: ignore[return-value]


@takes_task(plan=TransferPlan)
@_takes_target
def transfer_trajectory(
    source: Trajectory,
    target: Weights | Target,
    task: Task,
    *,
    plan: TransferPlan | None = None,
    groups: NeuronGroups | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> TransferResult:
    """Synthesise the run that `target` would have had, from the run that `source` did have.

    The source's displacement is added to the target, its neurons permuted so that both networks
    compute the same: by default their activations are matched, which needs no labels. The signed
    methods then take a few steps against the sign of the target's own gradient, each weight by a
    share of how far the source moved it.

    Args:
        source: The run to transfer; its first snapshot is the start, its last one the end.
        target: The start it is carried to: parameters of the same architecture; buffers that it
            lacks are the model's own. The method `oracle` needs a `Target`, which knows the end of
            the target's own training.
        task: The model with its loss, and data for gradients and BatchNorm statistics, in an order
            that repeats. Its device is where the work is done. Under `torchrun` each process
            brings its own data and the gradients are averaged. On the validation data, if there
            is any, every stage is measured.
        plan: What to do; `TransferPlan()` matches activations and takes ten sign steps.
        groups: What may be permuted; found and proven when not given.
        run_folder: Where to record the transferred trajectory, a run like any other. Without it
            the stages are kept in memory and an interruption loses them. With
            `NewRun(path, resume=True)` an unfinished transfer continues.
        progress: Called after each stage of work.

    Returns:
        Every stage, the permutations, the cost, and the transferred weights.

    Raises:
        ValueError: If layouts differ, source or target holds a NaN, data is empty, the loss is not
            deterministic, no neuron group could be matched, or `run_folder` holds another transfer.
        FileExistsError: If `run_folder` is not empty, and not to be resumed.

    Source: "Transferring Learning Trajectories of Neural Networks" (Chijiwa, 2024); matching by
    activations and the sign steps are this project's, the latter after GradFix (Rinaldi et al.,
    2025).
    """
    plan = TransferPlan() if plan is None else plan
    run = from_main_process(None if run_folder is None else NewRun.of(run_folder))
    plan = continued_plan(plan, run)
    if plan.keep == "best" and task.validation is None:
        raise ValueError("keep='best' chooses by validation data: give Task(..., validation=...).")
    task, model, clock = task.repeatable(), task.model, Stopwatch()
    start = complete_weights(model, _target(target).start, "target")
    if run and from_main_process(run.resume and (run.folder / SUMMARY).is_file()):
        parameters = {name: start[name] for name in parameter_names(model)}
        return finished_transfer(run.folder, plan=plan, start=parameters)
    excluded = plan.excluded(parameter_names(model))
    _check_source(source, start, excluded)
    segments = plan.segments_of(source)
    _check_finite(segments, plan, [n for n in parameter_names(model) if n not in excluded])
    trained = _trained(target, plan, task)
    if plan.needs == "labels" and not task.has_data:
        raise ValueError(
            f"The method {plan.method} takes gradients, and the task has no data: give labelled "
            "batches with Task(..., data=...), or use the method 'activations', which needs none."
        )
    state = TransferState(
        task,
        start,
        excluded,
        plan.batches_per_gradient,
        plan.batchnorm_batches,
        plan.activation_batches,
        clock=clock,
    )
    if plan.needs == "labels":
        state.check_loss()
    groups = _groups(task, groups, plan, state.first)
    with StageLog(plan, task, clock, run) as log:
        state.store = GradientStore(run.folder if run else None, device=device_of(model))
        first = _first_permutation(state, segments, groups, plan, trained)
        _run(state, segments, first, plan, log, _Counter(plan, progress))
        cost = TransferCost(
            state.sampler.evaluations, dict(clock.seconds), state.store.reused, state.kept_bytes
        )
        result = log.close(cost)
        state.store.remove()
    return result


@takes_task(plan=TransferPlan)
@_takes_target
def transfer_to_many(
    source: Trajectory,
    targets: Sequence[Weights | Target],
    task: Task,
    *,
    plan: TransferPlan | None = None,
    groups: NeuronGroups | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> list[TransferResult]:
    """Transfer one run to many starts, independently and, with an executor, at once.

    Args:
        source: The run to transfer.
        targets: The starts; a `Target` can say where its transfer is recorded.
        task: As of `transfer_trajectory`, the same for all. Every transfer works on a copy of the
            model; several threads go through the data at once.
        plan: What to do, the same for all.
        groups: What may be permuted; found and proven, once for all, when not given.
        executor: Any `concurrent.futures.Executor`, or that of `spread_over`; with processes, the
            arguments must pickle.
        progress: Called when another target is done.

    Returns:
        The results, in the order of the targets.
    """
    plan = TransferPlan() if plan is None else plan
    # Once for all: tracing is slow, and two threads cannot trace at the same time.
    groups = _groups(task, groups, plan, task.first_batch())
    jobs = [
        (source, target, replace(task, model=deepcopy(task.model)), plan, groups)
        for target in map(_target, targets)
    ]
    return list(spread(_transfer, jobs, executor=executor, progress=progress))


def _transfer(
    source: Trajectory,
    target: Target,
    task: Task,
    plan: TransferPlan,
    groups: NeuronGroups | None,
) -> TransferResult:
    return transfer_trajectory(
        source, target, task, plan=plan, groups=groups, run_folder=target.run_folder
    )


def _run(
    state: TransferState,
    segments: list[Trajectory],
    permutation: Permutation,
    plan: TransferPlan,
    log: StageLog,
    counter: "_Counter",
) -> None:
    weights: Weights = state.start
    log.enter(0, state.calibrated(weights), None)
    stage = 0
    for path in segments:
        for step in _steps(state, path, weights, permutation, plan, counter):
            stage += 1
            last = step
            log.enter(stage, state.calibrated(step.weights), step)
            counter.tick()
        weights = last.weights
        permutation = last.source_to_target


def _steps(
    state: TransferState,
    path: Trajectory,
    start: Weights,
    permutation: Permutation,
    plan: TransferPlan,
    counter: "_Counter",
) -> Iterator[Step]:
    matchers = {"gmt": methods.gmt, "fgmt": methods.fgmt}
    if plan.matching in matchers:
        matched = matchers[plan.matching](state, path, start, permutation, plan)
        chosen = _timed(matched, state.clock)
    elif plan.matching == "activations":
        chosen = methods.activations(state, path, start, permutation, plan)
    else:
        chosen = methods.fixed(state, path, start, permutation)
    if not plan.signed:
        yield from chosen
        return
    # Late permutations are better than early ones: match along the whole path, then start over.
    if plan.matching in ("gmt", "fgmt"):
        for step in chosen:
            counter.tick()
            last = step
    else:
        last = next(chosen)
    if isinstance(plan.signs, SignSteps):
        yield from methods.sign_steps(state, path, start, last, plan.signs)
    else:
        yield from methods.signed(state, path, start, last, plan.signs)


def _timed(steps: Iterable[Step], clock: Stopwatch) -> Iterator[Step]:
    for step in steps:
        if step.matching is not None:
            clock.add("products", step.matching.seconds_products)
            clock.add("assignments", step.matching.seconds_assignments)
        yield step


class _Counter:
    """Reports to the caller how much work is done."""

    def __init__(self, plan: TransferPlan, progress: Progress | None) -> None:
        matched = plan.signed and plan.matching in ("gmt", "fgmt")
        self._total = plan.total_stages + matched * plan.stages * plan.segments
        self._done = 0
        self._progress = progress

    def tick(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _first_permutation(
    state: TransferState,
    segments: list[Trajectory],
    groups: NeuronGroups,
    plan: TransferPlan,
    trained: Weights | None,
) -> Permutation:
    """What the method starts from; the baselines keep it."""
    if plan.matching == "random":
        return Permutation.random(groups, seed=plan.seed)
    if plan.matching != "oracle" or trained is None:
        return Permutation.identity(groups)
    whole = Trajectory.line(segments[0][0], segments[-1][-1], stages=1)
    matching = methods.oracle(whole, state.start, trained, groups, state.carried)
    state.clock.add("products", matching.seconds_products)
    state.clock.add("assignments", matching.seconds_assignments)
    return matching.source_to_target


def _groups(
    task: Task, groups: NeuronGroups | None, plan: TransferPlan, batch: Any
) -> NeuronGroups:
    if groups is not None:
        check_shapes(weights_of(task.model), groups.shapes)
        return groups
    if plan.matching == "naive":
        shapes = {name: tuple(value.shape) for name, value in weights_of(task.model).items()}
        return NeuronGroups((), (), shapes)
    example = inputs_of(batch) if task.example_input is None else task.example_input
    found = find_neuron_groups(task.model, example)
    if not len(found):
        raise ValueError(f"No neurons of this model can be permuted:\n{found}")
    return found


def _target(given: Weights | Target) -> Target:
    return given if isinstance(given, Target) else Target(given)


def _trained(target: Weights | Target, plan: TransferPlan, task: Task) -> Weights | None:
    """The end of the target's own training, for the oracle."""
    if plan.matching != "oracle":
        return None
    trained = _target(target).trained
    if trained is None:
        raise ValueError(
            "The oracle matches a trained target: give Target(start, trained) as the target."
        )
    return complete_weights(task.model, trained, "trained_target")


def _check_source(source: Trajectory, start: Weights, excluded: frozenset[str]) -> None:
    """Raise if the run lacks a tensor that is carried, or has another shape of it."""
    if len(source) < 2:
        raise ValueError(
            f"The run has {len(source)} snapshots; a transfer needs at least its start and its end."
        )
    shapes = source.shapes
    for name, value in start.items():
        if name in excluded or not is_continuous(value):
            continue
        if name not in shapes:
            raise ValueError(
                f"The run lacks the tensor {name!r} that the model has: it is of another "
                f"architecture. If only a head differs, exclude it: exclude=({name!r},)."
            )
        if shapes[name] != tuple(value.shape):
            raise ValueError(
                f"Tensor {name!r} has shape {shapes[name]} in the run and {tuple(value.shape)} in "
                "the target. If it is a class head of another size, exclude it, and it stays the "
                f"target's own: exclude=({name.rsplit('.', 1)[0] + '.*'!r},)."
            )


def _check_finite(segments: list[Trajectory], plan: TransferPlan, names: Sequence[str]) -> None:
    """Raise if a point that the path is made of holds a NaN or an infinity."""
    for path in segments:
        for snapshot in path if plan.path == "recorded" else (path[0], path[-1]):
            weights = snapshot.weights
            bad = first_nonfinite({name: weights[name] for name in names})
            if bad is not None:
                raise ValueError(
                    f"The source holds a NaN or an infinity in {bad!r} at step {snapshot.step}: "
                    "transfer only the part of the run before it (trajectory[:n])."
                )
