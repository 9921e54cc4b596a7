"""Making a run out of the checkpoints that other tools wrote."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from slipstream.storage.pieces import Piece, pieces_of, whole_form
from slipstream.storage.reading import parsing
from slipstream.storage.room import check_room
from slipstream.storage.strict_json import read_json
from slipstream.storage.tensor_form import TensorForm
from slipstream.storage.tensor_header import read_header
from slipstream.storage.writing import flush_folder, make_folder
from slipstream.trajectory.checkpoint_files import (
    Checkpoint,
    find_checkpoints,
    read_pickled,
    trainer_state,
)
from slipstream.trajectory.layout import Layout
from slipstream.trajectory.remote import RemoteFolder, address_of
from slipstream.trajectory.run_files import StoredSnapshot
from slipstream.trajectory.run_folder import RunWriter, create_run
from slipstream.trajectory.step_names import steps_in
from slipstream.trajectory.trajectory import Trajectory

WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and data parallelism
_log = logging.getLogger(__name__)
Value = TypeVar("Value")


def import_run(
    source: str | Path,
    destination: str | Path | None = None,
    *,
    steps: Mapping[str, int] | None = None,
    prefix: str = "",
    key: str | None = None,
    configuration: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Trajectory:
    """Make a run folder of a folder of checkpoints.

    Safetensors files stay where they are and the run points to them; pickled files are converted,
    and nothing in them is executed. Hugging Face `checkpoint-*` folders (sharded ones too), folders
    of torch.distributed.checkpoint, Lightning `.ckpt`, `.pt`, `.pth` and `.safetensors` files are
    understood.

    Args:
        source: The folder of checkpoints, or a single one; or an address of fsspec, whose files are
            fetched into a folder beside the run, its name ending in "-files".
        destination: The run folder to make; by default beside `source`, its name ending in "-run".
        steps: The step of each file or folder to import, by name. By default Lightning's
            global step, else the step in the names, see `steps_in`.
        prefix: Keep only tensors whose names start with it, and cut it off: "model." for Lightning.
        key: Where in pickled files the weights are; by default the usual keys are tried.
        configuration: What made the run, as plain data; kept in `run.json`.
        seed: The seed of the run; kept in `run.json`.

    Returns:
        The trajectory, in the order of the steps.

    Raises:
        FileExistsError: If `destination` is not empty.
        ValueError: If there are no checkpoints, no steps are in their names, two have the
            same step, they differ in a tensor, or a file holds code. Nothing is left behind.
    """
    if (address := address_of(source)) is not None:
        return _import_fetched(address, destination, steps, prefix, key, configuration, seed)
    source = Path(source).resolve()
    target = Path(destination or f"{source}-run").resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"destination {target} is not empty: give another path.")
    chosen = _numbered(find_checkpoints(source), source, steps, key)
    first = next(iter(chosen.values()))
    prefix = prefix or _wrappers(first, key)
    layout = _layout(first, prefix, key)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with create_run(
            partial,
            model=layout,
            configuration=configuration,
            seed=seed,
            provenance={"imported": {"source": str(source)}},
            overwrite=True,
        ) as writer:
            for step, checkpoint in chosen.items():
                _import(writer, step, checkpoint, prefix, key)
        if target.exists():
            target.rmdir()  # it is empty; Windows renames to no name that is there
        partial.rename(target)
        flush_folder(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Trajectory.open(target)


def _import_fetched(address: str, destination: str | Path | None, *given: Any) -> Trajectory:
    """Import a folder of another file system; if that fails, nothing of it is left here."""
    if destination is None:
        raise ValueError(f"destination must be given to import {address}: a local folder.")
    remote, target = RemoteFolder(address), Path(destination).absolute()
    files = target.with_name(f"{target.name}-files")
    if files.exists():
        raise FileExistsError(f"{files} exists already: remove it, or give another destination.")
    names = remote.names()
    check_room(files.parent, remote.size(names), f"The files of {address}")
    try:
        for name in names:
            make_folder((files / name).parent)
            shutil.move(remote.fetch(remote.path / name), files / name)
        steps, prefix, key, configuration, seed = given
        return import_run(
            files, target, steps=steps, prefix=prefix, key=key,
            configuration=configuration, seed=seed,
        )  # fmt: skip
    except BaseException:
        shutil.rmtree(files, ignore_errors=True)
        raise


def _numbered(
    found: list[Checkpoint], source: Path, steps: Mapping[str, int] | None, key: str | None
) -> dict[int, Checkpoint]:
    """The checkpoints by step, in growing order."""
    if steps is None:
        in_names = _steps_of(found, key)
        steps = {name: step for name, step in in_names.items() if step is not None}
        if not steps:
            if len(found) > 1:
                raise ValueError(
                    f"No number in the names {', '.join(in_names)} in {source} gives their "
                    f"steps: pass steps={{{found[0].name!r}: 0, ...}}."
                )
            steps = {found[0].name: 0}
        elif nameless := [name for name in in_names if name not in steps]:
            _log.warning("Left out, no number in the name: %s", ", ".join(nameless))
    by_name = {checkpoint.name: checkpoint for checkpoint in found}
    chosen: dict[int, Checkpoint] = {}
    for name, step in sorted(steps.items(), key=lambda item: item[1]):
        if name not in by_name:
            raise ValueError(f"steps names {name!r}; {source} holds {', '.join(by_name)}.")
        if step in chosen and _are_twins(chosen[step], by_name[name], key):
            _log.warning("Left out: %s is the same as %s.", name, chosen[step].name)
            continue
        if step in chosen:
            raise ValueError(
                f"{chosen[step].name} and {name} both count as step {step}: pass steps="
                f"{{{name!r}: ..., ...}} with those to import."
            )
        chosen[step] = by_name[name]
    return chosen


def _steps_of(found: list[Checkpoint], key: str | None) -> dict[str, int | None]:
    """The steps by Lightning's own count, else by the names of all together."""
    in_names: dict[str, int | None] = {}
    for checkpoint in found:
        lightning = checkpoint.files[0].suffix == ".ckpt"
        inside = read_pickled(checkpoint.files[0], key=key).step if lightning else None
        in_names[checkpoint.name] = inside
    unknown = [name for name, step in in_names.items() if step is None]
    try:
        return in_names | steps_in(unknown)
    except ValueError as error:
        repair = f"pass steps={{{found[0].name!r}: 1, ...}}"
        raise ValueError(f"{str(error).removesuffix('.')}: {repair}.") from error


