"""Keeps the stages of a transfer as they come, in a run folder or in memory, and reads them."""

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.evaluation import Task
from slipstream.evaluation.processes import from_main_process, on_main_process
from slipstream.storage.new_run import NewRun
from slipstream.storage.reading import parsing
from slipstream.storage.writing import whole_file
from slipstream.symmetry.permutation import Permutation
from slipstream.trajectory import (
    RunWriter,
    Trajectory,
    create_run,
    declare_companions,
    read_run,
    reopen_run,
)
from slipstream.transfer.gradient_store import GRADIENTS
from slipstream.transfer.methods import Step
from slipstream.transfer.plan import Keep, TransferPlan
from slipstream.transfer.transfer_state import Stopwatch
from slipstream.weights import Weights

_ROUNDING = 1e-4, 1e-6  # relative and absolute: other threads or processors add in another order
SUMMARY, PERMUTATIONS = "transfer.json", "permutations"
COMPANIONS = (SUMMARY, *(f"{name}/*.safetensors" for name in (PERMUTATIONS, GRADIENTS)))
SOURCE = "source"  # in the configuration of a transferred run
MEASURED = "validation_"  # begins the names of what a run records of its validation data


@dataclass(frozen=True)
class TransferStage:
    """One stage: how it was reached, and how good it is."""

    stage: int  # 0 is the target's start
    objective: float | None = None  # of the matching that led here; None where none was solved
    gain: float | None = None  # over the identity
    sweeps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)  # on the validation data


