"""Add a prepared displacement to the other base, tensor by tensor, and note what became of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from slipstream.transfer.porting.choosing import Choice
from slipstream.transfer.porting.plan import parts_of
from slipstream.transfer.porting.problem import Problem
from slipstream.transfer.porting.result import PortedLayer, cosine, root
from slipstream.transfer.porting.survey import Survey, TensorSurvey
from slipstream.weights import inner


@dataclass(frozen=True)
class Part:
    """One tensor of the result, with the inner products that tell what became of it."""

    name: str
    value: Tensor
    kept: float = 0.0  # <what was added, the displacement laid over B>
    matched: float = 0.0  # <A laid over B, B>


def apply(problem: Problem, choice: Choice) -> Iterator[Part]:
    """Yield every tensor of the other base, with its displacement if it has one.

    Only one tensor is held at a time.
    """
    carried = frozenset(problem.carried)
    for name in problem.to_base:
        if name not in carried:
            yield Part(name, problem.to_base[name])
            continue
        kept, matched = _kept(problem, choice, name), _matched(problem, choice, name)
        value = choice.prepared.at(name, problem.to_base[name], strength=choice.strength)
        if name in choice.statistics:
            value = choice.statistics[name].to(value.dtype)
        yield Part(name, value, kept, matched)


def layers(measured: Survey, parts: Mapping[str, tuple[float, float]]) -> tuple[PortedLayer, ...]:
    """Sum up what is known of tensors by the module that holds them.

    Args:
        measured: Of every tensor that was carried.
        parts: `kept` and `matched` of each.

    Returns:
        The layers in the order of the model.
    """
    members: dict[str, list[str]] = {}
    for name in measured.tensors:
        members.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return tuple(
        _layer(layer, [measured.tensors[n] for n in names], [parts[n] for n in names])
        for layer, names in members.items()
    )


def _layer(name: str, tensors: list[TensorSurvey], parts: list[tuple[float, float]]) -> PortedLayer:
    moved = sum(tensor.displacement for tensor in tensors)
    first, second = (sum(getattr(t, base) for t in tensors) for base in ("from_base", "to_base"))
    return PortedLayer(
        name,
        displacement=root(moved),
        relative=root(moved / first) if first else 0.0,
        kept=sum(kept for kept, _ in parts) / moved if moved else 0.0,
        alignment=cosine(sum(tensor.bases for tensor in tensors), first, second),
        matched=cosine(sum(matched for _, matched in parts), first, second),
    )


def _kept(problem: Problem, choice: Choice, name: str) -> float:
    prepared = choice.prepared
    added = prepared.displacement[name]
    if parts_of(prepared.method)[1] == "none":
        return choice.strength * inner({name: added}, {name: added})
    laid = prepared.carrier.apply_to(name, problem.displacement(name))
    return choice.strength * inner({name: added}, {name: laid})


def _matched(problem: Problem, choice: Choice, name: str) -> float:
    laid = choice.prepared.carrier.apply_to(name, problem.from_base[name])
    return inner({name: laid}, {name: problem.to_base[name]})
