"""Port a fine-tune from files to files: folders of Hugging Face, safetensors, LoRA adapters."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss
from slipstream.porting.adapters import (
    CONFIG,
    WEIGHTS,
    Adapter,
    is_adapter,
    open_adapter,
    ported_adapter,
)
from slipstream.porting.choosing import Progress
from slipstream.porting.method_inputs import Workbench
from slipstream.porting.output import REPORT, copy_others, whole_output, write_like, write_tensors
from slipstream.porting.plan import PortPlan
from slipstream.porting.problem import pose, without
from slipstream.porting.result import PortResult
from slipstream.porting.solution import Part, Solution, solve
from slipstream.porting.stored import Stored, open_stored
from slipstream.porting.vocabulary import Aligned, align_vocabularies
from slipstream.pretrained import example_input_for, load_pretrained, model_from_config
from slipstream.storage.tensor_form import TensorForm
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.trajectory.layout import Layout

_PROVABLE = 1 << 28  # bytes of weights that are loaded to prove the model's neuron groups with


def port_checkpoint(
    out: str | Path,
    *,
    from_base: str | Path,
    fine_tuned: str | Path,
    to_base: str | Path,
    plan: PortPlan | None = None,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    data: Iterable[Batch] | None = None,
    validation: Iterable[Batch] | None = None,
    groups: NeuronGroups | None = None,
    example_input: Any = None,
    progress: Progress | None = None,
) -> PortResult:
    """Port a fine-tune on disk, and write the result where nothing is yet.

    Without data, tensors are read, carried and written one at a time.

    Args:
        out: A new folder; a new `.safetensors` file if `to_base` is a file. A ported adapter is a
            folder again, an adapter for `to_base`. The report lies in it, or beside it.
        from_base: A Hugging Face folder, sharded or not, or a file of weights.
        fine_tuned: The same, or a LoRA adapter in the format of PEFT.
        to_base: The same as `from_base`.
        plan: What to do; `PortPlan()` chooses the method.
        model: The architecture; that of `to_base`'s folder by default.
        loss: Maps the model and a batch to the batch's mean loss; for a Hugging Face folder the
            model's own by default.
        data: Labelled batches of the task, for gradients and BatchNorm statistics.
        validation: Other labelled batches, to choose method and strength by; never test data.
        groups: What may be permuted; found and proven when not given.
        example_input: An input of the model, for finding the groups.
        progress: Called after each method that was tried, then after each tensor written.

    Returns:
        The report; its weights are on disk.

    Raises:
        FileExistsError: If something is at `out` already.
        FileNotFoundError: If an argument leads nowhere.
        ValueError: If the three do not fit together.
    """
    plan, place = PortPlan() if plan is None else plan, Path(out)
    files = _open(from_base, fine_tuned, to_base)
    with whole_output(place) as temporary:
        with_data = data is not None or validation is not None
        if model is None and (with_data or plan.method != "identity"):
            model = _model_of(files.to_base, plan=plan, with_data=with_data)
        if example_input is None and model is not None and hasattr(model, "config"):
            example_input = example_input_for(model)
        ties = {} if model is None else Layout.of(model).aliases
        problem = pose(
            without(files.aligned.from_base, ties),
            without(files.aligned.fine_tuned, ties),
            without(files.to_base.weights, ties),
            exclude=plan.exclude,
        )
        ranks = files.adapter.ranks if files.adapter else {}
        loss = loss or _own_loss(model)
        bench = Workbench(problem, plan, model, loss, data, groups, example_input, ranks)
        solution = solve(bench, validation=validation, progress=progress)
        result = _write(files, solution, temporary, ties, progress or (lambda *_: None))
        report = temporary / REPORT if temporary.is_dir() else place.with_suffix(".port.json")
        report.write_text(json.dumps(result.to_json(), indent=1), encoding="utf-8")
    return result


@dataclass(frozen=True)
class _Files:
    from_base: Stored
    to_base: Stored
    adapter: Adapter | None
    aligned: Aligned


def _open(from_base: str | Path, fine_tuned: str | Path, to_base: str | Path) -> _Files:
    other = open_stored(to_base, argument="to_base")
    first = open_stored(from_base, argument="from_base").named_like(other)
    if is_adapter(fine_tuned):
        adapter = open_adapter(fine_tuned, from_base=first, to_base=other)
        return _Files(first, other, adapter, align_vocabularies(first, adapter.on(first), other))
    tuned = open_stored(fine_tuned, argument="fine_tuned").named_like(other)
    return _Files(first, other, None, align_vocabularies(first, tuned, other))


def _model_of(stored: Stored, *, plan: PortPlan, with_data: bool) -> nn.Module | None:
    """The model of a Hugging Face folder; a large one without weights where no data needs them."""
    if not stored.is_folder or "model_type" not in stored.config:
        return None
    try:
        small = sum(form.bytes for form in stored.forms.values()) <= _PROVABLE
        return (load_pretrained if with_data or small else model_from_config)(stored.path)
    except (ModuleNotFoundError, ValueError):
        if with_data or plan.method != "auto":
            raise
        return None


def _own_loss(model: nn.Module | None) -> Loss | None:
    """The loss that a model of Hugging Face returns when a batch holds labels."""
    if not hasattr(model, "config"):
        return None

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value: Tensor | None = model(**batch).loss
        if value is None:
            raise ValueError("The model returns no loss: batches must hold labels, by name.")
        return value

    return loss


def _write(
    files: _Files, solution: Solution, out: Path, ties: Mapping[str, str], progress: Progress
) -> PortResult:
    """Write what was chosen, and return the report."""
    told: dict[str, Part] = {}

    def tensor(name: str) -> Tensor:
        part = solution.part(ties.get(name, name))
        told[ties.get(name, name)] = replace(part, value=torch.empty(0))
        return part.value

    if files.adapter is None:
        total = len(files.to_base.forms)
        write_like(files.to_base, out, tensor, wrote=lambda _: progress(len(told), total))
        return solution.result(told, warnings=files.aligned.warnings)
    adapter = files.adapter
    copy_others(adapter.stored, out)
    config = {**adapter.config, "base_model_name_or_path": str(files.to_base.path)}
    (out / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    weights = ported_adapter(
        adapter, solution.choice, files.to_base.weights, retokenised=files.aligned.retokenised
    )
    forms = {name: TensorForm.of(v) for name, v in weights.items()}
    write_tensors(out / WEIGHTS, forms, weights.__getitem__)
    for name in adapter.tensors:
        tensor(name)
    return solution.result(told, warnings=files.aligned.warnings)
