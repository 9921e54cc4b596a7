"""Training a generative model of checkpoints on recorded runs."""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slipstream.averaging import EMA
from slipstream.evaluation import Task, device_of, weights_in
from slipstream.recipes.checkpoint_prior.corpus import Corpus, Runs
from slipstream.recipes.checkpoint_prior.diffusion import Diffusion
from slipstream.recipes.checkpoint_prior.network import PriorNetwork
from slipstream.recipes.checkpoint_prior.plan import PriorPlan
from slipstream.recipes.checkpoint_prior.prior import CheckpointPrior, Scales, save_prior
from slipstream.recipes.checkpoint_prior.tokens import TokenLayout
from slipstream.storage.new_run import NewRun
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.training import Loop, RecordingOptions, recorded
from slipstream.training.loop import Progress
from slipstream.trajectory import Layout
from slipstream.weights import Weights, clone, load_weights_, parameter_names, weights_of

_SPREAD = 0.538  # of scaled weights: what the source uses
_ORDERS = 64  # random permutations per epoch
_JUDGED = 512  # pairs of held-out checkpoints

Pair = tuple[Tensor, ...]  # earlier and later weights, their metrics


def train_prior(
    runs: Runs,
    task: Task,
    *,
    plan: PriorPlan | None = None,
    run_folder: str | Path | NewRun | None = None,
    progress: Progress | None = None,
) -> CheckpointPrior:
    """Learn p(later weights | weights, their metric, the wanted metric) from recorded runs.

    A diffusion transformer over tokens of neurons expects the later weights x from
    sqrt(a_t) x + sqrt(1 - a_t) e, the earlier ones and both metrics: the mean squared error over
    random pairs i <= j of checkpoints of a run, many of them from its first one. It returns the
    start plus what its heads add, which begin at zero. No gradient of the task is taken.

    Source: "Learning to Learn with Generative Models of Neural Network Checkpoints" (Peebles,
    Radosavovic, Brooks, Efros, Malik, 2022), Section 2; tokens of neurons and alignment are ours.

    Args:
        runs: A folder of run folders, or ten runs or more, of one architecture; all checkpoints
            are held in memory. Use a metric on validation data: what is learned from test data
            leaks.
        task: The model of the runs, to find its neuron groups and with its device.
        plan: How.
        run_folder: Records the transformer after every epoch as a run.
        progress: Called after each step with the steps done and their final number.

    Returns:
        The trained model, with its error on runs that it was not trained on.

    Raises:
        ValueError: If there are fewer than ten runs, one is of another architecture or lacks the
            metric, weights or metric are not finite, or what is to be resumed is another training.
        FileExistsError: If the run folder is not empty.
    """
    plan, device = plan or PriorPlan(), task.device
    groups = find_neuron_groups(task.model, task.example())
    learned = dict(task.model.named_parameters())
    names = [name for name in parameter_names(task.model) if learned[name].is_floating_point()]
    layout = TokenLayout.of(groups, names, chunk=plan.chunk)
    corpus = Corpus.read(runs, layout, Layout.of(task.model), metric=plan.metric)
    if plan.symmetry == "align":
        corpus = corpus.aligned(layout, groups)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.descent.seed)
        network = PriorNetwork(layout, plan).to(device)
    training = _Training(network, plan, corpus)
    described = {"runs": len(corpus), "checkpoints": len(corpus.weights)}
    with recorded(
        training,
        Task(network, configuration=described),
        run_folder,
        plan={"checkpoint-prior": asdict(plan)},
        start=[weights_of(network), {"runs": corpus.weights, "metric": corpus.metric}],
        measure=lambda: {"validation_loss": training.held_out(training.averaged())},
        options=RecordingOptions(weights=training.averaged),
    ) as keep:
        data = _Pairs(
            training.trained, plan, groups if plan.symmetry == "augment" else None, layout
        )

        def after_epoch() -> None:
            training.after_epoch()
            keep()

        training.run(training.objective, data=data, on_epoch=after_epoch, progress=progress)
    prior = training.result(groups)
    if run_folder is not None:
        save_prior(prior, NewRun.of(run_folder).folder)
    return prior


