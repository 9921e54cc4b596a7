"""The tensors that a model returns, however they are wrapped: all of them are its output."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

# What models of transformers return beside their logits on the way to them.
CACHES = ("past_key_values", "cache_params", "mems", "rope_deltas")  # for the next call
INTERMEDIATE = ("hidden_states", "hidden_state", "attentions", "model_output", *CACHES)
PLAIN = (bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, torch.Size)


class OutputError(ValueError):
    """A model returns something in which no tensors can be found."""


def output_tensors(result: Any) -> dict[str, Tensor]:
    """Return every tensor that a model returned, by its path.

    Of the classes of transformers, caches are left out, and hidden states beside logits: see
    `left_out`.

    Args:
        result: A tensor, or tensors in tuples, lists, dictionaries, dataclasses, and whatever is
            registered with `torch.utils._pytree`, to any depth.

    Returns:
        The tensors in the order in which they are found.

    Raises:
        OutputError: If an object hides its tensors, or there are none.

    Example:
        >>> list(output_tensors({"logits": torch.ones(1), "heads": [torch.ones(2)]}))
        ['logits', 'heads.0']
    """
    found = dict(_walk(result, ""))
    if not found:
        raise OutputError(
            f"The model returns no tensor ({type(result).__name__}), so nothing says what its "
            "neurons compute: return one from `forward`."
        )
    return found


def left_out(result: Any) -> list[str]:
    """Return the names of what `output_tensors` does not count as an output of `result`."""
    if not _is_of_transformers(result):
        return []
    logits = any("logits" in str(name) for name in result)
    return [name for name in result if str(name).endswith(INTERMEDIATE if logits else CACHES)]


def _walk(result: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(result, Tensor):
        yield path, result
        return
    for name, item in _items(result):
        yield from _walk(item, f"{path}.{name}" if path else str(name))


def _items(result: Any) -> list[tuple[Any, Any]]:
    """The parts of a container with their names; nothing of a plain value."""
    if result is None or isinstance(result, PLAIN):
        return []
    if isinstance(result, Mapping):
        unseen = left_out(result)
        return [(name, item) for name, item in result.items() if name not in unseen]
    if hasattr(result, "_asdict"):  # a named tuple
        return list(result._asdict().items())
    if isinstance(result, list | tuple | set | frozenset):
        return list(enumerate(result))
    if is_dataclass(result) and not isinstance(result, type):
        return [(field.name, getattr(result, field.name)) for field in fields(result)]
    if type(result) in _pytree.SUPPORTED_NODES:
        return list(enumerate(_pytree.SUPPORTED_NODES[type(result)].flatten_fn(result)[0]))
    raise OutputError(
        f"The model returns an object of class {type(result).__name__}, whose tensors nobody can "
        "find: return tensors, tuples, dictionaries or dataclasses of them from `forward`, or "
        "register the class with torch.utils._pytree.register_pytree_node."
    )


def _is_of_transformers(result: Any) -> bool:
    return isinstance(result, Mapping) and type(result).__module__.startswith("transformers.")
