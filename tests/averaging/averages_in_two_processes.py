"""Started by torchrun: each process trains on half of every batch, and averages."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from modes.small_training import RULES, batches, network, train
from slipstream.averaging import Averages


def main(folder):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    averages = Averages(model, RULES).attach(optimizer)
    train(model, optimizer, [batch[rank::2] for batch in batches()])
    for rule in RULES:
        save_file(averages.weights(rule), folder / f"{rule}-{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
