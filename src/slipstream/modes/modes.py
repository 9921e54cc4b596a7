"""The result of a decomposition: which mode each weight follows, and how."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from slipstream.storage.reading import parsing
from slipstream.storage.strict_json import read_json
from slipstream.storage.tensor_file import tensor_chunks
from slipstream.storage.writing import write_whole
from slipstream.symmetry.gather import take
from slipstream.symmetry.permutation import Permutation
from slipstream.trajectory import Layout, Snapshot, Trajectory

FORMAT = 1
_SINGLE = ("references", "motion", "explained", "samples", "sample_modes")
_BY_NAME = ("assignment", "a", "b", "kept")


@dataclass(frozen=True, eq=False)
class Modes:
    """Weights that follow a few references: `w(t) = a r_m(t) + b` with `m` the weight's mode.

    References have mean 0 and variance 1 over the steps. So `b` is the mean of the weight, and `a`
    its deviation along the mode: `a^2` is the variance that the mode explains. A weight that never
    moves has `a = 0`. Tensors of whole numbers, statistics of BatchNorm, and tensors of which no
    weight moves follow no mode: they are kept exactly.
    """

    layout: Layout  # of the run
    steps: tuple[int, ...]  # T optimiser steps
    references: Tensor  # (M, T) float64
    assignment: Mapping[str, Tensor]  # the mode of each weight, in the shape of its tensor
    a: Mapping[str, Tensor]  # float32, or float64 if the weights are; in the shape of the tensor
    b: Mapping[str, Tensor]  # as a
    kept: Mapping[str, Tensor]  # (T, *shape), or (1, *shape) of what never changes
    motion: Tensor  # (tensors, M) squared deviations from the mean over steps and members, summed
    explained: Tensor  # (tensors, M) of these, what the mode explains; float64, order of `names`
    samples: Tensor  # (K, T) float32: standardised histories of the sampled weights that move
    sample_modes: Tensor  # (K,) the group of each, int64

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that follow modes."""
        return tuple(self.assignment)

    @property
    def share(self) -> float:
        """The share of the motion of all weights that the modes explain, 0 to 1."""
        return float(self.explained.sum() / self.motion.sum())

    @property
    def relative_error(self) -> float:
        """Distance of run and reconstruction, relative to that of the run from its mean."""
        return math.sqrt(max(0.0, 1 - self.share))

    @property
    def nbytes(self) -> int:
        """The size of all tensors of the result; the file of `save` is as large."""
        return sum(tensor.nbytes for _, tensor in self._tensors())

    def share_by_mode(self) -> Tensor:
        """Return the share of all motion that each mode explains: (M,), float64."""
        return self.explained.sum(0) / self.motion.sum()

    def weights_by_mode(self) -> Tensor:
        """Return how many weights follow each mode: (M,), int64."""
        modes = len(self.references)
        counts = [m.flatten().bincount(minlength=modes) for m in self.assignment.values()]
        return torch.stack(counts).sum(0)

    def share_by_tensor(self) -> dict[str, float]:
        """Return, for each tensor, the share of its own motion that is explained."""
        shares = self.explained.sum(1) / self.motion.sum(1)
        return dict(zip(self.names, shares.tolist(), strict=True))

    def weights_at(self, step: int) -> dict[str, Tensor]:
        """Reconstruct the weights at a step of the run.

        Args:
            step: One of `steps`.

        Returns:
            All tensors of the run, in its dtypes.

        Raises:
            KeyError: If the run had no snapshot there, naming the nearest.
        """
        if step not in self.steps:
            nearest = min(self.steps, key=lambda known: abs(known - step))
            raise KeyError(f"Step {step} was not decomposed; the nearest is {nearest}.")
        return self._weights(self.steps.index(step))

    def weights_from(self, references: Tensor) -> dict[str, Tensor]:
        """Return the weights where the references have any given values.

        Args:
            references: (M,) values in deviations from the mean; `references[:, t]` are those of
                the step `steps[t]`. Between and beyond them lie weights that the run never had.

        Returns:
            All tensors of the run; what follows no mode is as at the last step.

        Raises:
            ValueError: If there is not one value for each mode.
        """
        if references.shape != (len(self.references),):
            raise ValueError(
                f"references must be {len(self.references)} values, one for each mode, "
                f"got shape {tuple(references.shape)}."
            )
        return {name: self._tensor(name, references, -1) for name in self.layout.tensors}

    def trajectory(self) -> Trajectory:
        """Return the modelled run, a trajectory whose snapshots are computed when they are read.

        Returns:
            A trajectory like any other: it can be transferred, evaluated or recorded.
        """
        snapshots = (
            Snapshot(step, None, {}, self.layout, _Reconstructed(self, position))
            for position, step in enumerate(self.steps)
        )
        return Trajectory(tuple(snapshots), self.layout)

    def permuted(self, source_to_target: Permutation) -> "Modes":
        """Return the modes of the permuted run: what belongs to a weight moves along with it.

        Args:
            source_to_target: Places each neuron of the run.

        Returns:
            The decomposition that fits every snapshot after `source_to_target.apply`.
        """

        def moved(name: str, value: Tensor) -> Tensor:
            return source_to_target.apply_to(name, value)

        return replace(
            self,
            # Which mode a weight follows has no sign, even where its neuron changes sign.
            assignment={
                n: take(v, source_to_target.indices(n)) for n, v in self.assignment.items()
            },
            a={name: moved(name, value) for name, value in self.a.items()},
            b={name: moved(name, value) for name, value in self.b.items()},
            kept={n: torch.stack([moved(n, row) for row in rows]) for n, rows in self.kept.items()},
        )

    def save(self, path: str | Path, *, samples: bool = True) -> None:
        """Write a safetensors file, whole or not at all.

        Args:
            path: Where to.
            samples: Whether to keep the sampled histories, which only figures need; in a small
                network they are larger than all else.
        """
        if not samples:
            none = self.samples[:0], self.sample_modes[:0]
            replace(self, samples=none[0], sample_modes=none[1]).save(path)
            return
        described = {"format": FORMAT, "steps": self.steps, "layout": self.layout.to_json()}
        metadata = {"slipstream.modes": json.dumps(described)}
        write_whole(Path(path), tensor_chunks(dict(self._tensors()), metadata))

    @classmethod
    def load(cls, path: str | Path) -> "Modes":
        """Read a file that `save` wrote.

        Args:
            path: The file.

        Returns:
            The same modes.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds no modes, is of a newer format, or is damaged.
        """
        with parsing(path, "modes"):
            with safe_open(path, framework="pt") as file:
                described = _described(file.metadata(), path)
            tensors = load_file(path)
            layout = Layout.from_json(described["layout"])
            fields: dict[str, Any] = {kind: _named(kind, tensors, layout) for kind in _BY_NAME}
            fields |= {name: tensors[name] for name in _SINGLE}
            found = cls(layout=layout, steps=tuple(described["steps"]), **fields)
            found._check()
        return found

    def __repr__(self) -> str:
        return (
            f"Modes({len(self.references)} modes of {len(self.names)} tensors over "
            f"{len(self.steps)} steps, {self.share:.1%} of the motion explained)"
        )

    def _check(self) -> None:
        """Raise unless the parts fit each other, as those of a damaged file may not."""
        modes, steps, names = len(self.references), len(self.steps), len(self.names)
        if any(type(step) is not int for step in self.steps) or not steps:
            raise ValueError(f"its steps are {str(self.steps)[:80]}")
        shapes = {
            "references": (modes, steps),
            "motion": (names, modes),
            "explained": (names, modes),
            "samples": (len(self.sample_modes), steps),
            "sample_modes": (len(self.sample_modes),),
        }
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}")
        for name, form in self.layout.tensors.items():
            if name in self.kept:
                fits = tuple(self.kept[name].shape) in ((1, *form.shape), (steps, *form.shape))
            else:
                parts = [kind.get(name) for kind in (self.assignment, self.a, self.b)]
                fits = all(v is not None and tuple(v.shape) == form.shape for v in parts)
                fits = fits and _below(modes, self.assignment[name])
            if not fits:
                raise ValueError(f"the tensor {name!r} is missing, or of another shape")

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name in _SINGLE:
            yield name, getattr(self, name)
        for kind in _BY_NAME:
            for name, tensor in getattr(self, kind).items():
                yield f"{kind}:{name}", tensor

    def _weights(self, position: int) -> dict[str, Tensor]:
        values = self.references[:, position]
        return {name: self._tensor(name, values, position) for name in self.layout.tensors}

    def _tensor(self, name: str, references: Tensor, position: int) -> Tensor:
        flat = self._part(name, references, position, slice(None))
        return flat.view(self.layout.tensors[name].shape)

    def _part(self, name: str, references: Tensor, position: int, at: slice) -> Tensor:
        """A stretch of a flattened tensor."""
        if name in self.kept:
            rows = self.kept[name]
            return rows[position if len(rows) > 1 else 0].flatten()[at]
        a, b, mode = (kind[name].flatten()[at] for kind in (self.a, self.b, self.assignment))
        values = references.to(a).index_select(0, mode.int())
        return torch.addcmul(b, a, values).to(self.layout.tensors[name].dtype)


@dataclass(frozen=True)
class _Reconstructed:
    """Reads the modelled weights at one step."""

    modes: Modes
    position: int

    def weights(self) -> dict[str, Tensor]:
        return self.modes._weights(self.position)

    def read_into(self, name: str, out: Tensor, start: int = 0) -> None:
        references = self.modes.references[:, self.position]
        at = slice(start, start + out.numel())
        out.view(-1).copy_(self.modes._part(name, references, self.position, at))


def _below(modes: int, assignment: Tensor) -> bool:
    values = assignment.int()  # there is no maximum of some kinds of whole numbers
    return not values.numel() or 0 <= int(values.min()) <= int(values.max()) < modes


def _named(kind: str, tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    names = [name for name in layout.tensors if f"{kind}:{name}" in tensors]
    return {name: tensors[f"{kind}:{name}"] for name in names}


def _described(metadata: Mapping[str, str] | None, path: str | Path) -> dict[str, Any]:
    text = (metadata or {}).get("slipstream.modes")
    if text is None:
        raise ValueError(f"{path} holds no modes.")
    described: dict[str, Any] = read_json(text.encode())
    if described["format"] > FORMAT:
        raise ValueError(f"{path} is of format {described['format']}, newer than {FORMAT}.")
    return described
