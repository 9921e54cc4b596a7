"""From the histories of some weights to a few groups that move in step, and their references."""

from typing import Literal, get_args

import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

Grouping = Literal["complete", "average", "k-means"]
Reference = Literal["member", "component"]
_SWEEPS = 100  # of k-means; it is settled after ten or so


def standardised(rows: Tensor) -> Tensor:
    """Return `rows` with mean 0 and variance 1 over the steps; a constant row becomes zeros.

    Args:
        rows: (weights, steps) histories, float64.

    Returns:
        (weights, steps), so that `z @ z.T / steps` are Pearson's correlations.
    """
    moves = rows - rows[:, :1]  # a constant row becomes exact zeros, whatever its mean rounds to
    centred = moves - moves.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(deviation > 0, centred / deviation, 0.0)


def group_rows(rows: Tensor, modes: int, *, grouping: Grouping, seed: int = 0) -> Tensor:
    """Put histories that move in step, or against each other, into the same of `modes` groups.

    Args:
        rows: (weights, steps) standardised histories that move.
        modes: The number of groups.
        grouping: `complete` linkage on the distances between rows of the matrix of absolute
            correlations is the paper's; `average` linkage on 2 - 2 |correlation|, the squared
            distance of aligned rows; both need weights^2 memory. `k-means`, whose centres are
            directions and whose distances ignore the sign, needs weights x modes.
        seed: Of the first centres of `k-means`.

    Returns:
        (weights,) the group of each row, the largest group first, int64.

    Raises:
        ValueError: If the grouping is unknown, or there are fewer rows than groups.

    Source: "Enhancing Neural Training via a Correlated Dynamics Model" (Brokman et al., 2024).

    Example:
        >>> rows = standardised(torch.tensor([[0.0, 1, 2], [0, 1, 0], [5, 3, 1]]).double())
        >>> group_rows(rows, 2, grouping="complete")
        tensor([0, 1, 0])
    """
    if grouping not in get_args(Grouping):
        raise ValueError(f"grouping must be one of {get_args(Grouping)}, got {grouping!r}.")
    if not 1 <= modes <= len(rows):
        raise ValueError(
            f"modes={modes}, but {len(rows)} of the sampled weights move: "
            "ask for at least one mode and at most as many, or for more samples."
        )
    if grouping == "k-means":
        return _largest_first(_k_means(rows, modes, seed), modes)
    alike = (rows @ rows.T / rows.shape[1]).abs().clamp(max=1)
    distances = _distances(alike) if grouping == "complete" else 2 - 2 * alike
    distances.fill_diagonal_(0)
    condensed = squareform(distances.numpy(), checks=False)
    merges = linkage(condensed, grouping)[: len(rows) - modes, :2].astype(int).tolist()
    return _largest_first(_merged(len(rows), merges), modes)


def combinations(rows: Tensor, labels: Tensor, *, reference: Reference) -> Tensor:
    """Return the reference of each group as a combination of its members' standardised histories.

    Args:
        rows: (weights, steps) standardised histories.
        labels: (weights,) groups, 0 to the number of modes - 1, none of them empty.
        reference: `member`, the member with the largest mean |correlation| to its group, is the
            paper's; `component` is the first principal component of the aligned members, less
            noisy than any one of them.

    Returns:
        (modes, weights): `combinations(...) @ rows` are the references, with variance 1.

    Raises:
        ValueError: If the reference is unknown.
    """
    if reference not in get_args(Reference):
        raise ValueError(f"reference must be one of {get_args(Reference)}, got {reference!r}.")
    modes, steps = int(labels.max()) + 1, rows.shape[1]
    combined = rows.new_zeros(modes, len(rows))
    for mode in range(modes):
        members = (labels == mode).nonzero().flatten()
        if reference == "member":
            alike = (rows[members] @ rows[members].T).abs().mean(1)
            combined[mode, members[alike.argmax()]] = 1
        else:
            component = _component(rows[members])  # (steps,)
            along = rows[members] @ component
            combined[mode, members] = along * steps**0.5 / (along @ rows[members]).norm()
    return combined


def _component(rows: Tensor) -> Tensor:
    """The direction that explains most of the rows, of length 1: it ends above where it starts."""
    few = rows if len(rows) < rows.shape[1] else torch.linalg.qr(rows, mode="r").R
    direction: Tensor = torch.linalg.svd(few, full_matrices=False).Vh[0]
    return direction if direction[-1] >= direction[0] else -direction


def _merged(rows: int, merges: list[list[int]]) -> Tensor:
    """The group of each row after some merges: the n-th makes the group `rows + n` of two."""
    groups = list(range(rows + len(merges)))
    for number in reversed(range(len(merges))):
        for part in merges[number]:
            groups[part] = groups[rows + number]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups[:rows]))}
    return torch.tensor([numbers[group] for group in groups[:rows]])


def _distances(points: Tensor) -> Tensor:
    """Euclidean distances between rows, by their inner products."""
    products = points @ points.T
    squares = products.diagonal()
    return (squares[:, None] + squares - 2 * products).clamp(min=0).sqrt()


def _k_means(rows: Tensor, modes: int, seed: int) -> Tensor:
    """Lloyd's sweeps over lines through the origin, from spread centres."""
    centres = _spread(rows, modes, seed)
    labels = torch.full((len(rows),), -1)
    for _ in range(_SWEEPS):
        along = (rows @ centres.T).abs()  # (weights, modes)
        nearest = _none_empty(along, along.argmax(1))
        if torch.equal(nearest, labels):
            break
        labels = nearest
        centres = torch.stack([_component(rows[labels == mode]) for mode in range(modes)])
    return labels


def _none_empty(along: Tensor, labels: Tensor) -> Tensor:
    """Give each empty group the row that fits worst where it is."""
    modes = along.shape[1]
    for empty in (torch.bincount(labels, minlength=modes) == 0).nonzero().flatten():
        fit = along.gather(1, labels[:, None]).flatten()
        alone = torch.bincount(labels, minlength=modes)[labels] == 1
        labels[fit.masked_fill(alone, torch.inf).argmin()] = empty
    return labels


def _spread(rows: Tensor, modes: int, seed: int) -> Tensor:
    """First centres: rows drawn by how little those before explain them (k-means++)."""
    generator = torch.Generator().manual_seed(seed)
    directions: Tensor = rows / rows.norm(dim=1, keepdim=True)
    weights = rows.new_ones(len(rows))
    chosen: list[int] = []
    for _ in range(modes):
        weights[chosen] = 0
        if not weights.any():  # all rows lie on the lines chosen so far
            weights = rows.new_ones(len(rows)).index_fill_(0, torch.tensor(chosen), 0)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        left = 1 - (directions @ directions[chosen[-1]]).square()
        weights = torch.minimum(weights, left.clamp(min=0))
    return directions[chosen]


def _largest_first(labels: Tensor, modes: int) -> Tensor:
    """Number the groups by size; among equals, the one of the first row first."""
    counts = torch.bincount(labels, minlength=modes)
    firsts = [int((labels == mode).nonzero()[0]) for mode in range(modes)]
    ranked = sorted(range(modes), key=lambda mode: (-int(counts[mode]), firsts[mode]))
    places: Tensor = torch.tensor(ranked).argsort()
    return places.gather(0, labels)
