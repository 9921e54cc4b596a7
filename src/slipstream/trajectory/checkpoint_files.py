"""The checkpoints that other tools write: where they are, what their step is, what they hold."""

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from slipstream.storage.packed_file import unpack_tensors
from slipstream.storage.packed_header import SUFFIX as PACKED
from slipstream.storage.reading import parsing
from slipstream.trajectory.distributed_checkpoint import METADATA as DISTRIBUTED
from slipstream.trajectory.distributed_checkpoint import read_distributed

_log = logging.getLogger(__name__)
_SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".safetensors", PACKED)
_HUGGING_FACE = (
    *("model.safetensors", "adapter_model.safetensors"),
    *("pytorch_model.bin", "adapter_model.bin"),
)
_USUAL_KEYS = ("state_dict", "model_state_dict", "model", "module")


@dataclass(frozen=True)
class Checkpoint:
    """A file, or all shards of one checkpoint."""

    name: str  # of the file or folder, which has the step
    files: tuple[Path, ...]

    @property
    def is_safetensors(self) -> bool:
        """Whether the files can be read where they are."""
        return all(path.suffix == ".safetensors" for path in self.files)


@dataclass(frozen=True)
class PickledCheckpoint:
    """What a pickled checkpoint holds."""

    weights: Mapping[str, Tensor]
    step: int | None = None
    epoch: float | None = None


def find_checkpoints(source: Path) -> list[Checkpoint]:
    """Return the checkpoints in a folder, in the order of their names; or a single file.

    Args:
        source: Holds `.pt`, `.pth`, `.ckpt` or `.safetensors` files, or folders of Hugging Face or
            of torch.distributed.checkpoint, or is one of these itself.

    Returns:
        At least one checkpoint.

    Raises:
        NotADirectoryError: If `source` is neither a folder nor a checkpoint.
        ValueError: If it holds none.
    """
    if source.is_file() and source.name.endswith(_SUFFIXES):
        return [Checkpoint(source.name, (source,))]
    if not source.is_dir():
        raise NotADirectoryError(f"source must be a folder of checkpoints, {source} is not one.")
    paths = sorted(source.iterdir())
    folders = ((path.name, model_files(path)) for path in paths if path.is_dir())
    if found := [Checkpoint(name, files) for name, files in folders if files]:
        return found
    whole = model_files(source)
    if whole and set(whole) >= {path for path in paths if path.suffix == ".safetensors"}:
        return [Checkpoint(source.resolve().name, whole)]
    if found := [Checkpoint(path.name, (path,)) for path in paths if path.name.endswith(_SUFFIXES)]:
        return found
    raise ValueError(
        f"source {source} holds no checkpoints: neither files ending in {', '.join(_SUFFIXES)} "
        f"nor folders with {', '.join((*_HUGGING_FACE, DISTRIBUTED))}."
    )


def trainer_state(checkpoint: Checkpoint) -> tuple[float | None, dict[str, float]]:
    """Return the epoch and the metrics that Hugging Face's trainer noted beside a checkpoint."""
    path = checkpoint.files[0].parent / "trainer_state.json"
    if not path.is_file():
        return None, {}
    with parsing(path, "state of a trainer"):
        state = json.loads(path.read_text(encoding="utf-8"))
        metrics: dict[str, float] = {}
        for entry in state.get("log_history", []):
            if entry.get("step") == state.get("global_step"):
                metrics |= {k: float(v) for k, v in entry.items() if isinstance(v, int | float)}
        epoch = state.get("epoch")
        epoch = None if epoch is None else float(epoch)
    return epoch, {k: v for k, v in metrics.items() if k not in ("step", "epoch")}


