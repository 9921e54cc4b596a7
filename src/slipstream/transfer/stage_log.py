"""Keeps the stages of a transfer as they come, in a run folder or in memory."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Metric, evaluate
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
from slipstream.transfer.gradient_store import FOLDER as GRADIENTS
from slipstream.transfer.methods import Step
from slipstream.transfer.plan import SignWeights, TransferPlan
from slipstream.transfer.processes import from_main_process, is_main_process
from slipstream.transfer.result import TransferCost, TransferResult, TransferStage
from slipstream.transfer.transfer_state import Stopwatch
from slipstream.weights import Weights

SUMMARY, PERMUTATIONS = "transfer.json", "permutations"
COMPANIONS = (SUMMARY, *(f"{name}/*.safetensors" for name in (PERMUTATIONS, GRADIENTS)))


@dataclass
class Ledger:
    """The stages so far; with a run folder each is on disk before the next one begins."""

    plan: TransferPlan
    model: nn.Module
    clock: Stopwatch
    metrics: Mapping[str, Metric]
    validation: Iterable[Batch] | None
    folder: Path | None = None
    resume: bool = False
    configuration: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stages: list[TransferStage] = []
        self.permutations: dict[int, Permutation] = {}
        self._held: list[dict[str, Tensor]] = []
        self._writer: RunWriter | None = None
        self._stored: dict[int, Mapping[str, float]] = {}
        if self.folder is not None and is_main_process():
            self._writer = self._open(self.folder)
        self._stored = from_main_process(self._stored)

    def __enter__(self) -> "Ledger":
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
            self.permutations[stage] = step.source_to_target
        with self.clock("storage"):
            self._keep(stage, weights, metrics)

    def _keep(self, stage: int, weights: Weights, metrics: Mapping[str, float]) -> None:
        here = {name: value.detach().cpu() for name, value in weights.items()}
        if self.folder is None or not is_main_process():
            self._held.append(here)
        elif stage not in self._stored and self._writer is not None:
            if stage in self.permutations:
                (self.folder / PERMUTATIONS).mkdir(exist_ok=True)
                name = f"{stage:08d}.safetensors"
                with whole_file(self.folder / PERMUTATIONS / name) as temporary:
                    self.permutations[stage].save(temporary)
            self._writer.append(step=stage, weights=here, metrics=metrics)

    def close(self, cost: TransferCost, *, keep: Literal["last", "best"]) -> TransferResult:
        """Return the result, and write its summary into the run folder.

        Args:
            cost: What the transfer cost.
            keep: Which weights to go on with: of the last stage, or of the least validation loss.

        Returns:
            The result, its trajectory read from the run folder if there is one.
        """
        chosen = _choose(self.stages, keep)
        on_disk = self.folder is not None and is_main_process()
        result = TransferResult(
            plan=self.plan,
            trajectory=Trajectory.open(self.folder)
            if on_disk and self.folder
            else Trajectory.from_weights(self._held),
            stages=tuple(self.stages),
            permutations=self.permutations,
            chosen=chosen,
            cost=cost,
        )
        if on_disk and self.folder:
            with whole_file(self.folder / SUMMARY) as temporary:
                text = json.dumps(result.to_json(), indent=1)
                temporary.write_text(text, encoding="utf-8")
        # The others wait here until the folder is whole, and go on with the same stage.
        return replace(result, chosen=from_main_process(chosen))

    def _check_same_start(self, weights: Weights) -> None:
        stored: Weights = {}
        if self._writer is not None:
            stored = Trajectory.open(self._writer.path)[0].weights
        _check_same_target(from_main_process(stored), weights, self.folder)

    def _metrics(self, stage: int, weights: Weights) -> Mapping[str, float]:
        """What was measured before the interruption, or is measured now."""
        if self.validation is None:
            return self._stored.get(stage, {})
        if self.metrics.keys() == self._stored.get(stage, {}).keys():
            return self._stored[stage]
        with self.clock("validation"):
            return evaluate(self.model, self.metrics, weights=weights, data=self.validation)

    def _open(self, folder: Path) -> RunWriter:
        plan = {"transfer": asdict(self.plan)}
        if not (self.resume and (folder / "run.json").is_file()):
            if (folder / "run.json").is_file():
                raise FileExistsError(
                    f"{folder} already holds a run: give another run_folder, or resume=True to go "
                    "on with an unfinished transfer."
                )
            writer = create_run(
                folder, model=self.model, configuration=self.configuration, provenance=plan
            )
            declare_companions(folder, *COMPANIONS)
            return writer
        before = read_run(folder)
        _check_same_plan(before.description, self.plan, folder)
        self._stored = {entry.step: entry.metrics for entry in before.entries}
        return reopen_run(folder)


def load_transfer(path: str | Path) -> TransferResult:
    """Read the result of a finished transfer from its run folder.

    Args:
        path: The run folder that `transfer_trajectory` wrote.

    Returns:
        What `transfer_trajectory` returned.

    Raises:
        FileNotFoundError: If the folder holds no finished transfer.
    """
    folder = Path(path)
    if not (folder / SUMMARY).is_file():
        raise FileNotFoundError(f"{folder} holds no finished transfer: it has no {SUMMARY}.")
    data = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    data["cost"].pop("total_seconds")
    files = sorted((folder / PERMUTATIONS).glob("*.safetensors"))
    return TransferResult(
        plan=_plan_from(data["plan"]),
        trajectory=Trajectory.open(folder),
        stages=tuple(TransferStage(**stage) for stage in data["stages"]),
        permutations={int(file.stem): Permutation.load(file) for file in files},
        chosen=data["chosen"],
        cost=TransferCost(**data["cost"]),
    )


def finished_transfer(
    folder: Path, *, plan: TransferPlan, start: Weights, keep: Literal["last", "best"]
) -> TransferResult:
    """Read a finished transfer, if it is the one that was asked for.

    Args:
        folder: Its run folder.
        plan: The plan that it should have.
        start: The target's parameters that it should have begun with.
        keep: Which weights to go on with.

    Returns:
        What `transfer_trajectory` returned.

    Raises:
        ValueError: If plan or target differ, or no stage was measured that could be the best.
    """
    result = load_transfer(folder)
    _check_same_plan(result.trajectory.description, plan, folder)
    begun = result.trajectory[0].weights
    _check_same_target({name: begun[name] for name in start}, start, folder)
    return replace(result, chosen=_choose(result.stages, keep))


def _choose(stages: Sequence[TransferStage], keep: Literal["last", "best"]) -> int:
    """The last stage, or that of the least validation loss; one that is NaN is never the least."""
    if keep == "last":
        return stages[-1].stage
    measured = [s for s in stages if not math.isnan(s.metrics.get("loss", math.nan))]
    if not measured:
        raise ValueError("keep='best': no stage has a validation loss that is a number.")
    return min(measured, key=lambda stage: stage.metrics["loss"]).stage


def _plan_from(data: Mapping[str, Any]) -> TransferPlan:
    nested = {"exclude": tuple(data["exclude"]), "signs": SignWeights(**data["signs"])}
    return replace(TransferPlan(), **{**data, **nested})


def _check_same_target(stored: Weights, given: Weights, folder: Path | None) -> None:
    for name, value in stored.items():
        if not torch.equal(value, given[name].cpu()):
            raise ValueError(
                f"The transfer in {folder} was begun with another target (it differs in {name!r}) "
                "or other data: resume it with the same, or give another path."
            )


def _check_same_plan(description: Mapping[str, Any], plan: TransferPlan, folder: Path) -> None:
    before = description["provenance"].get("transfer")
    if before is None:
        raise ValueError(f"{folder} holds a run that is no transfer: give another path.")
    old, new = asdict(_plan_from(before)), asdict(plan)
    changed = [
        f"{name}: {old[name]!r}, now {new[name]!r}" for name in new if old[name] != new[name]
    ]
    if changed:
        raise ValueError(
            f"The transfer in {folder} was begun with another plan ({'; '.join(changed)}): resume "
            "it with the same plan, or give another path."
        )
