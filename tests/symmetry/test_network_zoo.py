"""Networks that people use have all the symmetries that theory says, and each is proven."""

import importlib.util

import pytest
import torch

from oracles.network_zoo import NETWORKS, symmetries
from slipstream.symmetry.tracing import find_neuron_groups

QUICK = ("TransformerDecoder", "T5", "Swin", "Llama with LoRA")
NEEDED = {"(timm)": "timm", "(diffusers)": "diffusers", "LoRA": "peft"}
PACKAGES = [n for n in ("torchvision", "transformers") if importlib.util.find_spec(n) is None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NETWORKS]
)
def test_finds_every_symmetry_and_proves_it(name):
    wanted = [package for sign, package in NEEDED.items() if sign in name]
    if missing := PACKAGES + [n for n in wanted if importlib.util.find_spec(n) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.build().eval()
    groups = find_neuron_groups(model, network.inputs(model))
    assert not groups.dropped
    assert len(groups)
    if network.expected:
        assert symmetries(groups) == network.expected
    assert not [pin for pin in groups.pins if "no rule" in pin.reason]
