"""The barrier between two networks before and after their neurons are matched."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, Metric
from slipstream.landscape.evaluator import Progress, evaluate_points
from slipstream.landscape.line import Barrier, learned, line_of, polyline, with_loss
from slipstream.matching import Matching, match_activations, match_weights
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.weights import Weights


@dataclass(frozen=True)
class AlignedBarriers:
    """Result of `align_then_barrier`."""

    before: Barrier  # from the source to the target
    after: Barrier  # from the permuted source to the target
    matching: Matching  # the permutation, and what it gained and cost
    weights: dict[str, Tensor]  # the permuted source

    def to_json(self) -> dict[str, Any]:
        """Return everything but the weights as plain data."""
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "moved": self.matching.source_to_target.moved(),
            "gain": self.matching.gain,
        }


def align_then_barrier(
    model: nn.Module,
    loss: Loss,
    *,
    source: Weights,
    target: Weights,
    data: Iterable[Batch],
    groups: NeuronGroups,
    method: Literal["weights", "activations"] = "weights",
    metrics: Mapping[str, Metric] | None = None,
    points: int = 25,
    calibration: Iterable[Batch] | None = None,
    recalibrate: bool = True,
    restarts: int = 0,
    seed: int = 0,
    memory: int | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> AlignedBarriers:
    """Measure the barrier between two networks as they are, and with the source's neurons permuted.

    A permutation changes no function, so the ends of both lines are equally good. If the second
    line stays low, the two networks lie in one basin up to the order of their neurons.

    Args:
        model: The architecture; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        source: Weights whose neurons are permuted.
        target: Weights that stay; the same layout.
        data: Batches to measure on; every point sees the same ones, in eval mode.
        groups: What may be permuted, as of `find_neuron_groups`.
        method: Whether weights are laid over each other, or what neurons compute on `calibration`.
        metrics: What else to measure: name to a function of the model and a batch.
        points: Evaluations of each line, both ends included.
        calibration: Batches of training data, for matching activations and for BatchNorm.
        recalibrate: False interpolates the statistics of BatchNorm instead.
        restarts: How many times the matching starts again, with the groups in a random order.
        seed: Of those orders.
        memory: Bytes that a chunk of points may take, as of `evaluate_points`.
        resume: A file for computed points, to go on after an interruption.
        progress: Called with the number of points done, and of all.

    Returns:
        Both barriers, the matching and the permuted source.

    Raises:
        ValueError: If the weights differ in layout or hold a NaN, activations are to be matched
            without `calibration`, or as of `evaluate_points`.

    Source: "Git Re-Basin" (Ainsworth, Hayase, Srinivasa, 2023), Sections 3.1, 3.2 and 5.
    """
    given: dict[str, Any] = {"groups": groups, "restarts": restarts, "seed": seed}
    batches = None if calibration is None else list(calibration)
    if method == "weights":
        found = match_weights(learned(source), learned(target), **given)
    elif method != "activations":
        raise ValueError(f"method must be weights or activations, got {method!r}.")
    elif batches is None:
        raise ValueError("Activations are matched on data: give batches as calibration.")
    else:
        found = match_activations(model, source=source, target=target, data=batches, **given)
    aligned = found.source_to_target.apply(source)
    rows = polyline(2, points)
    none = torch.zeros(points, 1, dtype=torch.float64)
    values = evaluate_points(
        model,
        with_loss(loss, metrics),
        corners=[source, aligned, target],
        coefficients=torch.cat(
            [torch.cat([rows[:, :1], none, rows[:, 1:]], 1), torch.cat([none, rows], 1)]
        ),
        data=data,
        calibration=batches,
        recalibrate=recalibrate,
        names=("source", "the permuted source", "target"),
        memory=memory,
        resume=resume,
        progress=progress,
    )
    before, after = (
        Barrier(line_of([start, target], rows, {n: value[part] for n, value in values.items()}))
        for start, part in ((source, slice(points)), (aligned, slice(points, None)))
    )
    return AlignedBarriers(before, after, found, aligned)
