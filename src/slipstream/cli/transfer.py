"""`slipstream transfer`."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from click import get_current_context
from click.core import ParameterSource

from slipstream.cli import options
from slipstream.cli.command import old_flags
from slipstream.cli.output import OutputRun, in_words, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import TaskOptions
from slipstream.transfer.plan import TransferPlan

if TYPE_CHECKING:
    from slipstream.evaluation import Task
    from slipstream.transfer import Target, TransferResult

OUT = "transferred"
SEED = "Transfer to a new initialisation with this seed."
TARGET = "Transfer to the weights in this .safetensors file."
TRAINED = "Where the target's own training ended, for --method oracle: a .safetensors file."
BUDGET = (
    "Gradients to spend in all, instead of --stages: as many stages as the method makes of them. "
    "0 matches activations only, without labels."
)
PLAN = Adjusted(skip=("seed",), rename={"batches_per_gradient": "batches"})


@old_flags({"--target-seed": "--seed"})
def transfer(
    run: Annotated[Path, typer.Argument(help="The recorded run to transfer.")],
    plan: Annotated[TransferPlan, PLAN],
    files: Annotated[OutputRun, Adjusted(shown={"out": OUT})],
    task: TaskOptions,
    budget: Annotated[int | None, typer.Option(help=BUDGET)] = None,
    seed: Annotated[int | None, typer.Option(help=SEED)] = None,
    target: Annotated[Path | None, typer.Option(help=TARGET)] = None,
    trained_target: Annotated[Path | None, typer.Option(help=TRAINED)] = None,
    groups: options.Groups = None,
    json: options.AsJson = False,
) -> None:
    """Transfer a recorded run to another start, without training it again.

    Example: slipstream transfer run --seed 7 --out transferred
    """
    from slipstream.cli.masked import lost_mask
    from slipstream.symmetry.neuron_groups import NeuronGroups
    from slipstream.trajectory import Trajectory
    from slipstream.transfer import source_reference, transfer_trajectory

    plan = _within(plan, budget)
    _check(plan, seed, target, trained_target)
    source, out = Trajectory.open(run), files.out or Path(OUT)
    opened = task.open(run, seed=seed)
    made: dict[str, object] = {"target_seed": seed} if target is None else {"target": str(target)}
    made |= {"source": source_reference(run, out)}
    recorded = {**source.description["configuration"], **opened.configuration, **made}
    with steps_bar("transferring", hidden=json) as bar:
        result = transfer_trajectory(
            source,
            _target(opened, target, trained_target),
            opened,
            plan=plan,
            groups=NeuronGroups.load(groups) if groups else None,
            run_folder=files.new_run(out, **recorded),
            progress=bar,
        )
    test = opened.evaluate(weights=result.weights, split="test")
    if json:
        write_json({**result.to_json(), "path": str(out), "test": test})
        return
    _print(result, list(opened.measured))
    typer.echo(f"test, stage {result.chosen}: {in_words(test)}; recorded in {out}")
    if line := lost_mask(source[-1].weights, result.weights):
        typer.echo(line)


def _within(plan: TransferPlan, budget: int | None) -> TransferPlan:
    if budget is None:
        return plan
    if _typed("stages"):
        raise ValueError("Give --stages or --budget: the budget says how many stages there are.")
    skipped = {"stages"} if _typed("method") else {"stages", "method"}
    given = {one.name: getattr(plan, one.name) for one in fields(plan) if one.name not in skipped}
    return TransferPlan.for_budget(budget, **given)


def _typed(option: str) -> bool:
    """Whether the user gave an option, also where it is the default."""
    return get_current_context().get_parameter_source(option) == ParameterSource.COMMANDLINE


def _check(
    plan: TransferPlan, seed: int | None, target: Path | None, trained_target: Path | None
) -> None:
    if (seed is None) == (target is None):
        raise ValueError("Give exactly one of --seed N and --target FILE: where to transfer to.")
    if plan.matching == "oracle" and trained_target is None:
        raise ValueError(
            f"--method {plan.method} matches a trained target: give --trained-target FILE."
        )


def _target(opened: "Task", target: Path | None, trained: Path | None) -> "Target":
    from slipstream.cli.loading import open_file
    from slipstream.transfer import Target
    from slipstream.weights import weights_of

    start = open_file(opened.model, target) if target else weights_of(opened.model)
    return Target(start, open_file(opened.model, trained) if trained else None)


def _print(result: "TransferResult", metrics: list[str]) -> None:
    write_table(
        ["stage", *(f"validation {name}" for name in metrics), "gain over identity"],
        [
            [str(s.stage), *(f"{s.metrics[name]:.4f}" for name in metrics), _plain(s.gain)]
            for s in result.stages
        ],
    )
    cost = result.cost
    kinds = ", ".join(f"{kind} {seconds:.2f}" for kind, seconds in cost.seconds.items())
    typer.echo(
        f"{cost.gradient_evaluations} gradients, {cost.total_seconds:.2f} s ({kinds}); "
        f"needs {result.plan.needs}"
    )


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
