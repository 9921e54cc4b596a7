"""Routed self-supervised pre-training: a trunk, and a branch for each cluster of the images."""

import copy as copying
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Task, eval_mode, takes_task
from slipstream.recipes.modules import Frozen
from slipstream.recipes.parts import numbered, together_run, write_parts
from slipstream.recipes.pseudo_transfer.augmentation import Augmentation, distort_images
from slipstream.recipes.routed_pretraining.branches import (
    Branches,
    Learner,
    LossHead,
    feature_spread,
    hide_patches,
    masked_loss,
    simsiam_loss,
)
from slipstream.recipes.routed_pretraining.clusters import Dealt, Images, cluster
from slipstream.recipes.routed_pretraining.plan import RoutedPlan
from slipstream.storage.new_run import NewRun
from slipstream.training import Loop, recorded
from slipstream.training.loop import Progress
from slipstream.trajectory import Snapshot
from slipstream.weights import clone, weights_of

LOOKED_AT = 512  # images that the spread of the features is measured on
NETWORKS = "networks"  # where `Branches` has the whole networks
COLLAPSED = 0.01  # spread of the features below which there is nothing to cluster


@dataclass(frozen=True)
class RoutedPretraining:
    """Result of `pretrain_routed`."""

    plan: RoutedPlan
    branches: tuple[dict[str, Tensor], ...]  # the weights of a whole network for each cluster
    whole: dict[str, Tensor]  # of the network before the division, the teacher
    clusters: Tensor | None  # int64, (images,); None if they were never divided
    routed: tuple[str, ...]  # parameters that differ between the branches
    spread: tuple[float, ...]  # deviation of the normalised features after each epoch: 0 collapsed
    losses: tuple[float, ...]  # mean training loss of each epoch
    steps: int
    seconds: float  # of the training


