"""Rotations trained on the loss between two networks."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, eval_mode, weights_in
from slipstream.matching.plans import BasisPlan
from slipstream.symmetry.rotation import RotatableGroups, nearest_rotation, off_mean, rotated
from slipstream.weights import Weights

_MIDDLE = 0.2  # the share of the line, around its middle, that random points are drawn from


def learn(
    source: Weights,
    target: Weights,
    task: Task,
    *,
    rotatable: RotatableGroups,
    matrices: Mapping[str, Tensor],
    plan: BasisPlan,
) -> tuple[dict[str, Tensor], list[float]]:
    """Lower the loss at random points halfway between target and rotated source, by Adam.

    A rotation is `exp(A - A^T) Q` with A trained from zero and Q where it starts, so that it stays
    orthogonal; of a group that keeps its mean, A acts on the other directions only.

    Args:
        source: Weights with gains folded and neurons permuted, which are rotated.
        target: Weights with gains folded.
        task: The model, left as it was; its training batches and loss.
        rotatable: What may be rotated.
        matrices: Where the rotations start.
        plan: How many steps, at what rate.

    Returns:
        The matrices, in float64, and the loss of each step.

    Raises:
        ValueError: If there is no training batch, or a loss is not finite.
    """
    parameters = {n: p for n, p in task.model.named_parameters() if n in source}
    first, last = ({n: w[n].to(p) for n, p in parameters.items()} for w in (source, target))
    like = next(iter(first.values()))
    turns = {n: _Turn(m.to(like), rotatable[n].keeps_mean) for n, m in matrices.items()}
    optimizer = torch.optim.Adam([turn.free for turn in turns.values()], lr=plan.lr)
    generator = torch.Generator().manual_seed(plan.seed)
    losses: list[float] = []
    with eval_mode(task.model):
        for step, batch in zip(range(plan.learn_steps), _batches(task), strict=False):
            optimizer.param_groups[0]["lr"] = plan.lr * (1 - step / plan.learn_steps)
            share = 0.5 + _MIDDLE * (float(torch.rand((), generator=generator)) - 0.5)
            moved = rotated(first, rotatable, {n: turn.matrix() for n, turn in turns.items()})
            points = {n: torch.lerp(moved[n], last[n], share) for n in parameters}
            loss, slopes = _slopes(task, parameters, points, batch)
            if not math.isfinite(loss):
                raise ValueError(f"The loss at step {step + 1} is {loss}: try a smaller lr.")
            losses.append(loss)
            optimizer.zero_grad()
            turned = [name for name in slopes if points[name].requires_grad]
            torch.autograd.backward([points[n] for n in turned], [slopes[n] for n in turned])
            optimizer.step()
    return {n: turn.result() for n, turn in turns.items()}, losses


class _Turn:
    """One group's rotation in coordinates that are free."""

    def __init__(self, start: Tensor, keeps_mean: bool) -> None:
        size = start.shape[-1]
        self.start, self.keeps_mean = start, keeps_mean
        self.basis = off_mean(size).to(start) if keeps_mean else None
        inner = size - 1 if keeps_mean else size
        self.free = start.new_zeros(*start.shape[:-2], inner, inner).requires_grad_()

    def matrix(self) -> Tensor:
        skew = self.free - self.free.mT
        if self.basis is not None:
            skew = self.basis @ skew @ self.basis.mT
        turned: Tensor = torch.linalg.matrix_exp(skew) @ self.start
        return turned

    def result(self) -> Tensor:
        """The matrix in float64, rid of the roundings of a narrower exponential."""
        with torch.no_grad():
            return nearest_rotation(self.matrix().double().cpu(), keeps_mean=self.keeps_mean)


def _slopes(
    task: Task, parameters: Mapping[str, nn.Parameter], points: Weights, batch: Batch
) -> tuple[float, dict[str, Tensor]]:
    """The loss at some weights and its gradient there, whatever module and loss do."""
    learning = {n: p for n, p in parameters.items() if p.requires_grad}
    with weights_in(task.model, points):
        value = task.loss(task.model, task.to(batch))
        slopes = torch.autograd.grad(value, list(learning.values()), materialize_grads=True)
    return value.detach().item(), dict(zip(learning, slopes, strict=True))


def _batches(task: Task) -> Iterator[Batch]:
    """The training batches, epoch after epoch."""
    epoch = 0
    while True:
        seen = False
        of_epoch = getattr(task.data, "epoch", None)
        for batch in task.data if of_epoch is None else of_epoch(epoch):
            seen = True
            yield batch
        if not seen:
            raise ValueError("Rotations cannot be learned: the task's data holds no batch.")
        epoch += 1
