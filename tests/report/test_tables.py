import statistics

from slipstream.report.tables import comparison_rows
from slipstream.transfer import Comparison, Outcome


def outcome(name, target, accuracy, *, along=(), further=None):
    steps = tuple({"accuracy": value} for value in along)
    after = {} if further is None else {"accuracy": further}
    seconds, gradients = (2.0 + target, 20) if along else (0.0, 0)
    return Outcome(name, target, {"accuracy": accuracy}, after, steps, seconds, gradients)


COMPARISON = Comparison(
    (
        outcome("target start", 0, 0.1, further=0.5),
        outcome("fgmt", 0, 0.8, along=(0.1, 0.6, 0.8), further=0.9),
        outcome("trained target", 0, 0.9, further=0.92),
        outcome("target start", 1, 0.2, further=0.6),
        outcome("fgmt", 1, 0.6, along=(0.3, 0.4, 0.6), further=0.7),
        outcome("trained target", 1, 0.9, further=0.96),
    )
)


def test_a_row_for_each_way_with_mean_and_spread_over_the_targets():
    header, start, fgmt, trained = comparison_rows(COMPARISON)
    assert header == ("", "accuracy", "after further training", "seconds", "gradients")
    assert start == ("target start", "0.150 ± 0.071", "0.550 ± 0.071", "", "")
    assert fgmt == ("fgmt", "0.700 ± 0.141", "0.800 ± 0.141", "2.50", "20")
    assert trained == ("trained target", "0.900 ± 0.000", "0.940 ± 0.028", "", "")
    mean, deviation = COMPARISON.mean("fgmt", lambda o: o.further["accuracy"])
    assert (mean, deviation) == (0.8, statistics.stdev([0.9, 0.7]))
    alone = Comparison(COMPARISON.outcomes[:1])
    assert alone.mean("target start", lambda o: o.metrics["accuracy"]) == (0.1, 0.0)
