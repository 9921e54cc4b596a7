"""Started by torchrun: each process trains on half of every batch; the first keeps the modes."""

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from modes.small_training import batches, network, train
from slipstream.modes import OnlineModes, OnlinePlan

OPTIONS = {"modes": 2, "warm_up": 5, "trial": 3, "reference": "component"}  # members tie


def followed(model, share=slice(None)):
    """The modes of a training on a share of each batch, with an update after each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    online = OnlineModes(model, OnlinePlan(**OPTIONS))
    optimizer.register_step_post_hook(lambda *_: online.update())
    train(model, optimizer, [batch[share].double() for batch in batches()])
    return online


def main(folder):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    online = followed(DistributedDataParallel(network().double()), slice(rank, None, 2))
    torch.save(online.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
