"""The same federated training over Flower's Ray simulation and over the in-process grid.

pip install "flwr[simulation]"
python benchmarks/federated_simulation.py --output benchmarks/results/federated_simulation
"""

import argparse
import os
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

from common import machine, machine_line, table, write
from slipstream.federated import EightBit, GrowingModes
from slipstream.federated.flower import CompressedAveraging
from slipstream.federated.in_process import InProcessGrid
from slipstream.federated.training import FederatedPlan, client_app
from slipstream.modes import Growth
from slipstream.named_task import NamedTask
from slipstream.testbed.clients import split_among_clients

SETUP = NamedTask("mlp", "digits", width=32, options={"hidden_layers": 2})
GROWTH = Growth(warm_up=2, every=1, share=0.3, modes=4)


def main() -> None:
    """Train twice, and compare weights, bytes and times."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    plan = FederatedPlan(rounds=given.rounds, clients=given.clients)
    experiment = SETUP.build()
    parts = split_among_clients(experiment.data.examples, plan.clients)
    app = client_app(experiment.model, experiment.loss, parts=parts, plan=plan)
    start = ArrayRecord(experiment.model.state_dict())
    strategies, weights, seconds = [], [], []
    for simulated in (False, True):
        strategy = CompressedAveraging(
            SETUP.build().model,
            policy=GrowingModes(GROWTH),
            encoding=EightBit(),
            min_train_nodes=plan.clients,
            min_available_nodes=plan.clients,
        )
        began = time.perf_counter()
        if simulated:
            server = ServerApp()

            @server.main()
            def serve(grid, context, strategy=strategy):  # ruff: ignore[missing-type-function-argument, missing-return-type-private-function]
                result = strategy.start(grid, start, num_rounds=plan.rounds)
                weights.append(result.arrays.to_torch_state_dict())

            run_simulation(server, app, num_supernodes=plan.clients)
        else:
            nodes = {number: {"partition-id": number} for number in range(plan.clients)}
            result = strategy.start(InProcessGrid(app, nodes), start, num_rounds=plan.rounds)
            weights.append(result.arrays.to_torch_state_dict())
        seconds.append(time.perf_counter() - began)
        strategies.append(strategy)
    one, other = weights
    apart = max((one[name] - other[name]).abs().max().item() for name in one)
    moved = max((one[n] - v).abs().max().item() for n, v in start.to_torch_state_dict().items())
    facts = machine()
    rows = [
        (name, f"{up / 1e3:.1f}", f"{down / 1e3:.1f}", f"{taken:.1f}")
        for name, strategy, taken in zip(("in process", "Ray"), strategies, seconds, strict=True)
        for up in [sum(done.bytes_up for done in strategy.rounds)]
        for down in [sum(done.bytes_down for done in strategy.rounds)]
    ]
    text = "\n".join(
        [
            "# Flower's simulation and the in-process grid",
            f"\n{machine_line(facts)}\n",
            f"{plan.clients} clients, {plan.rounds} rounds, modes with 8 bits.\n",
            table(("", "kB up", "kB down", "seconds"), rows),
            f"\nLargest difference of a weight: {apart:.1e}; largest motion: {moved:.2f}.",
        ]
    )
    write(given.output, text, {"machine": facts, "apart": apart, "seconds": seconds})
    assert torch.isfinite(torch.tensor(apart))


if __name__ == "__main__":
    main()
