"""Several networks compared: barriers, a plane, predictions, representations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from slipstream.evaluation import Task, takes_task
from slipstream.landscape.evaluator import Progress, evaluate_points
from slipstream.landscape.line import above_chord, learned, polyline
from slipstream.landscape.plane import LossPlane, loss_plane, plane_through
from slipstream.landscape.plans import PlaneGrid, StudyPlan
from slipstream.landscape.points import check_corners
from slipstream.landscape.similarity import (
    Predict,
    predicted_classes,
    prediction_agreement,
    representation_similarity,
)
from slipstream.matching import match_weights
from slipstream.symmetry.permutation import Permutation
from slipstream.trajectory import Trajectory
from slipstream.weights import Weights, difference, displace, norm


@dataclass(frozen=True)
class LandscapeStudy:
    """Result of `landscape_study`; rows and columns are the networks in the order of `names`."""

    names: tuple[str, ...]  # N networks
    positions: Tensor  # (points,) on each line, 0 to 1
    lines: Mapping[str, Tensor]  # metric to (N, N, points): lines["loss"][i, j] goes from i to j
    distances: Tensor  # (N, N) Euclidean
    agreement: Tensor | None  # (N, N) share of examples with the same prediction
    similarity: Mapping[str, Tensor]  # layer to (N, N): linear CKA of its outputs
    plane: LossPlane | None  # through three of them, the others projected

    def values(self, metric: str) -> Tensor:
        """Return a metric at the networks themselves, (N,)."""
        return self._line(metric).diagonal()[0]

    def rises(self, metric: str) -> Tensor:
        """Return the barriers of a metric that should be low, (N, N): rises above the chord."""
        return self._above(metric).amax(2)

    def drops(self, metric: str) -> Tensor:
        """Return the barriers of a metric that should be high, (N, N): falls below the chord."""
        return (0 - self._above(metric)).amax(2)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the weights as plain data."""
        agreement, plane = self.agreement, self.plane
        return {
            "names": list(self.names),
            "positions": self.positions.tolist(),
            "metrics": {name: self.values(name).tolist() for name in self.lines},
            "rises": {name: self.rises(name).tolist() for name in self.lines},
            "drops": {name: self.drops(name).tolist() for name in self.lines},
            "lines": {name: value.tolist() for name, value in self.lines.items()},
            "distances": self.distances.tolist(),
            "agreement": None if agreement is None else agreement.tolist(),
            "similarity": {name: value.tolist() for name, value in self.similarity.items()},
            "plane": None if plane is None else plane.to_json(),
        }

    def _line(self, metric: str) -> Tensor:
        if metric not in self.lines:
            raise ValueError(f"metric must be one of {', '.join(self.lines)}, got {metric!r}.")
        return self.lines[metric]

    def _above(self, metric: str) -> Tensor:
        values = self._line(metric).movedim(2, 0)
        return above_chord(self.positions.view(-1, 1, 1), values).movedim(0, 2)


