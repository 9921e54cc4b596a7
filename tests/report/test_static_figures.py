import json

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from report.recorded import walk
from slipstream.cli import plot as command
from slipstream.cli.app import app
from slipstream.report import static
from slipstream.report.content import Contours, HeatMap, Lines, Mark, Series
from slipstream.report.recorded_run import RecordedRun, shown
from slipstream.report.static import draw, plot_runs


def axes_of(chart):
    return draw([chart]).subfigs[0].axes[0]


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
    assert heights[1] - heights[0] == pytest.approx(static._GAP)


def test_a_path_has_equal_scales_and_named_ends():
    axes = axes_of(lines(Series("step 2", [0, 1, 2], [0, 5, 0], "#0072B2"), square=True))
    assert axes.get_aspect() == 1
    assert [text.get_text() for text in axes.texts] == ["start", "step 2"]


def test_a_heat_map_has_its_rows_from_the_top():
    values = [[1.0, 10.0], [0.0, None]]
    chart = HeatMap("motion", "Speed", "", "step", "layer", "speed", [5, 10], ["in", "out"], values)
    axes = axes_of(chart)
    shown = axes.collections[0].get_array()
    assert shown.tolist() == [[1.0, 10.0], [0.0, None]]
    assert axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["in", "out"]


def test_contours_hold_the_path_and_the_marks():
    chart = Contours(
        "plane", "Plane", "", "x", "y", "loss", [0, 1], [0, 1, 2], [[1, 2], [3, 4], [5, 6]],
        path=[(0, 0), (1, 2)], steps=[0, 9], marks=[Mark("start", 0, 0), Mark("end", 1, 2)],
    )  # fmt: skip
    axes = axes_of(chart)
    assert list(axes.lines[0].get_xdata()) == [0, 1]
    assert [text.get_text() for text in axes.texts] == ["start", "end"]


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
    assert command.Kind == static.Kind
    kinds = [kind for kinds in static._SECTIONS.values() for kind in kinds]
    assert sorted(kinds) == sorted(command.Kind.__args__)


@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_the_command_writes_a_figure_once(tmp_path, ending):
    walk(tmp_path / "run")
    out = tmp_path / f"figure.{ending}"
    words = ["plot", "loss", str(tmp_path / "run"), "-o", str(out), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"path": str(out)}
    assert out.read_bytes()[:5] in (b"%PDF-", b"<?xml", b"\x89PNG\r")
    again = CliRunner().invoke(app, words)
    assert (again.exit_code, "already there" in again.output) == (2, True)


def test_an_unknown_ending_is_told_before_anything_is_read(tmp_path):
    done = CliRunner().invoke(app, ["plot", "loss", "nowhere", "-o", "figure.bmp"])
    assert done.exit_code == 2
    assert "must end in .png, .svg, .pdf" in " ".join(done.output.split())
