"""One training, an ensemble of K networks: the run is transferred to K new initialisations.

Shows: `transfer_to_many` with threads, and what averaging the transferred networks gives.
Takes: about twenty seconds on one core of a laptop; no download, no GPU.

    python examples/ensemble_from_one_run.py
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from slipstream import (
    Trajectory,
    TransferPlan,
    transfer_to_many,
    weights_of,
)
from slipstream.evaluation import eval_mode, weights_in
from slipstream.named_task import NamedTask
from slipstream.training import TrainingPlan, record_training
from slipstream.weights import Weights

MEMBERS = 5
SETUP = NamedTask("mlp", "digits", width=256, options={"hidden_layers": 2})


def probabilities(model: nn.Module, weights: Weights, inputs: Tensor) -> Tensor:
    """What the network with these weights believes: (examples, classes)."""
    with weights_in(model, weights), eval_mode(model), torch.no_grad():
        return model(inputs).softmax(-1)


def main() -> None:
    """Train one network, transfer its run, and average the outputs."""
    experiment = SETUP.build()
    model = experiment.model
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as executor:
        record_training(SETUP.build(), TrainingPlan(epochs=20, lr=0.1), run_folder=folder)
        source = Trajectory.open(folder)
        starts = [weights_of(SETUP.build(seed=seed).model) for seed in range(1, MEMBERS + 1)]
        results = transfer_to_many(
            source,
            starts,
            experiment,
            plan=TransferPlan("fgmt-signed"),
            executor=executor,
        )
        trained = source[-1].weights

    inputs, labels = (torch.cat(parts) for parts in zip(*experiment.test, strict=True))
    members = torch.stack([probabilities(model, r.weights, inputs) for r in results])
    for name, believed in [
        ("the source alone", probabilities(model, trained, inputs)),
        *((f"member {n}", member) for n, member in enumerate(members, start=1)),
        (f"mean of {MEMBERS} members", members.mean(0)),
    ]:
        share = (believed.argmax(-1) == labels).float().mean().item()
        surprise = nn.functional.nll_loss(believed.clamp_min(1e-12).log(), labels).item()
        print(f"{name:>18}: accuracy {share:.3f}, negative log-likelihood {surprise:.3f}")


if __name__ == "__main__":
    main()