def read_pickled(path: Path, *, key: str | None = None) -> PickledCheckpoint:
    """Read a `.pt`, `.pth`, `.ckpt`, `.bin` or `.packed` file; nothing in it is executed.

    Args:
        path: What `torch.save` wrote, or the `.metadata` of torch.distributed.checkpoint.
        key: Where in a checkpoint the weights are; by default the usual places are tried.

    Returns:
        Weights, mapped into memory where the file allows it, and Lightning's step and epoch.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file holds code, is damaged, or no weights are found in it.
    """
    if not path.is_file():  # a pipe would wait for ever
        raise ValueError(f"{path} is not a regular file.")
    if path.suffix == PACKED:
        return PickledCheckpoint(unpack_tensors(path))
    if path.name == DISTRIBUTED:
        choose = partial(_weights_in, path=path.parent, key=key)
        return PickledCheckpoint(read_distributed(path.parent, choose))
    try:
        held = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (pickle.UnpicklingError, EOFError, KeyError) as error:  # KeyError: of a text file
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} is refused: besides tensors it holds {named[1]}, and loading that could "
                "run code. Where you trust the file, save its state dict alone and import that."
            ) from error
        raise ValueError(f"{path} is not a file of torch.save, or is damaged.") from error
    except OSError:
        raise
    except Exception as error:  # what comes from anywhere can go wrong anywhere
        said, *_ = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{path} cannot be read: {said}") from error
    weights = _weights_in(held, path, key)
    step, epoch = (held.get(name) for name in ("global_step", "epoch"))
    return PickledCheckpoint(
        weights,
        step if isinstance(step, int) else None,
        epoch if isinstance(epoch, int | float) else None,
    )


def _weights_in(held: object, path: Path, key: str | None) -> dict[str, Tensor]:
    """The state dict in what a file holds: the thing itself, or what lies under a usual key."""
    keys = list(held) if isinstance(held, Mapping) else []
    if key is not None and key not in keys:
        raise ValueError(f"{path} has no key {key!r}; it has {', '.join(map(str, keys))}.")
    for place in _USUAL_KEYS if key is None else (key,):
        if isinstance(held, Mapping) and isinstance(held.get(place), Mapping):
            held = held[place]
    if isinstance(held, Mapping):
        found = [(str(name), value) for name, value in held.items() if isinstance(value, Tensor)]
        tensors = {name: _plain(value, name, path) for name, value in found}
        if len(tensors) < len(found):
            raise ValueError(f"{path} is refused: two of its tensors have the same name.")
        others = [str(name) for name in held if str(name) not in tensors]
        if tensors and all(name.rpartition(".")[2] == "_extra_state" for name in others):
            if others:
                _log.warning("%s: %s left out, not tensors.", path, ", ".join(others))
            return tensors
    listed = ", ".join(map(str, keys)) or f"a {type(held).__name__}"
    raise ValueError(
        f"No weights were found in {path}. It holds {listed}: pass key= with the one that "
        "holds the state dict."
    )


def _plain(value: Tensor, name: str, path: Path) -> Tensor:
    """The values of a tensor in the usual layout."""
    if value.is_meta or value.is_quantized or value.is_nested:
        raise ValueError(
            f"{path} is refused: the tensor {name!r} is on the meta device, quantised or nested, "
            "so that its values cannot be read."
        )
    try:
        return (value if value.layout is torch.strided else value.to_dense()).resolve_conj()
    except RuntimeError as error:  # a sparse tensor may be of any size
        raise ValueError(f"{path} is refused: {name!r} is sparse, and too large.") from error


def model_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a checkpoint of Hugging Face or of torch.distributed.checkpoint.

    Args:
        folder: Where to look.

    Returns:
        The files in the order of their names, shards included; none if it is another folder.

    Raises:
        ValueError: If a shard is missing.
    """
    for name in (*_HUGGING_FACE, DISTRIBUTED):
        if (folder / name).is_file():
            return (folder / name,)
        index = folder / f"{name}.index.json"
        if index.is_file():
            with parsing(index, "index of shards"):
                shards = dict.fromkeys(json.loads(index.read_bytes())["weight_map"].values())
                if not shards or not all(isinstance(shard, str) for shard in shards):
                    raise ValueError("weight_map must name files")
            return tuple(_shard(folder, shard) for shard in sorted(shards))
    return tuple(sorted(folder.glob("shard-*-model-*-of-*.safetensors")))  # of torch's own writer


def _shard(folder: Path, name: str) -> Path:
    if Path(name).name != name or not (folder / name).is_file():
        raise ValueError(f"The shard {name!r} that the index in {folder} lists is missing.")
    return folder / name
