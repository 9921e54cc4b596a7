"""Files that a command would write are refused before it computes, and are written whole."""

import json
import stat
import sys

import pytest
import torch

from commands import complaint, slipstream
from slipstream.trajectory import Layout, create_run

FIGURES = ["motion", "curvature", "complexity", "modes", "predict"]
OUTPUTS = ["average run", "modes run", "groups run", "match run run", "curvature run",
           "landscape line run run", "landscape plane run", "report run", "plot path run",
           "compress run --modes 1"]  # fmt: skip


@pytest.mark.parametrize("command", FIGURES)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("drawn.xyz", "--figure must end in .png, .svg, .pdf, got drawn.xyz"),
        ("nowhere/drawn.png", "there is no folder"),
        ("there.png", "is already there: replace it with --overwrite"),
    ],
)
def test_a_figure_that_cannot_be_written_is_refused_first(tmp_path, command, name, words):
    (tmp_path / "there.png").write_bytes(b"mine")
    done = slipstream(command, "no-run", "--figure", tmp_path / name, code=2)
    assert words in complaint(done)
    assert (tmp_path / "there.png").read_bytes() == b"mine"


@pytest.mark.parametrize("command", OUTPUTS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere/out.json", "there is no folder"),
        ("there.json", "is already there: replace it with --overwrite"),
        ("folder.json", "is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_first(tmp_path, command, name, words):
    (tmp_path / "there.json").write_bytes(b"mine")
    (tmp_path / "folder.json").mkdir()
    done = slipstream(*command.split(), "--out", tmp_path / name, code=2)
    assert words in complaint(done)
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "there.json").read_bytes() == b"mine"


@pytest.fixture
def run(tmp_path):
    with create_run(tmp_path / "run", model=Layout.of_weights({"w": torch.zeros(3)})) as writer:
        for step in range(4):
            writer.append(step=step, weights={"w": torch.rand(3) + step})
    return tmp_path / "run"


def test_overwriting_is_asked_for(run, tmp_path):
    figure = tmp_path / "motion.png"
    figure.write_bytes(b"an earlier one")
    slipstream("motion", run, "--figure", figure, "--overwrite")
    assert figure.read_bytes()[1:4] == b"PNG"
    readable = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH
    assert stat.S_IMODE(figure.stat().st_mode) == readable


def test_what_was_written_by_o_before_is_a_figure_still(run, tmp_path):
    done = slipstream("motion", run, "-o", tmp_path / "motion.svg")
    assert (tmp_path / "motion.svg").is_file()
    assert done.stderr.endswith("motion.svg is now --figure.\n")
    slipstream("modes", run, "--modes", 1, "--save", tmp_path / "modes.safetensors")
    assert (tmp_path / "modes.safetensors").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_is_one_line_and_leaves_what_was_there(run, tmp_path):
    import resource

    out = tmp_path / "modes.safetensors"
    out.write_bytes(b"mine")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        done = slipstream("modes", run, "--modes", 1, "-o", out, "--overwrite", code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert complaint(done) == f"{out}: File too large."
    assert out.read_bytes() == b"mine"
    assert json.loads((run / "run.json").read_text())
