"""How close a run comes to a largest margin, and which examples its weights are made of."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from slipstream.dynamics.jacobians import Network
from slipstream.dynamics.tangent_kernel import outputs_over, tangent_kernel
from slipstream.evaluation import Batch, Task, takes_task, weights_in
from slipstream.evaluation.swapped_weights import eval_mode
from slipstream.trajectory import Snapshot, Trajectory
from slipstream.weights import Weights

SNAPSHOTS = 10  # measured along a run, by default
HOMOGENEOUS = 1e-3  # relative error of J theta = L f up to which a network counts as homogeneous
_SUPPORT = 1e-3  # of the largest coefficient: what is smaller supports nothing


@dataclass(frozen=True, eq=False)
class MarginProgress:
    """Result of `margin_progress`."""

    steps: tuple[int, ...]  # T of the run
    margins: Tensor  # (T, N) Phi: output of the label less that of the strongest other class
    coefficients: Tensor  # (T, N) lam >= 0 that bring the sum closest to the weights
    residuals: Tensor  # (T,) |theta - sum_i lam_i dPhi_i/dtheta| / |theta|
    decay_residuals: Tensor  # (T,) |theta + dL/dtheta / w| / |theta|; NaN without weight decay
    degrees: Tensor  # (T,) L for which df/dtheta . theta is closest to L f
    inhomogeneity: Tensor  # (T,) relative error of that; 0 for homogeneous networks
    normalised: Tensor  # (T,) smallest margin / |theta|^L

    def support(self, position: int = -1) -> tuple[int, ...]:
        """Return the examples whose coefficient is not 0 at a snapshot, the largest first."""
        found = self.coefficients[position]
        order = torch.argsort(found, descending=True).tolist()
        return tuple(i for i in order if found[i] > _SUPPORT * found[order[0]])

    @property
    def homogeneous(self) -> bool:
        """Whether the theory of largest margins is about this network."""
        return bool((self.inhomogeneity <= HOMOGENEOUS).all())


@takes_task
def margin_progress(
    trajectory: Trajectory,
    task: Task,
    *,
    steps: Sequence[int] | None = None,
    weight_decay: float | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> MarginProgress:
    """Measure along a run how far the weights are a sum of gradients of the training examples.

    A homogeneous network that is trained by a loss such as cross entropy, for long enough after it
    has fitted the data, comes to a stationary point of the largest margin: there

        theta = sum_i lam_i dPhi_i/dtheta,   lam_i >= 0, and 0 for examples that are not closest.

    Phi_i is the output of the label less that of another class, and each pair counts. The
    coefficients are found by non-negative least squares. A network that is not homogeneous (biases
    beyond the first layer, softplus, normalisation) need not come there. What holds for every
    differentiable network is the balance of weight decay w: where the gradient of
    `L + w |theta|^2 / 2` is 0, theta is exactly `-(1/w) dL/dtheta`, a sum of gradients of examples,
    and with cross entropy the residual is 0 as well.

    Args:
        trajectory: The run.
        task: The model of the run, left as it was, with its loss, and batches `(inputs, labels)`
            of the examples that it was trained on. BatchNorm uses its running statistics.
        steps: Where to measure; by default ten snapshots, evenly spaced.
        weight_decay: That of the training, of sgd or adam (adamw's is another); what the run
            recorded if not given.
        progress: Called after each snapshot with the number done, and of all.

    Returns:
        Margins, coefficients and residuals at each snapshot.

    Raises:
        ValueError: If the run has no such step or no snapshot, batches have no labels or do not
            fit in memory, or the model cannot be differentiated example by example.

    Example:
        >>> from torch import nn
        >>> run = Trajectory.from_weights([{"weight": torch.tensor([[3.0, 0.0]])}])
        >>> data = [(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1]))]
        >>> found = margin_progress(run, Task(nn.Linear(2, 1, bias=False), data))
        >>> found.coefficients.tolist(), found.support(), found.degrees.item()
        ([[3.0, 0.0]], (0,), 1.0)

    Source:
        "Gradient Descent Maximizes the Margin of Homogeneous Neural Networks" (Lyu, Li, 2020),
        theorem 4.4; the multi-class form as in "Deconstructing Data Reconstruction" (Buzaglo et
        al., 2023), equation 5.
    """
    snapshots = trajectory.chosen(steps, most=SNAPSHOTS)
    data = [task.to(_labelled(batch)) for batch in task.data]
    labels = torch.cat([own for _, own in data]) if data else torch.zeros(0)
    decay = recorded_decay(trajectory) if weight_decay is None else weight_decay
    rows = []
    with eval_mode(task.model):
        for number, snapshot in enumerate(snapshots, start=1):
            own = replace(task, data=data)
            rows.append(_measured(own, snapshot, labels, decay))
            if progress is not None:
                progress(number, len(snapshots))
    columns = [torch.stack(column) for column in zip(*rows, strict=True)]
    return MarginProgress(tuple(s.step for s in snapshots), *columns)


def margin_directions(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return what of the outputs the margin over each other class is.

    Args:
        outputs: (N, C); with a single output, classes 0 and 1 (or -1 and 1) are its signs.
        labels: (N,) classes, whole numbers.

    Returns:
        (N, C - 1, C) of zeros, ones and minus ones, or (N, 1, 1), so that the margins are
        `(directions * outputs[:, None]).sum(2)`.

    Raises:
        ValueError: If a label is no class of these outputs.

    Example:
        >>> margin_directions(torch.zeros(1, 3), torch.tensor([0])).tolist()
        [[[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]]]
    """
    count = outputs.shape[1]
    least, most = (int(v) for v in labels.aminmax())
    if least < (-1 if count == 1 else 0) or most > max(count - 1, 1):
        raise ValueError(
            f"labels must be classes of {count} outputs (0 or 1 for a single one), "
            f"got {least} to {most}."
        )
    if count == 1:
        return torch.where(labels > 0, 1.0, -1.0).to(outputs)[:, None, None]
    units = torch.eye(count).to(outputs)
    pairs = units[labels][:, None] - units  # (N, C, C); the label's own row is 0
    others = labels[:, None] != torch.arange(count, device=labels.device)
    return pairs[others].view(len(labels), count - 1, count)


