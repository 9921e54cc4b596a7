"""Several networks held against each other: barriers, a plane, predictions, representations."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, Metric, batchnorm_layers, recalibrate_batchnorm
from slipstream.landscape.directions import plane_through
from slipstream.landscape.evaluator import Progress, evaluate_points
from slipstream.landscape.line import above_chord, learned, polyline, with_loss
from slipstream.landscape.plane import LossPlane, loss_plane
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


def landscape_study(
    model: nn.Module,
    loss: Loss,
    *,
    weights: Mapping[str, Weights],
    data: Iterable[Batch],
    metrics: Mapping[str, Metric] | None = None,
    points: int = 11,
    corners: Sequence[str] | None = None,
    plane_points: int = 21,
    layers: Sequence[str] | None = None,
    predict: Predict | None = predicted_classes,
    calibration: Iterable[Batch] | None = None,
    recalibrate: bool = True,
    memory: int | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> LandscapeStudy:
    """Hold networks against each other: barriers between all, a plane, what they have in common.

    With the networks of a transfer, as of `networks_of_transfer`, it is the landscape study of the
    paper: does the transferred network lie in the basin of the permuted source?

    Args:
        model: The architecture of all; left as it was.
        loss: Maps the model and a batch to the batch's mean loss, a 0-dim tensor.
        weights: Two or more of the same layout, by name.
        data: Batches to measure on; every point sees the same ones, in eval mode.
        metrics: What else to measure: name to a function of the model and a batch.
        points: Evaluations between two networks, both ends included.
        corners: Names of three networks that the plane goes through; none is measured if not given.
        plane_points: Values of x, and of y, of the plane.
        layers: Whose outputs are compared, as of `representation_similarity`.
        predict: How predictions are taken; None compares none.
        calibration: Batches of training data, for the statistics of BatchNorm at each point.
        recalibrate: False mixes these statistics instead.
        memory: Bytes that a chunk of points may take, as of `evaluate_points`.
        resume: A folder for computed points, to go on after an interruption.
        progress: Called with the number of points done, and of all.

    Returns:
        Values on all lines, distances, agreement, similarity by layer, and the plane.

    Raises:
        ValueError: If there are not two networks, they differ in layout or hold a NaN, a corner is
            unknown, the corners lie on a line, or as of `evaluate_points`.

    Source: "Transferring Learning Trajectories of Neural Networks" (Chijiwa, 2024), Section 4.3.
    """
    _check(weights, corners)
    batches, kept = list(data), None if calibration is None else list(calibration)
    given: dict[str, Any] = {
        "data": batches,
        "calibration": kept,
        "recalibrate": recalibrate,
        "memory": memory,
    }
    count = len(weights)
    lines = count + count * (count - 1) // 2 * (points - 2)
    total = lines + (plane_points**2 if corners else 0)
    folder = None if resume is None else Path(resume)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    table, rows = _lines(count, points)
    values = evaluate_points(
        model,
        with_loss(loss, metrics),
        corners=list(weights.values()),
        coefficients=table,
        names=list(weights),
        resume=folder and folder / "lines.safetensors",
        progress=_shifted(progress, 0, total),
        **given,
    )
    plane = None
    if corners:
        flat = plane_through({name: weights[name] for name in corners})
        others = {name: value for name, value in weights.items() if name not in corners}
        plane = loss_plane(
            model,
            loss,
            plane=flat.marked(others),
            metrics=metrics,
            points=plane_points,
            resume=folder and folder / "plane.safetensors",
            progress=_shifted(progress, lines, total),
            **given,
        )
    ready = _calibrated(model, weights, kept if recalibrate else None)
    return LandscapeStudy(
        names=tuple(weights),
        positions=torch.linspace(0, 1, points, dtype=torch.float64),
        lines={name: value[rows] for name, value in values.items()},
        distances=_distances(weights),
        agreement=None
        if predict is None
        else prediction_agreement(model, weights=ready, data=batches, predict=predict),
        similarity=representation_similarity(model, weights=ready, data=batches, layers=layers),
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
    `p` that lays `S - s` over what the target's own training moved.

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
    check_corners(list(networks.values()), list(networks))
    return networks


def _check(weights: Mapping[str, Weights], corners: Sequence[str] | None) -> None:
    if len(weights) < 2:
        raise ValueError(f"weights must be two or more networks by name, got {len(weights)}.")
    check_corners(list(weights.values()), list(weights))
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


def _calibrated(
    model: nn.Module, weights: Mapping[str, Weights], calibration: Sequence[Batch] | None
) -> Mapping[str, Weights]:
    """The networks with statistics of BatchNorm that belong to them."""
    if not calibration or not batchnorm_layers(model):
        return weights
    return {
        name: {**value, **recalibrate_batchnorm(model, weights=value, data=calibration)}
        for name, value in weights.items()
    }


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
