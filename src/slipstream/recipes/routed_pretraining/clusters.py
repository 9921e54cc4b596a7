"""Unlabelled images: held together, clustered by their features, and dealt out in batches."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slipstream.evaluation import Batch
from slipstream.evaluation.batches import inputs_of

RESTARTS = 4  # of k-means; the best one counts


@dataclass(frozen=True)
class Images:
    """Images in one tensor, and in how large batches they came."""

    images: Tensor  # (images, channels, height, width)
    size: int

    @classmethod
    def of(cls, data: Iterable[Batch]) -> "Images":
        """Take the images out of batches; labels beside them are not looked at.

        Args:
            data: Batches; an image batch is a tensor, or comes first in a tuple.

        Returns:
            The images.

        Raises:
            ValueError: If there is no batch, one holds no images, or a value is not finite.
        """
        parts = [inputs_of(batch) for batch in data]
        if not parts:
            raise ValueError("data is empty: there are no images to learn from.")
        for number, part in enumerate(parts):
            if not isinstance(part, Tensor) or part.dim() != 4 or not part.is_floating_point():
                got = (
                    f"{part.dtype} of shape {tuple(part.shape)}"
                    if isinstance(part, Tensor)
                    else type(part).__name__
                )
                raise ValueError(
                    f"Batch {number + 1} holds no images: expected a floating tensor (images, "
                    f"channels, height, width), alone or first in a tuple, got {got}."
                )
        images = torch.cat(parts)
        if not torch.isfinite(images).all():
            raise ValueError("The images hold a NaN or an infinity: leave those out.")
        return cls(images, len(parts[0]))

    def __len__(self) -> int:
        return len(self.images)

    def outputs(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what a function gives for all images, batch by batch."""
        return torch.cat([function(part) for part in torch.split(self.images, max(self.size, 256))])


def cluster(features: Tensor, count: int, *, seed: int) -> Tensor:
    """Return the cluster of each row by k-means on standardised features.

    Args:
        features: (images, features).
        count: How many clusters.
        seed: Of the centres' starts.

    Returns:
        int64, (images,), from 0; the largest cluster first.

    Raises:
        ValueError: If there are fewer different rows than clusters.

    Example:
        >>> cluster(torch.tensor([[0.0], [5.0], [5.1], [5.2]]), 2, seed=0).tolist()
        [1, 0, 0, 0]
    """
    from sklearn.cluster import KMeans  # slow to import, and only needed here

    rows = features.double().cpu().numpy()
    different = len(np.unique(rows, axis=0))
    if different < count:
        raise ValueError(
            f"{len(rows)} images with {different} different features cannot be divided into "
            f"{count} clusters: ask for fewer clusters, or give more images."
        )
    deviation = rows.std(0)
    rows = (rows - rows.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    found = KMeans(count, n_init=RESTARTS, random_state=seed).fit_predict(rows)
    rank = np.argsort(np.argsort(-np.bincount(found, minlength=count), kind="stable"))
    return torch.from_numpy(rank[found].astype(np.int64))


@dataclass(frozen=True)
class Dealt:
    """Batches `(branch, images)`: equally many in every epoch, shared out by the clusters' sizes.

    Before there are clusters, and for the share `foreign` of the images, they come from all.
    """

    held: Images
    clusters: Callable[[], Tensor | None]
    foreign: Callable[[int], float]  # of an epoch
    seed: int
    number: int = 0  # of the epoch

    def __len__(self) -> int:
        return max(1, len(self.held) // self.held.size)

    def epoch(self, number: int) -> "Dealt":
        """Return the batches of another epoch."""
        return Dealt(self.held, self.clusters, self.foreign, self.seed, number)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        generator, size = np.random.default_rng((self.seed, self.number)), self.held.size
        clusters, steps = self.clusters(), len(self)
        everything = generator.permutation(len(self.held))
        if clusters is None:
            for step in range(steps):
                yield 0, self.held.images[everything[step * size : (step + 1) * size]]
            return
        own = [
            generator.permutation(np.flatnonzero(clusters.numpy() == branch))
            for branch in range(int(clusters.max()) + 1)
        ]
        ends = np.cumsum([len(part) for part in own]) / len(self.held) * steps
        # The same offset for all of them keeps the sum, and no small cluster is always left out.
        counts = np.diff(np.floor(np.concatenate([[0.0], ends]) + generator.random() - 1e-9))
        turns = generator.permutation(np.repeat(np.arange(len(own)), counts.astype(int)))
        done = [0] * len(own)
        for turn in turns.tolist():
            at = own[turn][np.arange(done[turn], done[turn] + size) % len(own[turn])]
            done[turn] += size
            mixed = generator.random(size) < self.foreign(self.number)
            at = np.where(mixed, generator.choice(everything, size), at)
            yield turn, self.held.images[at]
