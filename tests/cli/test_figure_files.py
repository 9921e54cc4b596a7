import pytest
from typer.testing import CliRunner

from slipstream.cli.app import app


@pytest.mark.parametrize("command", ["motion", "curvature", "complexity", "modes", "predict"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("drawn.xyz", "a figure ends in .png, .svg, .pdf, got 'drawn.xyz'"),
        ("nowhere/drawn.png", "there is no folder"),
        ("there.png", "is already there"),
    ],
)
def test_a_figure_that_cannot_be_written_is_refused_first(tmp_path, command, name, words):
    (tmp_path / "there.png").write_bytes(b"mine")
    done = CliRunner().invoke(
        app, [command, "no-run", "--figure", str(tmp_path / name)], env={"COLUMNS": "300"}
    )
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())
    assert (tmp_path / "there.png").read_bytes() == b"mine"
