"""Port a fine-tune from files to files: folders of Hugging Face, safetensors, LoRA adapters."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, Task, classification_loss, takes_task
from slipstream.porting.adapters import (
    CONFIG,
    WEIGHTS,
    Adapter,
    is_adapter,
    open_adapter,
    ported_adapter,
)
from slipstream.porting.choosing import Progress
from slipstream.porting.method_inputs import MethodInputs
from slipstream.porting.plan import PortPlan
from slipstream.porting.porting import Part, Solution, find_solution
from slipstream.porting.problem import FineTune, fine_tune_without, pose
from slipstream.porting.result import PortResult
from slipstream.porting.stored import (
    REPORT,
    PartialOutput,
    Stored,
    copy_others,
    open_stored,
    stamps_of,
    whole_output,
    write_like,
    write_tensors,
)
from slipstream.porting.vocabulary import AlignedVocabularies, align_vocabularies
from slipstream.pretrained import example_input_for, load_pretrained, model_from_config
from slipstream.storage.fingerprints import fingerprint_of_batches
from slipstream.storage.room import check_memory, check_room
from slipstream.storage.tensor_form import TensorForm
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.trajectory.layout import Layout

_log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
_PROVABLE = 1 << 28  # bytes of weights that are loaded to prove the model's neuron groups with


def _takes_data(function: F) -> F:
    """Let loss and data be passed without a model, as in 0.1: that of `to_base`'s folder."""

    @wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        old = {name: given.pop(name) for name in ("loss", "data", "validation") if name in given}
        old = {name: value for name, value in old.items() if value is not None}
        if given.get("model") is None:
            given.pop("model", None)
            if old:
                data = old.pop("data", ())
                given["task"] = checkpoint_task(given["to_base"], data, **old)
            return function(*args, **given)
        return function(*args, **given, **old)

    return call  # type: ignore[return-value]


@_takes_data
@takes_task(fine_tune=FineTune)
def port_checkpoint(
    out: str | Path,
    fine_tune: FineTune[str | Path],
    task: Task | None = None,
    *,
    plan: PortPlan | None = None,
    groups: NeuronGroups | None = None,
    progress: Progress | None = None,
) -> PortResult:
    """Port a fine-tune on disk, and write the result where nothing is yet.

    Without data, tensors are read, ported and written one at a time. A port that was killed or
    interrupted continues when it is called again with the same arguments.

    Args:
        out: A new folder; a new `.safetensors` file if `to_base` is a file. A ported adapter is a
            folder again, an adapter for `to_base`. The report is in it, or beside it.
        fine_tune: The fine-tune, its base, and the base it is carried to: Hugging Face folders,
            sharded or not, or files of weights. The fine-tune may be a LoRA adapter in the format
            of PEFT.
        task: The architecture with its loss and labelled batches; on its validation data, method
            and strength are chosen. `checkpoint_task` makes it of a Hugging Face folder. Without a
            task the architecture is that of `to_base`'s folder.
        plan: What to do; `PortPlan()` chooses the method.
        groups: What may be permuted; found and proven when not given.
        progress: Called after each method that was tried, then after each tensor written.

    Returns:
        The report; its weights are on disk.

    Raises:
        FileExistsError: If something is at `out` already.
        FileNotFoundError: If an argument leads nowhere.
        MemoryError: If there is too little memory even for a few tensors.
        OSError: If there is too little room on the disk.
        ValueError: If the three do not fit together.
    """
    plan, place = PortPlan() if plan is None else plan, Path(out)
    files = _open(fine_tune)
    with whole_output(place, _identity(fine_tune, files, plan, task)) as partial:
        _check_resources(files, partial)
        notes: list[str] = []
        if task is None and plan.method not in ("identity", "untouched"):
            model = _model_of(files.to_base, plan=plan, notes=notes)
            task = None if model is None else Task(model)
        task = None if task is None else _completed(task)
        ties = {} if task is None else Layout.of(task.model).aliases
        weights = FineTune(files.aligned.from_base, files.aligned.fine_tuned, files.to_base.weights)
        problem = pose(fine_tune_without(weights, ties), exclude=plan.exclude)
        ranks = files.adapter.ranks if files.adapter else {}
        inputs = MethodInputs(problem, plan, task, groups, ranks, notes)
        solution = find_solution(inputs, progress=progress)
        result = _write(files, solution, partial, ties, progress or (lambda *_: None))
        folder = partial.path.is_dir()
        report = partial.path / REPORT if folder else place.with_suffix(".port.json")
        report.write_text(json.dumps(result.to_json(), indent=1), encoding="utf-8")
    return result


def _check_resources(files: "_Files", partial: PartialOutput) -> None:
    """Raise before anything is computed if memory or disk will not do."""
    forms = files.to_base.forms.values()
    written = sum((partial.path / name).stat().st_size for name in partial.done)
    if files.adapter is None:
        needed = sum(form.bytes for form in forms) - written
        check_room(partial.path.parent, needed, f"Writing {partial.path.name}")
    largest = max((math.prod(form.shape) for form in forms), default=0)
    check_memory(3 * 4 * largest, "Porting, with three copies of the largest tensor in float32,")


