import statistics

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slipstream.report import figures
from slipstream.report.figures import plot_along
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


def test_lines_are_means_over_the_targets_and_bands_their_range(tmp_path, monkeypatch):
    drawn = {"plot": [], "fill_between": [], "axhline": [], "annotate": []}
    for name, calls in drawn.items():
        monkeypatch.setattr(Axes, name, recording(getattr(Axes, name), calls))
    plot_along(COMPARISON, tmp_path / "along.svg")
    assert (tmp_path / "along.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert drawn["plot"] == [([pytest.approx(v) for v in (0.2, 0.5, 0.7)],)]
    places, lows, highs = drawn["fill_between"][0]
    assert (list(places), lows, highs) == ([0, 1, 2], [0.1, 0.4, 0.6], [0.3, 0.6, 0.8])
    assert [level for (level,) in drawn["axhline"]] == pytest.approx([0.15, 0.9])
    names = [text for text, _ in drawn["annotate"]]
    assert names == ["target start (test)", "fgmt", "trained target (test)"]


def test_names_of_lines_that_end_together_are_set_apart_inside_the_figure(monkeypatch):
    places = []
    axes = Figure().subplots()
    axes.set_ylim(0, 1)
    monkeypatch.setattr(axes, "annotate", lambda _, place, **__: places.append(place[1]))
    figures._label(axes, [(0.99, "a", "red"), (0.98, "b", "red"), (1.0, "c", "red")], x=1)
    assert places == pytest.approx([1 - 2 * 0.055, 1 - 0.055, 1.0])


def recording(method, calls):
    def call(self, *arguments, **options):
        calls.append(arguments)
        return method(self, *arguments, **options)

    return call
