"""torchvision's networks, and the channels that Torch-Pruning couples in a network."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

NETWORKS = (
    "resnet18",
    "resnet50",
    "vgg11_bn",
    "mobilenet_v2",
    "densenet121",
    "regnet_y_400mf",
)
MATRICES = (nn.Linear, nn.modules.conv._ConvNd)
_declared: list[torch.library.Library] = []  # a library is gone when nothing holds it


def declare_operators() -> None:
    """Let torchvision be imported, and what imports it, also where its compiled part is missing."""
    if _declared:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for signature in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        operator = signature.partition("(")[0]
        if not hasattr(torch.ops.torchvision, operator):
            library.define(signature)
    _declared.append(library)


def build(name: str, **options: Any) -> nn.Module:
    """Build an untrained network of torchvision."""
    declare_operators()
    import torchvision

    return getattr(torchvision.models, name)(**options)


def coupled_axes(model: nn.Module, example_input: Tensor) -> list[set[str]]:
    """The groups of Torch-Pruning: the "tensor:axis" places that it prunes together.

    The layer that gives the output is left out: its neurons cannot change places.
    """
    import torch_pruning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(model, example_inputs=example_input)
        layers = [module for module in model.modules() if isinstance(module, MATRICES)]
        groups = list(graph.get_all_groups(ignored_layers=layers[-1:]))
    names = {id(value): name for name, value in model.named_parameters()}
    names |= {id(value): name for name, value in model.named_buffers()}
    return [{place for item in group for place in _places(item.dep, names)} for group in groups]


def _places(dependency: Any, names: dict[int, str]) -> set[str]:
    module = dependency.target.module
    if isinstance(module, nn.Parameter):
        return set()
    inputs = "in_channels" in dependency.handler.__name__
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    axis = 1 if inputs and isinstance(module, MATRICES) else 0
    return {
        f"{names[id(value)]}:{axis}"
        for _, value in tensors
        if value.dim() > axis and value.shape[axis] > 1
    }


def build_vit() -> nn.Module:
    """Two layers of torchvision's vision transformer, small."""
    declare_operators()
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=12, patch_size=4, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=40
    )
