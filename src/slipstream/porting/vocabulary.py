"""Two vocabularies: the rows of an embedding belong to tokens, not to positions."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.porting.problem import LazyWeights
from slipstream.porting.stored import Stored
from slipstream.weights import Weights

Tokens = Mapping[str, int]
# Tensors whose first axis may list tokens: embeddings, and the head of a language model.
_NAMES = re.compile(r"embed|wte|lm_head|shared|predictions|output|decoder\.bias")


@dataclass(frozen=True)
class Vocabulary:
    """How many rows an embedding has, and which token each belongs to, if that is known."""

    size: int
    tokens: Tokens | None = None


def tokens_in(folder: Path) -> dict[str, int] | None:
    """Return the tokens of a tokenizer's files with their ids; None if there are none.

    Args:
        folder: Holds `tokenizer.json`, or `vocab.json` or `vocab.txt`.

    Returns:
        Token to id.

    Raises:
        ValueError: If a file is damaged.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            return _fast_tokens(json.loads((folder / "tokenizer.json").read_bytes()))
        if (folder / "vocab.json").is_file():
            return dict(json.loads((folder / "vocab.json").read_bytes()))
        if (folder / "vocab.txt").is_file():
            lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
            return {token: number for number, token in enumerate(lines)}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The tokenizer in {folder} cannot be read: {error!r}") from error
    return None


def _fast_tokens(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    listed = tokenizer["model"]["vocab"]
    if isinstance(listed, list):  # of unigram models: pairs of a token and its score
        tokens = {entry[0]: number for number, entry in enumerate(listed)}
    else:
        tokens = dict(listed)
    return tokens | {added["content"]: added["id"] for added in tokenizer.get("added_tokens", ())}


@dataclass(frozen=True)
class AlignedVocabularies:
    """A base and its fine-tune, with the rows of their embeddings where another base has them."""

    from_base: Weights
    fine_tuned: Weights
    warnings: tuple[str, ...] = ()
    retokenised: frozenset[str] = frozenset()  # tensors whose rows moved


def align_vocabularies(
    from_base: Stored, fine_tuned: Stored, to_base: Stored
) -> AlignedVocabularies:
    """Sort the embeddings of a base and its fine-tune by the tokens of another base.

    Rows are carried by token where all tokenizers are known, else by number. A token that not all
    three have keeps the other base's row, in both: it has no displacement.

    Args:
        from_base: The base of the fine-tune.
        fine_tuned: The fine-tune; without a tokenizer of its own it has that of its base.
        to_base: The other base.

    Returns:
        Weights whose embeddings have the shape of the other base's.

    Raises:
        ValueError: If the tokenizers have no token in common.
    """
    first, last, other = from_base.weights, fine_tuned.weights, to_base.weights
    names = _token_tensors(from_base, to_base) & fine_tuned.forms.keys()
    if not names:
        return AlignedVocabularies(first, last)
    some = min(names)
    tokens = [tokens_in(stored.path) for stored in (from_base, fine_tuned, to_base)]
    own = Vocabulary(first[some].shape[0], tokens[0])
    tuned = Vocabulary(last[some].shape[0], tokens[1] or tokens[0])
    new = Vocabulary(other[some].shape[0], tokens[2])
    if own.size == tuned.size == new.size and (None in tokens[::2] or own == tuned == new):
        return AlignedVocabularies(first, last)
    rows = _shared_rows(own, tuned, new)
    if not len(rows[0]):
        raise ValueError("The tokenizers of from_base and to_base have no token in common.")
    return AlignedVocabularies(
        _with_rows_of(first, other, names, rows[0], rows[2]),
        _with_rows_of(last, other, names, rows[1], rows[2]),
        (_told(own, new, len(rows[0])),),
        names,
    )


def _token_tensors(own: Stored, other: Stored) -> frozenset[str]:
    """The tensors of both whose rows are tokens, as many as the configurations say."""
    pairs = {
        name: (own.forms[name].shape, other.forms[name].shape)
        for name in own.forms
        if _NAMES.search(name) and name in other.forms
    }
    alike = {name: (a, b) for name, (a, b) in pairs.items() if a and a[1:] == b[1:]}
    sizes = own.config.get("vocab_size"), other.config.get("vocab_size")
    if None in sizes:  # then only what differs can be distinguished from other tensors
        different = [(a[0], b[0]) for a, b in alike.values() if a[0] != b[0] and len(a) > 1]
        sizes = different[0] if different else sizes
    return frozenset(name for name, (a, b) in alike.items() if (a[0], b[0]) == sizes)


def _shared_rows(*vocabularies: Vocabulary) -> list[Tensor]:
    """In each vocabulary, the rows of the tokens that all have."""
    known = [v.tokens for v in vocabularies if v.tokens is not None]
    if len(known) < len(vocabularies):
        rows = torch.arange(min(vocabulary.size for vocabulary in vocabularies))
        return [rows for _ in vocabularies]
    shared = [
        token
        for token in known[0]
        if all(t.get(token, v.size) < v.size for t, v in zip(known, vocabularies, strict=True))
    ]
    return [
        torch.tensor([tokens[token] for token in shared], dtype=torch.int64) for tokens in known
    ]


def _told(own: Vocabulary, new: Vocabulary, shared: int) -> str:
    if own.tokens is None or new.tokens is None:
        return (
            f"the vocabularies have {own.size} and {new.size} rows and not both have a tokenizer "
            f"beside them: the first {shared} rows are carried by number."
        )
    return (
        f"the tokenizers share {shared} of the {new.size} tokens of to_base; the rows of the "
        "others stay as to_base has them."
    )


def _with_rows_of(
    own: Weights, other: Weights, names: frozenset[str], own_rows: Tensor, other_rows: Tensor
) -> Weights:
    def make(name: str) -> Tensor:
        if name not in names:
            return own[name]
        moved = other[name].to(own[name].dtype, copy=True)
        moved[other_rows] = own[name][own_rows]
        return moved

    return LazyWeights(own, make)
