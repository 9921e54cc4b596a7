"""When weights stop to be exchanged, and when they start again."""

import pytest
import torch

from slipstream.federated import AdaptiveFreezing, Everything, GrowingModes
from slipstream.modes.embedding import FREE, HELD, Embedding
from slipstream.modes.growth import Growth


def follow_path(policy, path):
    """The modes after each round of a path (rounds + 1, weights)."""
    policy.start(path[0], {"w": path.shape[1]})
    embedding, found = Embedding.none(path[0]), []
    for weights in path[1:]:
        embedding = policy.observe(weights, embedding)
        found.append(embedding.mode)
    return torch.stack(found)


def test_everything_is_free_for_ever():
    assert (follow_path(Everything(), torch.randn(5, 3)) == FREE).all()


def test_a_weight_that_only_swings_is_frozen_for_longer_each_time():
    rounds = torch.arange(25)
    path = torch.stack([rounds.float(), (-1.0) ** rounds], 1)
    policy = AdaptiveFreezing(threshold=0.3, decay=0.8, every=2)
    # With decay d, the averages of n swings are (1-d) (1 - (-d)^n) / (1+d) and 1 - d^n.
    modes = follow_path(policy, path)
    assert (modes[:, 0] == FREE).all()
    held = (modes[:, 1] == HELD).int().tolist()
    spells = "".join(map(str, held)).split("0")
    lengths = [len(spell) for spell in spells if spell]
    assert lengths[:3] == [2, 4, 6]


def test_a_weight_that_moves_again_is_held_for_half_as_long():
    policy = AdaptiveFreezing(threshold=0.5, decay=0.5, every=1)
    policy.start(torch.zeros(1), {"w": 1})
    policy._period[:] = 6
    embedding = policy.observe(torch.ones(1), Embedding.none(torch.zeros(1)))
    assert embedding.mode[0] == FREE
    assert int(policy._period) == 3


def test_the_threshold_is_halved_when_most_are_frozen():
    path = torch.stack([(-1.0) ** torch.arange(9)] * 5, 1)
    policy = AdaptiveFreezing(threshold=0.4, decay=0.8, every=1)
    follow_path(policy, path)
    assert policy._threshold < policy.threshold


def test_modes_grow_in_the_rounds_of_the_plan():
    plan = Growth(warm_up=4, every=3, share=0.25, most=0.6, modes=2)
    path = torch.randn(20, 40).cumsum(0)
    modes = follow_path(GrowingModes(plan), path)
    counts = (modes != FREE).sum(1).tolist()
    assert counts == [0] * 3 + [10] * 3 + [20] * 3 + [24] * 10


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\).*got 2, 0.9 and 2"):
        AdaptiveFreezing(threshold=2)
