"""Started by torchrun: each process brings every other batch; the first one writes."""

import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from slipstream.evaluation import Task
from slipstream.evaluation.processes import pool_statistics
from slipstream.storage.new_run import NewRun
from slipstream.transfer import TransferPlan, transfer_trajectory
from slipstream.weights import weights_of
from transfer.small_runs import batches, network, trained


def main(folder, method, batchnorm, after):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()

    statistics = {"0.running_mean": torch.tensor([10.0 * rank]), "0.running_var": torch.ones(1)}
    pooled = pool_statistics(statistics, examples=1 + 2 * rank)  # shares of 1/4 and 3/4
    variance = 1 + 7.5**2 / 4 + 2.5**2 * 3 / 4
    assert torch.equal(pooled["0.running_mean"], torch.tensor([7.5]))
    assert torch.equal(pooled["0.running_var"], torch.tensor([variance]))

    mine = batches(count=6)[rank::2]

    def transfer(path, *, data=mine, resume=False, **options):
        return transfer_trajectory(
            trained(network(0, batchnorm=batchnorm)),
            weights_of(network(2, batchnorm=batchnorm)),
            Task(network(1, batchnorm=batchnorm), data),
            plan=TransferPlan(method, stages=3),
            run_folder=NewRun(path, resume=resume),
            **options,
        )

    def interrupt(done, _):
        if done == after:
            raise KeyboardInterrupt

    save_file(transfer(folder / "run").weights, folder / f"{rank}.safetensors")
    try:
        transfer(folder / "broken", progress=interrupt)
    except KeyboardInterrupt:
        (folder / f"{rank}.interrupted").touch()
    other = [mine[rank], *mine[1:]]  # the same in the main process, another one beside it
    try:
        transfer(folder / "broken", data=other, resume=True)
    except ValueError as error:
        (folder / f"{rank}.refused").write_text(str(error))
    time.sleep(rank)  # the main process could be done before the other one looks
    resumed = transfer(folder / "broken", resume=True)
    assert resumed.cost.resumed_gradients > 0
    save_file(resumed.weights, folder / f"{rank}.resumed.safetensors")
    again = transfer(folder / "broken", resume=True)
    assert torch.equal(again.weights["0.weight"], resumed.weights["0.weight"])
    try:  # only the main process sees that the folder is taken; the other one must not wait
        transfer(folder / "run")
    except FileExistsError as error:
        (folder / f"{rank}.taken").write_text(str(error))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "batchnorm", int(sys.argv[4]))
