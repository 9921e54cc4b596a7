"""The command `slipstream`: one file for each command."""

from slipstream.cli.app import main

__all__ = ["main"]