def checkpoint_task(
    folder: str | Path,
    data: Iterable[Batch] = (),
    *,
    validation: Iterable[Batch] | None = None,
    unlabelled: Iterable[Batch] | None = None,
    loss: Loss | None = None,
) -> Task:
    """Load the model of a Hugging Face folder, with data to port a fine-tune by.

    Args:
        folder: What the model's `save_pretrained` wrote.
        data: Labelled batches, for gradients and BatchNorm statistics: mappings that the model
            takes by name.
        validation: Other labelled batches, on which method and strength are chosen.
        unlabelled: Batches of which nothing but what the model computes is looked at.
        loss: Maps the model and a batch to the batch's mean loss; by default the loss that the
            model returns.

    Returns:
        The task.

    Raises:
        ValueError: If the folder's model cannot be built.
    """
    return Task(
        load_pretrained(folder),
        data,
        loss or _own_loss,
        validation=validation,
        unlabelled=unlabelled,
    )


def _identity(
    given: FineTune[str | Path], files: "_Files", plan: PortPlan, task: Task | None
) -> dict[str, Any]:
    """What an interrupted port must have in common with the one that continues it."""
    stored = {"from_base": files.from_base, "to_base": files.to_base}
    tuned = open_stored(given.fine_tuned, argument="fine_tuned")
    data = [] if task is None else [task.data, task.validation or (), task.unlabelled or ()]
    once = any(isinstance(part, Iterator) for part in data)  # such data cannot be looked at before
    return {
        "plan": asdict(plan),
        "files": {name: stamps_of(one) for name, one in (*stored.items(), ("fine_tuned", tuned))},
        "data": uuid4().hex if once else fingerprint_of_batches(b for part in data for b in part),
    }


@dataclass(frozen=True)
class _Files:
    from_base: Stored
    to_base: Stored
    adapter: Adapter | None
    aligned: AlignedVocabularies


def _open(given: FineTune[str | Path]) -> _Files:
    fine_tuned = given.fine_tuned
    other = open_stored(given.to_base, argument="to_base")
    first = open_stored(given.from_base, argument="from_base").named_like(other)
    if is_adapter(fine_tuned):
        adapter = open_adapter(fine_tuned, from_base=first, to_base=other)
        return _Files(first, other, adapter, align_vocabularies(first, adapter.on(first), other))
    tuned = open_stored(fine_tuned, argument="fine_tuned").named_like(other)
    return _Files(first, other, None, align_vocabularies(first, tuned, other))


def _model_of(stored: Stored, *, plan: PortPlan, notes: list[str]) -> nn.Module | None:
    """The model of a folder, a large one without weights; `auto` continues without it, noted."""
    if not stored.is_folder or "model_type" not in stored.config:
        return None
    try:
        small = sum(form.bytes for form in stored.forms.values()) <= _PROVABLE
        return (load_pretrained if small else model_from_config)(stored.path)
    except (ModuleNotFoundError, ValueError) as error:
        if plan.method != "auto":
            raise
        notes.append(f"neurons were not matched, as the model cannot be built: {error}")
        _log.warning("%s", notes[-1])
        return None


def _completed(task: Task) -> Task:
    """With what a model of Hugging Face knows by itself: its loss and inputs to trace it with."""
    if not hasattr(task.model, "config"):
        return task
    example = task.example_input
    return replace(
        task,
        loss=_own_loss if task.loss is classification_loss else task.loss,
        example_input=example_input_for(task.model) if example is None else example,
    )


def _own_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that a model of Hugging Face returns when a batch holds labels."""
    value: Tensor | None = model(**batch).loss
    if value is None:
        raise ValueError("The model returns no loss: batches must hold labels, by name.")
    return value


def _write(
    files: _Files,
    solution: Solution,
    partial: PartialOutput,
    ties: Mapping[str, str],
    progress: Progress,
) -> PortResult:
    """Write what was chosen, and return the report."""
    written: dict[str, Part] = {}

    def tensor(name: str) -> Tensor:
        part = solution.part(ties.get(name, name))
        written[ties.get(name, name)] = replace(part, value=torch.empty(0))
        return part.value

    if files.adapter is None:
        total = len(files.to_base.forms)
        for noted in partial.done.values():
            known = {name: Part(torch.empty(0), *values) for name, values in noted.items()}
            written |= known

        def parts(names: Iterable[str]) -> dict[str, list[float]]:
            made = {ties.get(name, name): written[ties.get(name, name)] for name in names}
            return {name: [part.kept, part.matched] for name, part in made.items()}

        write_like(
            files.to_base,
            partial,
            tensor,
            wrote=lambda _: progress(len(written), total),
            parts=parts,
        )
        return solution.result(written, warnings=files.aligned.warnings)
    adapter, out = files.adapter, partial.path
    copy_others(adapter.stored, out)
    config = {**adapter.config, "base_model_name_or_path": str(files.to_base.path)}
    (out / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    weights = ported_adapter(
        adapter,
        solution.chosen.choice,
        files.to_base.weights,
        retokenised=files.aligned.retokenised,
    )
    forms = {name: TensorForm.of(v) for name, v in weights.items()}
    write_tensors(out / WEIGHTS, forms, weights.__getitem__)
    for name in adapter.tensors:
        if name in files.to_base.weights:
            tensor(name)
    new = [name for name in adapter.tensors if name not in files.to_base.weights]
    kept = f"{', '.join(new)}: kept in the adapter as it was trained, on from_base's neurons."
    return solution.result(written, warnings=(*files.aligned.warnings, *([kept] if new else [])))
