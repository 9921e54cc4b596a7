"""From results to rows of text, the same for the terminal and for markdown."""

from slipstream.transfer.comparison import Comparison, Outcome
from slipstream.transfer.savings import Reached, Savings

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
    for name, gradients in comparison.rows:
        cells = [name, _spread(comparison, (name, gradients), metric, "metrics")]
        if further:
            cells.append(_spread(comparison, (name, gradients), metric, "further"))
        moved = any(outcome.along or outcome.seconds for outcome in comparison.of(name, gradients))
        seconds, _ = comparison.mean(name, lambda outcome: outcome.seconds, gradients=gradients)
        cells += [f"{seconds:.2f}", str(gradients)] if moved else ["", ""]
        rows.append(tuple(cells))
    return rows


def savings_rows(savings: Savings) -> Rows:
    """Return a table of what was saved: a header, then a row for each target.

    Args:
        savings: What to show.

    Returns:
        Rows of equal length: the goal; gradients, seconds and test metric of the best method with
        the source, then of the best one without; how many times fewer gradients.
    """
    test = f"test {savings.metric}"
    own = ["with the source", "gradients", "seconds", test]
    other = ["without", "gradients", "seconds", test]
    rows: Rows = [("target", "goal", *own, *other, "times fewer gradients")]
    for one in savings.targets:
        bound = "" if one.ratio is not None or one.transfer is None else "> "
        ratio = f"{bound}{one.least_ratio:.3g}" if one.transfer else "not reached"
        parts = _reached(one.transfer, None), _reached(one.rival, one.most_gradients)
        rows.append((str(one.target), f"{one.goal:.4g}", *parts[0], *parts[1], ratio))
    return rows


def _reached(reached: Reached | None, most: int | None) -> list[str]:
    if reached is None:
        return ["none", "" if most is None else f"> {most}", "", ""]
    return [
        reached.name,
        str(reached.gradients),
        f"{reached.seconds:.2f}",
        f"{reached.test:.3f}",
    ]


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


def _spread(comparison: Comparison, row: tuple[str, int], metric: str, where: str) -> str:
    def read(outcome: Outcome) -> float:
        value: float = getattr(outcome, where)[metric]
        return value

    mean, deviation = comparison.mean(row[0], read, gradients=row[1])
    return f"{mean:.3f} ± {deviation:.3f}"