@takes_task(plan=StudyPlan)
def landscape_study(
    weights: Mapping[str, Weights],
    task: Task,
    *,
    plan: StudyPlan | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> LandscapeStudy:
    """Compare networks: barriers between all, a plane, what they have in common.

    With the networks of a transfer, as of `networks_of_transfer`, it is the landscape study of the
    paper: does the transferred network lie in the basin of the permuted source?

    Args:
        weights: Two or more of the same layout, by name.
        task: The architecture of all, left as it was; the data, the loss and the metrics to
            measure.
        plan: What to measure.
        resume: A folder for computed points, to continue after an interruption.
        progress: Called with the number of points done, and of all.

    Returns:
        Values on all lines, distances, agreement, similarity by layer, and the plane.

    Raises:
        ValueError: If there are not two networks, they differ in layout or hold a NaN, a corner is
            unknown, the corners lie on a line, or as of `evaluate_points`.

    Source: "Transferring Learning Trajectories of Neural Networks" (Chijiwa, 2024), Section 4.3.
    """
    plan = plan or StudyPlan()
    corners, points = plan.corners, plan.points
    _check(weights, corners)
    task, count = task.in_memory(), len(weights)
    on_lines = count + count * (count - 1) // 2 * (points - 2)
    total = on_lines + (plan.plane_points**2 if corners else 0)
    folder = None if resume is None else Path(resume)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    table, rows = _lines(count, points)
    values = evaluate_points(
        weights,
        table,
        task,
        memory=plan.memory,
        resume=folder and folder / "lines.safetensors",
        progress=_shifted(progress, 0, total),
    )
    plane = None
    if corners:
        flat = plane_through({name: weights[name] for name in corners})
        others = {name: value for name, value in weights.items() if name not in corners}
        plane = loss_plane(
            flat.marked(others),
            task,
            grid=PlaneGrid(plan.plane_points),
            memory=plan.memory,
            resume=folder and folder / "plane.safetensors",
            progress=_shifted(progress, on_lines, total),
        )
    ready = {name: {**value, **task.recalibrated(value)} for name, value in weights.items()}
    return LandscapeStudy(
        names=tuple(weights),
        positions=torch.linspace(0, 1, points, dtype=torch.float64),
        lines={name: value[rows] for name, value in values.items()},
        distances=_distances(weights),
        agreement=None if plan.predict is None else _agreement(ready, task, plan.predict),
        similarity=representation_similarity(ready, task, layers=plan.layers),
        plane=plane,
    )


def networks_of_transfer(
    source: Trajectory,
    transferred: Trajectory,
    *,
    source_to_target: Permutation,
    trained_target: Weights | None = None,
) -> dict[str, Weights]:
    """Return the networks of a transfer by name, for `landscape_study`.

    With `s` and `t` for the learned tensors of source and target at their starts, and `S` for the
    source at its end: *naive* is `t + (S - s)`; *oracle* is `t + p (S - s)` with the permutation
    `p` that aligns `S - s` to what the target's own training moved.

    Args:
        source: The run that was transferred.
        transferred: Where it led, as `TransferResult.trajectory`.
        source_to_target: The permutation, as `TransferResult.source_to_target`.
        trained_target: The end of the target's own training, if there was one.

    Returns:
        `target start`, `naive`, `transferred`, `permuted source`, `source`, and with a trained
        target also `trained target` and `oracle`.

    Raises:
        ValueError: If the layouts differ, as they do when a part was excluded from the transfer.
    """
    begun, ended = source[0].weights, source[-1].weights
    start = transferred[0].weights
    moved = difference(learned(ended), learned(begun))
    networks: dict[str, Weights] = {
        "target start": start,
        "naive": displace(start, moved),
        "transferred": transferred[-1].weights,
        "permuted source": source_to_target.apply(ended),
        "source": ended,
    }
    if trained_target is not None:
        own = difference(learned(trained_target), learned(start))
        best = match_weights(moved, own, groups=source_to_target.groups).source_to_target
        networks["trained target"] = {**start, **trained_target}
        networks["oracle"] = displace(start, best.apply(moved))
    check_corners(networks)
    return networks


def _check(weights: Mapping[str, Weights], corners: Sequence[str] | None) -> None:
    if len(weights) < 2:
        raise ValueError(f"weights must be two or more networks by name, got {len(weights)}.")
    check_corners(weights)
    for name in corners or ():
        if name not in weights:
            raise ValueError(f"corners must be three of {', '.join(weights)}, got {name!r}.")


def _lines(count: int, points: int) -> tuple[Tensor, Tensor]:
    """Coefficients of the networks, then of points between each two; which are (N, N, points)."""
    eye = torch.eye(count, dtype=torch.float64)
    inner = polyline(2, points)[1:-1]  # (points - 2, 2)
    rows = torch.arange(count).view(-1, 1, 1).expand(count, count, points).clone()
    tables = [eye]
    for number, (i, j) in enumerate(combinations(range(count), 2)):
        tables.append(inner @ eye[[i, j]])
        rows[i, j, -1], rows[j, i, -1] = j, i
        rows[i, j, 1:-1] = count + number * (points - 2) + torch.arange(points - 2)
        rows[j, i, 1:-1] = rows[i, j, 1:-1].flip(0)
    return torch.cat(tables), rows


def _distances(weights: Mapping[str, Weights]) -> Tensor:
    parts = [learned(value) for value in weights.values()]
    rows = [[norm(difference(a, b)) for b in parts] for a in parts]
    return torch.tensor(rows, dtype=torch.float64)


def _shifted(progress: Progress | None, before: int, total: int) -> Callable[[int, int], None]:
    """Progress of a part, counted in the whole."""

    def update(done: int, _: int) -> None:
        if progress is not None:
            progress(before + done, total)

    return update


def _agreement(
    weights: Mapping[str, Weights], task: Task, predict: Predict | Literal["classes"]
) -> Tensor:
    chosen = predicted_classes if predict == "classes" else predict
    return prediction_agreement(weights, task, predict=chosen)
