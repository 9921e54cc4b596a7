"""Learning after inner steps as the papers write it: one task after another, by plain autograd."""

import torch
from torch.func import functional_call


def plain_objective(
    model, loss, batch, *, rate, steps=1, moved, free, masks=None, second_order=True
):
    """The mean query loss; `free` and `masks` are leaves to take gradients at."""
    masks, total = masks or {}, 0.0
    tasks = len(batch.support[0])
    for t in range(tasks):
        support, query = ([part[t] for part in parts] for parts in batch)
        now = dict(free)

        def at(values, given):
            weights = {n: v * masks[n] if n in masks else v for n, v in values.items()}
            return loss(lambda inputs: functional_call(model, weights, (inputs,)), given)

        for _ in range(steps):
            # A tensor of its own, so that a frozen value has a gradient too.
            now = {n: v if v.requires_grad else v.detach().requires_grad_() for n, v in now.items()}
            slopes = torch.autograd.grad(
                at(now, support), [now[n] for n in moved], create_graph=second_order
            )
            now = now | {n: now[n] - rate * g for n, g in zip(moved, slopes, strict=True)}
        total = total + at(now, query)
    return total / tasks
