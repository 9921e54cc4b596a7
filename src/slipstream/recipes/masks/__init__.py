"""Masks of random weights: edge-popup and IteRand."""

from slipstream.recipes.masks.iterand import Iterand
from slipstream.recipes.masks.plan import IterandPlan
from slipstream.recipes.masks.selection import churn, select
from slipstream.recipes.masks.ticket import Ticket
from slipstream.recipes.masks.ticket_file import TicketSize, load_ticket, save_ticket, ticket_size
from slipstream.recipes.masks.training import IterandTraining, train_iterand

__all__ = [
    "Iterand",
    "IterandPlan",
    "IterandTraining",
    "Ticket",
    "TicketSize",
    "churn",
    "load_ticket",
    "save_ticket",
    "select",
    "ticket_size",
    "train_iterand",
]
