"""The trained model of checkpoints, and what it adds to the run folder of its training.

RUN/prior.json               plan, neuron groups and scales; written when the training is finished
RUN/reference.safetensors    of runs that were aligned: what a start is aligned to
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from slipstream.evaluation import device_of, eval_mode
from slipstream.recipes.checkpoint_prior.corpus import alignment
from slipstream.recipes.checkpoint_prior.diffusion import Diffusion
from slipstream.recipes.checkpoint_prior.network import PriorNetwork
from slipstream.recipes.checkpoint_prior.plan import PriorPlan
from slipstream.recipes.checkpoint_prior.tokens import TokenLayout
from slipstream.storage.reading import parsing
from slipstream.storage.tensor_file import map_tensors, tensor_chunks
from slipstream.storage.writing import write_whole
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.training.plan import TrainingPlan
from slipstream.trajectory import Trajectory, declare_companions
from slipstream.weights import Weights, load_weights_

DESCRIPTION, REFERENCE = "prior.json", "reference.safetensors"
_FIGURES = ("held_out", "unmoved", "chosen", "steps", "seconds")


@dataclass(frozen=True)
class Scales:
    """What brings weights and metric to about 1."""

    weights: float  # weights are multiplied by it
    low: float  # the least metric of the training runs
    high: float  # the largest
    best: float  # what the best tenth of the runs ended with

    def metrics(self, values: Tensor) -> Tensor:
        """Return metrics between 0 and 1, as far as the runs had them."""
        return (values - self.low) / ((self.high - self.low) or 1.0)


@dataclass(frozen=True, eq=False)
class CheckpointPrior:
    """Result of `train_prior`: later weights, given weights, their metric and a wanted one."""

    plan: PriorPlan
    network: PriorNetwork  # with the averaged weights of the chosen step
    groups: NeuronGroups
    scales: Scales
    reference: Weights | None  # the mean first checkpoint of runs that were aligned
    losses: tuple[float, ...]  # mean squared error of each epoch, in scaled weights
    held_out: float  # the same of runs that were not trained on, at the chosen step
    unmoved: float  # the same if the start is returned
    chosen: int  # the step with the least error on these runs
    steps: int
    seconds: float  # of the training

    @property
    def layout(self) -> TokenLayout:
        """Which parameters make which token."""
        return self.network.layout

    def update(
        self,
        starts: Sequence[Weights],
        *,
        metric: Sequence[float],
        wanted: float | Sequence[float] | None = None,
        seed: int = 0,
    ) -> list[dict[str, Tensor]]:
        """Return later weights for each start, a draw each from the learned distribution.

        Args:
            starts: Weights. What is not learned, such as statistics of BatchNorm, is kept.
            metric: What each is worth, by the metric of the plan.
            wanted: What the results should be worth; by default what the best runs ended with.
            seed: Of the noise.

        Returns:
            Weights with their neurons in the order of their start's.

        Raises:
            ValueError: If a start lacks a tensor, or a metric is not finite.
        """
        for start in starts:
            if missing := [name for name in self.layout.shapes if name not in start]:
                raise ValueError(f"starts must have the tensor {missing[0]!r}, as the runs had it.")
        asked = self.scales.best if wanted is None else wanted
        metrics = torch.stack([torch.tensor(metric), torch.tensor(asked).expand(len(starts))], 1)
        if not metrics.isfinite().all():
            raise ValueError(f"metric and wanted must be finite, got {metrics.tolist()}.")
        flat = torch.stack([self.layout.flatten(start).float().cpu() for start in starts])
        places, signs = self._orders(flat)
        device = device_of(self.network)
        given = (flat.gather(1, places) * signs * self.scales.weights).to(device)
        found = self._draw(given, self.scales.metrics(metrics).to(device), seed).cpu()
        found = (found / self.scales.weights * signs).gather(1, places.argsort(1))
        return [
            {n: made[n].to(v) if n in made else v for n, v in start.items()}
            for start, made in zip(starts, map(self.layout.unflatten, found), strict=True)
        ]

    def _orders(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """From where the numbers of each start come, and their signs, in the order of the runs."""
        if self.reference is None:
            return torch.arange(flat.shape[1]).expand(flat.shape), torch.ones(1)
        found = [alignment(row, self.reference, self.layout, self.groups) for row in flat]
        return torch.stack([p for p, _ in found]), torch.stack([s for _, s in found])

    @torch.no_grad()
    def _draw(self, start: Tensor, metrics: Tensor, seed: int) -> Tensor:
        def denoise(noisy: Tensor, level: int) -> Tensor:
            levels = torch.full_like(metrics[:, :1], level / self.plan.levels)
            expected: Tensor = self.network(noisy, start, torch.cat([levels, metrics], 1))
            return expected

        with eval_mode(self.network):
            return Diffusion(self.plan.levels).sample(denoise, start, seed=seed)


def save_prior(prior: CheckpointPrior, folder: Path) -> None:
    """Write what is needed besides the snapshots into the run folder of the training."""
    declare_companions(folder, DESCRIPTION, REFERENCE)
    if prior.reference is not None:
        write_whole(folder / REFERENCE, tensor_chunks(prior.reference))
    described = {
        "plan": asdict(prior.plan),
        "groups": prior.groups.to_json(),
        "tensors": list(prior.layout.shapes),
        "losses": prior.losses,
        **{name: getattr(prior, name) for name in _FIGURES},
        "scales": asdict(prior.scales),
    }
    write_whole(folder / DESCRIPTION, [json.dumps(described, indent=1).encode()])


def load_prior(path: str | Path) -> CheckpointPrior:
    """Read a model of checkpoints from the run folder of its training.

    Args:
        path: The run folder that `train_prior` recorded.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If there is no finished one.
        ValueError: If its description is damaged.
    """
    folder = Path(path)
    if not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(
            f"{folder} holds no finished model of checkpoints: it has no {DESCRIPTION}. Train one "
            "by `slipstream recipe checkpoint-prior`, or resume its training."
        )
    with parsing(folder / DESCRIPTION, "model of checkpoints"):
        described = json.loads((folder / DESCRIPTION).read_bytes())
        given = described["plan"]
        plan = PriorPlan(**{**given, "descent": TrainingPlan.from_dict(given["descent"])})
        groups = NeuronGroups.from_json(described["groups"])
        layout = TokenLayout.of(groups, described["tensors"], chunk=plan.chunk)
        network = PriorNetwork(layout, plan)
        load_weights_(network, Trajectory.open(folder).at(described["chosen"]).weights)
        aligned = plan.symmetry == "align"
        return CheckpointPrior(
            plan,
            network,
            groups,
            Scales(**described["scales"]),
            map_tensors(folder / REFERENCE) if aligned else None,
            tuple(described["losses"]),
            **{name: described[name] for name in _FIGURES},
        )
