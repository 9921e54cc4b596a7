import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slipstream.evaluation import classification_loss
from slipstream.transfer import TransferPlan, load_transfer, transfer_trajectory
from slipstream.weights import weights_of
from transfer.small_runs import batches, network, trained

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gmt", "fgmt-signed"])
def test_two_processes_share_the_gradients_of_one(tmp_path, method):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(SCRIPT), str(tmp_path), method]
    path = {"PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **path}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = transfer_trajectory(
        trained(network(0, batchnorm=False)),
        weights_of(network(2, batchnorm=False)),
        model=network(1, batchnorm=False),
        loss=classification_loss,
        data=batches(count=6),
        plan=TransferPlan(method, stages=3, batches_per_gradient=2),
    )
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    for name, value in alone.weights.items():
        torch.testing.assert_close(first[name], value)
        assert torch.equal(first[name], second[name])
    written = load_transfer(tmp_path / "run")
    assert torch.equal(written.weights["0.weight"], first["0.weight"])
