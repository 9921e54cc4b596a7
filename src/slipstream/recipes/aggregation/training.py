"""Aggregation: networks for a data set each, trained together so that their weights add up."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from slipstream.evaluation import Batch, Task, takes_task
from slipstream.recipes.aggregation.plan import AggregationPlan
from slipstream.recipes.aggregation.specialists import (
    Family,
    Together,
    a_task_each,
    calibrated,
    specialist_starts,
)
from slipstream.storage.new_run import NewRun
from slipstream.storage.tensor_file import tensor_chunks
from slipstream.storage.writing import write_whole
from slipstream.training import Loop, RecordingOptions, recorded
from slipstream.training.loop import Progress
from slipstream.trajectory import declare_companions
from slipstream.weights import (
    Weights,
    clone,
    difference,
    displace,
    norm,
    parameter_names,
    weights_of,
)

SPECIALISTS = "specialists"  # folder beside the snapshots


@dataclass(frozen=True)
class Aggregation:
    """Result of `train_aggregation`: weights that were trained to be added and taken away."""

    plan: AggregationPlan
    specialists: tuple[Weights, ...]  # theta_k, one for each data set
    aggregate: Weights  # theta_A, trained with them
    sum: Weights  # theta_1 + theta_2 + ...: what to use at test time
    remainders: tuple[Weights, ...]  # theta_A - theta_k: without data set k
    gap: float  # |theta_A - sum| / |sum|
    losses: tuple[float, ...]  # mean of the whole objective, of each epoch
    steps: int
    seconds: float  # of the training


@takes_task
@a_task_each
def train_aggregation(
    tasks: Sequence[Task],
    *,
    plan: AggregationPlan | None = None,
    initial: Sequence[Weights] | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> Aggregation:
    """Train a specialist for each data set so that the sum of their weights masters all of them.

    Minimises sum_k L(theta_k; D_k) + L(theta_A; all) + mu |theta_A - sum_k theta_k|^2. The
    specialists are trained jointly: networks trained apart do not add up. Taking a specialist away
    from the aggregate forgets its data set.

    BatchNorm's running statistics do not add: where there are any, those of sum and remainders are
    estimated on the data; GroupNorm needs nothing.

    Source: "Transfer Learning via Test-Time Neural Networks Aggregation" (Casella et al., 2022),
    whose text leaves the exact form of the objective open.

    Args:
        tasks: One for each data set, two at least, all with the same model, which is left as it
            was. An epoch has the steps of the longest; the shorter ones begin again. The aggregate
            is measured on the validation data of each after every epoch.
        plan: How.
        initial: Where each specialist starts, such as the last snapshots of transferred runs; by
            default the first at the model's own weights, the others as `fresh_weights`.
        run_folder: Records the aggregate after every epoch as a run, and the specialists in the
            end.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        Specialists, aggregate, sum and remainders.

    Raises:
        ValueError: If there are fewer than two tasks, one has no data, the starts do not fit, the
            loss is not finite, or what is to be resumed is another training.
        FileExistsError: If the run folder is not empty.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from slipstream.training import TrainingPlan
        >>> loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
        >>> data = [(torch.ones(1, 1), torch.full((1, 1), 2.0))]
        >>> task = Task(nn.Linear(1, 1, bias=False), data, loss)
        >>> plan = AggregationPlan(descent=TrainingPlan.cosine(epochs=5))
        >>> found = train_aggregation([task, task], plan=plan)
        >>> torch.equal(found.sum["weight"], sum(s["weight"] for s in found.specialists))
        True
    """
    plan = plan or AggregationPlan()
    starts = specialist_starts(tasks, initial=initial, seed=plan.descent.seed)
    family = Family(tasks[0].model, starts)
    training = Loop(family, plan.descent)
    judged = [replace(task, model=family.aggregate) for task in tasks]

    def objective(batches: tuple[Batch, ...]) -> Tensor:
        return family.objective(tasks, batches, plan.pull)

    def measure() -> dict[str, float]:
        numbered = enumerate((task.validated() for task in judged), start=1)
        return {f"{name}_{n}": value for n, found in numbered for name, value in found.items()}

    with recorded(
        training,
        judged[0],
        run_folder,
        plan={"aggregation": asdict(plan)},
        start=[weights_of(family)],
        measure=measure,
        options=RecordingOptions(losses="objective"),
    ) as keep:
        together = Together([task.data for task in tasks])
        training.run(objective, data=together, on_epoch=keep, progress=progress)
    found = _result(tasks, plan, family, training)
    if run_folder is not None:
        _save(found.specialists, NewRun.of(run_folder).folder)
    return found


def _save(specialists: Sequence[Weights], folder: Path) -> None:
    declare_companions(folder, f"{SPECIALISTS}/*.safetensors")
    (folder / SPECIALISTS).mkdir(exist_ok=True)
    for number, specialist in enumerate(specialists, start=1):
        on_cpu = {name: value.cpu() for name, value in specialist.items()}
        write_whole(folder / SPECIALISTS / f"{number}.safetensors", tensor_chunks(on_cpu))


def _result(
    tasks: Sequence[Task], plan: AggregationPlan, family: Family, training: Loop
) -> Aggregation:
    specialists = tuple(clone(weights_of(specialist)) for specialist in family.specialists)
    aggregate = clone(weights_of(family.aggregate))
    names = parameter_names(tasks[0].model)
    parts = [{name: own[name] for name in names} for own in specialists]
    total = {**aggregate, **parts[0]}  # buffers are constants, or are calibrated below
    for part in parts[1:]:
        total = displace(total, part)
    remainders = []
    for number, part in enumerate(parts):
        others = [task for place, task in enumerate(tasks) if place != number]
        remainders.append(calibrated(others, displace(aggregate, part, scale=-1)))
    rest = difference(*({name: own[name] for name in names} for own in (aggregate, total)))
    return Aggregation(
        plan,
        specialists,
        aggregate,
        calibrated(tasks, total),
        tuple(remainders),
        norm(rest) / (norm(total) or 1.0),
        tuple(training.losses),
        training.step,
        training.seconds,
    )
