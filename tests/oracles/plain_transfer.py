"""Learning transfer as the paper states it, for networks without BatchNorm: nothing is kept."""

import torch
from torch.func import functional_call

from oracles.plain_matching import plain_solve, plain_value
from slipstream.symmetry.permutation import Permutation


def plain_gradient(model, weights, batches):
    leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
    losses = [
        len(labels) * torch.nn.functional.cross_entropy(
            functional_call(model, leaves, inputs), labels
        )
        for inputs, labels in batches
    ]  # fmt: skip
    loss = sum(losses) / sum(len(labels) for _, labels in batches)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def carried(start, path, stage, permutation):
    moved = {name: path[stage][name] - path[0][name] for name in start}
    return {name: start[name] + value for name, value in permutation.apply(moved).items()}


def plain_transfer(method, model, path, start, groups, batches, *, objectives=None):
    """The permutation after each stage; `path` is a list of weights, batches[t] for stage t.

    What each is worth goes to the list `objectives`.
    """
    permutation, found, kept = Permutation.identity(groups), [], []
    for stage in range(1, len(path)):
        if method == "gmt":
            kept = [
                (
                    plain_gradient(model, carried(start, path, t, permutation), batches[t]),
                    plain_gradient(model, path[t], batches[t]),
                )
                for t in range(stage)
            ]
        else:
            here = stage - 1
            target = carried(start, path, here, permutation)
            kept.append(
                (
                    plain_gradient(model, target, batches[here]),
                    plain_gradient(model, path[here], batches[here]),
                )
            )
        permutation = plain_solve(groups, kept, start=permutation)
        found.append(permutation)
        if objectives is not None:
            objectives.append(plain_value(kept, permutation))
    return found
