"""IteRand on a network of two layers as the paper writes it, in numpy and float64."""

import numpy as np
import torch

from slipstream.recipes.masks.random_weights import (
    counted_generator,
    initial_scores,
    values_of_round,
)


def mask_of(scores, share, *, absolute):
    ranks = np.abs(scores) if absolute else scores
    ordered = sorted(ranks.ravel().tolist())
    return ranks >= ordered[int(share * len(ordered))]


def train(inputs, labels, shapes, *, steps, every, share, redrawn, lr, decay, absolute, seed):
    """Full-batch gradient descent on squared error / (2 n); returns effective weights, scores."""
    values, scores = [], []
    for tensor, shape in enumerate(shapes):
        start = values_of_round(shape, "kaiming-uniform", seed=seed, tensor=tensor, number=0)
        values.append(start.double().numpy())
        scores.append(initial_scores(shape, seed=seed, tensor=tensor).double().numpy())
    for step in range(1, steps + 1):
        masks = [mask_of(s, share, absolute=absolute) for s in scores]
        first, second = (m * v for m, v in zip(masks, values, strict=True))
        hidden = np.maximum(inputs @ first.T, 0)
        error = (hidden @ second.T - labels) / len(inputs)
        slopes = [((error @ second) * (hidden > 0)).T @ inputs, error.T @ hidden]
        for number, slope in enumerate(slopes):
            own = slope * values[number] * (np.sign(scores[number]) if absolute else 1)
            scores[number] = scores[number] - lr * (own + decay * scores[number])
        masks = [mask_of(s, share, absolute=absolute) for s in scores]
        if step % every == 0:
            for tensor, shape in enumerate(shapes):
                how = {"seed": seed, "tensor": tensor, "number": step // every}
                fresh = values_of_round(shape, "kaiming-uniform", **how).double().numpy()
                generator = counted_generator(seed, 1, tensor, step // every)
                chosen = torch.rand(shape, generator=generator).numpy() < redrawn
                values[tensor] = np.where(~masks[tensor] & chosen, fresh, values[tensor])
    return [m * v for m, v in zip(masks, values, strict=True)], scores