@takes_task
def pretrain_routed(
    task: Task,
    *,
    plan: RoutedPlan | None = None,
    augment: Augmentation = distort_images,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> RoutedPretraining:
    """Learn features of unlabelled images: first of all, then apart for clusters of them.

    A network learns on all images for a share of the epochs. k-means on its features divides the
    images, and from then on each cluster trains a branch of its own behind a shared trunk. The
    images of other clusters fall to none over some epochs, and the network as it was before the
    division teaches: a branch also predicts the teacher's projection of the other view. Every step
    is one batch of one branch, so the whole takes the steps of a training that divides nothing.

    Source: "Task-Customized Self-Supervised Pre-training with Scalable Dynamic Routing" (Liu et
    al., 2022), without its search space of many paths; "Exploring Simple Siamese Representation
    Learning" (Chen, He, 2021), algorithm 1.

    Args:
        task: Its model maps images to features, such as a network whose head was replaced by
            `nn.Identity()`; left as it was. Of its data only the images are used, and all are held
            in memory; labels are ignored. The first batch says how large batches are.
        plan: How.
        augment: Makes a view of images by a random generator; the same image twice is a pair.
        run_folder: A folder for runs: `together`, from which an interrupted training is resumed,
            and `branch-1`, `branch-2`, ..., each a network that any task can start from.
        progress: Called after each step with the steps done and their final number.

    Returns:
        The networks, the clusters and how far the features were from collapsing.

    Raises:
        ValueError: If a batch holds no images, there are fewer images than clusters, the features
            collapse, the loss is not finite, a pattern matches nothing, or what is to be resumed
            is another training.
        FileExistsError: If a run folder is not empty.

    Example:
        >>> from slipstream.training import TrainingPlan
        >>> torch.manual_seed(0).initial_seed()
        0
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8))
        >>> plan = RoutedPlan(clusters=2, whole=0.5, descent=TrainingPlan(epochs=2))
        >>> images = [torch.rand(16, 1, 8, 8) for _ in range(4)]
        >>> found = pretrain_routed(Task(network, images), plan=plan)
        >>> len(found.branches), found.routed, found.steps
        (2, ('3.weight', '3.bias'), 8)
    """
    plan = plan or RoutedPlan()
    held = Images.of(task.data)
    training = _Training(task, plan, held, augment)
    new = None if run_folder is None else NewRun.of(run_folder)
    parts = [] if new is None else numbered(new.folder, "branch", plan.clusters)
    together = None if new is None else together_run(new, parts)
    with recorded(
        training,
        replace(task, model=training.branches, configuration={}),
        together,
        plan={"routed_pretraining": {**asdict(plan), "images": len(held)}},
        start=[weights_of(task.model)],
        measure=training.measured,
    ) as keep:

        def after_epoch() -> None:
            training.after_epoch()
            keep()

        data = Dealt(held, lambda: training.clusters, plan.foreign, plan.descent.seed)
        training.run(
            training.objective,
            data=data,
            on_epoch=after_epoch,
            progress=progress,
        )
    result = training.result()
    if new is not None:
        write_parts(
            new,
            task.model,
            parts[: len(result.branches)],
            lambda snapshot, branch: _branch_in(snapshot, branch, task.model, plan),
            recipe=lambda branch: {"routed_pretraining": {"branch": branch + 1, **asdict(plan)}},
            seed=plan.descent.seed,
        )
    return result


def _branch_in(
    snapshot: Snapshot, branch: int, network: nn.Module, plan: RoutedPlan
) -> dict[str, Tensor]:
    """The weights of a branch in a snapshot of all; before the division all are the first one."""
    stored = snapshot.weights
    divided = (snapshot.epoch or 0) >= plan.whole_epochs
    own, first = (f"{NETWORKS}.{n}." for n in (branch if divided else 0, 0))
    names = weights_of(network)
    return {n: stored[own + n if own + n in stored else first + n] for n in names}


class _Training(Loop):
    """Networks that share a trunk, their heads, and the clusters once there are some."""

    def __init__(self, task: Task, plan: RoutedPlan, held: Images, augment: Augmentation) -> None:
        self.routing, self.held, self.augment = plan, held, augment
        count = plan.clusters if plan.whole_epochs < plan.descent.epochs else 1
        if len(held) < count:
            raise ValueError(f"{len(held)} images cannot be divided into {count} clusters.")
        self.branches = Branches(task.model, plan.routed, count)
        first = task.to(held.images[:2])
        with torch.no_grad(), eval_mode(self.branches):
            features = self.branches.networks[0](first)
        if not isinstance(features, Tensor) or features.dim() < 2:
            raise ValueError("The model must map images to features: (images, features).")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.descent.seed)
            head = LossHead(features[0].numel(), first[0].numel(), plan).to(first)
        self.heads = nn.ModuleList(copying.deepcopy(head) for _ in range(count))
        self.teacher: Learner | None = None
        self.clusters: Tensor | None = None
        self.spread: list[float] = []
        super().__init__(nn.ModuleList([self.branches, self.heads]), plan.descent)

    def learner(self, branch: int) -> Learner:
        """Return a network with its head."""
        return Learner(self.branches.networks[branch], self.heads[branch])  # type: ignore[arg-type]

    def objective(self, batch: tuple[int, Tensor]) -> Tensor:
        """Return the loss of a branch on images."""
        branch, images = batch
        learner, plan = self.learner(branch), self.routing
        generator = torch.Generator().manual_seed(int(self.generator.integers(2**62)))
        if plan.method == "masked":
            shown, mask = hide_patches(
                images, share=plan.hidden, patch=plan.patch, generator=generator
            )
            own, views = masked_loss(learner, images, shown, mask), [shown, images]
        else:
            views = [self.augment(images, generator) for _ in range(2)]
            own = simsiam_loss(learner, views, None)
        if self.teacher is None or not plan.distillation:
            return own
        with torch.no_grad():
            aims = [self.teacher.projected(view) for view in views]
        taught = simsiam_loss(learner, views, aims)
        return (1 - plan.distillation) * own + plan.distillation * taught

    def after_epoch(self) -> None:
        """Measure how far the features are from collapsing; divide the images when it is time."""
        looked = self.held.images[:: -(-len(self.held) // LOOKED_AT)]
        used = range(len(self.heads) if self.clusters is not None else 1)
        self.spread.append(min(feature_spread(self._features(looked, branch)) for branch in used))
        if self.spread[-1] < COLLAPSED:
            raise ValueError(
                f"The features collapsed in epoch {self.epoch}: the deviation of the normalised "
                f"features is {self.spread[-1]:.2g}, where 1 is the most. Larger batches, a "
                "smaller lr or a stronger augmentation help; SimSiam needs BatchNorm in the model."
            )
        if self.epoch == self.routing.whole_epochs and len(self.heads) > 1:
            features = self.held.outputs(lambda images: self._features(images, 0))
            self.clusters = cluster(features, self.routing.clusters, seed=self.routing.descent.seed)
            self.divide()

    def divide(self) -> None:
        """Let every branch, and the teacher, begin where the first one is."""
        self.branches.spread_out()
        for other in list(self.heads)[1:]:
            other.load_state_dict(self.heads[0].state_dict())
        self.teacher = copying.deepcopy(self.learner(0)).eval().requires_grad_(False)

    def _features(self, images: Tensor, branch: int) -> Tensor:
        network = Frozen(self.branches.networks[branch])
        found: Tensor = network(images.to(next(self.module.parameters()).device))
        return found.flatten(1).cpu()

    def measured(self) -> dict[str, float]:
        """Return what is recorded beside the loss."""
        return {"feature_spread": self.spread[-1]} if self.spread else {}

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        taught = None if self.teacher is None else self.teacher.state_dict()
        own = {"clusters": self.clusters, "teacher": taught, "spread": list(self.spread)}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another one stopped."""
        super().load_state_dict(state)
        self.clusters, self.spread = state["clusters"], list(state["spread"])
        if state["teacher"] is not None:
            self.teacher = copying.deepcopy(self.learner(0)).eval().requires_grad_(False)
            self.teacher.load_state_dict(state["teacher"])

    def result(self) -> RoutedPretraining:
        """Return the present result."""
        networks = [clone(weights_of(network)) for network in self.branches.networks]
        whole = networks[0] if self.teacher is None else clone(weights_of(self.teacher.network))
        return RoutedPretraining(
            plan=self.routing,
            branches=tuple(networks),
            whole=whole,
            clusters=self.clusters,
            routed=self.branches.routed,
            spread=tuple(self.spread),
            losses=tuple(self.losses),
            steps=self.step,
            seconds=self.seconds,
        )
