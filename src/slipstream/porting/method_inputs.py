"""The model, its neuron groups and the data: what some methods need, each made when it is asked."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor, nn

from slipstream.evaluation import Batch, Loss, device_of, forward_inputs, inputs_of
from slipstream.matching import match_activations, match_rotations, match_weights
from slipstream.matching.low_rank import Gradient
from slipstream.porting.plan import Coordinates, PortPlan
from slipstream.porting.problem import Problem, wide_copy
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer import methods
from slipstream.transfer.checks import check_loss, complete
from slipstream.transfer.gradient_store import GradientStore
from slipstream.transfer.methods import Step
from slipstream.transfer.paths import paths
from slipstream.transfer.transfer_state import BatchStream, Networks, Stopwatch
from slipstream.weights import parameter_names

T = TypeVar("T")


class Carrier(Protocol):
    """Lays a tensor of one network over the neurons of another."""

    def apply_to(self, name: str, value: Tensor) -> Tensor:
        """Return `value`, laid out like the model's tensor `name`, in the other's coordinates."""


@dataclass
class Workbench:
    """One problem with all that methods may ask for; what two methods share is made once."""

    problem: Problem
    plan: PortPlan
    model: nn.Module | None = None
    loss: Loss | None = None
    data: Iterable[Batch] | None = None
    given_groups: NeuronGroups | None = None
    example_input: Any = None
    ranks: Mapping[str, int] = field(default_factory=dict)  # of an adapter's tensors
    notes: list[str] = field(default_factory=list)  # what the user should be warned of
    _carriers: dict[Coordinates, Carrier] = field(default_factory=dict)

    def carrier(self, coordinates: Coordinates) -> Carrier:
        """Return how the displacement is laid over the other base."""
        if coordinates not in self._carriers:
            self._carriers[coordinates] = self._find(coordinates)
        return self._carriers[coordinates]

    def _find(self, coordinates: Coordinates) -> Carrier:
        if coordinates == "weights":
            names = self.problem.carried
            source, target = (
                {n: base[n] for n in names}  # not copied: a matching reads them piece by piece
                for base in (self.problem.from_base, self.problem.to_base)
            )
            return match_weights(source, target, groups=self.groups).source_to_target
        if coordinates == "activations":
            return self._by_activations()
        if coordinates == "procrustes":
            permutation = cast("Permutation", self.carrier("activations"))
            return match_rotations(start=permutation, **self._shown())
        if coordinates == "fgmt":
            # Gradients of a transformer say little from where nothing corresponds yet.
            first = cast("Permutation", self.carrier("activations"))
            plan = self.plan.transfer()
            *_, last = methods.fgmt(self.networks, self.line, self.networks.start, first, plan)
            return last.source_to_target
        shapes = {name: tuple(value.shape) for name, value in self.problem.to_base.items()}
        return Permutation.identity(NeuronGroups((), (), shapes))

    def _by_activations(self) -> Permutation:
        """Match what the neurons compute; those that no layer shows are matched by weights."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No linear or convolutional layer")
            first = cast("Permutation", self.carrier("weights"))
            return match_activations(start=first, **self._shown()).source_to_target

    def _shown(self) -> dict[str, Any]:
        """Both bases and what they are shown, to compare what their neurons compute."""
        model, data = self.asked("model", self.model), self.asked("data", self.data)
        theirs, own = self.problem.from_base, self.problem.to_base
        # A head of another size has no counterpart, and nothing is matched behind it.
        fits = [n for n in own if n in theirs and theirs[n].shape == own[n].shape]
        return {
            "model": model,
            "source": complete(model, {**own, **{n: theirs[n] for n in fits}}, "from_base"),
            "target": complete(model, own, "to_base"),
            "data": BatchStream(data).take(self.plan.stages * self.plan.batches_per_gradient),
            "groups": self.groups,
            "forward": self.loss or forward_inputs,
        }

    def signed(self, carrier: Permutation) -> dict[str, Tensor]:
        """Return how far the signed steps lead from the other base, in the model's dtype."""
        start = self.networks.start
        first = Step(dict(start), carrier)
        *_, last = methods.signed(self.networks, self.line, start, first, self.plan.signs)
        return {
            name: wide_copy(last.weights[name])
            .sub_(start[name])
            .to(self.problem.to_base[name].device)
            for name in self.networks.carried
        }

    @cached_property
    def gradient(self) -> dict[str, Gradient]:
        """The gradient at the other base, over as many batches as all stages take."""
        batches = self.networks.data.take(self.plan.stages * self.plan.batches_per_gradient)
        return self.networks.gradient(self.networks.start, batches, batch_statistics=True)

    @cached_property
    def groups(self) -> NeuronGroups:
        """What may be permuted; a tensor that is carried and not among its shapes is an error."""
        groups = self.given_groups
        if groups is None:
            model = self.asked("model", self.model)
            example = self.example_input
            if example is None:
                example = inputs_of(next(iter(self.asked("data", self.data))))
            numbers = not any(parameter.is_meta for parameter in model.parameters())
            groups = find_neuron_groups(model, example, prove=numbers)
            if not numbers:
                self.notes.append(
                    "the neuron groups follow from tracing alone: the model was not loaded, so "
                    "they were not proven with numbers."
                )
        if unknown := [name for name in self.problem.carried if name not in groups.shapes]:
            raise ValueError(
                f"The neuron groups do not list the tensor {unknown[0]!r} of to_base, so nobody "
                "knows what moves with it: they are of another model, or the file uses other "
                "names. Exclude it, or save the model anew with the library that reads it."
            )
        return groups

    @cached_property
    def networks(self) -> Networks:
        """Both networks, with the data for their gradients."""
        model = self.asked("model", self.model)
        loss = self.asked("loss", self.loss)
        stream = BatchStream(self.asked("data", self.data))
        start = complete(model, self.problem.to_base, "to_base")
        calibration = BatchStream(self.data or ()).take(self.plan.batchnorm_batches)
        check_loss(model, loss, start, calibration[0])
        return Networks(
            model,
            loss,
            start,
            frozenset(parameter_names(model)) - frozenset(self.problem.carried),
            stream,
            self.plan.batches_per_gradient,
            calibration,
            GradientStore(None, device=device_of(model)),
            Stopwatch(),
        )

    @cached_property
    def line(self) -> Trajectory:
        """The straight line from the first base to its fine-tune."""
        ends = [
            {name: wide_copy(weights[name]) for name in self.networks.carried}
            for weights in (self.problem.from_base, self.problem.fine_tuned)
        ]
        (line,) = paths(Trajectory.from_weights(ends), self.plan.transfer())
        return line

    @cached_property
    def can_match(self) -> bool:
        """Whether there are neurons to match, as far as `auto` can find out."""
        examples = self.example_input is not None or self.data is not None
        if self.given_groups is None and (self.model is None or not examples):
            return False
        try:
            return len(self.groups) > 0
        except ValueError as error:
            self.notes.append(f"neurons were not matched: {error}")
            return False

    def asked(self, name: str, value: T | None) -> T:
        """Return an argument that a method needs, or raise and say which."""
        if value is None:
            raise ValueError(
                f"The method {self.plan.method!r} needs {name}=...; without it there are "
                "'identity', and 'weights' where the model and an example input are given."
            )
        return value
