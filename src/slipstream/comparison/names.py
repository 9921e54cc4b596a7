"""Which tensor of one checkpoint is which of another: prefixes, tied copies, what differs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from slipstream.comparison.opening import Opened
from slipstream.storage.tensor_form import TensorForm

# What torch.compile, FSDP and activation checkpointing write into the middle of names.
_INNER = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LISTED = 6  # differences in a report


@dataclass(frozen=True)
class Correspondence:
    """The tensors that two checkpoints have in common."""

    pairs: tuple[tuple[str, str], ...]  # (name in the first, name in the second), of one shape
    differences: tuple[str, ...]  # in words; none if the architectures are the same
    notes: tuple[str, ...]  # prefixes, renamed tensors, tied copies: how they were saved
    share: float  # of the larger one's parameters that both have

    @property
    def same(self) -> bool:
        """Whether the architectures are the same."""
        return not self.differences


def correspond(first: Opened, second: Opened) -> Correspondence:
    """Pair the tensors of two checkpoints by their names, whatever stands before these.

    Args:
        first: One of them.
        second: The other.

    Returns:
        The pairs, and how the two differ.
    """
    own, other = _renamed(first, second), {name: name for name in second.forms}
    notes = _prefix_notes(own, first, second)
    for named, side, across in ((own, first, other), (other, second, own)):
        for alias, name in _tied_copies(named, side, across).items():
            notes.append(f"{side.name} stores {alias} too, a copy of {name}")
            del named[alias]
    shared = [name for name in own if name in other]
    pairs = [(own[name], other[name]) for name in shared]
    alike = [(a, b) for a, b in pairs if first.forms[a].shape == second.forms[b].shape]
    whole = max(_parameters(first, own), _parameters(second, other), 1)
    common = sum(first.forms[a].bytes // first.forms[a].itemsize for a, _ in alike)
    return Correspondence(
        tuple(alike), _differences(own, other, first, second), tuple(notes), common / whole
    )


def _parameters(side: Opened, named: Mapping[str, str]) -> int:
    return sum(side.forms[n].bytes // side.forms[n].itemsize for n in named.values())


def _renamed(first: Opened, second: Opened) -> dict[str, str]:
    """Names of the second to those of the first."""
    plain = first.stored.named_like(second.stored).forms
    best = dict(zip(plain, first.forms, strict=True))
    found = sum(name in second.forms for name in best)
    for cut in (_unwrapped(tuple(first.forms)), _wrapped(tuple(first.forms), second)):
        if sum(name in second.forms for name in cut) > found:
            best, found = cut, sum(name in second.forms for name in cut)
    if not found and _shapes(first) == _shapes(second):  # other names in the same order
        return dict(zip(second.forms, first.forms, strict=True))
    return best


def _unwrapped(names: tuple[str, ...]) -> dict[str, str]:
    """Names without what wrappers add, and without what all begin with."""
    cut = {_INNER.sub("", name): name for name in names}
    while len({name.partition(".")[0] for name in cut}) == 1 and all("." in name for name in cut):
        cut = {name.partition(".")[2]: own for name, own in cut.items()}
    return cut if len(cut) == len(names) else {name: name for name in names}


def _wrapped(names: tuple[str, ...], like: Opened) -> dict[str, str]:
    """Names with all that stands before the other's."""
    bare = _unwrapped(tuple(like.forms))
    return {bare.get(name, name): own for name, own in _unwrapped(names).items()}


def _shapes(side: Opened) -> list[tuple[int, ...]]:
    return [form.shape for form in side.forms.values()]


def _prefix_notes(own: Mapping[str, str], first: Opened, second: Opened) -> list[str]:
    changed = [(new, old) for new, old in own.items() if new != old and new in second.forms]
    if not changed:
        return []
    new, old = changed[0]
    return [f"the tensors have other names: {old} in {first.name} is {new} in {second.name}"]


def _tied_copies(own: Mapping[str, str], side: Opened, other: Mapping[str, str]) -> dict[str, str]:
    """Names that only this side has, and that are equal to another of its tensors."""
    found: dict[str, str] = {}
    by_form: dict[TensorForm, list[str]] = {}
    for name, stored in own.items():
        by_form.setdefault(side.forms[stored], []).append(name)
    for name, stored in own.items():
        if name in other or len(side.forms[stored].shape) < 2:
            continue
        for twin in by_form[side.forms[stored]]:
            if twin in other and torch.equal(side.read(own[twin]), side.read(stored)):
                found[name] = twin
                break
    return found


def _differences(
    own: Mapping[str, str], other: Mapping[str, str], first: Opened, second: Opened
) -> tuple[str, ...]:
    found: list[str] = []
    for name in own:
        if name not in other:
            found += _missing(name, first.forms[own[name]], second)
        elif (a := first.forms[own[name]].shape) != (b := second.forms[other[name]].shape):
            found.append(f"{name} is {a} in {first.name} and {b} in {second.name}")
    for name in other:
        found += [] if name in own else _missing(name, second.forms[other[name]], first)
    more = [f"and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
    return (*found[:_LISTED], *more)


def _missing(name: str, form: TensorForm, where: Opened) -> list[str]:
    """Counters and positions come and go with the version of a library."""
    return [f"{name} is missing in {where.name}"] if form.continuous else []
