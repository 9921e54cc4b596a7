import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slipstream.evaluation import Task
from slipstream.evaluation.processes import on_main_process
from slipstream.transfer import TransferPlan, load_transfer, transfer_trajectory
from slipstream.weights import weights_of
from transfer.small_runs import batches, network, trained

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "norm", "after"),
    [("gmt", "none", 3), ("fgmt-signed", "batchnorm", 4)],  # after all gradients; half way
)
def test_two_processes_share_the_work_of_one_and_resume_it(tmp_path, method, norm, after):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(SCRIPT), str(tmp_path), method, norm, str(after)]
    path = {"PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **path}, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr[-3000:]
    batchnorm = norm == "batchnorm"
    alone = transfer_trajectory(
        trained(network(0, batchnorm=batchnorm)),
        weights_of(network(2, batchnorm=batchnorm)),
        Task(network(1, batchnorm=batchnorm), batches(count=6)),
        plan=TransferPlan(method, stages=3, batches_per_gradient=2, batchnorm_batches=4),
    )
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    for name, value in alone.weights.items():
        if "running" in name:  # the unbiased variance of a share is off by its own size
            torch.testing.assert_close(first[name], value, rtol=0.01, atol=1e-3)
        elif value.is_floating_point():
            torch.testing.assert_close(first[name], value)
        assert torch.equal(first[name], second[name])
    written = load_transfer(tmp_path / "run")
    assert torch.equal(written.weights["0.weight"], first["0.weight"])
    for rank in (0, 1):
        assert (tmp_path / f"{rank}.interrupted").exists()
        assert re.search(r"other (batches|data)", (tmp_path / f"{rank}.refused").read_text())
        assert "already holds a run" in (tmp_path / f"{rank}.taken").read_text()
        resumed = load_file(tmp_path / f"{rank}.resumed.safetensors")
        assert all(torch.equal(value, first[name]) for name, value in resumed.items())
    assert not (tmp_path / "broken" / "gradients").exists()


def test_alone_the_main_process_is_this_one():
    def full():
        raise OSError("No space left on device")

    assert on_main_process(lambda: 3) == 3
    with pytest.raises(OSError, match="No space left"):
        on_main_process(full)