def homogeneity(task: Task, weights: Weights) -> tuple[float, float]:
    """Return the degree L of a network, and the relative error of `df/dtheta . theta = L f`.

    Args:
        task: A model, and data to try it on.
        weights: Where.

    Returns:
        Degree and error; the error is 0 for a homogeneous network.
    """
    with weights_in(task.model, weights), eval_mode(task.model):
        network = Network.of(task.model, dtype=torch.float64)
        inputs, outputs = outputs_over(network, task.data)
        return _degree(network.image(network.trained, inputs), outputs)


def _degree(along: Tensor, outputs: Tensor) -> tuple[float, float]:
    degree = float((along * outputs).sum() / outputs.square().sum())
    return degree, float((along - degree * outputs).norm() / along.norm())


def _measured(task: Task, snapshot: Snapshot, labels: Tensor, decay: float) -> tuple[Tensor, ...]:
    """The row of a snapshot, in the order of the fields of `MarginProgress`."""
    kernel = tangent_kernel(task, weights=snapshot.weights, dtype=torch.float64)
    count, outputs = len(labels), kernel.outputs.shape[1]
    chosen = margin_directions(kernel.outputs, labels)  # (N, K, C)
    blocks = kernel.blocks.view(count, outputs, count, outputs)
    gram = torch.einsum("nkc,ncmd,mld->nkml", chosen, blocks, chosen).flatten(2).flatten(0, 1)
    with weights_in(task.model, snapshot.weights):
        network = Network.of(task.model, dtype=torch.float64)
        inputs = torch.cat([batch[0] for batch in task.data])
        theta, along = network.trained, network.image(network.trained, inputs)
        products = torch.einsum("nkc,nc->nk", chosen, along)
        lam = _nonnegative(gram, products.flatten()).view_as(products)
        total = network.pull(torch.einsum("nkc,nk->nc", chosen, lam), inputs)
    length = _length(theta)
    missing = _length({name: value - total[name] for name, value in theta.items()})
    degree, error = _degree(along, kernel.outputs)
    margins = torch.einsum("nkc,nc->nk", chosen, kernel.outputs).amin(1)
    unbalanced = torch.tensor(math.nan, dtype=torch.float64)
    if decay:
        slope = task.gradient(weights=snapshot.weights)
        rest = {name: value + slope[name].double() / decay for name, value in theta.items()}
        unbalanced = _length(rest) / length
    normalised = margins.min() / length**degree
    row = (margins, lam.sum(1), missing / length, unbalanced, degree, error, normalised)
    return tuple(torch.as_tensor(value, dtype=torch.float64).cpu() for value in row)


def _nonnegative(gram: Tensor, products: Tensor) -> Tensor:
    """The lam >= 0 with the least |theta - G' lam|, of G G' and G theta."""
    # With G G' = V S V' it is the problem of the small matrix sqrt(S) V': it needs neither the
    # gradients nor an inverse of their products, which may be singular.
    values, vectors = torch.linalg.eigh(gram)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    roots, axes = values[kept].sqrt(), vectors[:, kept]
    matrix, wanted = roots[:, None] * axes.T, (axes.T @ products) / roots
    if not len(roots):
        return torch.zeros_like(products)
    found = nnls(matrix.cpu().numpy(), wanted.cpu().numpy())[0]
    return torch.from_numpy(np.asarray(found)).to(products)


def _length(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value.square().sum() for value in tensors.values()]).sum().sqrt()


def _labelled(batch: Batch) -> Batch:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            "A margin needs labels: a batch must be (inputs, labels), "
            f"got a {type(batch).__name__}."
        )
    labels = batch[1]
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1:
        raise ValueError("labels must be classes, a vector of whole numbers for each batch.")
    return batch


def recorded_decay(trajectory: Trajectory) -> float:
    """Return the weight decay that a run recorded, 0 if it says none."""
    recorded = trajectory.description.get("configuration", {}).get("training", {})
    return float(recorded.get("weight_decay", 0.0))
