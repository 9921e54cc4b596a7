"""Carrying a learning trajectory to a new start."""
