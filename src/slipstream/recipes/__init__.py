"""Ways to train that give more than one network, or another one, for the price of a run."""

from slipstream.recipes.fresh import fresh_weights
from slipstream.recipes.iterand import Iterand, IterandPlan
from slipstream.recipes.iterand_training import IterandTraining, train_iterand
from slipstream.recipes.selection import churn, select
from slipstream.recipes.subspace import Subspace, SubspacePlan
from slipstream.recipes.subspace_folder import load_subspace
from slipstream.recipes.subspace_training import train_subspace
from slipstream.recipes.ticket import Ticket
from slipstream.recipes.ticket_file import TicketSize, load_ticket, save_ticket, ticket_size

__all__ = [
    "Iterand",
    "IterandPlan",
    "IterandTraining",
    "Subspace",
    "SubspacePlan",
    "Ticket",
    "TicketSize",
    "churn",
    "fresh_weights",
    "load_subspace",
    "load_ticket",
    "save_ticket",
    "select",
    "ticket_size",
    "train_iterand",
    "train_subspace",
]
