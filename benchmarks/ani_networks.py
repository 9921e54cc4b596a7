"""The ANI networks of a public wheel, and the features of molecules that they read.

ANI-1x are eight networks of different seeds that predict the energy of a molecule of H, C, N and O;
ANI-1ccx are their fine-tunes to energies of a better theory, one for each. The user downloads them,
`pip download --no-deps torchani==2.0`; the files are read without that package.
"""

import itertools
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ELEMENTS = "HCNO"
BASES, FINE_TUNES = "ani-1x_8x", "ani-1ccx_8x"
KCAL = 627.5094738898777  # kcal/mol in a Hartree
_CELU, _LINEAR = "9", "6"  # activations in the files
Sizes = Mapping[str, Sequence[int]]  # by element: the features, then the units of each layer


class AtomicNetworks(nn.Module):
    """A network for each element; a molecule's energy is the sum over its atoms.

    Without the energies of single atoms, in kcal/mol per atom.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({e: _mlp(widths) for e, widths in sizes.items()})

    def forward(
        self, atoms: Tensor, features: Mapping[str, Tensor], molecule: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the energy of each molecule.

        Args:
            atoms: How many each molecule has, (molecules,).
            features: Of all atoms of an element, (atoms, features).
            molecule: To which molecule they belong, (atoms,).

        Returns:
            (molecules,).
        """
        energies = torch.zeros(atoms.shape, dtype=features[ELEMENTS[0]].dtype, device=atoms.device)
        for element, network in self.networks.items():
            of_atoms = network(features[element]).squeeze(-1)
            energies = energies.index_add(0, molecule[element], of_atoms)
        return energies * KCAL / atoms


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    *inner, last = (nn.Linear(a, b) for a, b in itertools.pairwise(widths))
    return nn.Sequential(*(part for layer in inner for part in (layer, nn.CELU(0.1))), last)


class Resources:
    """The folder `resources` of the wheel, or the wheel itself."""

    def __init__(self, path: Path) -> None:
        root = zipfile.Path(path) if path.suffix == ".whl" else path
        found = [
            at
            for at in (root, root / "resources", root / "torchani" / "resources")
            if (at / BASES).exists()
        ]
        if not found:
            raise ValueError(
                f"{path} holds no folder {BASES!r}: give the wheel that `pip download --no-deps "
                "torchani==2.0` gets, or its folder torchani/resources."
            )
        self.root = found[0]

    def members(self, kind: str) -> list[str]:
        """Return the folders of the networks of a kind, in order."""
        return sorted(at.name for at in (self.root / kind).iterdir() if at.is_dir())

    def sizes(self) -> dict[str, list[int]]:
        """Return the widths that the description of the first network names.

        Raises:
            ValueError: If its activations are not CELU, and none after the last layer.
        """
        text = (self.root / BASES / "train0" / "inputtrain.ipt").read_text(encoding="utf-8")
        features = int(_only(re.findall(r"inputsize=(\d+)", text)))
        found = {}
        for part in text.split("atom_net ")[1:]:
            activations = re.findall(r"activation=(\d+)", part)
            if activations != [_CELU] * (len(activations) - 1) + [_LINEAR]:
                raise ValueError(f"activations of {part[0]} must be CELU, got {activations}.")
            found[part[0]] = [features, *map(int, re.findall(r"nodes=(\d+)", part))]
        return found

    def weights(self, kind: str, member: str) -> dict[str, Tensor]:
        """Return the parameters of a network, by their names in `AtomicNetworks`."""
        folder = self.root / kind / member / "networks"
        found = {}
        for element, widths in self.sizes().items():
            for layer, (fan_in, width) in enumerate(itertools.pairwise(widths)):
                for name, shape in (("weight", (width, fan_in)), ("bias", (width,))):
                    file = folder / f"ANN-{element}.nnf-l{layer + 1}.{name[0]}param"
                    values = np.frombuffer(file.read_bytes(), dtype="<f4")
                    if values.size != math.prod(shape):
                        raise ValueError(f"{file} must hold {shape} numbers, got {values.size}.")
                    value = torch.from_numpy(values.copy()).view(shape)
                    found[f"networks.{element}.{2 * layer}.{name}"] = value
        return found

    def symmetry_functions(self) -> "SymmetryFunctions":
        """Return the constants of the features."""
        file = next(at for at in (self.root / BASES).iterdir() if at.name.endswith(".params"))
        lines = dict(line.split(" = ") for line in file.read_text(encoding="utf-8").splitlines())
        numbers = {
            name: torch.tensor([float(v) for v in value.strip("[] ").split(",")])
            for name, value in lines.items()
            if name != "Atyp"
        }
        return SymmetryFunctions(
            radial_cutoff=float(numbers["Rcr"]),
            angular_cutoff=float(numbers["Rca"]),
            radial_width=float(numbers["EtaR"]),
            angular_width=float(numbers["EtaA"]),
            zeta=float(numbers["Zeta"]),
            radial_shifts=numbers["ShfR"],
            angular_shifts=numbers["ShfA"],
            angles=numbers["ShfZ"],
        )


def _only(found: list[str]) -> str:
    (value,) = found
    return value


