"""A run compressed to modes is transferred as the run that they stand for."""

import torch
from small_runs import batches, network, trained

from slipstream.evaluation import Task
from slipstream.modes import fit_modes
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.transfer import TransferPlan, transfer_trajectory
from slipstream.weights import weights_of


def test_transferring_modes_is_transferring_the_reconstructed_run():
    modes = fit_modes(trained(network(0), steps=6), modes=3)
    reconstructed = Trajectory.from_weights([modes.weights_at(step) for step in modes.steps])
    model = network(1)
    results = [
        transfer_trajectory(
            source,
            weights_of(network(2)),
            Task(model, batches()),
            plan=TransferPlan("fgmt", path="recorded", stages=3),
        )
        for source in (modes.trajectory(), reconstructed)
    ]
    first, second = (result.weights for result in results)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_permuting_the_modes_first_changes_nothing():
    """The naive transfer of permuted modes is the transfer of the run by that permutation."""
    source, start, model = trained(network(0)), weights_of(network(2)), network(1)
    modes = fit_modes(source, modes=3)
    options = {"task": Task(model, batches())}
    matched = transfer_trajectory(
        modes.trajectory(), start, plan=TransferPlan("random", path="recorded", stages=6), **options
    )
    groups = find_neuron_groups(model, batches()[0][0])
    moved = modes.permuted(type(matched.source_to_target).random(groups, seed=0)).trajectory()
    naive = transfer_trajectory(
        moved, start, plan=TransferPlan("naive", path="recorded", stages=6), **options
    )
    for name, value in naive.weights.items():
        torch.testing.assert_close(matched.weights[name], value)
