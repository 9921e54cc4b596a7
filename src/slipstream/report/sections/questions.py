"""All questions in order, and how each one is answered for some runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slipstream.report.content import Item, Note, Section
from slipstream.report.recorded_run import Shown
from slipstream.report.sections.decomposition import decomposition
from slipstream.report.sections.ending import Landscapes, ending
from slipstream.report.sections.gain import gain
from slipstream.report.sections.movement import movement
from slipstream.report.sections.outcome import outcome
from slipstream.transfer import Comparison

QUESTIONS = {
    "run": "What was learned?",
    "motion": "How did the weights move?",
    "modes": "What are its modes?",
    "transfer": "What did a transfer gain?",
    "end": "Where did it end?",
}


@dataclass(frozen=True)
class Extras:
    """What the sections need besides the runs."""

    comparison: Comparison | None = None  # of methods, measured before
    landscapes: Landscapes | None = None  # None measures nothing on data


def build_section(key: str, runs: Sequence[Shown], extras: Extras) -> Section:
    """Answer one question.

    Where there is no answer, a sentence says why: the run is empty, too short, or holds a NaN.

    Args:
        key: One of `QUESTIONS`.
        runs: The runs of the page, at least one.
        extras: A comparison, and how to measure losses.

    Returns:
        The section.
    """
    return Section(key, QUESTIONS[key], list(_items(key, runs, extras)))


def _items(key: str, runs: Sequence[Shown], extras: Extras) -> Iterable[Item]:
    if key == "run":
        return outcome(runs)
    if key == "transfer":
        return gain(runs, comparison=extras.comparison, landscapes=extras.landscapes)
    filled = [shown for shown in runs if shown.run.folder.entries]
    notes: list[Item] = [
        Note(f"{shown.name} holds no snapshot yet.", run=shown.number)
        for shown in runs
        if shown not in filled
    ]
    if key == "end":
        return [*notes, *(ending(filled, landscapes=extras.landscapes) if filled else [])]
    if key == "modes":
        return [*notes, *decomposition(filled)]
    return [*notes, *movement(filled)]
