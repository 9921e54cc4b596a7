"""A fine-tune and its base, rotated as whole networks into the basis of another base."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from slipstream.evaluation import Task
from slipstream.matching import match_basis
from slipstream.porting.problem import Problem, wide_copy
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.rotation import RotatableGroups
from slipstream.symmetry.rotation_proof import find_rotatable_groups
from slipstream.weights import Weights


@dataclass(frozen=True)
class RotatedEnds:
    """Aligns no tensor by itself: gains are folded, so that both ends are rotated as a whole."""

    from_base: Mapping[str, Tensor]
    displacements: Mapping[str, Tensor]  # of the fine-tune from it, both with to_base's gains
    rotatable: RotatableGroups

    @classmethod
    def find(
        cls, problem: Problem, source: Weights, own: Weights, task: Task, *, groups: NeuronGroups
    ) -> "RotatedEnds":
        """Rotate the base and the fine-tune by what aligns the base to the other one.

        Args:
            problem: The fine-tune, of which tensors that are carried are taken.
            source: All tensors of its base.
            own: All tensors of the other base.
            task: The model, and the batches on which the bases are compared.
            groups: What may be permuted.

        Returns:
            Both ends in the basis of the other base.
        """
        rotatable = find_rotatable_groups(task.model, task.example(), groups=groups)
        rotation = match_basis(source, own, task, rotatable=rotatable).source_to_target
        start = rotation.apply({n: wide_copy(v) for n, v in source.items()})
        tuned = {n: problem.fine_tuned[n] if n in problem.carried else source[n] for n in source}
        end = rotation.apply({n: wide_copy(v) for n, v in tuned.items()})
        moves = {n: end[n].sub_(start[n]) for n in problem.carried}
        return cls(start, moves, rotatable)

    def __str__(self) -> str:
        return (
            f"rotation: {len(self.rotatable.rotatable)} neuron groups were rotated, the others "
            f"permuted; the gains of {len(self.rotatable.norms)} normalisations were folded, and "
            "to_base's unfolded, so that the architecture is unchanged."
        )
