"""One writer at a time, on every system, and nothing of it in a finished run."""

import os
import subprocess
import sys
import textwrap

import pytest
from recorded_networks import on_posix
from torch import nn

from slipstream.storage.writing import flush_folder
from slipstream.trajectory import create_run, is_being_written, reopen_run
from slipstream.trajectory.run_lock import LOCK, RunLock


def run_python(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@on_posix
def test_the_lock_is_there_only_while_the_run_is_written(tmp_path):
    with create_run(tmp_path, model=nn.Linear(1, 1)):
        assert (tmp_path / LOCK).is_file()
        assert is_being_written(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "run.json", "snapshots", "snapshots.jsonl",
    ]  # fmt: skip
    (tmp_path / LOCK).touch()  # of a process that was killed
    assert not is_being_written(tmp_path)
    reopen_run(tmp_path).close()
    assert not (tmp_path / LOCK).exists()


def test_what_a_killed_process_left_does_not_fill_a_folder(tmp_path):
    (tmp_path / LOCK).touch()
    create_run(tmp_path, model=nn.Linear(1, 1)).close()


def test_a_lock_is_released_when_a_run_cannot_be_opened(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(FileExistsError):
        create_run(tmp_path, model=nn.Linear(1, 1))
    RunLock(tmp_path).release()


@on_posix
def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match=r"\.lock"):
        create_run(tmp_path / "run", model=nn.Linear(1, 1))
    assert not (tmp_path / "other").exists()


@on_posix
def test_overwrite_empties_no_index_that_is_a_link(tmp_path):
    create_run(tmp_path / "run", model=nn.Linear(1, 1)).close()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run/snapshots.jsonl").unlink()
    (tmp_path / "run/snapshots.jsonl").symlink_to(tmp_path / "mine")
    create_run(tmp_path / "run", model=nn.Linear(1, 1), overwrite=True).close()
    assert (tmp_path / "mine").read_text() == "mine"


FORKED = """
    import os, sys
    from torch import nn
    from slipstream.trajectory import create_run, reopen_run

    with create_run(sys.argv[1], model=nn.Linear(1, 1)) as writer:
        if (child := os.fork()) == 0:
            writer.close()
            sys.exit()
        os.waitpid(child, 0)
        try:
            reopen_run(sys.argv[1])
        except BlockingIOError:
            print("refused")
"""


@on_posix
def test_a_forked_process_leaves_its_parents_lock_alone(tmp_path):
    done = run_python(FORKED, tmp_path / "run")
    assert (done.stdout.strip(), done.stderr) == ("refused", "")


WITHOUT_FCNTL = """
    import sys, warnings
    sys.modules["fcntl"] = None
    warnings.filterwarnings("ignore", "only soft file lock")  # of filelock: as on such systems
    import torch
    from slipstream import Recorder, Trajectory
    from slipstream.cli import main
    from slipstream.trajectory import compress_run, reopen_run

    for resume in (False, True):
        with Recorder(sys.argv[1], torch.nn.Linear(1, 1), resume=resume) as recorder:
            recorder.record(step=int(resume))
            recorder.wait()
            try:
                reopen_run(sys.argv[1])
            except BlockingIOError:
                print("refused")
    compress_run(sys.argv[1])
    print(Trajectory.open(sys.argv[1]).steps)
"""


@on_posix
def test_nothing_needs_fcntl(tmp_path):
    done = run_python(WITHOUT_FCNTL, tmp_path / "run")
    assert (done.stdout.split("\n"), done.stderr) == (["refused", "refused", "[0, 1]", ""], "")
    assert not (tmp_path / "run" / LOCK).exists()


def test_folders_are_not_flushed_where_they_cannot_be_opened(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECTORY", raising=False)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("a folder was opened"))
    flush_folder(tmp_path)
