"""When weights are embedded, how many, and which: shared by training in one place and federated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from slipstream.modes.embedding import FREE, HELD, Embedding
from slipstream.modes.grouping import Grouping, Reference, combinations, group_rows, standardised
from slipstream.modes.sampling import draw
from slipstream.modes.statistics import regress_

Criterion = Literal["residual", "stability", "coefficients", "random"]
FEWEST = 3  # points of a history that show how a weight moves


@dataclass(frozen=True)
class Growth:
    """How an embedding grows, observation by observation; an observation is an epoch or a round.

    After `warm_up` observations, and then at every `every`-th, a share of the weights begins to
    follow references. Each time, `modes` new references are fitted to the latest observations, so
    that they describe how weights move now; weights that follow one already keep to it.

    Which weights come first, the criterion says:

    - `residual`: those whose latest motion, less the part along their reference, is smallest: so
      much is taken from them.
    - `stability`: those whose fit `a r + b` changes least when the last `every` observations are
      added, relative to the weight's own deviation. No unit matters.
    - `coefficients`: the paper's, those whose (a, b) themselves change least.
    - `random`: any, a control.

    Source: "Enhancing Neural Training via a Correlated Dynamics Model" (Brokman et al., 2024),
    the embedded variant; there, the references stay those of the end of the warm-up.
    """

    warm_up: int = 15  # observations before the first are embedded
    every: int = 5  # observations from one time to the next
    share: float = 0.1  # of all weights, each time
    most: float = 0.8  # of all weights, in the end
    modes: int = 10  # new references each time; 0 holds the weights where they are, a control
    criterion: Criterion = "residual"
    groups: Literal["correlation", "random"] = "correlation"  # `random` is a control
    reference: Reference = "component"
    grouping: Grouping = "complete"
    samples: int = 1000  # weights whose correlations are looked at
    window: int = 20  # observations that are looked at, the latest; each is a copy of the weights
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {
            "warm_up": FEWEST - 1,
            "every": 1,
            "modes": 0,
            "window": FEWEST,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        for name in ("share", "most"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} must be above 0 and at most 1, got {getattr(self, name)}."
                )
        if self.criterion not in get_args(Criterion):
            known = get_args(Criterion)
            raise ValueError(f"criterion must be one of {known}, got {self.criterion!r}.")
        if self.groups not in ("correlation", "random"):
            raise ValueError(f"groups must be correlation or random, got {self.groups!r}.")

    def due(self, observations: int) -> bool:
        """Return whether weights are embedded after so many observations."""
        since = observations - self.warm_up
        return since >= 0 and since % self.every == 0

    def grow(
        self, embedding: Embedding, history: Sequence[Tensor], *, sizes: Mapping[str, int]
    ) -> Embedding:
        """Return the embedding in which a further share of the weights follows references.

        Args:
            embedding: What is embedded already.
            history: The latest observations in order, flat vectors (weights,) on the CPU.
            sizes: The tensors that they are made of: numbers of weights, in order.

        Returns:
            A larger embedding; the same when `most` is reached.

        Raises:
            ValueError: If there are fewer than three observations, or one is not finite.
        """
        total = len(embedding.mode)
        room = round(self.most * total) - (total - len(embedding.free))
        count = min(round(self.share * total), room)
        if count <= 0:
            return embedding
        if len(history) < FEWEST:
            raise ValueError(f"history has {len(history)} observations, {FEWEST} are needed.")
        history = history[-self.window :]
        if not all(point.isfinite().all() for point in history):
            raise ValueError("The history of the weights holds a NaN or an infinity.")
        fit = self._fit(embedding, history, sizes)
        badness = fit.badness.masked_fill(embedding.mode != FREE, torch.inf)
        new = badness.argsort(stable=True)[:count]
        if not self.modes:
            return Embedding(embedding.mode.index_fill(0, new, HELD), embedding.scale)
        used = torch.bincount(fit.mode[new]).nonzero().flatten()  # some have no member
        numbers = torch.searchsorted(used, fit.mode[new])
        return embedding.embed(new, embedding.modes + numbers, fit.scale[new])

    def _fit(
        self, embedding: Embedding, history: Sequence[Tensor], sizes: Mapping[str, int]
    ) -> "_Fit":
        free = torch.split(embedding.mode == FREE, list(sizes.values()))
        rows = _moving_rows(history, dict(zip(sizes, free, strict=True)), self.samples, self.seed)
        references = self._references(rows)
        generator = torch.Generator().manual_seed(self.seed + len(embedding.free))
        parts, start = [], 0
        for size in sizes.values():
            block = torch.stack([point[start : start + size] for point in history])
            parts.append(self._fit_block(block, references, generator))
            start += size
        return _Fit(*map(torch.cat, zip(*parts, strict=True)))

    def _references(self, rows: Tensor) -> Tensor:
        """Return the references of histories that move: (references, observations)."""
        count = max(1, min(self.modes, len(rows)))
        if not len(rows):
            return rows.new_zeros(count, rows.shape[1])
        labels = group_rows(rows, count, grouping=self.grouping, seed=self.seed)
        return combinations(rows, labels, reference=self.reference) @ rows

    def _fit_block(
        self, block: Tensor, references: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The reference of each weight of a block, its slope, and how bad embedding it would be."""
        observations, width = block.shape
        fit = regress_(block.clone(), references)
        mode = fit.slopes.abs().argmax(0)
        if self.groups == "random":
            mode = torch.randint(len(references), (width,), generator=generator)
        scale = fit.slopes.gather(0, mode[None])[0] if self.modes else torch.zeros(width)
        if self.criterion == "random":
            return mode, scale, torch.rand(width, generator=generator)
        if self.criterion == "residual":
            return mode, scale, fit.motion - observations * scale.square()
        earlier = max(FEWEST, observations - self.every)
        slopes, levels = _fit_earlier(block[:earlier], references[:, :earlier])
        moved = (scale - slopes.gather(0, mode[None])[0]).square()
        moved += (fit.mean - levels.gather(0, mode[None])[0]).square()
        if self.criterion == "stability":
            moved /= fit.motion.clamp_min(torch.finfo(moved.dtype).tiny)
        return mode, scale, moved


@dataclass(frozen=True)
class _Fit:
    mode: Tensor  # (weights,) the reference that each weight correlates with most
    scale: Tensor  # (weights,) its slope on that
    badness: Tensor  # (weights,) the criterion: the smallest are embedded first


def _fit_earlier(block: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes and levels on the references as they are, each (references, weights)."""
    mean, deviation = references.mean(1), references.std(1, correction=0)
    deviation = deviation.where(deviation > 0, torch.ones_like(deviation))
    fit = regress_(block.clone(), (references - mean[:, None]) / deviation[:, None])
    slopes = fit.slopes / deviation[:, None].to(fit.slopes)
    return slopes, fit.mean - slopes * mean[:, None].to(slopes)


def _moving_rows(
    history: Sequence[Tensor], free: Mapping[str, Tensor], samples: int, seed: int
) -> Tensor:
    """Standardised histories of free weights that move, drawn from all tensors: (rows, T)."""
    places, start = [], 0
    drawn = draw({name: int(chosen.sum()) for name, chosen in free.items()}, samples, seed=seed)
    for name, chosen in free.items():
        if name in drawn:
            places.append(start + chosen.nonzero().flatten()[drawn[name]])
        start += len(chosen)
    at = torch.cat(places)
    rows = standardised(torch.stack([point[at] for point in history], 1).double())
    return rows[rows.any(1)]
