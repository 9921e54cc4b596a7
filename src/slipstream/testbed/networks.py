"""The networks of the demo, the tests and the benchmarks: plain PyTorch, at any width."""

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from slipstream.testbed.datasets import DataSpec


def mlp(
    *,
    inputs: int = 784,
    classes: int = 10,
    width: int = 512,
    hidden_layers: int = 1,
    activation: str = "relu",
) -> nn.Sequential:
    """Return `hidden_layers` layers of `width` units, ReLU or softplus or tanh, and a head."""
    kinds: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "softplus": nn.Softplus}
    kinds["tanh"] = nn.Tanh
    if activation not in kinds:
        raise ValueError(f"activation must be relu, softplus or tanh, got {activation!r}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number in range(1, hidden_layers + 1):
        layers[f"hidden{number}"] = nn.Linear(inputs if number == 1 else width, width)
        layers[f"{activation}{number}"] = kinds[activation]()
    layers["head"] = nn.Linear(width if hidden_layers else inputs, classes)
    return nn.Sequential(layers)


def tapered_mlp(
    *,
    inputs: int = 784,
    classes: int = 5,
    width: float = 1.0,
    sizes: Sequence[int] = (256, 128, 64, 64),
    batchnorm: bool = True,
) -> nn.Sequential:
    """Return linear layers of these sizes with BatchNorm and ReLU, and a head."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    before = inputs
    for number, size in enumerate((_scaled(size, width) for size in sizes), start=1):
        layers[f"hidden{number}"] = nn.Linear(before, size)
        if batchnorm:
            layers[f"norm{number}"] = nn.BatchNorm1d(size)
        layers[f"relu{number}"] = nn.ReLU()
        before = size
    layers["head"] = nn.Linear(before, classes)
    return nn.Sequential(layers)


def conv_net(
    *,
    channels: Sequence[int] = (64, 128, 256),
    hidden: int = 128,
    width: float = 1.0,
    batchnorm: bool = False,
    in_channels: int = 1,
    classes: int = 10,
) -> nn.Sequential:
    """Return 3x3 convolutions with ReLU and 2x2 max pooling, their maximum, a layer and a head."""
    sizes = [in_channels, *(_scaled(size, width) for size in channels)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after) in enumerate(pairwise(sizes), start=1):
        layers[f"conv{number}"] = _conv_block(before, after, batchnorm=batchnorm)
        layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers["maximum"] = GlobalMaximum()
    layers["hidden"] = nn.Linear(sizes[-1], _scaled(hidden, width))
    layers["relu"] = nn.ReLU()
    layers["head"] = nn.Linear(_scaled(hidden, width), classes)
    return nn.Sequential(layers)


def conv8(
    *, width: float = 1.0, batchnorm: bool = True, in_channels: int = 3, classes: int = 10
) -> nn.Sequential:
    """Return four pairs of 3x3 convolutions, each pooled, then 1x1 convolutions and the average."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = in_channels
    for number, size in enumerate((64, 64, 128, 128, 256, 256, 512, 512), start=1):
        layers[f"conv{number}"] = _conv_block(before, _scaled(size, width), batchnorm=batchnorm)
        if number % 2 == 0:
            layers[f"pool{number // 2}"] = nn.MaxPool2d(2)
        before = _scaled(size, width)
    for number in (1, 2):
        layers[f"mix{number}"] = nn.Conv2d(before, _scaled(256, width), 1)
        layers[f"relu{number}"] = nn.ReLU()
        before = _scaled(256, width)
    layers["head"] = nn.Conv2d(before, classes, 1)
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    return nn.Sequential(layers)


def resnet18(*, width: float = 1.0, in_channels: int = 3, classes: int = 10) -> nn.Sequential:
    """Return the ResNet-18 (He et al., 2015) for small images: a 3x3 stem, and no pooling in it."""
    sizes = [_scaled(size, width) for size in (64, 128, 256, 512)]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_channels, sizes[0], 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(sizes[0]),
        relu=nn.ReLU(),
    )
    before = sizes[0]
    for number, size in enumerate(sizes, start=1):
        stride = 1 if number == 1 else 2
        layers[f"layer{number}"] = nn.Sequential(
            ResidualBlock(before, size, stride=stride), ResidualBlock(size, size)
        )
        before = size
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(before, classes)
    return nn.Sequential(layers)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where shapes change."""

    def __init__(self, before: int, after: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, before, height, width) to (batch, after, height/stride, width/stride)."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


class GlobalMaximum(nn.Module):
    """The largest value of each channel; unlike max pooling, its gradient is deterministic."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, channels)."""
        return x.amax((2, 3))


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "tapered_mlp": tapered_mlp,
    "conv_net": conv_net,
    "conv8": conv8,
    "resnet18": resnet18,
}


def build_network(
    name: str, *, data: DataSpec, width: float | None = None, seed: int = 0, **options: object
) -> nn.Module:
    """Build a network of the testbed that fits some data, with seeded initial weights.

    Args:
        name: A key of `NETWORKS`.
        data: Shape of an input and number of classes.
        width: Units of a hidden layer of the `mlp`; a factor on all channels of the others.
        seed: Seed of the initial weights; the global generator is not touched.
        options: Other arguments of the network's function, e.g. `hidden_layers` or `batchnorm`.

    Returns:
        The network, on the CPU.

    Raises:
        ValueError: If the name or an option is unknown, or the inputs are too small for it.

    Example:
        >>> data = DataSpec("digits", shape=(1, 8, 8), classes=10)
        >>> build_network("mlp", data=data, width=3).head
        Linear(in_features=3, out_features=10, bias=True)
    """
    if name not in NETWORKS:
        raise ValueError(f"There is no network {name!r}; the testbed has {', '.join(NETWORKS)}.")
    known = inspect.signature(NETWORKS[name]).parameters
    if unknown := [option for option in options if option not in known]:
        raise ValueError(f"{name} has no option {unknown[0]!r}; it has {', '.join(known)}.")
    if width is not None:
        options["width"] = int(width) if name == "mlp" else width
    flat = "inputs" in known
    fit = {"inputs": math.prod(data.shape)} if flat else {"in_channels": data.shape[0]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name](**fit, classes=data.classes, **options)
    _check_fits(model, name, data)
    return model


def _check_fits(model: nn.Module, name: str, data: DataSpec) -> None:
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *data.shape))
    except RuntimeError as error:
        raise ValueError(f"{name} does not take inputs of shape {data.shape}: {error}") from error
    model.train()


def _conv_block(before: int, after: int, *, batchnorm: bool) -> nn.Sequential:
    """A 3x3 convolution and ReLU, with BatchNorm between if asked for."""
    layers = OrderedDict[str, nn.Module](conv=nn.Conv2d(before, after, 3, padding=1))
    if batchnorm:
        layers["norm"] = nn.BatchNorm2d(after)
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def _scaled(size: int, width: float) -> int:
    return max(1, round(size * width))
