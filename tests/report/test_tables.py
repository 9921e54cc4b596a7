import statistics
from dataclasses import replace

from slipstream.report.tables import comparison_rows, savings_rows
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


def rival(gradients, reached, target=0):
    kept = {"accuracy": reached}
    seconds = gradients / 10
    return Outcome(
        "adam", target, {"accuracy": reached}, {}, (), seconds, gradients, kept, without_source=True
    )


def held(one, value):
    return replace(one, validation={"accuracy": value})


BOTH = Comparison(
    (
        held(outcome("target start", 0, 0.1), 0.1),
        held(outcome("fgmt", 0, 0.8, along=(0.1, 0.8)), 0.9),
        rival(10, 0.5),
        rival(40, 0.9),
        held(outcome("trained target", 0, 0.9), 0.9),
    )
)


def test_a_method_with_several_numbers_of_gradients_has_several_rows():
    rows = comparison_rows(BOTH)
    assert rows[3] == ("adam", "0.500 ± 0.000", "1.00", "10")
    assert rows[4] == ("adam", "0.900 ± 0.000", "4.00", "40")
    assert BOTH.rivals == ("adam",)


def test_savings_show_both_sides_and_the_ratio_or_a_bound():
    header, row = savings_rows(BOTH.savings())
    assert header[-1] == "times fewer gradients"
    assert row == (
        "0", "0.891", "fgmt", "20", "2.00", "0.800", "adam", "40", "4.00", "0.900", "2",
    )  # fmt: skip
    _, bound = savings_rows(BOTH.savings(value=0.9 + 1e-9))
    assert bound[2:6] == ("none", "", "", "")
    assert bound[-1] == "not reached"
    short = Comparison((*BOTH.outcomes[:3], BOTH.outcomes[-1]))
    assert savings_rows(short.savings())[1][6:] == ("none", "> 10", "", "", "> 0.5")
