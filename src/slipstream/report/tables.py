"""From results to rows of text, the same for the terminal and for markdown."""

from slipstream.transfer.comparison import Comparison, Outcome

Rows = list[tuple[str, ...]]


def comparison_rows(comparison: Comparison, *, metric: str = "accuracy") -> Rows:
    """Return a table of a comparison: a header, then a row for each method.

    Args:
        comparison: What to show.
        metric: Which metric.

    Returns:
        Rows of equal length: name, metric without training and after further training (mean and
        standard deviation over the targets), seconds and gradient evaluations of the transfer.
    """
    further = any(outcome.further for outcome in comparison.outcomes)
    header = ["", metric, *(["after further training"] if further else []), "seconds", "gradients"]
    rows: Rows = [tuple(header)]
    for name in comparison.names:
        outcomes = comparison.of(name)
        cells = [name, _spread(comparison, name, metric, "metrics")]
        if further:
            cells.append(_spread(comparison, name, metric, "further"))
        moved = any(outcome.along for outcome in outcomes)
        seconds, _ = comparison.mean(name, lambda outcome: outcome.seconds)
        cells += [f"{seconds:.2f}", str(outcomes[0].gradient_evaluations)] if moved else ["", ""]
        rows.append(tuple(cells))
    return rows


def markdown(rows: Rows) -> str:
    """Return rows as a markdown table, the first one its header.

    Example:
        >>> print(markdown([("", "loss"), ("naive", "0.5")]))
        |  | loss |
        |---|--:|
        | naive | 0.5 |
    """
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|" + "--:|" * (len(rows[0]) - 1))
    return "\n".join(lines)


def _spread(comparison: Comparison, name: str, metric: str, where: str) -> str:
    def read(outcome: Outcome) -> float:
        value: float = getattr(outcome, where)[metric]
        return value

    mean, deviation = comparison.mean(name, read)
    return f"{mean:.3f} ± {deviation:.3f}"
