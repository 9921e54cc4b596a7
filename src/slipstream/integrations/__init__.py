"""Slipstream inside other frameworks; each module needs its framework, and no other does."""
