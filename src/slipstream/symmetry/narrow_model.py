"""A narrow model in place of one that has shapes but no values: its groups are the same.

Groups follow from how axes are tied, not from how long they are. So where a narrower model of the
same configuration has the same groups on the same tensors, its proof is theirs.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from slipstream.symmetry.neuron_groups import NeuronGroups

HEAD = 4  # features: two planes of rotary positions
UNITS = 6  # of an MLP
TOKENS = 64  # of a vocabulary
HEADS = ("head_dim", "d_kv")
SAME = ("word_embed_proj_dim", "embedding_size")
MLPS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
OLDER_MLPS = ("n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim")
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def narrow_model(model: nn.Module) -> nn.Module:
    """Build a model of the same class with as many layers and heads, but narrow.

    Args:
        model: Of transformers; on the meta device, for instance.

    Returns:
        An untrained model on the CPU, in evaluation mode.

    Raises:
        ValueError: If the model has no configuration from which to build another.
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        raise ValueError(
            f"{type(model).__name__} is on the meta device and has no configuration of "
            "transformers, so its groups cannot be proven: load its weights, or pass prove=False "
            "(--no-prove)."
        )
    narrow = copy.deepcopy(config)
    for part in _parts(narrow):
        _narrow_(part)
    kind: Any = type(model)
    built: nn.Module = kind(narrow)
    return built.eval()


def proven_alike(groups: NeuronGroups, narrow: NeuronGroups, proven: NeuronGroups) -> NeuronGroups:
    """Return the groups whose counterparts in the narrow model were proven.

    Args:
        groups: Of the model.
        narrow: Of the narrow model, before the proof.
        proven: Of the narrow model, after it.

    Returns:
        The groups that hold; the others are in `dropped`, as those of the narrow model.

    Raises:
        ValueError: If the narrow model has other groups, so that it proves nothing.
    """
    if _structure(groups) != _structure(narrow):
        raise ValueError(
            "The groups could not be proven at this size: a narrower model of the same "
            "configuration has other groups. Load the weights, or pass prove=False (--no-prove)."
        )
    names = {
        small.name: large.name for small, large in zip(narrow.groups, groups.groups, strict=True)
    }
    kept = groups.keep(names[group.name] for group in proven.groups)
    kept = kept.without_signs(names[group.name] for group in proven.groups if not group.signed)
    return replace(
        kept,
        dropped=groups.dropped + proven.dropped,
        caveats=tuple(dict.fromkeys(groups.caveats + proven.caveats)),
    )


def _parts(config: Any) -> Iterator[Any]:
    """The configuration, and those of the towers inside it."""
    yield config
    for name in getattr(config, "sub_configs", ()):
        if (part := getattr(config, name, None)) is not None:
            yield part


def _narrow_(config: Any) -> None:
    """Make the widths of a configuration small, in place, and leave the rest as it is."""
    vocabulary, hidden = _number(config, "vocab_size"), _hidden_size(config)
    if hidden is not None:
        # A width that is the same somewhere else, as of OPT's embeddings, stays the same.
        same = [n for n in SAME if _number(config, n) == _number(config, "hidden_size")]
        _set_(config, ("hidden_size", *same), hidden)
        _set_(config, HEADS, HEAD)
    _set_(config, MLPS + OLDER_MLPS, UNITS)
    if vocabulary is not None:
        config.vocab_size = min(vocabulary, TOKENS)
        for name in SPECIAL:
            _set_(config, (name,), min(_number(config, name) or 0, TOKENS - 1))


def _hidden_size(config: Any) -> int | None:
    """The width at which every head has `HEAD` features; None if the heads do not say it."""
    heads, inner = _number(config, "num_attention_heads"), _number(config, "num_heads")
    if heads is not None:
        return heads * HEAD
    expand = getattr(config, "expand", None)  # heads of Mamba2 lie on a wider axis
    if inner is None or expand is None or inner * HEAD % expand:
        return None
    return int(inner * HEAD // expand)


def _number(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None


def _set_(config: Any, names: Iterable[str], value: int) -> None:
    for name in names:
        if _number(config, name) is not None:
            setattr(config, name, value)


def _structure(groups: NeuronGroups) -> tuple[Any, ...]:
    """Groups and blocks without their sizes: groups by number, positions that stay as None."""
    number = {group.name: n for n, group in enumerate(groups.groups)}
    listed = [(group.signed, [number[p] for p in group.parents]) for group in groups.groups]
    blocks = [
        (b.tensor, b.axis, [number.get(str(f)) for f in b.factors], [number[s] for s in b.signs])
        for b in groups.blocks
    ]
    return listed, blocks
