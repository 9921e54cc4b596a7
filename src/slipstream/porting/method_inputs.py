"""The model, its neuron groups and the data: what some methods need, each made when it is asked."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, cast

from torch import Tensor

from slipstream.evaluation import Batch, Task
from slipstream.matching import match_activations, match_rotations, match_weights
from slipstream.matching.gradients import Gradient
from slipstream.porting.last_layers import NoLastLayerError
from slipstream.porting.outputs import TargetFunction, are_logits
from slipstream.porting.plan import Coordinates, PortPlan, PortStep
from slipstream.porting.problem import LazyWeights, Problem, wide_copy
from slipstream.porting.rotated import RotatedEnds
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer import methods
from slipstream.transfer.methods import Step
from slipstream.transfer.transfer_state import BatchStream, TransferState, complete_weights
from slipstream.weights import Weights, parameter_names


class TensorAligner(Protocol):
    """Aligns a tensor of one network to the neurons of another."""

    def apply_to(self, name: str, value: Tensor) -> Tensor:
        """Return `value`, with the layout of the model's tensor `name`, aligned to the other."""


Aligner = TensorAligner | RotatedEnds


def aligned_displacement(problem: Problem, aligner: Aligner, name: str) -> Tensor:
    """Return how the fine-tune moved a tensor, in the neurons of the other base: a new tensor."""
    if isinstance(aligner, RotatedEnds):
        return aligner.displacements[name].clone()
    return aligner.apply_to(name, problem.displacement(name))


def aligned_base(problem: Problem, aligner: Aligner, name: str) -> Tensor:
    """Return a tensor of the fine-tune's base in the neurons of the other base."""
    if isinstance(aligner, RotatedEnds):
        moved = aligner.from_base[name]
        # Gains that are folded and unfolded change lengths; a comparison is one of directions.
        length = float(problem.from_base[name].norm() / moved.norm().clamp_min(1e-30))
        return moved * length
    return aligner.apply_to(name, problem.from_base[name])


