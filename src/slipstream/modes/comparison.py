"""What the modes are worth: the same run with other groups, and an upper bound."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.modes.fit import Progress, check_length, sample_rows
from slipstream.modes.grouping import Grouping, combinations, group_rows
from slipstream.modes.statistics import Regression, blocks, check_finite, regress_
from slipstream.trajectory import Trajectory

_DRAWS = 5  # of references at random: one draw may be lucky


@dataclass(frozen=True)
class Explained:
    """How much of the motion of a run one decomposition explains."""

    name: str
    curves: int  # references or components, each of a number for every step
    numbers_per_weight: int  # values per weight, besides its group
    share: float  # of the motion of all weights, 0 to 1

    @property
    def relative_error(self) -> float:
        """Distance of run and reconstruction, relative to that of the run from its mean."""
        return math.sqrt(max(0.0, 1 - self.share))


@dataclass(frozen=True)
class ModesComparison:
    """Result of `compare_modes`; printing it shows the table."""

    rows: tuple[Explained, ...]

    def __getitem__(self, name: str) -> Explained:
        return {row.name: row for row in self.rows}[name]

    @property
    def gain(self) -> float:
        """The share of the motion that grouping explains beyond references drawn at random."""
        return max(self["member"].share, self["component"].share) - self["random members"].share

    def __str__(self) -> str:
        lines = [f"{'':<16} curves  values per weight  explained  relative error"]
        lines += [
            f"{row.name:<16} {row.curves:>6}  {row.numbers_per_weight:>17}  {row.share:>9.1%}"
            f"  {row.relative_error:>14.4f}"
            for row in self.rows
        ]
        if self.gain <= 0:
            lines.append("References drawn at random explain as much: the grouping adds nothing.")
        return "\n".join(lines)


def compare_modes(
    trajectory: Trajectory,
    *,
    modes: int = 10,
    samples: int = 1000,
    grouping: Grouping = "complete",
    seed: int = 0,
    progress: Progress | None = None,
) -> ModesComparison:
    """Decompose a run into modes, and in the ways that should do worse or better.

    `member` and `component` are those of `fit_modes`. `one mode` has a single reference. For
    `random members`, references are drawn at random among the sampled weights (the mean of five
    draws), and each weight follows the one that suits it most: what this leaves is owed to the
    grouping. For `random groups`, the weights are assigned at random too. For `layers`, each tensor
    is a group of its own. `PCA` is the best that so many curves can do, with a number for each
    curve and weight. The run is read once for all of them.

    Args:
        trajectory: At least three snapshots.
        modes: The number of modes M.
        samples: The number of weights of which references are made.
        grouping: As of `fit_modes`.
        seed: Of the sample, and of what is drawn at random.
        progress: Called before each tensor.

    Returns:
        A row for each way.

    Raises:
        ValueError: As of `fit_modes`.

    Example:
        >>> time = torch.linspace(0, 1, 5, dtype=torch.float64)
        >>> run = [{"w": torch.tensor([t, 3 - 2 * t, t * t, -t * t])} for t in time]
        >>> print(compare_modes(Trajectory.from_weights(run), modes=2))
                         curves  values per weight  explained  relative error
        member                2                  2     100.0%          0.0000
        component             2                  2     100.0%          0.0000
        one mode              1                  2      97.9%          0.1433
        random members        2                  2      97.9%          0.1448
        random groups         2                  2      97.9%          0.1433
        layers                1                  2      97.9%          0.1433
        PCA                   2                  3     100.0%          0.0000
    """
    check_length(trajectory)
    names = trajectory.layout.learned
    rows, of = sample_rows(trajectory, samples, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    ways = _ways(rows, modes, grouping, generator)
    explained = dict.fromkeys(ways, 0.0)
    layers, motion = 0.0, 0.0
    products = torch.zeros(len(trajectory), len(trajectory), dtype=torch.float64)
    for number, name in enumerate(names):
        if progress is not None:
            progress(name, number, len(names))
        own = [row for row, owner in enumerate(of) if owner == name]
        layer = _component(rows[own] if own else rows)
        references = torch.cat([*(way.references for way in ways.values()), layer])
        for _, block in blocks(trajectory, name):
            found = regress_(block, references)
            check_finite(found, block, name, trajectory.steps)
            motion += float(found.motion.sum(dtype=torch.float64))
            products += (block @ block.T).double()
            start = 0
            for way_name, way in ways.items():
                stop = start + len(way.references)
                explained[way_name] += way.explained(found, slice(start, stop), generator)
                start = stop
            layers += float(found.slopes[-1].double().square().sum())
    steps = len(trajectory)
    table = [
        Explained(name, len(way.references) // way.draws, 2, explained[name] * steps / motion)
        for name, way in ways.items()
    ]
    table.append(Explained("layers", len(set(of)), 2, layers * steps / motion))
    table.append(Explained("PCA", modes, modes + 1, _principal_share(products, modes)))
    return ModesComparison(tuple(table))


@dataclass(frozen=True)
class _Way:
    """References, and how a weight comes to one of them."""

    references: Tensor  # (draws x modes, steps)
    draws: int = 1  # so many sets of references, of which the mean is reported
    dealt: bool = False  # at random, instead of to the nearest

    def explained(self, found: Regression, own: slice, generator: torch.Generator) -> float:
        """The variance that the references, some of those regressed on, explain, summed."""
        slopes = found.slopes[own]
        squares = slopes.square().view(self.draws, -1, slopes.shape[1])
        if not self.dealt:
            return float(squares.max(1).values.sum(dtype=torch.float64)) / self.draws
        modes, width = squares.shape[1:]
        dealt = torch.randint(modes, (1, 1, width), generator=generator)
        return float(squares.gather(1, dealt).sum(dtype=torch.float64))


def _ways(
    rows: Tensor, modes: int, grouping: Grouping, generator: torch.Generator
) -> dict[str, _Way]:
    labels = group_rows(rows, modes, grouping=grouping, seed=generator.initial_seed())
    drawn = [torch.randperm(len(rows), generator=generator)[:modes] for _ in range(_DRAWS)]
    mixed = torch.randperm(len(rows), generator=generator)
    groups = [_component(rows[mixed[mode::modes]]) for mode in range(modes)]
    return {
        "member": _Way(combinations(rows, labels, reference="member") @ rows),
        "component": _Way(combinations(rows, labels, reference="component") @ rows),
        "one mode": _Way(_component(rows)),
        "random members": _Way(rows[torch.cat(drawn)], draws=_DRAWS),
        "random groups": _Way(torch.cat(groups), dealt=True),
    }


def _component(rows: Tensor) -> Tensor:
    """The first principal component of rows, one reference: (1, steps)."""
    together = torch.zeros(len(rows), dtype=torch.int64)
    return combinations(rows, together, reference="component") @ rows


def _principal_share(products: Tensor, components: int) -> float:
    """The share of the motion along the first components, from inner products of snapshots."""
    centred = products - products.mean(0)
    centred -= centred.mean(1, keepdim=True)
    values = torch.linalg.eigvalsh(centred).clamp(min=0)
    return float(values[-components:].sum() / values.sum())
