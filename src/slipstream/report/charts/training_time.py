"""A predicted training time."""

from slipstream.dynamics import TrainingTime
from slipstream.report.content import Lines, Mark, Series, plain
from slipstream.report.palette import BLUE, GREY


def training_time_chart(found: TrainingTime) -> Lines:
    """Return the predicted loss, the thresholds, and what the real steps that were taken gave."""
    last = len(found.losses) - 1
    thresholds = [
        Series("", [0, last], [one.loss, one.loss], GREY, dashed=True) for one in found.arrivals
    ]
    marks = [
        Mark(f"{one.steps} steps", one.steps, one.loss)
        for one in found.arrivals
        if one.steps is not None
    ]
    if found.trust.steps:
        marks.append(Mark("measured", found.warm_up + found.trust.steps, found.trust.real_loss))
    predicted = Series("predicted", list(range(last + 1)), plain(found.losses), BLUE)
    log = all(value is not None and value > 0 for value in predicted.y)
    return Lines(
        "training time",
        f"Predicted training: {found.status}",
        f"Dashed lines are the thresholds. The path error is {found.trust.path_error:.2g}: "
        f"{found.trust.verdict}.",
        "step",
        "loss over the data",
        [predicted, *thresholds],
        log=log,
        marks=marks,
    )
