"""Weights on disk: Hugging Face folders and single files, read and written tensor by tensor."""

import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.porting.problem import LazyWeights
from slipstream.storage.strict_json import checked_json, read_checked_json
from slipstream.storage.tensor_file import bytes_of, map_tensor
from slipstream.storage.tensor_form import TensorForm
from slipstream.storage.tensor_header import file_order, header_of, read_places
from slipstream.storage.writing import flush_folder, make_folder, write_whole
from slipstream.trajectory.checkpoint_files import model_files, read_pickled
from slipstream.weights import Weights

REPORT = "port.json"
_EIGHT_BITS = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)
# What GPTQ, AWQ, bitsandbytes and their like store beside a matrix.
_QUANTISED = re.compile(r"\.(qweight|qzeros|absmax|quant_map|quant_state\..*|SCB|weight_scale.*)$")


@dataclass(frozen=True)
class Stored:
    """The weights in a folder or a file."""

    path: Path
    weights: Weights  # each is mapped into memory while somebody holds it
    files: Mapping[str, tuple[str, ...]]  # file names to the tensors in them
    forms: Mapping[str, TensorForm]
    config: Mapping[str, Any]  # config.json, empty if there is none

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, with more than weights in it."""
        return self.path.is_dir()

    def named_like(self, like: "Stored") -> "Stored":
        """Return the same with the prefix that makes most names those of `like`: `bert.` or none.

        Hugging Face's models carry the body under a prefix when they have a head.
        """
        first = sorted({name.partition(".")[0] + "." for name in (*self.forms, *like.forms)})
        renamings = [{name: name for name in self.forms}]
        renamings += [{prefix + name: name for name in self.forms} for prefix in first]
        renamings += [{name.removeprefix(prefix): name for name in self.forms} for prefix in first]
        best = max(renamings, key=lambda names: sum(name in like.forms for name in names))
        return replace(
            self,
            weights=LazyWeights(best, lambda name: self.weights[best[name]]),
            forms={name: self.forms[own] for name, own in best.items()},
        )


def open_stored(path: str | Path, *, argument: str) -> Stored:
    """Open weights without reading them.

    Args:
        path: A Hugging Face folder, or a file: `.safetensors`, the `.safetensors.index.json` of
            shards, `.bin`, `.pt` or `.pth`.
        argument: What to call it in an error.

    Returns:
        The weights, lazily.

    Raises:
        FileNotFoundError: If there is nothing, or no weights.
        ValueError: If a shard is missing, a file is damaged, or the weights are quantised.
    """
    place = Path(path)
    files = _files_of(place, argument)
    try:
        stored = _open(place, files)
    except ValueError as error:
        told = str(error).replace(
            "pass key= with the one that holds the state dict",
            "save the state dict alone, torch.save(model.state_dict(), ...)",
        )
        raise ValueError(f"{argument} {place} cannot be read: {told}") from error
    _check_not_quantised(stored, argument)
    return stored


def _files_of(place: Path, argument: str) -> tuple[Path, ...]:
    if not place.exists():
        raise FileNotFoundError(f"{argument} {place} does not exist.")
    if place.name.endswith(".index.json"):
        return tuple(f for f in model_files(place.parent) if f.suffix != ".json")
    if place.is_file():
        return (place,)
    files = model_files(place) or tuple(sorted(place.glob("*.safetensors")))
    if not files:
        raise FileNotFoundError(
            f"{argument} {place} holds no weights: neither model.safetensors, nor shards with "
            "their index, nor another .safetensors file."
        )
    return files


def _open(place: Path, files: tuple[Path, ...]) -> Stored:
    config = place / "config.json"
    try:
        described = json.loads(config.read_bytes()) if config.is_file() else {}
    except ValueError as error:
        raise ValueError(f"its config.json is damaged: {error}") from error
    if any(file.suffix != ".safetensors" for file in files):
        parts = {file.name: read_pickled(file).weights for file in files}
        _check_once({name: tuple(part) for name, part in parts.items()})
        held = {name: value for part in parts.values() for name, value in part.items()}
        forms = {name: TensorForm.of(v) for name, v in held.items()}
        return Stored(place, held, {n: tuple(p) for n, p in parts.items()}, forms, described)
    places = {file: read_places(file) for file in files}
    _check_once({file.name: tuple(listed) for file, listed in places.items()})
    homes = {name: file for file, listed in places.items() for name in listed}
    return Stored(
        place,
        LazyWeights(homes, lambda name: map_tensor(homes[name], name)),
        {file.name: tuple(listed) for file, listed in places.items()},
        {name: p.form for listed in places.values() for name, p in listed.items()},
        described,
    )


def _check_once(files: Mapping[str, tuple[str, ...]]) -> None:
    """Raise if two files hold a tensor of the same name: which one counts is unknown."""
    homes: dict[str, str] = {}
    for file, names in files.items():
        for name in names:
            if name in homes:
                raise ValueError(f"{homes[name]} and {file} both hold the tensor {name!r}")
            homes[name] = file


def _check_not_quantised(stored: Stored, argument: str) -> None:
    """Raise if the weights are quantised."""
    odd = [
        name
        for name, form in stored.forms.items()
        if _QUANTISED.search(name) or (form.dtype in _EIGHT_BITS and len(form.shape) > 1)
    ]
    if odd or "quantization_config" in stored.config:
        what = f"{odd[0]!r} is {stored.forms[odd[0]]}" if odd else "its config.json says so"
        raise ValueError(
            f"{argument} {stored.path} is quantised ({what}): such values cannot be subtracted. "
            "Take the original weights; or load it with transformers, call model.dequantize(), "
            "and save_pretrained it to another folder."
        )


@contextmanager
def whole_output(out: Path, identity: Mapping[str, Any]) -> Generator["PartialOutput"]:
    """Write a folder or a file under another name, and give it its own when the block is done.

    What a killed or interrupted process has written stays, and the next call with the same
    identity continues it.

    Args:
        out: Its own name; nothing may be there.
        identity: What must be the same to continue, as plain data.

    Yields:
        What is being written. If the block raises, it is removed, unless that was Ctrl-C or an
        `OSError` and some of its files are whole.

    Raises:
        FileExistsError: If something is at `out` already.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already and is not overwritten: give another out.")
    make_folder(out.parent.absolute())
    partial = PartialOutput.begin(out, identity)
    try:
        yield partial
        partial.log.unlink(missing_ok=True)
        partial.path.rename(out)
        flush_folder(out.parent)
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt | OSError) or not partial.has_files:
            partial.remove()
        raise


