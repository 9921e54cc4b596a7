"""A decomposition into modes: references, what each mode explains, and correlations."""

import torch

from slipstream.modes import Modes
from slipstream.report.charts.subject import Subject
from slipstream.report.colour_scale import colour_scale
from slipstream.report.content import Cell, Colours, HeatMap, Lines, Panels, Series, Table, plain

_MOST = 1000  # rows of the correlation matrix: a figure has no more points


def reference_panels(modes: Modes, subject: Subject) -> Panels:
    """Return the reference of each mode, with a band where four fifths of its members are."""
    shares = modes.share_by_mode().tolist()
    panels = []
    for mode, reference in enumerate(modes.references):
        members = modes.samples[modes.sample_modes == mode].double()
        band: list[list[float | None]] = [[], []]
        if len(members):  # those that move against their reference are turned around
            aligned = members * (members @ reference).sign()[:, None]
            band = plain(aligned.quantile(aligned.new_tensor([0.1, 0.9]), dim=0))
        line = Series(
            "", modes.steps, plain(reference), subject.colour, band[0], band[1], run=subject.run
        )
        title = f"mode {mode}: {shares[mode]:.1%}"
        unit = "deviations from the mean"
        panels.append(Lines("modes", title, "", subject.clock, unit, [line], run=subject.run))
    reading = (
        "How the weight that represents each mode moves, and how much of all motion the mode "
        "explains; four fifths of its members lie in the band. A narrow band is a good mode."
    )
    title = f"{len(panels)} modes explain {modes.share:.1%} of the motion"
    return Panels("modes", subject.titled(title), reading, panels, run=subject.run)


def share_map(modes: Modes, subject: Subject) -> HeatMap:
    """Return how much of the motion of each tensor each mode explains."""
    shares = modes.explained / modes.motion.sum(1, keepdim=True)
    totals = modes.share_by_tensor().values()
    return HeatMap(
        "shares",
        subject.titled("Which mode moves which tensor"),
        "A row is a tensor; the brighter a cell, the more of its motion that mode explains. The "
        "percentage is what all modes explain together.",
        "mode",
        "tensor",
        colour_scale("share of the tensor's motion", shares, low=0.0),
        [str(mode) for mode in range(len(modes.references))],
        [f"{name}  {total:.0%}" for name, total in zip(modes.names, totals, strict=True)],
        plain(shares),
        run=subject.run,
    )


def correlation_map(modes: Modes) -> HeatMap:
    """Return the absolute correlations of the sampled weights, sorted by mode.

    Args:
        modes: With their samples.

    Returns:
        The matrix; bright squares along the diagonal are groups that move together.

    Raises:
        ValueError: If the modes were saved without samples.
    """
    if not len(modes.samples):
        raise ValueError("These modes were saved without samples: decompose the run again.")
    every = -(-len(modes.samples) // _MOST)
    order = modes.sample_modes.argsort(stable=True)[::every]
    rows = modes.samples[order]
    alike = (rows @ rows.T / rows.shape[1]).abs().clamp(max=1)
    counts = torch.bincount(modes.sample_modes[order], minlength=len(modes.references))
    ends = counts.cumsum(0).tolist()
    names = [""] * len(order)
    for mode, (end, count) in enumerate(zip(ends, counts.tolist(), strict=True)):
        if count >= len(order) / 40:  # narrower ones leave no room for a number
            names[end - count // 2 - 1] = str(mode)
    borders = [end - 0.5 for end in ends[:-1]]
    return HeatMap(
        "correlations",
        f"Correlations of {len(order)} sampled weights",
        "Bright squares along the diagonal are groups that move together.",
        "weight",
        "mode",
        Colours("|correlation|", 0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        list(range(len(order))),
        names,
        plain(alike),
        square=True,
        borders=borders,
        row_borders=borders,
    )


def mode_table(modes: Modes, subject: Subject) -> Table:
    """Return how many weights follow each mode, and its share of the motion."""
    counts, shares = modes.weights_by_mode().tolist(), modes.share_by_mode().tolist()
    rows = [
        [Cell(str(n), n), Cell(f"{count:,}", count), Cell(f"{share:.1%}", share)]
        for n, (count, share) in enumerate(zip(counts, shares, strict=True))
    ]
    reading = "Every weight follows one mode; shares are of the motion of all weights."
    header = ["mode", "weights", "share of the motion"]
    return Table(subject.titled("Modes"), reading, header, rows, run=subject.run)
