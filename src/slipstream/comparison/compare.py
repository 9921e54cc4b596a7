"""What checkpoints are to each other: every pair of them, from the weights alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import nn

from slipstream.comparison.layers import compare_tensors
from slipstream.comparison.lineage import UNRELATED, placed, tree_of
from slipstream.comparison.merging import Merge, find_merges
from slipstream.comparison.names import correspond
from slipstream.comparison.opening import Given, Opened, open_given
from slipstream.comparison.pair import Pair, PairComparison, Verdict
from slipstream.comparison.permuted import permuted
from slipstream.comparison.verdict import judge
from slipstream.pretrained import example_input_for, model_from_config
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.tracing import find_neuron_groups

Progress = Callable[[int, int, str], object]  # tensors compared, how many there are, which pair
_MOST_MERGED = 64  # checkpoints of one family, among which averages are looked for
_NOT_MERGED = ("identical", "re-saved", "permuted", "different architectures", "independent")


@dataclass(frozen=True)
class CheckpointComparison:
    """Result of `compare_checkpoints`."""

    names: tuple[str, ...]  # short ones, in the order that the checkpoints were given
    pairs: tuple[PairComparison, ...]  # every two of them
    merges: tuple[str, ...]  # which is an average of which others, with the weights
    tree: str  # the families, drawn; of two, a line or two
    notes: tuple[str, ...] = ()  # what could not be looked at, and why

    def pair(self, first: str, second: str) -> PairComparison:
        """Return what two of them are to each other.

        Args:
            first: A name.
            second: Another one.

        Returns:
            The pair, in whichever order it was compared.

        Raises:
            KeyError: If there is no such pair.
        """
        for pair in self.pairs:
            if {pair.first, pair.second} == {first, second}:
                return pair
        raise KeyError(f"There is no pair of {first!r} and {second!r} among {self.names}.")

    def __str__(self) -> str:
        lines = []
        for pair in self.pairs:
            lines.append(f"{pair.first}, {pair.second}: {pair.in_words} ({pair.certainty})")
        return "\n".join(lines)


def compare_checkpoints(
    checkpoints: Sequence[Given] | Mapping[str, Given],
    *,
    model: nn.Module | None = None,
    example_input: object = None,
    groups: NeuronGroups | None = None,
    progress: Progress | None = None,
) -> CheckpointComparison:
    """Say what checkpoints are to each other, from their weights alone.

    For every pair: the same architecture, identical, saved in another way, snapshots of one run, a
    fine-tune, siblings, the same function with permuted neurons, quantised, pruned, an average,
    independent; and per tensor how they differ. Nothing is run; one tensor of each is held at a
    time. Thresholds are those of chance: what unrelated networks have in common is known exactly.

    Args:
        checkpoints: Two or more: files, Hugging Face folders, PEFT adapters, run folders
            (`RUN@STEP` is one snapshot), snapshots, or weights; a mapping names them.
        model: Their model, which makes the proof of a permutation possible.
        example_input: What it is traced with; for models of transformers, one is made up.
        groups: Its neuron groups, instead of the model.
        progress: Called after each tensor, with how many are done and the names of the pair.

    Returns:
        Every pair, with how sure it is and why, and all of them as a tree.

    Raises:
        FileNotFoundError: If one does not exist.
        ValueError: If there are fewer than two, or one is damaged, lacks a shard, is quantised, or
            holds a NaN.

    Example:
        >>> import torch
        >>> weights = {"first": torch.randn(16, 16), "second": torch.randn(16, 16)}
        >>> halved = {name: value.half() for name, value in weights.items()}
        >>> found = compare_checkpoints({"a": weights, "b": halved}).pairs[0]
        >>> found.relation, found.parent, found.certainty
        ('re-saved', 'a', 'proven')
    """
    opened = open_given(checkpoints)
    if len(opened) < 2:
        raise ValueError(f"checkpoints must be at least two, got {len(opened)}.")
    pairs = list(combinations(opened, 2))
    told = progress or (lambda *_: None)
    measured = []
    for number, (first, second) in enumerate(pairs):
        measured.append(_measured(first, second, told, number, len(pairs)))
    finder = _Groups(opened, model, example_input, groups)
    verdicts = [judge(pair, lambda one: permuted(one, finder.find)) for pair in measured]
    found = _families(opened, measured, verdicts)
    merges = [merge for family in found for merge in _merges(family, measured)]
    compared = [
        pair.compared(_of_merge(pair, verdict, merges))
        for pair, verdict in zip(measured, verdicts, strict=True)
    ]
    settled = placed(compared)
    names = tuple(side.name for side in opened)
    return CheckpointComparison(
        names,
        tuple(settled),
        tuple(map(str, merges)),
        tree_of(names, settled),
        () if finder.note is None else (finder.note,),
    )


def _measured(first: Opened, second: Opened, told: Progress, number: int, pairs: int) -> Pair:
    names = correspond(first, second)
    facts = []
    for own, other in names.pairs:
        sides = first.read(own), second.read(other)
        facts.append(compare_tensors(*sides, other, of=(first.name, second.name)))
        done = number * len(names.pairs) + len(facts)
        told(done, pairs * len(names.pairs), f"{first.name}, {second.name}")
    return Pair(first, second, names, tuple(facts))


@dataclass
class _Groups:
    """Neuron groups, found when they are first asked for."""

    opened: Sequence[Opened]
    model: nn.Module | None
    example_input: object
    groups: NeuronGroups | None
    looked: bool = False
    note: str | None = None

    def find(self) -> NeuronGroups | None:
        """Return the groups, None if no model is known or it cannot be traced."""
        if self.groups is None and not self.looked:
            self.looked = True
            try:
                self.groups = self._found()
            except (ValueError, ModuleNotFoundError, RuntimeError, TypeError) as error:
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                self.note = f"no neuron groups were found, so no permutation is proven: {first}"
        return self.groups

    def _found(self) -> NeuronGroups | None:
        model = self.model
        if model is None:
            named = [s.stored.path for s in self.opened if "model_type" in s.stored.config]
            if not named:
                return None
            model = model_from_config(named[0])
        given = self.example_input
        return find_neuron_groups(model, example_input_for(model) if given is None else given)


def _families(
    opened: Sequence[Opened], measured: Sequence[Pair], verdicts: Sequence[Verdict]
) -> list[list[Opened]]:
    """Checkpoints that are related and of one architecture, three or more of them."""
    told = list(zip(measured, verdicts, strict=True))
    copies = {p.second.name for p, verdict in told if verdict.relation in ("identical", "re-saved")}
    near = [
        {pair.first.name, pair.second.name}
        for pair, verdict in told
        if verdict.relation not in (*UNRELATED, *_NOT_MERGED)
        and pair.names.same
        and not copies & {pair.first.name, pair.second.name}
    ]
    families: list[set[str]] = []
    for both in near:
        joined = [family for family in families if family & both]
        families = [f for f in families if f not in joined] + [both.union(*joined)]
    by_name = {side.name: side for side in opened}
    return [
        [by_name[name] for name in by_name if name in family][:_MOST_MERGED]
        for family in families
        if len(family) > 2
    ]


def _merges(family: Sequence[Opened], measured: Sequence[Pair]) -> list[Merge]:
    """Averages among a family; the names of the tensors come from the pairs with its first."""
    first = family[0]
    tensors: dict[str, list[str]] = {}
    for side in family[1:]:
        pair = next(p for p in measured if {p.first.name, p.second.name} == {first.name, side.name})
        own = {
            (a if pair.first is first else b): (b if pair.first is first else a)
            for (a, b), fact in zip(pair.names.pairs, pair.facts, strict=True)
            if fact.learned
        }
        for name, other in own.items():
            tensors.setdefault(name, [name]).append(other)
    whole = {name: names for name, names in tensors.items() if len(names) == len(family)}
    return find_merges(family, whole)


def _of_merge(pair: Pair, verdict: Verdict, merges: Sequence[Merge]) -> Verdict:
    if verdict.certainty == "proven":
        return verdict
    for side, other in (pair.sides, pair.sides[::-1]):
        for merge in merges:
            if merge.made == side.name and other.name in merge.weights:
                return Verdict("merged", "proven", other.name, (str(merge),))
    return verdict
