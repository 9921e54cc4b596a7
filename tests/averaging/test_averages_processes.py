import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modes.small_training import RULES, batches, network, train
from slipstream.averaging import Averages

SCRIPT = Path(__file__).with_name("averages_in_two_processes.py")


@pytest.mark.slow
def test_two_processes_average_what_one_does(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(SCRIPT), str(tmp_path)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": f"{SCRIPT.parents[1]}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    averages = Averages(model, RULES).attach(optimizer)
    train(model, optimizer, batches())
    for rule in RULES:
        first, second = (load_file(tmp_path / f"{rule}-{rank}.safetensors") for rank in (0, 1))
        for name, value in averages.weights(rule).items():
            torch.testing.assert_close(first[name], value)
            assert torch.equal(first[name], second[name])
