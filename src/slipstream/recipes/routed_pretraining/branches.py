"""Networks that share a trunk, and the losses that need no labels."""

import copy as copying
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from slipstream.recipes.patterns import matches, matching
from slipstream.recipes.routed_pretraining.plan import RoutedPlan


class Branches(nn.Module):
    """Whole networks whose unrouted parameters are the same tensors; their buffers are apart.

    A trunk's BatchNorm so keeps statistics for each branch, whose images differ.
    """

    def __init__(self, network: nn.Module, routed: Sequence[str], count: int) -> None:
        """Begin with copies of a network.

        Args:
            network: Maps images to features; copied.
            routed: Patterns of the parameters that each branch has its own of; the second half
                of them if empty.
            count: How many branches.

        Raises:
            ValueError: If a pattern matches no parameter.
        """
        super().__init__()
        names = [name for name, _ in network.named_parameters()]
        for pattern in routed:
            matching(names, pattern, name="routed")
        own = [n for n in names if matches(n, routed)] if routed else names[len(names) // 2 :]
        self.networks = nn.ModuleList(copying.deepcopy(network) for _ in range(count))
        for other in list(self.networks)[1:]:
            _tie(self.networks[0], other, apart=own)
        self.routed = tuple(own)

    def spread_out(self) -> None:
        """Let all branches go on from the first one."""
        with torch.no_grad():
            for other in list(self.networks)[1:]:
                other.load_state_dict(self.networks[0].state_dict())


def _tie(first: nn.Module, other: nn.Module, *, apart: Sequence[str]) -> None:
    for name, parameter in first.named_parameters(remove_duplicate=False):
        if name not in apart:
            path, _, last = name.rpartition(".")
            setattr(other.get_submodule(path), last, parameter)


class LossHead(nn.Module):
    """What turns features into a loss, and is thrown away afterwards."""

    def __init__(self, features: int, pixels: int, plan: RoutedPlan) -> None:
        """Build the layers, with new weights.

        Args:
            features: Of the network, per image.
            pixels: Of an image, over all channels.
            plan: Which loss, and how wide.
        """
        super().__init__()
        if plan.method == "masked":
            self.project: nn.Module = nn.BatchNorm1d(features, affine=False)
            width = features
        else:
            width = plan.width
            self.project = nn.Sequential(
                nn.Linear(features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
                nn.Linear(width, width, bias=False), nn.BatchNorm1d(width, affine=False),
            )  # fmt: skip
        inner = max(1, width // 4)
        self.predict = nn.Sequential(
            nn.Linear(width, inner, bias=False), nn.BatchNorm1d(inner), nn.ReLU(),
            nn.Linear(inner, width),
        )  # fmt: skip
        self.decode = nn.Linear(features, pixels) if plan.method == "masked" else None


class Learner(nn.Module):
    """A network with its head."""

    def __init__(self, network: nn.Module, head: LossHead) -> None:
        super().__init__()
        self.network, self.head = network, head

    def features(self, images: Tensor) -> Tensor:
        """Return one row per image."""
        found: Tensor = self.network(images)
        return found.flatten(1)

    def projected(self, images: Tensor) -> Tensor:
        """Return what a predictor should tell: (images, width)."""
        found: Tensor = self.head.project(self.features(images))
        return found


def simsiam_loss(
    learner: Learner, views: Sequence[Tensor], aims: Sequence[Tensor] | None
) -> Tensor:
    """Return the mean of -cos(predicted(view), projected(other view)), both ways round.

    Args:
        learner: What is trained.
        views: Two of each image.
        aims: What to predict of each view, instead of the learner's own projections.

    Returns:
        The loss, in [-1, 1].
    """
    project, predict = learner.head.project, learner.head.predict
    found = [project(learner.features(view)) for view in views]
    aims = [z.detach() for z in found] if aims is None else aims
    pairs = zip(found, reversed(list(aims)), strict=True)
    first, second = (-cosine_similarity(predict(z), aim, dim=1).mean() for z, aim in pairs)
    return (first + second) / 2


def hide_patches(
    images: Tensor, *, share: float, patch: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Set square patches to the mean of the batch.

    Args:
        images: (images, channels, height, width).
        share: Of the patches, at least one and never all.
        patch: Height and width of a patch.
        generator: Which ones.

    Returns:
        The changed images, and where: bool, (images, 1, height, width).
    """
    count, _, height, width = images.shape
    rows, columns = -(-height // patch), -(-width // patch)
    hidden = min(max(1, round(share * rows * columns)), rows * columns - 1)
    drawn = torch.rand(count, rows * columns, generator=generator, device=generator.device)
    where = torch.zeros(count, rows * columns, dtype=torch.bool, device=images.device)
    where.scatter_(1, drawn.argsort(1)[:, :hidden].to(images.device), True)
    tiles = where.view(count, 1, rows, 1, columns, 1).expand(-1, -1, -1, patch, -1, patch)
    mask = tiles.reshape(count, 1, rows * patch, columns * patch)[..., :height, :width]
    return torch.where(mask, images.mean(), images), mask


def masked_loss(learner: Learner, images: Tensor, shown: Tensor, mask: Tensor) -> Tensor:
    """Return the mean distance of the hidden pixels from those told by a linear map of features.

    Source: "SimMIM: A Simple Framework for Masked Image Modeling" (Xie et al., 2022), equation 2.
    """
    assert learner.head.decode is not None
    told = learner.head.decode(learner.features(shown)).view_as(images)
    where = mask.expand_as(images)
    distance: Tensor = (told - images).abs()[where]
    return distance.mean()


def feature_spread(features: Tensor) -> float:
    """Return the deviation of the normalised features: 0 once they collapsed, 1 at most.

    The mean over the features of their deviation over the images, times the root of their number.

    Source: "Exploring Simple Siamese Representation Learning" (Chen, He, 2021), section 4.1.

    Example:
        >>> feature_spread(torch.ones(4, 3)), round(feature_spread(torch.eye(2) * 2 - 1), 3)
        (0.0, 1.0)
    """
    rows = nn.functional.normalize(features.double(), dim=1)
    return float(rows.std(0, correction=0).mean() * rows.shape[1] ** 0.5)