def _are_twins(first: Checkpoint, second: Checkpoint, key: str | None) -> bool:
    """Whether two checkpoints hold the same weights, as `last.ckpt` and another often do."""
    if first.is_safetensors != second.is_safetensors:
        return False
    a, b = (_weights(checkpoint, key) for checkpoint in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _weights(checkpoint: Checkpoint, key: str | None) -> dict[str, Tensor]:
    if checkpoint.is_safetensors:
        return StoredSnapshot(0, checkpoint.files, _layout(checkpoint, "", key)).weights()
    return _read(checkpoint, "", key)[0]


def _layout(checkpoint: Checkpoint, prefix: str, key: str | None) -> Layout:
    if not checkpoint.is_safetensors:
        return Layout.of_weights(_read(checkpoint, prefix, key)[0], ties=True)
    kept = _without_prefix(_forms(checkpoint), prefix, checkpoint)
    return Layout(kept, _aliases(checkpoint, kept))


def _forms(checkpoint: Checkpoint) -> dict[str, TensorForm]:
    """The tensors in all shards together, put together where a file holds a piece only."""
    pieces: dict[str, list[Piece]] = {}
    for path in checkpoint.files:
        with parsing(path, "safetensors checkpoint"):
            for name, piece in pieces_of(path).items():
                pieces.setdefault(name, []).append(piece)
    try:
        return {name: whole_form(name, given) for name, given in pieces.items()}
    except ValueError as error:
        raise ValueError(f"{checkpoint.name} cannot be imported: {error}.") from error


def _aliases(checkpoint: Checkpoint, kept: Mapping[str, TensorForm]) -> dict[str, str]:
    """Further names of tied tensors, which `safetensors.torch.save_model` notes in the header."""
    found: dict[str, str] = {}
    for path in checkpoint.files:
        noted = read_json(read_header(path)).get("__metadata__", {})
        found |= {a: first for a, first in noted.items() if first in kept and a not in kept}
    return found


def _wrappers(checkpoint: Checkpoint, key: str | None) -> str:
    """The prefix that `torch.compile` and data parallelism put before all names."""
    names = list(_forms(checkpoint)) if checkpoint.is_safetensors else []
    names = names or list(_read(checkpoint, "", key)[0])
    prefix = ""
    while wrapper := next(
        (w for w in WRAPPERS if all(name.startswith(prefix + w) for name in names)), ""
    ):
        prefix += wrapper
    if prefix:
        _log.warning("The prefix %r of all names was cut off.", prefix)
    elif all(name.startswith("model.") for name in names):
        _log.warning("All names start with 'model.': prefix='model.' cuts that off.")
    return prefix


def _import(
    writer: RunWriter, step: int, checkpoint: Checkpoint, prefix: str, key: str | None
) -> None:
    epoch, metrics = trainer_state(checkpoint)
    if checkpoint.is_safetensors:
        writer.link(step=step, files=checkpoint.files, epoch=epoch, metrics=metrics, prefix=prefix)
        return
    weights, inside = _read(checkpoint, prefix, key)
    epoch = inside if epoch is None else epoch
    writer.append(step=step, weights=weights, epoch=epoch, metrics=metrics)


def _read(
    checkpoint: Checkpoint, prefix: str, key: str | None
) -> tuple[dict[str, Tensor], float | None]:
    """The weights of a pickled checkpoint, all shards together, and its epoch."""
    parts = [read_pickled(path, key=key) for path in checkpoint.files]
    weights: dict[str, Tensor] = {}
    for part in parts:
        if twice := [name for name in part.weights if name in weights]:
            raise ValueError(f"Two files of {checkpoint.name} hold the tensor {twice[0]!r}.")
        weights |= part.weights
    return _without_prefix(weights, prefix, checkpoint), parts[0].epoch


def _without_prefix(
    named: Mapping[str, Value], prefix: str, checkpoint: Checkpoint
) -> dict[str, Value]:
    kept = {n.removeprefix(prefix): value for n, value in named.items() if n.startswith(prefix)}
    if not kept:
        raise ValueError(
            f"No tensor in {checkpoint.name} starts with prefix {prefix!r}; "
            f"there are {', '.join(list(named)[:6])}, ..."
        )
    return kept
