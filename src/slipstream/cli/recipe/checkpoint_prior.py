"""`slipstream recipe checkpoint-prior` and `slipstream recipe generate`."""

from pathlib import Path
from typing import Annotated

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputRun, in_words, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.recipe.choices import Start, open_start
from slipstream.cli.task_options import TaskOptions
from slipstream.recipes.checkpoint_prior.plan import GenerationPlan, PriorPlan

OUT, GENERATED = "prior", "generated"
RUNS = "A folder of run folders: ten at least, of one architecture."
PRIOR = "The run folder of `slipstream recipe checkpoint-prior`."
TASK = Adjusted(
    skip=("metrics",), shown={"model": "that of the first run", "data": "that of the first run"}
)
PLAN = Adjusted(rename={"width": "transformer_width"}, help={"epochs": "Passes of --steps steps."})
GENERATION = Adjusted(help={"seed": "Seed of the noise, and of a new start without --start."})


def checkpoint_prior(
    runs: Annotated[Path, typer.Argument(help=RUNS)],
    plan: Annotated[PriorPlan, PLAN],
    files: Annotated[OutputRun, Adjusted(shown={"out": OUT})],
    task: Annotated[TaskOptions, TASK],
    json: options.AsJson = False,
) -> None:
    """Learn from the checkpoints of many runs what weights become, given a wanted metric.

    A diffusion transformer; no gradient of the runs' own task is taken.

    Example: slipstream recipe checkpoint-prior runs --out prior
    """
    from slipstream.recipes import train_prior
    from slipstream.trajectory.run_files import run_folders_in

    out = files.out or Path(OUT)
    first, *_ = run_folders_in(runs) or [runs]
    opened = task.open(first)
    with steps_bar("training", hidden=json) as bar:
        found = train_prior(
            runs, opened, plan=plan, run_folder=files.new_run(out, source=str(runs)), progress=bar
        )
    figures = {"held_out": found.held_out, "unmoved": found.unmoved, "best": found.scales.best}
    if json:
        write_json({"path": str(out), "steps": found.steps, **figures})
        return
    typer.echo(f"{found.steps} steps; recorded in {out}")
    typer.echo(
        f"error on runs that were held out: {found.held_out:.4f}; {found.unmoved:.4f} if the start "
        f"is returned. The best tenth of the runs ended with {plan.metric} {found.scales.best:.4f}."
    )


def generate(
    prior: Annotated[Path, typer.Argument(help=PRIOR)],
    plan: Annotated[GenerationPlan, GENERATION],
    files: Annotated[OutputRun, Adjusted(skip=("resume",), shown={"out": GENERATED})],
    task: Annotated[TaskOptions, TASK],
    start: Start = None,
    json: options.AsJson = False,
) -> None:
    """Generate trained weights from a start, without a gradient.

    Example: slipstream recipe generate prior --seed 1000 --out generated
    """
    from slipstream.recipes import generate as generate_run
    from slipstream.recipes import load_prior
    from slipstream.trajectory.run_files import read_run, run_folders_in
    from slipstream.weights import weights_of

    loaded, out = load_prior(prior), files.out or Path(GENERATED)
    source = read_run(prior).description["configuration"].get("source")
    first = next(iter(run_folders_in(source)), None) if source else None
    opened = task.open(first, seed=plan.seed)
    found = generate_run(
        loaded,
        open_start(opened.model, start) or weights_of(opened.model),
        opened,
        plan=plan,
        run_folder=files.new_run(out, prior=str(prior), start=start and str(start)),
    )
    test = opened.evaluate(weights=found.weights, split="test")
    if json:
        write_json(
            {"path": str(out), "wanted": found.wanted, "updates": found.metrics, "test": test}
        )
        return
    typer.echo(f"wanted: {loaded.plan.metric} {found.wanted:.4f}")
    names = list(found.metrics[0])
    rows = [
        [str(update), *(f"{metrics[name]:.4f}" for name in names)]
        for update, metrics in enumerate(found.metrics)
    ]
    write_table(["update", *names], rows)
    typer.echo(f"test: {in_words(test)}; recorded in {out}")
