"""The list of recipes: a new one is a file beside this, and a line here."""

import typer

from slipstream.cli.command import add_command
from slipstream.cli.recipe.aggregation import aggregation
from slipstream.cli.recipe.checkpoint_prior import checkpoint_prior, generate
from slipstream.cli.recipe.iterand import iterand
from slipstream.cli.recipe.lure import lure
from slipstream.cli.recipe.meta_neuron import meta_neuron
from slipstream.cli.recipe.meta_ticket import meta_ticket
from slipstream.cli.recipe.operators import operators, tune_operator
from slipstream.cli.recipe.pseudo_transfer import pseudo_transfer
from slipstream.cli.recipe.reconstruction import reconstruction
from slipstream.cli.recipe.routed_pretraining import routed_pretraining
from slipstream.cli.recipe.side_tuning import side_tuning
from slipstream.cli.recipe.subspace import subspace

recipe = typer.Typer(
    no_args_is_help=True,
    help="Alternative training recipes: subspaces, masks, few-shot, continual, with side networks.",
)
for command in (
    *(subspace, iterand, meta_ticket, lure, side_tuning, aggregation, pseudo_transfer),
    *(reconstruction, checkpoint_prior, generate),
    meta_neuron,
    routed_pretraining,
    *(operators, tune_operator),
):
    add_command(recipe, command)
