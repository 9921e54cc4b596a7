"""From what a user names to weights that are read one tensor at a time, and where they are from."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from slipstream.porting.adapters import CONFIG, is_adapter, open_adapter
from slipstream.porting.problem import LazyWeights
from slipstream.porting.stored import Stored, open_stored
from slipstream.storage.tensor_form import TensorForm
from slipstream.trajectory import Snapshot, Trajectory
from slipstream.weights import Weights

Kind = Literal["file", "folder", "adapter", "run", "weights"]
# A bare number may be a seed.
_STEP = re.compile(r"(?:step|epoch|checkpoint|ckpt|iter|iteration)s?[-_=]*(\d+)", re.IGNORECASE)
Given = str | Path | Trajectory | Snapshot | Weights


@dataclass(frozen=True)
class Opened:
    """One of the checkpoints that are compared."""

    name: str
    kind: Kind
    stored: Stored  # its weights, forms and config.json
    run: Trajectory | None = None  # all snapshots, if it is of a run
    home: Path | None = None  # the run folder, or the folder that holds the file
    step: int | None = None  # of the snapshot, or what the name says
    base: str | None = None  # of an adapter: the checkpoint it was merged into
    ranks: Mapping[str, int] | None = None  # of an adapter: the rank of what it adds

    @property
    def forms(self) -> Mapping[str, TensorForm]:
        """Shapes and dtypes by name."""
        return self.stored.forms

    def read(self, name: str) -> Tensor:
        """Return a tensor; nobody else holds it."""
        return self.stored.weights[name].detach().cpu()


def open_given(given: Sequence[Given] | Mapping[str, Given]) -> tuple[Opened, ...]:
    """Open checkpoints, whatever they are; no tensor is read.

    Args:
        given: Paths of files, Hugging Face folders, adapters or run folders (`RUN@STEP` is one
            snapshot), or weights, snapshots and trajectories; a mapping gives them names.

    Returns:
        As many, each with a name of its own. Adapters are merged into their base.

    Raises:
        ValueError: If there is none, or an adapter's base is unknown.
    """
    if isinstance(given, str | Path):
        given = [given]
    pairs = list(given.items()) if isinstance(given, Mapping) else _named(given)
    if not pairs:
        raise ValueError("no checkpoint was given.")
    later = [n for n, (_, one) in enumerate(pairs) if _is_adapter(one)]
    opened = {n: _open(*pairs[n]) for n in range(len(pairs)) if n not in later}
    whole = tuple(opened.values())
    for n in later:
        opened[n] = _merged(*pairs[n], whole)
    return tuple(opened[n] for n in range(len(pairs)))


def _named(given: Sequence[Given]) -> list[tuple[str, Given]]:
    """Short names that tell all apart: the ends of the paths, as long as is needed."""
    paths = [str(one) if isinstance(one, str | Path) else "" for one in given]
    longest = max((len(Path(path).parts) for path in paths), default=0)
    for length in range(1, 1 + max(longest, 1)):
        names = [_short(path, length) or f"weights {n + 1}" for n, path in enumerate(paths)]
        if len(set(names)) == len(names):
            break
    else:
        names = [f"{_short(path, 1) or 'weights'} ({n + 1})" for n, path in enumerate(paths)]
    return list(zip(names, given, strict=True))


def _short(path: str, length: int) -> str:
    parts = Path(path).parts if Path(path).name else Path(path).resolve().parts
    return "/".join(parts[-length:]) if path else ""


def _is_adapter(one: Given) -> bool:
    return isinstance(one, str | Path) and is_adapter(one)


def _open(name: str, one: Given) -> Opened:
    if isinstance(one, Trajectory):
        return _of_run(name, one, None, None)
    if isinstance(one, Snapshot):
        return _of_run(name, Trajectory((one,), one.layout), None, one.step)
    if not isinstance(one, str | Path):
        forms = {key: TensorForm.of(value) for key, value in one.items()}
        return Opened(name, "weights", Stored(Path(name), one, {}, forms, {}))
    path, step = _at_step(Path(one))
    if (path / "run.json").is_file():
        return _of_run(name, Trajectory.open(path), path, step)
    if step is not None:
        raise ValueError(f"{name} names step {step}, but {path} is not a run folder: leave out @.")
    stored = open_stored(path, argument="checkpoint")
    kind: Kind = "folder" if stored.is_folder else "file"
    home = path.resolve().parent
    return Opened(name, kind, stored, home=home, step=_step_in(path.name))


def _at_step(path: Path) -> tuple[Path, int | None]:
    """A path, and the step behind its @."""
    before, at, step = str(path).rpartition("@")
    if path.exists() or not at or not step.isdigit():
        return path, None
    return Path(before), int(step)


def _step_in(name: str) -> int | None:
    found = _STEP.search(name)
    return int(found[1]) if found else None


def _of_run(name: str, run: Trajectory, path: Path | None, step: int | None) -> Opened:
    if not len(run):
        raise ValueError(f"{name} holds no snapshot.")
    try:
        snapshot = run[-1] if step is None else run.at(step)
    except KeyError as error:
        raise ValueError(f"{name}: {error.args[0]}") from error
    forms = snapshot.layout.tensors
    weights = LazyWeights(forms, snapshot.__getitem__)
    stored = Stored(path or Path(name), weights, {}, forms, {})
    home = None if path is None else path.resolve()
    return Opened(name, "run", stored, run, home, snapshot.step)


def _merged(name: str, one: Given, others: tuple[Opened, ...]) -> Opened:
    """An adapter on its base: that which its config names, or the one it is compared with."""
    folder = Path(str(one))
    try:
        described = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise ValueError(f"{CONFIG} of {folder} is damaged: {error}.") from error
    told = str(described.get("base_model_name_or_path") or "")
    base = _base_of(folder, told, others)
    try:
        adapter = open_adapter(folder, from_base=base.stored, to_base=base.stored)
    except (ValueError, FileNotFoundError) as error:
        text = str(error).replace("from_base", "its base").replace("fine_tuned ", "checkpoint ")
        raise type(error)(text) from error
    merged = adapter.on(base.stored)
    known = {other.name for other in others}
    return Opened(
        name,
        "adapter",
        # In the base's own types, as merging it there would leave them.
        replace(merged, weights=LazyWeights(merged.forms, lambda n: _like(merged, n))),
        base=base.name if base.name in known else told,
        ranks=adapter.ranks,
    )


def _like(stored: Stored, name: str) -> Tensor:
    return stored.weights[name].to(stored.forms[name].dtype)


def _base_of(folder: Path, told: str, others: tuple[Opened, ...]) -> Opened:
    named = [o for o in others if told and told in (str(o.stored.path), o.name, o.stored.path.name)]
    if named:
        return named[0]
    for path in (Path(told), folder / told) if told else ():
        same = [o for o in others if path.exists() and o.stored.path.resolve() == path.resolve()]
        if same:
            return same[0]
        if path.is_dir() and any(path.iterdir()) and not (path / CONFIG).is_file():
            return _open(told, path)
    if len(others) == 1:
        return others[0]
    raise ValueError(
        f"{folder} is an adapter of {told or 'an unnamed base'}, which is not here: give the "
        "base's folder among the checkpoints, or write its path into "
        f"base_model_name_or_path of {CONFIG}."
    )


def snapshot_like(run: Trajectory, other: Opened, names: Mapping[str, str]) -> int | None:
    """Return the step of the first snapshot of a run that equals other weights, if any does.

    Args:
        run: The run.
        other: What is looked for.
        names: Tensors of the run to those of the other.

    Returns:
        The step; None if no snapshot is the same.
    """
    left = list(run.snapshots)
    for own in sorted(names, key=lambda name: run.layout.tensors[name].bytes):
        if not left:
            return None
        value = other.read(names[own])
        left = [s for s in left if torch.equal(s[own].to(value), value)]
    return left[0].step if left else None
