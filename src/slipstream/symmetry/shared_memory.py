"""Parameters that are views of the same memory: their axes list the same neurons."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from slipstream.symmetry import atoms
from slipstream.symmetry.atoms import Cause, Layout

SHARED = Cause("memory", "", "its memory is shared with a tensor of another structure")


def tie_shared(
    layouts: Mapping[str, Layout], weights: Mapping[str, Tensor], constants: Iterable[Tensor]
) -> None:
    """Tie, or pin, the axes of weights that lie over the same memory.

    Args:
        layouts: The axes of every weight.
        weights: The weights of the model.
        constants: Tensors of the model that are not weights; what lies over one of them stays.
    """
    named = [(name, value) for name, value in weights.items() if _has_memory(value)]
    for first, second in _overlapping([*named, *(("", value) for value in constants)]):
        if first[0] and second[0]:
            (name, value), (other, part) = first, second
            if not _tie_pair(layouts[name], value, layouts[other], part):
                _pin((layouts[name], layouts[other]))
        else:
            _pin(layouts[name] for name, _ in (first, second) if name)


Named = tuple[str, Tensor]


def _overlapping(tensors: Sequence[Named]) -> Iterator[tuple[Named, Named]]:
    """Pairs of tensors with a common element, the larger one first."""
    by_storage: dict[int, list[Named]] = {}
    for name, value in tensors:
        if _has_memory(value):
            by_storage.setdefault(value.untyped_storage().data_ptr(), []).append((name, value))
    for views in by_storage.values():
        views.sort(key=lambda item: (-item[1].numel(), not item[0]))
        for first, second in combinations(views, 2):
            if _overlap(first[1], second[1]):
                yield first, second


def _has_memory(value: Tensor) -> bool:
    return (
        type(value) in {Tensor, torch.nn.Parameter}
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
        and value.layout is torch.strided
        and not value.is_meta
        and value.numel() > 1
    )


def _overlap(first: Tensor, second: Tensor) -> bool:
    spans = [_span(value) for value in (first, second)]
    if spans[0][0] >= spans[1][1] or spans[1][0] >= spans[0][1]:
        return False
    if first.dtype != second.dtype:
        return True
    start = min(span[0] for span in spans)
    size = max(span[1] for span in spans) - start
    marks = torch.zeros(size // first.element_size(), dtype=torch.bool)
    views = [
        marks.as_strided(value.shape, value.stride(), (span[0] - start) // first.element_size())
        for value, span in zip((first, second), spans, strict=True)
    ]
    views[0].fill_(True)
    return bool(views[1].any())


def _span(value: Tensor) -> tuple[int, int]:
    """The first byte, and the one behind the last."""
    steps = sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
    return value.data_ptr(), value.data_ptr() + (steps + 1) * value.element_size()


def _tie_pair(layout: Layout, whole: Tensor, other: Layout, part: Tensor) -> bool:
    """Tie the axes of two views of the same memory; return whether that is possible."""
    if whole.dtype != part.dtype or min(whole.stride() + part.stride(), default=0) == 0:
        return False
    distance = (part.data_ptr() - whole.data_ptr()) // whole.element_size()
    pairs = _matched(whole, part, distance)
    if pairs is not None:
        for number, start, size, own in pairs:
            _, tail = atoms.cut(layout[number], start, SHARED)
            piece, _ = atoms.cut(tail, size, SHARED)
            if own is not None:
                atoms.tie(piece, other[own], SHARED)
        return True
    if distance or whole.numel() != part.numel() or not _are_contiguous(whole, part):
        return False
    viewed = atoms.regroup(layout, part.shape, SHARED)
    for axis, tied in zip(viewed, other, strict=True):
        atoms.tie(axis, tied, SHARED)
    return True


def _are_contiguous(*tensors: Tensor) -> bool:
    return all(tensor.is_contiguous() for tensor in tensors)


def _matched(
    whole: Tensor, part: Tensor, distance: int
) -> list[tuple[int, int, int, int | None]] | None:
    """For each axis of `whole`: where `part` starts on it, how long it is, as which of its axes."""
    steps = list(whole.stride())
    own = {step: axis for axis, step in enumerate(part.stride()) if part.shape[axis] > 1}
    found: list[tuple[int, int, int, int | None]] = []
    wide = [axis for axis, size in enumerate(whole.shape) if size > 1]
    for axis in sorted(wide, key=lambda axis: -steps[axis]):
        start, distance = divmod(distance, steps[axis])
        number = own.pop(steps[axis], None)
        size = 1 if number is None else part.shape[number]
        if not 0 <= start <= whole.shape[axis] - size:
            return None
        found.append((axis, start, size, number))
    return found if not own and distance == 0 else None


def _pin(layouts: Iterable[Layout]) -> None:
    for layout in layouts:
        for axis in layout:
            atoms.pin(axis, SHARED)
