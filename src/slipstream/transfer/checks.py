"""What can be wrong with the arguments of a transfer, told before anything is written."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from slipstream.evaluation import (
    Batch,
    Loss,
    Metric,
    device_of,
    eval_mode,
    probe_determinism,
    to_device,
    weights_in,
)
from slipstream.trajectory import Trajectory
from slipstream.transfer.plan import TransferPlan
from slipstream.weights import (
    Weights,
    check_shapes,
    first_nonfinite,
    is_continuous,
    parameter_names,
    weights_of,
)


def check_choices(
    keep: str, validation: Iterable[Batch] | None, folder: Path | None, resume: bool
) -> None:
    """Raise if a choice is unknown, or lacks the argument that it needs."""
    if keep not in ("last", "best"):
        raise ValueError(f"keep must be 'last' or 'best', got {keep!r}.")
    if keep == "best" and validation is None:
        raise ValueError("keep='best' chooses by validation data: pass validation=...")
    if resume and folder is None:
        raise ValueError("resume=True goes on in a run folder: pass run_folder=...")


def measured_with(loss: Loss, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return what to measure at every stage: `loss`, then `metrics`."""
    if metrics.get("loss", loss) != loss:
        raise ValueError("metrics holds another 'loss' than the argument loss: rename that metric.")
    return {"loss": loss, **metrics}


def repeatable(validation: Iterable[Batch] | None) -> Iterable[Batch] | None:
    """Return validation data that every stage can go through: a generator's batches are kept."""
    held = list(validation) if isinstance(validation, Iterator) else validation
    if held is not None and next(iter(held), None) is None:
        raise ValueError("validation is empty: there is no batch to measure a stage on.")
    return held


def complete(model: nn.Module, given: Weights, name: str) -> dict[str, Tensor]:
    """Return the weights of an argument with all tensors of the model, in its dtype and device."""
    own = weights_of(model)
    for tensor in parameter_names(model):
        if tensor not in given:
            raise ValueError(f"{name} lacks the tensor {tensor!r} that the model has.")
    known = {n: value for n, value in given.items() if n in own or n not in _aliases(model)}
    check_shapes(known, {n: tuple(value.shape) for n, value in own.items()})
    if (bad := first_nonfinite(known)) is not None:
        raise ValueError(f"{name} holds a NaN or an infinity in {bad!r}.")
    return {
        n: known[n].detach().to(value) if n in known else value.clone() for n, value in own.items()
    }


def _aliases(model: nn.Module) -> set[str]:
    """Further names of tied tensors."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        name for name, _ in model.named_parameters()
    }


def check_source(source: Trajectory, start: Weights, excluded: frozenset[str]) -> None:
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


def check_loss(model: nn.Module, loss: Loss, start: Weights, batch: Batch) -> None:
    """Raise if `loss` is no 0-dim tensor, or differs when it is taken twice."""
    with eval_mode(model), weights_in(model, start), torch.no_grad():
        value = loss(model, to_device(batch, device_of(model)))
        if not isinstance(value, Tensor) or value.dim() > 0:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"loss must return the batch's mean as a 0-dim tensor, got {got}.")
        probe = probe_determinism(model, loss, data=[batch])
    if not probe.deterministic:
        raise ValueError(
            "The loss is not deterministic: the same batch gave "
            f"{probe.first_loss} and {probe.second_loss}. Suspected: {', '.join(probe.suspects)}."
        )


def check_finite(segments: list[Trajectory], plan: TransferPlan, names: Collection[str]) -> None:
    """Raise if a point that the path is made of holds a NaN or an infinity.

    Args:
        segments: The path.
        plan: Says whether its inner points are snapshots or lie on lines.
        names: The tensors that are carried.

    Raises:
        ValueError: Naming the tensor and the step.
    """
    for path in segments:
        for snapshot in path if plan.path == "recorded" else (path[0], path[-1]):
            weights = snapshot.weights
            bad = first_nonfinite({name: weights[name] for name in names})
            if bad is not None:
                raise ValueError(
                    f"The source holds a NaN or an infinity in {bad!r} at step {snapshot.step}: "
                    "transfer only the part of the run before it (trajectory[:n])."
                )