@dataclass(frozen=True)
class SymmetryFunctions:
    """How an atom's surroundings are described: by distances, and by angles with two neighbours.

    Source: "ANI-1: an extensible neural network potential" (Smith, Isayev, Roitberg, 2017),
    equations 2 to 4, with the factors 0.25 for distances and 0.95 for cosines of the programs.
    """

    radial_cutoff: float  # angstrom
    angular_cutoff: float
    radial_width: float
    angular_width: float
    zeta: float
    radial_shifts: Tensor
    angular_shifts: Tensor
    angles: Tensor

    def __call__(self, positions: Tensor, elements: Sequence[str]) -> Tensor:
        """Return the features of all atoms of molecules that differ in their positions alone.

        Args:
            positions: (molecules, atoms, 3), in angstrom.
            elements: Of the atoms.

        Returns:
            (molecules, atoms, features): the radial ones by element of the neighbour, then the
            angular ones by pair of elements.
        """
        kinds = torch.tensor([ELEMENTS.index(e) for e in elements])
        away = positions[:, None] - positions[:, :, None]  # from atom i to j at [:, i, j]
        distances = away.norm(dim=-1)
        return torch.cat((self._radial(distances, kinds), self._angular(away, kinds)), dim=-1)

    def _radial(self, distances: Tensor, kinds: Tensor) -> Tensor:
        near = _cutoff(distances, self.radial_cutoff) * (1 - torch.eye(distances.shape[-1]))
        apart = distances[..., None] - self.radial_shifts
        terms = 0.25 * torch.exp(-self.radial_width * apart.square()) * near[..., None]
        own = nn.functional.one_hot(kinds, len(ELEMENTS)).to(terms)
        return torch.einsum("mijr,je->mier", terms, own).flatten(-2)

    def _angular(self, away: Tensor, kinds: Tensor) -> Tensor:
        atoms, types = len(kinds), len(ELEMENTS)
        first, second = torch.triu_indices(atoms, atoms, offset=1)
        left, right = away[:, :, first], away[:, :, second]  # (molecules, atoms, pairs, 3)
        lengths = left.norm(dim=-1), right.norm(dim=-1)
        cosines = nn.functional.cosine_similarity(left, right, dim=-1)
        between = torch.acos(0.95 * cosines)[..., None] - self.angles
        bent = ((1 + between.cos()) / 2) ** self.zeta
        apart = (lengths[0] + lengths[1])[..., None] / 2 - self.angular_shifts
        far = torch.exp(-self.angular_width * apart.square())
        near = _cutoff(lengths[0], self.angular_cutoff) * _cutoff(lengths[1], self.angular_cutoff)
        centre = torch.arange(atoms)[:, None]
        near = near * ((first != centre) & (second != centre))
        terms = 2 * near[..., None, None] * far[..., :, None] * bent[..., None, :]
        low, high = torch.minimum(kinds[first], kinds[second]), kinds[first].maximum(kinds[second])
        pair = low * types - low * (low - 1) // 2 + high - low
        own = nn.functional.one_hot(pair, types * (types + 1) // 2).to(terms)
        return torch.einsum("mipsz,pe->miesz", terms, own).flatten(-3)


def _cutoff(distances: Tensor, cutoff: float) -> Tensor:
    smooth = torch.cos(distances * (math.pi / cutoff)) / 2 + 0.5
    return torch.where(distances < cutoff, smooth, 0.0)


@dataclass(frozen=True)
class Molecule:
    """A molecule at rest."""

    name: str
    elements: tuple[str, ...]
    positions: Tensor  # (atoms, 3), in angstrom


@dataclass(frozen=True)
class Geometry:
    """A molecule whose atoms are displaced, as the networks see it."""

    elements: tuple[str, ...]
    features: Tensor  # (atoms, features)


def molecules() -> list[Molecule]:
    """Return the molecules of the G2 set that the networks are made for.

    Those of H, C, N and O with four atoms or more and an even number of electrons.

    Raises:
        ImportError: If ase is not installed.
    """
    try:
        from ase.collections import g2
    except ImportError as error:
        raise ImportError("The geometries come from ase: pip install ase") from error
    found = ((name, g2[name]) for name in g2.names)
    return [
        Molecule(
            name,
            tuple(atoms.get_chemical_symbols()),
            torch.tensor(atoms.positions, dtype=torch.float32),
        )
        for name, atoms in found
        if set(atoms.get_chemical_symbols()) <= set(ELEMENTS)
        and len(atoms) >= 4
        and sum(atoms.numbers) % 2 == 0
    ]


def geometries(
    known: Sequence[Molecule],
    functions: SymmetryFunctions,
    *,
    count: int,
    jitter: float,
    seed: int,
) -> list[Geometry]:
    """Draw molecules, and displace each of their atoms.

    Args:
        known: The molecules.
        functions: What describes atoms.
        count: How many geometries.
        jitter: The standard deviation of each coordinate, in angstrom.
        seed: Of the draws.

    Returns:
        The geometries.
    """
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(known), (count,), generator=random)
    found: dict[int, Geometry] = {}
    for number, molecule in enumerate(known):
        at = (drawn == number).nonzero().flatten().tolist()
        shape = (len(at), *molecule.positions.shape)
        moved = molecule.positions + jitter * torch.randn(shape, generator=random)
        features = functions(moved, molecule.elements)
        found |= {i: Geometry(molecule.elements, f) for i, f in zip(at, features, strict=True)}
    return [found[number] for number in range(count)]


def inputs_of(drawn: Sequence[Geometry]) -> dict[str, Any]:
    """Return the arguments of `AtomicNetworks` for a batch of geometries."""
    features: dict[str, Tensor] = {}
    molecule: dict[str, Tensor] = {}
    for element in ELEMENTS:
        of = [[a for a, e in enumerate(g.elements) if e == element] for g in drawn]
        features[element] = torch.cat([g.features[at] for g, at in zip(drawn, of, strict=True)])
        numbers = [number for number, at in enumerate(of) for _ in at]
        molecule[element] = torch.tensor(numbers, dtype=torch.long)
    atoms = torch.tensor([len(g.elements) for g in drawn])
    return {"atoms": atoms, "features": features, "molecule": molecule}
