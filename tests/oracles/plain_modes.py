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
    references = np.array(references)
    means = references.mean(1)
    centred = references - means[:, None]
    sizes = np.sqrt((centred**2).sum(1))
    modes, slopes, offsets = [], [], []
    for row in rows:
        mean = row.mean()
        along = centred @ (row - mean)
        mode = np.argmax(np.abs(along) / sizes)
        modes.append(mode)
        slopes.append(along[mode] / sizes[mode] ** 2)
        offsets.append(mean - slopes[-1] * means[mode])
    return np.array(modes), np.array(slopes), np.array(offsets)


def decompose(rows, modes, sampled):
    """All of it: rows are (weights, steps), `sampled` the rows that are grouped."""
    references, _ = references_of(rows[sampled], modes)
    return references, *fit(rows, references)


class OnlineSums:
    """Slopes and offsets from plain sums in float64, one weight after the other."""

    def __init__(self, weights):
        self.count = 0
        self.sums = [(0.0, 0.0, 0.0, 0.0) for _ in weights]  # of w, r, w r and r r

    def update(self, weights, references):
        """One observation of each weight and of its reference."""
        self.count += 1
        n, slopes, offsets = self.count, [], []
        for i, (w, r) in enumerate(zip(weights.tolist(), references.tolist(), strict=True)):
            s_w, s_r, s_wr, s_rr = self.sums[i]
            s_w, s_r, s_wr, s_rr = self.sums[i] = (s_w + w, s_r + r, s_wr + w * r, s_rr + r * r)
            spread = n * s_rr - s_r * s_r
            slope = (n * s_wr - s_r * s_w) / spread if spread else 0.0
            slopes.append(slope)
            offsets.append((s_w - slope * s_r) / n)
        return np.array(slopes), np.array(offsets)
