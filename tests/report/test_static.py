import ast
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from commands import complaint, slipstream
from report.recorded import walk
from slipstream.cli import plot as command
from slipstream.report import figures, static
from slipstream.report.content import Colours, Contours, HeatMap, Lines, Mark, Panels, Series
from slipstream.report.figures import plot_runs
from slipstream.report.recorded_run import RecordedRun, shown
from slipstream.report.static import figure_of

SOURCE = Path(static.__file__).parents[1]


def axes_of(chart):
    return figure_of([chart]).subfigs[0].axes[0]


def test_no_other_module_knows_matplotlib():
    importing = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        if name.split(".")[0] == "matplotlib"
    }
    assert importing == {"report/static.py"}


def test_the_name_of_version_one_is_found(tmp_path):
    with pytest.warns(DeprecationWarning, match=r"is now slipstream\.report\.figures"):
        assert static.plot_runs is plot_runs


def lines(*series, **options):
    return Lines("loss", "Loss", "Read it.", "step", "loss", series, **options)


def test_lines_bands_and_names_are_drawn():
    chart = lines(
        Series("train", [0, 1, 2], [4.0, None, 1.0], "#0072B2"),
        Series("test", [0, 1, 2], [4.0, 2.0, 1.0], "#D55E00", [3, 1, 0], [5, 3, 2], dashed=True),
        log=True,
    )
    axes = axes_of(chart)
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 1, 2]] * 2
    assert axes.lines[1].get_linestyle() == "--"
    assert axes.get_yscale() == "log"
    assert len(axes.collections) == 1
    assert [text.get_text() for text in axes.texts] == ["train", "test"]
    heights = [text.xyann[1] for text in axes.texts]  # both end at the same place
    assert abs(heights[1] - heights[0]) == pytest.approx(10)  # points


@pytest.mark.parametrize("log", [False, True])
def test_names_stay_at_the_ends_of_their_lines(log):
    chart = lines(Series("train", [0, 1], [4e3, 1e3], "#0072B2"), log=log)
    (text,) = axes_of(chart).texts
    assert text.xyann == (5, pytest.approx(0))
    assert text.xy == (1, 1e3)


def test_a_path_has_equal_scales_and_named_ends():
    axes = axes_of(lines(Series("step 2", [0, 1, 2], [0, 5, 0], "#0072B2"), square=True))
    assert axes.get_aspect() == 1
    assert [text.get_text() for text in axes.texts] == ["start", "step 2"]


def test_a_heat_map_has_its_rows_from_the_top():
    values, colours = [[1.0, 10.0], [0.0, None]], Colours("speed", 0.0, 10.0, (0, 5, 10))
    chart = HeatMap("motion", "Speed", "", "step", "layer", colours, [5, 10], ["in", "out"], values)
    axes = axes_of(chart)
    shown = axes.collections[0].get_array()
    assert shown.tolist() == [[1.0, 10.0], [0.0, None]]
    assert axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["in", "out"]


def test_contours_hold_the_path_and_the_marks():
    chart = Contours(
        "plane", "Plane", "", "x", "y", Colours("loss", 1, 6, (1, 3, 6), "root"),
        [0, 1], [0, 1, 2], [[1, 2], [3, 4], [5, 6]],
        path=[(0, 0), (1, 2)], steps=[0, 9], marks=[Mark("start", 0, 0), Mark("end", 1, 2)],
    )  # fmt: skip
    axes = axes_of(chart)
    assert list(axes.lines[0].get_xdata()) == [0, 1]
    assert [text.get_text() for text in axes.texts] == ["start", "end"]


def test_a_colour_bar_has_the_ticks_of_its_chart():
    colours = Colours("speed", 0.001, 100.0, (0.01, 1.0, 100.0), "log")
    values = [[0.001, 0.0], [None, 100.0]]
    chart = HeatMap("motion", "", "", "step", "layer", colours, [5, 10], ["in", "out"], values)
    figure = figure_of([chart])
    labels = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert labels == ["0.01", "1", "100"]
    assert figure.axes[0].collections[0].get_array().mask.tolist() == [[False, True], [True, False]]


def test_values_are_written_into_cells_and_borders_drawn():
    colours = Colours("", 0.0, 1.0, (0, 1))
    chart = HeatMap(
        "m", "", "", "", "", colours, ["a", "b"], ["a", ""], [[0.0, 1.0], [0.25, None]],
        written=True, square=True, borders=[0.5], row_borders=[0.5],
    )  # fmt: skip
    axes = axes_of(chart)
    assert [text.get_text() for text in axes.texts] == ["0.00", "1.00", "0.25"]
    assert [text.get_color() for text in axes.texts] == ["white", "black", "white"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a"]
    assert (axes.get_aspect(), len(axes.lines)) == (1, 2)


def test_panels_take_a_row_of_their_own():
    small = Panels("modes", "Modes", "", [lines(Series("", [0, 1], [0, 1], "#0072B2"))] * 2)
    chart = lines(Series("", [0, 1], [0, 1], "#0072B2"))
    places = [p.bbox for p in figure_of([chart, small, chart, chart]).subfigs]
    assert places[0].y0 > places[1].y0 > places[2].y0 == places[3].y0
    assert places[1].width == pytest.approx(2 * places[2].width)


@pytest.mark.parametrize(
    ("kind", "count"),
    [("metrics", 2), ("loss", 1), ("path", 2), ("motion", 2), ("speed", 1), ("modes", 2)],
)
def test_every_kind_has_its_charts(tmp_path, kind, count):
    runs = shown([RecordedRun.open(walk(tmp_path / name)) for name in "ab"])
    figure = plot_runs(kind, runs)
    assert isinstance(figure, Figure)
    assert sum(bool(part.axes) for part in figure.subfigs) == count


def test_what_cannot_be_drawn_says_why(tmp_path):
    runs = shown([RecordedRun.open(walk(tmp_path / "run", steps=1, metrics=False))])
    with pytest.raises(ValueError, match=r"There is no path of run to draw.*needs at least 2"):
        plot_runs("path", runs)


def test_the_command_knows_every_kind():
    assert command.Kind == figures.Kind
    # What is drawn for each kind, all of them: a kind without an entry fails when it is drawn.
    kinds = [kind for kinds in figures._SECTIONS.values() for kind in kinds]
    assert sorted(kinds) == sorted(command.Kind.__args__)


@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_the_command_writes_a_figure_once(tmp_path, ending):
    walk(tmp_path / "run")
    out = tmp_path / f"figure.{ending}"
    words = ["plot", "loss", tmp_path / "run", "-o", out, "--json"]
    done = slipstream(*words)
    assert json.loads(done.stdout) == {"path": str(out)}
    assert out.read_bytes()[:5] in (b"%PDF-", b"<?xml", b"\x89PNG\r")
    assert "already there" in complaint(slipstream(*words, code=2))


def test_an_unknown_ending_is_told_before_anything_is_read(tmp_path):
    done = slipstream("plot", "loss", "nowhere", "-o", "figure.bmp", code=2)
    assert "must end in .png, .svg, .pdf" in complaint(done)