@dataclass(frozen=True)
class TransferCost:
    """What a transfer cost."""

    gradient_evaluations: int  # of source and target together, a stage's batches counting as one
    seconds: Mapping[str, float]  # by kind of work
    resumed_gradients: int = 0  # that an interrupted transfer had left behind
    kept_bytes: int = 0  # of the gradient pairs that had to be kept for the last matching

    @property
    def total_seconds(self) -> float:
        """Seconds of all kinds together."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class TransferResult:
    """Result of `transfer_trajectory`."""

    plan: TransferPlan
    trajectory: Trajectory  # the transferred one: a snapshot for each stage, read on access
    stages: tuple[TransferStage, ...]
    permutations: Mapping[int, Permutation]  # source to target, by the stage it led to
    chosen: int  # the stage that `weights` returns
    cost: TransferCost

    @property
    def weights(self) -> dict[str, Tensor]:
        """The transferred weights: those of the last stage, or of the best one by `plan.keep`."""
        return dict(self.trajectory[self.chosen].weights)

    @property
    def source_to_target(self) -> Permutation:
        """The permutation of the last stage."""
        return self.permutations[max(self.permutations)]

    def to_json(self) -> dict[str, Any]:
        """Return plan, stages and cost as plain data."""
        return {
            "plan": asdict(self.plan),
            "stages": [asdict(stage) for stage in self.stages],
            "chosen": self.chosen,
            "cost": {**asdict(self.cost), "total_seconds": self.cost.total_seconds},
        }


class StageLog:
    """The stages so far; with a run folder each is on disk before the next one begins."""

    def __init__(
        self, plan: TransferPlan, task: Task, clock: Stopwatch, run: NewRun | None = None
    ) -> None:
        self.plan, self.task, self.clock, self.run = plan, task, clock, run
        self.stages: list[TransferStage] = []
        self.permutations: dict[int, Permutation] = {}
        self._held: list[dict[str, Tensor]] = []
        self._writer: RunWriter | None = None
        self._measured = task.measured.keys()
        self._prefix = MEASURED
        self._stored = on_main_process(self._open)

    def __enter__(self) -> "StageLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def enter(self, stage: int, weights: Weights, step: Step | None) -> None:
        """Keep a stage: measure it, write it, remember its permutation.

        Args:
            stage: Its number; 0 is the start.
            weights: The target's weights there, BatchNorm calibrated.
            step: What led there; None at the start.
        """
        if stage == 0 and stage in self._stored:
            self._check_same_start(weights)
        metrics = self._metrics(stage, weights)
        matching = step.matching if step else None
        self.stages.append(
            TransferStage(
                stage,
                objective=matching.objective if matching else None,
                gain=matching.gain if matching else None,
                sweeps=matching.sweeps if matching else None,
                metrics=metrics,
            )
        )
        if step is not None:
            self._check_same_permutation(stage, step.source_to_target)
            self.permutations[stage] = step.source_to_target
        with self.clock("storage"):
            self._keep(stage, weights, metrics)

    def _keep(self, stage: int, weights: Weights, metrics: Mapping[str, float]) -> None:
        here = {name: value.detach().cpu() for name, value in weights.items()}
        if self._writer is None:
            self._held.append(here)
        elif stage not in self._stored:
            if stage in self.permutations:
                (self._writer.path / PERMUTATIONS).mkdir(exist_ok=True)
                name = f"{stage:08d}.safetensors"
                with whole_file(self._writer.path / PERMUTATIONS / name) as temporary:
                    self.permutations[stage].save(temporary)
            recorded = {self._prefix + name: value for name, value in metrics.items()}
            self._writer.append(step=stage, weights=here, metrics=recorded)

    def close(self, cost: TransferCost) -> TransferResult:
        """Return the result, and write its summary into the run folder.

        Args:
            cost: What the transfer cost.

        Returns:
            The result, its trajectory read from the run folder if there is one.
        """
        chosen = _choose(self.stages, self.plan.keep)
        folder = None if self._writer is None else self._writer.path
        held = Trajectory.from_weights(self._held) if folder is None else Trajectory.open(folder)
        result = TransferResult(
            self.plan, held, tuple(self.stages), self.permutations, chosen, cost
        )
        if folder is not None:
            with whole_file(folder / SUMMARY) as temporary:
                text = json.dumps(result.to_json(), indent=1)
                temporary.write_text(text, encoding="utf-8")
        # The others wait here until the folder is complete, and return the same stage.
        return replace(result, chosen=from_main_process(chosen))

    def _check_same_start(self, weights: Weights) -> None:
        stored: Weights = {}
        if self._writer is not None:
            stored = Trajectory.open(self._writer.path)[0].weights
        folder = None if self.run is None else self.run.folder
        calibrated = {name for name, _ in self.task.model.named_buffers()}
        _check_same_target(from_main_process(stored), weights, folder, calibrated)

    def _check_same_permutation(self, stage: int, permutation: Permutation) -> None:
        """Raise if an interrupted transfer had reached the stage by another one."""
        if self._writer is None or stage not in self._stored:
            return
        file = self._writer.path / PERMUTATIONS / f"{stage:08d}.safetensors"
        if file.is_file() and not Permutation.load(file).same_as(permutation):
            raise ValueError(
                f"The data gives other batches than when stage {stage} was reached: a transfer can "
                "only be resumed on the same data in the same order (seed the loader's generator)."
            )

    def _metrics(self, stage: int, weights: Weights) -> Mapping[str, float]:
        """What was measured before the interruption, or is measured now."""
        stored = self._stored.get(stage, {})
        if self.task.validation is None or self._measured == stored.keys():
            return stored
        with self.clock("validation"):
            return self.task.evaluate(weights=weights, split="validation")

    def _open(self) -> dict[int, Mapping[str, float]]:
        """Make or reopen the run folder; return what was measured at its stages."""
        if self.run is None:
            return {}
        folder, there = self.run.folder, (self.run.folder / "run.json").is_file()
        if there and self.run.resume:
            before = read_run(folder)
            _check_same_plan(before.description, self.plan, folder)
            self._writer = reopen_run(folder)
            if any("loss" in entry.metrics for entry in before.entries):
                self._prefix = ""  # a run of 0.1: its stages have the same names to the end
            return {entry.step: _unprefixed(entry.metrics) for entry in before.entries}
        if there and not self.run.overwrite:
            raise FileExistsError(
                f"{folder} already holds a run: give another path, or resume=True to "
                "continue an unfinished transfer."
            )
        self._writer = create_run(
            folder,
            model=self.task.model,
            configuration={**self.task.configuration, **self.run.configuration},
            provenance={"transfer": asdict(self.plan)},
            overwrite=self.run.overwrite,
        )
        declare_companions(folder, *COMPANIONS)
        return {}


def continued_plan(plan: TransferPlan, run: NewRun | None) -> TransferPlan:
    """Return the plan to resume a transfer by, which version 0.1 may have begun.

    Args:
        plan: What was asked for.
        run: Where the transfer is recorded.

    Returns:
        `TransferPlan.continuing` the one in the run folder, if it is to be resumed.
    """

    def stored() -> Any:
        if run is None or not run.resume or not (run.folder / "run.json").is_file():
            return None
        return read_run(run.folder).description["provenance"].get("transfer")

    begun = on_main_process(stored)
    return plan if begun is None else plan.continuing(begun)


def load_transfer(path: str | Path) -> TransferResult:
    """Read the result of a finished transfer from its run folder.

    Args:
        path: The run folder that `transfer_trajectory` wrote.

    Returns:
        What `transfer_trajectory` returned.

    Raises:
        FileNotFoundError: If the folder holds no finished transfer.
        ValueError: If it is damaged.
    """
    folder = Path(path)
    if not (folder / SUMMARY).is_file():
        raise FileNotFoundError(f"{folder} holds no finished transfer: it has no {SUMMARY}.")
    with parsing(folder / SUMMARY, "transfer"):
        data = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        data["cost"].pop("total_seconds")
        stages = tuple(TransferStage(**stage) for stage in data["stages"])
        # In 0.1 the plan did not say which stage is kept, only the result did.
        keep = "last" if data["chosen"] == stages[-1].stage else "best"
        plan = TransferPlan.from_json({"keep": keep, **data["plan"]})
        cost = TransferCost(**data["cost"])
    files = sorted((folder / PERMUTATIONS).glob("*.safetensors"))
    return TransferResult(
        plan=plan,
        trajectory=Trajectory.open(folder),
        stages=stages,
        permutations={int(file.stem): Permutation.load(file) for file in files},
        chosen=data["chosen"],
        cost=cost,
    )


def finished_transfer(folder: Path, *, plan: TransferPlan, start: Weights) -> TransferResult:
    """Read a finished transfer, if it is the one that was asked for.

    Args:
        folder: Its run folder.
        plan: The plan that it should have; only which stage is kept may differ.
        start: The target's parameters that it should have begun with.

    Returns:
        What `transfer_trajectory` returned.

    Raises:
        ValueError: If plan or target differ, or no stage was measured that could be the best.
    """
    result = load_transfer(folder)
    _check_same_plan(result.trajectory.description, plan, folder)
    begun = result.trajectory[0].weights
    _check_same_target({name: begun[name] for name in start}, start, folder)
    return replace(result, plan=plan, chosen=_choose(result.stages, plan.keep))


def source_reference(source: str | Path, folder: str | Path) -> str:
    """Return how a transferred run refers to its source: so that it is found from everywhere.

    Args:
        source: The run folder that is transferred.
        folder: The run folder to write.

    Returns:
        A path relative to `folder` if both have the same parent, so that they may be moved
        together; else an absolute one.

    Example:
        >>> source_reference("runs/one", "runs/transferred")
        '../one'
    """
    there, here = Path(source).resolve(), Path(folder).resolve()
    return os.path.relpath(there, here) if there.is_relative_to(here.parent) else str(there)


def find_source(folder: str | Path) -> Path | None:
    """Return the run folder that a transferred run was made from; None if it is not found.

    Args:
        folder: The transferred run.

    Returns:
        The source, as the run refers to it, or beside the run under the same name.
    """
    here = Path(folder)
    written = (read_run(here).description.get("configuration") or {}).get(SOURCE)
    if not isinstance(written, str):
        return None
    # Version 0.1 wrote the path as it was typed, relative to the working directory of then.
    own = here.resolve()
    for path in (
        *(folder / written for folder in (own, Path(), *own.parents)),
        own.parent / Path(written).name,
    ):
        if (path / "run.json").is_file():
            return path.resolve()
    return None


def _choose(stages: Sequence[TransferStage], keep: Keep) -> int:
    """The last stage, or that of the least validation loss; one that is NaN is never the least."""
    if keep == "last":
        return stages[-1].stage
    measured = [s for s in stages if not math.isnan(s.metrics.get("loss", math.nan))]
    if not measured:
        raise ValueError("keep='best': no stage has a validation loss that is a number.")
    return min(measured, key=lambda stage: stage.metrics["loss"]).stage


def _unprefixed(metrics: Mapping[str, float]) -> dict[str, float]:
    """What was measured on the validation data; 0.1 recorded it as `loss`."""
    return {name.removeprefix(MEASURED): value for name, value in metrics.items()}


def _check_same_target(
    stored: Weights, given: Weights, folder: Path | None, calibrated: Collection[str] = ()
) -> None:
    """Raise unless the tensors are equal; calibrated statistics may be rounded differently."""
    for name, value in stored.items():
        here = given[name].cpu()
        near = name in calibrated and value.is_floating_point()
        same = torch.allclose(value, here, *_ROUNDING) if near else torch.equal(value, here)
        if not same:
            raise ValueError(
                f"The transfer in {folder} was begun with another target (it differs in {name!r}) "
                "or other data: resume it with the same, or give another path."
            )


def _check_same_plan(description: Mapping[str, Any], plan: TransferPlan, folder: Path) -> None:
    before = description["provenance"].get("transfer")
    if before is None:
        raise ValueError(f"{folder} holds a run that is not a transfer: give another path.")
    old, new = (asdict(replace(p, keep="last")) for p in (TransferPlan.from_json(before), plan))
    changed = [
        f"{name}: {old[name]!r}, now {new[name]!r}" for name in new if old[name] != new[name]
    ]
    if changed:
        raise ValueError(
            f"The transfer in {folder} was begun with another plan ({'; '.join(changed)}): resume "
            "it with the same plan, or give another path."
        )
