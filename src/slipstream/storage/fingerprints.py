"""Fingerprints: short texts that differ where tensors differ."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_in(nested: Any) -> Iterator[Tensor]:
    """Yield the tensors in tuples, lists and mappings, in their own order."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping | tuple | list):
        for value in nested.values() if isinstance(nested, Mapping) else nested:
            yield from tensors_in(value)


def batch_digest(batch: Any) -> bytes:
    """Return a digest of the tensors in a batch: of their types, shapes and values.

    Of an object of another kind, such as a graph, the tensors among its attributes count.

    Example:
        >>> from types import SimpleNamespace
        >>> one, other = (SimpleNamespace(edges=torch.tensor([n])) for n in (1, 2))
        >>> batch_digest([one]) == batch_digest([other])
        False
    """
    digest = hashlib.blake2b()
    for tensor in tensors_in(_with_attributes(batch)):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()


def _with_attributes(nested: Any) -> Any:
    if isinstance(nested, Mapping):
        return {name: _with_attributes(value) for name, value in nested.items()}
    if isinstance(nested, tuple | list):
        return [_with_attributes(value) for value in nested]
    return vars(nested) if hasattr(nested, "__dict__") and not torch.is_tensor(nested) else nested


def fingerprint(values: Any) -> str:
    """Return a fingerprint of the tensors in weights, batches, or lists of them.

    Example:
        >>> fingerprint([torch.zeros(2)]) == fingerprint([torch.ones(2)])
        False
    """
    return hashlib.blake2b(batch_digest(values), digest_size=16).hexdigest()


def fingerprint_of_batches(batches: Iterable[Any]) -> str:
    """Return a fingerprint of batches that are seen one after the other."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        digest.update(batch_digest(batch))
    return digest.hexdigest()
