"""What are its modes? The references of a few groups of weights, and what they explain."""

from collections.abc import Sequence

from slipstream.report.charts.modes import mode_table, reference_panels, share_map
from slipstream.report.content import Item, Note
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
            able.append((shown.run.modes, shown.subject))
        except (ValueError, OSError) as error:
            notes.append(Note(f"{shown.name}: {error}", run=shown.number))
    makers = (reference_panels, share_map, mode_table)
    return [*notes, *(make(modes, subject) for make in makers for modes, subject in able)]
