"""Ways to train that give more than one network, or another one, for the price of a run."""

from slipstream.recipes.fresh import fresh_weights
from slipstream.recipes.subspace import Subspace, SubspacePlan
from slipstream.recipes.subspace_folder import load_subspace
from slipstream.recipes.subspace_training import train_subspace

__all__ = ["Subspace", "SubspacePlan", "fresh_weights", "load_subspace", "train_subspace"]
