"""Lines, curves and simplices of networks trained in one run."""

from slipstream.recipes.subspaces.plan import SubspacePlan
from slipstream.recipes.subspaces.stored import load_subspace
from slipstream.recipes.subspaces.subspace import Subspace
from slipstream.recipes.subspaces.training import train_subspace

__all__ = ["Subspace", "SubspacePlan", "load_subspace", "train_subspace"]
