"""Side-tuning: a network that is never touched, and a small one beside it for each task."""

import copy as copying
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from slipstream.evaluation import Batch, Task, forward_inputs, takes_task
from slipstream.recipes.modules import Frozen
from slipstream.recipes.side_tuning.networks import SideNetwork, SideTask
from slipstream.recipes.side_tuning.plan import SidePlan
from slipstream.storage.new_run import NewRun
from slipstream.training import Loop, TrainingPlan, recorded
from slipstream.training.loop import Progress
from slipstream.weights import clone, weights_of


@dataclass(frozen=True)
class DistilledSide:
    """Result of `distil_side`."""

    side: nn.Module  # its weights are the distilled ones
    losses: tuple[float, ...]  # mean squared distance of the features, of each epoch
    steps: int
    seconds: float


@dataclass(frozen=True)
class SideTuned:
    """Result of `side_tune`."""

    plan: SidePlan
    network: SideNetwork  # shares the base
    blend: float  # a: how much the base counts at the end
    losses: tuple[float, ...]  # mean training loss of each epoch
    steps: int
    seconds: float  # of the training

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights of the task: `side.`, `head.` and `alpha`, without the base."""
        return clone(weights_of(self.network.task))


@takes_task
def distil_side(
    side: nn.Module,
    task: Task,
    *,
    descent: TrainingPlan | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> DistilledSide:
    """Train a small network to give the features of a base: the mean of (S(x) - B(x))^2.

    It is done once, on any inputs; every task then starts from the same side network.

    Source: "Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks" (Zhang et
    al., 2020), section 3.1: the side network is initialised by distilling the base.

    Args:
        side: Maps inputs to features of the same shape; a copy of it is trained.
        task: Its model is the base, which maps inputs to features, such as `features_of` a model;
            left as it was. Of its data only the inputs are used.
        descent: How.
        run_folder: Records the side network after every epoch as a run.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The distilled network.

    Raises:
        ValueError: If the features differ in shape, `data` is empty, or the loss is not finite.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> import torch
        >>> from slipstream.training import TrainingPlan
        >>> task = Task(nn.Linear(2, 2), [torch.eye(2)])
        >>> found = distil_side(nn.Linear(2, 2), task, descent=TrainingPlan(epochs=200, lr=0.1))
        >>> found.losses[-1] < 1e-6
        True
    """
    descent = descent or SidePlan().descent
    base, student = task.model, copying.deepcopy(side).to(task.device)
    training = Loop(student, descent, batch_size=task.batch_size)

    def distance(batch: Batch) -> Tensor:
        aim, found = forward_inputs(Frozen(base), batch), forward_inputs(student, batch)
        if not isinstance(aim, Tensor) or not isinstance(found, Tensor) or aim.shape != found.shape:
            raise ValueError(
                f"side must give features of the base's shape, {_shape(aim)}; its own have shape "
                f"{_shape(found)}."
            )
        return nn.functional.mse_loss(found, aim)

    with recorded(
        training,
        replace(task, model=student),
        run_folder,
        plan={"distillation": asdict(descent)},
        start=[weights_of(student), weights_of(base)],
        measure=dict,
    ) as keep:
        training.run(distance, data=task.data, on_epoch=keep, progress=progress)
    return DistilledSide(student, tuple(training.losses), training.step, training.seconds)


@takes_task
def side_tune(
    task: Task,
    *,
    side: nn.Module,
    head: nn.Module,
    plan: SidePlan | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> SideTuned:
    """Learn a task beside a frozen network: head(a B(x) + (1 - a) S(x)), a = sigmoid(alpha).

    Alpha starts at 0 and has no weight decay. Each task has a side network, an alpha and a head of
    its own; the base stays as it is to the bit, so what was learned before is not forgotten.

    Source: "Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks" (Zhang et
    al., 2020), section 3.

    Args:
        task: Its model is the base, which maps inputs to features, such as `features_of` a model;
            it is shared and never changed. Loss and metrics are those of the whole network.
        side: The side network at its start: `distil_side(...).side`; copied.
        head: Maps features to outputs of the task; copied.
        plan: How side, alpha and head are trained.
        run_folder: Records side, alpha and head after every epoch as a run, without the base.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        The network of the task.

    Raises:
        ValueError: If the features differ in shape, `data` is empty, the loss is not finite, or
            what is to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> import torch
        >>> from slipstream.training import TrainingPlan
        >>> task = Task(nn.Linear(2, 3), [(torch.eye(2), torch.tensor([0, 1]))])
        >>> given = {"side": nn.Linear(2, 3), "head": nn.Linear(3, 2)}
        >>> found = side_tune(task, **given, plan=SidePlan(TrainingPlan(epochs=1)))
        >>> list(found.weights)
        ['alpha', 'side.weight', 'side.bias', 'head.weight', 'head.bias']
    """
    plan = plan or SidePlan()
    own = SideTask(copying.deepcopy(side), copying.deepcopy(head)).to(task.device)
    network = SideNetwork(task.model, own)
    whole = replace(task, model=network)
    training = Loop(own, plan.descent, undecayed=[own.alpha], batch_size=task.batch_size)

    with recorded(
        training,
        replace(task, model=own),
        run_folder,
        plan={"side_tuning": asdict(plan)},
        start=[weights_of(own), weights_of(task.model)],
        measure=lambda: {"blend": own.blend} | whole.validated(),
    ) as keep:
        training.run(
            lambda batch: task.loss(network, batch),
            data=task.data,
            on_epoch=keep,
            progress=progress,
        )
    losses = tuple(training.losses)
    return SideTuned(plan, network, own.blend, losses, training.step, training.seconds)


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