@dataclass
class MethodInputs:
    """One problem with all that methods may ask for; what two methods share is made once."""

    problem: Problem
    plan: PortPlan
    task: Task | None = None
    given_groups: NeuronGroups | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)  # of an adapter's tensors
    notes: list[str] = field(default_factory=list)  # what the user should be warned of
    origin: Weights | None = None  # the other base as it was given, if this begins after a step
    spent: list[int] = field(default_factory=list)  # gradients, by what took them
    _aligners: dict[Coordinates, Aligner] = field(default_factory=dict)
    _targets: list[TargetFunction] = field(default_factory=list)

    def at(self, weights: Weights, plan: PortPlan | None = None) -> "MethodInputs":
        """Return the same problem where a step has led; what is known of it stays known."""
        groups = self.__dict__.get("groups", self.given_groups)
        problem = replace(self.problem, to_base=weights)
        origin, plan = self.own, self.plan if plan is None else plan
        return replace(self, problem=problem, plan=plan, origin=origin, given_groups=groups)

    @property
    def own(self) -> Weights:
        """The other base as it was given."""
        return self.problem.to_base if self.origin is None else self.origin

    def spend(self, gradients: int) -> None:
        """Count gradients; a stage's batches count as one."""
        self.spent.append(gradients)

    def aligner(self, coordinates: Coordinates) -> Aligner:
        """Return what aligns the displacement to the other base."""
        if coordinates not in self._aligners:
            self._aligners[coordinates] = self._find(coordinates)
        return self._aligners[coordinates]

    def aligner_or_none(self, coordinates: Coordinates) -> Aligner | None:
        """Return the same; None, with a note, if these neurons cannot be matched."""
        try:
            return self.aligner(coordinates)
        except NOT_POSSIBLE as error:
            self.note(f"neurons were not matched by {coordinates}: {error}")
            return None

    def note(self, warning: str) -> None:
        """Add a warning for the user, once."""
        if warning not in self.notes:
            self.notes.append(warning)

    def _find(self, coordinates: Coordinates) -> Aligner:
        if coordinates == "weights":
            names = self.problem.carried
            source, target = (
                {n: base[n] for n in names}  # not copied: a matching reads them piece by piece
                for base in (self.problem.from_base, self.own)
            )
            # Tensors in files take no memory while they are not read; products would.
            keep = not isinstance(self.problem.from_base, LazyWeights)
            found = match_weights(source, target, groups=self.groups, keep_products=keep)
            return found.source_to_target
        if coordinates == "activations":
            return self._by_activations()
        if coordinates == "procrustes":
            permutation = cast("Permutation", self.aligner("activations"))
            return match_rotations(*self._observed(), groups=self.groups, start=permutation)
        if coordinates == "rotation":
            rotated = RotatedEnds.find(self.problem, *self._observed(), groups=self.groups)
            self.note(str(rotated))
            return rotated
        if coordinates == "fgmt":
            # Gradients of a transformer say little from where nothing corresponds yet.
            first = cast("Permutation", self.aligner("activations"))
            plan = self.plan.transfer()
            self.spend(2 * plan.stages)
            *_, last = methods.fgmt(self.state, self.line, self.state.start, first, plan)
            return last.source_to_target
        if coordinates == "bico":
            permutation = cast("Permutation", self.aligner("activations"))
            self.spend(2 * self.plan.stages)
            seen = self._observed(self.with_data)
            return match_rotations(
                *seen, groups=self.groups, start=permutation, outputs="gradients"
            )
        shapes = {name: tuple(value.shape) for name, value in self.own.items()}
        return Permutation.identity(NeuronGroups((), (), shapes))

    def _by_activations(self) -> Permutation:
        """Match what the neurons compute; those that no layer shows are matched by weights."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No linear or convolutional layer")
            first = cast("Permutation", self.aligner("weights"))
            matching = match_activations(*self._observed(), groups=self.groups, start=first)
            return matching.source_to_target

    def _observed(self, labelled: Task | None = None) -> tuple[Weights, Weights, Task]:
        """Both bases and the batches on which their neurons are compared."""
        task = self.with_inputs
        theirs, own = self.problem.from_base, self.own
        # A head of another size has no counterpart, and nothing is matched behind it.
        fits = [n for n in own if n in theirs and theirs[n].shape == own[n].shape]
        source = {**own, **{n: theirs[n] for n in fits}}
        count = self.plan.stages * self.plan.batches_per_gradient
        if labelled is None:
            batches = self.unlabelled[:count]
            forward = task.forward if task.unlabelled is not None else task.feed
        else:
            batches, forward = BatchStream(labelled.data).take(count), labelled.loss
        return (
            complete_weights(task.model, source, "from_base"),
            complete_weights(task.model, own, "to_base"),
            replace(task, data=batches, forward=forward),
        )

    def signed(self, aligner: Permutation) -> dict[str, Tensor]:
        """Return how far the signed steps lead from the other base, in the model's dtype."""
        start = self.state.start
        self.spend(self.plan.stages)
        first = Step(dict(start), aligner)
        *_, last = methods.signed(self.state, self.line, start, first, self.plan.signs)
        return {
            name: wide_copy(last.weights[name])
            .sub_(start[name])
            .to(self.problem.to_base[name].device)
            for name in self.state.carried
        }

    @cached_property
    def gradient(self) -> dict[str, Gradient]:
        """The gradient at the other base, over as many batches as all stages take."""
        batches = self.state.data.take(self.plan.stages * self.plan.batches_per_gradient)
        self.spend(self.plan.stages)
        return self.state.gradient(self.state.start, batches)

    @cached_property
    def groups(self) -> NeuronGroups:
        """What may be permuted; a tensor that is carried and not among its shapes is an error."""
        groups = self.given_groups
        if groups is None:
            task = self.with_model if self._example_is_given else self.with_inputs
            if not self._example_is_given and not self.has_data:
                task = replace(task, data=self.unlabelled)
            loaded = not any(parameter.is_meta for parameter in task.model.parameters())
            groups = find_neuron_groups(task.model, task.example(), prove=loaded)
            if not loaded:
                self.notes.append(
                    "the neuron groups follow from tracing alone: the model was not loaded, so "
                    "they were not proven with values."
                )
        if unknown := [name for name in self.problem.carried if name not in groups.shapes]:
            raise ValueError(
                f"The neuron groups do not list the tensor {unknown[0]!r} of to_base, so what "
                "moves with it is unknown: they are of another model, or the file uses other "
                "names. Exclude it, or save the model again with the library that reads it."
            )
        return groups

    @cached_property
    def state(self) -> TransferState:
        """Both networks, with the data for their gradients."""
        task, plan = self.with_data, self.plan
        start = complete_weights(task.model, self.problem.to_base, "to_base")
        excluded = frozenset(parameter_names(task.model)) - frozenset(self.problem.carried)
        state = TransferState(
            task, start, excluded, plan.batches_per_gradient, plan.batchnorm_batches
        )
        state.check_loss()
        return state

    @cached_property
    def line(self) -> Trajectory:
        """The straight line from the first base to its fine-tune."""
        ends = [
            {name: wide_copy(weights[name]) for name in self.state.carried}
            for weights in (self.problem.from_base, self.problem.fine_tuned)
        ]
        (line,) = self.plan.transfer().segments_of(Trajectory.from_weights(ends))
        return line

    @cached_property
    def can_match(self) -> bool:
        """Whether there are neurons to match, as far as `auto` can find out."""
        known = self.task is not None and (self._example_is_given or self.has_inputs)
        if self.given_groups is None and not known:
            return False
        try:
            return len(self.groups) > 0
        except NOT_POSSIBLE as error:
            self.note(f"neurons were not matched: {error}")
            return False

    @property
    def has_data(self) -> bool:
        """Whether there are batches to take gradients on."""
        return self.task is not None and self.task.has_data

    @property
    def has_inputs(self) -> bool:
        """Whether there are batches to run the model on, labelled or not."""
        return self.has_data or (self.task is not None and self.task.unlabelled is not None)

    @cached_property
    def unlabelled(self) -> list[Batch]:
        """Batches of which nothing but what the networks compute is looked at."""
        task = self.with_inputs
        if task.unlabelled is not None:
            return list(task.unlabelled)
        return BatchStream(task.data).take(self.plan.stages * self.plan.batches_per_gradient)

    def target(self, step: PortStep) -> TargetFunction:
        """Return the function that a port should compute, whatever step it is at."""
        if not self._targets:
            self._targets.append(self._target())
        return replace(self._targets[0], itself=step.endswith("-outputs"))

    @cached_property
    def has_logits(self) -> bool:
        """Whether outputs are compared as logits, as far as labelled data shows."""
        task = self.with_model
        first = next(iter((task.data if self.has_data else task.validation) or ()), None)
        return first is not None and are_logits(task, first)

    def _target(self) -> TargetFunction:
        problem, model = self.problem, self.with_inputs.model
        shapes = {name: value.shape for name, value in self.own.items()}
        for argument, weights in (
            ("from_base", problem.from_base),
            ("fine_tuned", problem.fine_tuned),
        ):
            if torn := [
                n for n, shape in shapes.items() if n not in weights or weights[n].shape != shape
            ]:
                raise NoLastLayerError(
                    f"The function of {argument} cannot be carried to to_base: their {torn[0]!r} "
                    "differ, so that their outputs do too."
                )
        if any(self.with_inputs.batch_size(batch) == 0 for batch in self.unlabelled):
            raise ValueError("An unlabelled batch holds no example: leave empty batches out.")
        return TargetFunction(
            self.with_inputs,
            self.unlabelled,
            complete_weights(model, problem.from_base, "from_base"),
            complete_weights(model, problem.fine_tuned, "fine_tuned"),
            complete_weights(model, self.own, "to_base"),
        )

    @property
    def with_inputs(self) -> Task:
        """The task with batches, labelled or not; an error if there are none."""
        return self.with_model if self.has_inputs else self.with_data

    @property
    def _example_is_given(self) -> bool:
        return self.task is not None and self.task.example_input is not None

    @property
    def with_model(self) -> Task:
        """The task; an error if there is none."""
        if self.task is None:
            raise ValueError(f"The method {self.plan.method!r} needs a model: {_MISSING}")
        return self.task

    @property
    def with_data(self) -> Task:
        """The task with its data; an error if there is none."""
        task = self.with_model
        if not task.has_data:
            raise ValueError(f"The method {self.plan.method!r} needs data: {_MISSING}")
        return task


# What tracing a model, matching its neurons and looking at its outputs may end in.
NOT_POSSIBLE = (ValueError, TypeError, AttributeError, LookupError, RuntimeError)
_MISSING = (
    "give Task(model, data, ...). Without it there are 'identity', and 'weights' where the model "
    "and an example input are given."
)
