"""The parametrisation w = a r[m] + b, on flat vectors: which weights follow which reference."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

FREE = -1  # trained by itself
HELD = -2  # follows nothing: stays where it is


@dataclass(frozen=True)
class Embedding:
    """Which weights are trained by themselves, which follow a reference, and which stay.

    A change of the weights is `lift(z)`, z the change of the *coordinates*: the free weights, then
    the references. The columns of this linear map are orthonormal, because each weight follows at
    most one reference and every reference is scaled to members of unit norm; so `project` is its
    transposition, and a step of plain SGD on the coordinates is the projected step on the weights.
    """

    mode: Tensor  # (weights,) int16: FREE, HELD, or the number of the reference
    scale: Tensor  # (weights,) the fitted a of members, 0 for others

    @classmethod
    def none(cls, weights: Tensor) -> "Embedding":
        """Return the embedding of a flat vector in which every weight is free."""
        mode = torch.full(weights.shape, FREE, dtype=torch.int16, device=weights.device)
        return cls(mode, torch.zeros_like(weights))

    @cached_property
    def modes(self) -> int:
        """The number of references."""
        return int(self.mode.max()) + 1 if self.mode.numel() and self.mode.max() >= 0 else 0

    @cached_property
    def free(self) -> Tensor:
        """Places of the free weights, (free,)."""
        return torch.nonzero(self.mode == FREE).squeeze(1)

    @cached_property
    def members(self) -> Tensor:
        """Places of the weights that follow a reference, (members,)."""
        return torch.nonzero(self.mode >= 0).squeeze(1)

    @cached_property
    def followed(self) -> Tensor:
        """The reference of each member, (members,) int64."""
        return self.mode[self.members].long()

    @cached_property
    def norms(self) -> Tensor:
        """The norm of the scales of each reference's members, (modes,), summed in float64."""
        squares = self.scale[self.members].double().square()
        sums = torch.zeros(self.modes, dtype=torch.float64, device=self.mode.device)
        return sums.index_add_(0, self.followed, squares).sqrt().to(self.scale)

    @cached_property
    def unit(self) -> Tensor:
        """The scales of the members, of unit norm within each reference, (members,)."""
        # A reference whose members all have scale 0 moves none of them.
        norms = self.norms.where(self.norms > 0, torch.ones_like(self.norms))
        return self.scale[self.members] / norms[self.followed]

    @property
    def coordinates(self) -> int:
        """How many parameters are trained: free weights and references."""
        return len(self.free) + self.modes

    def project(self, change: Tensor) -> Tensor:
        """Return the coordinates (coordinates,) of the nearest change to `change` (weights,).

        Of a gradient, it is the gradient with respect to the coordinates: that of a reference is
        the sum over its members.
        """
        sums = torch.zeros(self.modes, dtype=change.dtype, device=change.device)
        sums.index_add_(0, self.followed, self.unit.to(change) * change[self.members])
        return torch.cat([change[self.free], sums])

    def lift(self, coordinates: Tensor) -> Tensor:
        """Return the change of the weights (weights,) that `coordinates` (coordinates,) mean."""
        change = coordinates.new_zeros(self.mode.shape)
        free, references = torch.split(coordinates, [len(self.free), self.modes])
        change[self.free] = free
        change[self.members] = self.unit.to(coordinates) * references[self.followed]
        return change

    def embed(self, places: Tensor, mode: Tensor, scale: Tensor) -> "Embedding":
        """Return an embedding in which further weights follow a reference, from where they are.

        Args:
            places: Positions of free weights, (new,).
            mode: The reference of each, (new,).
            scale: The fitted a of each, (new,).

        Returns:
            The embedding; the weights do not move by it.

        Raises:
            ValueError: If a place is not free.
        """
        if (self.mode[places] != FREE).any():
            taken = int((self.mode[places] != FREE).sum())
            raise ValueError(f"Only free weights can be embedded; {taken} of these are not free.")
        modes, scales = self.mode.clone(), self.scale.clone()
        modes[places] = mode.to(modes)
        scales[places] = scale.to(scales)
        return replace(self, mode=modes, scale=scales)
