"""Started by torchrun: each process brings every other batch; the first one writes."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from slipstream.evaluation import classification_loss
from slipstream.transfer import TransferPlan, transfer_trajectory
from slipstream.weights import weights_of
from transfer.small_runs import batches, network, trained


def main(folder, method):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    result = transfer_trajectory(
        trained(network(0, batchnorm=False)),
        weights_of(network(2, batchnorm=False)),
        model=network(1, batchnorm=False),
        loss=classification_loss,
        data=batches(count=6)[rank::2],
        plan=TransferPlan(method, stages=3),
        run_folder=folder / "run",
    )
    save_file(result.weights, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
