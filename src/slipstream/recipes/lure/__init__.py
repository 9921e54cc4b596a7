"""Resetting the least important weights before new data."""