@dataclass(frozen=True)
class _Pairs:
    """Batches of random pairs of checkpoints, others in every epoch."""

    corpus: Corpus
    plan: PriorPlan
    groups: NeuronGroups | None  # to permute by
    layout: TokenLayout

    def __len__(self) -> int:
        return self.plan.steps

    def epoch(self, number: int) -> Iterator[Pair]:
        """Yield the batches of an epoch."""
        seed = np.random.default_rng((self.plan.descent.seed, number)).integers(2**62, size=2)
        generator = torch.Generator().manual_seed(int(seed[0]))
        orders = self._orders(int(seed[1]) % 2**31)
        for _ in range(self.plan.steps):
            early, late, before, after = self.corpus.pairs(
                self.plan.batch_size, generator, from_start=self.plan.from_start
            )
            if orders is not None:
                chosen = torch.randint(_ORDERS, (len(early),), generator=generator)
                places, signs = (table[chosen] for table in orders)
                early, late = (value.gather(1, places) * signs for value in (early, late))
            yield early, late, before, after

    def __iter__(self) -> Iterator[Pair]:
        return self.epoch(0)

    def _orders(self, seed: int) -> tuple[Tensor, Tensor] | None:
        if self.groups is None:
            return None
        drawn = (Permutation.random(self.groups, seed=seed + n) for n in range(_ORDERS))
        moves = [self.layout.moves(permutation) for permutation in drawn]
        return torch.stack([p for p, _ in moves]), torch.stack([s for _, s in moves])


class _Training(Loop):
    """A transformer under an optimiser, with the average of its weights."""

    def __init__(self, network: PriorNetwork, plan: PriorPlan, corpus: Corpus) -> None:
        super().__init__(network, plan.descent)
        self.network, self.prior_plan = network, plan
        self.diffusion = Diffusion(plan.levels)
        generator = torch.Generator().manual_seed(plan.descent.seed)
        order = torch.randperm(len(corpus), generator=generator)
        held = max(1, round(plan.held_out * len(corpus)))
        self.corpus, self.trained, self.judged = (
            corpus,
            corpus.take(order[held:]),
            corpus.take(order[:held]),
        )
        self.scales = Scales(
            _SPREAD / float(corpus.weights.std()),
            float(corpus.metric.min()),
            float(corpus.metric.max()),
            self.trained.best(),
        )
        self.average = EMA(plan.decay).running()
        self.chosen: dict[str, Any] = {"error": math.inf}

    def objective(self, pair: Pair) -> Tensor:
        """Return the mean squared error at random noise levels."""
        start, later = (value * self.scales.weights for value in pair[:2])
        level = torch.randint(self.prior_plan.levels, (len(start),), device=start.device)
        noisy = self.diffusion.noised(later, level, torch.randn_like(later))
        metrics = self.scales.metrics(torch.stack(pair[2:], 1))
        scalars = torch.cat([level[:, None] / self.prior_plan.levels, metrics], 1)
        expected: Tensor = self.network(noisy, start, scalars)
        return (expected - later).square().mean()

    def update(self, loss: Any, batch: Any) -> float:
        """Take a step, and take its weights into the average."""
        found = super().update(loss, batch)
        self.average.update(weights_of(self.network), self.step)
        return found

    def averaged(self) -> Weights:
        """Return the averaged weights; those at the start before the first step."""
        mean = self.average.mean() or {}
        return {n: mean[n].to(v) if mean else v for n, v in weights_of(self.network).items()}

    def after_epoch(self) -> None:
        """Choose the averaged weights if none before were better on held-out runs."""
        weights = clone(self.averaged())
        if (error := self.held_out(weights)) < self.chosen["error"]:
            self.chosen = {"error": error, "step": self.step, "weights": weights}

    @torch.no_grad()
    def held_out(self, weights: Weights) -> float:
        """Return the error on held-out runs; always for the same draws."""
        with torch.random.fork_rng(), weights_in(self.network, weights):
            torch.manual_seed(0)
            return float(self.objective(self._judged_pairs()))

    def _judged_pairs(self) -> Pair:
        generator, share = torch.Generator().manual_seed(0), self.prior_plan.from_start
        pairs = self.judged.pairs(_JUDGED, generator, from_start=share)
        return tuple(value.to(device_of(self.network)) for value in pairs)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        own = {"average": self.average.state_dict(), "chosen": self.chosen}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another one stopped."""
        super().load_state_dict(state)
        self.average.load_state_dict(state["average"])
        self.chosen = state["chosen"]

    def result(self, groups: NeuronGroups) -> CheckpointPrior:
        """Return the trained model."""
        network = copy.deepcopy(self.network)
        load_weights_(network, self.chosen["weights"])
        early, late, *_ = self._judged_pairs()
        aligned = self.prior_plan.symmetry == "align"
        first = self.corpus.weights[self.trained.first].mean(0)
        return CheckpointPrior(
            self.prior_plan,
            network,
            groups,
            self.scales,
            network.layout.unflatten(first) if aligned else None,
            tuple(self.losses),
            self.chosen["error"],
            float(((late - early) * self.scales.weights).square().mean()),
            self.chosen["step"],
            self.step,
            self.seconds,
        )
