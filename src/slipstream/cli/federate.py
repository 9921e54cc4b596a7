"""`slipstream federate demo`."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import pieces_bar

SPLIT = "iid: clients alike; otherwise the parameter of a Dirichlet distribution, such as 0.3."
METHOD = "fedavg, apf, top-k, 8-bit, modes, apf+8-bit, modes+8-bit or modes+top-k; repeatable."


def federate(
    what: Annotated[Literal["demo"], typer.Argument(help="A comparison of methods.")] = "demo",
    data: Annotated[str, typer.Option(help="digits or mnist:DIR.")] = "digits",
    method: Annotated[list[str] | None, typer.Option(help=METHOD)] = None,
    split: Annotated[list[str] | None, typer.Option(help=SPLIT)] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of training and averaging.")] = 100,
    clients: Annotated[int, typer.Option(min=1, help="That share the data.")] = 10,
    width: Annotated[int, typer.Option(min=1, help="Of the two hidden layers.")] = 64,
    failing: Annotated[float, typer.Option(help="Share of the messages that are lost.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of weights, split, batches and failures.")] = 0,
    json: options.AsJson = False,
) -> None:
    """Train one network by several clients that keep their data; compare accuracy and bytes.

    Example: slipstream federate demo --method fedavg --method modes --split iid --split 0.3
    """
    with pieces_bar("starting", hidden=json) as bar:
        from slipstream.federated.training import FederatedPlan, compare_federated
        from slipstream.named_task import NamedTask

        outcomes = compare_federated(
            NamedTask("mlp", data, width=width, options={"hidden_layers": 2}, seed=seed),
            FederatedPlan(rounds=rounds, clients=clients, failing=failing, seed=seed),
            methods=method or ("fedavg", "modes", "modes+8-bit"),
            splits=split or ("iid", "0.3"),
            progress=bar,
        )
    if json:
        write_json([asdict(outcome) for outcome in outcomes])
        return
    rows = [
        (o.split, o.method, f"{o.test['accuracy']:.4f}", f"{o.bytes_up / 1e6:.2f}",
         f"{o.bytes_down / 1e6:.2f}", f"{o.relative_bytes:.1%}")
        for o in outcomes
    ]  # fmt: skip
    write_table(("split", "method", "accuracy", "MB up", "MB down", "of the first"), rows)
