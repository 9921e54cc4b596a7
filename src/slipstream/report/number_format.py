"""Numbers with the digits that matter."""

import math
import statistics
from collections.abc import Sequence


def measured(value: float | None) -> str:
    """Return a number to four significant digits, without trailing zeros.

    Example:
        >>> measured(0.98601), measured(0.00046839), measured(1250.0), measured(None)
        ('0.986', '0.0004684', '1250', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    value += 0.0  # no minus before a zero
    return f"{value:.4g}" if 1e-4 <= abs(value) < 1e5 or value == 0 else f"{value:.3e}"


def with_spread(values: Sequence[float]) -> str:
    """Return mean ± sample standard deviation, both to the two digits that the deviation supports.

    Args:
        values: Of several runs; a single one has no spread, and is shown as `measured`.

    Returns:
        The text.

    Example:
        >>> with_spread([0.9512, 0.9634, 0.9587]), with_spread([1200.0, 1900.0])
        ('0.9578 ± 0.0062', '1550 ± 490')
        >>> with_spread([0.5]), with_spread([2.0, 2.0])
        ('0.5', '2 ± 0')
    """
    if len(values) < 2:
        return measured(values[0] if values else None)
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    if not math.isfinite(deviation) or deviation == 0:
        return f"{measured(mean)} ± {measured(deviation)}"
    places = 1 - math.floor(math.log10(deviation))
    if places < 0:
        return f"{round(mean, places):.0f} ± {round(deviation, places):.0f}"
    return f"{mean:.{places}f} ± {deviation:.{places}f}"
