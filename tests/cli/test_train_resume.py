import json
import os
import signal
import subprocess
import sys

import torch

from commands import slipstream
from slipstream.trajectory import Trajectory

SMALL = ("train", "mlp", "--width", "8", "--examples", "300", "--batch-size", "100")
PLAN = ("--epochs", "6", "--schedule", "cosine", "--warm-up", "0.2", "--keep", "every:2", "--json")
# Killed as if by the system, with nothing cleaned up, as the third epoch is being recorded.
KILLED = """
import os, signal, sys
from slipstream.cli.app import app
from slipstream.training.loop import Loop

epoch = Loop._epoch

def dying(self, *args):
    if self.epoch == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    epoch(self, *args)

Loop._epoch = dying
app(sys.argv[1:])
"""


def test_a_killed_training_is_resumed_to_the_same_run(tmp_path):
    whole = json.loads(slipstream(*SMALL, *PLAN, "--out", tmp_path / "whole").stdout)
    again = (*SMALL, *PLAN, "--out", tmp_path / "run")
    died = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, again)], env={**os.environ}, check=False
    )
    assert died.returncode == -signal.SIGKILL
    assert len(Trajectory.open(tmp_path / "run")) > 1
    found = json.loads(slipstream(*again, "--resume").stdout)
    assert found["losses"] == whole["losses"]
    assert found["test"] == whole["test"]
    runs = [Trajectory.open(tmp_path / name) for name in ("whole", "run")]
    assert runs[0].steps == runs[1].steps
    for one, other in zip(*runs, strict=True):
        assert one.metrics == other.metrics
        assert all(torch.equal(one[name], other[name]) for name in one.weights)
    finished = json.loads(slipstream(*again, "--resume").stdout)
    assert finished["losses"] == whole["losses"]
