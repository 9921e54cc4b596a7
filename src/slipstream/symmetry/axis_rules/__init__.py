"""One rule per operator family: what an operator does to the axes of its tensors."""
