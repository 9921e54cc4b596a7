"""Masks of random weights: edge-popup and IteRand."""
