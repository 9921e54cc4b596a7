"""Files beside the snapshots: declared, removed with the run, and nothing else is removed."""

import json

import pytest
from recorded_networks import on_posix
from torch import nn

from slipstream.trajectory import create_run, declare_companions
from slipstream.trajectory.run_files import rewrite_description

MODEL = nn.Linear(1, 1)
OF_0_1 = (
    "transfer.json", "permutations/00000001.safetensors", "gradients/1.safetensors", "recipe.pt",
    "ticket.safetensors", "scores.safetensors", "specialists/1.safetensors", "subspace.json",
    "corners/0.safetensors", "unfinished.pt",
)  # fmt: skip


def run(path):
    create_run(path, model=MODEL).close()
    return path


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def left_after_overwriting(folder):
    create_run(folder, model=MODEL, overwrite=True).close()
    own = {"run.json", "snapshots", "snapshots.jsonl"}
    return {str(p.relative_to(folder)) for p in folder.rglob("*")} - own


def described(folder):
    return json.loads((folder / "run.json").read_text())


def test_what_is_declared_goes_with_the_run_and_the_rest_stays(tmp_path):
    folder = run(tmp_path / "run")
    declare_companions(folder, "curve.json", "points/*.safetensors")
    declare_companions(folder, "curve.json")
    assert described(folder)["companions"] == ["curve.json", "points/*.safetensors"]
    touch(folder, "curve.json", "curve.json.tmp", "points/1.safetensors", "points/mine.txt")
    touch(folder, "mine.safetensors")
    expected = {"points", "points/mine.txt", "mine.safetensors"}
    assert left_after_overwriting(folder) == expected
    assert "companions" not in described(folder)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_of_0_1_loses_what_that_version_left(tmp_path, resumed):
    folder = run(tmp_path / "run")
    if resumed:  # by this version, which declares what it adds
        declare_companions(folder, "curve.json")
        touch(folder, "curve.json")
    touch(folder, *OF_0_1, "mine.safetensors")
    assert left_after_overwriting(folder) == {"mine.safetensors"}


@pytest.mark.parametrize(
    "pattern",
    ["../notes.json", "/etc/passwd", "*", "*.json", "a/../b.json", "a/b/c.json", ".ssh/*.pub",
     "a/**", "run.json", "snapshots.jsonl", "snapshots/*.safetensors", "notes", ""],
)  # fmt: skip
def test_nothing_outside_and_no_other_file_can_be_declared(tmp_path, pattern):
    folder = run(tmp_path / "run")
    with pytest.raises(ValueError, match="must be named like"):
        declare_companions(folder, pattern)
    touch(tmp_path, "notes.json")
    touch(folder, "mine.json")
    rewrite_description(folder, companions=[pattern])  # as somebody else may have written it
    assert left_after_overwriting(folder) == {"mine.json"}
    assert (tmp_path / "notes.json").exists()


@on_posix
def test_a_linked_folder_is_left_alone(tmp_path):
    folder = run(tmp_path / "run")
    touch(tmp_path, "photos/1.jpg")
    (folder / "points").symlink_to(tmp_path / "photos")
    declare_companions(folder, "points/*.jpg")
    left_after_overwriting(folder)
    assert (tmp_path / "photos" / "1.jpg").exists()


@pytest.mark.parametrize("damaged", ["{", "[]", '{"companions": 3}'])
def test_a_damaged_description_does_not_stop_overwriting(tmp_path, damaged):
    folder = run(tmp_path / "run")
    (folder / "run.json").write_text(damaged)
    touch(folder, "ticket.safetensors")
    assert left_after_overwriting(folder) == set()