@dataclass(frozen=True)
class PartialOutput:
    """A folder or a file that is being written, and which of its files are whole."""

    path: Path  # what is written, under a hidden name beside its own
    log: Path  # a line for each whole file, with what is known of its tensors
    done: Mapping[str, Mapping[str, Any]]  # those of an earlier call, by file name

    @classmethod
    def begin(cls, out: Path, identity: Mapping[str, Any]) -> "PartialOutput":
        """Continue what an earlier call began, if it is the same; else begin."""
        path = out.with_name(f".{out.name}.partial")
        log = out.with_name(f".{out.name}.partial.jsonl")
        first = checked_json({"identity": dict(identity)})
        lines = log.read_bytes().splitlines(keepends=True) if log.is_file() else []
        if not path.is_dir() or lines[:1] != [first]:
            partial = cls(path, log, {})
            partial.remove()
            write_whole(log, [first])
            return partial
        done: dict[str, Mapping[str, Any]] = {}
        for line in lines[1:]:
            with suppress(ValueError):  # the last one may be half
                noted = read_checked_json(line)
                file = path / noted["file"]
                if file.is_file() and file.stat().st_size == noted["bytes"]:
                    done[noted["file"]] = noted["parts"]
        return cls(path, log, done)

    @property
    def has_files(self) -> bool:
        """Whether some files are whole."""
        return self.log.is_file() and self.log.read_bytes().count(b"\n") > 1

    def note(self, file: str, parts: Mapping[str, Any]) -> None:
        """Note that a file is whole."""
        line = {"file": file, "bytes": (self.path / file).stat().st_size, "parts": dict(parts)}
        with self.log.open("ab") as log:
            log.write(checked_json(line))
            log.flush()
            os.fsync(log.fileno())

    def remove(self) -> None:
        """Remove all of it."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        self.path.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)


def write_like(
    base: Stored,
    out: PartialOutput,
    tensor: Callable[[str], Tensor],
    *,
    wrote: Callable[[str], None],
    parts: Callable[[Iterable[str]], Mapping[str, Any]],
) -> None:
    """Write tensors into the files that a base has, and copy what else is in its folder.

    Args:
        base: Gives files, names and dtypes.
        out: Where to: a new folder, or a new file if the base is one.
        tensor: Makes a tensor; only one is held at a time.
        wrote: Called after each tensor.
        parts: Returns what is known of some tensors that were made, as plain data.
    """
    if not base.is_folder:
        (names,) = base.files.values()
        write_tensors(out.path, {n: base.forms[n] for n in names}, tensor, wrote=wrote)
        return
    copy_others(base, out.path)
    pickled = any(not name.endswith(".safetensors") for name in base.files)
    files = {"model.safetensors": tuple(base.forms)} if pickled else base.files
    for file, names in files.items():
        if file not in out.done:
            write_tensors(out.path / file, {n: base.forms[n] for n in names}, tensor, wrote=wrote)
            out.note(file, parts(names))


def write_tensors(
    path: Path,
    forms: Mapping[str, TensorForm],
    tensor: Callable[[str], Tensor],
    *,
    wrote: Callable[[str], None] = lambda _: None,
) -> None:
    """Write a safetensors file without ever holding two of its tensors.

    Args:
        path: The file.
        forms: Shape and dtype of every tensor.
        tensor: Makes a tensor of that form.
        wrote: Called after each tensor.
    """
    with path.open("wb") as file:
        file.write(header_of(forms))
        for name in file_order(forms):
            file.write(bytes_of(tensor(name).detach().contiguous()))
            wrote(name)
        file.flush()
        os.fsync(file.fileno())


def stamps_of(stored: Stored) -> dict[str, list[int]]:
    """Return what changes when a file of the weights is replaced: size and time, by name."""
    folder = stored.path if stored.is_folder else stored.path.parent
    found = {name: (folder / name).stat() for name in stored.files}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in found.items()}


def copy_others(base: Stored, out: Path) -> None:
    """Copy what is not weights in a base's folder: configuration, tokenizer, index."""
    out.mkdir(exist_ok=True)
    for path in sorted(base.path.iterdir()):
        weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
        index_of_pickles = path.name.endswith(".bin.index.json")
        if path.is_file() and not weights and not index_of_pickles and path.name != REPORT:
            shutil.copy2(path, out / path.name)
