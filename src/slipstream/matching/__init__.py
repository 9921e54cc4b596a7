"""How to choose the permutation that lays a source network over a target."""
