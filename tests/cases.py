"""Models and inputs that all rooms test on: unequal batches, residual links, tied weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 3
BATCH_SIZES = (5, 5, 3)


@dataclass(frozen=True)
class Case:
    """A small classifier and the shape of one of its inputs."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: dict[str, int]  # the neuron groups it has: names and sizes, in order

    def model(self, *, seed: int = 0) -> nn.Module:
        """A new model; the global generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def inputs(self, *, count: int = 4, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.shape, generator=generator)

    def batches(self, *, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
        """Batches of different sizes, with labels."""
        generator = torch.Generator().manual_seed(seed)
        return [
            (
                torch.randn(size, *self.shape, generator=generator),
                torch.randint(CLASSES, (size,), generator=generator),
            )
            for size in BATCH_SIZES
        ]


class Wired(nn.Module):
    """Modules by name, and a function of them and the input."""

    def __init__(self, wiring: Callable[..., Any], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.wiring = wiring
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return self.wiring(self, *inputs, **named)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, CLASSES)
    )


def tied_autoencoder() -> nn.Module:
    """The decoder is the encoder transposed, and one hidden layer is used twice."""

    def wiring(self: Any, x: Tensor) -> Tensor:
        hidden = self.shared(self.shared(self.encode(x)).relu()).relu()
        return self.head(functional.linear(hidden, self.encode.weight.T).tanh())

    return Wired(wiring, encode=nn.Linear(6, 5), shared=nn.Linear(5, 5), head=nn.Linear(6, CLASSES))


def functional_matmul() -> nn.Module:
    def wiring(self: Any, x: Tensor) -> Tensor:
        return (x @ self.first.T + self.bias).relu() @ self.second

    return Wired(
        wiring,
        first=nn.Parameter(torch.randn(8, 6)),
        bias=nn.Parameter(torch.randn(8)),
        second=nn.Parameter(torch.randn(8, CLASSES)),
    )


def conv_flatten() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(5 * 2 * 2, CLASSES),
    )


def depthwise_separable() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 1),
        nn.ReLU6(),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.Conv2d(8, 6, 1),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    )


def grouped_conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 12, 3, groups=3),
        nn.BatchNorm2d(12),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 4, CLASSES),
    )


def concat_of_branches() -> nn.Module:
    def wiring(self: Any, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x).relu(), self.right(x).sigmoid()], 1)
        return self.head(self.norm(both).mean((2, 3)))

    return Wired(
        wiring,
        left=nn.Conv2d(2, 4, 1),
        right=nn.Conv2d(2, 5, 3, padding=1),
        norm=nn.BatchNorm2d(9),
        head=nn.Linear(9, CLASSES),
    )


def residual() -> nn.Module:
    def block() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 5, 3, padding=1, bias=False),
            nn.BatchNorm2d(5),
            nn.ReLU(inplace=True),
            nn.Conv2d(5, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
        )

    def wiring(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.second(x := (self.first(x) + x).relu()).add_(x)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))

    return Wired(
        wiring,
        stem=nn.Conv2d(2, 4, 3, padding=1),
        first=block(),
        second=block(),
        head=nn.Linear(4, CLASSES),
    )


def layer_norm_mlp() -> nn.Module:
    def wiring(self: Any, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(functional.silu(self.gate(self.norm(x))) * self.up(self.norm(x)))
        return self.head(self.last(x)).softmax(-1)

    return Wired(
        wiring,
        embed=nn.Linear(6, 8),
        norm=nn.LayerNorm(8),
        gate=nn.Linear(8, 10),
        up=nn.Linear(8, 10, bias=False),
        down=nn.Linear(10, 8),
        last=nn.RMSNorm(8),
        head=nn.Linear(8, CLASSES),
    )


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
        nn.InstanceNorm2d(4, affine=True),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(4 * 16, CLASSES),
    )


def squeeze_excitation() -> nn.Module:
    def wiring(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        scale = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head((x * scale).amax((2, 3)))

    return Wired(
        wiring,
        stem=nn.Conv2d(2, 6, 3),
        squeeze=nn.Conv2d(6, 4, 1),
        excite=nn.Conv2d(4, 6, 1),
        head=nn.Linear(6, CLASSES),
    )


def unet() -> nn.Module:
    """A skip past a transposed convolution, padding, interpolation, and a split."""

    def wiring(self: Any, x: Tensor) -> Tensor:
        x = functional.pad(self.down(x), (1, 1, 1, 1)).relu()
        low, high = functional.interpolate(self.up(x), scale_factor=2).split([3, 3], 1)
        skip = functional.interpolate(x, size=low.shape[2:], mode="bilinear")
        return self.head(torch.cat([low * high, skip], 1)).mean((2, 3))

    return Wired(
        wiring,
        down=nn.Conv2d(2, 4, 3),
        up=nn.ConvTranspose2d(4, 6, 2, stride=2),
        head=nn.Conv2d(7, CLASSES, 1),
    )


def sequence() -> nn.Module:
    """Convolution along time, features last and first, heads that share nothing."""

    def wiring(self: Any, x: Tensor) -> Tensor:
        x = self.conv(x).transpose(1, 2).contiguous()  # (batch, time, features)
        heads = self.mix(x).unflatten(-1, (2, 4)).permute(0, 2, 1, 3)
        scores = torch.matmul(heads, heads.transpose(-1, -2)).softmax(-1)
        return self.head((scores @ heads).transpose(1, 2).flatten(2).mean(1))

    return Wired(wiring, conv=nn.Conv1d(2, 5, 3), mix=nn.Linear(5, 8), head=nn.Linear(8, CLASSES))


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.PReLU(4), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(4, CLASSES)
    )


MAP = (2, 6, 6)
CASES = {
    "mlp": Case(mlp, (6,), {"0.weight:0": 8, "2.weight:0": 7}),
    "tied_autoencoder": Case(tied_autoencoder, (6,), {"encode.weight:0": 5}),
    "functional_matmul": Case(functional_matmul, (6,), {"first:0": 8}),
    "conv_flatten": Case(conv_flatten, MAP, {"0.weight:0": 4, "4.weight:0": 5}),
    "depthwise_separable": Case(
        depthwise_separable, MAP, {"0.weight:0": 4, "2.weight:0/inside": 2, "5.weight:0": 6}
    ),
    "grouped_conv": Case(
        grouped_conv,
        MAP,
        {"0.weight:0/groups": 3, "0.weight:0/inside": 2, "2.weight:0/inside": 4},
    ),
    "concat_of_branches": Case(concat_of_branches, MAP, {"left.weight:0": 4, "right.weight:0": 5}),
    "residual": Case(
        residual, MAP, {"stem.weight:0": 4, "first.0.weight:0": 5, "second.0.weight:0": 5}
    ),
    "layer_norm_mlp": Case(layer_norm_mlp, (6,), {"embed.weight:0": 8, "gate.weight:0": 10}),
    "group_norm": Case(
        group_norm, MAP, {"0.weight:0/groups": 3, "0.weight:0/inside": 2, "3.weight:0": 4}
    ),
    "squeeze_excitation": Case(
        squeeze_excitation, MAP, {"stem.weight:0": 6, "squeeze.weight:0": 4}
    ),
    "unet": Case(unet, MAP, {"down.weight:0": 4, "up.weight:1[0:3]": 3}),
    "sequence": Case(
        sequence,
        (2, 7),
        {"conv.weight:0": 5, "mix.weight:0/groups": 2, "mix.weight:0/inside": 4},
    ),
    "volume": Case(volume, (1, 4, 4, 4), {"0.weight:0": 4}),
}
