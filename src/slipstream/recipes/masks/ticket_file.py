"""A ticket as a seed and a bit for each weight.

What the seed does not give is written: one bit for each masked weight; of those that stay the round
their value was drawn in, if there were rounds; tensors that are neither masked nor constant.
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from slipstream.recipes.masks.random_weights import values_of_round
from slipstream.recipes.masks.ticket import Ticket
from slipstream.storage.reading import parsing
from slipstream.storage.tensor_file import bytes_of
from slipstream.storage.tensor_form import dtype_name
from slipstream.storage.writing import write_whole

FORMAT = 1
MOST = 1 << 28  # values of a tensor
_MASK, _BIRTHS, _OTHER = "mask", "births", "other."
TICKET, SCORES = "ticket.safetensors", "scores.safetensors"  # in a run folder


@dataclass(frozen=True)
class TicketSize:
    """What a ticket takes, in bytes."""

    mask: int  # a bit for each masked weight
    births: int  # the rounds of the values, packed
    others: int  # tensors that the seed does not give
    file: int  # all of it, with names and shapes
    weights: int  # the same network as ordinary weights


def save_ticket(ticket: Ticket, path: str | Path) -> TicketSize:
    """Write a ticket as a seed and a bit mask; `load_ticket` gives the same weights again.

    Args:
        ticket: What to write; scores are not.
        path: The file, safetensors.

    Returns:
        What it takes.

    Raises:
        ValueError: If the ticket was permuted, so that no seed gives its weights.
    """
    content, size = _packed(ticket)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), [content])
    return size


def ticket_size(ticket: Ticket) -> TicketSize:
    """Return what `save_ticket` would write."""
    return _packed(ticket)[1]


def load_ticket(path: str | Path) -> Ticket:
    """Read a ticket and draw its weights again.

    Args:
        path: What `save_ticket` wrote, or the run folder of `train_iterand`, which has the scores
            too.

    Returns:
        The ticket, on the CPU. Pruned values are those of the start.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is damaged or something else, or this version of PyTorch draws
            other values from the seed.
    """
    given = Path(path)
    file = given / TICKET if given.is_dir() else given
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: there is no finished ticket.")
    with parsing(file, "ticket"):
        ticket, digest = _unpacked(file.read_bytes())
        same = _digest(ticket) == digest
    if not same:
        raise ValueError(
            f"{file} was written where the seed gave other values than here, with PyTorch "
            f"{torch.__version__}, or it is damaged. Load it with the version it was written with."
        )
    if given.is_dir() and (given / SCORES).is_file():
        with parsing(given / SCORES, "scores"):
            scores = safetensors.torch.load_file(given / SCORES)
            ticket = replace(ticket, scores={name: scores[name] for name in ticket.masks})
    return ticket


def _packed(ticket: Ticket) -> tuple[bytes, TicketSize]:
    if ticket.seed is None:
        raise ValueError(
            "A permuted ticket has no seed that gives its weights: save its weights instead, or "
            "the ticket before it was permuted, and the permutation."
        )
    bits = np.concatenate([mask.cpu().flatten().numpy() for mask in ticket.masks.values()])
    mask = np.packbits(bits)
    rounds = np.concatenate([b.cpu().flatten().numpy() for b in ticket.births.values()])[bits]
    packed = zlib.compress(_narrow(rounds).tobytes(), 9) if rounds.any() else b""
    constants = {n: v for n, v in ticket.others.items() if _constant(v)}
    kept = {n: v for n, v in ticket.others.items() if n not in constants}
    tensors = {_MASK: torch.from_numpy(mask)}
    if packed:
        tensors[_BIRTHS] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    tensors |= {_OTHER + name: value.cpu().contiguous() for name, value in kept.items()}
    described = {
        "format": FORMAT,
        "seed": ticket.seed,
        "initial": ticket.initial,
        "names": ticket.names,
        "masked": {n: _form(v) for n, v in ticket.random.items()},
        "constants": {n: [*_form(v), v.flatten()[0].item()] for n, v in constants.items()},
        "births": str(_narrow(rounds).dtype),
        "digest": _digest(ticket),
    }
    content = safetensors.torch.save(tensors, {"ticket": json.dumps(described)})
    weights = sum(value.nbytes for value in ticket.weights.values())
    others = sum(value.nbytes for value in kept.values())
    return content, TicketSize(mask.nbytes, len(packed), others, len(content), weights)


def _unpacked(content: bytes) -> tuple[Ticket, str]:
    """The ticket, and the digest that its weights should have."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    described = json.loads(header["__metadata__"]["ticket"])
    if described["format"] != FORMAT:
        raise ValueError(f"its format is {described['format']}, this version reads {FORMAT}")
    tensors = safetensors.torch.load(content)
    shapes = {name: _checked(shape) for name, (shape, _) in described["masked"].items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if len(tensors[_MASK]) != -(-sum(sizes.values()) // 8):  # before memory is taken
        raise ValueError("the mask has not one bit for each weight")
    bits = np.unpackbits(tensors[_MASK].numpy(), count=sum(sizes.values())).astype(bool)
    births = np.zeros(len(bits), dtype=np.int32)
    if _BIRTHS in tensors:
        kind = np.dtype(described["births"])
        packed = tensors[_BIRTHS].numpy().tobytes()
        rounds = zlib.decompressobj().decompress(packed, int(bits.sum()) * kind.itemsize + 1)
        births[bits] = np.frombuffer(rounds, dtype=kind)
    ends = np.cumsum(list(sizes.values()))[:-1]
    masks, born = (
        {n: torch.from_numpy(p.copy()).view(shapes[n]) for n, p in zip(sizes, parts, strict=True)}
        for parts in (np.split(bits, ends), np.split(births, ends))
    )
    random = {
        name: _drawn(described, number, born[name]).to(getattr(torch, described["masked"][name][1]))
        for number, name in enumerate(shapes)
    }
    others = {
        name: torch.full(_checked(shape), value, dtype=getattr(torch, dtype))
        for name, (shape, dtype, value) in described["constants"].items()
    } | {n.removeprefix(_OTHER): v for n, v in tensors.items() if n.startswith(_OTHER)}
    ticket = Ticket(
        described["seed"], described["initial"], tuple(described["names"]), random, masks, born,
        others,
    )  # fmt: skip
    return ticket, described["digest"]


def _checked(shape: list[Any]) -> tuple[int, ...]:
    """A shape that takes no more memory than any ticket needs: it may come from anywhere."""
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) > MOST:
        raise ValueError(f"it has the shape {str(shape)[:80]}")
    return tuple(shape)


def _drawn(described: Mapping[str, Any], number: int, births: Tensor) -> Tensor:
    """Each value from the round that it was drawn in."""
    how = {"initial": described["initial"], "seed": described["seed"], "tensor": number}
    shape = tuple(births.shape)
    values = values_of_round(shape, number=0, **how)
    for drawn_in in np.unique(births.numpy()).tolist():
        if drawn_in:
            fresh = values_of_round(shape, number=drawn_in, **how)
            values = torch.where(births == drawn_in, fresh, values)
    return values


def _digest(ticket: Ticket) -> str:
    """A fingerprint of the weights that stay."""
    digest = blake2b(digest_size=8)
    for name in ticket.masks:
        digest.update(bytes_of(ticket.weights[name].cpu().contiguous()))
    return digest.hexdigest()


def _narrow(rounds: np.ndarray) -> np.ndarray:
    return rounds.astype(np.min_scalar_type(int(rounds.max(initial=0))))


def _constant(value: Tensor) -> bool:
    return bool(value.numel()) and bool((value == value.flatten()[0]).all())


def _form(value: Tensor) -> list[Any]:
    return [list(value.shape), dtype_name(value.dtype)]
