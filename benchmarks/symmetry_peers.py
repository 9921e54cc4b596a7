"""Another tool on one network: `rebasin`, `sinkhorn-rebasin`, or Torch-Pruning.

The first two import under the same name, and any may take forever, so `symmetry.py` runs this
script in a process of its own with the folder of one of them on the path. It prints a line of JSON:
how far the output moved when the tool permuted the network, or the axes that Torch-Pruning couples.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from oracles.network_zoo import NETWORKS
from oracles.vision_networks import coupled_axes, declare_operators
from slipstream.symmetry.outputs import output_tensors


class OneToOne(nn.Module):
    """A network that takes one tensor and returns one, as the tools want it."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.name, *_ = inputs
        self.others = {name: value for name, value in inputs.items() if name != self.name}

    def forward(self, first: Tensor) -> Tensor:
        """Return the first of the outputs."""
        found = output_tensors(self.model(**{self.name: first}, **self.others))
        return next(iter(found.values()))


def build(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    """Return the network, with statistics, gains and biases that differ for every neuron."""
    torch.manual_seed(seed)
    network = NETWORKS[name]
    model = network.build().eval()
    inputs = network.inputs(model)
    if isinstance(inputs, Mapping):
        model, inputs = OneToOne(model, inputs).eval(), next(iter(inputs.values()))
    with torch.no_grad():
        for tensor, value in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif tensor.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.dim() > 1 and value.is_floating_point():
                value.normal_(0, float(value.std()) or 0.1)  # some networks are always the same
            elif value.dim() == 1 and value.is_floating_point():
                value.mul_(torch.rand(value.shape) + 0.5).add_(torch.rand(value.shape) * 0.1)
    return model, inputs


def permuted_by_rebasin(model: nn.Module, other: nn.Module, inputs: Tensor) -> nn.Module:
    """Match the model with another one, as the tool's own example does."""
    from rebasin import PermutationCoordinateDescent

    PermutationCoordinateDescent(other, model, inputs).rebasin()
    return model


def permuted_by_sinkhorn(model: nn.Module, _: nn.Module, inputs: Tensor) -> nn.Module:
    """Permute at random all that the tool finds."""
    from rebasin import RebasinNet

    net = RebasinNet(model, input_shape=tuple(inputs.shape), permutation_type="broadcast")
    net.update_batchnorm(model)
    net.random_init()
    net.eval()
    return net()


def main() -> None:
    """Permute one network with one tool and print what changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=["rebasin", "sinkhorn", "torch-pruning"])
    parser.add_argument("network", choices=NETWORKS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    declare_operators()
    if given.tool == "torch-pruning":
        model = NETWORKS[given.network].build().eval()
        groups = coupled_axes(model, NETWORKS[given.network].inputs(model))
        print(json.dumps({"groups": [sorted(group) for group in groups]}))
        return
    (model, inputs), (other, _) = build(given.network, 0), build(given.network, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = time.process_time()
    expected = model(inputs)
    work = permuted_by_rebasin if given.tool == "rebasin" else permuted_by_sinkhorn
    model = work(model, other, inputs)  # with gradients: one of them reads the graph of autograd
    seconds = time.process_time() - start
    change = float((model(inputs) - expected).abs().max() / expected.abs().max())
    after = model.state_dict()
    sizes = {name: value.numel() for name, value in before.items()}
    moved = sum(sizes[name] for name in before if not torch.equal(before[name], after[name]))
    result = {"seconds": seconds, "change": change, "moved": moved / sum(sizes.values())}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
