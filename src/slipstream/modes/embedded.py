"""Training under an embedding: ever more weights follow references, ever fewer are trained."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from slipstream.modes.embedding import FREE, Embedding
from slipstream.modes.growth import Growth
from slipstream.modes.sampling import check_real
from slipstream.trajectory.optimizer_steps import after_each_step
from slipstream.weights import unwrapped

Pace = Literal["projected", "weight"]


@dataclass(frozen=True)
class EmbeddingReport:
    """What an embedding has saved so far."""

    weights: int  # trained before anything was embedded
    trained: int  # parameters trained now: free weights and references
    references: int
    optimizer_bytes: int  # the tensors of the optimiser's state, now
    optimizer_bytes_before: int  # just before the first weights were embedded

    @property
    def embedded_share(self) -> float:
        """The share of the weights that are no longer trained by themselves."""
        return 1 - (self.trained - self.references) / self.weights


class EmbeddedModes:
    """Lets weights follow references, `w = a r[m] + b`, while an ordinary loop trains the model.

    The optimiser is given the free weights and the references in place of the parameters, with
    the part of its state that belongs to them. Before each of its steps, gradients are handed
    over: that of a reference is the sum of `a` times the gradient over its members. After the
    step, the model holds `a r + b`: ordinary weights at any time.

    Gradients stay on the model's parameters until the step, so clip them there. Make a scheduler
    of learning rates after this, and attach a `Recorder` after it too. An fp16 `GradScaler` and
    optimisers that take a closure do not fit; bf16 does. References have no weight decay.

    Source: "Enhancing Neural Training via a Correlated Dynamics Model" (Brokman et al., 2024), the
    embedded variant.

    Example:
        >>> model = nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> embedded = EmbeddedModes(model, optimizer, growth=Growth(warm_up=3, share=0.6, modes=2))
        >>> for _ in range(3):
        ...     model(torch.ones(1, 10)).square().sum().backward()
        ...     optimizer.step()
        ...     _ = embedded.observe()
        >>> embedded.report().trained, embedded.report().references
        (22, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        growth: Growth | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Begin with every weight free.

        Args:
            model: What is trained.
            optimizer: Over parameters of the model; those it lacks are left alone.
            growth: When weights are embedded, how many, and which.
            pace: How far a step moves a reference. `projected`: as far as the members' own steps,
                projected on the mode, which suits SGD. `weight`: members of a mode move as far as a
                weight by itself, which suits optimisers that scale their steps, like Adam. By
                default, what suits the optimiser.

        Raises:
            ValueError: If the optimiser holds none of the model's parameters, or a complex one.
        """
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._pieces = [
            _Piece(name, parameter)
            for name, parameter in unwrapped(model).named_parameters()
            if id(parameter) in held
        ]
        if not self._pieces:
            raise ValueError("The optimizer holds no parameter of the model.")
        check_real({piece.name: piece.parameter.dtype for piece in self._pieces})
        self.growth = growth or Growth()
        self._pace = pace or ("projected" if isinstance(optimizer, SGD) else "weight")
        self._optimizer = optimizer
        optimizer.add_param_group({"params": [], "weight_decay": 0.0})
        # One tensor for each time that weights were embedded; the optimiser's last group.
        self._references: list[Tensor] = optimizer.param_groups[-1]["params"]
        self._history = deque([self._flat()], maxlen=self.growth.window)
        self._observations = 0
        self._bytes_before = 0
        self.embedding = Embedding.none(self._history[0])
        optimizer.register_step_pre_hook(self._hand_over)
        after_each_step(optimizer, self._write_back)

    @property
    def references(self) -> Tensor:
        """The values r of the references, (references,); 0 is where each began."""
        like = self._pieces[0].parameter.detach()
        return torch.cat([like.new_zeros(0), *(values.detach() for values in self._references)])

    def observe(self) -> bool:
        """Look at the weights, once an epoch; embed some when it is time.

        Returns:
            Whether weights have been embedded.

        Raises:
            ValueError: If the weights hold a NaN or an infinity.
        """
        self._history.append(self._flat())
        self._observations += 1
        if not self.growth.due(self._observations):
            return False
        sizes = {piece.name: piece.parameter.numel() for piece in self._pieces}
        grown = self.growth.grow(self.embedding, list(self._history), sizes=sizes)
        if grown is self.embedding:
            return False
        self._bytes_before = self._bytes_before or state_bytes(self._optimizer)
        self._embed(grown, [grown.modes - self.embedding.modes])
        return True

    def report(self) -> EmbeddingReport:
        """Return what has been saved so far."""
        return EmbeddingReport(
            len(self.embedding.mode),
            self.embedding.coordinates,
            self.embedding.modes,
            state_bytes(self._optimizer),
            self._bytes_before or state_bytes(self._optimizer),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs, beside the states of model and optimiser."""
        return {
            "shapes": {piece.name: tuple(piece.parameter.shape) for piece in self._pieces},
            "mode": self.embedding.mode,
            "scale": self.embedding.scale,
            "offset": torch.cat([piece.offset.cpu() for piece in self._pieces]),
            "references": [values.detach().cpu() for values in self._references],
            "history": torch.stack(list(self._history)),
            "observations": self._observations,
            "bytes_before": self._bytes_before,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one stopped; then load the state of the optimiser.

        Args:
            state: What `state_dict` returned; the model holds the weights of that moment.

        Raises:
            ValueError: If something is embedded already, or the state is of another model.
        """
        if self._references:
            raise ValueError(
                "load_state_dict needs an EmbeddedModes that has embedded nothing yet."
            )
        own = {piece.name: tuple(piece.parameter.shape) for piece in self._pieces}
        if own != state["shapes"]:
            name = next(n for n in own | state["shapes"] if own.get(n) != state["shapes"].get(n))
            raise ValueError(
                f"The state is of another model: {name!r} has shape {state['shapes'].get(name)} "
                f"there and {own.get(name)} here."
            )
        self._history.clear()
        self._history.extend(state["history"])
        self._observations, self._bytes_before = state["observations"], state["bytes_before"]
        if (state["mode"] != self.embedding.mode).any():
            counts = [len(values) for values in state["references"]]
            self._embed(Embedding(state["mode"], state["scale"]), counts)
            for piece, offset in zip(self._pieces, self._split(state["offset"]), strict=True):
                piece.offset.copy_(offset)
            for values, saved in zip(self._references, state["references"], strict=True):
                values.data.copy_(saved)

    def _embed(self, grown: Embedding, counts: Sequence[int]) -> None:
        """Train under a larger embedding; `counts` are the numbers of its new references."""
        reach = torch.zeros_like(grown.scale)
        reach[grown.members] = grown.unit * self._lengths(grown)[grown.followed].to(reach)
        parts = zip(self._pieces, self._split(grown.mode), self._split(reach), strict=True)
        for piece, mode, own in parts:
            piece.embed(mode, own, self._optimizer)
        like = self._pieces[0].parameter
        self._references += [nn.Parameter(like.detach().new_zeros(count)) for count in counts]
        self.embedding = grown

    def _lengths(self, embedding: Embedding) -> Tensor:
        """How far all members of each reference move when it moves by 1: (references,)."""
        if self._pace == "projected":
            return torch.ones(embedding.modes)
        return torch.bincount(embedding.followed, minlength=embedding.modes).sqrt()

    def _split(self, flat: Tensor) -> tuple[Tensor, ...]:
        return torch.split(flat, [piece.parameter.numel() for piece in self._pieces])

    def _flat(self) -> Tensor:
        parts = [piece.parameter.detach().flatten().cpu() for piece in self._pieces]
        exact = any(part.dtype == torch.float64 for part in parts)
        return torch.cat([part.to(torch.float64 if exact else torch.float32) for part in parts])

    def _hand_over(self, *_: Any) -> None:
        """Before a step: gradients go from the model's parameters to what is trained."""
        first = self._pieces[0].parameter
        sums = torch.zeros(
            self.embedding.modes, dtype=self.embedding.scale.dtype, device=first.device
        )
        for piece in self._pieces:
            piece.hand_over(sums)
        parts = torch.split(sums, [len(values) for values in self._references])
        for values, part in zip(self._references, parts, strict=True):
            values.grad = part.to(values)

    def _write_back(self, *_: Any) -> None:
        """After a step: the model gets the weights that the trained values stand for."""
        references = self.references
        for piece in self._pieces:
            piece.write_back(references)


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of all tensors in the state of an optimiser."""
    tensors = (value for own in optimizer.state.values() for value in own.values())
    return sum(value.nbytes for value in tensors if isinstance(value, Tensor))


class _Piece:
    """A parameter of the model, and what the optimiser trains in its place."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.name, self.parameter = name, parameter
        self.trained = parameter  # itself, until some of its weights are embedded
        self.mode = torch.full((parameter.numel(),), FREE, dtype=torch.int16)
        self.offset = parameter.detach().flatten().clone()  # b of the members
        self._places = self._members = self._followed = torch.zeros(0, dtype=torch.int64)
        self._reach = torch.zeros(0)  # a of the members

    def embed(self, mode: Tensor, reach: Tensor, optimizer: Optimizer) -> None:
        """Train only the weights that are free in `mode`; they keep their part of the state."""
        if torch.equal(mode, self.mode):
            return
        device, values = self.parameter.device, self.parameter.detach().flatten()
        kept = (mode[self.mode == FREE] == FREE).to(device)  # (trained so far,)
        started = ((self.mode == FREE) & (mode != FREE)).to(device)
        self.offset[started] = values[started]
        self.mode = mode
        self._places = (mode == FREE).nonzero().flatten().to(device)
        self._members = (mode >= 0).nonzero().flatten().to(device)
        self._followed = mode.to(device)[self._members].long()
        self._reach = reach.to(self.parameter)[self._members]
        before, self.trained = self.trained, nn.Parameter(values[self._places])
        optimizer.state[self.trained] = {
            key: value.flatten()[kept] if _belongs(value, before) else value
            for key, value in optimizer.state.pop(before, {}).items()
        }
        for group in optimizer.param_groups:
            group["params"][:] = [self.trained if p is before else p for p in group["params"]]
        self.parameter.grad = None

    def hand_over(self, sums: Tensor) -> None:
        """Give the gradient to the free weights, and add it to those of the references."""
        if self.trained is self.parameter or self.parameter.grad is None:
            return
        gradient = self.parameter.grad.flatten()
        self.trained.grad = gradient[self._places]
        slopes = (self._reach * gradient[self._members]).to(sums)
        sums.index_add_(0, self._followed.to(sums.device), slopes)
        self.parameter.grad = None  # it is used up

    def write_back(self, references: Tensor) -> None:
        """Put the weights that free weights and references mean into the parameter."""
        if self.trained is self.parameter:
            return
        values = self.parameter.detach().flatten()
        values[self._places] = self.trained.detach()
        moved = self._reach * references.to(self._reach)[self._followed]
        values[self._members] = self.offset[self._members] + moved
        self.parameter.detach().copy_(values.view_as(self.parameter))


def _belongs(value: Any, parameter: Tensor) -> bool:
    """Whether a part of the optimiser's state holds a number for each weight."""
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0
