"""`slipstream transfer`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import in_words, write_json, write_table
from slipstream.cli.progress import steps_bar

if TYPE_CHECKING:
    from slipstream.transfer import TransferResult

Method = Literal[
    "naive", "random", "oracle", "gmt", "fgmt",
    "naive-signed", "random-signed", "oracle-signed", "gmt-signed", "fgmt-signed",
]  # fmt: skip
TARGET = "A safetensors file with the start to transfer to, instead of a fresh initialisation."
ALONG = "Along the straight line from start to end, or the run's own snapshots."
PAIRS = "Whether each stage counts by the size of its gradients, or all stages the same."
EXCLUDE = "Tensors that stay the target's own, such as 'head.*'."
RESUME = "Go on with an unfinished transfer."
GROUPS = "Neuron groups, as `slipstream groups --save` writes them; found if not given."


def transfer(
    run: Annotated[Path, typer.Argument(help="The recorded run to transfer.")],
    out: Annotated[Path, typer.Option(help="The run folder to make.")] = Path("transferred"),
    target: Annotated[Path | None, typer.Option(help=TARGET)] = None,
    target_seed: Annotated[int | None, typer.Option(help="Seed of a fresh initialisation.")] = None,
    trained_target: Annotated[
        Path | None, typer.Option(help="Where the target's own training ended, for oracle.")
    ] = None,
    method: Annotated[Method, typer.Option(help="How the permutation is chosen.")] = "fgmt-signed",
    stages: Annotated[int, typer.Option(help="Stages along the path.")] = 10,
    path: Annotated[Literal["line", "recorded"], typer.Option(help=ALONG)] = "line",
    schedule: Annotated[Literal["cosine", "uniform"], typer.Option(help="Of the line.")] = "cosine",
    segments: Annotated[int, typer.Option(help="Parts with a permutation each.")] = 1,
    batches: Annotated[int, typer.Option(help="Batches for each gradient.")] = 1,
    pairs: Annotated[Literal["plain", "normalised"], typer.Option(help=PAIRS)] = "plain",
    exclude: Annotated[list[str] | None, typer.Option(help=EXCLUDE)] = None,
    groups: Annotated[Path | None, typer.Option(help=GROUPS)] = None,
    keep: Annotated[Literal["last", "best"], typer.Option(help="By validation loss.")] = "last",
    resume: Annotated[bool, typer.Option("--resume", help=RESUME)] = False,
    model: options.OtherModel = None,
    data: options.OtherData = None,
    loss: options.Loss = None,
    width: options.Width = None,
    option: options.Option = None,
    device: options.Device = "cpu",
    json: options.AsJson = False,
) -> None:
    """Transfer a recorded run to another start, without training it again.

    Example: slipstream transfer run --target-seed 7 --method fgmt-signed --out transferred
    """
    from slipstream.cli.loading import open_experiment, open_file
    from slipstream.cli.masks import lost_mask
    from slipstream.storage.new_run import NewRun
    from slipstream.symmetry.neuron_groups import NeuronGroups
    from slipstream.trajectory import Trajectory
    from slipstream.transfer import Target, TransferPlan, source_reference, transfer_trajectory
    from slipstream.weights import weights_of

    options.exactly_one({"--target FILE": target, "--target-seed N": target_seed})
    _check_oracle(method, trained_target)
    source = Trajectory.open(run)
    experiment = open_experiment(
        run, model=model, data=data, loss=loss, width=width, option=option, seed=target_seed,
        device=device,
    )  # fmt: skip
    network = experiment.model
    start = open_file(network, target) if target else weights_of(network)
    trained = open_file(network, trained_target) if trained_target else None
    plan = TransferPlan(
        method, stages, path, schedule, segments, batches, pairs,
        exclude=tuple(exclude or ()), keep=keep,
    )  # fmt: skip
    made = {"source": source_reference(run, out), "target_seed": target_seed}
    with steps_bar("transferring", hidden=json) as bar:
        result = transfer_trajectory(
            source,
            start if trained is None else Target(start, trained),
            experiment,
            plan=plan,
            groups=NeuronGroups.load(groups) if groups else None,
            run_folder=NewRun(out, {**source.description["configuration"], **made}, resume=resume),
            progress=bar,
        )
    test = experiment.evaluate(weights=result.weights, split="test")
    if json:
        write_json({**result.to_json(), "path": str(out), "test": test})
    else:
        _print(result, list(experiment.measured))
        typer.echo(f"test, stage {result.chosen}: {in_words(test)}; recorded in {out}")
        if line := lost_mask(source[-1].weights, result.weights):
            typer.echo(line)


def _check_oracle(method: str, trained_target: Path | None) -> None:
    if method.startswith("oracle") and trained_target is None:
        raise ValueError(f"--method {method} matches a trained target: give --trained-target FILE.")


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
    typer.echo(f"{cost.gradient_evaluations} gradients, {cost.total_seconds:.2f} s ({kinds})")


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
