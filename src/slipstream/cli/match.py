"""`slipstream match`."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import OutputFiles, write_json
from slipstream.cli.plan_options import Adjusted
from slipstream.cli.task_options import TaskOptions

if TYPE_CHECKING:
    from torch import nn

    from slipstream.matching import BasisMatching, Matching

SIDE = "A .safetensors file, or a run folder: its last snapshot."
METHOD = (
    "What is matched: the weights, or what neurons compute on the training data; rotations: that, "
    "by another basis for the neurons that only linear layers and normalisations see."
)
LEARN = "Steps that train the rotations on the loss between the two networks."
START = "Where the search starts; frank-wolfe: at the rounded solution of the relaxed problem."
RESTARTS = "More searches, with the groups in random order; the best counts."
Method = Literal["weights", "activations", "rotations"]
PERMUTATION = "Write the permutation to this .safetensors file."
MODEL = "The model of both: a run folder, a Hugging Face folder, timm:NAME, mlp, conv_net, ..."
FILES = Adjusted(skip=("figure",), help={"out": "Write the permuted source to this file."})
TASK = Adjusted(
    skip=("loss", "metrics"), help={"model": MODEL}, shown={"model": "that of SOURCE or TARGET"}
)


def match(
    source: Annotated[Path, typer.Argument(help=f"What is permuted. {SIDE}")],
    target: Annotated[Path, typer.Argument(help=f"What stays. {SIDE}")],
    files: Annotated[OutputFiles, FILES],
    task: Annotated[TaskOptions, TASK],
    method: Annotated[Method, typer.Option(help=METHOD)] = "weights",
    batches: Annotated[
        int, typer.Option(min=1, help="Batches, for activations and rotations.")
    ] = 8,
    start: Annotated[Literal["identity", "frank-wolfe"], typer.Option(help=START)] = "identity",
    restarts: Annotated[int, typer.Option(min=0, help=RESTARTS)] = 0,
    learn_steps: Annotated[int, typer.Option(min=0, help=LEARN)] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the restarts, and of the learning.")] = 0,
    permutation: Annotated[Path | None, typer.Option(help=PERMUTATION)] = None,
    json: options.AsJson = False,
) -> None:
    """Permute the neurons of one network so that it aligns to another; its function stays the same.

    Example: slipstream match a.safetensors b.safetensors --model mlp -o aligned.safetensors
    """
    from slipstream.cli.loading import open_either
    from slipstream.matching import Matching

    files.require("where the permuted source goes")
    files.check(permutation, "--permutation")
    name = _name(source, target, task)
    how: dict[str, Any] = {"restarts": restarts, "seed": seed}
    _check(method, learn_steps, restarts, permutation)
    if method == "weights":
        how["start"] = None if start == "identity" else start
        model, found = _match_weights(name, source, target, task, how)
    else:
        how |= {"batches": batches, "start": start}
        how |= {"learn_steps": learn_steps} if method == "rotations" else {}
        model, found = _match_on_data(name, source, target, task, how)
    files.write_weights(found.source_to_target.apply(open_either(model, source)))
    if permutation is not None and isinstance(found, Matching):
        found.source_to_target.save(permutation)
    if json:
        write_json(summary(found))
    else:
        typer.echo("\n".join(f"{name}: {value}" for name, value in summary(found).items()))


def summary(found: "Matching | BasisMatching") -> dict[str, Any]:
    """Return what a matching found, for people and scripts."""
    from slipstream.matching import BasisMatching

    said: dict[str, Any] = {
        "objective": found.objective,
        "identity_objective": found.identity_objective,
        "gain": found.gain,
        "moved": found.source_to_target.moved(),
        "sweeps": found.sweeps,
        "converged": found.converged,
        "seconds": found.seconds,
    }
    if isinstance(found, BasisMatching):
        rotatable = found.source_to_target.rotatable
        said |= {
            "rotated_groups": len(rotatable.rotatable),
            "permuted_groups": len(rotatable.refused),
            "gains_folded_and_unfolded": len(rotatable.norms),
            "architecture": "unchanged",
        }
    return said


def _check(method: str, learn_steps: int, restarts: int, permutation: Path | None) -> None:
    if learn_steps and method != "rotations":
        raise ValueError("--learn-steps goes with --method rotations only.")
    if restarts and method == "rotations":
        raise ValueError("--restarts goes with --method weights and activations only.")
    if permutation is not None and method == "rotations":
        raise ValueError("--permutation has no place for rotations: --out holds what they give.")


def _name(source: Path, target: Path, task: TaskOptions) -> str:
    """What the model is made of: --model, or the run that is one of the sides."""
    if task.model is not None:
        return task.model
    run = next((path for path in (source, target) if (path / "run.json").is_file()), None)
    if run is None:
        raise ValueError("--model is missing: the two files do not say what they are weights of.")
    return str(run)


def _match_weights(
    name: str, source: Path, target: Path, task: TaskOptions, how: dict[str, Any]
) -> "tuple[nn.Module, Matching | BasisMatching]":
    from slipstream.cli.loading import open_either, open_model
    from slipstream.matching import match_weights
    from slipstream.symmetry.tracing import find_neuron_groups

    model, example_input = open_model(name, replace(task, model=None))
    groups = find_neuron_groups(model, example_input)
    sides = open_either(model, source), open_either(model, target)
    return model, match_weights(*sides, groups=groups, **how)


def _match_on_data(
    name: str, source: Path, target: Path, task: TaskOptions, how: dict[str, Any]
) -> "tuple[nn.Module, Matching | BasisMatching]":
    from slipstream.cli.loading import has_no_data, open_either, open_named
    from slipstream.matching import BasisPlan, match_activations, match_basis
    from slipstream.symmetry.rotation_proof import find_rotatable_groups
    from slipstream.symmetry.tracing import find_neuron_groups

    if how.pop("start") != "identity":
        raise ValueError("--start frank-wolfe goes with --method weights only.")
    if has_no_data(name):
        raise ValueError(
            f"{name} has no data, which --method activations and rotations need: give --model and "
            "--data as package.module:function, or use --method weights."
        )
    opened = open_named(name, replace(task, model=None))
    groups = find_neuron_groups(opened.model, opened.example())
    sides = open_either(opened.model, source), open_either(opened.model, target)
    batches = how.pop("batches")
    if "learn_steps" in how:
        how.pop("restarts")
        rotatable = find_rotatable_groups(opened.model, opened.example(), groups=groups)
        plan = BasisPlan(batches=batches, **how)
        return opened.model, match_basis(*sides, opened, rotatable=rotatable, plan=plan)
    opened = opened.on(list(islice(opened.data, batches)))
    return opened.model, match_activations(*sides, opened, groups=groups, **how)
