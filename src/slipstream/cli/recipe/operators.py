"""`slipstream recipe operators` and `slipstream recipe tune-operator`."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe.choices import seeded
from slipstream.recipes.operators.plan import OperatorPlan, PhysicsPlan

if TYPE_CHECKING:
    from torch import Tensor

    from slipstream.evaluation import Task
    from slipstream.testbed.deeponet import DeepONet
    from slipstream.testbed.equations import FlowEquation

OUT, TUNED = "operators", "tuned"
SOURCES, TARGET = ("1,0.02", "0.5,0.05", "0,0.05"), "1,0.01"
HELD, TESTED = 50, 50  # functions
FINE = 256  # points to solve with, at least
SOURCE = "FlowEquation to learn from, C,NU of u_t + C u u_x = NU u_xx; repeatable."
RUNS = "Runs of `slipstream recipe operators`, which are averaged; none starts anew."
MATCH = "Match the neurons of the local halves before they are averaged."
RUN = Adjusted(
    help={"out": "A folder for runs: together, operator-1 and so on."}, shown={"out": OUT}
)
PLAN = Adjusted(skip=("seed",))


def operators(
    plan: Annotated[OperatorPlan, PLAN],
    files: Annotated[OutputRun, RUN],
    source: Annotated[
        list[str] | None, typer.Option(help=SOURCE, show_default=" and ".join(SOURCES))
    ] = None,
    functions: Annotated[int, typer.Option(min=1, help="Input functions per equation.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Functions per batch.")] = 50,
    width: Annotated[int, typer.Option(min=1, help="Units of a hidden layer.")] = 64,
    terms: Annotated[int, typer.Option(min=1, help="Products that are summed.")] = 40,
    sensors: Annotated[int, typer.Option(min=8, help="Where functions are seen.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of weights and functions.")] = 0,
    json: options.AsJson = False,
) -> None:
    """Pre-train operator networks on several equations: a shared half, and local ones.

    Only the shared half is exchanged, by federated averaging. Go on with tune-operator.

    Example: slipstream recipe operators --source 1,0.02 --source 0,0.05 --out operators
    """
    from slipstream.evaluation import Task
    from slipstream.recipes import function_loss, operator_errors, pretrain_operators
    from slipstream.testbed.equations import random_functions, solution_batches

    out, equations = files.out or Path(OUT), [equation_of(one) for one in source or SOURCES]
    sizes = {"sensors": sensors, "width": width, "terms": terms}
    network = _network(sizes, seed)
    data = [
        solution_batches(
            equation,
            random_functions(functions, positions=sensors, waves=3, seed=1000 * seed + number),
            batch_size=batch_size,
            instants=9,
            grid=_fine(sensors),
        )
        for number, equation in enumerate(equations)
    ]
    made = {"network": sizes, "equations": [asdict(equation) for equation in equations]}
    with steps_bar("training", hidden=json) as bar:
        found = pretrain_operators(
            Task(network, loss=function_loss),
            operators=data,
            plan=seeded(plan, seed),
            run_folder=files.new_run(out, **made),
            progress=bar,
        )
    errors = [
        float(operator_errors(network, own, weights=weights).mean())
        for own, weights in zip(data, found.operators, strict=True)
    ]
    exchanged = {"up": found.bytes_up, "down": found.bytes_down}
    if json:
        write_json({"path": str(out), "steps": found.steps, "bytes": exchanged, "errors": errors})
        return
    typer.echo(
        f"{found.steps} steps, {found.bytes_up / 1e6:.2f} MB up, {found.bytes_down / 1e6:.2f} MB "
        f"down; local: {len(found.local)} of {len(found.operators[0])} tensors"
    )
    for number, error in enumerate(errors, start=1):
        typer.echo(
            f"operator {number}: relative error {error:.3f}; recorded in {out}/operator-{number}"
        )


def tune_operator(
    plan: Annotated[PhysicsPlan, PLAN],
    files: Annotated[OutputRun, Adjusted(shown={"out": TUNED})],
    runs: Annotated[list[Path] | None, typer.Argument(help=RUNS)] = None,
    target: Annotated[str, typer.Option(help="The equation, C,NU; no solutions.")] = TARGET,
    match: Annotated[bool, typer.Option(help=MATCH)] = True,
    functions: Annotated[int, typer.Option(min=1, help="Input functions.")] = 500,
    batch_size: Annotated[int, typer.Option(min=1, help="Functions per batch.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of functions and points.")] = 0,
    json: options.AsJson = False,
) -> None:
    """Tune an operator network to an equation by the equation alone, without solutions.

    Several runs are averaged for the start. Solutions are used for the errors that are printed.

    Example: slipstream recipe tune-operator operators/operator-1 operators/operator-2 --rank 8
    """
    import torch

    from slipstream.recipes import PhysicsProblem, operator_errors
    from slipstream.recipes import tune_operator as tune
    from slipstream.testbed.equations import random_functions, solution_batches
    from slipstream.weights import load_weights_

    out, equation, given = files.out or Path(TUNED), equation_of(target), runs or []
    sizes = _sizes_of(given)
    sensors = sizes["sensors"]
    drawn = [
        random_functions(count, positions=sensors, waves=3, seed=1000 * seed + 500 + number)
        for number, count in enumerate((functions, HELD, TESTED))
    ]
    test = solution_batches(equation, drawn[2], grid=_fine(sensors))
    network = _network(sizes, seed)
    task = _task(network, torch.split(drawn[0], batch_size), [drawn[1]])
    if start := _start(task, given, match=match):
        load_weights_(network, start)
    made = {"network": sizes, "equation": asdict(equation), "starts": [str(run) for run in given]}
    with steps_bar("tuning", hidden=json) as bar:
        found = tune(
            task,
            problem=PhysicsProblem.even(equation.residual, sensors),
            plan=seeded(plan, seed),
            run_folder=files.new_run(out, **made),
            progress=bar,
        )
    errors = {
        name: operator_errors(network, test, weights=weights)
        for name, weights in (("start", None), ("tuned", found.weights))
    }
    figures = {n: {"mean": float(e.mean()), "worst": float(e.max())} for n, e in errors.items()}
    if json:
        how = {"step": found.step, "rate": found.rate, "trained": found.trained}
        write_json({"path": str(out), **how, "held_out": found.held_out, "errors": figures})
        return
    typer.echo(
        f"{found.steps} steps of {found.trained} parameters; least loss of the equation "
        f"{found.best:.4g} after {found.step}, at the start {found.held_out[0]:.4g}; "
        f"recorded in {out}"
    )
    rows = [[name, f"{e['mean']:.3f}", f"{e['worst']:.3f}"] for name, e in figures.items()]
    write_table(["relative error on test functions", "mean", "worst"], rows)


def equation_of(text: str) -> "FlowEquation":
    """Return the equation that `C,NU` names."""
    from slipstream.testbed.equations import FlowEquation

    try:
        steepening, viscosity = map(float, text.split(","))
    except ValueError as error:
        raise ValueError(f"An equation is C,NU, such as {TARGET}; got {text!r}.") from error
    return FlowEquation(steepening, viscosity)


def _fine(sensors: int) -> int:
    """Points to solve with: a multiple of the sensors."""
    return sensors * -(-FINE // sensors)


def _network(sizes: "dict[str, int]", seed: int) -> "DeepONet":
    import torch

    from slipstream.testbed.deeponet import DeepONet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DeepONet(**sizes)


def _sizes_of(runs: list[Path]) -> dict[str, int]:
    """The sizes of the network that the first run recorded; the usual ones without a run."""
    from slipstream.trajectory.run_files import read_run

    if not runs:
        return {"sensors": 64, "width": 64, "terms": 40}
    found = read_run(runs[0]).description["configuration"].get("network")
    if not isinstance(found, dict):
        raise ValueError(f"{runs[0]} holds no operator network: give runs of `recipe operators`.")
    return dict(found)


def _task(network: "DeepONet", data: "Sequence[Tensor]", validation: "list[Tensor]") -> "Task":
    """Input functions; the network is observed at all sensors and some times."""
    import torch

    from slipstream.evaluation import Task
    from slipstream.recipes import feed_functions
    from slipstream.testbed.equations import points_of

    points = points_of(torch.linspace(0, 1, 9), data[0].shape[1])
    seen = [((functions, points), None) for functions in data]
    example = (data[0][:2], points)
    return Task(
        network,
        list(data),
        validation=validation,
        unlabelled=seen,
        forward=feed_functions,
        example_input=example,
    )


def _start(task: "Task", runs: list[Path], *, match: bool) -> "dict[str, Tensor] | None":
    """The last weights of a run, or the average of several."""
    from slipstream.cli.loading import open_weights
    from slipstream.recipes import average_operators

    found = [open_weights(task.model, run=run, step=None, file=None) for run in runs]
    if len(found) < 2:
        return found[0] if found else None
    return average_operators(
        found, replace(task, data=task.unlabelled_batches), match=match
    ).weights
