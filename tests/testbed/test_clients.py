import pytest
import torch

from slipstream.testbed.clients import split_among_clients
from slipstream.testbed.datasets import Examples


def examples(count=1000, classes=10):
    return Examples(torch.arange(count)[:, None].float(), torch.arange(count) % classes)


@pytest.mark.parametrize("alpha", [None, 0.3, 100.0])
def test_every_example_is_of_one_client(alpha):
    parts = split_among_clients(examples(), 10, alpha=alpha, seed=1)
    assert sorted(torch.cat([part.inputs.flatten() for part in parts]).tolist()) == list(
        range(1000)
    )
    for part in parts:
        assert torch.equal(part.labels, part.inputs.flatten().long() % 10)


def test_a_small_alpha_makes_clients_unlike_and_a_large_one_alike():
    def spread(alpha):
        parts = split_among_clients(examples(), 10, alpha=alpha, seed=1)
        counts = torch.stack([torch.bincount(part.labels, minlength=10) for part in parts])
        return counts.float().std().item()

    assert spread(0.1) > 2 * spread(1.0) > 4 * spread(1000.0)


def test_nobody_is_left_without_examples():
    for seed in range(20):
        parts = split_among_clients(examples(30, 3), 15, alpha=0.05, seed=seed)
        assert min(map(len, parts)) >= 1


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="clients must be between 1 and 5 examples, got 6"):
        split_among_clients(examples(5), 6)
    with pytest.raises(ValueError, match=r"alpha must be above 0.* got 0"):
        split_among_clients(examples(), 3, alpha=0)
