"""`slipstream federate demo`."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from slipstream.cli import options
from slipstream.cli.command import old_flags
from slipstream.cli.output import write_json, write_table
from slipstream.cli.progress import pieces_bar

METHODS, PARTITIONS = ("fedavg", "modes", "modes+8-bit"), ("iid", "0.3")
PARTITION = (
    "How the data are divided: iid, or the parameter of a Dirichlet distribution, such as 0.3; "
    "repeatable."
)
METHOD = "fedavg, apf, top-k, 8-bit, modes, apf+8-bit, modes+8-bit or modes+top-k; repeatable."


@old_flags({"--split": "--partition"})
def federate(
    what: Annotated[Literal["demo"], typer.Argument(help="A comparison of methods.")] = "demo",
    data: Annotated[str, typer.Option(help="digits or mnist:DIR.")] = "digits",
    method: Annotated[
        list[str] | None, typer.Option(help=METHOD, show_default=", ".join(METHODS))
    ] = None,
    partition: Annotated[
        list[str] | None, typer.Option(help=PARTITION, show_default=", ".join(PARTITIONS))
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of training and averaging.")] = 100,
    clients: Annotated[int, typer.Option(min=1, help="Clients that share the data.")] = 10,
    width: Annotated[int, typer.Option(min=1, help="Units of the two hidden layers.")] = 64,
    failing: Annotated[float, typer.Option(help="Share of the messages that are lost.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of all that is random.")] = 0,
    json: options.AsJson = False,
) -> None:
    """Train one network on several clients that keep their data; compare accuracy and bytes.

    Example: slipstream federate demo --method fedavg --method modes --partition iid
    """
    with pieces_bar("starting", hidden=json) as bar:
        from slipstream.federated.training import FederatedPlan, compare_federated
        from slipstream.named_task import NamedTask

        outcomes = compare_federated(
            NamedTask("mlp", data, width=width, options={"hidden_layers": 2}, seed=seed),
            FederatedPlan(rounds=rounds, clients=clients, failing=failing, seed=seed),
            methods=method or METHODS,
            splits=partition or PARTITIONS,
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
