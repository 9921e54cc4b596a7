"""`slipstream compare`."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputFiles, write_json, write_table
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.progress import steps_bar
from slipstream.cli.task_options import TaskOptions

if TYPE_CHECKING:
    from slipstream.comparison import CheckpointComparison, PairComparison

CHECKPOINTS = (
    "Two or more: .safetensors, .pt or .bin files, Hugging Face folders, PEFT adapters, run "
    "folders or RUN@STEP, in any mixture."
)
MODEL = "Their model, to prove permutations: a run, a Hugging Face folder, timm:NAME, mlp, ..."
LAYERS = "How many tensors to list, those that differ most; of two checkpoints."
FILES = Adjusted(skip=("figure",), help={"out": "Write it as JSON to this file too."})
TASK = Adjusted(
    skip=("loss", "metrics", "device"),
    help={"model": MODEL},
    shown={"model": "that of a Hugging Face folder"},
)


def compare(
    checkpoints: Annotated[list[str], typer.Argument(help=CHECKPOINTS)],
    files: Annotated[OutputFiles, FILES],
    task: Annotated[TaskOptions, TASK],
    groups: options.Groups = None,
    layers: Annotated[int, typer.Option(min=0, help=LAYERS)] = 20,
    json: options.AsJson = False,
) -> None:
    """Say what checkpoints are to each other: copies, fine-tunes, siblings, permuted, unrelated.

    Example: slipstream compare base/ chat/ merged.safetensors
    """
    from slipstream.comparison import compare_checkpoints
    from slipstream.symmetry.neuron_groups import NeuronGroups

    model, example = _model(task)
    with steps_bar("comparing", hidden=json) as bar:
        found = compare_checkpoints(
            checkpoints,
            model=model,
            example_input=example,
            groups=NeuronGroups.load(groups) if groups else None,
            progress=bar,
        )
    files.write_data(asdict(found))
    if json:
        write_json(asdict(found))
    elif len(found.pairs) == 1:
        _print_pair(found.pairs[0], layers)
    else:
        _print_all(found)
    if not json:
        for note in found.notes:
            typer.echo(f"note: {note}")


def _model(task: TaskOptions) -> tuple[Any, Any]:
    from slipstream.cli.loading import open_model

    if task.model is None:
        return None, None
    return open_model(task.model, replace(task, model=None))


def _print_pair(pair: "PairComparison", count: int) -> None:
    typer.echo(f"{pair.first}, {pair.second}: {pair.in_words} ({pair.certainty})")
    for line in pair.evidence:
        typer.echo(f"  {line}")
    if pair.differences and pair.relation != "different architectures":
        typer.echo(f"  the architectures differ: {'; '.join(pair.differences)}")
    typer.echo(f"advice: {pair.advice}")
    listed = sorted(pair.layers, key=lambda layer: -layer.relative_distance)[:count]
    if not listed or pair.relation == "identical":
        return
    write_table(
        ["tensor", "shape", "distance", "relative", "cosine", "changed", "rank", "deviations"],
        [
            [
                layer.name,
                "x".join(map(str, layer.shape)),
                f"{layer.distance:.3g}",
                f"{layer.relative_distance:.3g}",
                f"{layer.cosine:.4f}",
                "frozen" if layer.frozen else f"{layer.changed:.1%}",
                "-" if layer.rank is None else f"{layer.rank} of {layer.full_rank}",
                "-" if layer.deviations is None else f"{layer.deviations:.1f}",
            ]
            for layer in listed
        ],
    )
    if len(listed) < len(pair.layers):
        frozen = sum(layer.frozen for layer in pair.layers)
        typer.echo(f"{len(listed)} of {len(pair.layers)} tensors; {frozen} of all are frozen")


def _print_all(found: "CheckpointComparison") -> None:
    write_table(
        ["first", "second", "relation", "how sure", "relative", "cosine"],
        [
            [
                pair.first,
                pair.second,
                pair.in_words,
                pair.certainty,
                f"{pair.relative_distance:.3g}",
                f"{pair.cosine:.4f}",
            ]
            for pair in found.pairs
        ],
    )
    for merge in found.merges:
        typer.echo(merge)
    typer.echo(f"\n{found.tree}\n")
    advice: dict[str, list[str]] = {}
    for pair in found.pairs:
        advice.setdefault(pair.advice, []).append(f"{pair.first} and {pair.second}")
    for text, pairs in advice.items():
        more = f" and {len(pairs) - 3} more pairs" if len(pairs) > 3 else ""
        typer.echo(f"{'; '.join(pairs[:3])}{more}: {text}")
