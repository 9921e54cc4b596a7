"""What are its modes? The references of a few groups of weights, and what they explain."""

from collections.abc import Sequence

from slipstream.modes import Modes
from slipstream.report.content import Cell, HeatMap, Item, Lines, Note, Panels, Series, Table, plain
from slipstream.report.palette import run_colour
from slipstream.report.recorded_run import Shown


def decomposition(runs: Sequence[Shown]) -> list[Item]:
    """Return the references, what each mode explains of each tensor, and a table, of each run.

    Args:
        runs: The runs of the page.

    Returns:
        Charts and tables; a note for each run that is too short, or holds a NaN.
    """
    notes: list[Item] = []
    able = []
    for shown in runs:
        try:
            able.append((shown.run.modes, shown))
        except (ValueError, OSError) as error:
            notes.append(Note(f"{shown.name}: {error}", run=shown.number))
    makers = (_references, _shares, _table)
    return [*notes, *(make(modes, shown) for make in makers for modes, shown in able)]


def _references(modes: Modes, shown: Shown) -> Panels:
    shares = modes.share_by_mode().tolist()
    panels = []
    for mode, reference in enumerate(modes.references):
        members = modes.samples[modes.sample_modes == mode].double()
        band: list[list[float | None]] = [[], []]
        if len(members):
            aligned = members * (members @ reference).sign()[:, None]
            band = plain(aligned.quantile(aligned.new_tensor([0.1, 0.9]), dim=0))
        line = Series(
            "", modes.steps, plain(reference), run_colour(shown.number), band[0], band[1],
            run=shown.number,
        )  # fmt: skip
        title = f"mode {mode}: {shares[mode]:.1%}"
        unit = "deviations from the mean"
        panels.append(Lines("modes", title, "", shown.run.clock, unit, [line], run=shown.number))
    reading = (
        "The course of the weight that stands for each mode, and how much of all motion the mode "
        "explains; four fifths of the members lie in the band. A narrow band is a good mode."
    )
    title = f"{len(panels)} modes explain {modes.share:.1%} of the motion"
    return Panels("modes", _title(title, shown), reading, panels, run=shown.number)


def _shares(modes: Modes, shown: Shown) -> HeatMap:
    return HeatMap(
        "shares",
        _title("Which mode moves which tensor", shown),
        "A row is a tensor; the darker a place, the more of its motion that mode explains.",
        "mode",
        "tensor",
        "share of the tensor's motion",
        [str(mode) for mode in range(len(modes.references))],
        modes.names,
        plain(modes.explained / modes.motion.sum(1, keepdim=True)),
        run=shown.number,
    )


def _table(modes: Modes, shown: Shown) -> Table:
    counts, shares = modes.weights_by_mode().tolist(), modes.share_by_mode().tolist()
    rows = [
        [Cell(str(n), n), Cell(f"{count:,}", count), Cell(f"{share:.1%}", share)]
        for n, (count, share) in enumerate(zip(counts, shares, strict=True))
    ]
    reading = "Every weight follows one mode; shares are of the motion of all weights."
    header = ["mode", "weights", "share of the motion"]
    return Table(_title("Modes", shown), reading, header, rows, run=shown.number)


def _title(text: str, shown: Shown) -> str:
    return text if shown.alone else f"{text}: {shown.name}"
