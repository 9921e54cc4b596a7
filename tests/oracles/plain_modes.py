"""Correlation mode decomposition as the paper writes it: one weight after the other, in float64."""

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage


def correlation(first, second):
    """Pearson's; 0 where one of the two is constant."""
    first, second = first - first.mean(), second - second.mean()
    size = np.sqrt((first @ first) * (second @ second))
    return first @ second / size if size else 0.0


def references_of(rows, modes):
    """Complete linkage on the rows of |correlation|, and the most central member of each group."""
    alike = np.array([[abs(correlation(p, q)) for q in rows] for p in rows])
    labels = fcluster(linkage(alike, "complete", metric="euclidean"), modes, "maxclust")
    chosen = []
    for mode in sorted(set(labels)):
        (members,) = np.nonzero(labels == mode)
        central = alike[np.ix_(members, members)].mean(1).argmax()
        chosen.append(rows[members[central]])
    return chosen, labels


def fit(rows, references):
    """The mode, slope and offset of each weight: least squares on the reference it suits most."""
    modes, slopes, offsets = [], [], []
    for row in rows:
        mode = int(np.argmax([abs(correlation(row, r)) for r in references]))
        design = np.stack([references[mode], np.ones(len(row))], 1)
        (slope, offset), *_ = np.linalg.lstsq(design, row, rcond=None)
        modes.append(mode)
        slopes.append(slope)
        offsets.append(offset)
    return np.array(modes), np.array(slopes), np.array(offsets)


def decompose(rows, modes, sampled):
    """All of it: rows are (weights, steps), `sampled` the rows that are grouped."""
    references, _ = references_of(rows[sampled], modes)
    return references, *fit(rows, references)


class OnlineSums:
    """Slopes and offsets from plain sums in float64, recomputed for every weight in a loop."""

    def __init__(self, weights):
        self.count = 0
        self.sums = np.zeros((3, len(weights)))  # of w, r and w r, ...
        self.squares = np.zeros(len(weights))  # ... and of r r

    def update(self, weights, references):
        """One observation of each weight and of its reference."""
        slopes, offsets = [], []
        self.count += 1
        for i, (w, r) in enumerate(zip(weights, references, strict=True)):
            self.sums[:, i] += (w, r, w * r)
            self.squares[i] += r * r
            s_w, s_r, s_wr = self.sums[:, i]
            spread = self.count * self.squares[i] - s_r * s_r
            slope = (self.count * s_wr - s_r * s_w) / spread if spread else 0.0
            slopes.append(slope)
            offsets.append((s_w - slope * s_r) / self.count)
        return np.array(slopes), np.array(offsets)
