"""`slipstream landscape`: the commands about the loss between and around networks."""

from slipstream.cli.landscape.commands import landscape

__all__ = ["landscape"]
