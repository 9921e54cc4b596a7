"""A transformer of one block, whose residual stream and heads can be rotated."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from cases import Wired


def transformer(norm=nn.LayerNorm, *, bias=True, dtype=torch.float64):
    """One block with attention and two layers; gains and biases as after a training."""

    def wiring(self, x):
        x = self.embed(x)
        read = self.first(x)
        split = (
            layer(read).unflatten(-1, (2, 3)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        x = x + self.out(scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
        x = x + self.narrow(torch.tanh(self.wide(self.second(x))))
        return self.head(self.last(x).mean(1))

    torch.manual_seed(0)
    layers = {
        name: nn.Linear(*sizes, bias=bias)
        for name, sizes in {
            "embed": (5, 6), "query": (6, 6), "key": (6, 6), "value": (6, 6), "out": (6, 6),
            "wide": (6, 9), "narrow": (9, 6), "head": (6, 4),
        }.items()
    }  # fmt: skip
    norms = {name: norm(6) for name in ("first", "second", "last")}
    model = Wired(wiring, **layers, **norms).to(dtype)
    with torch.no_grad():
        for part in norms.values():
            for value in part.parameters():
                value.uniform_(0.5, 2.0)
    return model


def inputs(count=4, dtype=torch.float64):
    return torch.randn(count, 7, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
