"""Random networks: no group that is handed out is wrong, with other weights, inputs and sizes."""

from dataclasses import replace

import pytest

from oracles.random_networks import largest_error, random_network
from slipstream.symmetry.tracing import find_neuron_groups

QUICK, SLOW = 12, 300


@pytest.mark.parametrize("seed", range(QUICK))
def test_the_rules_alone_are_right(seed):
    network, inputs = random_network(seed)
    groups = find_neuron_groups(network, inputs, prove=False)
    assert largest_error(network, groups, seed) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(QUICK, SLOW))
def test_many_are_right_and_proven(seed):
    network, inputs = random_network(seed)
    found = find_neuron_groups(network, inputs, prove=False)
    assert largest_error(network, found, seed) < 1e-6
    groups = find_neuron_groups(network, inputs)
    assert not [pin for pin in groups.dropped if "moved the output" in pin.reason]


def test_the_check_sees_what_is_wrong():
    """A group of each network loses a matrix: almost all are seen to be wrong."""
    seen = []
    for seed in range(8):
        network, inputs = random_network(seed)
        groups = find_neuron_groups(network, inputs, prove=False)
        lost = next((b for b in groups.blocks if b.axis == 1), None)
        if lost is not None:
            wrong = replace(groups, blocks=tuple(b for b in groups.blocks if b != lost))
            seen.append(largest_error(network, wrong, seed) > 1e-6)
    assert sum(seen) >= 4
