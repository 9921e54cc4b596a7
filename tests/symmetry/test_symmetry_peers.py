"""The networks of torchvision, held against Torch-Pruning; needs the peers extra."""

import importlib.util
import time

import pytest
import torch

from oracles.vision_networks import NETWORKS, build, coupled_axes
from slipstream.symmetry.tracing import find_neuron_groups

MISSING = [n for n in ("torchvision", "torch_pruning") if importlib.util.find_spec(n) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}: pip install slipstream[peers]"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_proves_at_least_the_groups_that_torch_pruning_finds(name):
    model = build(name).eval()
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    groups = find_neuron_groups(model, inputs)
    seconds = time.process_time() - start
    assert not groups.dropped
    ours = {f"{block.tensor}:{block.axis}" for block in groups.blocks}
    theirs = coupled_axes(model, inputs)
    assert len(groups) >= len(theirs)
    for group in theirs:
        assert group <= ours
    assert {pin.operator for pin in groups.pins} <= {"input", "output"}
    assert seconds < 20, "10 s on an idle machine"
